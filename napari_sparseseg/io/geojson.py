"""GeoJSON as QuPath writes and reads it; (x, y) in level-0 pixels.

Read: a FeatureCollection, a Feature, a bare geometry or a list of them; Polygon, MultiPolygon (holes too),
LineString and Point with their multiples, GeometryCollection; child objects; classifications by name, by names
(``A: B``) or as text; colours as ``color`` or ``colorRGB``. Objects without a class, and those of classes that end with
a star, are kept but label nothing. Detections, cells, tiles and objects on other planes are left out.

Written: one Feature per connected region, outlined along the pixels' sides, one per dense region, marked in its
``metadata``, and the objects that label nothing.
"""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_sparseseg.config import ClassDef
from napari_sparseseg.errors import AnnotationError, SparseSegError
from napari_sparseseg.io.shapes import (
    THIN_RADIUS,
    Document,
    Drawn,
    FileLimitError,
    moved,
    points_xy,
    to_annotations,
)
from napari_sparseseg.io.text_files import read_bytes, write_text
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
_NAMESPACE = uuid.UUID("8a9a7b1e-6f0c-5a9e-9a4b-2f2d7c1f5e10")
# By ``objectType``, and by the ``id`` that QuPath wrote before version 0.3.
_NOT_DRAWN = {
    "detection": "detections",
    "cell": "cells",
    "tile": "tiles",
    "PathDetectionObject": "detections",
    "PathCellObject": "cells",
    "PathTileObject": "tiles",
}
# Members by which other JSON formats are recognised.
_OTHER_FORMATS = {
    "COCO": {"images", "annotations", "categories"},
    "labelme": {"shapes", "imagePath"},
    "V7 Darwin": {"annotations", "item"},
    "V7 Darwin (version 1)": {"annotations", "image", "dataset"},
    "VGG Image Annotator": {"_via_img_metadata"},
    "the Digital Slide Archive": {"elements"},
    "the Digital Slide Archive (whole document)": {"_id", "annotation"},
    "Label Studio": {"annotations", "data"},
    "Supervisely": {"objects", "size"},
    "TopoJSON": {"objects", "arcs"},
}


def read_geojson(
    path: str | os.PathLike[str],
    shape: tuple[int, int],
    classes: Classes | None = None,
    *,
    origin: tuple[float, float] = (0.0, 0.0),
    progress: Progress | None = None,
) -> Annotations:
    """Annotations from a GeoJSON file, also compressed by gzip or zip.

    Parameters
    ----------
    path
        The file.
    shape
        Slide (H, W) in level-0 pixels; what lies outside is left out.
    classes
        Class table to start from; the file's names are matched ignoring case, new ones are appended.
    origin
        Level-0 (y, x) of the file's (0, 0).
    progress
        Called now and then with (drawn, all).

    Raises
    ------
    AnnotationError
        Where the file is not GeoJSON, or contains nothing that can be drawn.
    """
    data = read_bytes(path)
    try:
        document = parse_geojson(data)
        del data  # the text of a large file is not held while it is drawn
        return to_annotations(document, shape, classes, name=Path(path).name, origin=origin, progress=progress)
    except AnnotationError as error:
        raise AnnotationError(f"{Path(path).name}: {error}") from error


def load_json(text: bytes) -> Any:
    if _memory_of(text) > MAX_MEMORY:
        raise AnnotationError(f"it would take more than {MAX_MEMORY >> 30} GB of memory to read it; split it.")
    try:
        return json.loads(text)  # with NaN and Infinity, which QuPath before 0.5 writes as measurements
    except RecursionError as error:
        raise AnnotationError("it is nested far too deeply for GeoJSON.") from error
    except ValueError as error:
        raise AnnotationError(f"it is not valid JSON: {error}. Perhaps it is cut short: export it again.") from error


def _memory_of(text: bytes) -> int:
    """Upper bound of the bytes of parsed JSON: lists, dictionaries and values, counted by their separators."""
    lists, tables, commas = (text.count(mark) for mark in (b"[", b"{", b","))
    return 88 * lists + 232 * tables + 40 * (lists + tables + commas)


def shape_in(data: bytes) -> tuple[int, int] | None:
    """The slide's (H, W) in the contents of a file that this program wrote; None for any other."""
    parsed = load_json(data)
    mark = parsed.get(MARK) if isinstance(parsed, dict) else None
    shape = mark.get("shape") if isinstance(mark, dict) else None
    if isinstance(shape, list) and len(shape) == 2 and all(isinstance(n, int) for n in shape):
        return shape[0], shape[1]
    return None


def parse_geojson(data: bytes) -> Document:
    """The shapes in a GeoJSON file's contents.

    Features are decoded one by one, so that the memory is that of the text and the outlines.

    Raises
    ------
    AnnotationError
        Where it is not GeoJSON.
    """
    if _memory_of(data) > MAX_MEMORY:
        raise AnnotationError(f"it would take more than {MAX_MEMORY >> 30} GB of memory to read it; split it.")
    document = Document(stars=True)
    try:
        text = data.decode(json.detect_encoding(data), "surrogatepass")
        head = _read_features(text, document)
    except RecursionError as error:
        raise AnnotationError("it is nested far too deeply for GeoJSON.") from error
    except ValueError as error:
        raise AnnotationError(f"it is not valid JSON: {error}. Perhaps it is cut short: export it again.") from error
    if head is not None:
        _refuse_other_formats(head)
        _read(head, document, 0)
    return document


def _read_features(text: str, document: Document) -> Any:
    """Add the features of the outer list or FeatureCollection; returns the outer value where it is neither."""
    decode = json.JSONDecoder().raw_decode
    at = _skip(text, 0)
    if text[at : at + 1] == "[":
        value, at = _elements(text, at, document)
    else:
        value, at = _members_of(text, at, document) if text[at : at + 1] == "{" else decode(text, at)
    if _skip(text, at) != len(text):
        raise json.JSONDecodeError("Extra data", text, at)
    return value


def _members_of(text: str, at: int, document: Document) -> tuple[Any, int]:
    """The outer object without its features, which are read; None where it is a FeatureCollection, and its end."""
    decode = json.JSONDecoder().raw_decode
    found: dict[str, Any] = {}
    streamed = False
    at = _skip(text, at + 1)
    while text[at : at + 1] != "}":
        if found or streamed:
            at = _skip(text, _expect(text, at, ","))
        if text[at : at + 1] != '"':
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
        key, at = decode(text, at)
        at = _skip(text, _expect(text, _skip(text, at), ":"))
        if key == "features" and text[at : at + 1] == "[":
            rest, at = _elements(text, at, document)
            streamed = True
            found |= {} if rest is None else {key: rest}
        else:
            found[key], at = decode(text, at)
        at = _skip(text, at)
    document.classes = _own_classes(found.get(MARK))
    return (None if streamed and "features" not in found else found), at + 1


def _elements(text: str, at: int, document: Document) -> tuple[Any, int]:
    """Read the elements of a list of features; the list where it begins with something else, else None; and its end."""
    decode = json.JSONDecoder().raw_decode
    start, at = at, _skip(text, at + 1)
    first = True
    while text[at : at + 1] != "]":
        if not first:
            at = _skip(text, _expect(text, at, ","))
        value, at = decode(text, at)
        if first and not (isinstance(value, dict) and isinstance(value.get("type"), str)):
            return decode(text, start)
        first = False
        _attempt(value, document, 1)
        at = _skip(text, at)
    return None, at + 1


_SPACE = re.compile(r"[ \t\n\r]*")


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _expect(text: str, at: int, mark: str) -> int:
    if text[at : at + 1] != mark:
        raise json.JSONDecodeError(f"Expecting '{mark}' delimiter", text, at)
    return at + 1


def _refuse_other_formats(data: Any) -> None:
    first = data[0] if isinstance(data, list) and data else data
    if not isinstance(first, dict) or isinstance(first.get("type"), str):
        return
    for name, members in _OTHER_FORMATS.items():
        if members <= set(first):
            raise AnnotationError(f"it is JSON of {name}, which is not read; export GeoJSON, for example with QuPath.")


def _own_classes(mark: Any) -> list[ClassDef]:
    if mark is None:
        return []
    try:
        return [ClassDef(int(c["id"]), str(c["name"]), str(c["colour"])) for c in mark["classes"]]
    except (TypeError, KeyError, ValueError, SparseSegError) as error:
        raise AnnotationError(f"the class table in {MARK!r} cannot be read: {error}.") from error


def _read(data: Any, document: Document, depth: int) -> None:
    """Add the objects of a GeoJSON value."""
    if depth > MAX_DEPTH:
        raise FileLimitError("objects are nested too deeply.")
    if isinstance(data, list):
        for item in data:
            _attempt(item, document, depth + 1)
    elif not isinstance(data, dict):
        raise AnnotationError(f"expected GeoJSON objects, found {type(data).__name__}.")
    elif data.get("type") == "FeatureCollection":
        _read(_members(data, "features"), document, depth + 1)
    elif data.get("type") == "Feature":
        _read_feature(data, document, depth)
    else:
        _read_feature({"type": "Feature", "geometry": data}, document, depth)


def _attempt(item: Any, document: Document, depth: int) -> None:
    """As `_read`; an object that cannot be used is noted."""
    try:
        _read(item, document, depth)
    except FileLimitError:
        raise
    except AnnotationError as error:
        document.errors.append(str(error).rstrip("."))


def _read_feature(feature: dict[str, Any], document: Document, depth: int) -> None:
    properties = feature.get("properties")
    if properties is not None and not isinstance(properties, dict):
        raise AnnotationError(f"the properties of a Feature must be an object, found {type(properties).__name__}.")
    properties = properties or {}
    for children in (feature.get("childObjects"), properties.get("childObjects")):
        if isinstance(children, list):
            _read(children, document, depth + 1)
    geometry = feature.get("geometry") or {}  # QuPath writes {} for an object without an outline
    parts = list(_parts(geometry, depth)) if geometry else []
    left_out = _why_left_out(feature, properties, geometry, parts)
    if left_out:
        document.left_out[left_out] += 1
        return
    name, colour = classification_of(properties)
    metadata = properties.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    mark = metadata.get(MARK)
    if not name or name.endswith("*"):
        document.keep(name, {"type": "Feature", "geometry": _flat(geometry), "properties": _plain(properties)})
    if not name or mark == "other":
        return
    for rings, is_line in parts:
        if is_line:
            document.add(Drawn(name, "brush", rings, colour, _width(metadata.get("radius")) or THIN_RADIUS))
        else:
            title = properties.get("name")
            kind = "dense" if mark == "dense" else "polygon"
            document.add(Drawn(name, kind, rings, colour, title=title if isinstance(title, str) else ""))


def _why_left_out(feature: dict[str, Any], properties: dict[str, Any], geometry: Any, parts: list[Any]) -> str:
    for kind in (properties.get("objectType"), feature.get("id")):
        if isinstance(kind, str) and kind in _NOT_DRAWN:
            return _NOT_DRAWN[kind]
    if not parts:
        return "without an outline"
    for holder in (geometry, properties):
        plane = holder.get("plane")
        if isinstance(plane, dict) and any(plane.get(axis) not in (None, 0, -1) for axis in "zt"):
            return "on other planes"
    return ""


def _flat(value: Any) -> Any:
    """A geometry without what its positions have beyond x and y, which may be no number: QuPath writes NaN."""
    if isinstance(value, dict):
        return {key: _flat(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_flat(v) for v in value] if value and isinstance(value[0], list | dict) else value[:2]
    return value


def _plain(properties: dict[str, Any]) -> dict[str, Any]:
    """The properties that are kept: without children and measurements, and only what JSON can hold."""
    out = {}
    for key, value in properties.items():
        if key not in ("childObjects", "measurements"):
            try:
                json.dumps(value, allow_nan=False)
            except ValueError:
                continue
            out[key] = value
    return out


def _members(data: dict[str, Any], key: str) -> list[Any]:
    members = data.get(key)
    if not isinstance(members, list):
        raise AnnotationError(f"{data.get('type')} needs a list of {key}, found {type(members).__name__}.")
    return members


def _parts(geometry: Any, depth: int) -> Iterator[tuple[list[NDArray[np.float64]], bool]]:
    """(rings, whether they are lines or dots) of the parts of a geometry; empty parts are skipped."""
    if depth > MAX_DEPTH:
        raise FileLimitError("geometries are nested too deeply.")
    if not isinstance(geometry, dict):
        raise AnnotationError(f"expected a geometry, found {type(geometry).__name__}.")
    if geometry.get("type") == "GeometryCollection":
        for member in _members(geometry, "geometries"):
            yield from _parts(member, depth + 1)
    else:
        yield from _geometry(geometry.get("type"), geometry.get("coordinates"))


def _geometry(kind: Any, coordinates: Any) -> Iterator[tuple[list[NDArray[np.float64]], bool]]:
    if not isinstance(coordinates, list):
        what = f"a {kind}" if isinstance(kind, str) else "an object"
        raise AnnotationError(
            f"{what} has no coordinates; delete it in the program that wrote the file, or draw it again."
        )
    if all(part == [] for part in coordinates):
        return
    if kind == "Polygon":
        rings = [points_xy(ring) for ring in coordinates if ring != []]
        if coordinates[0] != [] and len(rings[0]) >= 3:
            yield [rings[0], *(hole for hole in rings[1:] if len(hole) >= 3)], False
    elif kind == "MultiPolygon":
        for polygon in coordinates:
            yield from _geometry("Polygon", polygon)
    elif kind == "LineString":
        yield [points_xy(coordinates)], True
    elif kind == "MultiLineString":
        yield [points_xy(line) for line in coordinates if line != []], True
    elif kind in ("Point", "MultiPoint"):
        points = points_xy([coordinates] if kind == "Point" else coordinates)
        yield [point[None] for point in points], True
    else:
        raise AnnotationError(
            f"geometries of type {kind!r} are not known; use Polygon, LineString, Point or their multiples."
        )


def classification_of(properties: dict[str, Any]) -> tuple[str, str]:
    """Name and colour of an object's class; both empty where it has none."""
    label = properties.get("classification")
    label = label if label is not None else properties.get("class")
    if label is None:
        return "", ""
    if isinstance(label, str):
        return label.strip(), ""
    if not isinstance(label, dict):
        raise AnnotationError(f"a classification must be a name or an object, found {type(label).__name__}.")
    names = label.get("names")
    name = label.get("name")
    if isinstance(names, list) and names:
        name = ": ".join(str(n) for n in names)
    if name is not None and not isinstance(name, str):
        raise AnnotationError(f"the name of a classification must be a text, found {type(name).__name__}.")
    return (name or "").strip(), _colour(label)


def _width(value: Any) -> float:
    try:
        radius = float(value) if isinstance(value, (str, int, float)) else 0.0
    except ValueError:
        return 0.0
    return radius if 0 < radius < 1e6 else 0.0


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


def write_geojson(
    annotations: Annotations, path: str | os.PathLike[str], *, origin: tuple[float, float] = (0.0, 0.0)
) -> None:
    """Write annotations as GeoJSON, labels outlined exactly; reading it back gives the same labels.

    Parameters
    ----------
    annotations
        What to write.
    path
        Replaced if it exists.
    origin
        Level-0 (y, x) that becomes the file's (0, 0).

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
            yield _feature([ring - origin for ring in region.parts()], classes[region.class_id], dense)
        shift = tuple(int(n) if float(n).is_integer() else n for n in origin)
        for outline in trace(snapshot.scribbles):
            rings = [ring - shift for ring in (outline.shell, *outline.holes)]
            yield _feature(rings, classes[outline.class_id], {})
        for other in annotations.others:
            yield _marked(moved(other, (-origin[0], -origin[1])))

    def write(file: TextIO) -> None:
        file.write(json.dumps(head)[:-1] + ', "features": [')
        for number, feature in enumerate(features()):
            file.write((",\n" if number else "\n") + json.dumps(feature))
        file.write("\n]}\n")

    write_text(path, write)


def _marked(feature: dict[str, Any]) -> dict[str, Any]:
    """An object that labels nothing, marked so that it clears nothing either when it is read again."""
    properties = feature["properties"]
    metadata = properties.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    return {**feature, "properties": {**properties, "metadata": {**metadata, MARK: "other"}}}


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
