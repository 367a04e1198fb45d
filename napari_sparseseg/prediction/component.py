"""Connected regions of a prediction and their outlines, to be accepted as annotations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from napari_sparseseg.io.contours import RegionTracer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from napari_sparseseg.geometry import Box, Frame


@dataclass(frozen=True, slots=True)
class Component:
    """A 4-connected region of one predicted class.

    Attributes
    ----------
    class_id
        Its class.
    rings
        Outer ring, then holes: float64 (N, 2) of (y, x) in level-0 pixels, not closed.
    pixels
        Its area in level-0 pixels.
    cut
        Whether it continues beyond the part of the slide that was searched.
    """

    class_id: int
    rings: tuple[NDArray[np.float64], ...]
    pixels: float
    cut: bool


def component_at(
    labels: NDArray[np.uint8], row: int, column: int, region: Box, frame: Frame, shape: tuple[int, int]
) -> Component:
    """The region of equal labels around one pixel.

    Parameters
    ----------
    labels
        uint8 (h, w), class ids.
    row, column
        Of a pixel of `labels` with a class.
    region
        Where `labels` lies, in pixels of `frame`.
    shape
        (h, w) of the slide in pixels of `frame`: a region that ends at its edge is not cut.
    """
    class_id = int(labels[row, column])
    mask = region_around(labels, row, column)
    tracer = RegionTracer(mask.shape[1])
    (found,) = [*tracer.feed(mask.astype(np.uint8)), *tracer.finish()]
    dy, dx = frame.downsample
    corner = np.array([region.y, region.x])
    sides = (
        (mask[0], region.y > 0), (mask[-1], region.y1 < shape[0]),
        (mask[:, 0], region.x > 0), (mask[:, -1], region.x1 < shape[1]),
    )  # fmt: skip
    return Component(
        class_id,
        tuple((ring / 2 + corner) * (dy, dx) for ring in found.rings),
        float(mask.sum() * dy * dx),
        any(bool(side.any()) and continues for side, continues in sides),
    )


def region_around(labels: NDArray[np.uint8], row: int, column: int) -> NDArray[np.bool_]:
    """The 4-connected region of equal labels around one pixel: bool (h, w)."""
    marked, _ = ndimage.label(labels == labels[row, column])
    region: NDArray[np.bool_] = marked == marked[row, column]
    return region


def components_under(
    labels: NDArray[np.uint8], pixels: Iterable[tuple[int, int]], region: Box, frame: Frame, shape: tuple[int, int]
) -> list[Component]:
    """The regions under some (row, column) of `labels`, each once; those outside or without a class are left out.

    See `component_at` for the parameters.
    """
    found, taken = [], labels == 0
    for row, column in dict.fromkeys(pixels):
        if 0 <= row < labels.shape[0] and 0 <= column < labels.shape[1] and not taken[row, column]:
            found.append(component_at(labels, row, column, region, frame, shape))
            taken |= region_around(labels, row, column)
    return found
