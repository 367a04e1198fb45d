"""What a clean-up makes of the part of a live prediction that is on screen, in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from napari_sparseseg.geometry import Box
from napari_sparseseg.prediction.results.cleanup import UNSURE
from napari_sparseseg.prediction.results.components import BlockGraph, BlockRuns, cleaned_classes
from napari_sparseseg.prediction.results.separation import LARGEST, cut_touching
from napari_sparseseg.prediction.results.smoothing import half_widths, majority_within
from napari_sparseseg.prediction.tile_store import LABELS, PROBABILITY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.prediction.live_view import LiveView
    from napari_sparseseg.prediction.results.cleanup import CleanUp

MOST_PIXELS = 1 << 20
"""Clean at most about this many; a coarser level is taken beyond."""
MARGIN = 64
"""Pixels around the box that are cleaned too, so that its edge cuts few regions."""


@dataclass(frozen=True, slots=True)
class CleanedView:
    """A part of the live prediction after a clean-up.

    Attributes
    ----------
    labels
        uint8 (h, w) class ids; 0 where nothing is predicted yet.
    origin
        Level-0 (y, x) of the corner of the first pixel.
    pixel
        Level-0 pixels (dy, dx) that one pixel covers.
    classes
        With ``unsure`` where that is asked for.
    level, box
        The level of the live prediction that was cleaned, and which of its pixels.
    """

    labels: NDArray[np.uint8]
    origin: tuple[float, float]
    pixel: tuple[float, float]
    classes: tuple[ClassDef, ...]
    level: int
    box: Box


def clean_image(
    labels: NDArray[np.uint8],
    settings: CleanUp,
    classes: Sequence[ClassDef],
    spacing: tuple[float, float],
    best: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Clean a label image in memory as `Cleaner` cleans a stored one.

    Parameters
    ----------
    labels
        uint8 (h, w) class ids.
    settings
        What to do.
    classes
        The class table of `labels`.
    spacing
        Size of a pixel (y, x) in um, or in level-0 pixels where the mpp is unknown.
    best
        uint8 (h, w): probability of the most probable class, 255 is certain; needed to mark what is unsure.

    Examples
    --------
    >>> from napari_sparseseg import CleanUp
    >>> image = np.ones((9, 9), np.uint8)
    >>> image[4, 4] = 2
    >>> int(clean_image(image, CleanUp(smallest_um2=3), (), (1.0, 1.0)).max())
    1
    """
    table = settings.classes(classes)
    if settings.unsure_below and best is not None:
        unsure = next(c.id for c in table if c.name.casefold() == UNSURE)
        labels = np.where((best < settings.unsure_below * 255) & (labels > 0), np.uint8(unsure), labels)
    if settings.smooth_um:
        widths = half_widths(settings.smooth_um, spacing)
        rows, columns = len(widths) // 2, int(widths.max())
        labels = majority_within(np.pad(labels, ((rows, rows), (columns, columns))), widths)
    if settings.holes_um2 or settings.smallest_um2:
        area = spacing[0] * spacing[1]
        holes, smallest = settings.holes_um2 / area + 1e-9, settings.smallest_um2 / area - 1e-9
        runs = BlockRuns.of(labels)
        classes_of = cleaned_classes([BlockGraph.of_runs(runs)], 1, holes, smallest)[0]
        labels = runs.painted(classes_of, labels.shape[1])
    if settings.separate:
        labels = cut_touching(
            labels, Box(0, 0, *labels.shape), (False,) * 4, settings.separated(table),
            depth=settings.waist_um, spacing=spacing, largest=LARGEST,
        )  # fmt: skip
    return labels


def clean_live(live: LiveView, box: Box, settings: CleanUp, classes: Sequence[ClassDef]) -> CleanedView | None:
    """Clean what is predicted in a level-0 box, from the tiles that are there; None where the box has no pixels.

    A wide box is cleaned at a coarser level of the live prediction: specks smaller than its pixels are not seen there.
    """
    store = live.store
    level, shown = live.part(box, MOST_PIXELS)
    if not shown.area:
        return None
    at = shown.grown(MARGIN).intersection(Box(0, 0, *store.shapes[level]))
    labels = store.read(LABELS, level, at)
    best = None
    if settings.unsure_below:
        best = np.zeros_like(labels)
        for channel in range(PROBABILITY, store.channels):
            np.maximum(best, store.read(channel, level, at), out=best)
    dy, dx = (d * (1 << level) for d in live.frame.downsample)
    my, mx = live.slide.mpp or (1.0, 1.0)
    cleaned = clean_image(labels, settings, classes, (dy * my, dx * mx), best)
    return CleanedView(cleaned, (at.y * dy, at.x * dx), (dy, dx), settings.classes(classes), level, at)
