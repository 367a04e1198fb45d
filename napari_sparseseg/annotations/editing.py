"""Drawing into annotations: the open stroke, polygons, dense regions, and many shapes at once."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from napari_sparseseg.annotations.document import Edit
from napari_sparseseg.annotations.packing import CHUNK
from napari_sparseseg.annotations.raster import (
    MIN_RADIUS,
    Polygon,
    capsule_mask,
    runs_by_chunk,
    write_level,
)
from napari_sparseseg.annotations.strokes import Stroke
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.annotations.document import AnnotationDocument
    from napari_sparseseg.annotations.packing import Keep
    from napari_sparseseg.annotations.quadtree import Change, LabelQuadtree
    from napari_sparseseg.config import ClassDef

    Mask = NDArray[np.bool_]
    Rings = Sequence[NDArray[np.float64]]  # (N, 2) each
    Progress = Callable[[int, int], None]

PEN_KINDS = ("brush", "erase", "polygon", "fill")
NOWHERE = Box(0, 0, 0, 0)
LONGEST_PX = 256  # pixels of its level that a brush moves at once
BLOCK = 4096  # shapes that are measured at once
SMALL_CORNERS = 4000  # of a polygon that is drawn together with others


class Shape(NamedTuple):
    """Something to draw: a ``polygon``, a ``dense`` region or a ``brush`` stroke; see `Stroke` for the fields."""

    kind: str
    class_id: int
    rings: Rings
    radius: float = 0.0


class MaskPiece(NamedTuple):
    """A mask to draw: bool (h, w) whose corner is (y, x); corner and mask in pixels of `level`."""

    level: int
    y: int
    x: int
    mask: Mask
    class_id: int


@dataclass(slots=True)
class _OpenStroke:
    kind: str
    class_id: int
    keep: Keep = None
    radius: float = 0.0
    points: list[tuple[float, float]] = field(default_factory=list)
    rings: list[int] = field(default_factory=list)
    box: Box | None = None

    def touch(self, box: Box | None) -> Box | None:
        if box is not None:
            self.box = box if self.box is None else self.box.union(box)
        return box

    def close(self, number: int) -> Stroke:
        box = self.box or NOWHERE
        kind, points, rings = self.kind, self.points, self.rings
        if not points or kind == "fill":
            kind, rings, self.radius = "fill", [], 0.0
            points = [(box.y, box.x), (box.y, box.x1), (box.y1, box.x1), (box.y1, box.x)]
        runs = tuple(rings) if len(rings) > 1 else ()
        return Stroke(number, kind, self.class_id, self.radius, np.array(points, np.float32), box, runs)


class Editor:
    """Draws into a document; every finished edit is one step of its history.

    Parameters
    ----------
    document
        What is edited. Methods that finish an edit return it, or None where nothing changed.
    """

    def __init__(self, document: AnnotationDocument) -> None:
        self._document = document
        self._stroke: _OpenStroke | None = None

    # ------------------------------------------------------------------ the open stroke
    def begin(self, class_id: int, kind: str, keep: Keep) -> None:
        """Begin a stroke; see `Annotations.begin_stroke`."""
        with self._document.lock:
            self._document.require_class(class_id, erase=True)
            if kind not in PEN_KINDS:
                raise AnnotationError(f"a stroke cannot be of kind {kind!r}; use one of {', '.join(PEN_KINDS)}.")
            self._document.scribbles.begin()
            self._stroke = _OpenStroke("erase" if class_id == 0 and kind == "brush" else kind, class_id, keep)

    def move(self, p: Sequence[float], q: Sequence[float], radius: float, *, live: bool) -> Box | None:
        """Move a round brush from `p` to `q`, (y, x); `live`: coarser levels show it at once."""
        tree, p, q = self._document.scribbles, tuple(p), tuple(q)
        if not 0 < radius <= 2 * max(tree.shape):
            raise AnnotationError(f"a brush radius must be between 0 and twice the slide's size, not {radius}.")
        with self._document.lock:
            stroke = self._open_stroke()
            if not stroke.rings or stroke.points[-1] != p:
                stroke.points.append((p[0], p[1]))
                stroke.rings.append(1)
            if q != p:
                stroke.points.append((q[0], q[1]))
                stroke.rings[-1] += 1
            stroke.radius = max(stroke.radius, radius)
            return stroke.touch(stamp(tree, (p, q), radius, stroke.class_id, stroke.keep, live=live))

    def add_polygon(self, rings: Rings) -> Box | None:
        """Fill a polygon, even-odd over its rings."""
        with self._document.lock:
            stroke = self._open_stroke()
            for ring in rings:
                stroke.points.extend((y, x) for y, x in ring.tolist())
                stroke.rings.append(len(ring))
            polygon = Polygon(rings)
            return stroke.touch(
                fill_polygon(self._document.scribbles, polygon, stroke.class_id, stroke.keep, live=True)
            )

    def add_mask(self, level: int, y0: int, x0: int, mask: Mask) -> Box | None:
        """Draw where `mask` is true; corner and mask in pixels of `level`."""
        with self._document.lock:
            stroke = self._open_stroke()
            tree = self._document.scribbles
            return stroke.touch(tree.paint_mask(level, y0, x0, mask, stroke.class_id, stroke.keep))

    def commit(self) -> Edit | None:
        """Finish the stroke."""
        with self._document.lock:
            open_stroke, self._stroke = self._open_stroke(), None
            change = self._document.scribbles.commit()
            if change is None or open_stroke.box is None:
                return None
            stroke = open_stroke.close(self._document.take_id())
            return self._document.record(Edit(stroke.box, change, added=(stroke,)))

    def abort(self) -> None:
        """Discard the stroke."""
        with self._document.lock:
            self._open_stroke()
            self._stroke = None
            self._document.scribbles.abort()

    def _open_stroke(self) -> _OpenStroke:
        if self._stroke is None:
            raise AnnotationError("no stroke is open; begin one first.")
        return self._stroke

    # ------------------------------------------------------------------ much in one step
    def draw_masks(self, pieces: Iterable[MaskPiece]) -> Edit | None:
        """Draw masks, one stroke of kind ``fill`` each."""
        document = self._document

        def draw() -> Iterable[Stroke]:
            for level, y, x, mask, class_id in pieces:
                document.require_class(class_id)
                box = document.scribbles.paint_mask(level, y, x, mask, class_id, live=False)
                if box is not None:
                    yield _OpenStroke("fill", class_id, box=box).close(document.take_id())

        return self._draw(draw)

    def draw_shapes(self, shapes: Iterable[Shape], progress: Progress | None, of: int) -> Edit | None:
        """Draw shapes in order; see `Annotations.draw`."""
        return self._draw(lambda: self._shapes(shapes, progress or (lambda done, of: None), of))

    def _draw(self, draw: Callable[[], Iterable[Stroke]]) -> Edit | None:
        """One edit of all strokes that `draw` makes in the open trees."""
        document = self._document
        with document.lock:
            document.scribbles.begin()
            document.dense.begin()
            try:
                strokes = tuple(draw())
            except BaseException:
                document.scribbles.abort()
                document.dense.abort()
                raise
            changes = document.scribbles.commit(), document.dense.commit()
            if not strokes:
                return None
            box = _around(stroke.box for stroke in strokes) or NOWHERE
            return document.record(Edit(box, *changes, added=strokes))

    def _shapes(self, shapes: Iterable[Shape], progress: Progress, of: int) -> Iterable[Stroke]:
        small: list[Measured] = []  # cells come by the thousand: drawn together, chunk by chunk
        whole, n = Box(0, 0, *self._document.shape), 0
        for block in measured(shapes):
            for class_id in set(block.labels):
                self._document.require_class(class_id, erase=True)
            start = 0
            for stop in (*np.flatnonzero(~block.small).tolist(), len(block.shapes)):
                if start < stop:
                    small.append(block.part(start, stop))
                    yield from small[-1].strokes(self._document.take_id, whole)
                if stop < len(block.shapes):
                    self._draw_small(small, n + stop, of, progress)
                    small.clear()
                    shape = block.shapes[stop]
                    box = self._draw_shape(shape) or NOWHERE
                    if box.area:
                        stroke = Stroke.of_rings(self._document.take_id(), shape.kind, shape.class_id, shape.rings, box)
                        yield replace(stroke, radius=shape.radius)
                start = stop + 1
            n += len(block.shapes)
            for part in small:
                part.shapes.clear()  # of hundreds of thousands, one copy of the outlines is enough
        self._draw_small(small, n, of, progress)

    def _draw_small(self, small: list[Measured], n: int, of: int, progress: Progress) -> None:
        """Draw small polygons, which end before the `n`-th of all shapes."""
        number = sum(len(part.labels) for part in small)
        drawn = n - number
        progress(drawn, of)
        if small:
            tree = self._document.scribbles
            labels = np.array([label for part in small for label in part.labels], np.uint8)
            points, lengths, rings, bounds = (
                np.concatenate(found) for found in zip(*(p.arrays for p in small), strict=True)
            )
            for runs in runs_by_chunk(points, lengths, rings, bounds, Box(0, 0, *tree.shape)):
                tree.paint_runs(runs, labels[runs.polygon])
                if n - number + int(runs.done * number) > drawn:
                    drawn = n - number + int(runs.done * number)
                    progress(drawn, of)
            progress(n, of)

    def _draw_shape(self, shape: Shape) -> Box | None:
        if shape.kind == "brush":
            return draw_brush(self._document.scribbles, shape.rings, shape.radius, shape.class_id)
        tree = self._document.dense if shape.kind == "dense" else self._document.scribbles
        return fill_polygon(tree, Polygon(shape.rings), shape.class_id)

    # ------------------------------------------------------------------ dense regions and classes
    def region(self, region_id: int) -> Stroke:
        """A dense region by its id; AnnotationError where there is none."""
        region = self._document.regions.get(region_id)
        if region is None:
            raise AnnotationError(f"there is no dense region {region_id}.")
        return region

    def change_regions(self, new: Sequence[tuple[int, Rings]], removed: Sequence[Stroke] = ()) -> Edit | None:
        """Add dense regions, (class id, rings) each, and remove others, as one edit."""
        with self._document.lock:
            added, change = self._draw_regions(new, removed)
            if not added and not removed:
                return None
            box = _around(region.box for region in (*added, *removed)) or NOWHERE
            return self._document.record(Edit(box, dense=change, added=added, removed=tuple(removed)))

    def change_classes(self, table: tuple[ClassDef, ...], act: str = "", *, undoable: bool = True) -> Edit:
        """Replace the class table; classes that are not in it go with their labels, strokes and dense regions.

        One edit, so that no file ever has the old table without the classes that are gone. One that removes nothing is
        left out of the history unless it is `undoable`.
        """
        document = self._document
        with document.lock:
            before, gone = document.classes, {c.id for c in document.classes} - {c.id for c in table}
            if not gone:
                return document.record(Edit(NOWHERE, table=(before, table), act=act), undoable=undoable)
            document.scribbles.begin()
            for class_id in sorted(gone):
                document.scribbles.replace_label(class_id, 0)
            scribbles = document.scribbles.commit()
            strokes = tuple(s for s in document.strokes.values() if s.class_id in gone)
            regions = tuple(r for r in document.regions.values() if r.class_id in gone)
            dense = self._draw_regions((), regions)[1] if regions else None
            whole = Box(0, 0, *document.shape)
            return document.record(Edit(whole, scribbles, dense, (), (*strokes, *regions), (before, table), act=act))

    def change_others(self, features: Iterable[dict[str, Any]]) -> Edit | None:
        """Replace the objects that label nothing."""
        with self._document.lock:
            before, after = self._document.others, tuple(features)
            whole = Box(0, 0, *self._document.shape)
            return None if before == after else self._document.record(Edit(whole, others=(before, after)))

    def _draw_regions(
        self, new: Sequence[tuple[int, Rings]], removed: Sequence[Stroke]
    ) -> tuple[tuple[Stroke, ...], Change | None]:
        """Draw regions into the dense tree and commit it; those that overlap the slide, and the change."""
        tree = self._document.dense
        tree.begin()
        try:
            ids = {gone.id for gone in removed}
            clear_regions(tree, removed, [r for r in self._document.regions.values() if r.id not in ids])
            added = []
            for class_id, exact in new:
                # Drawn in the single precision in which it is stored: otherwise pixels along its sides would remain
                # when the region is removed, and change when it is written and read back.
                rings = [ring.astype(np.float32).astype(np.float64) for ring in exact]
                box = fill_polygon(tree, Polygon(rings), class_id)
                if box is not None:
                    added.append(Stroke.of_rings(self._document.take_id(), "dense", class_id, rings, box))
        except AnnotationError:
            tree.abort()
            raise
        return tuple(added), tree.commit()


def stamp(
    tree: LabelQuadtree,
    ends: tuple[Sequence[float], Sequence[float]],
    radius: float,
    label: int,
    keep: Keep = None,
    *,
    live: bool = False,
    slack: float = 0.0,
) -> Box | None:
    """Move a round brush between two points (y, x) in the open transaction of `tree`; the box that may have changed.

    `slack` widens it without moving it to another level.
    """
    level = write_level(radius, tree.top_level)
    scale = 1 << level
    wide = max(radius / scale, MIN_RADIUS) + slack / scale
    p, q = (np.asarray(end, np.float64) / scale for end in ends)
    # A long thin move is drawn in pieces, because the box around a slanting one is nearly empty.
    pieces = max(1, math.ceil(float(np.abs(q - p).max()) / LONGEST_PX))
    steps = [p + (q - p) * (n / pieces) for n in range(pieces + 1)]
    clip = Box(0, 0, *tree.valid(level))
    boxes = []
    for start, stop in itertools.pairwise(steps):
        area, mask = capsule_mask(start.tolist(), stop.tolist(), wide, clip)
        boxes.append(tree.paint_mask(level, area.y, area.x, mask, label, keep, live=live))
    return _around(boxes)


def draw_brush(tree: LabelQuadtree, runs: Rings, radius: float, label: int) -> Box | None:
    """Draw runs of a round brush in the open transaction of `tree`; the box that may have changed."""
    return _around(
        stamp(tree, ends, radius, label)
        for points in (run.tolist() for run in runs)
        for ends in zip(points, points[1:] or points, strict=False)
    )


def fill_polygon(
    tree: LabelQuadtree, polygon: Polygon, label: int, keep: Keep = None, *, live: bool = False
) -> Box | None:
    """Fill a polygon in the open transaction of `tree`; the box that may have changed."""
    return _around(
        tree.paint_mask(level, y0, x0, mask, label, keep, live=live)
        for level, y0, x0, mask in polygon.pieces(Box(0, 0, *tree.shape), tree.top_level)
    )


def clear_regions(tree: LabelQuadtree, gone: Sequence[Stroke], left: Sequence[Stroke]) -> None:
    """Clear dense regions in the open transaction of `tree`; those of `left`, in order, that lie below appear again."""
    for region in gone:
        fill_polygon(tree, Polygon(region.parts()), 0)
    # The newest first and only where nothing is, so that what lies beside the cleared ones stays as it is.
    for region in reversed(left):
        if any(region.box.intersection(cleared.box).area for cleared in gone):
            fill_polygon(tree, Polygon(region.parts()), region.class_id, keep=0)


@dataclass(frozen=True, slots=True)
class Measured:
    """Some shapes in order, with their points in one array.

    Attributes
    ----------
    shapes
        The shapes.
    labels
        Class of each.
    points
        Of all their rings, (n, 2).
    lengths
        Points of each ring.
    rings
        Rings of each shape.
    bounds
        Level-0 pixels (y, x, y1, x1) around each.
    """

    shapes: list[Shape]
    labels: list[int]
    points: NDArray[np.float64]
    lengths: NDArray[np.int64]
    rings: NDArray[np.int64]
    bounds: NDArray[np.int64]

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """All but the shapes and their classes, as `runs_by_chunk` takes them."""
        return self.points, self.lengths, self.rings, self.bounds

    @property
    def small(self) -> Mask:
        """Which of them are small polygons."""
        corners = np.add.reduceat(self.lengths, np.cumsum(self.rings) - self.rings)
        size = (self.bounds[:, 2:] - self.bounds[:, :2]).max(axis=1)
        polygon = np.array([shape.kind == "polygon" for shape in self.shapes])
        small: Mask = polygon & (size <= CHUNK) & (corners <= SMALL_CORNERS)
        return small

    def part(self, start: int, stop: int) -> Measured:
        """Those from `start` up to `stop`."""
        ring = np.concatenate([[0], np.cumsum(self.rings)])
        point = np.concatenate([[0], np.cumsum(self.lengths)])
        a, b = ring[[start, stop]]
        points, lengths = self.points[point[a] : point[b]], self.lengths[a:b]
        part = slice(start, stop)
        return Measured(self.shapes[part], self.labels[part], points, lengths, self.rings[part], self.bounds[part])

    def strokes(self, take_id: Callable[[], int], whole: Box) -> Iterator[Stroke]:
        """Polygons as strokes, those that lie outside the slide left out."""
        points, lengths, rings = self.points.astype(np.float32), self.lengths.tolist(), self.rings.tolist()
        low, high = np.maximum(self.bounds[:, :2], 0), np.minimum(self.bounds[:, 2:], (whole.height, whole.width))
        boxes = np.concatenate([low, np.maximum(high - low, 0)], axis=1).tolist()
        at, ring = 0, 0
        for shape, n, (y, x, height, width) in zip(self.shapes, rings, boxes, strict=True):
            runs = tuple(lengths[ring : ring + n])
            end = at + sum(runs)
            if height and width:
                box = Box(y, x, height, width)
                found = points[at:end]
                yield Stroke(take_id(), shape.kind, shape.class_id, shape.radius, found, box, runs if n > 1 else ())
            at, ring = end, ring + n


def measured(shapes: Iterable[Shape]) -> Iterator[Measured]:
    """Shapes, some thousand at a time."""
    left = iter(shapes)
    while block := list(itertools.islice(left, BLOCK)):
        rings = np.array([len(shape.rings) for shape in block])
        lengths = np.array([len(ring) for shape in block for ring in shape.rings])
        points = np.concatenate([ring for shape in block for ring in shape.rings])
        first = (np.cumsum(lengths) - lengths)[np.cumsum(rings) - rings]
        low, high = np.floor(np.minimum.reduceat(points, first)), np.ceil(np.maximum.reduceat(points, first))
        bounds = np.concatenate([low, high], axis=1).astype(np.int64)
        yield Measured(block, [shape.class_id for shape in block], points, lengths, rings, bounds)


def _around(boxes: Iterable[Box | None]) -> Box | None:
    """The smallest box around boxes; None where there are none."""
    found = [box for box in boxes if box is not None]
    return reduce(Box.union, found) if found else None
