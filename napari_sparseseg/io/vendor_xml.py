"""Annotations of ImageScope, HALO and NDP.view: XML files that are read, not written.

ImageScope (``.xml``) and HALO (``.annotations``) have layers of regions, in level-0 pixels (x, y). A layer is a class,
and a negative region is cut out of the others of its layer. NDP.view (``.ndpa``) has nanometres from the centre of the
glass slide, and the title of an annotation is its class.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import shapely

from napari_sparseseg.annotations.raster import as_points
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.io.shapes import THIN_RADIUS, Document, Drawn
from napari_sparseseg.io.xml_events import number

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    Ring = NDArray[np.float64]

ELLIPSE_CORNERS = 64
_POLYGONS, _RECTANGLES, _ELLIPSES = ("0", "Polygon"), ("1", "Rectangle"), ("2", "Ellipse")


@dataclass(slots=True)
class _Region:
    kind: str
    negative: bool
    points: list[tuple[float, float]] = field(default_factory=list)
    """(y, x)"""
    error: str = ""


class LayersReader:
    """Regions of layers, as ImageScope and HALO write them; an `XmlReader`."""

    def __init__(self) -> None:
        self._document = Document()
        self._name = self._colour = ""
        self._regions: list[_Region] = []
        self._layers = 0

    def start(self, tag: str, values: dict[str, str]) -> None:
        """An element begins."""
        if tag == "Annotation":
            self._layers += 1
            self._name = values.get("Name", "").strip() or f"Layer {values.get('Id') or self._layers}"
            self._colour = _bgr(values.get("LineColor", ""))
        elif tag == "Region":
            self._regions.append(_Region(values.get("Type", "0"), values.get("NegativeROA", "0") in ("1", "True")))
        elif tag in ("Vertex", "V") and self._regions:
            region = self._regions[-1]
            try:
                y, x = (number(values.get(key), f"{key} of a vertex") for key in "YX")
            except AnnotationError as error:
                region.error = region.error or str(error)
            else:
                region.points.append((y, x))

    def end(self, tag: str, text: str) -> None:
        """An element ends."""
        del text
        if tag != "Annotation":
            return
        outlines: dict[bool, list[Ring]] = defaultdict(list)
        for region in self._regions:
            if region.error:
                self._document.errors.append(region.error.rstrip("."))
            elif region.kind not in _POLYGONS + _RECTANGLES + _ELLIPSES:
                self._document.left_out["arrows, rulers and other marks"] += 1
            else:
                self._add(region, outlines[region.negative])
        for rings in _cut(outlines[False], outlines[True]):
            self._document.add(Drawn(self._name, "polygon", rings, self._colour))
        self._regions = []

    def _add(self, region: _Region, outlines: list[Ring]) -> None:
        try:
            ring = _ring(region)
        except AnnotationError as error:
            self._document.errors.append(str(error).rstrip("."))
            return
        if ring is None:
            self._document.left_out["without an outline"] += 1
        else:
            outlines.append(ring)

    def document(self) -> Document:
        """What was found."""
        return self._document


def _ring(region: _Region) -> Ring | None:
    if len(region.points) < (3 if region.kind in _POLYGONS else 2):
        return None
    points = as_points(region.points)
    (y0, x0), (y1, x1) = points.min(axis=0), points.max(axis=0)
    if region.kind in _ELLIPSES and len(points) <= 5:  # the corners of its bounding box
        return ellipse((y0 + y1) / 2, (x0 + x1) / 2, (y1 - y0) / 2, (x1 - x0) / 2)
    if len(points) == 2:
        return np.array([(y0, x0), (y0, x1), (y1, x1), (y1, x0)])
    return points


def ellipse(y: float, x: float, height: float, width: float) -> Ring:
    """Corners of an ellipse with this centre and these half axes."""
    turn = np.linspace(0, 2 * np.pi, ELLIPSE_CORNERS, endpoint=False)
    return np.stack([y + height * np.sin(turn), x + width * np.cos(turn)], axis=1)


def _cut(outlines: list[Ring], negative: list[Ring]) -> Iterator[list[Ring]]:
    """Rings of each outline without the negative ones that touch it."""
    holes = [shapely.make_valid(shapely.Polygon(ring)) for ring in negative]
    for ring in outlines:
        polygon = shapely.Polygon(ring)
        touching = [hole for hole in holes if shapely.intersects(shapely.envelope(polygon), hole)]
        if not touching:
            yield [ring]
            continue
        rest = shapely.difference(shapely.make_valid(polygon), shapely.union_all(touching))
        for part in shapely.get_parts(rest):
            if part.geom_type == "Polygon" and part.area:
                yield [shapely.get_coordinates(r)[:-1] for r in (part.exterior, *part.interiors)]


def _bgr(text: str) -> str:
    """``#rrggbb`` of a colour that is packed as blue, green, red into one integer."""
    if not text.strip().isdecimal():
        return ""
    value = int(text) & 0xFFFFFF
    return f"#{value & 255:02x}{value >> 8 & 255:02x}{value >> 16:02x}"


@dataclass(frozen=True, slots=True)
class NdpiFrame:
    """Where the scanned area of an NDPI lies on the glass slide."""

    shape: tuple[int, int]
    mpp: tuple[float, float]
    offset_nm: tuple[float, float]
    """(y, x) of the centre of the scanned area from the centre of the glass slide, in nanometres."""

    @classmethod
    def of(cls, path: Path, shape: tuple[int, int], mpp: tuple[float, float] | None) -> NdpiFrame:
        """The frame of a slide file.

        Raises
        ------
        AnnotationError
            Where it is not an NDPI, or its resolution is unknown.
        """
        import tifffile

        try:
            with tifffile.TiffFile(path) as tiff:
                tags = tiff.pages.first.tags
                x, y = (float(tags[code].value) for code in (65422, 65423))
        except (OSError, ValueError, LookupError, TypeError, tifffile.TiffFileError) as error:
            raise AnnotationError(
                f"positions in an .ndpa file count from the centre of the glass slide, and {path} is not an NDPI that "
                "says where that is."
            ) from error
        if mpp is None:
            raise AnnotationError(
                f"positions in an .ndpa file are in nanometres, but the resolution of {path} is unknown."
            )
        return cls(shape, mpp, (y, x))

    def to_pixels(self, points_nm: list[tuple[float, float]]) -> Ring:
        """Level-0 (y, x) of positions (y, x) in nanometres from the centre of the glass slide."""
        points = np.asarray(points_nm, np.float64).reshape(-1, 2)
        pixels: Ring = (points - self.offset_nm) / (np.array(self.mpp) * 1000) + np.array(self.shape) / 2
        return as_points(pixels, least=0)


class NdpaReader:
    """Annotations of NDP.view; an `XmlReader`."""

    def __init__(self, frame: NdpiFrame) -> None:
        self._frame = frame
        self._document = Document()
        self._begin()

    def _begin(self) -> None:
        self._text: dict[str, str] = {}
        self._kind = self._colour = ""
        self._points: list[tuple[str, str]] = []

    def start(self, tag: str, values: dict[str, str]) -> None:
        """An element begins."""
        if tag == "ndpviewstate":
            self._begin()
        elif tag == "annotation":
            self._kind, self._colour = values.get("type", ""), values.get("color", "")
        elif tag == "point":
            self._text |= {"x": "", "y": ""}

    def end(self, tag: str, text: str) -> None:
        """An element ends."""
        if tag == "point":
            self._points.append((self._text["y"], self._text["x"]))
        elif tag == "ndpviewstate":
            try:
                self._draw()
            except AnnotationError as error:
                self._document.errors.append(str(error).rstrip("."))
        elif tag in ("title", "coordformat", "closed", "radius") or (tag in ("x", "y") and self._kind):
            self._text[tag] = text.strip()  # x and y before the annotation are the position of the view

    def document(self) -> Document:
        """What was found."""
        return self._document

    def _draw(self) -> None:
        unit = self._text.get("coordformat", "nanometers")
        if unit != "nanometers":
            raise AnnotationError(f"its positions are in {unit!r}, not in nanometers.")
        name = self._text.get("title", "")
        if self._kind in ("circle", "pin"):
            y, x = self._frame.to_pixels([(self._number("y"), self._number("x"))])[0].tolist()
            if self._kind == "pin":
                self._document.add(Drawn(name, "brush", [np.array([[y, x]])], self._colour, THIN_RADIUS))
                return
            height, width = (self._number("radius") / (1000 * mpp) for mpp in self._frame.mpp)
            self._document.add(Drawn(name, "polygon", [as_points(ellipse(y, x, height, width))], self._colour))
        elif self._kind == "freehand":
            points = [(number(y, "y of a point"), number(x, "x of a point")) for y, x in self._points]
            ring = self._frame.to_pixels(points)
            if self._text.get("closed", "1") == "0" and len(ring):
                self._document.add(Drawn(name, "brush", [ring], self._colour, THIN_RADIUS))
            elif len(ring) >= 3:
                self._document.add(Drawn(name, "polygon", [ring], self._colour))
            else:
                self._document.left_out["without an outline"] += 1
        else:
            self._document.left_out["arrows, rulers and other marks"] += 1

    def _number(self, key: str) -> float:
        return number(self._text.get(key), f"{key} of an annotation")
