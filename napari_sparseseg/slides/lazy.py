"""Levels as dask arrays, in the one form that costs nothing to build and little to slice.

Measured on a 100,000 x 100,000 slide: `from_array(inline_array=True)` builds in 1 ms and slices a screen in 12 ms with
chunks of 1024; not inline, each slice walks the whole graph (178 ms with the file's own tiles).
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    from napari_sparseseg.slides.pyramid import Pyramid

CHUNK = 1024


class LevelSource:
    """One level as dask wants it: shape, dtype, and slices that read."""

    ndim = 3

    def __init__(self, pyramid: Pyramid, k: int) -> None:
        self._pyramid, self._k = pyramid, k
        self.shape, self.dtype = pyramid.levels[k].shape, pyramid.levels[k].dtype

    def __getitem__(self, index: tuple[slice, slice, slice]) -> np.ndarray[Any, np.dtype[Any]]:
        (y0, y1, _), (x0, x1, _), (c0, c1, _) = (s.indices(n) for s, n in zip(index, self.shape, strict=True))
        return self._pyramid.read(self._k, Box(y0, x0, y1 - y0, x1 - x0), c0, c1 - c0)


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
    out = []
    for k, level in enumerate(pyramid.levels):
        h, w, c = level.shape
        chunks = (
            *(min(max(1, CHUNK // t) * t, n) for t, n in zip(level.tile, (h, w), strict=True)),
            c if interleaved else 1,
        )
        out.append(
            da.from_array(
                LevelSource(pyramid, k),
                chunks=chunks,
                name=f"slide-{token}-{k}",
                asarray=False,
                inline_array=True,
                meta=np.empty((0, 0, 0), level.dtype),
            )
        )
    return tuple(out)
