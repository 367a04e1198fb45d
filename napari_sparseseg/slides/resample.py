"""Regions of a slide at any resolution, resampled in absolute coordinates, in bounded memory.

Output pixel i covers the source interval [i * step, (i + 1) * step). Shrinking (step >= 1) takes the exact area mean of
that interval; enlarging takes the linear interpolation at its centre. The value of a pixel depends on its index alone,
and its taps are summed in a fixed order, so overlapping regions agree to the last bit.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from napari_sparseseg.geometry import Box, Frame

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from napari_sparseseg.slides.pyramid import Pyramid

Pixels = np.ndarray[Any, np.dtype[Any]]
COARSER = 1.05
"""A level may be up to 5 % coarser than requested: that is invisible, and the next finer one costs up to 16 times."""
_BLOCK = (1024, 4096)
"""Source pixels per side of a block: four stored tiles, within these limits. Smaller blocks would decode strips and
large chunks again for each neighbouring block."""


class Axis(NamedTuple):
    """Taps along one axis: output j = sum over t of weights[t, j] * source[first[j] + t], or a mean of `block`."""

    source: tuple[int, int]
    """Source pixels [start, stop) required; may extend past the image."""
    first: np.ndarray[Any, np.dtype[np.int64]]
    """First source pixel of each output pixel, relative to ``source[0]``."""
    weights: np.ndarray[Any, np.dtype[np.float32]]
    """(taps, outputs)."""
    block: int
    """n > 0: mean of n whole source pixels (n = 1: a copy); 0: use `weights`."""


def axis(start: int, stop: int, step: float) -> Axis:
    """Taps for output pixels [start, stop) at `step` source pixels each."""
    index = np.arange(start, stop)
    block = round(step) if step == round(step) else 0
    if block:
        first = index * block
        return Axis((start * block, stop * block), first - start * block, np.empty((0, 0), np.float32), block)
    if step > 1:
        low, high = index * step, (index + 1) * step
        first = np.floor(low).astype(np.int64)
        taps = math.ceil(step) + 1
        pixel = first + np.arange(taps)[:, None]
        weights = np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None) / step
    else:
        centre = (index + 0.5) * step - 0.5
        first = np.floor(centre).astype(np.int64)
        taps = 2
        weights = np.stack([1 - (centre - first), centre - first])
    begin = int(first[0])
    return Axis((begin, int(first[-1]) + taps), first - begin, weights.astype(np.float32), 0)


def apply(pixels: Pixels, y: Axis, x: Axis) -> Pixels:
    """Resample the (h, w, C) pixels of ``y.source`` x ``x.source``; same dtype, integers rounded half up."""
    if y.block == 1 and x.block == 1:
        return pixels
    dtype = pixels.dtype
    exact = dtype.kind == "u" and dtype.itemsize <= 2 and y.block and x.block and y.block * x.block < 2**16
    if exact:
        n = y.block * x.block
        wide = np.uint16 if np.iinfo(dtype).max * n + n // 2 < 2**16 else np.uint32  # half the memory traffic
        total = _block_sum(_block_sum(pixels, y.block, 0, wide), x.block, 1, wide)
        total += wide(n // 2)
        total //= wide(n)
        return total.astype(dtype)
    out = _one_axis(_one_axis(pixels.astype(np.float64 if dtype.itemsize > 2 else np.float32), y, 0), x, 1)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        out = np.clip(np.floor(out + 0.5), info.min, info.max)
    return out.astype(dtype)


def _one_axis(pixels: Pixels, taps: Axis, dim: int) -> Pixels:
    if taps.block == 1:
        return pixels
    if taps.block:
        total = _block_sum(pixels, taps.block, dim, pixels.dtype)
        total /= taps.block
        return total
    out = None
    for t, weight in enumerate(taps.weights):
        part = np.take(pixels, taps.first + t, axis=dim)
        part *= weight[:, None, None] if dim == 0 else weight[None, :, None]
        if out is None:
            out = part
        else:
            out += part
    return out if out is not None else pixels


def _block_sum(pixels: Pixels, n: int, dim: int, dtype: Any) -> Pixels:
    if n == 1:
        return pixels.astype(dtype)
    h, w, channels = pixels.shape
    total: Pixels = np.empty((h // n, w, channels) if dim == 0 else (h, w // n, channels), dtype)
    # channel by channel along rows: numpy's inner loop would otherwise cover only three channels, twice as slow
    for c in [slice(None)] if dim == 0 else range(channels):
        parts = [pixels[k::n] if dim == 0 else pixels[:, k::n, c] for k in range(n)]
        target = total[..., c]
        np.add(parts[0], parts[1], out=target, dtype=dtype)
        for part in parts[2:]:
            target += part
    return total


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
        y = axis(region.y + i, region.y + min(i + rows, region.height), step[0])
        for j in range(0, region.width, columns):
            x = axis(region.x + j, region.x + min(j + columns, region.width), step[1])
            part = apply(with_edges(partial(pyramid.read, k), shape, y.source, x.source), y, x)
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
    if inside == region:
        return pixels
    # Rows first: they are copied whole. Both at once take several times as long.
    folded: Pixels = pixels[rows - y].take(columns - x, axis=1)
    return folded


def best_level(pyramid: Pyramid, frame: Frame) -> int:
    """The coarsest level that is not coarser than the frame (by more than 5 %) on either axis."""
    fine = [
        k
        for k, scale in enumerate(pyramid.scales)
        if all(s <= d * COARSER for s, d in zip(scale, frame.downsample, strict=True))
    ]
    return max(fine, default=0)


def _whole_step(step: float, size: int) -> float:
    """Round a step that is so near an integer that no pixel of the slide moves by 1/100: means then need no weights."""
    whole = max(1.0, float(round(step)))
    return whole if abs(step - whole) * size < 0.01 * step else step


def with_edges(
    read: Callable[[Box], Pixels], shape: Sequence[int], rows: tuple[int, int], columns: tuple[int, int]
) -> Pixels:
    """Pixels of a level, padded by repeating its edge (`_blank_outside` later fills what lies off the slide)."""
    wanted = (rows, columns)
    there = []
    for (start, stop), size in zip(wanted, shape[:2], strict=True):
        low = min(max(start, 0), size - 1)
        there.append((low, max(min(stop, size), low + 1)))
    (y0, y1), (x0, x1) = there
    pixels = read(Box(y0, x0, y1 - y0, x1 - x0))
    for dim, (span, (low, high)) in enumerate(zip(wanted, there, strict=True)):
        if span != (low, high):
            pixels = np.take(pixels, np.clip(np.arange(*span), low, high - 1) - low, axis=dim)
    return pixels


def _centres_inside(length: int, step: float) -> int:
    """Number of frame pixels along an axis whose centre lies on the slide; at least one."""
    return max(1, math.ceil(length / step - 0.5))


def _folded(start: int, size: int, extent: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Indices in [0, extent) of a run of pixels, mirrored at both ends."""
    around = np.arange(start, start + size) % (2 * extent)
    return np.where(around < extent, around, 2 * extent - 1 - around)


def _blank_outside(out: Pixels, region: Box, frame: Frame, pyramid: Pyramid) -> None:
    fill = np.asarray(pyramid.background).astype(out.dtype)
    for dim, (start, size) in enumerate(((region.y, region.height), (region.x, region.width))):
        centre = (start + np.arange(size) + 0.5) * frame.downsample[dim]
        outside = (centre < 0) | (centre >= pyramid.levels[0].shape[dim])
        if outside.any():
            out[(outside,) if dim == 0 else (slice(None), outside)] = fill
