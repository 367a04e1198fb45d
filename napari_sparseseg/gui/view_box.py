"""What part of the slide is on screen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from napari_sparseseg.geometry import Box
from napari_sparseseg.gui.scribbles import camera_of

if TYPE_CHECKING:
    import napari


def canvas_size(viewer: napari.Viewer) -> tuple[int, int]:
    """(height, width) of the canvas in logical pixels; napari 0.9 made it public."""
    canvas = getattr(viewer, "canvas", None)
    height, width = canvas.size if canvas is not None else viewer._canvas_size
    return int(height), int(width)


def view_box(viewer: napari.Viewer) -> tuple[Box, float]:
    """The box on screen in world coordinates, which are level-0 pixels, and level-0 pixels per screen pixel.

    It may reach beyond the slide.
    """
    camera = camera_of(viewer)
    height, width = canvas_size(viewer)
    y, x = (float(c) for c in camera.center[-2:])
    pixel = 1.0 / float(camera.zoom)
    top, left = y - height * pixel / 2, x - width * pixel / 2
    box = Box(math.floor(top), math.floor(left), math.ceil(height * pixel) + 1, math.ceil(width * pixel) + 1)
    return box, pixel
