"""The objects of a result as a table: place, size, shape, certainty, stain, distances; as CSV, Parquet and GeoJSON."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING

import numpy as np
import shapely
from scipy.spatial import KDTree

from napari_sparseseg.config import MAX_CLASS_ID
from napari_sparseseg.errors import PredictionError
from napari_sparseseg.io.contours import RegionTracer
from napari_sparseseg.io.measurements import GeoJsonWriter, plain_cell
from napari_sparseseg.io.object_shapes import ShapeMeter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Literal

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.geometry import Box, Placement
    from napari_sparseseg.io.contours import Region
    from napari_sparseseg.io.measurements import AreaTable
    from napari_sparseseg.io.object_shapes import Shapes
    from napari_sparseseg.io.results import Pixels, StoredResult

    ReadRgb = Callable[[Box], np.ndarray]

STAINS = ("h_od", "e_od", "dab_od")
_PROBABILITY = "probability"
# Ruifrok & Johnston (2001), as scikit-image's `rgb_from_hed`: optical density per unit of haematoxylin, eosin and DAB.
_RGB_FROM_HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_HED_FROM_RGB = np.linalg.inv(_RGB_FROM_HED).astype(np.float32)
_DENSITY = -np.log10(np.maximum(np.arange(256) / 255, 1e-6)).astype(np.float32)
_STEP_PIXELS = 1 << 20
"""Label pixels that are measured at a time."""
_ROWS = 10_000
"""Rows of a table that are written at a time."""
_QUPATH = {
    "perimeter": "Perimeter",
    "circularity": "Circularity",
    "solidity": "Solidity",
    "eccentricity": "Eccentricity",
    "probability_mean": "Mean probability",
    "probability_min": "Least probability",
    "h_od": "Hematoxylin OD mean",
    "e_od": "Eosin OD mean",
    "dab_od": "DAB OD mean",
}
_DISTANCE = "distance_to "


@dataclass(frozen=True)
class ObjectTable:
    """Objects of one result, a row each, in the reading order of their first pixels.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_sparseseg.config import make_classes
    >>> from napari_sparseseg.geometry import Frame, Placement
    >>> from napari_sparseseg.io.objects import measure_image
    >>> labels = np.zeros((40, 60), np.uint8)
    >>> labels[5:15, 5:25], labels[30:36, 10:16] = 1, 2
    >>> classes = make_classes([("tumour", "#e6194b"), ("stroma", "#3cb44b")])
    >>> table = measure_image(labels, classes, Placement(Frame((2.0, 2.0)), (0.5, 0.5)))
    >>> table.numbers["area"].tolist(), table.unit
    ([200.0, 36.0], 'um')
    """

    classes: tuple[ClassDef, ...]
    unit: str
    """``um``, or ``px`` of level 0 where the slide's mpp is unknown: of lengths, distances and, squared, of areas."""
    class_id: np.ndarray
    """uint8 (n,)."""
    region: np.ndarray
    """intp (n,): index into `regions`, -1 outside all of them."""
    regions: tuple[str, ...]
    numbers: dict[str, np.ndarray]
    """float64 (n,) by name; NaN where there is no value. `y` and `x` are level-0 pixels."""
    first: np.ndarray
    """int64 (n,): row * width + column of the first label pixel."""
    id: np.ndarray
    """int64 (n,), from 1."""

    def __len__(self) -> int:
        return len(self.class_id)

    @property
    def columns(self) -> dict[str, str]:
        """The header of each of `numbers`, with its unit."""
        u = self.unit
        known = {"y": "y_px", "x": "x_px", "y_unit": f"y_{u}", "x_unit": f"x_{u}", "area": f"area_{u}2"}
        known["perimeter"] = f"perimeter_{u}"
        names = {key: known.get(key, key) for key in self.numbers}
        return {k: v.replace(_DISTANCE, f"distance_{u}_to ", 1) for k, v in names.items()}

    @property
    def class_names(self) -> np.ndarray:
        """The class of each object, object array (n,) of str."""
        names: np.ndarray = self._class_table()[self.class_id]
        return names

    @property
    def region_names(self) -> np.ndarray:
        """The region of each object, empty outside all of them, object array (n,) of str."""
        names: np.ndarray = np.array([*self.regions, ""], object)[self.region]
        return names

    def taken(self, rows: np.ndarray) -> ObjectTable:
        """Some of the objects, in the order of `rows`, intp (m,); they keep their `id`."""
        numbers = {name: values[rows] for name, values in self.numbers.items()}
        return replace(
            self, class_id=self.class_id[rows], region=self.region[rows], numbers=numbers, first=self.first[rows],
            id=self.id[rows],
        )  # fmt: skip

    def write_csv(self, path: Path) -> None:
        """Write a table with a header line, safe to open in a spreadsheet; unknown values are left empty."""
        with path.open("w", encoding="utf-8", newline="") as file:
            self._write(file, ",")

    def tab_separated(self) -> str:
        """The table of `write_csv` as text to paste into a spreadsheet."""
        file = io.StringIO()
        self._write(file, "\t")
        return file.getvalue()

    def _write(self, file: IO[str], delimiter: str) -> None:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        writer.writerow(["id", "class", "region", *map(plain_cell, self.columns.values())])
        classes, regions = self._class_table(plain_cell), [*map(plain_cell, self.regions), ""]
        for rows in self._parts():
            texts = [classes[self.class_id[rows]], [regions[k] for k in self.region[rows]]]
            cells = [_texts(values[rows]) for values in self.numbers.values()]
            writer.writerows(zip(self.id[rows].tolist(), *texts, *cells, strict=True))

    def write_parquet(self, path: Path) -> None:
        """Write a Parquet file with the columns of the CSV; NaN is null.

        Raises
        ------
        PredictionError
            Where pyarrow is not installed.
        """
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise PredictionError(
                "Parquet needs pyarrow: pip install 'napari-sparseseg[parquet]', or write CSV."
            ) from error
        numbers = {self.columns[k]: pa.array(v, from_pandas=True) for k, v in self.numbers.items()}
        texts = {
            "id": pa.array(self.id),
            "class": pa.array(self.class_names, pa.string()).dictionary_encode(),
            "region": pa.array(self.region_names, pa.string()).dictionary_encode(),
        }
        pq.write_table(pa.table(texts | numbers), path)

    def measurements(self, rows: np.ndarray) -> list[str]:
        """The measurements of some objects, as JSON with the names that they have in QuPath.

        Parameters
        ----------
        rows
            Indices of the objects.
        """
        u = self.unit
        shown = {"area": f"Area {u}^2"}
        for key in self.numbers:
            if key in _QUPATH:
                shown[key] = f"{_QUPATH[key]} {u}" if key == "perimeter" else _QUPATH[key]
            elif key.startswith(_DISTANCE):
                shown[key] = f"Distance to {key.removeprefix(_DISTANCE)} {u}"
        names = ['"Id"', *(json.dumps(name) for name in shown.values())]
        cells = [[str(number) for number in self.id[rows].tolist()]]
        cells += [_texts(self.numbers[key][rows], digits=10) for key in shown]
        return [
            f"{{{', '.join(f'{name}: {v}' for name, v in zip(names, values, strict=True) if v)}}}"
            for values in zip(*cells, strict=True)
        ]

    def _class_table(self, clean: Callable[[str], str] = str) -> np.ndarray:
        table = np.full(MAX_CLASS_ID + 1, "", object)
        for c in self.classes:
            table[c.id] = clean(c.name)
        return table

    def _parts(self) -> Iterator[slice]:
        for start in range(0, len(self), _ROWS):
            yield slice(start, min(start + _ROWS, len(self)))


def measure_result(
    result: StoredResult,
    *,
    min_area: float = 0.0,
    regions: Mapping[str, shapely.Geometry] | None = None,
    rgb: ReadRgb | None = None,
    areas: AreaTable | None = None,
    on_rows: Callable[[int, int], None] | None = None,
) -> ObjectTable:
    """Measure the objects of a result in one pass over its rows.

    Parameters
    ----------
    result
        From `open_result`. Where it has probability maps, the certainty of each object is measured.
    min_area
        Smaller objects are left out, um^2, or level-0 px^2 where the mpp is unknown.
    regions
        Polygons in level-0 (x, y) by name; an object belongs to the first that contains its centroid.
    rgb
        Gives the slide's uint8 (h, w, 3) of a region of the result, for the optical densities of the stains.
    areas
        Counts pixels and objects by the way.
    on_rows
        Called with rows done and rows in all.
    """
    maps = result.probabilities
    means = ((_PROBABILITY,) if maps is not None else ()) + (STAINS if rgb is not None else ())
    pixel = result.placement.pixel_area
    meter = ShapeMeter(
        result.shape[1],
        max(1, round(min_area / pixel)),
        means=means,
        minima=(_PROBABILITY,) if maps is not None else (),
    )
    channel = np.zeros(MAX_CLASS_ID + 1, np.intp)
    channel[[c.id for c in result.classes]] = np.arange(len(result.classes))
    found = []
    step = max(16, _STEP_PIXELS // result.shape[1])
    for band in result.bands():
        labels = result.read(band)
        if areas is not None:
            areas.add_rows(band.y, labels)
        own = _own_probability(maps, band, channel[labels]) if maps is not None else None
        colours = rgb(band) if rgb is not None else None
        for top in range(0, len(labels), step):
            rows = slice(top, top + step)
            values = {} if own is None else {_PROBABILITY: own[rows]}
            if colours is not None:
                values |= dict(zip(STAINS, stain_densities(colours[rows]), strict=True))
            found.append(meter.feed(labels[rows], values))
        if on_rows is not None:
            on_rows(band.y1, result.shape[0])
    found.append(meter.finish())
    table = _table(found, result.classes, result.placement, regions or {})
    if areas is not None:
        areas.add_centroids(table.class_id, table.numbers["y"], table.numbers["x"])
    return table


def measure_image(labels: np.ndarray, classes: Sequence[ClassDef], placement: Placement) -> ObjectTable:
    """Measure the objects of a label image uint8 (h, w) in memory."""
    meter = ShapeMeter(labels.shape[1])
    return _table([meter.feed(labels), meter.finish()], tuple(classes), placement, {})


def stain_densities(rgb: np.ndarray) -> np.ndarray:
    """Optical density of haematoxylin, eosin and DAB: float32 (3, h, w), at least 0, of uint8 (h, w, 3).

    They are 6 times the values of scikit-image's ``rgb2hed``, which divides by the density of its darkest colour.
    White is taken to be (255, 255, 255).
    """
    density = _DENSITY[rgb]
    mixed = [sum(density[..., c] * _HED_FROM_RGB[c, k] for c in range(3)) for k in range(3)]
    densities: np.ndarray = np.maximum(np.stack(mixed), 0)
    return densities


def write_objects_geojson(
    path: Path,
    table: ObjectTable,
    result: StoredResult,
    *,
    min_area: float = 0.0,
    kind: Literal["annotation", "detection"] = "annotation",
) -> None:
    """Write the objects of a table, traced in a second pass over the result, for QuPath.

    Parameters
    ----------
    path
        Replaced if it exists.
    table, result, min_area
        As measured.
    kind
        What the objects are in QuPath: detections are faster by the hundred thousand, annotations can be edited.
    """
    width = result.shape[1]
    tracer = RegionTracer(width, max(1, round(min_area / result.placement.pixel_area)))
    step = max(16, _STEP_PIXELS // 2 // width)
    with GeoJsonWriter(path, result.classes, result.placement, kind) as writer:

        def write(regions: list[Region]) -> None:
            first = _first_pixels([region.rings[0] for region in regions], width)
            writer.write(regions, table.measurements(np.searchsorted(table.first, first)))

        for band in result.bands():
            labels = result.read(band)
            for top in range(0, len(labels), step):
                write(tracer.feed(labels[top : top + step]))
        write(tracer.finish())


def _first_pixels(rings: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Number of the first pixel of each region, from its outer ring in half pixels: a point is above it."""
    if not rings:
        return np.zeros(0, np.int64)
    lengths = np.array([len(ring) for ring in rings])
    starts = np.cumsum(lengths) - lengths
    y, x = np.concatenate(rings).astype(np.int64).T
    top = np.minimum.reduceat(y, starts)
    left = np.minimum.reduceat(np.where(y == np.repeat(top, lengths), x, np.iinfo(np.int64).max), starts)
    pixels: np.ndarray = top // 2 * width + left // 2
    return pixels


def _own_probability(maps: Pixels, band: Box, channel: np.ndarray) -> np.ndarray:
    """float32 (h, w): the probability of the class that each pixel has; the greatest one where that has no map."""
    values = np.asarray(maps[(slice(None), *band.slices())])
    own: np.ndarray = np.take_along_axis(values, np.minimum(channel, len(values) - 1)[None], axis=0)[0]
    own = np.where(channel < len(values), own, values.max(axis=0))  # `unsure` of a clean-up has none
    return own.astype(np.float32) / 255


def _table(
    found: Iterable[Shapes],
    classes: tuple[ClassDef, ...],
    placement: Placement,
    regions: Mapping[str, shapely.Geometry],
) -> ObjectTable:
    parts = list(found)
    first = np.concatenate([p.first for p in parts])
    order = np.argsort(first)

    def joined(get: Callable[[Shapes], np.ndarray]) -> np.ndarray:
        return np.concatenate([get(p) for p in parts], axis=-1)[..., order]

    (dy, dx), (sy, sx) = placement.frame.downsample, placement.spacing
    pixels = joined(lambda p: p.pixels).astype(np.float64)
    y, x = joined(lambda p: p.y), joined(lambda p: p.x)
    length = joined(lambda p: p.perimeter)
    numbers = {"y": y * dy, "x": x * dx}
    if placement.mpp:
        numbers |= {"y_unit": y * sy, "x_unit": x * sx}
    area = pixels * placement.pixel_area
    perimeter = length * np.sqrt(placement.pixel_area)
    with np.errstate(divide="ignore", invalid="ignore"):
        circularity = np.where(perimeter > 0, 4 * np.pi * area / perimeter**2, np.nan)
    numbers |= {"area": area, "perimeter": perimeter, "circularity": circularity}
    numbers["solidity"] = pixels / joined(lambda p: p.convex_pixels)
    numbers["eccentricity"] = _eccentricity(joined(lambda p: p.moments), (sy, sx))
    for name in parts[0].means:
        key = f"{name}_mean" if name == _PROBABILITY else name
        numbers[key] = joined(lambda p, name=name: p.means[name])  # type: ignore[misc]
    for name in parts[0].minima:
        numbers[f"{name}_min"] = joined(lambda p, name=name: p.minima[name])  # type: ignore[misc]
    class_id = joined(lambda p: p.class_id).astype(np.uint8)
    numbers |= _distances(class_id, np.stack([y * sy, x * sx], axis=1), classes)
    region = np.full(len(class_id), -1, np.intp)
    for k, polygon in enumerate(regions.values()):
        shapely.prepare(polygon)
        region[(region < 0) & shapely.contains_xy(polygon, numbers["x"], numbers["y"])] = k
    unit = "um" if placement.mpp else "px"
    return ObjectTable(
        classes, unit, class_id, region, tuple(regions), numbers, first[order], np.arange(1, len(order) + 1)
    )


def _eccentricity(moments: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
    """Of the ellipse with the same second moments: 0 for a circle, towards 1 for a line."""
    yy, xx, yx = moments * np.array([spacing[0] ** 2, spacing[1] ** 2, spacing[0] * spacing[1]])[:, None]
    middle, apart = (yy + xx) / 2, np.hypot((yy - xx) / 2, yx)
    longest = middle + apart
    ratio = np.divide(middle - apart, longest, out=np.ones_like(longest), where=longest > 0)
    result: np.ndarray = np.sqrt(np.clip(1 - ratio, 0, 1))
    return result


def _distances(class_id: np.ndarray, centres: np.ndarray, classes: Sequence[ClassDef]) -> dict[str, np.ndarray]:
    """From each object's centroid to the nearest centroid of each other class."""
    out = {}
    for c in classes:
        mine = class_id == c.id
        distance = np.full(len(class_id), np.nan)
        if mine.any() and not mine.all():
            distance[~mine] = KDTree(centres[mine]).query(centres[~mine])[0]
        out[f"{_DISTANCE}{c.name}"] = distance
    return out


def _texts(values: np.ndarray, digits: int = 7) -> list[str]:
    """Numbers as text, NaN as nothing."""
    return ["" if v != v else f"{v:.{digits}g}" for v in values.tolist()]
