"""Class tables of QuPath: of a project, of its ``classes.json``, or of the objects in a GeoJSON file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.io.geojson import classification_of, load_json
from napari_sparseseg.io.shapes import ClassLookup
from napari_sparseseg.io.text_files import read_bytes

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from napari_sparseseg.config import ClassDef


def read_classes(path: str | os.PathLike[str], known: Sequence[ClassDef] = ()) -> tuple[ClassDef, ...]:
    """The classes of a QuPath file added to a table; those of the same name (in any case) keep their id.

    Parameters
    ----------
    path
        ``project.qpproj``, its folder, its ``classifiers/classes.json``, or GeoJSON of objects.
    known
        The table to begin with; its classes get the colours of the file.

    Raises
    ------
    AnnotationError
        Where the file cannot be read or names no class.
    """
    file = Path(path)
    if file.suffix.lower() == ".qpproj":
        file = file.parent
    if file.is_dir():
        file = file / "classifiers" / "classes.json"
    table = ClassLookup(known)
    data = read_bytes(file)
    try:
        named = list(_labels(load_json(data)))
    except AnnotationError as error:
        raise AnnotationError(f"{file.name}: {error}") from error
    for name, colour in named:
        table.id_of(name, colour)
        if colour:
            table.recolour(name, colour)
    if not named:
        raise AnnotationError(
            f"{file.name} names no class; choose a QuPath project (project.qpproj), its classifiers/classes.json, "
            "or GeoJSON of classified objects."
        )
    return tuple(table.classes)


def _labels(data: Any) -> Iterator[tuple[str, str]]:
    """Names and colours of a QuPath file's classes, in its order; the colour is empty where there is none."""
    if isinstance(data, dict) and isinstance(data.get("pathClasses"), list):
        labels = data["pathClasses"]
    else:
        features = data.get("features", [data]) if isinstance(data, dict) else data
        features = features if isinstance(features, list) else []
        properties = [f.get("properties") for f in features if isinstance(f, dict)]
        labels = [p.get("classification") for p in properties if isinstance(p, dict)]
    for label in labels:
        if isinstance(label, (str, dict)):
            name, colour = classification_of({"classification": label})
            if name:
                yield name, colour
