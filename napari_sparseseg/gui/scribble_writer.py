"""Saving scribbles from napari's File menu: all of them, in formats that can be opened again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_sparseseg.errors import AnnotationError

if TYPE_CHECKING:
    from os import PathLike

    from napari_sparseseg.annotations import Annotations

SUFFIXES = (".sparseseg", ".geojson")


def save_annotations(annotations: Annotations, path: str | PathLike[str]) -> list[str]:
    """Save by suffix and return what was written; an unknown suffix is an `AnnotationError`."""
    suffix = Path(path).suffix.lower()
    if suffix == ".geojson":
        annotations.to_geojson(path)
    elif suffix == ".sparseseg":
        annotations.save(path)
    else:
        raise AnnotationError(
            f"cannot save scribbles as {suffix or 'a file without suffix'}; use .sparseseg or .geojson."
        )
    return [str(path)]


def write_scribbles(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Writer of the plugin for one labels layer; others than scribbles are left to napari (empty list)."""
    annotations = getattr(data, "annotations", None)
    return [] if annotations is None else save_annotations(annotations, path)
