"""GeoJSON as QuPath writes and reads it; (x, y) in level-0 pixels.

Read: a FeatureCollection, a Feature, a bare geometry or a list of them; Polygon, MultiPolygon (holes too),
LineString and Point with their multiples, GeometryCollection; classifications by name, by names (``A: B``) or as text;
colours as ``color`` or ``colorRGB``. Locked objects are read like all others. Written: one Feature per connected
region, outlined along the pixels' sides, and one per dense region, marked in its ``metadata``.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_sparseseg.config import ClassDef
from napari_sparseseg.errors import AnnotationError, SparseSegError
from napari_sparseseg.io.shapes import (
    THIN_RADIUS,
    UNCLASSIFIED,
    ClassLookup,
    Document,
    Drawn,
    points_xy,
    read_file,
    to_annotations,
    write_file,
)
from napari_sparseseg.io.trace import trace

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence
    from typing import TextIO

    import numpy as np
    from numpy.typing import NDArray

    from napari_sparseseg.annotations import Annotations
    from napari_sparseseg.io.shapes import Classes, Progress

MARK = "napari-sparseseg"
MAX_DEPTH = 20
MAX_MEMORY = 4 << 30
"""Bytes that a parsed file may take; counted before it is parsed."""
_MEMBERS = {"FeatureCollection": "features", "GeometryCollection": "geometries"}
_NAMESPACE = uuid.UUID("8a9a7b1e-6f0c-5a9e-9a4b-2f2d7c1f5e10")


def read_geojson(
    path: str | os.PathLike[str],
    shape: tuple[int, int],
    classes: Classes | None = None,
    *,
    progress: Progress | None = None,
) -> Annotations:
    """Annotations from a GeoJSON file.

    Parameters
    ----------
    path
        The file.
    shape
        Slide (H, W) in level-0 pixels; what lies outside is left out.
    classes
        Class table to start from; the file's names are matched whatever their case, new ones are appended.
    progress
        Called now and then with (drawn, all).

    Raises
    ------
    AnnotationError
        Where the file is not GeoJSON, or contains something that cannot be drawn.
    """
    return to_annotations(read_file(path, lambda data: parse_geojson(_load(data))), shape, classes, progress)


def _load(text: bytes) -> Any:
    if _memory_of(text) > MAX_MEMORY:
        raise AnnotationError(f"it would take more than {MAX_MEMORY >> 30} GB of memory to read it; split it.")
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise AnnotationError("it is nested far too deeply for GeoJSON.") from error
    except ValueError as error:
        raise AnnotationError(f"it is not valid JSON: {error}.") from error


def _memory_of(text: bytes) -> int:
    """Upper bound of the bytes of parsed JSON: lists, dictionaries and values, counted by their separators."""
    lists, tables, commas = (text.count(mark) for mark in (b"[", b"{", b","))
    return 88 * lists + 232 * tables + 40 * (lists + tables + commas)


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number that JSON allows")


def shape_in(path: Path) -> tuple[int, int] | None:
    """The slide's (H, W) in a file that this program wrote; None for any other."""
    data = read_file(path, _load)
    mark = data.get(MARK) if isinstance(data, dict) else None
    shape = mark.get("shape") if isinstance(mark, dict) else None
    if isinstance(shape, list) and len(shape) == 2 and all(isinstance(n, int) for n in shape):
        return shape[0], shape[1]
    return None


def parse_geojson(data: Any) -> Document:
    """The shapes in parsed GeoJSON.

    Raises
    ------
    AnnotationError
        Where it contains something that cannot be drawn.
    """
    document = Document()
    if isinstance(data, dict):
        document.classes = _own_classes(data.get(MARK))
    _read(data, document, Drawn(UNCLASSIFIED, "polygon", []), 0)
    return document


def _own_classes(mark: Any) -> list[ClassDef]:
    if mark is None:
        return []
    try:
        return [ClassDef(int(c["id"]), str(c["name"]), str(c["colour"])) for c in mark["classes"]]
    except (TypeError, KeyError, ValueError, SparseSegError) as error:
        raise AnnotationError(f"the class table in {MARK!r} cannot be read: {error}.") from error


def _read(data: Any, document: Document, style: Drawn, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise AnnotationError("geometries are nested too deeply.")
    if isinstance(data, list):
        for item in data:
            _read(item, document, style, depth + 1)
        return
    if not isinstance(data, dict):
        raise AnnotationError(f"expected GeoJSON objects, found {type(data).__name__}.")
    kind = data.get("type")
    if kind in _MEMBERS:
        _read(_list(data, _MEMBERS[kind]), document, style, depth + 1)
    elif kind == "Feature":
        if data.get("geometry") is not None:
            _read(data["geometry"], document, _style(data.get("properties")), depth + 1)
    else:
        _draw(kind, data.get("coordinates"), document, style)


def _draw(kind: Any, coordinates: Any, document: Document, style: Drawn) -> None:
    for rings, is_line in _geometry(kind, coordinates):
        if is_line:
            document.add(Drawn(style.name, "brush", rings, style.colour, style.radius or THIN_RADIUS))
        elif all(len(ring) >= 3 for ring in rings):
            document.add(Drawn(style.name, style.kind, rings, style.colour))


def _list(data: dict[str, Any], key: str) -> list[Any]:
    value = data.get(key)
    if not isinstance(value, list):
        raise AnnotationError(f"{data.get('type')} needs a list of {key}, found {type(value).__name__}.")
    return value


def _geometry(kind: Any, coordinates: Any) -> Iterator[tuple[list[NDArray[np.float64]], bool]]:
    """(rings, whether they are lines or dots) of the parts of a geometry."""
    if not isinstance(coordinates, list):
        raise AnnotationError(
            f"a geometry of type {kind!r} needs a list of coordinates, found {type(coordinates).__name__}."
        )
    if not coordinates:
        return
    if kind == "Polygon":
        yield [points_xy(ring) for ring in coordinates], False
    elif kind == "MultiPolygon":
        for polygon in coordinates:
            yield from _geometry("Polygon", polygon)
    elif kind == "LineString":
        yield [points_xy(coordinates)], True
    elif kind == "MultiLineString":
        yield [points_xy(line) for line in coordinates], True
    elif kind in ("Point", "MultiPoint"):
        points = points_xy([coordinates] if kind == "Point" else coordinates)
        yield [point[None] for point in points], True
    else:
        raise AnnotationError(
            f"geometries of type {kind!r} are not known; use Polygon, LineString, Point or their multiples."
        )


def _style(properties: Any) -> Drawn:
    """Class, colour, kind and width of a Feature."""
    if properties is None:
        return Drawn(UNCLASSIFIED, "polygon", [])
    if not isinstance(properties, dict):
        raise AnnotationError(f"the properties of a Feature must be an object, found {type(properties).__name__}.")
    label = properties.get("classification")
    name, colour = _classification(label if label is not None else properties.get("class"))
    metadata = properties.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    kind = "dense" if metadata.get(MARK) == "dense" else "polygon"
    return Drawn(name, kind, [], colour, _width(metadata.get("radius")))


def _width(value: Any) -> float:
    try:
        radius = float(value) if isinstance(value, (str, int, float)) else 0.0
    except ValueError:
        return 0.0
    return radius if 0 < radius < 1e6 else 0.0


def _classification(label: Any) -> tuple[str, str]:
    if label is None:
        return UNCLASSIFIED, ""
    if isinstance(label, str):
        return label, ""
    if not isinstance(label, dict):
        raise AnnotationError(f"a classification must be a name or an object, found {type(label).__name__}.")
    names = label.get("names")
    name = label.get("name")
    if isinstance(names, list) and names:
        name = ": ".join(str(n) for n in names)
    if name is not None and not isinstance(name, str):
        raise AnnotationError(f"the name of a classification must be a text, found {type(name).__name__}.")
    return name or UNCLASSIFIED, _colour(label)


def _colour(label: dict[str, Any]) -> str:
    """A colour as QuPath writes it: [r, g, b], or alpha, red, green and blue packed into one signed integer."""
    for value in (label.get("color"), label.get("colorRGB")):
        if isinstance(value, int):
            return f"#{value & 0xFFFFFF:06x}"
        if (
            isinstance(value, list)
            and len(value) in (3, 4)
            and all(isinstance(v, int) and 0 <= v <= 255 for v in value)
        ):
            return "#{:02x}{:02x}{:02x}".format(*value[:3])
    return ""


def write_geojson(annotations: Annotations, path: str | os.PathLike[str]) -> None:
    """Write annotations as GeoJSON, labels outlined exactly; reading it back gives the same labels.

    Raises
    ------
    AnnotationError
        Where the file cannot be written.
    """
    snapshot = annotations.snapshot()
    classes = {c.id: c for c in snapshot.classes}
    table = [{"id": c.id, "name": c.name, "colour": c.colour} for c in snapshot.classes]
    head = {"type": "FeatureCollection", MARK: {"classes": table, "shape": list(snapshot.shape)}}

    def features() -> Iterator[dict[str, Any]]:
        for region in snapshot.dense_regions:
            # Coordinates keep all digits: an edge may pass a pixel's centre by less than any number of decimals.
            dense = {"name": "dense region", "metadata": {MARK: "dense"}}
            yield _feature(region.parts(), classes[region.class_id], dense)
        for outline in trace(snapshot.scribbles):
            yield _feature([outline.shell, *outline.holes], classes[outline.class_id], {})

    def write(file: TextIO) -> None:
        file.write(json.dumps(head)[:-1] + ', "features": [')
        for number, feature in enumerate(features()):
            file.write((",\n" if number else "\n") + json.dumps(feature))
        file.write("\n]}\n")

    write_file(path, write)


def _feature(rings: Sequence[NDArray[Any]], label: ClassDef, more: dict[str, Any]) -> dict[str, Any]:
    coordinates = []
    for ring in rings:
        corners = ring[:, ::-1].tolist()
        coordinates.append(corners if corners[0] == corners[-1] else [*corners, corners[0]])
    number = uuid.uuid5(_NAMESPACE, f"{label.id} {more} {coordinates[0][:3]} {len(coordinates[0])}")
    return {
        "type": "Feature",
        "id": str(number),
        "geometry": {"type": "Polygon", "coordinates": coordinates},
        "properties": {
            "objectType": "annotation",
            "classification": {"name": label.name, "color": list(label.rgb)},
            **more,
        },
    }


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
    named = read_file(file, lambda text: list(_labels(_load(text))))
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
            name, colour = _classification(label)
            if name.strip() and name != UNCLASSIFIED:
                yield name, colour
