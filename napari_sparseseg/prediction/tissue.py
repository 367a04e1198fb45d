"""Tissue and glass on a slide, found on a thumbnail, so that empty glass need not be predicted."""

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
"""Names, in any case, of the class that glass gets where it is not predicted."""
_THUMBNAIL = 2048
_SMOOTHING = 1.5
_LEAST_CONTRAST = 8.0
"""With fewer grey values (of 255) between glass and the rest, the whole slide counts as tissue."""
_FAINTEST = 10.0
"""Pixels this many grey values from the colour of glass are tissue, however dark the rest is. See D34."""
_MARGIN_UM, _GAP_UM = 20.0, 100.0
_DARKEST_GLASS, _PINK, _BLUE = 200.0, 6.0, 12.0
TISSUE_RULE = 2
"""The version of the rule by which new models leave out glass; `PredictionRules.tissue`."""
SMALL = 2048 * 2048
"""A slide of up to this many pixels is predicted whole: a field of view, a core, a few seconds."""
_NEARLY_ALL = 0.9
_LARGEST_HOLE = 2.0
"""Of the area of the tissue around it. What a larger one is in is no tissue, but the line around a cover slip."""


@dataclass(frozen=True)
class TissueMask:
    """A boolean mask (h, w) of a slide in a coarse frame."""

    mask: np.ndarray
    frame: Frame

    @property
    def share(self) -> float:
        """Share of the slide that is tissue, 0..1."""
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
        # A thumbnail may end a fraction of its pixel before the slide does; the last pixel covers that too.
        return np.clip(cells, 0, last), (cells >= 0) & (cells <= last + 1)

    def save(self, path: Path) -> None:
        """Write an ``.npz`` file, for workers elsewhere."""
        np.savez_compressed(path, mask=self.mask, downsample=self.frame.downsample)

    @classmethod
    def load(cls, path: Path) -> TissueMask:
        """Read a file written by `save`."""
        with np.load(path) as file:
            y, x = file["downsample"].tolist()
            return cls(file["mask"], Frame((y, x)))


def glass_label(classes: Sequence[ClassDef]) -> int:
    """Id of the class for glass that is not predicted: one named as in `GLASS_NAMES`, else 0, unlabelled."""
    return next((c.id for c in classes if c.name.strip().casefold() in GLASS_NAMES), UNLABELLED)


def where_to_predict(slide: Slide, shape: tuple[int, int], rule: int = TISSUE_RULE) -> TissueMask | None:
    """The tissue that a whole-slide run predicts; None: everything.

    Parameters
    ----------
    slide
        An open slide.
    shape
        (h, w) of the slide as the model sees it.
    rule
        By which a model leaves out glass, `PredictionRules.tissue`. From 2 on, slides of up to `SMALL` pixels and
        slides that are nearly all tissue are predicted whole.
    """
    if rule > 1 and shape[0] * shape[1] <= SMALL:
        return None
    found = detect_tissue(slide, rule=rule)
    return None if rule > 1 and found.share >= _NEARLY_ALL else found


def detect_tissue(slide: Slide, margin_px: int | None = None, *, rule: int = TISSUE_RULE) -> TissueMask:
    """Find tissue by how much a smoothed thumbnail differs from the background; in doubt it is tissue.

    A pixel's difference is that of its most different channel, so pale pink (which is bright) and unsaturated dark
    (which is grey) both count. Otsu's threshold decides whether there are two groups of pixels at all; if not,
    everything is tissue. The border is lower than Otsu's threshold, which may separate pale tissue from dark tissue: on
    brightfield ten grey values from glass, elsewhere six standard deviations of the dark pixels. See D34. What tissue
    encloses is tissue: lumens, fat cells, vessels, also where the ring around them has gaps of up to 100 um. See D103.

    Parameters
    ----------
    slide
        An open slide.
    margin_px
        The mask is widened by this many thumbnail pixels (2,048 on the longer side); None: 20 um, at least four.
    rule
        Version of this rule, `PredictionRules.tissue`. 1: what tissue encloses may be glass.

    Examples
    --------
    >>> from napari_sparseseg import detect_tissue, open_slide
    >>> from napari_sparseseg.samples import sample_slide
    >>> with open_slide(sample_slide()) as slide:
    ...     tissue = detect_tissue(slide)
    >>> 0.5 < tissue.share < 1.0
    True
    """
    image, frame = slide.thumbnail(_THUMBNAIL)
    pixels = np.nan_to_num(image.astype(np.float32))
    background = _background(pixels, slide, rule)
    difference = np.abs(pixels - background)
    if not slide.is_rgb:
        difference *= 255 / max(float(difference.max()), 1.0)
    strength = ndimage.gaussian_filter(difference.max(axis=-1), _SMOOTHING)
    threshold = otsu(strength)
    mask = strength > threshold
    if not mask.any() or mask.all() or strength[mask].mean() - strength[~mask].mean() < _LEAST_CONTRAST:
        return TissueMask(np.ones(strength.shape, bool), frame)
    mask = strength > min(threshold, _FAINTEST if slide.is_rgb else _above_noise(strength[~mask]))
    pixel_um = 0.0 if slide.mpp is None else min(a * b for a, b in zip(frame.downsample, slide.mpp, strict=True))
    if margin_px is None:
        margin_px = max(4, int(np.ceil(_MARGIN_UM / pixel_um)) if pixel_um else 0)
    distance = ndimage.distance_transform_edt(~mask)
    if margin_px > 0:
        mask = distance <= margin_px
    if rule > 1:
        mask |= _enclosed(distance, max(margin_px, _GAP_UM / 2 / pixel_um if pixel_um else 0.0))
    return TissueMask(mask, frame)


def _enclosed(distance: np.ndarray, reach: float) -> np.ndarray:
    """What tissue encloses, given the distance from it; a ring with gaps of up to twice `reach` encloses too."""
    filled = _without_holes(distance <= reach)
    found: np.ndarray = filled & ((distance == 0) | (ndimage.distance_transform_edt(filled) > reach))
    return found


def _without_holes(mask: np.ndarray) -> np.ndarray:
    """The mask with its holes filled, but for those far larger than the tissue around them."""
    holes, count = ndimage.label(~mask)
    border = np.unique(np.concatenate([holes[0], holes[-1], holes[:, 0], holes[:, -1]]))
    enclosed = np.setdiff1d(np.arange(1, count + 1), border)
    parts, _ = ndimage.label(mask, np.ones((3, 3)))
    area, hole_area = np.bincount(parts.ravel()), np.bincount(holes.ravel())
    filled = mask.copy()
    for hole, where in zip(range(1, count + 1), ndimage.find_objects(holes), strict=True):
        if hole not in enclosed or where is None:
            continue
        y, x = (slice(side.start - 1, side.stop + 1) for side in where)
        inside = holes[y, x] == hole
        around = parts[y, x][ndimage.binary_dilation(inside) & ~inside]
        if hole_area[hole] <= _LARGEST_HOLE * area[np.unique(around)].sum():
            filled[y, x] |= inside
    return filled


def _above_noise(values: np.ndarray) -> float:
    middle = float(np.median(values))
    return middle + 6 * 1.4826 * float(np.median(np.abs(values - middle)))


def _background(pixels: np.ndarray, slide: Slide, rule: int) -> np.ndarray:
    """Colour of empty glass: that of the brightest pixels of a brightfield slide, else the slide's background.

    On a slide without glass the brightest pixels are pale tissue: too dark for glass, pinkish like eosin or bluish like
    haematoxylin alone. Then glass is assumed to be white, so that the whole slide is tissue.
    """
    if not slide.is_rgb:
        return np.asarray(slide.background, np.float32)
    flat = pixels.reshape(-1, pixels.shape[-1])
    darkest_channel = flat.min(axis=1)
    brightest = float(np.percentile(darkest_channel, 99))
    colour: np.ndarray = np.median(flat[darkest_channel >= brightest - _LEAST_CONTRAST], axis=0).astype(np.float32)
    red, green, blue = colour[:3]
    bluish = rule > 1 and blue - red > _BLUE
    if brightest < _DARKEST_GLASS or min(red, blue) - green > _PINK or bluish:
        return np.full(pixels.shape[-1], 255, np.float32)
    return colour


def otsu(values: np.ndarray, bins: int = 256) -> float:
    """Threshold that separates values into two groups with the largest variance between them (Otsu, 1979)."""
    counts, edges = np.histogram(values, bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1 + np.argmax(np.nan_to_num(between[:-1], nan=-1.0))])
