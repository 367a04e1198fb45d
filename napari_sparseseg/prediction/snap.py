"""Grows a stroke to the connected tissue that looks like what was stroked: the snap brush.

A pixel joins where its features are closer to those under the stroke than to those under strokes of other classes, and
no farther than `tolerance`; the joined pixels must be connected to the stroke and lie within its reach. Features are
colour at two scales and texture, and the class probabilities where a model has predicted. So it works before there is a
model, and also where the model is wrong: what looks alike to it is mistaken alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import ndimage

from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.prediction.tile_store import LABELS, PROBABILITY

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_sparseseg.annotations import Annotations
    from napari_sparseseg.prediction.live_view import LiveView
    from napari_sparseseg.slides import Slide

    Mask = NDArray[np.bool_]

TOLERANCE = 0.5
"""Keeps 0.97 of the grown pixels within the tissue that was stroked, also without a model; see D124."""
FINE, COARSE = 1.5, 5.0
"""Scales of the features, sigma in pixels of the picture."""
KINDS = 4
"""Kinds of tissue that one stroke can cover, such as nuclei and the cytoplasm between them."""
SAMPLE = 2000
"""Pixels of a stroke that are looked at."""
LEAST_SPREAD = 0.5
RATIO = 0.8
"""A pixel joins where it is this many times as far from the stroke as from strokes of other classes, at most."""
PROBABILITY_WEIGHT = 3.0
SMALLEST_HOLE = 0.002
"""Holes of less than this share of the grown area are closed."""


class Grown(NamedTuple):
    """A region as `Annotations.paint_mask` takes it: `mask` (h, w), level and corner in pixels of 2**level."""

    level: int
    y: int
    x: int
    mask: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is on screen around a stroke, at one resolution.

    Attributes
    ----------
    image
        (h, w, C), any dtype.
    labels
        uint8 (h, w): class ids of what is drawn there already, 0 where nothing is.
    probabilities
        float (K, h, w), or None without a model.
    """

    image: NDArray[np.generic]
    labels: NDArray[np.uint8]
    probabilities: NDArray[np.floating] | None = None

    def features(self) -> NDArray[np.float32]:
        """float32 (h, w, F), each with a spread of about 1 over the view."""
        image = np.log1p(self.image.astype(np.float32))
        parts = []
        for c in range(image.shape[2]):
            fine = ndimage.gaussian_filter(image[..., c], FINE)
            coarse = ndimage.gaussian_filter(image[..., c], COARSE)
            square = ndimage.gaussian_filter(np.square(image[..., c] - coarse), COARSE)
            parts += [fine, coarse, np.sqrt(np.maximum(square, 0))]
        out = np.stack(parts, axis=-1)
        out /= np.maximum(out.reshape(-1, out.shape[-1]).std(axis=0), 1e-3)
        if self.probabilities is None:
            return out
        chances = np.moveaxis(self.probabilities, 0, -1).astype(np.float32) * PROBABILITY_WEIGHT
        return np.concatenate([out, chances], axis=-1)


class Snapper:
    """How much every pixel of a view looks like a stroke; `grow` is then quick for any tolerance.

    Parameters
    ----------
    view
        Around the stroke.
    stroke
        (h, w): the pixels that were drawn, at least one.
    class_id
        Of the stroke; labels of other classes are neither drawn over nor crossed.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.full((60, 60, 3), 240, np.uint8)
    >>> image[10:40, 10:40] = 90
    >>> stroke = np.zeros((60, 60), bool)
    >>> stroke[20:25, 15:30] = True
    >>> grown = Snapper(Surroundings(image, np.zeros((60, 60), np.uint8)), stroke, 1).grow(1.0)
    >>> bool(grown[30, 30]), bool(grown[50, 50])
    (True, False)
    """

    def __init__(self, view: Surroundings, stroke: Mask, class_id: int) -> None:
        features = view.features()
        mine = _kinds(features[stroke])
        own = _distance(features[stroke], mine)
        self._stroke = stroke
        self._others = (view.labels > 0) & (view.labels != class_id)
        self._distance = _distance(features, mine) / max(float(np.quantile(own, 0.9)), LEAST_SPREAD)
        self._allowed = ~self._others
        elsewhere = self._others & ~stroke
        if elsewhere.any():
            theirs = _distance(features, _kinds(features[elsewhere])) / max(float(np.quantile(own, 0.9)), LEAST_SPREAD)
            self._allowed &= self._distance <= RATIO * theirs

    def grow(self, tolerance: float = TOLERANCE, reach: float = np.inf) -> Mask:
        """The stroke with the connected pixels that look like it: bool (h, w).

        Parameters
        ----------
        tolerance
            How different a pixel may be: 1 allows about the spread of what is under the stroke, 0 only the stroke.
        reach
            Pixels from the stroke.
        """
        stroke = self._stroke
        if tolerance <= 0:
            return stroke.copy()
        alike = self._allowed & (self._distance <= tolerance)
        if np.isfinite(reach):
            alike &= ndimage.distance_transform_edt(~stroke) <= reach
        alike = ndimage.binary_opening(alike, iterations=2)
        marked, _ = ndimage.label(alike | stroke)
        grown = np.isin(marked, np.unique(marked[stroke]))
        region: Mask = (_without_holes(grown) & ~self._others) | stroke
        return region


def view_around(
    slide: Slide, annotations: Annotations, live: LiveView | None, box: Box, level: int
) -> tuple[Surroundings, Box]:
    """What is seen in a level-0 box at pixels of 2**level level-0 pixels, and where it lies in such pixels.

    Parameters
    ----------
    live
        Its tiles are read, nothing is predicted; left out where a part of the box has no tile.
    """
    frame = Frame((float(1 << level),) * 2)
    region = frame.cover(box.intersection(Box(0, 0, *slide.shape)))
    image = slide.read_region(region, frame)
    step = 1 << level
    labels = annotations.read((region.y * step, region.x * step, region.height * step, region.width * step), level)
    labels = labels[: region.height, : region.width]
    return Surroundings(image, labels, None if live is None else _probabilities(live, region, step)), region


def _probabilities(live: LiveView, region: Box, step: int) -> NDArray[np.floating] | None:
    store = live.store
    level = 0
    while level < store.n_levels - 1 and live.frame.downsample[0] * (2 << level) <= step:
        level += 1
    rows, columns = (
        np.minimum(((np.arange(start, start + n) + 0.5) * step / (d * (1 << level))).astype(int), most - 1)
        for start, n, d, most in zip(region[:2], region[2:], live.frame.downsample, store.shapes[level], strict=True)
    )
    at = Box(int(rows[0]), int(columns[0]), int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1)
    if (store.read(LABELS, level, at) == 0).any():
        return None
    pick = np.ix_(rows - at.y, columns - at.x)
    channels = [store.read(k, level, at)[pick] for k in range(PROBABILITY, store.channels)]
    return np.asarray(np.stack(channels) / np.float32(255), np.float32)


def _kinds(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Centres (k, F) of the kinds of pixels among `samples` (n, F)."""
    rng = np.random.default_rng(0)
    if len(samples) > SAMPLE:
        samples = samples[rng.choice(len(samples), SAMPLE, replace=False)]
    centres = samples[:1]
    while len(centres) < KINDS:  # the next centre is likely to be far from those before
        squares = np.square(_distance(samples, centres)).astype(np.float64)
        if squares.sum() == 0:
            return centres
        centres = np.concatenate([centres, samples[rng.choice(len(samples), p=squares / squares.sum())][None]])
    for _ in range(8):
        nearest = np.argmin(np.square(centres).sum(axis=1) - 2 * samples @ centres.T, axis=1)
        centres = np.stack([samples[nearest == k].mean(axis=0) for k in np.unique(nearest)])
    return np.asarray(centres, np.float32)


def _distance(features: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.float32]:
    """Root mean square difference (...,) of features (..., F) to the nearest centre."""
    products = features @ centres.T
    lengths = np.einsum("...f,...f->...", features, features)[..., None]
    squares: NDArray[np.float32] = (lengths - 2 * products + np.square(centres).sum(axis=1)).min(axis=-1)
    return np.asarray(np.sqrt(np.maximum(squares, 0) / centres.shape[1]), np.float32)


def _without_holes(mask: Mask) -> Mask:
    marked, n = ndimage.label(~mask)
    if n == 0:
        return mask
    sizes = np.bincount(marked.ravel())
    edge = np.unique(np.concatenate([marked[0], marked[-1], marked[:, 0], marked[:, -1]]))
    small = np.flatnonzero(sizes < SMALLEST_HOLE * mask.sum())
    return mask | np.isin(marked, np.setdiff1d(small, [0, *edge]))
