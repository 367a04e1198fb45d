"""Outlines over the scribbles that are not stored: polygon, encircling brush, and what a press would take."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_sparseseg.gui.layers.lazy_labels import ShownTile
    from napari_sparseseg.gui.layers.scribbles import ScribbleLayer
    from napari_sparseseg.gui.layers.tools import Outlined

ENCIRCLE_RADIUS = 1.8
"""Radius of the circle that ends an encircling stroke, in brush diameters, as in napari."""
LINE_PX, DOT_PX = 2.0, 4.0
"""On the screen."""


DASH_PX = 5


class Preview:
    """One layer's outline of a polygon being drawn, of where an encircling stroke ends, or of what a press would take.

    napari draws the first two beside the cursor on pyramids (it subtracts the offset of the tile twice). Here they are
    uploaded into the texture of the tile, at the right pixels; nothing is stored.
    """

    def __init__(self, layer: ScribbleLayer) -> None:
        self._layer = layer
        self._shown: Box | None = None
        self._outlined: Outlined | None = None
        self._polygon = layer._overlays["polygon"]
        self._polygon.opacity = 0.0  # an invisible overlay gets no mouse events
        self._polygon.events.points.connect(self.draw)
        self._encircle = layer._overlays.get("brush_stroke")  # napari >= 0.8
        if self._encircle is not None:
            self._encircle.opacity = 0.0
            self._encircle.events.active.connect(self._on_encircle)

    @property
    def outlined(self) -> Outlined | None:
        """What a press would take, outlined in its colour and white."""
        return self._outlined

    @outlined.setter
    def outlined(self, outlined: Outlined | None) -> None:
        if outlined is not None or self._outlined is not None:
            self._outlined = outlined
            self.draw()

    def _on_encircle(self, event: Any = None) -> None:
        if self._encircle.active:  # napari has set it for a brush in level-0 pixels
            self._encircle.radius = self._layer.brush_diameter * ENCIRCLE_RADIUS
        self.draw()

    def draw(self, event: Any = None) -> None:
        """Remove the old preview and draw the current one, if any."""
        layer, tile = self._layer, self._layer.tile
        if tile is None:
            return
        whole = Box(0, 0, tile.box.height, tile.box.width)
        before, (self._shown, drawn) = self._shown, self._art(tile, whole)
        touched = [part.intersection(whole) for part in (before, self._shown) if part is not None and part.area]
        if not touched:
            return
        box = touched[0] if len(touched) == 1 else touched[0].union(touched[1])
        data = layer._slice.image.view[box.slices()].copy()
        if self._shown is not None:
            part = data[self._shown._replace(y=self._shown.y - box.y, x=self._shown.x - box.x).slices()]
            for mask, label in drawn:
                part[mask] = self._value(label)
        layer.upload(data, box.y, box.x)

    def _art(self, tile: ShownTile, whole: Box) -> tuple[Box | None, list[tuple[NDArray[np.bool_], int]]]:
        """Where the preview is in the tile, and masks of that size with their labels."""
        lines, dots = self._shapes()
        pen = max(0.5, 1 / (self._layer.zoom * tile.factor))  # tile pixels per screen pixel
        if not lines:
            return (None, []) if self._outlined is None else _border(self._outlined, tile, whole, pen)
        lines = [(points + 0.5) / tile.factor - (tile.box.y, tile.box.x) for points in lines]
        points = np.concatenate(lines)
        low = np.floor(points.min(axis=0) - 2 * DOT_PX * pen).astype(int)
        size = np.ceil(points.max(axis=0) + 2 * DOT_PX * pen).astype(int) - low
        box = Box(int(low[0]), int(low[1]), int(size[0]), int(size[1])).intersection(whole)
        lines = [points - (box.y, box.x) for points in lines]
        art = _line_art(lines, DOT_PX * pen if dots else 0.0, LINE_PX * pen, box)
        return box, [(art, int(self._layer.selected_label))]

    def _shapes(self) -> tuple[list[NDArray[Any]], bool]:
        """Closed lines in data coordinates, and whether their corners get dots."""
        points = self._polygon.points
        if points:  # with the corner of a pixel at the integer
            return [np.array(points, dtype=float)[:, -2:] - 0.5], True
        if self._encircle is not None and self._encircle.active:
            turn = np.linspace(0, 2 * np.pi, 48)
            ring = np.stack([np.sin(turn), np.cos(turn)], axis=1) * self._encircle.radius
            return [ring + np.array(self._encircle.center, dtype=float)[-2:]], False
        return [], False

    def _value(self, label: int) -> Any:
        """Texture value of a line: that of a class, or of an unused id, which is white, for 0."""
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


def _border(
    outlined: Outlined, tile: ShownTile, whole: Box, pen: float
) -> tuple[Box | None, list[tuple[NDArray[np.bool_], int]]]:
    """Where the border of a region is in a tile, and two masks of that size with their labels: its class, and 0.

    `pen` is the number of tile pixels in a screen pixel.
    """
    bounds, at = [], []
    for corner, step, n, start, most in zip(
        outlined.corner, outlined.step, outlined.mask.shape, tile.box[:2], whole[2:], strict=True
    ):
        first = max(0, math.floor(corner / tile.factor) - start - 1)
        last = min(most, math.ceil((corner + n * step) / tile.factor) - start + 1)
        bounds.append((first, max(0, last - first)))
        centres = (np.arange(first, max(first, last)) + start + 0.5) * tile.factor
        at.append(np.floor((centres - corner) / step).astype(int) + 1)  # of the mask with an empty pixel around it
    box = Box(bounds[0][0], bounds[1][0], bounds[0][1], bounds[1][1])
    if not box.area:
        return None, []
    mask = np.pad(outlined.mask, 1)
    rows, columns = (np.clip(i, 0, n - 1) for i, n in zip(at, mask.shape, strict=True))
    seen = mask[np.ix_(rows, columns)]
    line = seen & ~ndimage.binary_erosion(seen, iterations=max(1, round(LINE_PX * pen)), border_value=1)
    dash = max(1, round(DASH_PX * pen))
    white = (np.add.outer(np.arange(box.height), np.arange(box.width)) // dash) % 2 == 0
    return box, [(line & ~white, outlined.class_id), (line & white, 0)]
