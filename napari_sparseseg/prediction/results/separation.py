"""Separate objects that touch: a region of one class is cut at its waists, along watersheds of its inner distance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

LARGEST = 512
"""Side in pixels of the largest region that is cut; larger ones are left whole. What is meant are nuclei and glands."""

_SHEET = 1 << 22
"""Pixels of regions, with their boxes, that are cut at a time."""


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
    that is smaller by `depth` than those of either part. The image's edge is a border too. The line takes the class
    that surrounds most of the region; 0 where none does. Each region is cut by itself, so the result does not depend
    on the window.

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
    width = window.shape[1]
    for class_id in classes:
        numbers, wanted, ends = _around(window, class_id, inner, inside, largest)
        for regions in _groups(wanted, ends):
            sheet, pixels, places = _laid_out(numbers, regions, ends)
            lines = _lines(sheet, depth, spacing).ravel()[places]
            if not lines.any():
                continue
            of = numbers.ravel()[pixels]
            fill = _surrounding(window, numbers, pixels[np.isin(of, of[lines])])
            y, x = np.divmod(pixels[lines], width)
            here = (y >= inner.y) & (y < inner.y1) & (x >= inner.x) & (x < inner.x1)
            out[y[here] - inner.y, x[here] - inner.x] = fill[numbers[y[here], x[here]]]
    return out


def _around(
    window: NDArray[np.uint8], class_id: int, inner: Box, inside: tuple[bool, bool, bool, bool], largest: int
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Numbered regions of a class, the numbers of those that are to be cut, and the ends (y, y1, x, x1) of all.

    To be cut are those that reach into `inner`, lie wholly in the window and are not too large.
    """
    mask = window == class_id
    if not mask[inner.slices()].any():
        return np.zeros(window.shape, np.int32), np.zeros(0, np.int64), np.zeros((0, 4), np.int64)
    numbers, count = ndimage.label(mask)
    wanted = np.zeros(count + 1, bool)
    wanted[numbers[inner.slices()].ravel()] = True
    for line, cut in zip((numbers[0], numbers[-1], numbers[:, 0], numbers[:, -1]), inside, strict=True):
        if cut:
            wanted[line] = False
    ends = np.array([(0, 0, 0, 0), *((y.start, y.stop, x.start, x.stop) for y, x in ndimage.find_objects(numbers))])
    wanted &= (ends[:, 1] - ends[:, 0] <= largest) & (ends[:, 3] - ends[:, 2] <= largest)
    wanted[0] = False
    return numbers, np.flatnonzero(wanted), ends


def _groups(regions: NDArray[np.int64], ends: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Regions that fit on one sheet, from the highest to the lowest."""
    height, width = (ends[regions, k + 1] - ends[regions, k] + 1 for k in (0, 2))
    order = np.argsort(-height, kind="stable")
    sheet = np.cumsum((height * width)[order]) // _SHEET
    for k in np.unique(sheet):
        yield regions[order[sheet == k]]


def _laid_out(
    numbers: NDArray[np.int32], regions: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Regions moved together on a sheet, a pixel or more apart.

    Parameters
    ----------
    numbers, ends
        From `_around`.
    regions
        Those to lay out, from the highest to the lowest.

    Returns
    -------
    sheet
        Number of the region of each pixel, 0 between them.
    pixels, places
        Flat indices of the regions' pixels in `numbers`, and where they are on the sheet.
    """
    y, y1, x, x1 = ends[regions].T
    before = np.cumsum(x1 - x + 1) - (x1 - x + 1)
    side = max(int(np.sqrt(((y1 - y + 1) * (x1 - x + 1)).sum())), 1)
    shelf = before // side
    first = np.flatnonzero(np.diff(shelf, prepend=-1))
    top = np.cumsum((y1 - y + 1)[first]) - (y1 - y + 1)[first]
    row = 1 + np.repeat(top, np.diff(first, append=len(shelf)))
    column = 1 + before - shelf * side
    shape = int((row + y1 - y).max()) + 1, int((column + x1 - x).max()) + 1
    box = Box(int(y.min()), int(x.min()), int(y1.max() - y.min()), int(x1.max() - x.min()))
    part = numbers[box.slices()]
    chosen = np.zeros(len(ends), bool)
    chosen[regions] = True
    py, px = np.nonzero(chosen[part])
    region = part[py, px]
    move = np.zeros((2, len(ends)), np.int64)
    move[:, regions] = row - y + box.y, column - x + box.x
    places = (py + move[0, region]) * shape[1] + px + move[1, region]
    sheet = np.zeros(shape, np.int32)
    sheet.ravel()[places] = region
    return sheet, (py + box.y) * numbers.shape[1] + px + box.x, places


def _lines(sheet: NDArray[np.int32], depth: float, spacing: tuple[float, float]) -> NDArray[np.bool_]:
    """Pixels of the lines between the parts of each region of a sheet; regions do not touch."""
    from skimage.morphology import local_maxima
    from skimage.segmentation import watershed

    lines = np.zeros(sheet.shape, bool)
    distance = ndimage.distance_transform_edt(sheet, sampling=spacing)
    tops = local_maxima(distance, connectivity=1) & (sheet > 0)
    markers, count = ndimage.label(tops)
    owner = np.zeros(count + 1, np.int64)
    owner[markers[tops]] = sheet[tops]
    several = np.bincount(owner[1:], minlength=int(sheet.max()) + 1) > 1
    mask = several[sheet]
    if not mask.any():
        return lines
    # Pixels of one height would be flooded in an order that depends on the rest of the sheet: each gets a height of
    # its own, as whole numbers that a float64 holds.
    relief = np.zeros(sheet.shape)
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


def _surrounding(window: NDArray[np.uint8], numbers: NDArray[np.int32], pixels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """For each region the class of most of the pixels at its sides; the lowest id on a tie, 0 where there is none.

    Parameters
    ----------
    window
        Class ids.
    numbers
        Regions of one class.
    pixels
        Flat indices of all pixels of the regions that are asked for.
    """
    (height, width), keys = window.shape, []
    y, x = np.divmod(pixels, width)
    region, own = numbers.ravel()[pixels].astype(np.int64), window.ravel()[pixels]
    for there, step in ((y > 0, -width), (y < height - 1, width), (x > 0, -1), (x < width - 1, 1)):
        beside = window.ravel()[(pixels + step)[there]]
        border = (beside != own[there]) & (beside > 0)
        keys.append(region[there][border] * 256 + beside[border])
    found, count = np.unique(np.concatenate(keys), return_counts=True)
    region, neighbour = np.divmod(found, 256)
    order = np.lexsort((neighbour, -count, region))
    first = order[np.unique(region[order], return_index=True)[1]]
    fill = np.zeros(int(numbers.max()) + 1, np.uint8)
    fill[region[first]] = neighbour[first]
    return fill
