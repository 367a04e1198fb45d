"""Where on a slide there is tissue, found on a thumbnail, so that empty glass need not be predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from napari_sparseseg.geometry import Box, Frame

if TYPE_CHECKING:
    from napari_sparseseg.slides import Slide

_THUMBNAIL = 2048
_SMOOTHING = 1.5
_LEAST_CONTRAST = 8.0
"""Below this many grey values (of 255) between glass and the rest, the slide is taken to be all tissue."""


@dataclass(frozen=True)
class TissueMask:
    """A boolean mask (h, w) of a slide in a coarse frame."""

    mask: np.ndarray
    frame: Frame

    @property
    def share(self) -> float:
        """Part of the slide that is tissue, 0..1."""
        return float(self.mask.mean())

    def overlaps(self, region: Box, frame: Frame) -> bool:
        """Whether any tissue may lie in a region of another frame."""
        cells = self.frame.cover(frame.level0(region)).intersection(Box(0, 0, *self.mask.shape))
        return bool(self.mask[cells.slices()].any())

    def read_region(self, region: Box, frame: Frame) -> np.ndarray:
        """Boolean (h, w): the mask at the centre of each pixel of a region of another frame; False outside."""
        rows, inside_y = self._cells(region.y, region.height, frame.downsample[0], 0)
        columns, inside_x = self._cells(region.x, region.width, frame.downsample[1], 1)
        found: np.ndarray = self.mask[np.ix_(rows, columns)] & inside_y[:, None] & inside_x
        return found

    def _cells(self, start: int, count: int, downsample: float, axis: int) -> tuple[np.ndarray, np.ndarray]:
        centres = (np.arange(start, start + count) + 0.5) * (downsample / self.frame.downsample[axis])
        cells = np.floor(centres).astype(np.intp)
        last = self.mask.shape[axis] - 1
        return np.clip(cells, 0, last), (cells >= 0) & (cells <= last)


def detect_tissue(slide: Slide, margin_px: int = 4) -> TissueMask:
    """Find tissue by how much a smoothed thumbnail differs from the background, with Otsu's threshold.

    A pixel's difference is that of its most different channel, so pale pink (which is bright) and unsaturated dark
    (which is grey) both count. On a slide with no two groups of pixels everything is tissue: nothing is lost.

    Parameters
    ----------
    slide
        An open slide.
    margin_px
        The mask is widened by this many thumbnail pixels (2,048 on the longer side), for faint edges.
    """
    image, frame = slide.thumbnail(_THUMBNAIL)
    pixels = np.nan_to_num(image.astype(np.float32))
    background = _background(pixels, slide)
    difference = np.abs(pixels - background)
    if not slide.is_rgb:
        difference *= 255 / max(float(difference.max()), 1.0)
    strength = ndimage.gaussian_filter(difference.max(axis=-1), _SMOOTHING)
    threshold = otsu(strength)
    mask = strength > threshold
    if not mask.any() or mask.all() or strength[mask].mean() - strength[~mask].mean() < _LEAST_CONTRAST:
        return TissueMask(np.ones(strength.shape, bool), frame)
    if margin_px > 0:
        mask = ndimage.binary_dilation(mask, iterations=margin_px)
    return TissueMask(mask, frame)


def _background(pixels: np.ndarray, slide: Slide) -> np.ndarray:
    """Colour of empty glass: the commonest bright colour of a brightfield slide, else what the slide says."""
    if not slide.is_rgb:
        return np.asarray(slide.background, np.float32)
    flat = pixels.reshape(-1, pixels.shape[-1])
    darkest_channel = flat.min(axis=1)
    bright = flat[darkest_channel >= max(200.0, float(np.percentile(darkest_channel, 50)))]
    if len(bright) < 0.001 * len(flat):
        return np.full(pixels.shape[-1], 255, np.float32)
    colour: np.ndarray = np.median(bright, axis=0).astype(np.float32)
    return colour


def otsu(values: np.ndarray, bins: int = 256) -> float:
    """Threshold that parts values into two groups with the largest variance between them (Otsu, 1979)."""
    counts, edges = np.histogram(values, bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1 + np.argmax(np.nan_to_num(between[:-1], nan=-1.0))])
