"""Regions of a prediction as GeoJSON objects that QuPath opens, written as they come."""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING

import numpy as np
import shapely

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.io.contours import Region
    from napari_sparseseg.io.placement import Placement

# The outline runs through the middles of pixel sides and so lies up to sqrt(2)/4 px from the pixels' true border. What
# is left of half a pixel may go into leaving points out; then no pixel centre changes sides, and filling the polygon
# gives the very pixels of the region back. In half pixels, a hair less for rounding.
_TOLERANCE = 2 * (0.5 - np.sqrt(2) / 4) - 0.005
_DECIMALS = 2


class GeoJsonWriter:
    """Writes regions as a GeoJSON FeatureCollection of QuPath annotations; memory is that of one call.

    Coordinates are level-0 (x, y) with pixel corners at whole numbers, as in QuPath. Each feature carries its class
    (name and colour) and its exact area: in um^2, or in level-0 px^2 where the slide has no mpp. Use as a context
    manager; the file is complete when that has been left without an error.

    Parameters
    ----------
    path
        File to write; an existing one is replaced.
    classes
        Class table; regions of other ids are an error.
    placement
        Where the label image lies on the slide.
    """

    def __init__(self, path: Path, classes: Sequence[ClassDef], placement: Placement) -> None:
        self._path = path
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

    def write(self, regions: Sequence[Region]) -> None:
        """Append regions, outlines included.

        Raises
        ------
        ValueError
            Outside the `with` block.
        """
        if self._file is None:
            raise ValueError("the GeoJSON file is not open")
        if not regions:
            return
        polygons = polygons_of(regions, self._placement)
        for region, text in zip(regions, shapely.to_geojson(polygons), strict=True):
            area = region.pixels * self._placement.pixel_area
            self._file.write(
                f'{"," if self.count else ""}\n{{"type": "Feature", "geometry": {text}, "properties": '
                f'{{"objectType": "annotation", "classification": {self._classification[region.class_id]}, '
                f'"measurements": {{"{self._area_name}": {area:.10g}}}}}}}'
            )
            self.count += 1


def polygons_of(regions: Sequence[Region], placement: Placement) -> np.ndarray:
    """Simplified polygons of traced regions: object array of shapely polygons in level-0 (x, y).

    Filled at the pixel centres of the label image they give the regions' pixels back exactly.
    """
    rings = [ring for region in regions for ring in region.rings]
    owner = np.repeat(np.arange(len(regions)), [len(region.rings) for region in regions])
    index = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    points = np.concatenate(rings)[:, ::-1].astype(np.float64)
    # Ring by ring: a hundred times faster than simplifying polygons with thousands of holes as wholes, and as safe, for
    # parts of rings of one region are at least sqrt(1/2) px apart, and none moves by more than 0.15 px.
    simple = shapely.simplify(shapely.linearrings(points, indices=index), _TOLERANCE, preserve_topology=False)
    scale = np.array(placement.frame.downsample[::-1]) / 2
    simple = shapely.transform(simple, lambda xy: np.round(xy * scale, _DECIMALS))
    # The walk that made the rings leaves shells counter-clockwise in (x, y) and holes clockwise, as GeoJSON wants.
    polygons: np.ndarray = shapely.polygons(simple, indices=owner)
    return polygons
