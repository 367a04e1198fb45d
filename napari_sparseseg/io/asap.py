"""ASAP's XML: polygons, splines, rectangles, dots and point sets; groups are classes. (x, y) in level-0 pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

import numpy as np

from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.io.shapes import THIN_RADIUS, ClassLookup, Document, Drawn, points_xy, to_annotations
from napari_sparseseg.io.text_files import read_bytes, write_text
from napari_sparseseg.io.trace import trace
from napari_sparseseg.io.xml_events import number, parse_xml

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


def read_asap(path: str | os.PathLike[str], shape: tuple[int, int], classes: Classes | None = None) -> Annotations:
    """Annotations from a file of ASAP; parameters and errors as in `read_geojson`."""
    data = read_bytes(path)
    try:
        return to_annotations(parse_xml(data, {"ASAP_Annotations": AsapReader}), shape, classes, name=Path(path).name)
    except AnnotationError as error:
        raise AnnotationError(f"{Path(path).name}: {error}") from error


@dataclass(slots=True)
class _Annotation:
    name: str
    kind: str
    group: str
    colour: str
    points: list[tuple[float, float, float]] = field(default_factory=list)
    """(order, x, y)"""
    error: str = ""

    def ring(self) -> NDArray[np.float64]:
        return points_xy([[x, y] for _, x, y in sorted(self.points, key=lambda p: p[0])])


class AsapReader:
    """Collects annotations and the colours of groups; an `XmlReader`."""

    def __init__(self) -> None:
        self._annotations: list[_Annotation] = []
        self._colours: dict[str, str] = {}

    def start(self, tag: str, values: dict[str, str]) -> None:
        """An element begins."""
        if tag == "Annotation":
            group, kind = values.get("PartOfGroup", "None"), values.get("Type", "Polygon")
            self._annotations.append(_Annotation(values.get("Name", ""), kind, group, values.get("Color", "")))
        elif tag == "Group":
            self._colours[values.get("Name", "")] = values.get("Color", "")
        elif tag == "Coordinate":
            if not self._annotations:
                raise AnnotationError("a Coordinate is outside of any Annotation.")
            current = self._annotations[-1]
            try:
                order = number(values.get("Order", str(len(current.points))), "Order of a Coordinate")
                x, y = (number(values.get(key), f"{key} of a Coordinate") for key in "XY")
            except AnnotationError as error:
                current.error = current.error or str(error)
            else:
                current.points.append((order, x, y))

    def end(self, tag: str, text: str) -> None:
        """An element ends."""

    def document(self) -> Document:
        """What was found."""
        groups = ClassLookup(())
        for name, colour in self._colours.items():
            if name.strip() and name != "None":
                groups.id_of(name, colour)
        document = Document(classes=groups.classes)
        for annotation in self._annotations:
            try:
                if annotation.error:
                    raise AnnotationError(annotation.error)
                self._draw(document, annotation)
            except AnnotationError as error:
                document.errors.append(str(error).rstrip("."))
        return document

    def _draw(self, document: Document, annotation: _Annotation) -> None:
        group = annotation.group if annotation.group != "None" else ""
        colour = self._colours.get(group) or annotation.colour
        if annotation.kind in ("Measurement", "None") or not annotation.points:
            document.left_out["without an outline"] += 1
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
        else:
            document.left_out["without an outline"] += 1


def closed_spline(knots: NDArray[np.float64], steps: int = SPLINE_STEPS) -> NDArray[np.float64]:
    """A closed uniform Catmull-Rom spline through `knots` (n, 2), as (n * steps, 2) points.

    Each span is the cubic with the slopes (next - previous) / 2 at its ends, Catmull and Rom (1974).
    """
    t = (np.arange(steps) / steps)[None, :, None]
    p0, p1, p2, p3 = (np.roll(knots, shift, axis=0)[:, None, :] for shift in (1, 0, -1, -2))
    slope1, slope2 = (p2 - p0) / 2, (p3 - p1) / 2
    curve = p1 + slope1 * t + (3 * (p2 - p1) - 2 * slope1 - slope2) * t**2 + (2 * (p1 - p2) + slope1 + slope2) * t**3
    return np.asarray(curve.reshape(-1, 2), np.float64)


def write_asap(
    annotations: Annotations, path: str | os.PathLike[str], *, origin: tuple[float, float] = (0.0, 0.0)
) -> None:
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
            file.write(_element(name, classes[class_id], one_ring(parts) - origin))
        for count, outline in enumerate(trace(snapshot.scribbles), len(rings) + 1):
            ring = one_ring([outline.shell, *outline.holes]) - origin
            file.write(_element(f"Annotation {count}", classes[outline.class_id], ring))
        file.write("</Annotations>\n<AnnotationGroups>\n")
        for c in snapshot.classes:
            name, colour = quoteattr(c.name), quoteattr(c.colour)
            file.write(f'<Group Name={name} PartOfGroup="None" Color={colour}><Attributes/></Group>\n')
        file.write("</AnnotationGroups>\n</ASAP_Annotations>\n")

    write_text(path, write)


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
