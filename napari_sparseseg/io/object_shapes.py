"""Shape, size and mean values of the objects of a label image, found while its rows stream by.

The numbers are those of scikit-image's `regionprops` on the whole image, whatever the height of the bands. Memory is
one band, the unfinished objects, and one row of numbers for each finished one. An object is a 4-connected region of
one class, as in `contours`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import shapely

from napari_sparseseg.io.contours import Runs, find_runs

if TYPE_CHECKING:
    from collections.abc import Mapping

_CONTEXT = 4
"""Rows of the band before that are looked at again: two on each side decide what a pixel adds to the perimeter."""
# Perimeter of Benkrid and Crookes as scikit-image computes it: what a border pixel adds, by 1 + 2 for each border pixel
# beside it + 10 for each one diagonal to it.
_LENGTH = np.zeros(50)
_LENGTH[[5, 7, 15, 17, 25, 27]] = 1.0
_LENGTH[[21, 33]] = np.sqrt(2)
_LENGTH[[13, 23]] = (1 + np.sqrt(2)) / 2
_DIAGONALS = ((-1, -1), (-1, 1), (1, -1), (1, 1))


@dataclass(slots=True)
class _Sums:
    """One row per object, or part of one: pixels, mean centre (y, x), and what adds up when parts are joined."""

    pixels: np.ndarray
    y: np.ndarray
    x: np.ndarray
    moments: np.ndarray
    """float64 (3, n): sums of dy^2, dx^2 and dy dx about the centre."""
    values: np.ndarray
    """float64 (v, n): sums of the value images."""
    lowest: np.ndarray
    """float64 (m, n): minima of the value images."""
    first: np.ndarray
    """int64: number of the first pixel in reading order."""

    def joined(self, other: _Sums, owner: np.ndarray, count: int) -> _Sums:
        """The parts of both, added up by the object in 0..count that `owner` names for each."""
        n = np.concatenate([self.pixels, other.pixels])
        y, x = np.concatenate([self.y, other.y]), np.concatenate([self.x, other.x])
        pixels = _added(owner, n, count)
        safe = np.maximum(pixels, 1)
        mean_y, mean_x = _added(owner, n * y, count) / safe, _added(owner, n * x, count) / safe
        dy, dx = y - mean_y[owner], x - mean_x[owner]
        apart = np.stack([n * dy * dy, n * dx * dx, n * dy * dx])
        moments = np.concatenate([self.moments, other.moments], axis=1) + apart
        values = np.concatenate([self.values, other.values], axis=1)
        lowest = np.full((len(self.lowest), count), np.inf)
        for into, these in zip(lowest, np.concatenate([self.lowest, other.lowest], axis=1), strict=True):
            np.minimum.at(into, owner, these)
        first = np.full(count, np.iinfo(np.int64).max)
        np.minimum.at(first, owner, np.concatenate([self.first, other.first]))
        return _Sums(pixels, mean_y, mean_x, _added(owner, moments, count), _added(owner, values, count), lowest, first)

    def at(self, which: np.ndarray) -> _Sums:
        """Some of the rows."""
        return _Sums(
            self.pixels[which],
            self.y[which],
            self.x[which],
            self.moments[:, which],
            self.values[:, which],
            self.lowest[:, which],
            self.first[which],
        )


@dataclass(slots=True)
class _Contacts:
    """Border pixels that touch, at a corner, a part that may turn out to be of the same object further down."""

    owner: np.ndarray
    code: np.ndarray
    others: np.ndarray
    """intp (n, 4), -1 for none."""
    count: np.ndarray
    """How many pixels are alike."""


@dataclass(slots=True)
class Shapes:
    """Finished objects, one row each, in label pixels."""

    class_id: np.ndarray
    pixels: np.ndarray
    y: np.ndarray
    """Mean of the pixels' centres; a pixel's corner is whole numbered."""
    x: np.ndarray
    perimeter: np.ndarray
    convex_pixels: np.ndarray
    moments: np.ndarray
    """float64 (3, n): mean dy^2, dx^2 and dy dx about the centre."""
    means: dict[str, np.ndarray]
    minima: dict[str, np.ndarray]
    first: np.ndarray
    """int64: row * width + column of the first pixel in reading order."""


@dataclass(slots=True)
class _Open:
    class_id: np.ndarray
    sums: _Sums
    length: np.ndarray
    hull: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    """Corners (y, x) of the convex hulls so far, in half pixels."""
    hull_owner: np.ndarray = field(default_factory=lambda: np.zeros(0, np.intp))


class ShapeMeter:
    """Measures the objects of a label image that is fed in bands of rows.

    Parameters
    ----------
    width
        Pixels per row.
    min_pixels
        Smaller objects are left out.
    means, minima
        Names of the value images whose mean, or lowest value, over each object is wanted.
    """

    def __init__(
        self, width: int, min_pixels: int = 1, *, means: tuple[str, ...] = (), minima: tuple[str, ...] = ()
    ) -> None:
        self._width, self._stride = width, width + 2
        self._min_pixels = min_pixels
        self._means, self._minima = means, minima
        self._row = 0
        self._context = np.zeros((_CONTEXT, self._stride), np.uint8)
        self._context_open = np.zeros(0, np.intp)
        none = np.zeros(0)
        sums = _Sums(
            none, none, none, np.zeros((3, 0)), np.zeros((len(means), 0)), np.zeros((len(minima), 0)),
            np.zeros(0, np.int64),
        )  # fmt: skip
        self._open = _Open(np.zeros(0, np.intp), sums, none)
        ids = np.zeros(0, np.intp)
        self._contacts = _Contacts(ids, ids, np.zeros((0, 4), np.intp), ids)

    def feed(self, rows: np.ndarray, values: Mapping[str, np.ndarray] | None = None) -> Shapes:
        """Take the next rows; returns the objects that are complete.

        Parameters
        ----------
        rows
            uint8 (h, width) with h >= 1, 0 for no class.
        values
            The value images by name, (h, width) each.
        """
        band = np.zeros((_CONTEXT + len(rows), self._stride), np.uint8)
        band[:_CONTEXT] = self._context
        band[_CONTEXT:, 1:-1] = rows
        flat = band.ravel()
        before = self._open
        runs = find_runs(flat, self._stride, self._context_open, len(before.class_id))
        n = runs.n_components
        class_id = np.zeros(n, np.intp)
        class_id[runs.component] = runs.labels
        new = runs.starts >= _CONTEXT * self._stride
        sums = self._sums(runs, new, values or {})
        sums = before.sums.joined(sums, np.concatenate([runs.of_open, runs.component[new]]), n)
        in_context = runs.starts >= len(rows) * self._stride
        closed = np.ones(n, bool)
        closed[runs.component[in_context]] = False
        length = _added(runs.of_open, before.length, n) + self._perimeter(band, runs, closed)
        kept = ~closed | (sums.pixels >= self._min_pixels)
        hull, owner = self._hulls(runs, new, kept, len(band))
        still = np.flatnonzero(~closed)
        renumber = np.full(n, -1, np.intp)
        renumber[still] = np.arange(len(still))
        mine = ~closed[owner]
        self._open = _Open(class_id[still], sums.at(still), length[still], hull[mine], renumber[owner[mine]])
        self._contacts.owner = renumber[self._contacts.owner]
        others = self._contacts.others
        self._contacts.others = np.where(others >= 0, renumber[others], -1)
        self._context = band[-_CONTEXT:].copy()
        self._context_open = renumber[runs.component[in_context]]
        self._row += len(rows)
        done = np.flatnonzero(closed & kept)
        position = np.full(n, -1, np.intp)
        position[done] = np.arange(len(done))
        convex = _lattice_points(hull[~mine], position[owner[~mine]], len(done))
        return self._finished(class_id[done], sums.at(done), length[done], convex)

    def finish(self) -> Shapes:
        """The objects that end with the last rows."""
        empty = np.zeros((_CONTEXT, self._width), np.uint8)
        return self.feed(empty, dict.fromkeys((*self._means, *self._minima), empty))

    def _finished(self, class_id: np.ndarray, sums: _Sums, length: np.ndarray, convex: np.ndarray) -> Shapes:
        return Shapes(
            class_id,
            sums.pixels.astype(np.int64),
            sums.y,
            sums.x,
            length,
            convex,
            sums.moments / sums.pixels,
            dict(zip(self._means, sums.values / sums.pixels, strict=True)),
            dict(zip(self._minima, sums.lowest, strict=True)),
            sums.first,
        )

    def _sums(self, runs: Runs, new: np.ndarray, values: Mapping[str, np.ndarray]) -> _Sums:
        """Every run of the new rows as a part of its object."""
        starts, ends = runs.starts[new], runs.ends[new]
        row, column = np.divmod(starts, self._stride)
        row -= _CONTEXT
        column -= 1
        n = (ends - starts).astype(np.float64)
        moments = np.zeros((3, len(n)))
        moments[1] = n * (n * n - 1) / 12
        # between the ends of a run and the next start lies what reduceat also adds up: every second entry is ours
        bounds = np.stack([row * self._width + column, row * self._width + column + (ends - starts)], axis=1).ravel()
        sums = [_reduced(np.add, values[name], bounds) for name in self._means]
        lowest = [_reduced(np.minimum, values[name], bounds) for name in self._minima]
        return _Sums(
            n,
            row + (self._row + 0.5),
            column + n / 2,
            moments,
            np.array(sums, np.float64).reshape(len(sums), len(n)),
            np.array(lowest, np.float64).reshape(len(lowest), len(n)),
            (row + self._row) * self._width + column,
        )

    def _perimeter(self, band: np.ndarray, runs: Runs, closed: np.ndarray) -> np.ndarray:
        """What the rows whose surroundings are known add to the perimeter of each component."""
        flat, stride = band.ravel(), self._stride
        border = _border(band).ravel()
        at = np.flatnonzero(border[2 * stride : -2 * stride]) + 2 * stride
        own = flat[at]
        beside = {step: flat[at + step] == own for step in (-stride, -1, 1, stride)}
        code = np.ones(len(at), np.uint8)
        for step, same in beside.items():
            code += np.uint8(2) * (same & border[at + step])
        unsure = np.zeros(len(at), bool)
        touching = []
        for down, right in _DIAGONALS:
            step = down * stride + right
            same = flat[at + step] == own
            linked = beside[down * stride] | beside[right]
            code += np.uint8(10) * (same & linked & border[at + step])
            touching.append(same & ~linked)
            unsure |= touching[-1]
        where = np.searchsorted(at, runs.ends) - np.searchsorted(at, runs.starts)
        component = np.repeat(runs.component, where)
        length = _added(component, np.where(unsure, 0.0, _LENGTH[code]), runs.n_components)
        others = np.full((int(unsure.sum()), 4), -1, np.intp)
        for k, (down, right) in enumerate(_DIAGONALS):
            mine = touching[k][unsure]
            target = at[unsure][mine] + down * stride + right
            others[mine, k] = runs.component[np.searchsorted(runs.starts, target, side="right") - 1]
        fresh = _Contacts(component[unsure], code[unsure].astype(np.intp), others, np.ones(len(others), np.intp))
        total: np.ndarray = length + self._resolve(fresh, runs, closed)
        return total

    def _resolve(self, fresh: _Contacts, runs: Runs, closed: np.ndarray) -> np.ndarray:
        """Length of the contacts that are decided; the undecided are kept, in the numbers of this band."""
        old = self._contacts
        old_others = np.where(old.others >= 0, _take(runs.of_open, old.others), -1)
        owner = np.concatenate([_take(runs.of_open, old.owner), fresh.owner])
        others = np.concatenate([old_others, fresh.others])
        code = np.concatenate([old.code, fresh.code])
        count = np.concatenate([old.count, fresh.count])
        same = (others >= 0) & (others == owner[:, None])
        code += 10 * same.sum(axis=1)
        others[same | (closed[others] if len(closed) else False)] = -1
        decided = closed[owner] | (others < 0).all(axis=1)
        length = _added(owner[decided], count[decided] * _LENGTH[code[decided]], runs.n_components)
        left = ~decided
        alike = np.column_stack([owner[left], code[left], np.sort(others[left], axis=1)])
        alike, which = np.unique(alike, axis=0, return_inverse=True)
        total = np.bincount(which.ravel(), count[left], len(alike)).astype(np.intp)
        self._contacts = _Contacts(alike[:, 0], alike[:, 1], alike[:, 2:], total)
        return length

    def _hulls(self, runs: Runs, new: np.ndarray, kept: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray]:
        """Corners of the convex hulls of the `kept` components, in half pixels (y, x), and the component of each.

        The hull is that of the middles of all pixel sides, as in scikit-image.
        """
        wanted = new & kept[runs.component]
        row, column = np.divmod(runs.starts[wanted], self._stride)
        key = runs.component[wanted] * height + row
        order = np.argsort(key, kind="stable")
        key, column = key[order], column[order] - 1
        last_column = column + (runs.ends - runs.starts)[wanted][order] - 1
        begins = np.flatnonzero(np.diff(key, prepend=-1))
        ends = np.append(begins[1:], len(key))[: len(begins)] - 1
        key, left, right = key[begins], column[begins], last_column[ends]
        y = key % height + (self._row - _CONTEXT)
        points, owner = _hull_candidates(key, y, left, right, height)
        carried = _take(runs.of_open, self._open.hull_owner)
        still = kept[carried]
        points = np.concatenate([self._open.hull[still], points])
        owner = np.concatenate([carried[still], owner])
        order = np.argsort(owner, kind="stable")
        points, owner = points[order], owner[order]
        if not len(owner):
            return points, owner
        each, index = np.unique(owner, return_inverse=True)
        hulls = shapely.convex_hull(shapely.linestrings(points.astype(np.float64), indices=index))
        corners, index = shapely.get_coordinates(hulls, return_index=True)
        return corners.astype(np.int64), each[index]


def _added(owner: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Sums by owner: float64 (count,) of values (n,), or (k, count) of (k, n)."""
    if values.ndim == 2:
        return np.array([_added(owner, row, count) for row in values]).reshape(len(values), count)
    sums: np.ndarray = np.bincount(owner, values, count).astype(np.float64)
    return sums


def _take(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """`table[index]`, also where the table is empty and so is what is asked for."""
    return table[index] if len(table) else np.zeros(index.shape, np.intp)


def _reduced(operation: np.ufunc, image: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Sum or minimum of the values between every pair of bounds."""
    if not len(bounds):
        return np.zeros(0)
    values = image.ravel()
    kind = np.float64 if operation is np.add else None
    if bounds[-1] == len(values):  # reduceat wants indices that exist: the last run then goes to the end
        bounds = bounds[:-1]
    result: np.ndarray = operation.reduceat(values, bounds, dtype=kind)[::2]
    return result


def _border(band: np.ndarray) -> np.ndarray:
    """Pixels of a class beside a pixel of another; the first and last rows are not decided."""
    border = np.zeros(band.shape, bool)
    differs = band[1:] != band[:-1]
    border[1:] = differs
    border[:-1] |= differs
    differs = band[:, 1:] != band[:, :-1]
    border[:, 1:] |= differs
    border[:, :-1] |= differs
    border &= band != 0
    return border


def _hull_candidates(
    key: np.ndarray, y: np.ndarray, left: np.ndarray, right: np.ndarray, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """Middles of pixel sides that can be corners of a hull, in half pixels (y, x), and their component.

    Of each row these are the outer sides of its outermost pixels. Their upper and lower sides lie inside the hull
    of the outer ones unless the row above or below is absent or reaches less far.
    """
    points = [np.stack([2 * y, 2 * left - 1], axis=1), np.stack([2 * y, 2 * right + 1], axis=1)]
    owner = [key // height] * 2
    linked = np.diff(key) == 1
    for above in (True, False):
        alone = np.ones(len(key), bool)
        near, far = (slice(1, None), slice(None, -1)) if above else (slice(None, -1), slice(1, None))
        same = linked & (left[far] <= left[near] + 1) & (right[far] >= right[near] - 1)
        same &= (right[far] >= left[near] - 1) & (left[far] <= right[near] + 1)
        alone[near] = ~same
        side = 2 * y[alone] + (-1 if above else 1)
        points += [np.stack([side, 2 * x[alone]], axis=1) for x in (left, right)]
        owner += [(key // height)[alone]] * 2
    return np.concatenate(points), np.concatenate(owner)


def _lattice_points(corners: np.ndarray, owner: np.ndarray, count: int) -> np.ndarray:
    """How many pixel centres lie in each of `count` closed convex polygons or on their border; exact.

    `corners` are (y, x) in half pixels, a ring for each owner, its first corner repeated at its end.
    """
    if not count:
        return np.zeros(0, np.int64)
    edge = np.flatnonzero(owner[1:] == owner[:-1])
    a, b, owner = corners[edge], corners[edge + 1], owner[edge]
    flip = a[:, 0] > b[:, 0]
    a[flip], b[flip] = b[flip], a[flip]
    top, bottom = -(-a[:, 0] // 2), b[:, 0] // 2
    lowest, highest = np.full(count, np.iinfo(np.int64).max), np.full(count, np.iinfo(np.int64).min)
    np.minimum.at(lowest, owner, top)
    np.maximum.at(highest, owner, bottom)
    rows = highest - lowest + 1
    offset = np.cumsum(rows) - rows
    crossed = np.where(a[:, 0] == b[:, 0], 0, np.maximum(bottom - top + 1, 0))
    index = np.repeat(np.arange(len(edge)), crossed)
    y = np.arange(len(index)) - np.repeat(np.cumsum(crossed) - crossed, crossed) + top[index]
    a, b, owner = a[index], b[index], owner[index]
    dy, dx = (b - a).T
    above = a[:, 1] * dy + (2 * y - a[:, 0]) * dx  # x of the crossing, times 2 dy
    slot = offset[owner] + y - lowest[owner]
    first, last = np.full(int(rows.sum()), np.iinfo(np.int64).max), np.full(int(rows.sum()), np.iinfo(np.int64).min)
    np.minimum.at(first, slot, -(-above // (2 * dy)))
    np.maximum.at(last, slot, above // (2 * dy))
    return np.add.reduceat(np.maximum(last - first + 1, 0), offset)
