"""Micrometres per pixel from what a file says: one reading of numbers and units, one plausible range, one choice."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

Mpp = tuple[float, float]
FINEST, COARSEST = 0.05, 20.0
"""Plausible um per pixel of a slide. The defaults of programs, 72 and 96 dots per inch (350 and 260 um), are not."""
AGREE = 0.05
"""Two sources that differ by less than this share agree."""
_UNITS_UM = {
    "um": 1.0, "micron": 1.0, "micrometer": 1.0, "micrometre": 1.0, "nm": 1e-3, "nanometer": 1e-3,
    "nanometre": 1e-3, "mm": 1e3, "millimeter": 1e3, "millimetre": 1e3, "cm": 1e4, "centimeter": 1e4, "centimetre": 1e4,
    "m": 1e6, "meter": 1e6, "metre": 1e6, "inch": 25400.0, "inches": 25400.0, "in": 25400.0, "å": 1e-4,
    "angstrom": 1e-4, "pm": 1e-6, "picometer": 1e-6,
}  # fmt: skip
_NUMBER = re.compile(r"\s*([-+]?(?:\d+[.,]?\d*|[.,]\d+)(?:[eE][-+]?\d+)?)")


class Claim(NamedTuple):
    """What one place in a file says about the resolution."""

    source: str
    y: float | None
    """um per pixel; None if missing. One axis stands for both."""
    x: float | None
    is_default: bool = False
    """Whether the source often holds a program's default; an implausible value is then ignored without a warning."""


class Resolution(NamedTuple):
    """The chosen resolution of a slide."""

    mpp: Mpp | None
    """um per level-0 pixel (y, x)."""
    source: str
    warnings: tuple[str, ...]


def number(text: Any) -> float | None:
    """The number at the start of a text, with a decimal point or comma (``40``, ``40x``, ``0,2520``); None if none."""
    found = _NUMBER.match(str(text)) if text is not None else None
    value = float(found.group(1).replace(",", ".")) if found else math.nan
    return value if math.isfinite(value) else None


def micrometres(unit: Any) -> float | None:
    """Length of a unit in um, for any usual spelling (µm, micron, millimetres); None if it is not a length."""
    name = str(unit or "").strip().replace("\\u00B5", "u").replace("\u00b5", "u").replace("\u03bc", "u").lower()
    return _UNITS_UM.get(name, _UNITS_UM.get(name.rstrip("s")))


def length_um(value: Any, unit: Any) -> float | None:
    """A length with its unit in um; None if either is missing or makes no sense."""
    size, factor = number(value), micrometres(unit)
    return None if size is None or factor is None else size * factor


def resolve(claims: Iterable[Claim]) -> Resolution:
    """Choose the first plausible claim; say which claims are implausible and which contradict the chosen one.

    Parameters
    ----------
    claims
        In order of trust.
    """
    mpp: Mpp | None = None
    source, warnings = "", []
    for claim in claims:
        y, x = claim.y or claim.x, claim.x or claim.y
        if y is None or x is None or not (math.isfinite(y) and math.isfinite(x)) or min(y, x) <= 0:
            continue
        says = f"{claim.source}: {_text(y, x)} um per px"
        if not all(FINEST <= v <= COARSEST for v in (y, x)):
            if not claim.is_default:
                warnings.append(f"{says} is implausible (outside {FINEST} to {COARSEST:g}) and ignored")
        elif mpp is None:
            mpp, source = (y, x), claim.source
        elif max(abs(y / mpp[0] - 1), abs(x / mpp[1] - 1)) > AGREE:
            warnings.append(f"{says} contradicts {source} ({_text(*mpp)}), which is used")
    return Resolution(mpp, source, tuple(warnings))


def _text(y: float, x: float) -> str:
    return f"{y:.4g}" if abs(y / x - 1) < 1e-3 else f"{y:.4g} x {x:.4g}"
