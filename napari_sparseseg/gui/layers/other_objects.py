"""Objects of an imported file that label nothing, shown as grey outlines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Shapes

from napari_sparseseg.gui.layers.lazy_labels import PIXEL_CENTRE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

MOST_SHOWN = 2000
"""napari builds every shape on the GUI thread."""
MOST_CORNERS = 500
POINT_RADIUS = 8.0
GREY = "#a0a0a0"
EDGE_PX = 2.0
_RINGS_DEEP = {"Point": 0, "MultiPoint": 1, "LineString": 1, "MultiLineString": 2, "Polygon": 2, "MultiPolygon": 3}


def other_objects_layer(features: Sequence[Mapping[str, Any]], name: str) -> Shapes | None:
    """A layer of outlines, or None where nothing has a shape.

    Parameters
    ----------
    features
        GeoJSON features in level-0 (x, y); see `Annotations.others`. The first `MOST_SHOWN` outlines are shown.
    name
        Of the layer; it says how many of how many outlines there are where not all are shown.
    """
    lines, names = [], []
    for feature in features:
        for line in _lines(feature.get("geometry") or {}):
            lines.append(line)
            names.append(_class_of(feature))
    if not lines:
        return None
    shown = lines[:MOST_SHOWN]
    return Shapes(
        [line - PIXEL_CENTRE for line in shown],
        shape_type="path",
        edge_color=GREY,
        edge_width=EDGE_PX * _scale_of(shown),
        face_color="transparent",
        features={"class": names[:MOST_SHOWN]},
        name=name if len(shown) == len(lines) else f"{name} (first {len(shown):,} of {len(lines):,})",
    )


def _scale_of(lines: Sequence[NDArray[Any]]) -> float:
    """Level-0 pixels for one pixel of an outline's width: 1/500 of the median outline's size, at least 1."""
    return max(1.0, float(np.median([np.ptp(line, axis=0).max() for line in lines])) / 500)


def _class_of(feature: Mapping[str, Any]) -> str:
    properties = feature.get("properties") or {}
    classification = properties.get("classification") or {}
    return str(classification.get("name") or properties.get("name") or "no class")


def _lines(geometry: Mapping[str, Any]) -> Iterator[NDArray[np.float64]]:
    """Outlines (N, 2) of level-0 (y, x); a point is a small diamond."""
    for part in geometry.get("geometries") or ():
        yield from _lines(part)
    depth = _RINGS_DEEP.get(geometry.get("type", ""))
    if depth is None:
        return
    parts = [geometry["coordinates"]]
    for _ in range(depth - 1):
        parts = [ring for part in parts for ring in part]
    for part in parts:
        if geometry["type"] in ("Point", "MultiPoint"):
            for x, y, *_ in [part] if depth == 0 else part:
                yield np.array([y, x], float) + POINT_RADIUS * np.array([[-1, 0], [0, 1], [1, 0], [0, -1], [-1, 0]])
        elif len(part) > 1:
            step = -(-len(part) // MOST_CORNERS)
            yield np.array([(y, x) for x, y, *_ in [*part[::step], part[-1]]], float)
