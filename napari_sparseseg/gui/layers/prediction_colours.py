"""Colours of a prediction: of classes and of uncertainties, and their dimmed twins for what is outdated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils import DirectLabelColormap
from napari.utils.colormaps import ensure_colormap

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from napari_sparseseg.config import ClassDef

RAMP = "viridis"
"""Perceptually uniform, and readable with every kind of colour blindness."""
CLEAR = (0.0, 0.0, 0.0, 0.0)
DIM_ALPHA = 0.5
"""Opacity of an outdated prediction relative to a current one."""
GREY = np.array([0.299, 0.587, 0.114])
"""Luma of red, green and blue (ITU-R BT.601)."""


def class_colours(classes: Sequence[ClassDef], hidden: Collection[int] = ()) -> DirectLabelColormap:
    """Colours of the classes with those in `hidden` transparent; 0 and unknown ids are transparent too."""
    table: dict[int | None, Any] = {None: CLEAR, 0: CLEAR}
    codes = dim_codes(classes)
    for c in classes:
        table[c.id] = CLEAR if c.id in hidden else c.colour
        if codes[c.id] != c.id:
            table[int(codes[c.id])] = CLEAR if c.id in hidden else _dimmed(np.array(c.rgb) / 255, 1.0)
    return DirectLabelColormap(color_dict=table)


def dim_codes(classes: Sequence[ClassDef]) -> np.ndarray:
    """uint8 (256,): the dimmed code of each class id; with more than 127 classes, some have none and keep theirs."""
    codes = np.arange(256, dtype=np.uint8)
    ids = {c.id for c in classes}
    for class_id, code in zip(sorted(ids), (n for n in range(1, 256) if n not in ids), strict=False):
        codes[class_id] = code
    return codes


def ramp_colours(rgb: np.ndarray) -> DirectLabelColormap:
    """One colour per byte, more opaque for higher values; even values are those of an outdated model.

    Parameters
    ----------
    rgb
        float (256, 3), 0..1.
    """
    table: dict[int | None, Any] = {None: CLEAR, 0: CLEAR}
    for value in range(1, 256):
        opaque = value / 255
        table[value] = (*(float(c) for c in rgb[value]), opaque) if value % 2 else _dimmed(rgb[value], opaque)
    return DirectLabelColormap(color_dict=table)


def ramp_rgb(steps: int) -> np.ndarray:
    """Colours of an uncertainty from 0 to 1, float (steps, 3), 0..1."""
    rgb: np.ndarray = ensure_colormap(RAMP).map(np.linspace(0, 1, steps))[:, :3]
    return rgb


def _dimmed(rgb: np.ndarray, alpha: float) -> tuple[float, ...]:
    return (*(float(c) for c in (rgb + GREY @ rgb) / 2), alpha * DIM_ALPHA)
