"""Rasterise strokes and polygons. Coordinates are (y, x) with pixel (i, j) covering [i, i + 1) x [j, j + 1).

A pixel belongs to a shape if its centre (i + 0.5, j + 0.5) does. Polygons follow the even-odd rule over all their
rings, so holes are further rings. Polygons that share a side share no pixel and leave no gap.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from napari_sparseseg.annotations.packing import CHUNK, HALF
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    Mask = NDArray[np.bool_]
    Points = NDArray[np.float64]
    Ints = NDArray[np.int64]

BRUSH_PX = 48  # a stroke is written at the coarsest level at which its brush is at least this wide
MIN_RADIUS = 0.708  # half the diagonal of a pixel, so that a dab always covers the pixel it is in
MAX_COORDINATE = 1e8
MAX_CROSSINGS = 500_000_000  # rows that the sides of one polygon may cross in total; more would take minutes
BATCH_CROSSINGS = 250_000  # sides times rows of the small polygons that are rasterised at once
SMALL = 512  # a polygon of at most this many pixels per side is drawn as one mask


def write_level(radius: float, top_level: int) -> int:
    """The level at which a brush of `radius` level-0 pixels is 48 to 96 pixels wide, or the nearest there is."""
    return int(np.clip(np.floor(np.log2(max(1.0, 2 * radius / BRUSH_PX))), 0, top_level))


def as_points(points_yx: ArrayLike, least: int = 1) -> Points:
    """Check points: (N, 2) float64, finite, N >= `least`.

    Raises
    ------
    AnnotationError
        For anything else.
    """
    try:
        points = np.asarray(points_yx, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise AnnotationError(f"points must be numbers (y, x): {error}.") from error
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < least:
        raise AnnotationError(f"expected at least {least} points (y, x), found an array of shape {points.shape}.")
    if not (np.abs(points) <= MAX_COORDINATE).all():  # nor is NaN
        raise AnnotationError(f"points must be finite and within +-{MAX_COORDINATE:.0e} pixels; some are not.")
    return points


def capsule_mask(
    p: Sequence[float], q: Sequence[float], radius: float, clip: Box, *, aspect: float = 1.0
) -> tuple[Box, Mask]:
    """Pixels whose centre is within `radius` of the segment from `p` to `q`: what a brush covers in one move.

    Parameters
    ----------
    p, q
        Ends (y, x).
    radius
        In pixel heights.
    clip
        Pixels outside are left out.
    aspect
        Width of a pixel divided by its height.

    Returns
    -------
    box, mask
        The box that the bool mask (height, width) covers.
    """
    reach = radius, radius / aspect
    y0, x0 = (max(int(np.floor(min(a, b) - r)), n) for a, b, r, n in zip(p, q, reach, (clip.y, clip.x), strict=True))
    y1, x1 = (min(int(np.ceil(max(a, b) + r)), n) for a, b, r, n in zip(p, q, reach, (clip.y1, clip.x1), strict=True))
    box = Box(y0, x0, max(0, y1 - y0), max(0, x1 - x0))
    # Relative to p, in float32: exact enough at any distance from the origin, and half the memory traffic.
    py = (np.arange(y0, y0 + box.height) + (0.5 - p[0])).astype(np.float32)[:, None]
    px = ((np.arange(x0, x0 + box.width) + (0.5 - p[1])) * aspect).astype(np.float32)[None, :]
    dy, dx = np.float32(q[0] - p[0]), np.float32((q[1] - p[1]) * aspect)
    length2 = dy * dy + dx * dx
    if length2 > 0:
        along = np.clip((py * dy + px * dx) / length2, 0, 1)
        return box, (py - along * dy) ** 2 + (px - along * dx) ** 2 <= np.float32(radius) ** 2
    return box, py * py + px * px <= np.float32(radius) ** 2


class Polygon:
    """Rings to rasterise with the even-odd rule.

    Parameters
    ----------
    rings
        (N, 2) float64 (y, x) each, closed or not.

    Raises
    ------
    AnnotationError
        Where the sides cross so many rows that it would take minutes.
    """

    def __init__(self, rings: Sequence[Points]) -> None:
        self._sides = _sides(np.concatenate(rings), np.array([len(ring) for ring in rings]))
        ya, xa, yb, xb = self._sides
        if float((yb - ya).sum()) > MAX_CROSSINGS:
            raise AnnotationError(f"a polygon with {len(ya)} corners is too complex; simplify it.")
        y, x = math.floor(ya.min()), math.floor(min(xa.min(), xb.min()))
        self.box = Box(y, x, math.ceil(yb.max()) - y, math.ceil(max(xa.max(), xb.max())) - x)

    def _crossings(self, y0: int, y1: int) -> tuple[Ints, Ints]:
        return _crossings(self._sides, np.int64(y0), np.int64(y1))[:2]

    def mask(self, box: Box) -> Mask:
        """Bool (height, width): which pixels of `box` lie inside."""
        rows, columns = self._crossings(box.y, box.y1)
        return _parity(rows - box.y, np.clip(columns - box.x, 0, box.width), box.height, box.width)

    def contains(self, y: NDArray[np.float64], x: NDArray[np.float64]) -> Mask:
        """Whether points (n,) lie inside; fast where many share a y."""
        ya, xa, yb, xb = self._sides
        out = np.zeros(len(y), bool)
        for level in np.unique(y):
            at = (ya <= level) & (level < yb)
            crossed = np.sort(xa[at] + (level - ya[at]) * ((xb[at] - xa[at]) / (yb[at] - ya[at])))
            here = y == level
            out[here] = np.searchsorted(crossed, x[here], side="right") % 2 == 1
        return out

    def rim(self, clip: Box) -> NDArray[np.int64]:
        """Chunks (i, j) of level 0 that a side may pass through, unique and sorted, (n, 2)."""
        ya, xa, yb, xb = self._sides
        i0 = np.maximum(np.floor((ya - 1) / CHUNK), clip.y // CHUNK).astype(np.int64)
        i1 = np.minimum(np.floor((yb + 1) / CHUNK), (clip.y1 - 1) // CHUNK).astype(np.int64)
        n = np.maximum(0, i1 - i0 + 1)
        side = np.repeat(np.arange(len(n)), n)
        i = np.repeat(i0 - (np.cumsum(n) - n), n) + np.arange(n.sum())
        slope = np.divide(xb - xa, yb - ya, out=np.zeros_like(ya), where=yb > ya)[side]
        at = [np.clip(i * CHUNK + d, ya[side], yb[side]) for d in (-1.0, CHUNK + 1.0)]
        ends = [xa[side] + (y - ya[side]) * slope for y in at]
        # A horizontal side passes through everything between its ends.
        ends[1] = np.where((yb > ya)[side], ends[1], xb[side])
        j0 = np.maximum(np.floor((np.minimum(*ends) - 1) / CHUNK), clip.x // CHUNK).astype(np.int64)
        j1 = np.minimum(np.floor((np.maximum(*ends) + 1) / CHUNK), (clip.x1 - 1) // CHUNK).astype(np.int64)
        n = np.maximum(0, j1 - j0 + 1)
        j = np.repeat(j0 - (np.cumsum(n) - n), n) + np.arange(n.sum())
        return np.unique(np.stack([np.repeat(i, n), j], axis=1), axis=0)

    def pieces(self, clip: Box, top_level: int) -> Iterator[tuple[int, int, int, Mask]]:
        """(level, y0, x0, mask) that together are the polygon within `clip`: coarse inside, level 0 along the rim.

        Pieces do not overlap and come coarse to fine, so that painting them never has to descend.
        """
        box = self.box.intersection(clip)
        if box.area == 0:
            return
        if top_level == 0 or (box.height <= SMALL and box.width <= SMALL):
            yield 0, box.y, box.x, self.mask(box)
            return
        rim = self.rim(clip)
        yield from self._inside(rim, top_level)
        yield from self._along(rim, clip)

    def _inside(self, rim: NDArray[np.int64], top_level: int) -> Iterator[tuple[int, int, int, Mask]]:
        """Cells of 128 pixels of a level that no side passes, from the coarsest level on."""
        full = np.ones((HALF, HALF), bool)
        for level in range(top_level, 0, -1):
            passed = np.unique(rim >> level, axis=0)
            if level == top_level:
                # Cells of the whole coarsest level that touch the polygon.
                passed = _grid(passed)
            cells = (2 * passed[:, None, :] + np.array([(0, 0), (0, 1), (1, 0), (1, 1)])).reshape(-1, 2)
            finer = {tuple(c) for c in np.unique(rim >> (level - 1), axis=0).tolist()}
            cells = np.array([c for c in cells.tolist() if tuple(c) not in finer], np.int64).reshape(-1, 2)
            centres: Points = (cells.astype(np.float64) + 0.5) * (CHUNK << (level - 1))
            for i, j in cells[self.contains(centres[:, 0], centres[:, 1])].tolist():
                yield level, i * HALF, j * HALF, full

    def _along(self, rim: NDArray[np.int64], clip: Box) -> Iterator[tuple[int, int, int, Mask]]:
        for i in np.unique(rim[:, 0]).tolist():
            y0 = i * CHUNK
            rows, columns = self._crossings(y0, y0 + CHUNK)
            order = np.argsort(columns, kind="stable")
            rows, columns = rows[order] - y0, columns[order]
            for j in rim[rim[:, 0] == i, 1].tolist():
                x0 = j * CHUNK
                a, b = np.searchsorted(columns, (x0, x0 + CHUNK))
                inside = np.bincount(rows[:a], minlength=CHUNK) % 2 == 1
                mask = _parity(rows[a:b], columns[a:b] - x0, CHUNK, CHUNK) ^ inside[:, None]
                part = Box(y0, x0, CHUNK, CHUNK).intersection(clip)
                yield 0, part.y, part.x, mask[part.y - y0 : part.y1 - y0, part.x - x0 : part.x1 - x0]


class PixelRuns(NamedTuple):
    """Runs of pixels that polygons cover in some level-0 chunks.

    Attributes
    ----------
    done
        Share of all work that was done before.
    keys
        The chunks (n, 2), each once; those of one parent follow one another.
    chunk
        Index in `keys` of each run, ascending.
    polygon
        Index of the polygon of each run, ascending within a chunk.
    starts, lengths
        First pixel of each run in the chunk, flat, and number of pixels, at least 1; a run lies in one row.
    """

    done: float
    keys: Ints
    chunk: Ints
    polygon: Ints
    starts: Ints
    lengths: Ints


def runs_by_chunk(points: Points, lengths: Ints, rings: Ints, boxes: Ints, clip: Box) -> Iterator[PixelRuns]:
    """Rasterise many small polygons at level 0, some chunks after the others.

    Parameters
    ----------
    points
        Corners (n, 2) of all rings of all polygons, one after the other.
    lengths
        Corners of each ring.
    rings
        Rings of each polygon.
    boxes
        y, x, y1, x1 of each polygon.
    clip
        Pixels outside are left out.
    """
    inside = np.concatenate([np.maximum(boxes[:, :2], clip[:2]), np.minimum(boxes[:, 2:], (clip.y1, clip.x1))], axis=1)
    first, last = inside[:, :2] // CHUNK, (inside[:, 2:] - 1) // CHUNK
    counts = (last - first + 1) * np.all(inside[:, :2] < inside[:, 2:], axis=1, keepdims=True)
    # Every polygon once per chunk that it may touch, sorted by chunk.
    index = np.repeat(np.arange(len(boxes)), counts.prod(axis=1))
    nth = _within(counts.prod(axis=1))
    keys = first[index] + np.stack([nth // counts[index, 1], nth % counts[index, 1]], axis=1)
    order = np.lexsort((index, keys[:, 1], keys[:, 0], keys[:, 1] >> 1, keys[:, 0] >> 1))
    index, keys = index[order], keys[order]
    ring_ends, point_ends = np.cumsum(rings), np.cumsum(lengths)
    corners = np.diff(point_ends[ring_ends - 1], prepend=0)
    work = np.cumsum(corners[index] * (boxes[index, 2] - boxes[index, 0]))
    for part in np.split(np.arange(len(index)), np.flatnonzero(np.diff(work // BATCH_CROSSINGS)) + 1):
        if len(part):
            drawn = index[part]
            ring = np.repeat(ring_ends[drawn] - rings[drawn], rings[drawn]) + _within(rings[drawn])
            n = lengths[ring]
            corner = np.repeat(point_ends[ring] - n, n) + _within(n)
            sides = _sides(points[corner], n)
            owner = np.repeat(np.arange(len(part)), corners[drawn])
            yield PixelRuns(float(part[0] / len(index)), *_runs(sides, owner, drawn, keys[part], clip))


def _runs(
    sides: tuple[Points, Points, Points, Points], owner: Ints, index: Ints, keys: Ints, clip: Box
) -> tuple[Ints, Ints, Ints, Ints, Ints]:
    corner = keys * CHUNK
    low = corner[owner, 0]
    rows, columns, side = _crossings(sides, low, np.minimum(low + CHUNK, clip.y1))
    part = owner[side]
    columns = np.clip(columns - corner[part, 1], 0, np.minimum(CHUNK, clip.x1 - corner[part, 1]))
    # Part, row and column in one number: sorted far faster than three arrays.
    row = (part * CHUNK + rows - corner[part, 0]) * (2 * CHUNK)
    crossed = np.sort(row + columns)
    # Crossings of a row come in pairs: where the polygon begins and where it ends.
    begin, length = crossed[::2], crossed[1::2] - crossed[::2]
    begin, length = begin[length > 0], length[length > 0]
    part, starts = begin // (2 * CHUNK * CHUNK), begin // (2 * CHUNK) % CHUNK * CHUNK + begin % (2 * CHUNK)
    new = np.ones(len(keys), bool)
    new[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    chunk = np.cumsum(new) - 1
    return keys[new], chunk[part], index[part], starts, length


def _sides(points: Points, lengths: Ints) -> tuple[Points, Points, Points, Points]:
    """(ya, xa, yb, xb) of the side that begins at each corner of rings of some lengths."""
    ends = np.cumsum(lengths)
    following = np.arange(1, len(points) + 1)
    following[ends - 1] = ends - lengths
    (ya, xa), (yb, xb) = points.T, points[following].T
    # Always from top to bottom, so that polygons that share a side get the very same x for a row.
    up = ya > yb
    return np.where(up, yb, ya), np.where(up, xb, xa), np.where(up, ya, yb), np.where(up, xa, xb)


def _crossings(
    sides: tuple[Points, Points, Points, Points], y0: np.int64 | Ints, y1: np.int64 | Ints
) -> tuple[Ints, Ints, Ints]:
    """Row, column and side of every crossing of a row centre in y0..y1; inside and outside swap at that column."""
    ya, xa, yb, xb = sides
    first = np.maximum(np.ceil(ya - 0.5), y0).astype(np.int64)
    last = np.minimum(np.ceil(yb - 0.5), y1).astype(np.int64)
    n = np.maximum(last - first, 0)
    side = np.repeat(np.arange(len(n)), n)
    rows = first[side] + _within(n)
    slope = np.divide(xb - xa, yb - ya, out=np.zeros_like(ya), where=yb > ya)
    x = xa[side] + (rows + 0.5 - ya[side]) * slope[side]
    return rows, np.ceil(x - 0.5).astype(np.int64), side


def _within(counts: Ints) -> Ints:
    """0, 1, ... counts[0] - 1, 0, 1, ... counts[1] - 1, and so on."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _grid(cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """All cells of the rectangle that some cells span."""
    if len(cells) == 0:
        return cells
    (i0, j0), (i1, j1) = cells.min(axis=0), cells.max(axis=0)
    i, j = np.meshgrid(np.arange(i0, i1 + 1), np.arange(j0, j1 + 1), indexing="ij")
    return np.stack([i.ravel(), j.ravel()], axis=1)


def _parity(rows: NDArray[np.int64], columns: NDArray[np.int64], height: int, width: int) -> Mask:
    """Pixels that an odd number of crossings lie left of (or at)."""
    flips = np.bincount(rows * (width + 1) + columns, minlength=height * (width + 1)).reshape(height, width + 1)
    return np.bitwise_xor.accumulate((flips[:, :width] & 1).astype(bool), axis=1)
