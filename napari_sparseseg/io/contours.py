"""Connected regions of a label image and their outlines, found while its rows stream by.

Bands of full-width rows are fed one after the other; a region is returned as soon as no more of its pixels can follow.
So the memory is one band plus the outlines of unfinished regions, however many regions the image has.

Regions are 4-connected pixels of one class. An outline runs through the middles of the pixel sides that separate the
region from others, which cuts every corner by sqrt(2)/4 = 0.354 px: diagonal borders are straight instead of stairs,
neighbours share their points, and rings of one region never touch, so that polygons are valid.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

# Sides of a pixel in the order in which they are walked with the region on the right hand (y down): the top side goes
# east, the right one south, the bottom one west, the left one north.
_TOP, _RIGHT, _BOTTOM, _LEFT = range(4)
# Middle of a side relative to the pixel's corner, in half pixels (y, x).
_MIDDLE = np.array([[0, 1], [1, 2], [2, 1], [1, 0]], np.int32)


class Rings(Sequence[np.ndarray]):
    """Rings in two arrays: a region may have millions of holes, and as many arrays would take several times the memory.

    Parameters
    ----------
    points
        int32 (n, 2), of all rings one after the other.
    lengths
        intp, points of each ring.
    """

    __slots__ = ("_ends", "lengths", "points")

    def __init__(self, points: np.ndarray, lengths: np.ndarray) -> None:
        self.points, self.lengths = points, lengths
        self._ends: np.ndarray | None = None

    @classmethod
    def of(cls, rings: Iterable[np.ndarray]) -> Rings:
        """Of rings as arrays."""
        if isinstance(rings, Rings):
            return rings
        listed = list(rings)
        points = np.concatenate(listed) if listed else np.zeros((0, 2), np.int32)
        return cls(points, np.array([len(ring) for ring in listed], np.intp))

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> Rings: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | Rings:
        if self._ends is None:
            self._ends = np.cumsum(self.lengths)
        if isinstance(index, int):
            index = index + len(self) if index < 0 else index
            if not 0 <= index < len(self):
                raise IndexError(index)
            end = int(self._ends[index])
            return self.points[end - int(self.lengths[index]) : end]
        first, stop, step = index.indices(len(self))
        if step != 1:
            return Rings.of([self[k] for k in range(first, stop, step)])
        if stop <= first:
            return Rings(self.points[:0], self.lengths[:0])
        begin = int(self._ends[first]) - int(self.lengths[first])
        return Rings(self.points[begin : int(self._ends[stop - 1])], self.lengths[first:stop])

    def __iter__(self) -> Iterator[np.ndarray]:
        for k in range(len(self)):
            yield self[k]


@dataclass(slots=True)
class Region:
    """A connected region of one class.

    `rings` are int32 (n, 2) arrays of (y, x) in **half** pixels, not closed; the outer ring first, then the holes. They
    are empty where the tracer does not trace.
    """

    class_id: int
    pixels: int
    centroid: tuple[float, float]
    """Mean pixel centre (y, x) in pixels; a pixel's corner is whole numbered."""
    rings: Sequence[np.ndarray] = ()


@dataclass(slots=True)
class _Open:
    """A region that reaches the last row read; sums are of pixel centres."""

    class_id: int
    pixels: int
    sum_y: float
    sum_x: float
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    """Rings so far: their points, and the number of points and the highest of each."""


@dataclass(slots=True)
class _Fragment:
    """A piece of outline with its ends on the last row read, identified by its first and last side."""

    head: int
    tail: int
    parts: deque[np.ndarray]


@dataclass(slots=True)
class Runs:
    """Horizontal runs of equal, non-zero pixels of a band, as flat half-open intervals, and their component."""

    starts: np.ndarray
    ends: np.ndarray
    labels: np.ndarray
    component: np.ndarray
    of_open: np.ndarray
    """Component that each region of before is part of now."""
    n_components: int


def find_runs(flat: np.ndarray, stride: int, above_open: np.ndarray, n_open: int) -> Runs:
    """Runs of a band, joined into 4-connected components with regions of before.

    Parameters
    ----------
    flat
        uint8, rows of `stride` pixels that begin and end with 0; the first rows are those of before.
    above_open
        intp, for every run of the rows of before the region it belongs to.
    n_open
        How many regions of before there are.
    """
    change = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    labelled = flat[change] != 0
    starts = change[labelled]
    # The row padding is 0, so each labelled run is ended by another change.
    ends = change[1:][labelled[:-1]] if len(change) else change
    labels = flat[starts]
    n = len(starts)
    first = np.searchsorted(ends, starts + stride, side="right")
    count = np.searchsorted(starts, ends + stride, side="left") - first
    upper = np.repeat(np.arange(n), count)
    lower = np.arange(len(upper)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    same = labels[upper] == labels[lower]
    rows = np.concatenate([upper[same], np.arange(len(above_open))])
    columns = np.concatenate([lower[same], n + above_open])
    graph = csr_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(n + n_open, n + n_open))
    n_components, component = connected_components(graph, directed=False)
    return Runs(starts, ends, labels, component[:n], component[n:], int(n_components))


class RegionTracer:
    """Finds the regions of a label image that is fed in bands of rows.

    Parameters
    ----------
    width
        Pixels per row.
    min_pixels
        Smaller regions are not returned, and their outlines not traced.
    rings
        Whether to trace outlines; without them only class, size and centroid are found.
    """

    def __init__(self, width: int, min_pixels: int = 1, *, rings: bool = True) -> None:
        self._stride = width + 2
        self._min_pixels = min_pixels
        self._trace = rings
        self._row = 0
        self._above = np.zeros((1, self._stride), np.uint8)
        self._above_open = np.zeros(0, np.intp)
        self._open: list[_Open] = []
        self._heads: dict[int, _Fragment] = {}
        self._tails: dict[int, _Fragment] = {}

    def feed(self, rows: np.ndarray) -> list[Region]:
        """Take the next rows, uint8 (h, width) with h >= 1, 0 for no class; returns the complete regions."""
        band = np.zeros((len(rows) + 1, self._stride), np.uint8)
        band[0] = self._above
        band[1:, 1:-1] = rows
        flat = band.ravel()
        runs = find_runs(flat, self._stride, self._above_open, len(self._open))
        closed = np.ones(runs.n_components, bool)
        in_last_row = runs.starts >= len(rows) * self._stride
        closed[runs.component[in_last_row]] = False
        # Complete regions that are too small need not be looked at further. One that came in from above is traced,
        # because its fragments have to be removed from the lists.
        wanted = ~closed
        wanted[runs.component[runs.starts < self._stride]] = True
        found = self._measure(runs, wanted)
        if self._trace:
            self._trace_band(flat, runs, wanted, closed, found)
        still_open = np.flatnonzero(~closed)
        renumber = np.zeros(runs.n_components, np.intp)
        renumber[still_open] = np.arange(len(still_open))
        self._open = [found[k] for k in still_open.tolist()]
        self._above = band[-1:].copy()
        self._above_open = renumber[runs.component[in_last_row]]
        self._row += len(rows)
        whole = (found[k] for k in np.flatnonzero(closed & wanted).tolist())
        return [_finished(r) for r in whole if r.pixels >= self._min_pixels]

    def finish(self) -> list[Region]:
        """The regions that end with the last row."""
        return self.feed(np.zeros((1, self._stride - 2), np.uint8))

    def _measure(self, runs: Runs, wanted: np.ndarray) -> dict[int, _Open]:
        """Class, size and sums of the components that are large enough, which become `wanted`, or are so already."""
        n = runs.n_components
        y, x = np.divmod(runs.starts, self._stride)
        length = (runs.ends - runs.starts) * (y > 0)  # the row above was counted with its own band
        pixels = np.bincount(runs.component, length, n)
        sum_y = np.bincount(runs.component, length * (y + self._row - 0.5), n)
        sum_x = np.bincount(runs.component, length * (x - 1 + (runs.ends - runs.starts) / 2), n)
        class_id = np.zeros(n, np.intp)
        class_id[runs.component] = runs.labels
        wanted |= pixels >= self._min_pixels
        which = np.flatnonzero(wanted)
        values = zip(*(v[which].tolist() for v in (class_id, pixels, sum_y, sum_x)), strict=True)
        found = {k: _Open(c, int(p), sy, sx) for k, (c, p, sy, sx) in zip(which.tolist(), values, strict=True)}
        pairs = {(int(o), int(k)) for o, k in zip(self._above_open, runs.component, strict=False)}
        for index, k in pairs:
            before, now = self._open[index], found[k]
            now.pixels += before.pixels
            now.sum_y += before.sum_y
            now.sum_x += before.sum_x
            now.parts += before.parts
        return found

    def _trace_band(
        self, flat: np.ndarray, runs: Runs, wanted: np.ndarray, complete: np.ndarray, found: dict[int, _Open]
    ) -> None:
        """Follow the outlines inside the band and join them with the fragments that reach up out of it."""
        sides = _sides(flat.reshape(-1, self._stride))
        component = runs.component[np.searchsorted(runs.starts, sides >> 2, side="right") - 1]
        keep = wanted[component]
        sides, component = sides[keep], component[keep]
        if not len(sides):
            return
        following = _following(flat, self._stride, sides)
        order, first, last, closed = _chains(sides, following)
        points = self._points(sides)[order]
        corner = _corners(sides[order], first)
        owner = component[order[first]]
        for k, part in _rings_by_owner(points[corner], np.add.reduceat(corner, first, dtype=np.intp), owner, closed):
            # of an open region a copy: a view would keep the rings of its complete neighbours in memory
            found[k].parts.append(part if complete[k] else (part[0].copy(), part[1].copy(), part[2].copy()))
        offset = (self._row - 1) * self._stride * 4
        opened = ~closed
        for k, begin, end in zip(owner[opened].tolist(), first[opened].tolist(), last[opened].tolist(), strict=True):
            # The side at an end that lies in the row above belongs to the fragment it continues.
            head, tail = int(sides[order[begin]]), int(sides[order[end - 1]])
            from_above, to_above = head >> 2 < self._stride, tail >> 2 < self._stride
            inside = slice(begin + from_above, end - to_above)
            whole = self._join(points[inside][corner[inside]], (head + offset, from_above), (tail + offset, to_above))
            if whole is not None:
                found[k].parts.append((whole, np.array([len(whole)]), whole[:, 0].min(keepdims=True)))

    def _join(self, points: np.ndarray, head: tuple[int, bool], tail: tuple[int, bool]) -> np.ndarray | None:
        """Join an open chain with the fragments it continues; returns the ring where that closes one."""
        if head[1]:
            fragment = self._tails.pop(head[0])
            fragment.parts.append(points)
        else:
            fragment = self._heads[head[0]] = _Fragment(head[0], tail[0], deque([points]))
        if tail[1]:
            other = self._heads.pop(tail[0])
            if other is fragment:
                return np.concatenate(fragment.parts)
            _append(fragment, other)
        else:
            fragment.tail = tail[0]
        self._tails[fragment.tail] = fragment
        return None

    def _points(self, sides: np.ndarray) -> np.ndarray:
        """Middles of the sides: int32 (n, 2), (y, x) in half pixels of the image."""
        y, x = np.divmod(sides >> 2, self._stride)
        points = np.stack([y + (self._row - 1), x - 1], axis=1).astype(np.int32) * 2
        points += _MIDDLE[sides & 3]
        return points


def _append(fragment: _Fragment, other: _Fragment) -> None:
    """Put `other` behind `fragment`, moving the shorter list of parts."""
    if len(other.parts) > len(fragment.parts):
        other.parts.extendleft(reversed(fragment.parts))
        fragment.parts = other.parts
    else:
        fragment.parts.extend(other.parts)
    fragment.tail = other.tail


def _sides(band: np.ndarray) -> np.ndarray:
    """Sides on an outline as sorted numbers, 4 * flat pixel + side.

    The first row of the band is the row above: its left and right sides are there to link with, its top sides are not.
    The bottom sides of the last row come with the next band.
    """
    on = np.zeros((*band.shape, 4), bool)
    labelled = band != 0
    differs = band[1:] != band[:-1]
    on[1:, :, _TOP] = differs & labelled[1:]
    on[:-1, :, _BOTTOM] = differs & labelled[:-1]
    differs = band[:, 1:] != band[:, :-1]
    on[:, :-1, _RIGHT] = differs & labelled[:, :-1]
    on[:, 1:, _LEFT] = differs & labelled[:, 1:]
    return np.flatnonzero(on)


def _following(flat: np.ndarray, stride: int, sides: np.ndarray) -> np.ndarray:
    """Position in `sides` of the side that follows each, -1 where it lies in another band.

    With the region on the right: turn right where the pixel ahead belongs to another region, else go straight, else
    turn left. Checking the pixel ahead first makes regions 4-connected.
    """
    ahead = np.array([1, stride, -1, -stride])
    outside = np.array([-stride, 1, stride, -1])
    pixel, side = sides >> 2, sides & 3
    rows = len(flat) // stride
    row = pixel // stride
    beyond = ((side == _RIGHT) & (row == rows - 1)) | ((side == _LEFT) & (row == 0))
    front = np.where(beyond, pixel, pixel + ahead[side])
    left = np.where(beyond, pixel, front + outside[side])
    own = flat[pixel]
    right_turn = flat[front] != own
    straight = flat[left] != own
    target = np.where(
        right_turn,
        pixel * 4 + ((side + 1) & 3),
        np.where(straight, front * 4 + side, left * 4 + ((side + 3) & 3)),
    )
    return np.where(beyond, -1, np.searchsorted(sides, target))


def _chains(sides: np.ndarray, following: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Order the sides along their chains: the order, first and end of each chain in it, and whether it is a ring."""
    n = len(sides)
    linked = np.flatnonzero(following >= 0)
    preceding = np.full(n, -1, np.intp)
    preceding[following[linked]] = linked
    links = csr_array((np.ones(len(linked), np.int8), (linked, following[linked])), shape=(n, n))
    count, chain = connected_components(links, directed=False)
    start = np.empty(count, np.intp)
    start[chain[::-1]] = np.arange(n)[::-1]
    heads = np.flatnonzero(preceding < 0)
    closed = np.ones(count, bool)
    closed[chain[heads]] = False
    start[chain[heads]] = heads
    end = preceding[start]
    tails = np.flatnonzero(following < 0)
    end[chain[tails]] = tails
    # All chains are linked one after the other, so that one traversal lists them in order.
    walk = following.copy()
    walk[end[:-1]] = start[1:]
    walk[end[-1]] = -1
    source = np.flatnonzero(walk >= 0)
    graph = csr_array((np.ones(len(source), np.int8), (source, walk[source])), shape=(n, n))
    order = breadth_first_order(graph, start[0], return_predecessors=False)
    length = np.bincount(chain, minlength=count)
    last = np.cumsum(length)
    return order, last - length, last, closed


def _corners(sides: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Mask of the chained sides that become points: those next to a turn, and the ends of each chain."""
    direction = sides & 3
    keep = np.ones(len(sides), bool)
    keep[1:-1] = (direction[1:-1] != direction[:-2]) | (direction[1:-1] != direction[2:])
    keep[first] = True
    keep[first[1:] - 1] = True
    return keep


def _rings_by_owner(
    points: np.ndarray, lengths: np.ndarray, owner: np.ndarray, closed: np.ndarray
) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Of the chains that are rings: owner, and the points of its rings with the length and the highest point of each.

    A ring that lies within one band begins with its first side in reading order, so its first point is its highest.
    """
    starts = np.cumsum(lengths) - lengths
    rings = np.flatnonzero(closed)
    if not len(rings):
        return
    rings = rings[np.argsort(owner[rings], kind="stable")]
    owner, lengths, starts = owner[rings], lengths[rings], starts[rings]
    highest = points[starts, 0]
    ordered = points[_ranges(starts, lengths)]
    ring = np.flatnonzero(np.diff(owner, prepend=-1))
    ring_end = np.append(ring[1:], len(owner))
    ends = np.cumsum(lengths)
    begin = ends[ring] - lengths[ring]
    bounds = zip(*(v.tolist() for v in (owner[ring], ring, ring_end, begin, ends[ring_end - 1])), strict=True)
    for k, a, b, p, q in bounds:
        yield k, (ordered[p:q], lengths[a:b], highest[a:b])


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers of several ranges, one after the other."""
    ends = np.cumsum(lengths)
    numbers: np.ndarray = np.arange(int(ends[-1])) + np.repeat(starts - ends + lengths, lengths)
    return numbers


def _finished(region: _Open) -> Region:
    """The region with its outer ring first: the one that reaches highest."""
    rings: Sequence[np.ndarray] = ()
    if region.parts:
        points, lengths, highest = region.parts[0]
        if len(region.parts) > 1:
            points, lengths, highest = (np.concatenate(arrays) for arrays in zip(*region.parts, strict=True))
        region.parts.clear()
        if len(lengths) > 1 and (highest[1:] < highest[:-1]).any():
            order = np.argsort(highest, kind="stable")
            points = points[_ranges((np.cumsum(lengths) - lengths)[order], lengths[order])]
            lengths = lengths[order]
        rings = Rings(points, lengths)
    centroid = (region.sum_y / region.pixels, region.sum_x / region.pixels)
    return Region(region.class_id, region.pixels, centroid, rings)
