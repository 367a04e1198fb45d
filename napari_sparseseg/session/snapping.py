"""The region that a stroke of the snap brush grows to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from napari_sparseseg.annotations import stroke_mask
from napari_sparseseg.geometry import Frame
from napari_sparseseg.prediction.snap import TOLERANCE, Grown, Snapper, view_around

if TYPE_CHECKING:
    from napari_sparseseg.annotations import Annotations, Stroke
    from napari_sparseseg.prediction.live_view import LiveView
    from napari_sparseseg.slides import Slide

__all__ = ["TOLERANCE", "GrowingStroke", "Grown", "fitting_level"]

MOST_PX = 640
"""Side of the picture that is looked at; a longer stroke is looked at more coarsely."""


class GrowingStroke:
    """A stroke and what is seen around it; `grow` is quick for any tolerance. Any thread; nothing is drawn.

    Parameters
    ----------
    live
        Its probabilities are used where it has them.
    stroke
        Of kind ``brush``. The region lies within its `box`.
    pixel
        Level-0 pixels for one pixel that is looked at; more where the box is large.
    reach
        Level-0 pixels that the region may extend beyond the stroke.

    Raises
    ------
    SlideError
        Where the slide cannot be read.
    """

    def __init__(
        self,
        slide: Slide,
        annotations: Annotations,
        live: LiveView | None,
        stroke: Stroke,
        *,
        pixel: float,
        reach: float,
    ) -> None:
        box = stroke.box
        level = max(fitting_level(pixel), math.ceil(math.log2(max(1, box.height, box.width) / MOST_PX)))
        self._level = level = min(level, annotations.top_level)
        self._reach = reach / (1 << level)
        view, self._region = view_around(slide, annotations, live, box, level)
        self._mask = stroke_mask(stroke, self._region, Frame((float(1 << level),) * 2))
        self._snapper = Snapper(view, self._mask, stroke.class_id) if self._mask.any() else None

    def grow(self, tolerance: float = TOLERANCE) -> Grown:
        """The tissue around the stroke that looks like it; see `Snapper.grow`."""
        mask = self._mask if self._snapper is None else self._snapper.grow(tolerance, self._reach)
        return Grown(self._level, self._region.y, self._region.x, mask)


def fitting_level(pixel: float) -> int:
    """The level whose pixels are nearest to `pixel` level-0 pixels."""
    return max(0, round(math.log2(pixel)))
