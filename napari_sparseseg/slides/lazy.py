"""Levels as dask arrays that build in constant time and read windows without a graph (see D40)."""

from __future__ import annotations

import os
import threading
import uuid
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from napari_sparseseg.errors import SlideError
from napari_sparseseg.geometry import Box
from napari_sparseseg.slides.pyramid import SlideWarning, grey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_sparseseg.slides.level import Level
    from napari_sparseseg.slides.pyramid import Pyramid

_THREADS = "slide-window"
CHUNK = 768
"""Target side of a dask chunk in pixels. Smaller chunks cost dask more per view, larger ones decode tiles in excess."""


@cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix=_THREADS)


class LevelSource:
    """A window of one level as dask expects an array: shape, dtype, and slices that read.

    Parameters
    ----------
    pyramid, k
        The level.
    window
        Box in pixels of that level.
    channels
        First channel, and one past the last.
    flat
        Whether a single channel has shape (h, w) instead of (h, w, 1).
    shown
        Whether the window is only displayed: `read` then returns grey and issues a `SlideWarning` instead of raising.
    """

    def __init__(
        self, pyramid: Pyramid, k: int, window: Box, channels: tuple[int, int], *, flat: bool, shown: bool = False
    ) -> None:
        self._pyramid, self._k, self._window, self._channels = pyramid, k, window, channels
        self._flat, self._shown = flat, shown
        self.shape: tuple[int, ...] = (window.height, window.width, *([] if flat else [channels[1] - channels[0]]))
        self.ndim, self.dtype = len(self.shape), pyramid.levels[k].dtype

    def part(self, index: tuple[slice, ...]) -> LevelSource:
        """A smaller window; reads nothing. Slices must have a step of 1."""
        (y0, y1, _), (x0, x1, _), *rest = (s.indices(n) for s, n in zip(index, self.shape, strict=True))
        first = self._channels[0]
        channels = (first + rest[0][0], first + rest[0][1]) if rest else self._channels
        window = Box(self._window.y + y0, self._window.x + x0, y1 - y0, x1 - x0)
        return LevelSource(self._pyramid, self._k, window, channels, flat=self._flat, shown=self._shown)

    def to_show(self) -> LevelSource:
        """The same window with `shown`."""
        return LevelSource(self._pyramid, self._k, self._window, self._channels, flat=self._flat, shown=True)

    def __getitem__(self, index: tuple[Any, ...]) -> np.ndarray[Any, np.dtype[Any]]:
        spans = [
            range(*i.indices(n)) if isinstance(i, slice) else range(i, i + 1)
            for i, n in zip(index, self.shape, strict=True)
        ]
        steps = tuple(slice(None, None, i.step) if isinstance(i, slice) else 0 for i in index)
        part = self.part(tuple(slice(min(r[0], r[-1]), max(r[0], r[-1]) + 1) if r else slice(0, 0) for r in spans))
        first, last = part._channels
        pixels = self._pyramid.read(self._k, part._window, first, last - first)
        return (pixels[..., 0] if self._flat else pixels)[steps]

    def read(self) -> np.ndarray[Any, np.dtype[Any]]:
        """The whole window, its rows of tiles decoded by several threads.

        Raises
        ------
        SlideError
            If the window cannot be read and is not `shown`.
        """
        try:
            return self._read()
        except SlideError as error:
            if not self._shown:
                raise
            # an exception here would reach napari's drawing: a traceback at every move, and a frozen view
            warnings.warn(f"{error} Showing a grey placeholder.", SlideWarning, stacklevel=3)
            return np.full(self.shape, grey(self.dtype), self.dtype)

    def _read(self) -> np.ndarray[Any, np.dtype[Any]]:
        (first, last), (top, left, height, width) = self._channels, self._window
        out = np.empty((height, width, last - first), self.dtype)
        step = self._pyramid.levels[self._k].tile[0]
        edges = [top, *range(top - top % step + step, top + height, step), top + height]

        def band(y0: int, y1: int) -> None:
            self._pyramid.read(self._k, Box(y0, left, y1 - y0, width), first, last - first, out[y0 - top : y1 - top])

        # a reader thread must not wait for other reader threads
        each = map if threading.current_thread().name.startswith(_THREADS) else _readers().map
        list(each(band, edges[:-1], edges[1:]))
        return out[..., 0] if self._flat else out


class LevelArray(da.Array):  # type: ignore[misc]  # dask has no types
    """A dask array over a `LevelSource`. Plain slices stay `LevelArray`s, and numpy conversion bypasses the graph."""

    source: LevelSource

    def __getitem__(self, index: Any) -> Any:
        key = index if isinstance(index, tuple) else (index,)
        if Ellipsis not in key and all(isinstance(s, slice) and s.step in (None, 1) for s in key):
            key = (*key, *[slice(None)] * (self.ndim - len(key)))
            if len(key) == self.ndim:
                part = self.source.part(key)
                if min(part.shape) > 0:
                    chunks = tuple(_clipped(sizes, s) for sizes, s in zip(self.chunks, key, strict=True))
                    return _array(part, chunks)
        return super().__getitem__(index)

    def __array__(self, dtype: Any = None, copy: bool | None = None, **_: Any) -> np.ndarray[Any, np.dtype[Any]]:
        del copy
        return np.asarray(self.source.read(), dtype=dtype)


def _chunks(level: Level) -> tuple[int, int]:
    (th, tw), (h, w, _) = level.tile, level.shape
    return min(max(1, CHUNK // th) * th, h), min(max(1, CHUNK // tw) * tw, w)


def _clipped(sizes: tuple[int, ...], part: slice) -> tuple[int, ...]:
    """Chunk sizes along an axis, clipped to a part of it."""
    ends = list(accumulate(sizes))
    start, stop, _ = part.indices(ends[-1])
    edges = [start, *(e for e in ends if start < e < stop), stop]
    return tuple(b - a for a, b in pairwise(edges))


def _array(source: LevelSource, chunks: tuple[Any, ...]) -> LevelArray:
    meta, name = np.empty((0,) * source.ndim, source.dtype), f"slide-{uuid.uuid4().hex}"
    # inline_array: dask would otherwise walk the graph of the whole level for each slice
    plain = da.from_array(source, chunks=chunks, name=name, asarray=False, fancy=False, inline_array=True, meta=meta)
    array: LevelArray = LevelArray(plain.dask, plain.name, plain.chunks, meta=meta)
    array.source = source
    return array


def dask_levels(pyramid: Pyramid, *, interleaved: bool = False, channel: int | None = None) -> tuple[Any, ...]:
    """One dask array per level: (h, w, C), or (h, w) of a single `channel`.

    Parameters
    ----------
    pyramid
        The levels.
    interleaved
        Whether all channels share a chunk (RGB); otherwise each channel has its own.
    channel
        The only channel to read; the others are not decoded if the file stores them separately.
    """
    flat = channel is not None
    arrays = []
    for k, level in enumerate(pyramid.levels):
        h, w, count = level.shape
        source = LevelSource(
            pyramid, k, Box(0, 0, h, w), (0, count) if channel is None else (channel, channel + 1), flat=flat
        )
        arrays.append(_array(source, (*_chunks(level), *([] if flat else [count if interleaved else 1]))))
    return tuple(arrays)


def shown_levels(levels: Sequence[LevelArray]) -> tuple[Any, ...]:
    """The same levels for display: a window that cannot be read is grey, with a `SlideWarning`."""
    return tuple(_array(v.source.to_show(), v.chunks) for v in levels)
