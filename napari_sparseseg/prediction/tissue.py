"""Where on a slide there is tissue, found on a thumbnail, so that empty glass need not be predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from napari_sparseseg.config import UNLABELLED
from napari_sparseseg.geometry import Box, Frame

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.slides import Slide

GLASS_NAMES = ("background", "bg", "blank", "empty", "glass", "no tissue", "white")
"""Classes so named, in any case, are what glass is labelled with where it is not predicted."""
_THUMBNAIL = 2048
_SMOOTHING = 1.5
_LEAST_CONTRAST = 8.0
"""Below this many grey values (of 255) between glass and the rest, the slide is taken to be all tissue."""
_FAINTEST = 10.0
"""So many grey values from the colour of glass are tissue, however dark the rest is."""
_MARGIN_UM = 20.0
_DARKEST_GLASS, _PINK = 200.0, 6.0


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
        # A thumbnail may end a part of its pixel before the slide does; the last one stands for that too.
        return np.clip(cells, 0, last), (cells >= 0) & (cells <= last + 1)

    def save(self, path: Path) -> None:
        """Write an ``.npz`` file, for workers elsewhere."""
        np.savez_compressed(path, mask=self.mask, downsample=self.frame.downsample)

    @classmethod
    def load(cls, path: Path) -> TissueMask:
        """Read what `save` wrote."""
        with np.load(path) as file:
            y, x = file["downsample"].tolist()
            return cls(file["mask"], Frame((y, x)))


def glass_label(classes: Sequence[ClassDef]) -> int:
    """What skipped glass is labelled with: the class with one of `GLASS_NAMES`, else 0, unlabelled."""
    return next((c.id for c in classes if c.name.strip().casefold() in GLASS_NAMES), UNLABELLED)


def detect_tissue(slide: Slide, margin_px: int | None = None) -> TissueMask:
    """Find tissue by how much a smoothed thumbnail differs from the background; in doubt it is tissue.

    A pixel's difference is that of its most different channel, so pale pink (which is bright) and unsaturated dark
    (which is grey) both count. Otsu's threshold says whether there are two groups of pixels at all: if not, everything
    is tissue. It is no good for the border, as it parts pale tissue from dark where both are there; so on brightfield
    ten grey values from glass are enough, elsewhere six standard deviations of what is dark.

    Parameters
    ----------
    slide
        An open slide.
    margin_px
        The mask is widened by this many thumbnail pixels (2,048 on the longer side); 20 um and at least four if not
        given. Measured on a real skin slide: of the pixels with a saturation above 0.05, Otsu's threshold and four
        pixels missed 6.5 %, ten grey values 1.5 %, with 10 um around them none.
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
    mask = strength > min(threshold, _FAINTEST if slide.is_rgb else _above_noise(strength[~mask]))
    if margin_px is None:
        pixel_um = 0.0 if slide.mpp is None else min(a * b for a, b in zip(frame.downsample, slide.mpp, strict=True))
        margin_px = max(4, int(np.ceil(_MARGIN_UM / pixel_um)) if pixel_um else 0)
    if margin_px > 0:
        mask = ndimage.distance_transform_edt(~mask) <= margin_px
    return TissueMask(mask, frame)


def _above_noise(values: np.ndarray) -> float:
    middle = float(np.median(values))
    return middle + 6 * 1.4826 * float(np.median(np.abs(values - middle)))


def _background(pixels: np.ndarray, slide: Slide) -> np.ndarray:
    """Colour of empty glass: of the brightest pixels of a brightfield slide, else what the slide says.

    On a slide without glass these are pale tissue: too dark for glass, or pinkish, which eosin is and lamps are not.
    Then white is taken for glass, so that all of it is tissue.
    """
    if not slide.is_rgb:
        return np.asarray(slide.background, np.float32)
    flat = pixels.reshape(-1, pixels.shape[-1])
    darkest_channel = flat.min(axis=1)
    brightest = float(np.percentile(darkest_channel, 99))
    colour: np.ndarray = np.median(flat[darkest_channel >= brightest - _LEAST_CONTRAST], axis=0).astype(np.float32)
    red, green, blue = colour[:3]
    if brightest < _DARKEST_GLASS or min(red, blue) - green > _PINK:
        return np.full(pixels.shape[-1], 255, np.float32)
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
