"""Areas and objects of a predicted label image, found in one pass over its rows, as a table and as GeoJSON."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from dataclasses import asdict, dataclass, fields
from typing import IO, TYPE_CHECKING

import numpy as np
import shapely

from napari_sparseseg.config import MAX_CLASS_ID, UNLABELLED
from napari_sparseseg.geometry import Box
from napari_sparseseg.io.contours import RegionTracer, Rings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Literal

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.geometry import Placement
    from napari_sparseseg.io.contours import Region

WHOLE_SLIDE = "slide"
NOT_PREDICTED = "not predicted"
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_BIDI = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # they reorder what is shown
_BAND_PIXELS = 1 << 19
"""Label pixels that are measured at a time: the arrays then stay in the cache, which is faster than larger bands."""
# The outline runs through the middles of pixel sides, up to sqrt(2)/4 px from the pixels' true border. Simplifying by
# less than the remainder of half a pixel moves no pixel centre to the other side, so that filling the polygon gives
# exactly the pixels of the region. In half pixels, slightly less because of rounding.
_TOLERANCE = 2 * (0.5 - np.sqrt(2) / 4) - 0.005
_DECIMALS = 2
_RINGS = 20_000
"""Rings whose geometry is made at a time."""
_POLYGON = '{"type":"Polygon","coordinates":['


@dataclass(frozen=True, slots=True)
class Measurement:
    """The measurement of a label image."""

    slide: str
    shape: tuple[int, int]
    classes: Sequence[ClassDef]
    placement: Placement
    min_area: float
    """Smaller objects are left out, um^2, or level-0 px^2 where the slide's mpp is unknown."""
    regions: Mapping[str, shapely.Geometry] | None = None

    def run(
        self, bands: Iterable[np.ndarray], geojson: Path | None, csv: Path | None, on_rows: Callable[[int, int], None]
    ) -> tuple[list[AreaRow], int]:
        """Read the label image once and write the files that are asked for.

        Parameters
        ----------
        bands
            The label image from the top as uint8 (rows, w).
        geojson, csv
            Files to write, if any.
        on_rows
            Called with rows done and rows in all.

        Returns
        -------
        The table, and the number of objects of all classes.
        """
        table = AreaTable(self.classes, self.placement, self.regions)
        if geojson is None:
            for found in self._regions(bands, table, on_rows, rings=False):
                table.add_objects(found)
        else:
            with GeoJsonWriter(geojson, self.classes, self.placement) as writer:
                for found in self._regions(bands, table, on_rows, rings=True):
                    table.add_objects(found)
                    writer.write(found)
        rows = table.rows(self.slide)
        if csv is not None:
            write_csv(csv, rows)
        return rows, table.objects

    def _regions(
        self, bands: Iterable[np.ndarray], table: AreaTable, on_rows: Callable[[int, int], None], *, rings: bool
    ) -> Iterator[list[Region]]:
        height, width = self.shape
        min_pixels = max(1, round(self.min_area / self.placement.pixel_area))
        tracer = RegionTracer(width, min_pixels, rings=rings)
        step = max(16, _BAND_PIXELS // width)
        top = 0
        for band in bands:
            for start in range(0, len(band), step):
                rows = band[start : start + step]
                table.add_rows(top, rows)
                top += len(rows)
                yield tracer.feed(rows)
                on_rows(top, height)
        yield tracer.finish()


@dataclass(frozen=True, slots=True)
class AreaRow:
    """One class in one region of one slide."""

    slide: str
    region: str
    class_id: int
    class_name: str
    pixels: int
    """Pixels of the label image, not of level 0."""
    mm2: float | None
    """None where the slide's mpp is unknown."""
    percent: float | None
    """Share of the region's predicted pixels; None for unpredicted pixels."""
    objects: int | None
    """Connected regions of at least the minimum area whose centroid lies in the region."""

    @property
    def of_slide(self) -> bool:
        """Whether it is of the whole slide, not of a region that somebody drew."""
        return self.region == WHOLE_SLIDE


class PixelOutline:
    """A polygon in label pixels, rasterised row by row at pixel centres (even-odd rule)."""

    def __init__(self, polygon: shapely.Geometry, placement: Placement) -> None:
        dy, dx = placement.frame.downsample
        self.polygon = shapely.transform(polygon, lambda xy: xy / (dx, dy))
        segments = []
        for ring in shapely.get_rings(shapely.get_parts(self.polygon)):
            xy = shapely.get_coordinates(ring)
            segments.append(np.hstack([xy[:-1], xy[1:]]))
        self._segments = np.concatenate(segments)
        shapely.prepare(self.polygon)

    def mask(self, region: Box) -> np.ndarray:
        """Boolean (h, w) of a region of the label image."""
        top, left, height, width = region
        x0, y0, x1, y1 = self._segments.T
        first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), top, top + height).astype(np.intp)
        behind = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), top, top + height).astype(np.intp)
        count = behind - first
        index = np.repeat(np.arange(len(count)), count)
        row = np.arange(len(index)) - np.repeat(np.cumsum(count) - count, count) + first[index]
        x = x0[index] + (row + 0.5 - y0[index]) * (x1 - x0)[index] / (y1 - y0)[index]
        column = np.clip(np.ceil(x - 0.5) - left, 0, width).astype(np.intp)
        crossings = np.zeros((height, width + 1), np.uint8)
        np.add.at(crossings, (row - top, column), 1)
        odd: np.ndarray = np.cumsum(crossings, axis=1, dtype=np.uint8)[:, :-1] & 1
        return odd.astype(bool)


class AreaTable:
    """Counts pixels and objects while a label image streams by.

    Parameters
    ----------
    classes
        Class table.
    placement
        Where the label image lies on the slide.
    regions
        Named shapely polygons in level-0 (x, y) to measure apart, besides the whole slide.
    """

    def __init__(
        self,
        classes: Sequence[ClassDef],
        placement: Placement,
        regions: Mapping[str, shapely.Geometry] | None = None,
    ) -> None:
        self._classes = tuple(classes)
        self._placement = placement
        self._outlines = {name: PixelOutline(polygon, placement) for name, polygon in (regions or {}).items()}
        names = (WHOLE_SLIDE, *self._outlines)
        self._pixels = {name: np.zeros(MAX_CLASS_ID + 1, np.int64) for name in names}
        self._objects = {name: np.zeros(MAX_CLASS_ID + 1, np.int64) for name in names}

    def add_rows(self, top: int, rows: np.ndarray) -> None:
        """Count the pixels of uint8 rows (h, w), the first of which is row `top` of the label image."""
        self._pixels[WHOLE_SLIDE] += np.bincount(rows.ravel(), minlength=MAX_CLASS_ID + 1)
        for name, outline in self._outlines.items():
            inside = rows[outline.mask(Box(top, 0, *rows.shape))]
            self._pixels[name] += np.bincount(inside, minlength=MAX_CLASS_ID + 1)

    def add_objects(self, found: Sequence[Region]) -> None:
        """Count regions, each where its centroid lies."""
        if found:
            y, x = np.array([r.centroid for r in found]).T * np.array(self._placement.frame.downsample)[:, None]
            self.add_centroids(np.array([r.class_id for r in found]), y, x)

    def add_centroids(self, ids: np.ndarray, y: np.ndarray, x: np.ndarray) -> None:
        """Count objects of class `ids` (n,), each where its centroid lies, (n,) in level-0 pixels."""
        self._objects[WHOLE_SLIDE] += np.bincount(ids, minlength=MAX_CLASS_ID + 1)
        dy, dx = self._placement.frame.downsample
        for name, outline in self._outlines.items():
            inside = shapely.contains_xy(outline.polygon, x / dx, y / dy)
            self._objects[name] += np.bincount(ids[inside], minlength=MAX_CLASS_ID + 1)

    @property
    def objects(self) -> int:
        """Objects counted so far, all classes."""
        return int(self._objects[WHOLE_SLIDE].sum())

    def rows(self, slide: str) -> list[AreaRow]:
        """One row per region and class, absent classes included; one more for unpredicted pixels, if any."""
        out = []
        for name, pixels in self._pixels.items():
            predicted = int(pixels[1:].sum())
            for c in self._classes:
                n = int(pixels[c.id])
                percent = round(100 * n / predicted, 4) if predicted else 0.0
                out.append(AreaRow(slide, name, c.id, c.name, n, self._mm2(n), percent, int(self._objects[name][c.id])))
            if n := int(pixels[UNLABELLED]):
                out.append(AreaRow(slide, name, UNLABELLED, NOT_PREDICTED, n, self._mm2(n), None, None))
        return out

    def _mm2(self, pixels: int) -> float | None:
        return round(pixels * self._placement.pixel_area / 1e6, 9) if self._placement.mpp else None


def write_csv(path: Path, rows: Sequence[AreaRow], *, slides: Sequence[str] | None = None) -> None:
    """Write a table with a header line; unknown values are left empty.

    Parameters
    ----------
    path
        Replaced if it exists.
    rows
        Rows of the table.
    slides
        Path of the slide of each row, for a last column ``path``.
    """
    names = [f.name for f in fields(AreaRow)]
    header = ["class" if name == "class_name" else name for name in names] + ["path"] * (slides is not None)
    cells = [
        [*asdict(r).values()] + [s] * (slides is not None)
        for r, s in zip(rows, slides or [""] * len(rows), strict=True)
    ]
    with path.open("w", encoding="utf-8", newline="") as file:
        _write_cells(file, header, cells, ",")


def tab_separated(rows: Sequence[AreaRow]) -> str:
    """The table of `write_csv` as text to paste into a spreadsheet."""
    header = ["class" if f.name == "class_name" else f.name for f in fields(AreaRow)]
    file = io.StringIO()
    _write_cells(file, header, [[*asdict(row).values()] for row in rows], "\t")
    return file.getvalue()


def _write_cells(file: IO[str], header: Sequence[str], rows: Iterable[Sequence[object]], delimiter: str) -> None:
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    writer.writerow(header)
    for cells in rows:
        writer.writerow([plain_cell(cell) if isinstance(cell, str) else cell for cell in cells])


def plain_cell(text: str) -> str:
    """Text that no spreadsheet runs as a formula and no terminal as a command.

    Control characters become spaces, and a text that begins like a formula gets an apostrophe before it, as OWASP
    recommends (CSV injection).
    """
    plain = plain_text(text)
    return f"'{plain}" if plain.lstrip().startswith(_FORMULA) else plain


def plain_text(text: str) -> str:
    """Text without control characters and marks that reorder what is shown; they become spaces."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _BIDI else c for c in text)


class GeoJsonWriter:
    """Writes regions as a GeoJSON FeatureCollection of QuPath annotations; memory is that of one call.

    Coordinates are level-0 (x, y) with pixel corners at whole numbers, as in QuPath. Each feature carries its class
    (name and colour) and its exact area: in um^2, or in level-0 px^2 where the slide has no mpp. Use as a context
    manager; the file is complete when it exits without an error.

    Parameters
    ----------
    path
        File to write; an existing one is replaced.
    classes
        Class table; regions of other ids are an error.
    placement
        Where the label image lies on the slide.
    kind
        What the regions are in QuPath.
    """

    def __init__(
        self,
        path: Path,
        classes: Sequence[ClassDef],
        placement: Placement,
        kind: Literal["annotation", "detection"] = "annotation",
    ) -> None:
        self._path, self._kind = path, kind
        self._placement = placement
        unit = "um" if placement.mpp else "px"
        self._area_name = f"Area {unit}^2"
        self._classification = {c.id: json.dumps({"name": c.name, "color": list(c.rgb)}) for c in classes}
        self._file: IO[str] | None = None
        self.count = 0

    def __enter__(self) -> GeoJsonWriter:
        self._file = self._path.open("w", encoding="utf-8", newline="\n")
        self._file.write('{"type": "FeatureCollection", "features": [')
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        if kind is None:
            self._file.write("\n]}\n")
        self._file.close()
        self._file = None

    def write(self, regions: Sequence[Region], measurements: Sequence[str] | None = None) -> None:
        """Append regions, outlines included, with the JSON of their measurements or else with their area.

        Raises
        ------
        ValueError
            Outside the `with` block.
        """
        if self._file is None:
            raise ValueError("the GeoJSON file is not open")
        if measurements is None:
            areas = [region.pixels * self._placement.pixel_area for region in regions]
            measurements = [f'{{"{self._area_name}": {area:.10g}}}' for area in areas]
        for region, texts, numbers in zip(regions, self._geometries(regions), measurements, strict=True):
            self._file.write(f'{"," if self.count else ""}\n{{"type": "Feature", "geometry": ')
            self._file.writelines(texts)
            self._file.write(
                f', "properties": {{"objectType": "{self._kind}", '
                f'"classification": {self._classification[region.class_id]}, "measurements": {numbers}}}}}'
            )
            self.count += 1

    def _geometries(self, regions: Sequence[Region]) -> Iterator[Iterable[str]]:
        """The geometry of each region as pieces of JSON; of a few thousand rings at a time, as that takes memory."""
        together: list[Region] = []
        count = 0
        for region in regions:
            if together and count + len(region.rings) > _RINGS:
                yield from ((text,) for text in shapely.to_geojson(polygons_of(together, self._placement)))
                together, count = [], 0
            if len(region.rings) > _RINGS:
                yield self._in_pieces(region)
                continue
            together.append(region)
            count += len(region.rings)
        if together:
            yield from ((text,) for text in shapely.to_geojson(polygons_of(together, self._placement)))

    def _in_pieces(self, region: Region) -> Iterator[str]:
        """The geometry of a region of many rings, as `shapely.to_geojson` writes the whole."""
        rings = Rings.of(region.rings)
        for first in range(0, len(rings), _RINGS):
            lines = shapely.multilinestrings(_simplified(rings[first : first + _RINGS], self._placement))
            text = shapely.to_geojson(lines)
            yield ("," if first else _POLYGON) + text[text.index("[") + 1 : text.rindex("]")]
        yield "]}"


def polygons_of(regions: Sequence[Region], placement: Placement) -> np.ndarray:
    """Simplified polygons of traced regions: object array of shapely polygons in level-0 (x, y).

    Filled at the pixel centres of the label image they give exactly the regions' pixels.
    """
    each = [Rings.of(region.rings) for region in regions]
    owner = np.repeat(np.arange(len(regions)), [len(rings) for rings in each])
    joined = Rings(np.concatenate([r.points for r in each]), np.concatenate([r.lengths for r in each]))
    # The tracer leaves shells counter-clockwise in (x, y) and holes clockwise, as GeoJSON requires.
    polygons: np.ndarray = shapely.polygons(_simplified(joined, placement), indices=owner)
    return polygons


def _simplified(rings: Rings, placement: Placement) -> np.ndarray:
    """Simplified rings in level-0 (x, y), object array of shapely linear rings."""
    index = np.repeat(np.arange(len(rings)), rings.lengths)
    points = rings.points[:, ::-1].astype(np.float64)
    # Ring by ring, which is a hundred times faster than simplifying whole polygons with thousands of holes. It is as
    # safe: rings of one region are at least sqrt(1/2) px apart, and no point moves by more than 0.15 px.
    simple = shapely.simplify(shapely.linearrings(points, indices=index), _TOLERANCE, preserve_topology=False)
    scale = np.array(placement.frame.downsample[::-1]) / 2
    rounded: np.ndarray = shapely.transform(simple, lambda xy: np.round(xy * scale, _DECIMALS))
    return rounded
