"""How much of what is on screen, of a drawn region or of the slide is predicted to be which class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg.annotations.raster import Polygon
from napari_sparseseg.prediction.tile_store import LABELS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.geometry import Box
    from napari_sparseseg.prediction.live_view import LiveView
    from napari_sparseseg.prediction.slide import SlideResult
    from napari_sparseseg.slides import Slide

UNKNOWN = "#808080"
"""Colour of a class that was removed since."""
MOST_PIXELS = 1 << 20
"""Read at most about this many; a coarser level is taken beyond."""


@dataclass(frozen=True, slots=True)
class Area:
    """What is predicted as one class within a box."""

    class_id: int
    name: str
    colour: str
    pixels: float
    """Level-0 pixels."""
    mm2: float | None
    """None where the slide's mpp is unknown."""
    share: float
    """0..1 of what is predicted there."""


def areas(
    live: LiveView, box: Box, classes: Sequence[ClassDef], outlines: Sequence[NDArray[Any]] | None = None
) -> list[Area]:
    """Predicted area of every class in a level-0 box, from the tiles that are there; nothing is computed.

    Parameters
    ----------
    live
        Its tiles are read.
    box
        Level 0.
    classes
        In the order wanted.
    outlines
        Where given, only pixels with their centre in one of these polygons count: (N, 2) of (y, x), level 0.

    Returns
    -------
    list of Area
        In the order of `classes`; empty where nothing in the box is predicted yet.
    """
    labels, at, step = _labels(live, box)
    if outlines is not None:
        per_pixel = np.array(live.frame.downsample) * step
        labels = labels[np.any([Polygon([outline / per_pixel]).mask(at) for outline in outlines], axis=0)]
    counts = np.bincount(labels.ravel(), minlength=256)
    total = int(counts[1:].sum())
    if total == 0:
        return []
    dy, dx = live.frame.downsample
    pixels = dy * dx * step * step
    mpp = live.slide.mpp
    to_mm2 = None if mpp is None else mpp[0] * mpp[1] * 1e-6
    return [
        Area(
            c.id,
            c.name,
            c.colour,
            float(counts[c.id] * pixels),
            None if to_mm2 is None else float(counts[c.id] * pixels * to_mm2),
            float(counts[c.id] / total),
        )
        for c in classes
    ]


def predicted_share(live: LiveView, box: Box) -> float:
    """How much of the slide in a level-0 box is predicted, 0..1; 0 outside the slide."""
    labels, _, _ = _labels(live, box)
    return float((labels > 0).mean()) if labels.size else 0.0


def _labels(live: LiveView, box: Box) -> tuple[NDArray[Any], Box, int]:
    """Class ids under a level-0 box, their box in pixels of that size, and the size in prediction pixels."""
    level, at = live.part(box, MOST_PIXELS)
    return live.store.read(LABELS, level, at), at, 1 << level


def areas_of_slide(result: SlideResult, slide: Slide, classes: Sequence[ClassDef]) -> list[Area]:
    """The areas of a slide that was predicted as a whole; what was not predicted there is left out."""
    colours = {c.id: c.colour for c in classes}
    level0 = slide.shape[0] * slide.shape[1] / (result.shape[0] * result.shape[1])
    return [
        Area(r.class_id, r.class_name, colours.get(r.class_id, UNKNOWN), r.pixels * level0, r.mm2, r.percent / 100)
        for r in result.table
        if r.percent is not None and r.of_slide
    ]


def areas_csv(rows: Sequence[Area]) -> str:
    """A table of areas as CSV text with a heading."""
    lines = ["class,area_mm2,area_px,percent"]
    for a in rows:
        name = '"' + a.name.replace('"', '""') + '"'
        lines.append(f"{name},{'' if a.mm2 is None else f'{a.mm2:.6g}'},{a.pixels:.0f},{100 * a.share:.2f}")
    return "\n".join(lines) + "\n"
