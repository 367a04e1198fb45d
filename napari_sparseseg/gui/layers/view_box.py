"""What part of the slide is on screen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from napari_sparseseg.geometry import Box
from napari_sparseseg.gui.layers.scribbles import camera_of

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


def show_whole(viewer: napari.Viewer, shape: tuple[int, int]) -> None:
    """Show a slide of (height, width) level-0 pixels with some room around it.

    What napari does with `ViewerModel.reset_view`, which before 0.9.2 knows only all layers, other slides' included.
    """
    camera = camera_of(viewer)
    camera.zoom = 0.95 * min(a / b for a, b in zip(canvas_size(viewer), shape, strict=True))
    camera.center = (0.0, *((side - 1) / 2 for side in shape))  # napari's pixel 0 is centred on 0
