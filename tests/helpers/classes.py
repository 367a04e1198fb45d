"""Changing class tables as the panel does: with a whole new table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_sparseseg.config import ClassDef

if TYPE_CHECKING:
    from napari_sparseseg import Annotations


def add_class(annotations: Annotations, name: str, colour: str = "#123456") -> int:
    """Append a class with the next free id, which is returned."""
    new_id = max((c.id for c in annotations.classes), default=0) + 1
    annotations.set_classes([*annotations.classes, ClassDef(new_id, name, colour)])
    return new_id


def rename_class(annotations: Annotations, class_id: int, name: str) -> None:
    """Give a class another name."""
    annotations.set_classes([ClassDef(c.id, name, c.colour) if c.id == class_id else c for c in annotations.classes])
