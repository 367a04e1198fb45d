"""Separate objects that touch: a region of one class is cut at its waists, along watersheds of its inner distance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

LARGEST = 512
"""Side in pixels of the largest region that is cut; larger ones are left whole. What is meant are nuclei and glands."""


def cut_touching(
    window: NDArray[np.uint8],
    inner: Box,
    inside: tuple[bool, bool, bool, bool],
    classes: Sequence[int],
    *,
    depth: float,
    spacing: tuple[float, float],
    largest: int = LARGEST,
) -> NDArray[np.uint8]:
    """The inner part of a window with lines one pixel wide between objects that touch.

    A region is cut where it is narrower than on both sides: where the largest circles inside it there have a radius
    that is smaller by `depth` than those of either part. The line takes the class that surrounds most of the region;
    0 where none does. Each region is cut by itself, so the result does not depend on the window.

    Parameters
    ----------
    window
        uint8 class ids: `inner`, and all of what lies within `largest` + 1 pixels of it in the image.
    inner
        In pixels of the window.
    inside
        Whether the image goes on beyond the window's top, bottom, left and right side.
    classes
        Ids whose regions are cut.
    depth
        In the unit of `spacing`.
    spacing
        Size of a pixel (y, x).
    largest
        Regions that are wider or higher, in pixels, are left whole.
    """
    out = window[inner.slices()].copy()
    for class_id in classes:
        part = _around(window, class_id, inner, inside, largest)
        if part is None:
            continue
        numbers, wanted, box = part
        lines = _lines(numbers, wanted, depth, spacing)
        if lines.any():
            fill = _surrounding(window[box.slices()], numbers, class_id)
            target = box.intersection(inner)
            here = Box(target.y - box.y, target.x - box.x, target.height, target.width).slices()
            there = Box(target.y - inner.y, target.x - inner.x, target.height, target.width).slices()
            cut = lines[here]
            out[there][cut] = fill[numbers[here][cut]]
    return out


def _around(
    window: NDArray[np.uint8], class_id: int, inner: Box, inside: tuple[bool, bool, bool, bool], largest: int
) -> tuple[NDArray[np.int32], NDArray[np.bool_], Box] | None:
    """Numbered regions of a class, which of them are to be cut, and the box of the window that contains those.

    To be cut are those that reach into `inner`, lie wholly in the window and are not too large.
    """
    mask = window == class_id
    if not mask[inner.slices()].any():
        return None
    numbers, count = ndimage.label(mask)
    wanted = np.zeros(count + 1, bool)
    wanted[numbers[inner.slices()].ravel()] = True
    wanted[0] = False
    for line, cut in zip((numbers[0], numbers[-1], numbers[:, 0], numbers[:, -1]), inside, strict=True):
        if cut:
            wanted[line] = False
    ends = np.array([(y.start, y.stop, x.start, x.stop) for y, x in ndimage.find_objects(numbers)])
    fits = (ends[:, 1] - ends[:, 0] <= largest) & (ends[:, 3] - ends[:, 2] <= largest)
    wanted[1:] &= fits
    if not wanted.any():
        return None
    ends = ends[wanted[1:]]
    y, x = int(ends[:, 0].min()), int(ends[:, 2].min())
    box = Box(y, x, int(ends[:, 1].max()) - y, int(ends[:, 3].max()) - x)
    box = box.grown(1).intersection(Box(0, 0, *window.shape))
    return numbers[box.slices()], wanted, box


def _lines(
    numbers: NDArray[np.int32], wanted: NDArray[np.bool_], depth: float, spacing: tuple[float, float]
) -> NDArray[np.bool_]:
    """Pixels of the lines between the parts of the regions that are to be cut."""
    from skimage.morphology import local_maxima
    from skimage.segmentation import watershed

    lines = np.zeros(numbers.shape, bool)
    if (numbers > 0).all():  # one region is the whole image: there is no border to measure the distance to
        return lines
    distance = ndimage.distance_transform_edt(numbers > 0, sampling=spacing)
    tops = local_maxima(distance, connectivity=1) & wanted[numbers]
    markers, count = ndimage.label(tops)
    owner = np.zeros(count + 1, np.int64)
    owner[markers[tops]] = numbers[tops]
    several = np.bincount(owner[1:], minlength=len(wanted)) > 1
    mask = several[numbers] & (numbers > 0)
    if not mask.any():
        return lines
    # Pixels of one height would be flooded in an order that depends on the rest of the window: each gets a height of
    # its own, as whole numbers that a float64 holds.
    relief = np.zeros(numbers.shape)
    steps = np.rint(distance[mask] * (2.0**17 / min(spacing)))
    relief[mask] = np.arange(len(steps)) - steps * 2.0**24
    basins = watershed(relief, markers * mask, connectivity=1, mask=mask)
    peaks = np.zeros(count + 1)
    peaks[markers[tops]] = distance[tops]
    root = _parts(basins, distance, peaks, depth)[basins]
    lines[:, :-1] |= (root[:, :-1] != root[:, 1:]) & mask[:, :-1] & mask[:, 1:]
    lines[:-1] |= (root[:-1] != root[1:]) & mask[:-1] & mask[1:]
    return lines


def _parts(
    basins: NDArray[np.int32], distance: NDArray[np.float64], peaks: NDArray[np.float64], depth: float
) -> NDArray[np.int64]:
    """The part that each basin belongs to: basins are one where the lower peak rises less than `depth` above the pass.

    Passes are taken from the highest down, so that a basin joins the one that it would flow into first.
    """
    n = len(peaks)
    keys, heights = [], []
    for a, b, one, other in (
        (basins[:, :-1], basins[:, 1:], distance[:, :-1], distance[:, 1:]),
        (basins[:-1], basins[1:], distance[:-1], distance[1:]),
    ):
        border = (a != b) & (a > 0) & (b > 0)
        keys.append(np.minimum(a[border], b[border]).astype(np.int64) * n + np.maximum(a[border], b[border]))
        heights.append(np.minimum(one[border], other[border]))
    key, height = np.concatenate(keys), np.concatenate(heights)
    order = np.lexsort((-height, key))
    first = order[np.unique(key[order], return_index=True)[1]]
    ranked = first[np.lexsort((key[first], -height[first]))]
    parent, top = list(range(n)), peaks.tolist()

    def find(k: int) -> int:
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    for pair, level in zip(key[ranked].tolist(), height[ranked].tolist(), strict=True):
        left, right = find(pair // n), find(pair % n)
        if left != right and min(top[left], top[right]) - level < depth:
            low, high = (left, right) if (top[left], -left) < (top[right], -right) else (right, left)
            parent[low] = high
    return np.array([find(k) for k in range(n)])


def _surrounding(window: NDArray[np.uint8], numbers: NDArray[np.int32], class_id: int) -> NDArray[np.uint8]:
    """For each region the class of most of the pixels at its sides; the lowest id on a tie, 0 where there is none."""
    keys = []
    for numbered, beside in (
        (numbers[:, :-1], window[:, 1:]), (numbers[:, 1:], window[:, :-1]),
        (numbers[:-1], window[1:]), (numbers[1:], window[:-1]),
    ):  # fmt: skip
        border = (numbered > 0) & (beside != class_id) & (beside > 0)
        keys.append(numbered[border].astype(np.int64) * 256 + beside[border])
    found, count = np.unique(np.concatenate(keys), return_counts=True)
    region, neighbour = np.divmod(found, 256)
    order = np.lexsort((neighbour, -count, region))
    first = order[np.unique(region[order], return_index=True)[1]]
    fill = np.zeros(int(numbers.max()) + 1, np.uint8)
    fill[region[first]] = neighbour[first]
    return fill
