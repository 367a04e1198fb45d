"""What is about to be drawn, shown in the tile itself.

napari draws the outline of an unfinished polygon and the stop circle of an encircling stroke beside the cursor on
pyramids (the offset of the tile is subtracted twice). Here both are uploaded into the texture of the tile, pixel for
pixel where they belong; nothing is stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_sparseseg.gui.layers.scribble_layer import ScribbleLayer

ENCIRCLE_RADIUS = 1.8
"""Radius of the circle that ends an encircling stroke, in brush diameters; napari's own figure."""
LINE_PX, DOT_PX = 2.0, 4.0
"""On the screen."""


class Preview:
    """Outline of the polygon being drawn and stop circle of the stroke being encircled, of one layer."""

    def __init__(self, layer: ScribbleLayer) -> None:
        self._layer = layer
        self._shown: Box | None = None
        self._polygon = layer._overlays["polygon"]
        self._polygon.opacity = 0.0  # an invisible overlay would get no mouse events
        self._polygon.events.points.connect(self.draw)
        self._encircle = layer._overlays.get("brush_stroke")  # napari >= 0.8
        if self._encircle is not None:
            self._encircle.opacity = 0.0
            self._encircle.events.active.connect(self._on_encircle)

    def _on_encircle(self, event: Any = None) -> None:
        if self._encircle.active:  # napari has just set it for a brush that it takes for level-0 pixels
            self._encircle.radius = self._layer.brush_diameter * ENCIRCLE_RADIUS
        self.draw()

    def draw(self, event: Any = None) -> None:
        """Take the old preview away and show the present one, if there is any."""
        layer, tile = self._layer, self._layer.tile
        if tile is None:
            return
        lines, dots = self._shapes()
        parts = [Box(0, 0, 0, 0) if self._shown is None else self._shown]
        whole = Box(0, 0, tile.box.height, tile.box.width)
        corner = np.array([tile.box.y, tile.box.x])
        pen = max(0.5, 1 / (layer.zoom * tile.factor))  # tile pixels per screen pixel
        lines = [(points + 0.5) / tile.factor - corner for points in lines]
        self._shown = None
        if lines:
            points = np.concatenate(lines)
            low = np.floor(points.min(axis=0) - 2 * DOT_PX * pen).astype(int)
            size = np.ceil(points.max(axis=0) + 2 * DOT_PX * pen).astype(int) - low
            self._shown = Box(int(low[0]), int(low[1]), int(size[0]), int(size[1])).intersection(whole)
            parts.append(self._shown)
        touched = [part.intersection(whole) for part in parts if part.area]
        if not touched:
            return
        box = touched[0] if len(touched) == 1 else touched[0].union(touched[1])
        data = layer._slice.image.view[box.slices()].copy()
        if lines:
            origin = np.array([box.y, box.x])
            data[
                _line_art([points - origin for points in lines], DOT_PX * pen if dots else 0.0, LINE_PX * pen, box)
            ] = self._value()
        layer.upload(data, box.y, box.x)

    def _shapes(self) -> tuple[list[NDArray[Any]], bool]:
        """Closed lines in data coordinates, and whether their corners get dots."""
        points = self._polygon.points
        if points:  # napari keeps them with the pixel's corner at the integer
            return [np.array(points, dtype=float)[:, -2:] - 0.5], True
        if self._encircle is not None and self._encircle.active:
            turn = np.linspace(0, 2 * np.pi, 48)
            ring = np.stack([np.sin(turn), np.cos(turn)], axis=1) * self._encircle.radius
            return [ring + np.array(self._encircle.center, dtype=float)[-2:]], False
        return [], False

    def _value(self) -> Any:
        """Texture value of the line: the selected class, or the colour of no class for the background."""
        label = self._layer.selected_label
        if label == 0:
            used = {c.id for c in self._layer.annotations.classes}
            label = next((i for i in range(255, 0, -1) if i not in used), 255)
        return self._layer.colormap._data_to_texture(np.array([label], dtype=np.uint8))[0]


def _line_art(lines: list[NDArray[Any]], dot: float, width: float, box: Box) -> NDArray[np.bool_]:
    """Closed lines as a mask of the size of `box`, with dots of that radius on the corners where `dot` > 0."""
    image = Image.new("L", (box.width, box.height))
    pen = ImageDraw.Draw(image)
    for line in lines:
        corners = [(float(x), float(y)) for y, x in line]
        pen.line([*corners, corners[0]], fill=1, width=max(1, round(width)))
        for x, y in corners if dot else ():
            pen.ellipse((x - dot, y - dot, x + dot, y + dot), fill=1)
    return np.asarray(image, dtype=bool)
