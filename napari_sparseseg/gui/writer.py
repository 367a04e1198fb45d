"""Saving scribbles from napari's File menu: all of them, in formats that can be opened again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_sparseseg.io import save_as

if TYPE_CHECKING:
    from os import PathLike

    from napari_sparseseg.annotations import Annotations

SUFFIXES = (".sparseseg", ".geojson", ".xml")
"""Saved by this plugin; images are left to napari's writers, or to `exchange.write_labels` where they are too large."""


def save_annotations(annotations: Annotations, path: str | PathLike[str]) -> list[str]:
    """Save by suffix and return what was written; an unknown suffix is an `AnnotationError`."""
    save_as(annotations, path)
    return [str(Path(path))]


def write_scribbles(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Writer of the plugin for one labels layer; others than scribbles are left to napari (empty list)."""
    annotations = getattr(data, "annotations", None)
    return [] if annotations is None else save_annotations(annotations, path)
