"""Lengths and magnifications on the screen, as a microscope gives them.

A magnification is that of the objective: 10x is 1 um per screen pixel, so that 40x is 0.25 um and 20x is 0.5 um, as
scanners have it. World coordinates are level-0 pixels, and zooms are screen pixels per level-0 pixel.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

UM_AT_1X = 10.0
"""Micrometres per pixel of an objective of 1x."""
STEPS = (1.0, 2.0, 5.0)
"""Lengths of scale bars are these times a power of ten."""
LONGEST_PX = 150.0
"""Screen pixels; the shortest is 2.5 times shorter."""
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?")


class Bar(NamedTuple):
    """A scale bar."""

    pixels: float
    """Its length on the screen."""
    text: str
    """Its length on the slide: ``200 µm``, ``2 mm``, ``500 px``."""


def magnification(mpp: float, zoom: float) -> float:
    """The objective that shows the slide as large as the screen does.

    Examples
    --------
    >>> magnification(0.25, 1.0), magnification(0.25, 0.5)
    (40.0, 20.0)
    """
    return UM_AT_1X * zoom / mpp


def zoom_of(mpp: float, objective: float) -> float:
    """The inverse of `magnification`."""
    return objective * mpp / UM_AT_1X


def magnification_text(objective: float) -> str:
    """``20×`` for 20.04, ``0.85×`` for 0.8512; two figures are as exact as scanners are."""
    digits = max(0, 1 - math.floor(math.log10(objective)))
    return f"{round(objective, digits):g}×"


def scale_bar(zoom: float, mpp: float | None, longest: float = LONGEST_PX) -> Bar:
    """The scale bar at a zoom: the longest round length that takes at most `longest` screen pixels.

    Parameters
    ----------
    zoom
        Screen pixels per level-0 pixel.
    mpp
        Micrometres per level-0 pixel along the bar; None: the bar is in pixels.

    Examples
    --------
    >>> scale_bar(0.1, 0.5)
    Bar(pixels=100.0, text='500 µm')
    """
    unit = zoom if mpp is None else zoom / mpp  # screen pixels per px or um
    most = longest / unit
    power = 10.0 ** math.floor(math.log10(most))
    length = max(step * power for step in STEPS if step * power <= most * (1 + 1e-9))
    return Bar(length * unit, f"{length:g} px" if mpp is None else length_text(length))


def length_text(um: float) -> str:
    """A length of up to three figures in nm, um or mm."""
    for factor, unit in ((1e-3, "mm"), (1.0, "µm")):
        if um * factor >= 0.9995:
            return f"{_figures(um * factor)} {unit}"
    return f"{_figures(um * 1e3)} nm"


def _figures(value: float) -> str:
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{round(value, digits):g}" if value < 1e6 else f"{value:.3g}"


def point_of(text: str) -> tuple[float, float] | None:
    """The (y, x) of "x, y" as typed or pasted, whatever is between the numbers; None where these are not two.

    Examples
    --------
    >>> point_of("x 1200.5, y 30"), point_of("(7; -1)"), point_of("12")
    ((30.0, 1200.5), (-1.0, 7.0), None)
    """
    found = [float(n) for n in _NUMBER.findall(text)]
    return (found[1], found[0]) if len(found) == 2 else None
