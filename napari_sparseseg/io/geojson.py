"""GeoJSON as QuPath writes and reads it; (x, y) in level-0 pixels.

Read: a FeatureCollection, a Feature, a bare geometry or a list of them; Polygon, MultiPolygon (holes too),
LineString and Point with their multiples, GeometryCollection; classifications by name, by names (``A: B``) or as text;
colours as ``color`` or ``colorRGB``. What is locked is read like everything else. Written: one Feature per connected
region, outlined along the pixels' sides, and one per dense region, marked in its ``metadata``.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_sparseseg.config import ClassDef
from napari_sparseseg.errors import AnnotationError, SparseSegError
from napari_sparseseg.files import write_atomic
from napari_sparseseg.io.shapes import (
    MAX_BYTES,
    THIN_RADIUS,
    UNCLASSIFIED,
    Document,
    Drawn,
    points_xy,
    to_annotations,
)
from napari_sparseseg.io.trace import trace

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

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
        Where the file is no GeoJSON, or holds something that cannot be drawn.
    """
    source = Path(path)
    try:
        return to_annotations(parse_geojson(_load(source)), shape, classes, progress)
    except AnnotationError as error:
        raise AnnotationError(f"{source.name}: {error}") from error


def _load(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise AnnotationError(f"the file is larger than {MAX_BYTES >> 30} GB; split it.")
        text = path.read_bytes()
        if _memory_of(text) > MAX_MEMORY:
            raise AnnotationError(f"it would take more than {MAX_MEMORY >> 30} GB of memory to read it; split it.")
        return json.loads(text, parse_constant=_no_constant)
    except OSError as error:
        raise AnnotationError(f"it cannot be opened: {error.strerror or error}.") from error
    except RecursionError as error:
        raise AnnotationError("it is nested far too deeply for GeoJSON.") from error
    except ValueError as error:
        raise AnnotationError(f"it is not valid JSON: {error}.") from error


def _memory_of(text: bytes) -> int:
    """What Python takes for parsed JSON, at most: lists, dictionaries and values by their separators."""
    lists, tables, commas = (text.count(mark) for mark in (b"[", b"{", b","))
    return 88 * lists + 232 * tables + 40 * (lists + tables + commas)


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number that JSON allows")


def head_of(path: Path) -> dict[str, Any]:
    """The members of a GeoJSON object; empty where the file holds a list."""
    data = _load(path)
    return data if isinstance(data, dict) else {}


def parse_geojson(data: Any) -> Document:
    """The shapes in parsed GeoJSON.

    Raises
    ------
    AnnotationError
        Where it holds something that cannot be drawn.
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
    rgb = label.get("color")
    packed = label.get("colorRGB")
    if isinstance(rgb, list) and len(rgb) in (3, 4) and all(isinstance(v, int) and 0 <= v <= 255 for v in rgb):
        return "#{:02x}{:02x}{:02x}".format(*rgb[:3])
    if isinstance(packed, int):
        return f"#{packed & 0xFFFFFF:06x}"
    return ""


def write_geojson(annotations: Annotations, path: str | os.PathLike[str]) -> None:
    """Write annotations as GeoJSON, labels outlined exactly; reading it back gives the same labels.

    Raises
    ------
    AnnotationError
        Where the file cannot be written.
    """
    target = Path(path)
    snapshot = annotations.snapshot()
    classes = {c.id: c for c in snapshot.classes}
    table = [{"id": c.id, "name": c.name, "colour": c.colour} for c in snapshot.classes]
    head = {"type": "FeatureCollection", MARK: {"classes": table, "shape": list(snapshot.shape)}}

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(head)[:-1] + ', "features": [')
            between = "\n"
            for region in snapshot.dense_regions:
                # As they are: an edge may pass a pixel's centre by less than any number of decimals.
                dense = {"name": "dense region", "metadata": {MARK: "dense"}}
                file.write(between + json.dumps(_feature(region.parts(), classes[region.class_id], dense)))
                between = ",\n"
            for outline in trace(snapshot.scribbles):
                parts: list[NDArray[Any]] = [outline.shell, *outline.holes]
                file.write(between + json.dumps(_feature(parts, classes[outline.class_id], {})))
                between = ",\n"
            file.write("\n]}\n")

    try:
        write_atomic(target, write)
    except OSError as error:
        raise AnnotationError(f"cannot write {target}: {error.strerror or error}.") from error


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
