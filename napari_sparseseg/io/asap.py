"""ASAP's XML: polygons, splines, rectangles, dots and point sets; groups are classes. (x, y) in level-0 pixels."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

import numpy as np

from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.io.shapes import (
    THIN_RADIUS,
    UNCLASSIFIED,
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
    from collections.abc import Sequence
    from typing import TextIO

    from numpy.typing import NDArray

    from napari_sparseseg.annotations import Annotations
    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.io.shapes import Classes

DENSE_NAME = "dense region"
"""Prefix of the names of annotations that are dense regions."""
SPLINE_STEPS = 16
"""Straight pieces per span of a spline."""
_NUMBER = re.compile(r"\s*[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?\s*")


def read_asap(path: str | os.PathLike[str], shape: tuple[int, int], classes: Classes | None = None) -> Annotations:
    """Annotations from a file of ASAP; parameters and errors as in `read_geojson`."""
    return to_annotations(read_file(path, parse_asap), shape, classes)


@dataclass(slots=True)
class _Annotation:
    name: str
    kind: str
    group: str
    colour: str
    points: list[tuple[float, float, float]] = field(default_factory=list)
    """(order, x, y)"""

    def ring(self) -> NDArray[np.float64]:
        return points_xy([[x, y] for _, x, y in sorted(self.points, key=lambda p: p[0])])


class _Reader:
    """Collects annotations from the events of an XML parser, without recursion, so that nesting cannot exhaust it."""

    def __init__(self) -> None:
        self.is_asap = False
        self.annotations: list[_Annotation] = []
        self.colours: dict[str, str] = {}
        self._points = 0

    def start(self, tag: str, values: dict[str, str]) -> None:
        if tag == "ASAP_Annotations":
            self.is_asap = True
        elif tag == "Annotation":
            group = values.get("PartOfGroup", "None")
            kind = values.get("Type", "Polygon")
            self.annotations.append(_Annotation(values.get("Name", ""), kind, group, values.get("Color", "")))
        elif tag == "Group":
            self.colours[values.get("Name", "")] = values.get("Color", "")
        elif tag == "Coordinate":
            if not self.annotations:
                raise AnnotationError("a Coordinate stands outside of any Annotation.")
            current = self.annotations[-1]
            order = _number(values, "Order", float(len(current.points)))
            current.points.append((order, _number(values, "X"), _number(values, "Y")))


def _number(values: dict[str, str], key: str, default: float | None = None) -> float:
    text = values.get(key)
    if text is None and default is not None:
        return default
    if text is None or not _NUMBER.fullmatch(text):
        raise AnnotationError(f"a Coordinate has {key}={text!r}, which is not a number.")
    return float(text.replace(",", "."))


def parse_asap(data: bytes) -> Document:
    """The shapes in an XML file.

    Raises
    ------
    AnnotationError
        Where it is not XML of ASAP, declares a document type or entities, or contains something that cannot be drawn.
    """
    reader = _Reader()
    parser = expat.ParserCreate()
    parser.StartElementHandler = reader.start
    parser.StartDoctypeDeclHandler = _refuse
    parser.EntityDeclHandler = _refuse
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise AnnotationError(f"it is not valid XML: {error}.") from error
    if not reader.is_asap:
        raise AnnotationError("it has no ASAP_Annotations; only the XML of ASAP is read.")
    document = Document()
    for annotation in reader.annotations:
        _draw(document, annotation, reader.colours)
    return document


def _refuse(*_: object) -> None:
    raise AnnotationError("it declares a document type or entities, which ASAP never does; it is not opened.")


def _draw(document: Document, annotation: _Annotation, colours: dict[str, str]) -> None:
    group = annotation.group if annotation.group not in ("", "None") else UNCLASSIFIED
    colour = colours.get(group) or annotation.colour
    if annotation.kind in ("Measurement", "None") or not annotation.points:
        return
    ring = annotation.ring()
    if annotation.kind in ("Dot", "PointSet"):
        document.add(Drawn(group, "brush", [point[None] for point in ring], colour, THIN_RADIUS))
        return
    if annotation.kind == "Spline" and len(ring) >= 3:
        ring = closed_spline(ring)
    elif annotation.kind == "Rectangle" and len(ring) == 2:
        (y0, x0), (y1, x1) = ring
        ring = np.array([(y0, x0), (y0, x1), (y1, x1), (y1, x0)])
    elif annotation.kind not in ("Polygon", "Spline", "Rectangle"):
        raise AnnotationError(f"annotation {annotation.name!r} is of type {annotation.kind!r}, which is not known.")
    if len(ring) >= 3:
        kind = "dense" if annotation.name.startswith(DENSE_NAME) else "polygon"
        document.add(Drawn(group, kind, [ring], colour))


def closed_spline(knots: NDArray[np.float64], steps: int = SPLINE_STEPS) -> NDArray[np.float64]:
    """A closed uniform Catmull-Rom spline through `knots` (n, 2), as (n * steps, 2) points.

    Each span is the cubic with the slopes (next - previous) / 2 at its ends, Catmull and Rom (1974).
    """
    t = (np.arange(steps) / steps)[None, :, None]
    p0, p1, p2, p3 = (np.roll(knots, shift, axis=0)[:, None, :] for shift in (1, 0, -1, -2))
    slope1, slope2 = (p2 - p0) / 2, (p3 - p1) / 2
    curve = p1 + slope1 * t + (3 * (p2 - p1) - 2 * slope1 - slope2) * t**2 + (2 * (p1 - p2) + slope1 + slope2) * t**3
    return np.asarray(curve.reshape(-1, 2), np.float64)


def write_asap(annotations: Annotations, path: str | os.PathLike[str]) -> None:
    """Write annotations as ASAP's XML, labels outlined exactly, classes as groups.

    ASAP has no holes: a hole is joined to its outline by a seam of no width, which does not count under the even-odd
    rule, so that reading the file gives the same labels. Dense regions are recognised by their names.

    Raises
    ------
    AnnotationError
        Where the file cannot be written.
    """
    snapshot = annotations.snapshot()
    classes = {c.id: c for c in snapshot.classes}

    def write(file: TextIO) -> None:
        file.write('<?xml version="1.0"?>\n<ASAP_Annotations>\n<Annotations>\n')
        rings = [(f"{DENSE_NAME} {n}", r.class_id, r.parts()) for n, r in enumerate(snapshot.dense_regions, 1)]
        for name, class_id, parts in rings:
            file.write(_element(name, classes[class_id], one_ring(parts)))
        for number, outline in enumerate(trace(snapshot.scribbles), len(rings) + 1):
            ring = one_ring([outline.shell, *outline.holes])
            file.write(_element(f"Annotation {number}", classes[outline.class_id], ring))
        file.write("</Annotations>\n<AnnotationGroups>\n")
        for c in snapshot.classes:
            name, colour = quoteattr(c.name), quoteattr(c.colour)
            file.write(f'<Group Name={name} PartOfGroup="None" Color={colour}><Attributes/></Group>\n')
        file.write("</AnnotationGroups>\n</ASAP_Annotations>\n")

    write_file(path, write)


def one_ring(rings: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """Outline and holes (n, 2) as one ring: from the outline's first corner to each hole, around it and back."""
    shell = np.asarray(rings[0], np.float64)
    if len(rings) == 1:
        return shell
    pieces = [shell, shell[:1]]
    for hole in rings[1:]:
        pieces += [hole, hole[:1], shell[:1]]
    return np.concatenate(pieces).astype(np.float64)


def _element(name: str, label: ClassDef, ring: NDArray[np.float64]) -> str:
    # All digits: an edge may pass a pixel's centre by less than any rounding.
    corners = "".join(f'<Coordinate Order="{n}" X="{x!r}" Y="{y!r}"/>' for n, (y, x) in enumerate(ring.tolist()))
    group, colour = quoteattr(label.name), quoteattr(label.colour)
    head = f'<Annotation Name="{name}" Type="Polygon" PartOfGroup={group} Color={colour}>'
    return f"{head}<Coordinates>{corners}</Coordinates></Annotation>\n"
