"""Regions of a frame out of a pyramid: the best level, resampled in absolute coordinates, in bounded memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.slides import resample

if TYPE_CHECKING:
    from napari_sparseseg.slides.pyramid import Pyramid

Pixels = np.ndarray[Any, np.dtype[Any]]
COARSER = 1.05
"""A level may be this much coarser than what is asked for: 5 % is not seen, the next finer level costs up to 16 x."""
_BLOCK = (1024, 4096)
"""Source pixels per side that are held at once while resampling: four stored tiles, but within this. Strips and large
chunks would else be decoded again for every block beside."""


def read_region(pyramid: Pyramid, region: Box, frame: Frame) -> Pixels:
    """`Slide.read_region` on a bare pyramid."""
    k = best_level(pyramid, frame)
    shape = pyramid.levels[k].shape
    scale = pyramid.scales[k]
    step = [_whole_step(d / s, n) for d, s, n in zip(frame.downsample, scale, shape[:2], strict=True)]
    if step == [1.0, 1.0] and shape[:2] == pyramid.levels[0].shape[:2]:
        return pyramid.read(k, region)
    out = np.empty((region.height, region.width, shape[2]), pyramid.levels[k].dtype)
    sides = (min(max(4 * n, _BLOCK[0]), _BLOCK[1]) for n in pyramid.levels[k].tile)
    rows, columns = (max(1, int(side / s)) for side, s in zip(sides, step, strict=True))
    for i in range(0, region.height, rows):
        y = resample.axis(region.y + i, region.y + min(i + rows, region.height), step[0])
        for j in range(0, region.width, columns):
            x = resample.axis(region.x + j, region.x + min(j + columns, region.width), step[1])
            part = resample.apply(_with_edges(pyramid, k, y.source, x.source), y, x)
            out[i : i + rows, j : j + columns] = part
    _blank_outside(out, region, frame, pyramid)
    return out


def read_mirrored(pyramid: Pyramid, region: Box, frame: Frame) -> Pixels:
    """`Slide.read_region` with ``mirrored`` on a bare pyramid."""
    starts, sizes = (region.y, region.x), (region.height, region.width)
    rows, columns = (
        _folded(start, size, _centres_inside(length, step))
        for start, size, length, step in zip(starts, sizes, pyramid.levels[0].shape, frame.downsample, strict=False)
    )
    if not region.area:
        return read_region(pyramid, region, frame)
    y, x = int(rows.min()), int(columns.min())
    inside = Box(y, x, int(rows.max()) + 1 - y, int(columns.max()) + 1 - x)
    pixels = read_region(pyramid, inside, frame)
    return pixels if inside == region else pixels[np.ix_(rows - y, columns - x)]


def best_level(pyramid: Pyramid, frame: Frame) -> int:
    """The coarsest level that is not coarser than the frame (by more than 5 %) on either axis."""
    fine = [
        k
        for k, scale in enumerate(pyramid.scales)
        if all(s <= d * COARSER for s, d in zip(scale, frame.downsample, strict=True))
    ]
    return max(fine, default=0)


def _whole_step(step: float, size: int) -> float:
    """A step so near a whole number that no pixel of the slide moves by 1/100 is that number: means need no weights."""
    whole = max(1.0, float(round(step)))
    return whole if abs(step - whole) * size < 0.01 * step else step


def _with_edges(pyramid: Pyramid, k: int, rows: tuple[int, int], columns: tuple[int, int]) -> Pixels:
    """Pixels of a level, those outside it repeated from its edge (what is beyond the slide is blanked later)."""
    wanted = (rows, columns)
    there = []
    for (start, stop), size in zip(wanted, pyramid.levels[k].shape[:2], strict=True):
        low = min(max(start, 0), size - 1)
        there.append((low, max(min(stop, size), low + 1)))
    (y0, y1), (x0, x1) = there
    pixels = pyramid.read(k, Box(y0, x0, y1 - y0, x1 - x0))
    for dim, (span, (low, high)) in enumerate(zip(wanted, there, strict=True)):
        if span != (low, high):
            pixels = np.take(pixels, np.clip(np.arange(*span), low, high - 1) - low, axis=dim)
    return pixels


def _centres_inside(length: int, step: float) -> int:
    """Frame pixels along an axis whose centre lies on the slide; at least one."""
    return max(1, math.ceil(length / step - 0.5))


def _folded(start: int, size: int, extent: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Indices within 0..extent of a run of pixels, mirrored at both ends as often as it takes."""
    around = np.arange(start, start + size) % (2 * extent)
    return np.where(around < extent, around, 2 * extent - 1 - around)


def _blank_outside(out: Pixels, region: Box, frame: Frame, pyramid: Pyramid) -> None:
    fill = np.asarray(pyramid.background).astype(out.dtype)
    for dim, (start, size) in enumerate(((region.y, region.height), (region.x, region.width))):
        centre = (start + np.arange(size) + 0.5) * frame.downsample[dim]
        outside = (centre < 0) | (centre >= pyramid.levels[0].shape[dim])
        if outside.any():
            out[(outside,) if dim == 0 else (slice(None), outside)] = fill
