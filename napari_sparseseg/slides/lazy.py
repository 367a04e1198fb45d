"""Levels as dask arrays, in the one form that costs nothing to build and little to slice.

Measured on a 100,000 x 100,000 slide: `from_array(inline_array=True)` builds in 1 ms and slices a screen in 12 ms with
chunks of 768 to 1024; not inline, each slice walks the whole graph (178 ms with the file's own tiles). So a channel
gets arrays of its own too, instead of slices of the arrays of all channels.

A window of a level that is wanted as numpy, which is all a viewer does, needs no graph at all: its rows of tiles are
read by some threads straight into the result (90 pans and zooms in napari took 1.6 times the CPU time of a bare array
through dask's graph, and take 1.0 times so).
"""

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
"""Smaller chunks cost dask more per screen, larger ones decode more tiles beside it."""


@cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix=_THREADS)


class LevelSource:
    """A window of one level as dask wants it: shape, dtype, and slices that read.

    Parameters
    ----------
    pyramid, k
        The level.
    window
        In its pixels; the whole level unless given.
    channels
        First and one past the last; with `flat`, one channel as (h, w), else (h, w, C).
    shown
        Only looked at: of what cannot be read, `read` gives grey and a `SlideWarning`.
    """

    def __init__(
        self, pyramid: Pyramid, k: int, window: Box, channels: tuple[int, int], *, flat: bool, shown: bool = False
    ) -> None:
        self._pyramid, self._k, self._window, self._channels = pyramid, k, window, channels
        self._flat, self._shown = flat, shown
        self.shape: tuple[int, ...] = (window.height, window.width, *([] if flat else [channels[1] - channels[0]]))
        self.ndim, self.dtype = len(self.shape), pyramid.levels[k].dtype

    def part(self, index: tuple[slice, ...]) -> LevelSource:
        """A smaller window; reads nothing. Slices have steps of 1."""
        (y0, y1, _), (x0, x1, _), *rest = (s.indices(n) for s, n in zip(index, self.shape, strict=True))
        first = self._channels[0]
        channels = (first + rest[0][0], first + rest[0][1]) if rest else self._channels
        window = Box(self._window.y + y0, self._window.x + x0, y1 - y0, x1 - x0)
        return LevelSource(self._pyramid, self._k, window, channels, flat=self._flat, shown=self._shown)

    def to_show(self) -> LevelSource:
        """The same with `shown`."""
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
        """All of the window, its rows of tiles by several threads, none of which waits for another.

        Raises
        ------
        SlideError
            Where it cannot be read and is not only `shown`.
        """
        try:
            return self._read()
        except SlideError as error:
            if not self._shown:
                raise
            # An exception here would reach napari's drawing: a traceback at every move, and the view would stand still.
            warnings.warn(f"{error} Meanwhile it is shown grey.", SlideWarning, stacklevel=3)
            return np.full(self.shape, grey(self.dtype), self.dtype)

    def _read(self) -> np.ndarray[Any, np.dtype[Any]]:
        (first, last), (top, left, height, width) = self._channels, self._window
        out = np.empty((height, width, last - first), self.dtype)
        step = self._pyramid.levels[self._k].tile[0]
        edges = [top, *range(top - top % step + step, top + height, step), top + height]

        def band(y0: int, y1: int) -> None:
            self._pyramid.read(self._k, Box(y0, left, y1 - y0, width), first, last - first, out[y0 - top : y1 - top])

        each = map if threading.current_thread().name.startswith(_THREADS) else _readers().map
        list(each(band, edges[:-1], edges[1:]))
        return out[..., 0] if self._flat else out


class LevelArray(da.Array):  # type: ignore[misc]  # dask has no types
    """A dask array over a `LevelSource`; plain slices of it are such again, and numpy gets its pixels without dask."""

    source: LevelSource

    def __getitem__(self, index: Any) -> Any:
        key = index if isinstance(index, tuple) else (index,)
        if Ellipsis not in key and all(isinstance(s, slice) and s.step in (None, 1) for s in key):
            key = (*key, *[slice(None)] * (self.ndim - len(key)))
            if len(key) == self.ndim:
                part = self.source.part(key)
                if min(part.shape) > 0:
                    chunks = tuple(_cut(sizes, s) for sizes, s in zip(self.chunks, key, strict=True))
                    return _array(part, chunks, f"slide-{uuid.uuid4().hex}")
        return super().__getitem__(index)

    def __array__(self, dtype: Any = None, copy: bool | None = None, **_: Any) -> np.ndarray[Any, np.dtype[Any]]:
        del copy
        return np.asarray(self.source.read(), dtype=dtype)


def _chunks(level: Level) -> tuple[int, int]:
    (th, tw), (h, w, _) = level.tile, level.shape
    return min(max(1, CHUNK // th) * th, h), min(max(1, CHUNK // tw) * tw, w)


def _cut(sizes: tuple[int, ...], part: slice) -> tuple[int, ...]:
    """Sizes of the chunks of a part: cut where those of the whole are."""
    ends = list(accumulate(sizes))
    start, stop, _ = part.indices(ends[-1])
    edges = [start, *(e for e in ends if start < e < stop), stop]
    return tuple(b - a for a, b in pairwise(edges))


def _array(source: LevelSource, chunks: tuple[Any, ...], name: str) -> LevelArray:
    meta = np.empty((0,) * source.ndim, source.dtype)
    plain = da.from_array(source, chunks=chunks, name=name, asarray=False, fancy=False, inline_array=True, meta=meta)
    array: LevelArray = LevelArray(plain.dask, plain.name, plain.chunks, meta=meta)
    array.source = source
    return array


def _whole(pyramid: Pyramid, k: int, channel: int | None = None) -> LevelSource:
    h, w, count = pyramid.levels[k].shape
    channels = (0, count) if channel is None else (channel, channel + 1)
    return LevelSource(pyramid, k, Box(0, 0, h, w), channels, flat=channel is not None)


def dask_levels(pyramid: Pyramid, *, interleaved: bool) -> tuple[Any, ...]:
    """One dask array (h, w, C) per level.

    Parameters
    ----------
    pyramid
        The levels.
    interleaved
        Whether all channels are shown together (RGB); otherwise each channel is a chunk of its own.
    """
    token = uuid.uuid4().hex
    return tuple(
        _array(_whole(pyramid, k), (*_chunks(v), v.shape[2] if interleaved else 1), f"slide-{token}-{k}")
        for k, v in enumerate(pyramid.levels)
    )


def shown_levels(levels: Sequence[LevelArray]) -> tuple[Any, ...]:
    """The same levels for a viewer: a plain window that cannot be read is grey, with a `SlideWarning`."""
    return tuple(_array(v.source.to_show(), v.chunks, f"shown-{uuid.uuid4().hex}") for v in levels)


def dask_channel(pyramid: Pyramid, channel: int) -> tuple[Any, ...]:
    """One dask array (h, w) per level for one channel."""
    token = uuid.uuid4().hex
    return tuple(
        _array(_whole(pyramid, k, channel), _chunks(v), f"slide-{token}-{channel}-{k}")
        for k, v in enumerate(pyramid.levels)
    )
