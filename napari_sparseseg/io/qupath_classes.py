"""The class table of a QuPath project, or of objects exported from one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_sparseseg.config import MAX_CLASS_ID, PALETTE, ClassDef
from napari_sparseseg.errors import AnnotationError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

CLASSES = Path("classifiers") / "classes.json"
MOST_BYTES = 500_000_000


def read_classes(path: str | os.PathLike[str], known: Sequence[ClassDef] = ()) -> tuple[ClassDef, ...]:
    """The classes in a QuPath file added to those there are; same names (in any case) keep their id and get its colour.

    Parameters
    ----------
    path
        ``project.qpproj``, its folder, its ``classifiers/classes.json``, or GeoJSON of objects.
    known
        The table to begin with.

    Raises
    ------
    AnnotationError
        Where the file cannot be read or names no class.
    """
    file = _file(Path(path))
    table = list(known)
    found = False
    for name, colour in _named(_load(file)):
        found = True
        at = next((i for i, c in enumerate(table) if c.name.casefold() == name.casefold()), None)
        if at is not None:
            table[at] = ClassDef(table[at].id, table[at].name, colour or table[at].colour)
            continue
        used = {c.id for c in table}
        free = next((i for i in range(1, MAX_CLASS_ID + 1) if i not in used), None)
        if free is None:
            raise AnnotationError(f"{file.name} has more classes than fit: {MAX_CLASS_ID} are possible.")
        table.append(ClassDef(free, name, colour or PALETTE[(free - 1) % len(PALETTE)]))
    if not found:
        raise AnnotationError(
            f"{file.name} names no class; choose a QuPath project (project.qpproj), its classifiers/classes.json, "
            "or GeoJSON of classified objects."
        )
    return tuple(table)


def _file(path: Path) -> Path:
    if path.suffix.lower() == ".qpproj":
        path = path.parent
    return path / CLASSES if path.is_dir() else path


def _load(file: Path) -> Any:
    try:
        if file.stat().st_size > MOST_BYTES:
            raise AnnotationError(f"{file.name} is too large for a class table.")
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise AnnotationError(f"cannot read {file}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{file.name} is no JSON: {error}.") from error


def _named(data: Any) -> Iterator[tuple[str, str]]:
    """Names and colours, in the order of the file; the colour is empty where there is none."""
    if isinstance(data, dict) and isinstance(data.get("pathClasses"), list):
        labels = data["pathClasses"]
    else:
        features = data.get("features", [data]) if isinstance(data, dict) else data
        properties = (
            [f.get("properties") for f in features if isinstance(f, dict)] if isinstance(features, list) else []
        )
        labels = [p.get("classification") for p in properties if isinstance(p, dict)]
    for label in labels:
        if isinstance(label, str):
            label = {"name": label}
        if isinstance(label, dict):
            names = label.get("names")
            name = ": ".join(map(str, names)) if isinstance(names, list) and names else label.get("name")
            if isinstance(name, str) and name.strip():
                yield name.strip(), _colour(label)


def _colour(label: dict[str, Any]) -> str:
    """QuPath writes [r, g, b], or alpha, red, green, blue packed into one signed integer."""
    for value in (label.get("color"), label.get("colorRGB")):
        if isinstance(value, list) and len(value) in (3, 4) and all(isinstance(v, int) for v in value):
            return "#" + "".join(f"{min(255, max(0, v)):02x}" for v in value[:3])
        if isinstance(value, int):
            return f"#{value & 0xFFFFFF:06x}"
    return ""
