"""Class tables to begin with.

Colours: Okabe & Ito first, then Paul Tol's muted set, both made for colour blindness. Glass is grey in every table, so
that it draws no eye, and nothing has the pink of eosin while other colours are left.
"""

from __future__ import annotations

from qtpy.QtGui import QColor

from napari_sparseseg.config import GREY, PALETTE, ClassDef, make_classes

_MORE = ("#332288", "#882255", "#44aa99", "#117733", "#ddcc77", "#aa4499")
_VIVID = tuple(c for c in PALETTE if c != GREY)
COLOURS = (*_VIVID[:-1], *_MORE, _VIVID[-1], GREY)
BACKGROUND = "background"


def _table(*names: str) -> tuple[ClassDef, ...]:
    return make_classes((name, GREY if name == BACKGROUND else COLOURS[i]) for i, name in enumerate(names))


PRESETS: dict[str, tuple[ClassDef, ...]] = {
    "Tissue and background": _table("tissue", "background"),
    "Tumour and stroma": _table("tumour", "stroma", "other tissue", "background"),
    "Tumour, stroma, necrosis, lymphocytes": _table("tumour", "stroma", "necrosis", "lymphocytes", "background"),
    "Colorectal tissue": _table(
        "tumour epithelium", "stroma", "normal mucosa", "smooth muscle", "lymphocytes", "mucus", "adipose", "debris",
        "background",
    ),
    "Artefacts": _table("tissue", "fold", "out of focus", "pen", "bubble", "background"),
}  # fmt: skip
"""Colorectal: the nine classes of Kather et al., PLoS Medicine 16(1), 2019 (NCT-CRC-HE-100K)."""


def next_colour(classes: tuple[ClassDef, ...]) -> str:
    """The first colour that no class has yet; after the last one their darker and lighter shades."""
    used = {c.colour.lower() for c in classes}
    shades = [COLOURS, *([QColor(c).darker(percent).name() for c in COLOURS] for percent in (165, 60, 230))]
    return next((c for shade in shades for c in shade if c not in used), COLOURS[len(classes) % len(COLOURS)])


def next_name(classes: tuple[ClassDef, ...]) -> str:
    """``class N`` that no class has yet."""
    used = {c.name.casefold() for c in classes}
    return next(f"class {n}" for n in range(len(classes) + 1, 600) if f"class {n}" not in used)
