"""Superpixels of a slide: the small patches of one colour that a click takes, by SLIC."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from cachetools import LRUCache
from scipy import ndimage

from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.prediction.snap import Grown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from napari_sparseseg.slides import Slide

TILE = 384
"""Side of what is cut up at once, in pixels of the level: 50 ms. Superpixels end at its border."""
SMALLEST, SIDE, LARGEST = 8, 24, 96
"""Side of a superpixel, in pixels of the level."""
COMPACTNESS = 20.0
"""For lightness from 0 to 100: the lower, the more the superpixels follow the colour."""
ROUNDS = 5
KEPT = 64


class Scale(NamedTuple):
    """Which superpixels: those at pixels of 2**level level-0 pixels, about `side` of these wide."""

    level: int
    side: int

    @classmethod
    def fitting(cls, level: int, width: float) -> Scale:
        """Superpixels about `width` level-0 pixels wide at a level, as far as that can be."""
        return cls(level, min(max(round(width / (1 << level)), SMALLEST), LARGEST))


class _Cut(NamedTuple):
    corner: tuple[int, int]
    labels: NDArray[np.int32]
    boxes: list[tuple[slice, slice] | None]


class Superpixels:
    """The superpixels of a slide. They depend on the slide and the scale alone, not on what is on screen. Any thread.

    Parameters
    ----------
    slide
        Of any kind; its channels count the same.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_sparseseg.slides.backends.array import ArraySlide
    >>> image = np.full((100, 100, 3), 240, np.uint8)
    >>> image[40:60, 40:60] = 60
    >>> (found,) = Superpixels(ArraySlide([image], mpp=None, name="a")).crossed(Scale(0, 20), [(50, 50)])
    >>> 300 < int(found.mask.sum()) < 500
    True
    """

    def __init__(self, slide: Slide) -> None:
        self._slide = slide
        self._cuts: LRUCache[tuple[Scale, int, int], _Cut] = LRUCache(KEPT)
        self._lock = threading.Lock()

    def known(self, scale: Scale, points: Iterable[tuple[float, float]]) -> bool:
        """Whether all superpixels under level-0 (y, x) points are there, so that `crossed` takes no time."""
        return all((scale, *tile) in self._cuts for tile in _tiles(self._inside(scale, points)))

    def crossed(self, scale: Scale, points: Iterable[tuple[float, float]]) -> list[Grown]:
        """The superpixels under level-0 (y, x) points, one for each; none outside the slide.

        Raises
        ------
        SlideError
            Where the slide cannot be read.
        """
        pixels = self._inside(scale, points)
        found = []
        for tile in _tiles(pixels):
            cut = self._cut(scale, *tile)
            own = pixels[(pixels // TILE == tile).all(axis=1)] - cut.corner
            for number in np.unique(cut.labels[own[:, 0], own[:, 1]]).tolist():
                at = cut.boxes[number - 1]
                if at is not None:
                    y, x = cut.corner[0] + at[0].start, cut.corner[1] + at[1].start
                    found.append(Grown(scale.level, y, x, cut.labels[at] == number))
        return found

    def _inside(self, scale: Scale, points: Iterable[tuple[float, float]]) -> NDArray[np.intp]:
        step = 1 << scale.level
        height, width = (-(-side // step) for side in self._slide.shape)
        pixels = np.floor(np.array(list(points), float).reshape(-1, 2) / step).astype(np.intp)
        return pixels[((pixels >= 0) & (pixels < (height, width))).all(axis=1)]

    def _cut(self, scale: Scale, row: int, column: int) -> _Cut:
        key = scale, row, column
        with self._lock:  # not held while cutting: the GUI thread reads what is known meanwhile
            cut = self._cuts.get(key)
        if cut is None:
            frame = Frame((float(1 << scale.level),) * 2)
            whole = frame.cover(Box(0, 0, *self._slide.shape))
            region = Box(row * TILE, column * TILE, TILE, TILE).intersection(whole)
            labels = cut_up(self._slide.read_region(region, frame), scale.side)
            cut = _Cut((region.y, region.x), labels, ndimage.find_objects(labels))
            with self._lock:
                self._cuts[key] = cut
        return cut


def _tiles(pixels: NDArray[np.intp]) -> list[tuple[int, int]]:
    return [(int(row), int(column)) for row, column in np.unique(pixels // TILE, axis=0)]


def cut_up(image: NDArray[np.generic], side: int) -> NDArray[np.int32]:
    """Superpixels of an image (h, w, C) of any dtype, about `side` pixels wide: int32 (h, w), from 1 on.

    Each is 4-connected.
    """
    from skimage.color import rgb2lab
    from skimage.segmentation import slic

    if image.dtype == np.uint8 and image.shape[2] == 3:
        seen = rgb2lab(image)
    else:
        seen = np.log1p(np.maximum(image.astype(np.float64), 0))
        low, high = np.quantile(seen, (0.01, 0.99), axis=(0, 1))
        seen = (seen - low) * (100 / np.maximum(high - low, 1e-6))  # as wide as Lab's lightness
    count = max(1, round(seen.shape[0] * seen.shape[1] / side**2))
    spread = max(float(np.ptp(seen)), 1e-6)  # scikit-image stretches the picture to 0..1
    labels = slic(
        seen, n_segments=count, compactness=COMPACTNESS / spread, max_num_iter=ROUNDS, sigma=1.0, channel_axis=-1,
        convert2lab=False, start_label=1,
    )  # fmt: skip
    return np.asarray(labels, np.int32)


def along(points: NDArray[np.floating], runs: tuple[int, ...], step: float) -> list[tuple[float, float]]:
    """Points every `step` pixels on the lines through `points` (N, 2); `runs`: the number of points of each line."""
    found: list[tuple[float, float]] = []
    at = 0
    for n in runs:
        run = points[at : at + n]
        at += n
        found.append((float(run[0, 0]), float(run[0, 1])))
        for p, q in itertools.pairwise(run):
            count = max(1, int(np.ceil(np.hypot(*(q - p)) / step)))
            found += [(float(y), float(x)) for y, x in np.linspace(p, q, count + 1)[1:]]
    return found
