"""Class tables to begin with. Colours: Okabe & Ito first, then Paul Tol's muted set, both made for colour blindness."""

from __future__ import annotations

from napari_sparseseg.config import PALETTE, ClassDef, make_classes

_MORE = ("#882255", "#44aa99", "#332288", "#ddcc77", "#117733", "#aa4499")
COLOURS = (*PALETTE, *_MORE)


def _table(*names: str) -> tuple[ClassDef, ...]:
    return make_classes(zip(names, COLOURS, strict=False))


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
    """The first colour that no class has yet."""
    used = {c.colour.lower() for c in classes}
    return next((c for c in COLOURS if c not in used), COLOURS[len(classes) % len(COLOURS)])


def next_name(classes: tuple[ClassDef, ...]) -> str:
    """``class N`` that no class has yet."""
    used = {c.name.casefold() for c in classes}
    return next(f"class {n}" for n in range(len(classes) + 1, 600) if f"class {n}" not in used)
