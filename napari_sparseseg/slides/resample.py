"""Resampling along one axis in absolute coordinates: the value of an output pixel depends on its index alone.

Output pixel i covers the source interval [i * step, (i + 1) * step). Shrinking (step >= 1) takes the exact area mean of
that interval; enlarging takes the linear interpolation at its centre. Sums run over the taps in a fixed order, pixel by
pixel, so two overlapping regions agree to the last bit wherever they begin.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

Pixels = np.ndarray[Any, np.dtype[Any]]


class Axis(NamedTuple):
    """Taps of one axis: output j = sum over t of weights[t, j] * source[first[j] + t]; or a plain mean of `block`."""

    source: tuple[int, int]
    """Source pixels [start, stop) that are needed; they may stick out of the image."""
    first: np.ndarray[Any, np.dtype[np.int64]]
    """Per output pixel: its first source pixel, counted from ``source[0]``."""
    weights: np.ndarray[Any, np.dtype[np.float32]]
    """(taps, outputs)."""
    block: int
    """n > 0: the mean of n whole source pixels (n = 1: a copy); 0: `weights` apply."""


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
    """Resample (h, w, C) that holds exactly ``y.source`` x ``x.source``; same dtype, integers rounded half up."""
    if y.block == 1 and x.block == 1:
        return pixels
    dtype = pixels.dtype
    exact = dtype.kind == "u" and dtype.itemsize <= 2 and y.block and x.block and y.block * x.block < 2**16
    if exact:
        n = y.block * x.block
        wide = np.uint16 if np.iinfo(dtype).max * n + n // 2 < 2**16 else np.uint32  # half the memory to move
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
    # Along rows channel by channel: numpy would else run its innermost loop over three channels alone, twice as slow.
    for c in [slice(None)] if dim == 0 else range(channels):
        parts = [pixels[k::n] if dim == 0 else pixels[:, k::n, c] for k in range(n)]
        target = total[..., c]
        np.add(parts[0], parts[1], out=target, dtype=dtype)
        for part in parts[2:]:
            target += part
    return total
