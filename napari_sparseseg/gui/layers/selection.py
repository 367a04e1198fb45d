"""The shapes that the user has selected, as outlines on the slide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Shapes

from napari_sparseseg.geometry import Box
from napari_sparseseg.gui.layers.lazy_labels import PIXEL_CENTRE

if TYPE_CHECKING:
    from collections.abc import Sequence

    import napari
    from numpy.typing import NDArray


def selected_outlines(viewer: napari.Viewer) -> list[NDArray[Any]]:
    """Selected rectangles, polygons and closed lines of the visible Shapes layers: (N, 2) of (y, x), level-0 pixels."""
    found = []
    for layer in viewer.layers:
        if not isinstance(layer, Shapes) or not layer.visible:
            continue
        for k in sorted(layer.selected_data):
            points, kind = layer.data[k], layer.shape_type[k]
            if kind in ("rectangle", "polygon") or (kind == "path" and np.array_equal(points[0], points[-1])):
                world = np.array([layer.data_to_world(point) for point in points], float)
                found.append(world[:, -2:] + PIXEL_CENTRE)
    return found


def around(outlines: Sequence[NDArray[Any]]) -> Box:
    """The level-0 box around some outlines."""
    points = np.concatenate(outlines)
    (y, x), (y1, x1) = np.floor(points.min(axis=0)), np.ceil(points.max(axis=0))
    return Box(int(y), int(x), int(y1 - y), int(x1 - x))
