"""Annotations from and to plain Shapes and Labels layers of napari."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels, Shapes

from napari_sparseseg.annotations import MaskPiece, Shape
from napari_sparseseg.annotations.packing import enlarge
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.geometry import Box
from napari_sparseseg.gui.layers.lazy_labels import PIXEL_CENTRE
from napari_sparseseg.session import label_outlines

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import napari
    from napari.layers import Layer
    from numpy.typing import NDArray

    from napari_sparseseg.annotations import Annotations

CLASS = "class"
"""Column of a Shapes layer's features that holds class names."""
ELLIPSE_CORNERS = 64
BLOCK = 2048


def import_layer(annotations: Annotations, layer: Layer, class_id: int) -> int:
    """Draw the shapes or labels of a layer as one undo step; world coordinates are level-0 pixels.

    Parameters
    ----------
    annotations
        Drawn into, over existing labels.
    layer
        Shapes: areas are filled, lines and paths are drawn as wide as their edges; the feature ``class``, if there is
        one, names the class. Labels: values are class ids, and one pixel is 1, 2, 4, ... level-0 pixels.
    class_id
        For shapes without a class.

    Returns
    -------
    int
        Number of shapes or labels drawn.

    Raises
    ------
    AnnotationError
        For other layers, unknown classes, or labels that are not aligned with the slide's pixels.
    """
    if isinstance(layer, Shapes):
        return annotations.draw(_shapes(annotations, layer, class_id))
    if isinstance(layer, Labels):
        return _draw_labels(annotations, layer)
    raise AnnotationError(
        f"annotations can be imported from Shapes and Labels layers, not from {type(layer).__name__}."
    )


def shapes_data(annotations: Annotations) -> tuple[list[NDArray[np.float64]], dict[str, Any], str]:
    """The labels as a layer data tuple for ``viewer.add_shapes``: one polygon per connected region, exactly outlined.

    Holes are joined to their outline by a seam. The feature ``class`` has the class names, which `import_layer` reads.
    """
    snapshot = annotations.snapshot()
    classes = {c.id: c for c in snapshot.classes}
    outlines = label_outlines(snapshot)
    data = [ring - PIXEL_CENTRE for _, ring in outlines]
    colours = [classes[class_id].colour for class_id, _ in outlines]
    state: dict[str, Any] = {"name": "annotations", "shape_type": "polygon"}
    if data:
        names = [classes[class_id].name for class_id, _ in outlines]
        state |= {"features": {CLASS: names}, "face_color": colours, "edge_color": colours, "edge_width": 0}
    return data, state, "shapes"


def _shapes(annotations: Annotations, layer: Shapes, class_id: int) -> list[Shape]:
    ids = {c.name.casefold(): c.id for c in annotations.classes}
    names = [str(name) for name in layer.features[CLASS]] if CLASS in layer.features else [""] * layer.nshapes
    out = []
    for data, kind, name, width in zip(layer.data, layer.shape_type, names, layer.edge_width, strict=True):
        if name and name.casefold() not in ids:
            raise AnnotationError(
                f"layer {layer.name} has shapes of class {name!r}; add this class to the table first."
            )
        corners = _ellipse(data) if kind == "ellipse" else data
        ring = np.array([layer.data_to_world(corner)[-2:] for corner in corners], dtype=np.float64) + PIXEL_CENTRE
        number = ids[name.casefold()] if name else class_id
        if kind in ("line", "path"):
            radius = width * float(np.mean(np.abs(layer.scale[-2:]))) / 2
            out.append(Shape("brush", number, [ring], max(radius, PIXEL_CENTRE)))
        else:
            out.append(Shape("polygon", number, [ring]))
    return out


def _ellipse(box: NDArray[Any]) -> NDArray[np.float64]:
    """Corners of the ellipse in a possibly rotated box, given by its four corners."""
    corners = np.asarray(box, np.float64)
    centre, a, b = corners.mean(axis=0), (corners[1] - corners[0]) / 2, (corners[3] - corners[0]) / 2
    turn = np.linspace(0, 2 * np.pi, ELLIPSE_CORNERS, endpoint=False)[:, None]
    return np.asarray(centre + np.cos(turn) * a + np.sin(turn) * b, np.float64)


def _draw_labels(annotations: Annotations, layer: Labels) -> int:
    if layer.multiscale or layer.ndim != 2:
        raise AnnotationError(
            f"{layer.name} is not a 2-D Labels layer with one scale; save it as a label image and import that."
        )
    origin = np.array(layer.data_to_world((0, 0))) + PIXEL_CENTRE
    steps = np.array(layer.data_to_world((1, 1))) + PIXEL_CENTRE - origin
    level = round(math.log2(max(1.0, float(steps[0]))))
    y, x = (origin - steps / 2) / (1 << level)
    if not np.allclose(steps, 1 << level, rtol=1e-3) or not np.allclose([y, x], np.round([y, x]), atol=0.01):
        raise AnnotationError(
            f"the pixels of {layer.name} do not cover 1, 2, 4, ... pixels of the slide; set its scale and translation."
        )
    write = min(level, annotations.top_level)
    larger = level - write
    drawn: set[int] = set()

    def pieces() -> Iterator[MaskPiece]:
        for i in range(0, layer.data.shape[0], BLOCK):
            for j in range(0, layer.data.shape[1], BLOCK):
                block = np.asarray(layer.data[i : i + BLOCK, j : j + BLOCK])
                for label in np.unique(block[block > 0]).tolist():
                    y0, x0 = ((round(float(start)) + at) << larger for start, at in ((y, i), (x, j)))
                    drawn.add(label)
                    yield MaskPiece(write, y0, x0, enlarge(block == label, larger), label)

    annotations.draw_masks(pieces())
    return len(drawn)


def selected_outlines(viewer: napari.Viewer) -> list[NDArray[Any]]:
    """Selected rectangles, polygons and closed paths of the visible Shapes layers: (N, 2) of level-0 (y, x)."""
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
    """The level-0 box around outlines."""
    points = np.concatenate(outlines)
    (y, x), (y1, x1) = np.floor(points.min(axis=0)), np.ceil(points.max(axis=0))
    return Box(int(y), int(x), int(y1 - y), int(x1 - x))
