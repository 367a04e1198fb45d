"""The input of training: a slide at the training resolution with frozen labels, and which of them are held out.

All regions are boxes in pixels of the source's frame (the slide at the training resolution). No torch here: a session
makes sources on whatever thread a stroke ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from napari_sparseseg.annotations.packing import CHUNK
from napari_sparseseg.annotations.strokes import stroke_mask
from napari_sparseseg.geometry import Box, Frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.annotations.pyramid import PackedPyramid
    from napari_sparseseg.annotations.snapshot import Snapshot
    from napari_sparseseg.annotations.strokes import Stroke
    from napari_sparseseg.slides import Slide

    Labels = NDArray[np.uint8]

_NEARBY = 16
"""Frame pixels around a point of a stroke that are searched for its label."""
_KEEP = 512 * 512
"""Largest mask in pixels that a unit caches."""
_TRIES = 6
MOST_CHANGED_CELLS = 1024
"""Of more changed cells than this, listing them is not worth the time."""
_ROWS = 8
_cells: WeakKeyDictionary[Snapshot, dict[tuple[Frame, int], list[Box]]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A slide, a frozen state of its labels, and the frame in which the network sees both."""

    slide: Slide
    labels: Snapshot
    frame: Frame
    role: str = "train"
    """``train``; ``held-out``: only scored, never trained on."""

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) of the slide in frame pixels."""
        return self.frame.shape(self.slide.shape)

    @property
    def brightfield(self) -> bool:
        """Whether pixels are 8-bit colour on a bright background, so that stains can be told from them."""
        return self.slide.is_rgb and self.slide.dtype == np.uint8 and min(self.slide.background) >= 128

    def read_pixels(self, region: Box) -> NDArray[Any]:
        """(h, w, C) in the slide's dtype; mirrored beyond the slide's edges."""
        return self.slide.read_region(region, self.frame, mirrored=True)

    def read_labels(self, region: Box) -> Labels:
        """(h, w) class ids; 0 = unlabelled or outside."""
        return self.labels.read_region(region, self.frame)


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """The smallest thing held out: a stroke, a block of something without an outline, or a slide.

    Attributes
    ----------
    region
        Frame pixels that it may touch, for a block exactly the block.
    stroke
        None: everything on the slide.
    classes
        Class ids that it labels.
    """

    region: Box
    stroke: Stroke | None
    classes: frozenset[int]
    _whole: dict[Frame, NDArray[np.bool_]] = field(default_factory=dict, repr=False)

    @property
    def key(self) -> tuple[int, Box | None]:
        """Identifies it on its slide while labels change."""
        if self.stroke is None:
            return 0, None
        return self.stroke.id, self.region if self.stroke.kind == "fill" else None

    def same_as(self, other: Unit) -> bool:
        """Whether both are one drawing in one place of one frame."""
        return self.stroke is other.stroke and self.region == other.region and self.classes == other.classes

    def covers(self, region: Box, frame: Frame) -> NDArray[np.bool_]:
        """Bool (h, w): pixels of `region` that must not be trained on while this is held out.

        A brush is drawn at a coarse level of the pyramid where it is at least 48 pixels wide, so that what was painted
        sticks out of the exact outline by up to 1/48 of its width; the brush here is wider by more than that.
        """
        if self.stroke is None:
            return np.ones((region.height, region.width), bool)
        part = region.intersection(self.region)
        out = np.zeros((region.height, region.width), bool)
        if part.area:
            inside = Box(part.y - region.y, part.x - region.x, part.height, part.width)
            out[inside.slices()] = self._drawn_within(part, frame)
        return out

    def labelled(self, labels: Labels, region: Box, frame: Frame) -> NDArray[np.bool_]:
        """Bool (h, w): pixels of `region` that carry a label of this unit, given the labels there."""
        if self.stroke is None:
            return labels > 0
        # Another stroke may have been drawn over it since, so the label must still be its own.
        own = labels > 0 if self.stroke.kind == "dense" else labels == self.stroke.class_id
        return own & self.covers(region, frame)

    def _drawn_within(self, part: Box, frame: Frame) -> NDArray[np.bool_]:
        """`_drawn` of a part of the region; cached for regions of ordinary size, since patches ask for it again."""
        if self.region.area > _KEEP:
            return self._drawn(part, frame)
        if frame not in self._whole:
            self._whole[frame] = self._drawn(self.region, frame)
        y, x = part.y - self.region.y, part.x - self.region.x
        return self._whole[frame][y : y + part.height, x : x + part.width]

    def _drawn(self, part: Box, frame: Frame) -> NDArray[np.bool_]:
        stroke = self.stroke
        if stroke is None or stroke.kind == "fill":
            return np.ones((part.height, part.width), bool)
        if stroke.kind == "brush":
            wider = max(stroke.radius, 1.0) * (1 + 1 / 24) + 1
            return stroke_mask(_moves_near(replace(stroke, radius=wider), frame.level0(part)), part, frame)
        return stroke_mask(stroke, part, frame)


def units_of(source: Source, block: int) -> list[Unit]:
    """The strokes, then the dense regions, that can be held out, each in the order of drawing.

    Parameters
    ----------
    source
        Whose strokes.
    block
        Side in frame pixels of the blocks into which labels without an outline (bucket, label image) are cut.
    """
    units: list[Unit] = []
    for stroke in source.labels.strokes:
        cover = source.frame.cover(stroke.box)
        if not stroke.class_id:
            continue
        if stroke.kind in ("brush", "polygon"):
            units.append(Unit(cover.grown(2), stroke, frozenset({stroke.class_id})))
        elif stroke.kind == "fill":
            cells = [c for c in occupied_cells(source, block) if c.intersection(cover).area]
            units += [Unit(cell, stroke, frozenset({stroke.class_id})) for cell in cells]
    for region in source.labels.dense_regions:
        units.append(Unit(source.frame.cover(region.box).grown(2), region, _classes_inside(source, region)))
    return units


def occupied_cells(source: Source, size: int) -> list[Box]:
    """Cells of the absolute grid of `size` frame pixels that hold any label; cached while the snapshot lives."""
    known = _cells.setdefault(source.labels, {})
    key = (source.frame, size)
    if key not in known:
        known[key] = source.labels.occupied(source.frame, size)
    return known[key]


def whole_slide(source: Source) -> Unit:
    """All labels of a source as one unit."""
    h, w = source.shape
    return Unit(Box(0, 0, h, w), None, frozenset(c for c, n in source.labels.counts().items() if n))


def training_labels(source: Source, region: Box, held: Sequence[Unit] = ()) -> Labels:
    """Labels of a region without held-out ones: uint8 (h, w), 0 = unlabelled."""
    labels = source.read_labels(region)
    near = [unit for unit in held if unit.region.intersection(region).area]
    if near and labels.any():
        labels = labels.copy()
        for unit in near:
            labels[unit.covers(region, source.frame)] = 0
    return labels


def held_labels(source: Source, region: Box, held: Sequence[Unit]) -> Labels:
    """The held-out labels of a region only: uint8 (h, w)."""
    labels = source.read_labels(region)
    keep = np.zeros(labels.shape, bool)
    if labels.any():
        for unit in held:
            if unit.region.intersection(region).area:
                keep |= unit.labelled(labels, region, source.frame)
    return np.where(keep, labels, np.uint8(0))


def stroke_area(stroke: Stroke) -> float:
    """About how many level-0 pixels a stroke covers: brush length times width, or area within the outline."""
    parts = stroke.parts()
    if stroke.kind in ("brush", "erase"):
        length = sum(float(np.hypot(*np.diff(p, axis=0).T).sum()) for p in parts)
        return 2 * stroke.radius * length + np.pi * stroke.radius**2
    if stroke.kind == "fill":
        return float(stroke.box.area)
    # Even-odd rule: a hole is a ring of its own and takes its area away.
    areas = [abs(float(np.dot(p[:, 0], np.roll(p[:, 1], 1)) - np.dot(p[:, 1], np.roll(p[:, 0], 1)))) / 2 for p in parts]
    return max(2 * max(areas) - sum(areas), 1.0)


def find_pixel(
    source: Source, stroke: Stroke, rng: np.random.Generator, held: Sequence[Unit] = ()
) -> tuple[int, int] | None:
    """A random frame pixel (row, column) of a stroke that still has its label and is not held out.

    None where several tries found none: the stroke was erased, drawn over, or is held out.
    """
    class_id = None if stroke.kind == "dense" else stroke.class_id
    if stroke.kind == "fill":
        return find_in_cells(source, stroke.class_id, rng, held, within=source.frame.cover(stroke.box))
    h, w = source.shape
    for _ in range(_TRIES):
        point = _point_on(stroke, source.frame, rng)
        if point is None:
            continue
        row, column = min(max(point[0], 0), h - 1), min(max(point[1], 0), w - 1)
        window = Box(row, column, 1, 1).grown(0 if class_id is None else _NEARBY)
        labels = training_labels(source, window, held)
        found = np.argwhere(labels > 0 if class_id is None else labels == class_id)
        if len(found):
            i, j = found[rng.integers(len(found))]
            return window.y + int(i), window.x + int(j)
    return None


def find_in_cells(
    source: Source,
    class_id: int,
    rng: np.random.Generator,
    held: Sequence[Unit] = (),
    *,
    within: Box | None = None,
    size: int = 256,
) -> tuple[int, int] | None:
    """A random labelled frame pixel of a class among the occupied cells of the frame; for labels without outlines."""
    cells = occupied_cells(source, size)
    if within is not None:
        cells = [c for c in cells if c.intersection(within).area]
    for k in rng.permutation(len(cells))[: 4 * _TRIES]:
        cell = cells[k] if within is None else cells[k].intersection(within)
        found = np.argwhere(training_labels(source, cell, held) == class_id)
        if len(found):
            i, j = found[rng.integers(len(found))]
            return cell.y + int(i), cell.x + int(j)
    return None


def is_alive(source: Source, unit: Unit, rng: np.random.Generator, held: Sequence[Unit] = ()) -> bool:
    """Whether any label of a unit seems to be left outside `held`; a few random looks, so remains may be missed."""
    if unit.stroke is None:
        return bool(unit.classes)
    if unit.stroke.kind == "fill":
        return bool((training_labels(source, unit.region, held) == unit.stroke.class_id).any())
    return find_pixel(source, unit.stroke, rng, held) is not None


def _moves_near(stroke: Stroke, box: Box) -> Stroke:
    """A brush stroke without the moves that cannot touch a level-0 box: a long one is mostly elsewhere."""
    starts, ends = _moves(stroke.parts())
    low, high = np.minimum(starts, ends) - stroke.radius, np.maximum(starts, ends) + stroke.radius
    near = ((low <= (box.y1, box.x1)) & (high >= (box.y, box.x))).all(1)
    points = np.stack([starts[near], ends[near]], axis=1).reshape(-1, 2).astype(np.float32)
    return replace(stroke, points=points, rings=(2,) * int(near.sum()))


def _point_on(stroke: Stroke, frame: Frame, rng: np.random.Generator) -> tuple[int, int] | None:
    """A random frame pixel of the shape that was drawn; None where rows drawn at random miss it."""
    if stroke.kind == "brush":
        y, x = _point_along(stroke.parts(), rng)
        angle, distance = rng.uniform(0, 2 * np.pi), stroke.radius * np.sqrt(rng.random())
        y, x = y + distance * np.sin(angle), x + distance * np.cos(angle)
        return int(np.floor(y / frame.downsample[0])), int(np.floor(x / frame.downsample[1]))
    # Whole rows of the outline: however thin it is, no try is wasted, and each pixel of these rows is as likely.
    cover = frame.cover(stroke.box)
    rows = np.unique(rng.integers(cover.y, cover.y1, _ROWS))
    found = [(int(r), stroke_mask(stroke, Box(int(r), cover.x, 1, cover.width), frame)[0]) for r in rows]
    at = np.cumsum([int(mask.sum()) for _, mask in found])
    if not at[-1]:
        return None
    pick = int(rng.integers(at[-1]))
    k = int(np.searchsorted(at, pick, side="right"))
    row, mask = found[k]
    return row, cover.x + int(np.flatnonzero(mask)[pick - (int(at[k - 1]) if k else 0)])


def _point_along(parts: Iterable[NDArray[np.float64]], rng: np.random.Generator) -> tuple[float, float]:
    """A point of the line that a brush followed, uniform by length; a dab has only its middle."""
    starts, ends = _moves(parts)
    travelled = np.cumsum(np.hypot(*(ends - starts).T) + 1e-6)
    k = int(np.searchsorted(travelled, rng.random() * travelled[-1], side="right").clip(0, len(travelled) - 1))
    y, x = starts[k] + rng.random() * (ends[k] - starts[k])
    return float(y), float(x)


def _moves(parts: Iterable[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Starts and ends (n, 2) of the straight moves of a brush; a dab is a move to where it is."""
    runs = [p if len(p) > 1 else np.repeat(p, 2, axis=0) for p in parts]
    return np.concatenate([r[:-1] for r in runs]), np.concatenate([r[1:] for r in runs])


def _classes_inside(source: Source, stroke: Stroke, side: int = 64) -> frozenset[int]:
    """Classes within a dense region, seen on a coarse grid: its rest class, and what is common enough to matter."""
    step = max(1.0, max(stroke.box.height, stroke.box.width) / side)
    coarse = Frame((step, step))
    cover = coarse.cover(stroke.box)
    seen = source.labels.read_region(cover, coarse)[stroke_mask(stroke, cover, coarse)]
    return frozenset(np.unique(seen).tolist()) - {0} | {stroke.class_id}


def changed_cells(before: Snapshot, after: Snapshot, frame: Frame, size: int) -> set[Box] | None:
    """Cells of the frame's absolute grid of `size` pixels in which labels may differ; None where all may.

    The time depends on what was drawn in between; only a pass over the keys of the stored chunks grows with all labels.
    """
    if before.shape != after.shape or bool(before.dense_regions) != bool(after.dense_regions):
        return None
    height, width = frame.shape(after.shape)
    cells: set[Box] = set()
    for old, new in ((before.scribbles, after.scribbles), (before.dense, after.dense)):
        for box in _changed_boxes(old, new):
            (i0, i1), (j0, j1) = (
                (math.floor(start / step - 1e-6), math.ceil(stop / step + 1e-6))
                for start, stop, step in (
                    (box.y, box.y1, size * frame.downsample[0]),
                    (box.x, box.x1, size * frame.downsample[1]),
                )
            )
            if (i1 - i0) * (j1 - j0) > MOST_CHANGED_CELLS:
                return None
            cells |= {Box(i * size, j * size, size, size) for i in range(max(i0, 0), i1) for j in range(max(j0, 0), j1)}
            if len(cells) > MOST_CHANGED_CELLS:
                return None
    return {cell for cell in cells if cell.y < height and cell.x < width}


def _changed_boxes(before: PackedPyramid, after: PackedPyramid) -> Iterator[Box]:
    """Level-0 boxes outside of which both read the same.

    A pixel has the label of the finest chunk over it. Where that is another one, or another label, one of the two
    chunks is not in both pyramids as it is; and read at its level, both pyramids give the labels that level 0 shows.
    """
    for level, (old, new) in enumerate(zip(before.levels, after.levels, strict=True)):
        changed = [key for key, packed in new.items() if old.get(key) is not packed and old.get(key) != packed]
        for i, j in (*changed, *(key for key in old if key not in new)):
            y, x = i * CHUNK, j * CHUNK
            area = (level, y, y + CHUNK, x, x + CHUNK)
            differs = before.read(*area) != after.read(*area)
            rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
            if len(rows):
                top, left = y + int(rows[0]), x + int(columns[0])
                size = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
                yield Box(top << level, left << level, size[0] << level, size[1] << level)
