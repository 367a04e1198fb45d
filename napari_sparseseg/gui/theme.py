"""Colours of napari's present theme; the panel has none of its own but the classes'."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from napari.utils.theme import get_theme

if TYPE_CHECKING:
    import napari


class Palette(NamedTuple):
    """``#rrggbb`` of the roles that the panel paints itself."""

    background: str
    foreground: str
    text: str
    muted: str
    accent: str
    warning: str
    error: str


def palette(viewer: napari.Viewer) -> Palette:
    """The colours of the theme that `viewer` shows now."""
    theme = get_theme(viewer.theme)
    background, text = _hex(theme.background), _hex(theme.text)
    return Palette(
        background=background,
        foreground=_hex(theme.foreground),
        text=text,
        muted=mix(text, background, 0.35),
        accent=_hex(theme.current),
        warning=_hex(theme.warning),
        error=mix(_hex(theme.error), text, 0.45),
    )


def mix(colour: str, other: str, share: float) -> str:
    """`colour` with a `share` (0..1) of `other` in it."""
    pairs = zip(_parts(colour), _parts(other), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def _parts(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _hex(colour: object) -> str:
    as_hex = getattr(colour, "as_hex", None)
    text = as_hex("long") if as_hex is not None else str(colour)
    return str(text)[:7]
