"""Areas and object counts per class and region as a table."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import shapely

from napari_sparseseg.config import MAX_CLASS_ID, UNLABELLED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.io.contours import Region
    from napari_sparseseg.io.placement import Placement

WHOLE_SLIDE = "slide"
NOT_PREDICTED = "not predicted"


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
    """Share of the region's predicted pixels; None for what was not predicted."""
    objects: int | None
    """Connected regions of at least the minimum area whose centroid lies in the region."""


class _Outline:
    """A polygon in label pixels that says which pixel centres of some rows it holds (even-odd rule)."""

    def __init__(self, polygon: shapely.Geometry, placement: Placement) -> None:
        dy, dx = placement.frame.downsample
        self.polygon = shapely.transform(polygon, lambda xy: xy / (dx, dy))
        segments = []
        for ring in shapely.get_rings(shapely.get_parts(self.polygon)):
            xy = shapely.get_coordinates(ring)
            segments.append(np.hstack([xy[:-1], xy[1:]]))
        self._segments = np.concatenate(segments)
        shapely.prepare(self.polygon)

    def rows(self, top: int, height: int, width: int) -> np.ndarray:
        """Boolean (height, width)."""
        x0, y0, x1, y1 = self._segments.T
        first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), top, top + height).astype(np.intp)
        behind = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), top, top + height).astype(np.intp)
        count = behind - first
        index = np.repeat(np.arange(len(count)), count)
        row = np.arange(len(index)) - np.repeat(np.cumsum(count) - count, count) + first[index]
        x = x0[index] + (row + 0.5 - y0[index]) * (x1 - x0)[index] / (y1 - y0)[index]
        column = np.clip(np.ceil(x - 0.5), 0, width).astype(np.intp)
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
        self._outlines = {name: _Outline(polygon, placement) for name, polygon in (regions or {}).items()}
        names = (WHOLE_SLIDE, *self._outlines)
        self._pixels = {name: np.zeros(MAX_CLASS_ID + 1, np.int64) for name in names}
        self._objects = {name: np.zeros(MAX_CLASS_ID + 1, np.int64) for name in names}

    def add_rows(self, top: int, rows: np.ndarray) -> None:
        """Count the pixels of uint8 rows (h, w), the first of which is row `top` of the label image."""
        self._pixels[WHOLE_SLIDE] += np.bincount(rows.ravel(), minlength=MAX_CLASS_ID + 1)
        for name, outline in self._outlines.items():
            inside = rows[outline.rows(top, *rows.shape)]
            self._pixels[name] += np.bincount(inside, minlength=MAX_CLASS_ID + 1)

    def add_objects(self, found: Sequence[Region]) -> None:
        """Count regions, each where its centroid lies."""
        if not found:
            return
        ids = np.array([r.class_id for r in found])
        self._objects[WHOLE_SLIDE] += np.bincount(ids, minlength=MAX_CLASS_ID + 1)
        y, x = np.array([r.centroid for r in found]).T
        for name, outline in self._outlines.items():
            inside = shapely.contains_xy(outline.polygon, x, y)
            self._objects[name] += np.bincount(ids[inside], minlength=MAX_CLASS_ID + 1)

    @property
    def objects(self) -> int:
        """Objects counted so far, all classes."""
        return int(self._objects[WHOLE_SLIDE].sum())

    def rows(self, slide: str) -> list[AreaRow]:
        """One row per region and class, absent classes included; one more for what was not predicted, if any."""
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


def write_csv(path: Path, rows: Sequence[AreaRow]) -> None:
    """Write a table with a header line; unknown values are left empty."""
    names = [f.name for f in fields(AreaRow)]
    header = ["class" if name == "class_name" else name for name in names]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for row in rows:
            values = asdict(row)
            writer.writerow(["" if values[name] is None else values[name] for name in names])
