"""How much of what is on screen is predicted to be which class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from napari_sparseseg.geometry import Box
from napari_sparseseg.live_tiles import LABELS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.live import LiveView

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


def areas(live: LiveView, box: Box, classes: Sequence[ClassDef]) -> list[Area]:
    """Predicted area of every class in a level-0 box, from the tiles that are there; nothing is computed.

    Returns
    -------
    list of Area
        In the order of `classes`; empty where nothing in the box is predicted yet.
    """
    store = live.store
    region = live.frame.cover(box).intersection(Box(0, 0, *store.shape))
    level = 0
    while level < store.n_levels - 1 and region.area >> (2 * level) > MOST_PIXELS:
        level += 1
    step = 1 << level
    y, x = region.y >> level, region.x >> level
    at = Box(y, x, -(-region.y1 // step) - y, -(-region.x1 // step) - x)
    counts = np.bincount(store.read(LABELS, level, at).ravel(), minlength=256)
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


def areas_csv(rows: Sequence[Area]) -> str:
    """A table of areas as CSV text with a heading."""
    lines = ["class,area_mm2,area_px,percent"]
    for a in rows:
        name = '"' + a.name.replace('"', '""') + '"'
        lines.append(f"{name},{'' if a.mm2 is None else f'{a.mm2:.6g}'},{a.pixels:.0f},{100 * a.share:.2f}")
    return "\n".join(lines) + "\n"
