"""Reads boxes of pixels from a stack of levels through the tile cache; counts damaged tiles; safe to close anytime."""

from __future__ import annotations

import itertools
import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg.errors import SlideClosedError, SlideError
from napari_sparseseg.geometry import Box
from napari_sparseseg.slides.cache import TILES, TileCache
from napari_sparseseg.slides.level import Level, ReducedLevel, TileError, TileLeftOutError
from napari_sparseseg.slides.resample import apply, axis, with_edges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Pixels = np.ndarray[Any, np.dtype[Any]]
SMALLEST = 1024
"""Levels are added until the longer side is at most this many pixels: napari reads the coarsest level whole."""
LARGEST_STEP = 4.5
"""Levels are added between two that are further apart: a view just finer than a level 16 times smaller would otherwise
read 500 million pixels."""
_OWNERS = itertools.count()


class SlideWarning(UserWarning):
    """Part of a slide cannot be displayed as stored."""


def scales(levels: Sequence[Level]) -> tuple[tuple[float, float], ...]:
    """Level-0 pixels per pixel of each level, (y, x).

    A level of floor(n / f) or ceil(n / f) pixels was made by the integer factor f with a cropped or padded last pixel;
    the ratio of the sizes (64.1026 for 312 of 20,000) would shift its far end by half a pixel.
    """
    out: list[tuple[float, float]] = []
    for level in levels:
        if level.added and out:
            y, x = out[-1]
            out.append((2 * y, 2 * x))
        else:
            out.append((_scale(levels[0].shape[0], level.shape[0]), _scale(levels[0].shape[1], level.shape[1])))
    return tuple(out)


def _scale(full: int, part: int) -> float:
    whole = max(1, round(full / part))
    return float(whole) if full // whole <= part <= -(-full // whole) else full / part


def grey(dtype: np.dtype[Any]) -> float:
    """Fill value of a tile that cannot be decoded: the middle of the type's range, 0.5 for floats."""
    return 0.5 if dtype.kind == "f" else (int(np.iinfo(dtype).max) + 1) // 2


class Pyramid:
    """Levels of one open slide.

    Parameters
    ----------
    name
        Name of the slide in warnings and errors.
    levels
        Finest first, each smaller than the one before. Levels are added at the coarse end and in large gaps.
    background
        Colour outside the slide, one value per channel.
    close
        Releases the file.
    cache
        Cache of decoded tiles; by default shared by all slides. Its key for this pyramid is `owner`.
    verify
        Called after each decoded tile; raises if the file has been replaced, so that its pixels are not used.

    Raises
    ------
    SlideError
        If a level is empty or not smaller than the one before.
    """

    def __init__(
        self,
        name: str,
        levels: Sequence[Level],
        background: tuple[float, ...],
        close: Callable[[], None],
        cache: TileCache = TILES,
        *,
        verify: Callable[[], None] = lambda: None,
    ) -> None:
        for level, finer in zip(levels, [None, *levels], strict=False):
            if min(level.shape) < 1:
                raise SlideError(f"{name}: a level of shape {level.shape} has no pixels.")
            if finer is not None and level.shape[0] * level.shape[1] >= finer.shape[0] * finer.shape[1]:
                raise SlideError(f"{name}: level of {level.shape[:2]} px is not smaller than {finer.shape[:2]} px.")
        self.name, self.background, self.cache = name, background, cache
        self.levels: list[Level] = []
        for level, coarser in itertools.zip_longest(levels, levels[1:]):
            self.levels.append(level)
            goal = SMALLEST if coarser is None else LARGEST_STEP * max(coarser.shape[:2])
            while max(self.levels[-1].shape[:2]) > goal:
                self.levels.append(ReducedLevel(self.levels[-1], self._reader(len(self.levels) - 1)))
        self.scales = scales(self.levels)
        self.bad_tiles: dict[tuple[int, int, int, int], str] = {}
        self._close, self._verify, self.owner = close, verify, next(_OWNERS)
        self._state, self._closed, self._active = threading.Condition(), False, 0

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Wait for active reads, then release the file and its cached tiles. Further calls do nothing."""
        with self._state:
            if self._closed:
                return
            self._closed = True
            self._state.wait_for(lambda: self._active == 0)
        self._close()
        self.cache.forget(self.owner)

    def damage(self) -> list[str]:
        """A sentence about the tiles that could not be decoded so far; empty if there are none."""
        bad = dict(self.bad_tiles)
        if not bad:
            return []
        (k, _, row, column), reason = next(iter(bad.items()))
        tiles = "1 tile" if len(bad) == 1 else f"{len(bad)} tiles"
        return [f"{tiles} cannot be decoded and shown grey; the first: ({row}, {column}) of level {k}: {reason}."]

    def read(self, k: int, box: Box, first: int = 0, count: int | None = None, out: Pixels | None = None) -> Pixels:
        """Channels [first, first + count) of a box in pixels of level `k`, into `out` if given; background outside.

        Raises
        ------
        SlideError
            After `close`, or if the file can no longer be read.
        """
        with self._reading():
            try:
                return self._read(k, box, first, self.levels[k].shape[2] - first if count is None else count, out)
            except OSError as error:
                raise SlideError(
                    f"slide {self.name} cannot be read any more: {error}. Is its disk or network share still there?"
                ) from error

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._state:
            if self._closed:
                raise SlideClosedError(f"slide {self.name} is closed; open it again to read it.")
            self._active += 1
        try:
            yield
        finally:
            with self._state:
                self._active -= 1
                self._state.notify_all()

    def _reader(self, k: int) -> Callable[[Box, int, int], Pixels]:
        return lambda box, first, count: self._read(k, box, first, count)

    def _read(self, k: int, box: Box, first: int, count: int, out: Pixels | None = None) -> Pixels:
        level = self.levels[k]
        if out is None:
            out = np.empty((box.height, box.width, count), level.dtype)
        inside = box.intersection(Box(0, 0, *level.shape[:2]))
        if inside.area != box.area:
            out[:] = np.asarray(self.background[first : first + count]).astype(level.dtype)
        if not inside.area:
            return out
        (th, tw), n = level.tile, level.samples
        top, left, bottom, right = inside.y, inside.x, inside.y1, inside.x1
        for plane in range(first // n, -(-(first + count) // n)):
            c0, c1 = max(first, plane * n), min(first + count, (plane + 1) * n)
            target = out if c1 - c0 == count else out[..., c0 - first : c1 - first]
            for row in range(top // th, -(-bottom // th)):
                y0, y1 = max(top, row * th), min(bottom, (row + 1) * th)
                for column in range(left // tw, -(-right // tw)):
                    x0, x1 = max(left, column * tw), min(right, (column + 1) * tw)
                    tile = self._tile(k, plane, row, column)
                    part = tile[y0 - row * th : y1 - row * th, x0 - column * tw : x1 - column * tw]
                    if c1 - c0 != n:
                        part = part[..., c0 - plane * n : c1 - plane * n]
                    target[y0 - box.y : y1 - box.y, x0 - box.x : x1 - box.x] = part
        return out

    def _tile(self, k: int, plane: int, row: int, column: int) -> Pixels:
        level, key = self.levels[k], (k, plane, row, column)
        if level.cached:
            tile = self.cache.get(self.owner, key)
            if tile is not None:
                return tile
        try:
            tile = self._decoded(level, plane, row, column)
            _, _, h, w = level.extent(row, column)
            if tile.shape[0] < h or tile.shape[1] < w or tile.shape[2] != level.samples:
                raise TileError(f"decoded to {tile.shape} {tile.dtype}, expected up to {level.tile} {level.dtype}")
        except TileLeftOutError:
            tile = self._from_finer(k, plane, level.extent(row, column))
        except TileError as error:
            return self._bad_tile(key, error)
        if level.cached:
            self.cache.put(self.owner, key, tile)
        return tile

    def _from_finer(self, k: int, plane: int, box: Box) -> Pixels:
        """Pixels of a level, as the area means of the next finer one."""
        steps = [a / b for a, b in zip(self.scales[k], self.scales[k - 1], strict=True)]
        y, x = axis(box.y, box.y1, steps[0]), axis(box.x, box.x1, steps[1])
        samples, level = self.levels[k].samples, self.levels[k - 1]
        read = self._reader(k - 1)
        return apply(with_edges(lambda b: read(b, plane * samples, samples), level.shape, y.source, x.source), y, x)

    def _decoded(self, level: Level, plane: int, row: int, column: int) -> Pixels:
        """Decode a tile, then verify that it came from the file that was opened; checking before would leave a race."""
        try:
            return level.decode(plane, row, column)
        finally:
            self._verify()

    def _bad_tile(self, key: tuple[int, int, int, int], error: TileError) -> Pixels:
        k, _, row, column = key
        level = self.levels[k]
        with self._state:
            first = not self.bad_tiles
            self.bad_tiles[key] = str(error)
        if first:
            warnings.warn(
                f"{self.name}: tile ({row}, {column}) of level {k} cannot be decoded ({error}); it is shown grey.",
                SlideWarning,
                stacklevel=2,
            )
        _, _, h, w = level.extent(row, column)
        return np.full((h, w, level.samples), grey(level.dtype), level.dtype)
