"""The panel is closed and opened again in one viewer, drawn on with the mouse in between, the brush still out."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest

from tests.helpers.mouse import line, look_at, pump
from tests.helpers.waiting import wait_until

ROUNDS = 5
CLASS_1 = (200.0, 500.0)
"""Where the stroke of class 1 begins, level-0 (y, x)."""


def paint(viewer, mouse) -> None:
    """A stroke of each class, downwards."""
    look_at(viewer, 512, 512, min(mouse.size) / 1100)
    y, x = CLASS_1
    for key, start in (("1", x), ("2", x + 200)):
        mouse.key(key)
        mouse.trace(line(mouse.canvas(y - 40, start - 40), mouse.canvas(y, start), 3))
        mouse.drag(line(mouse.canvas(y, start), mouse.canvas(y + 300, start), 12))


def colour_at(viewer, mouse, y: float, x: float) -> np.ndarray:
    """What the canvas shows at level-0 (y, x)."""
    picture = viewer.screenshot(canvas_only=True, flash=False)
    column, row = mouse.canvas(y, x)
    height, width = picture.shape[:2]
    return picture[int(row * height / mouse.size[1]), int(column * width / mouse.size[0]), :3].astype(int)


def open_paint_close(viewer, mouse, slide, *, train: bool) -> list[weakref.ref]:
    """What a user does; afterwards nobody should hold what is handed back."""
    _, panel = viewer.window.add_plugin_dock_widget("napari-sparseseg")
    panel.slides.open(slide)
    wait_until(lambda: panel.slides.binding is not None and not panel.busy, 60)
    layer, y = panel.slides.binding.scribbles.layer, CLASS_1[0] + 150
    before = colour_at(viewer, mouse, y, CLASS_1[1])
    paint(viewer, mouse)
    assert [s.class_id for s in panel.session.annotations.strokes] == [1, 2]
    after = colour_at(viewer, mouse, y, CLASS_1[1])
    assert np.abs(after - before).sum() > 60, "the canvas draws the stroke"
    if train:  # with the prediction there is one more layer that comes and goes
        QTest.mouseClick(panel.train.train, Qt.MouseButton.LeftButton)
        wait_until(lambda: panel.prediction.display.layer is not None and panel.session.live.pending == 0, 240)
    assert str(layer.mode) == "paint", "the brush is out"
    viewer.window.remove_dock_widget(panel)
    mouse.trace(line(mouse.canvas(300, 300), mouse.canvas(600, 600), 5))
    pump(0.2)
    assert not viewer.layers
    return [weakref.ref(layer), weakref.ref(panel.session)]


@pytest.mark.timeout(900)
def test_closed_and_opened_again_in_one_viewer(viewer, mouse, tiny_slide):
    gone = []
    for turn in range(ROUNDS):
        gone += open_paint_close(viewer, mouse, tiny_slide, train=turn == 1)

    def all_gone() -> bool:
        gc.collect()
        return all(ref() is None for ref in gone)

    wait_until(all_gone, 30)  # what was closed is let go of, a panel once the signals on their way have arrived
