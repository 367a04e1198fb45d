"""Does this napari still have the private parts that `ScribbleLayer` builds on?

Checked once at start-up by using them, because a changed signature is as bad as a missing name. The list of problems
is for the user and for a bug report; an empty one means that painting on the pyramid works.
"""

from __future__ import annotations

import inspect
import sys
from functools import cache

import numpy as np
import qtpy
from napari.layers import Labels
from qtpy.QtCore import QObject

from napari_sparseseg.annotations import Annotations
from napari_sparseseg.gui.layers.scribble_layer import ScribbleLayer

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


@cache
def check() -> tuple[str, ...]:
    """What does not work, one clause each."""
    problems = []
    for name, parameters in OVERRIDDEN.items():
        method = getattr(Labels, name, None)
        if method is None:
            problems.append(f"napari's Labels has no {name} any more")
        elif list(inspect.signature(method).parameters)[1:] != parameters:
            problems.append(f"napari's Labels.{name} takes other parameters than ({', '.join(parameters)})")
    if problems:
        return tuple(problems)
    try:
        problems += _trial()
    except (AttributeError, TypeError, ValueError, LookupError, RuntimeError) as error:
        problems.append(f"a trial stroke ended in {type(error).__name__}: {error}")
    return tuple(problems)


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
