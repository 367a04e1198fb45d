"""Outlines of annotations on the pixel grid, exact to the level-0 pixel, in memory that grows with the outlines.

A pixel has a side on the outline where its neighbour has another class. Sides are found chunk by chunk, at the level of
the chunk and at level 0 along its rim, and merged to long ones; those are joined to rings, and rings to polygons with
holes. Pixels that touch only at a corner belong to different polygons.
"""

# `contours` traces dense label images that stream by in rows. It cannot do this job: a sparse quadtree of a 100,000-px
# slide would be a stream of 10 gigapixels, however little is labelled. Nor can this module do the other: it joins the
# sides of a class at the end, in memory that grows with the slide. See D35.

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import shapely

from napari_sparseseg.annotations.editing import Shape
from napari_sparseseg.annotations.packing import CHUNK, EMPTY, unpack
from napari_sparseseg.annotations.pyramid import children, quadrant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from napari_sparseseg.annotations.packing import Labels
    from napari_sparseseg.annotations.pyramid import PackedPyramid
    from napari_sparseseg.annotations.snapshot import Snapshot

    Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Outline:
    """A connected region of one class: outer ring and holes, (n, 2) int64 (y, x), the start not repeated at the end."""

    class_id: int
    shell: Ints
    holes: tuple[Ints, ...]


def trace(pyramid: PackedPyramid) -> Iterator[Outline]:
    """The outlines of all 4-connected regions, class by class."""
    found: dict[int, list[Ints]] = {}
    for y, x, level, block in _squares(pyramid):
        for class_id, sides in _sides(pyramid, y, x, level, block):
            found.setdefault(class_id, []).append(sides)
    for class_id in sorted(found):
        yield from _regions(class_id, np.concatenate(found.pop(class_id)))


def _squares(pyramid: PackedPyramid) -> Iterator[tuple[int, int, int, Labels]]:
    """(y, x, level, labels) of the squares that together hold all labels, each without finer chunks below it."""
    for level, chunks in enumerate(pyramid.levels):
        for key, packed in chunks.items():
            if packed == EMPTY:
                continue
            chunk = unpack(packed)
            finer = [child in pyramid.levels[level - 1] for child in children(key)] if level else []
            if not any(finer):
                yield key[0] * CHUNK << level, key[1] * CHUNK << level, level, chunk
                continue
            for child, exists in zip(children(key), finer, strict=True):
                block = chunk[quadrant(child)]
                if not exists and block.any():
                    yield child[0] * CHUNK << level - 1, child[1] * CHUNK << level - 1, level, block


def _sides(pyramid: PackedPyramid, y: int, x: int, level: int, block: Labels) -> Iterator[tuple[int, Ints]]:
    """(class, sides) of a square; a side (n, 4) is (y0, x0, y1, x1), directed so that the class is on its right."""
    size = len(block) << level
    bottom, right = pyramid.shape
    for turn in range(4):
        # Turned so that the neighbours in question are above.
        turned = np.rot90(block, turn)
        beyond = _line_beyond(pyramid, y, x, size, turn)
        for class_id in np.unique(turned[turned > 0]).tolist():
            mine = turned == class_id
            inner = _tops(mine[1:] & ~mine[:-1]) << level
            inner[:, [0, 2]] += 1 << level
            rim = _tops((mine[0].repeat(1 << level) & (beyond != class_id))[None])
            sides = _turn_back(np.concatenate([inner, rim]), turn, size) + np.array([y, x, y, x])
            # Pixels of coarse levels stick out over the rim of the slide.
            sides = np.minimum(sides, (bottom, right, bottom, right))
            sides = sides[(sides[:, 0] != sides[:, 2]) | (sides[:, 1] != sides[:, 3])]
            if len(sides):
                yield class_id, sides


def _line_beyond(pyramid: PackedPyramid, y: int, x: int, size: int, turn: int) -> Labels:
    """The level-0 pixels beyond a side of a square, in the order in which the turned square has them."""
    boxes = (
        (y - 1, y, x, x + size),
        (y, y + size, x + size, x + size + 1),
        (y + size, y + size + 1, x, x + size),
        (y, y + size, x - 1, x),
    )
    line = pyramid.read(0, *boxes[turn]).reshape(-1)
    return line if turn < 2 else line[::-1]


def _tops(open_above: NDArray[np.bool_]) -> Ints:
    """Runs of pixels along rows, each as the side (row, start, row, stop) above it."""
    padded = np.pad(open_above, ((0, 0), (1, 1)))
    rows, starts = np.nonzero(padded[:, 1:] & ~padded[:, :-1])
    stops = np.nonzero(padded[:, :-1] & ~padded[:, 1:])[1]
    return np.stack([rows, starts, rows, stops], axis=1).astype(np.int64)


def _turn_back(sides: Ints, turn: int, size: int) -> Ints:
    for _ in range(turn):
        y, x = sides[:, [0, 2]], sides[:, [1, 3]]
        sides = np.stack([x[:, 0], size - y[:, 0], x[:, 1], size - y[:, 1]], axis=1)
    return sides


def _regions(class_id: int, sides: Ints) -> Iterator[Outline]:
    rings = _rings(sides)
    areas = [_twice_area(ring) for ring in rings]
    shells = [ring for ring, area in zip(rings, areas, strict=True) if area > 0]
    holes = [ring for ring, area in zip(rings, areas, strict=True) if area < 0]
    held: list[list[Ints]] = [[] for _ in shells]
    if holes:
        for hole, shell in zip(holes, _owners(shells, holes), strict=True):
            held[shell].append(hole)
    for ring, inner in zip(shells, held, strict=True):
        yield Outline(class_id, ring, tuple(inner))


def _rings(sides: Ints) -> list[Ints]:
    """Sides joined end to start; where two regions touch at a corner, each stays with itself."""
    width = int(sides.max()) + 1
    starts, ends = sides[:, 0] * width + sides[:, 1], sides[:, 2] * width + sides[:, 3]
    order = np.argsort(starts, kind="stable")
    ordered = starts[order]
    first = np.searchsorted(ordered, ends)
    after = order[first]
    two = np.flatnonzero(first + 1 < len(order))
    two = two[ordered[first[two] + 1] == ends[two]]
    # A right turn goes on around the same pixel.
    step = np.sign(sides[:, 2:] - sides[:, :2])
    right = np.stack([step[two, 1], -step[two, 0]], axis=1)
    wrong = (step[after[two]] != right).any(axis=1)
    after[two[wrong]] = order[first[two[wrong]] + 1]
    following = after.tolist()
    corners = starts.tolist()
    seen = bytearray(len(sides))
    rings = []
    for start in range(len(sides)):
        ring = []
        at = start
        while not seen[at]:
            seen[at] = 1
            ring.append(at)
            at = following[at]
        for loop in _simple_loops(ring, corners) if ring else ():
            index = np.array(loop)
            turns = (step[index] != step[np.roll(index, 1)]).any(axis=1)
            rings.append(sides[index[turns], :2])
    return rings


def _simple_loops(ring: list[int], corners: list[int]) -> Iterator[list[int]]:
    """A ring that comes back to a corner, cut there: an outline that touches itself is an outline and a hole."""
    path: list[int] = []
    seen: dict[int, int] = {}
    for side in ring:
        corner = corners[side]
        if corner in seen:
            loop = path[seen[corner] :]
            del path[seen[corner] :]
            for gone in loop:
                del seen[corners[gone]]
            yield loop
        seen[corner] = len(path)
        path.append(side)
    yield path


def _twice_area(ring: Ints) -> int:
    """Positive where the ring runs clockwise on the screen."""
    following = np.roll(ring, -1, axis=0)
    return int((ring[:, 1] * following[:, 0] - following[:, 1] * ring[:, 0]).sum())


def _owners(shells: list[Ints], holes: list[Ints]) -> list[int]:
    """For every hole the index of the smallest shell around the pixel that lies beside its first side."""
    polygons = np.array([shapely.Polygon(shell) for shell in shells])
    first = np.array([hole[:2] for hole in holes])
    step = np.sign(first[:, 1] - first[:, 0])
    inside = first[:, 0] + 0.5 * step + 0.5 * np.stack([step[:, 1], -step[:, 0]], axis=1)
    point, shell = shapely.STRtree(polygons).query(shapely.points(inside), predicate="within")
    order = np.lexsort((shapely.area(polygons)[shell], point))
    chosen = np.unique(point[order], return_index=True)[1]
    return [int(k) for k in shell[order][chosen]]


def shapes_of(snapshot: Snapshot) -> list[Shape]:
    """Annotations as shapes for `Annotations.draw`, which gives the same labels on an empty slide.

    Strokes stay as they were drawn; where some were erased or filled, the outlines of what is left are drawn instead.
    """
    shapes = [Shape("dense", region.class_id, region.parts()) for region in snapshot.dense_regions]
    if all(stroke.kind in ("brush", "polygon") for stroke in snapshot.strokes):
        return shapes + [Shape(s.kind, s.class_id, s.parts(), s.radius) for s in snapshot.strokes]
    outlines = trace(snapshot.scribbles)
    return shapes + [Shape("polygon", o.class_id, [r.astype(float) for r in (o.shell, *o.holes)]) for o in outlines]
