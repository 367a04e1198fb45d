"""Table and objects of a finished label image, in one pass over its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_sparseseg.io.contours import RegionTracer
from napari_sparseseg.io.objects import GeoJsonWriter
from napari_sparseseg.io.tables import AreaRow, AreaTable, write_csv

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import shapely

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.io.contours import Region
    from napari_sparseseg.io.placement import Placement

_BAND_PIXELS = 1 << 19
"""Label pixels that are measured at a time: the arrays then stay in the cache, which is faster than larger bands."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What to measure of which label image."""

    slide: str
    shape: tuple[int, int]
    classes: Sequence[ClassDef]
    placement: Placement
    min_area: float
    """Smaller objects are left out; um^2, or level-0 px^2 where the slide's mpp is unknown."""
    regions: Mapping[str, shapely.Geometry] | None = None

    def run(
        self, bands: Iterable[np.ndarray], geojson: Path | None, csv: Path | None, on_rows: Callable[[int, int], None]
    ) -> tuple[list[AreaRow], int]:
        """Read the label image once; writes the files that are asked for.

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
