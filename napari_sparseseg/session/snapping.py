"""The region that a stroke of the snap brush grows to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from napari_sparseseg.annotations import stroke_mask
from napari_sparseseg.geometry import Frame
from napari_sparseseg.prediction.snap import TOLERANCE, Snapper, view_around

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from napari_sparseseg.annotations import Annotations, Stroke
    from napari_sparseseg.prediction.live_view import LiveView
    from napari_sparseseg.slides import Slide

__all__ = ["TOLERANCE", "Grown", "grow_stroke"]

MOST_PX = 640
"""Side of the picture that is looked at; a longer stroke is looked at more coarsely."""


class Grown(NamedTuple):
    """A region as `Annotations.paint_mask` takes it: `mask` (h, w), level and corner in pixels of 2**level."""

    level: int
    y: int
    x: int
    mask: NDArray[np.bool_]


def grow_stroke(
    slide: Slide,
    annotations: Annotations,
    live: LiveView | None,
    stroke: Stroke,
    *,
    pixel: float,
    reach: float,
    tolerance: float = TOLERANCE,
) -> Grown:
    """The tissue around a stroke that looks like it. Any thread; nothing is predicted and nothing is drawn.

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
    tolerance
        See `Snapper.grow`.

    Raises
    ------
    SlideError
        Where the slide cannot be read.
    """
    box = stroke.box
    level = max(0, round(math.log2(pixel)), math.ceil(math.log2(max(1, box.height, box.width) / MOST_PX)))
    level = min(level, annotations.top_level)
    view, region = view_around(slide, annotations, live, box, level)
    mask = stroke_mask(stroke, region, Frame((float(1 << level),) * 2))
    if mask.any():
        mask = Snapper(view, mask, stroke.class_id).grow(tolerance, reach / (1 << level))
    return Grown(level, region.y, region.x, mask)
