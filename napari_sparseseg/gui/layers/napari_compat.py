"""What depends on the version of napari: a self-test of its private parts, the view, and the Qt binding.

`ScribbleLayer` overrides private methods of napari's Labels layer. `problems` tries them once per process, because a
changed signature is as bad as a missing name; without problems, painting on a pyramid works.
"""

from __future__ import annotations

import inspect
import math
import sys
from functools import cache
from typing import TYPE_CHECKING

import napari
import numpy as np
import qtpy
from napari.layers import Labels
from qtpy.QtCore import QObject
from vispy.visuals.line.dash_atlas import DashAtlas

from napari_sparseseg.annotations import Annotations
from napari_sparseseg.errors import SparseSegError
from napari_sparseseg.geometry import Box
from napari_sparseseg.gui.layers.scribbles import ScribbleLayer

if TYPE_CHECKING:
    from napari.layers import Layer

OVERRIDDEN = {
    "_draw": ["new_label", "last_cursor_coord", "coordinates"],
    "_reset_editable": [],
    "_partial_labels_refresh": [],
    "_calculate_cursor_size": [],
    "_begin_stroke": [],
    "_commit_stroke": [],
    "_abort_stroke": [],
    "_raw_to_displayed": ["raw", "data_slice"],
}
"""Methods napari must still call, with their parameters."""
SIDE = 4096
BRUSH = 20
CALLS = 50
_tried: list[ScribbleLayer] = []
"""Layers of the self-test, which may run on a thread: signals on their way to them must not find them gone."""


@cache
def problems() -> tuple[str, ...]:
    """What does not work, one clause each."""
    found = []
    for name, parameters in OVERRIDDEN.items():
        method = getattr(Labels, name, None)
        if method is None:
            found.append(f"napari's Labels has no {name} any more")
        elif list(inspect.signature(method).parameters)[1:] != parameters:
            found.append(f"napari's Labels.{name} takes other parameters than ({', '.join(parameters)})")
    if found:
        return tuple(found)
    try:
        found += _trial()
    except (AttributeError, TypeError, ValueError, LookupError, RuntimeError) as error:
        found.append(f"a trial stroke ended in {type(error).__name__}: {error}")
    return tuple(found)


def warm_up() -> None:
    """Do, off the GUI thread, what vispy does once for the first Labels layer: its dash patterns take 0.1 s."""
    DashAtlas()


def require_editing() -> None:
    """Raise `SparseSegError` where this napari lacks what painting on a pyramid needs."""
    found = problems()
    if found:
        raise SparseSegError(
            f"napari {napari.__version__} does not work with this version of napari-sparseseg, so nothing can be drawn "
            f'({"; ".join(found)}). Install "napari>=0.9,<0.11", or a newer napari-sparseseg.'
        )


def qt_problem() -> str:
    """What is wrong with the Qt binding, or nothing.

    PySide6 6.12 is built for a Python that no longer counts references to None: before Python 3.12 every None that it
    returns is one reference less, and when none is left, after some minutes, Python aborts.
    """
    lonely, before = QObject(), sys.getrefcount(None)
    for _ in range(CALLS):
        lonely.parent()
    if before - sys.getrefcount(None) < CALLS // 2:
        return ""
    return (
        f"{qtpy.API_NAME} {qtpy.QT_VERSION} on Python {sys.version.split()[0]} loses references to None: napari will "
        "crash after some minutes, with or without this plugin. What you draw is kept. Install PySide6 before 6.12 or "
        "PyQt6, or use Python 3.12 or newer."
    )


def _trial() -> list[str]:
    """Paint one dab on a layer that no viewer shows and see that it is stored, sent to the texture and taken back."""
    annotations = Annotations((SIDE, SIDE))
    label = annotations.classes[0].id
    layer = ScribbleLayer(annotations)
    sent: list[tuple[list[int], np.ndarray]] = []
    layer.events.labels_update.connect(lambda event: sent.append((list(event.offset), np.array(event.data))))
    try:
        tile = layer.tile
        if tile is None or not layer.editable:
            return ["a trial layer shows nothing or cannot be edited"]
        layer.zoom, layer.brush_size, layer.mode = 1 / tile.factor, BRUSH, "paint"
        with layer.block_history():
            layer._draw(label, None, (SIDE / 2, SIDE / 2))
        if layer.label_at((SIDE / 2, SIDE / 2)) != label:
            return ["a trial stroke is not in what the layer shows"]
        if not any((data == label).any() for _, data in sent):
            return ["a trial stroke did not reach the texture"]
        layer.undo()
        return [] if layer.label_at((SIDE / 2, SIDE / 2)) == 0 else ["undoing a trial stroke does not show"]
    finally:
        layer.detach()
        _tried.append(layer)


def hide_cursor_box(viewer: napari.Viewer) -> None:
    """Hide the background box of the brush circle.

    napari 0.9 draws it behind the circle and leaves it on the canvas when the brush is put away; drawn there without
    any layer it ends in a segmentation fault in Mesa's software renderer.
    """
    if "_brush_circle" in viewer.canvas.overlays:
        viewer.canvas.overlays["_brush_circle"].box = False


def view_box(viewer: napari.Viewer) -> tuple[Box, float]:
    """The box on screen in world coordinates, which are level-0 pixels, and level-0 pixels per screen pixel.

    It may reach beyond the slide.
    """
    camera = viewer.scene.camera
    height, width = viewer.canvas.size
    y, x = (float(c) for c in camera.center[-2:])
    pixel = 1.0 / float(camera.zoom)
    top, left = y - height * pixel / 2, x - width * pixel / 2
    box = Box(math.floor(top), math.floor(left), math.ceil(height * pixel) + 1, math.ceil(width * pixel) + 1)
    return box, pixel


def insert_unselected(viewer: napari.Viewer, index: int, layer: Layer) -> None:
    """Insert a layer and keep what is selected: napari selects a new layer, which would end drawing."""
    selection = viewer.layers.selection
    before = set(selection)
    viewer.layers.insert(index, layer)
    if len(before) == 1:
        selection.active = next(iter(before))
    else:
        selection.clear()
        selection.update(before)


def show_whole(viewer: napari.Viewer, shape: tuple[int, int]) -> None:
    """Show a slide of (height, width) level-0 pixels with some room around it.

    What napari does with `ViewerModel.reset_view`, which before 0.9.2 knows only all layers, other slides' included.
    """
    camera = viewer.scene.camera
    camera.zoom = 0.95 * min(a / b for a, b in zip(viewer.canvas.size, shape, strict=True))
    camera.center = (0.0, *((side - 1) / 2 for side in shape))  # napari's pixel 0 is centred on 0
