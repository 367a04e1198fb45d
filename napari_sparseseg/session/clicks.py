"""What one click or one quick stroke takes: superpixels, tissue that looks alike, predicted regions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from napari_sparseseg.annotations import Shape, Stroke, stroke_mask
from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.prediction.superpixels import SIDE, Scale, Superpixels, along
from napari_sparseseg.session.snapping import TOLERANCE, GrowingStroke, Grown, fitting_level

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_sparseseg.annotations import DenseRegion
    from napari_sparseseg.prediction.component import Component
    from napari_sparseseg.session.prediction import Predictor
    from napari_sparseseg.session.slides import SlideCollection

    Points = Sequence[tuple[float, float]]

__all__ = ["SIDE", "Clicks", "Scale", "Superpixels", "along"]
REACH_PX = 120
"""Pixels that a region may extend beyond the stroke that it grows from."""


class Clicks:
    """Labels much of the active slide with little; `Session.clicks`. Every call is one undo step.

    Points are level-0 (y, x). Not for the GUI thread. `SlideError` where no slide is open or it cannot be read.

    Examples
    --------
    >>> from napari_sparseseg import Session
    >>> from napari_sparseseg.samples import sample_slide
    >>> with Session(["tissue", "glass"]) as session:
    ...     slide = session.open(sample_slide())
    ...     session.clicks.superpixels([(3000, 3000), (3000, 3400)], 1, pixel=8)
    ...     strokes = len(session.annotations.strokes)
    ...     labelled = session.annotations.counts()[1]
    >>> strokes, 10_000 < labelled < 1_000_000
    (1, True)
    """

    def __init__(self, slides: SlideCollection, predictor: Predictor) -> None:
        self._slides, self._predictor = slides, predictor

    def superpixels(self, points: Points, class_id: int, *, pixel: float = 1.0, side: int = SIDE) -> None:
        """Give every superpixel on the line through `points` a class; 0 erases.

        Parameters
        ----------
        pixel
            Level-0 pixels for one pixel that is looked at, as in a view of that magnification.
        side
            About how wide a superpixel is, in such pixels.
        """
        entry = self._slides.active
        level = min(fitting_level(pixel), entry.annotations.top_level)
        path = along(np.asarray(points, float).reshape(-1, 2), (len(points),), 0.5 * (1 << level))
        self._fill(Superpixels(entry.slide).crossed(Scale(level, side), path), class_id)

    def snap(
        self, points: Points, radius: float, class_id: int, *, pixel: float = 1.0, tolerance: float = TOLERANCE
    ) -> None:
        """Draw a stroke of the snap brush: it grows to the tissue around it that looks the same.

        Parameters
        ----------
        radius
            Of the brush, level-0 pixels.
        pixel
            Level-0 pixels for one pixel that is looked at. The region ends 120 such pixels from the stroke.
        tolerance
            How different the tissue may be: 0 grows nothing.
        """
        entry, reach = self._slides.active, REACH_PX * pixel
        drawn = np.asarray(points, np.float32).reshape(-1, 2)
        box = box_around(drawn, radius + reach).intersection(Box(0, 0, *entry.slide.shape))
        stroke = Stroke(0, "brush", class_id, radius, drawn, box)
        live = self._predictor.live
        growing = GrowingStroke(entry.slide, entry.annotations, live, stroke, pixel=pixel, reach=reach)
        self._fill([growing.grow(tolerance)], class_id)

    def accept(self, points: Points) -> list[Component]:
        """Make the predicted regions under `points` dense regions, as predicted; scribbles inside take precedence.

        Each is the 4-connected region of one class that the live view shows, or that is predicted now.

        Raises
        ------
        PredictionError
            Without a model, or where the first point lies outside the slide.
        """
        found = self._predictor.components(points)
        self._slides.active.annotations.draw([Shape("dense", c.class_id, c.rings) for c in found])
        return found

    def take_back(self, points: Points) -> int:
        """Remove the dense regions under `points`, and return how many there were. Scribbles in them stay."""
        annotations = self._slides.active.annotations
        pixels = {(math.floor(y), math.floor(x)) for y, x in points}
        under = [r.id for r in annotations.dense_regions if any(_covers(r, pixel) for pixel in pixels)]
        if under:
            annotations.remove_dense_region(*under)
        return len(under)

    def shown_region(self, at: tuple[float, float]) -> tuple[int, Box, np.ndarray, tuple[float, float]] | None:
        """The region that the live view shows around a point; None where it shows nothing.

        Returns
        -------
        class_id, box, mask, step
            Its class; where it lies, in pixels of the prediction; bool (h, w); level-0 pixels of such a pixel (y, x).
        """
        return self._predictor.shown_region(at)

    def _fill(self, found: list[Grown], class_id: int) -> None:
        annotations = self._slides.active.annotations
        annotations.begin_stroke(class_id, kind="fill")
        for grown in found:
            annotations.paint_mask(*grown)
        annotations.commit_stroke()


def _covers(region: DenseRegion, pixel: tuple[int, int]) -> bool:
    at = Box(*pixel, 1, 1)
    return bool(at.intersection(region.box).area and stroke_mask(region, at, Frame()).all())


def box_around(points: np.ndarray, margin: float) -> Box:
    """The level-0 box around points (N, 2) and `margin` pixels more."""
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin
    (y, x), (y1, x1) = np.floor(low).astype(int).tolist(), np.ceil(high).astype(int).tolist()
    return Box(y, x, y1 - y, x1 - x)
