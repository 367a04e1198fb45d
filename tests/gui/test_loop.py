"""The whole loop in a real window, with the torch that plain pip installs, imported after the viewer was opened."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest

from napari_sparseseg.session.session import Session
from tests.helpers.answers import answer_file
from tests.helpers.mouse import line, pump
from tests.helpers.panel import click, draw_both
from tests.helpers.waiting import wait_until


@pytest.fixture
def panel(viewer, tiny_slide):
    """The panel with the two textures open."""
    _, widget = viewer.window.add_plugin_dock_widget("napari-sparseseg")
    widget.slides.open(tiny_slide)
    wait_until(lambda: widget.slides.binding is not None and not widget.busy, 20)
    pump(0.3)
    yield widget
    widget.shut_down()


def shown_beside(viewer, mouse, y: float, x: float) -> np.ndarray:
    """Mean colour of 21 x 21 canvas pixels around world (y, x)."""
    shot = viewer.screenshot(canvas_only=True, flash=False)
    ratio = shot.shape[1] / mouse.size[0]
    cx, cy = (int(c * ratio) for c in mouse.canvas(y, x))
    return shot[cy - 10 : cy + 11, cx - 10 : cx + 11, :3].mean(axis=(0, 1))


def test_draw_train_see_stop(viewer, panel, mouse):
    """Two strokes and one click bring a prediction on the screen while training goes on; Stop writes the model."""
    draw_both(panel, mouse)
    places = {"stripes": (500.0, 100.0), "dots": (500.0, 930.0)}
    before = {name: shown_beside(viewer, mouse, *at) for name, at in places.items()}
    click(panel.train.train)
    assert panel.session.status.state == "training"
    assert panel.train.train.text() == "Pause"
    live = panel.prediction.display
    wait_until(lambda: live.layer is not None and all(live.layer.label_at_world(at) for at in places.values()))
    wait_until(lambda: panel.session.status.step > 0)
    assert panel.session.status.state == "training"
    pump(0.3)
    colours = {c.id: np.array(c.rgb) for c in panel.session.classes}
    for (name, at), class_id in zip(places.items(), (1, 2), strict=True):
        assert live.layer.label_at_world(at) == class_id
        now = shown_beside(viewer, mouse, *at)
        expected = (1 - live.opacity) * before[name] + live.opacity * colours[class_id]
        assert np.abs(now - expected).max() < 12, name
    assert panel.predict.areas.table.rowCount() == 2
    click(panel.train.stop)
    wait_until(lambda: panel.session.checkpoint is not None, 20)
    wait_until(lambda: panel.train.train.text() == "Train", 5)
    assert panel.session.status.state == "idle"
    assert panel.session.checkpoint.stat().st_size > 10_000
    assert panel.train.curves.points > 0
    assert not panel.header.error.isVisible()


def test_a_stroke_is_learned_at_once_also_without_training(viewer, panel, mouse):
    draw_both(panel, mouse)
    click(panel.train.train)
    wait_until(lambda: panel.session.status.model_version > 0)
    click(panel.train.stop)
    wait_until(lambda: panel.session.status.state == "idle")
    seen = panel.session.status.live_annotation_version
    assert seen == panel.session.annotations.version == 2
    mouse.drag(line(mouse.canvas(900, 600), mouse.canvas(900, 900), 10))
    wait_until(lambda: panel.session.status.live_annotation_version == 3)
    assert panel.session.status.state == "idle"


def test_pause_shows_and_holds(viewer, panel, mouse):
    draw_both(panel, mouse)
    click(panel.train.train)
    wait_until(lambda: panel.session.status.step > 0)
    click(panel.train.train)
    wait_until(lambda: panel.train.train.text() == "Resume", 10)
    wait_until(lambda: panel.header.state.text() == "Paused", 10)
    panel.session.predict((0, 0, 32, 32))  # the step at hand ends before it
    step = panel.session.status.step
    mouse.drag(line(mouse.canvas(900, 600), mouse.canvas(900, 900), 10))
    wait_until(lambda: panel.session.status.live_annotation_version == 3)  # strokes are learned at once nevertheless
    assert panel.session.status.step == step
    click(panel.train.train)
    wait_until(lambda: panel.session.status.step > step)


def test_views_of_the_prediction(viewer, panel, mouse):
    """Probability, uncertainty, outlines, opacity and hidden classes, each chosen in the panel."""
    draw_both(panel, mouse)
    click(panel.train.train)
    live = panel.prediction.display
    wait_until(lambda: live.layer is not None and bool(live.layer.label_at_world((500.0, 100.0))))
    click(panel.train.stop)
    panel.predict.what.setFocus()
    wait_until(panel.predict.what.isEnabled, 10)
    for expected in ("uncertainty", "margin", "changed", "probability", "probability"):
        QTest.keyClick(panel.predict.what, Qt.Key.Key_Down)
        pump(0.1)
        assert live.layer.shown.kind == expected
    assert live.layer.shown.class_id == 2
    QTest.keyClick(panel.predict.what, Qt.Key.Key_Home)
    QTest.keyClick(panel.predict.contour, Qt.Key.Key_Space)
    assert live.layer.contour == 2
    panel.predict.opacity.setFocus()
    QTest.keyClick(panel.predict.opacity, Qt.Key.Key_Home)
    assert live.layer.opacity == 0
    live.layer.opacity = 0.8
    assert panel.predict.opacity.value() == 80
    assert viewer.layers.selection.active is panel.slides.binding.scribbles.layer
    assert viewer.layers.index(live.layer) == 1, "over the image, under the scribbles"


def test_what_fails_while_training_is_said_in_one_line(viewer, panel, mouse):
    draw_both(panel, mouse)
    panel.train.settings.device.addItem("cuda:7")
    panel.train.settings.device.setCurrentText("cuda:7")
    click(panel.train.train)
    wait_until(panel.header.error.isVisible)
    assert "cuda" in panel.header.error.text.text()
    assert "Traceback" not in panel.header.error.text.text()
    assert "Traceback" in panel.header.error.details.toPlainText()
    wait_until(lambda: panel.header.state.text() == "Failed", 5)
    assert panel.train.train.text() == "Train"
    panel.train.settings.device.setCurrentText("cpu")
    click(panel.train.train)
    wait_until(lambda: panel.session.status.model_version > 0)


def test_closing_the_window_while_training_leaves_a_checkpoint(viewer, panel, mouse):
    draw_both(panel, mouse)
    click(panel.train.train)
    wait_until(lambda: panel.session.status.step > 0)
    session = panel.session
    project = session.project
    viewer.close()
    assert not session._engine.running
    assert (project / "models" / "model.safetensors").exists()
    with Session.load(project) as again:
        assert again.model is not None
        assert sum(again.annotations.counts().values()) > 0


def test_a_model_of_other_classes_is_loaded_taught_and_saved_meanwhile(viewer, panel, mouse, tiny_slide, tmp_path):
    with Session(["gland", "stroma"]) as before:
        before.open(tiny_slide)
        for class_id, x in ((1, 250), (2, 780)):
            before.annotations.paint([(200, x), (800, x)], 20, class_id)
        before.train(steps=1, wait=True)
        before.save_model(tmp_path / "glands.safetensors")
    draw_both(panel, mouse)
    settings, said = panel.train.settings, panel.header.next_step
    click(panel.train.more.heading)
    assert not settings.save.isEnabled(), "there is no model yet"
    asked = answer_file(tmp_path / "glands.safetensors")
    click(settings.load)
    wait_until(lambda: panel.classes.table.rowCount() == 4, 20)
    assert asked == ["Load model"]
    assert [c.name for c in panel.session.classes] == ["tissue", "background", "gland", "stroma"]
    wait_until(lambda: said.text().startswith("The model does not know tissue yet: press Train"), 10)
    click(panel.train.train)
    wait_until(lambda: {1, 2} <= {c.id for c in panel.session.model.metadata.classes})
    assert not settings.load.isEnabled()
    answer_file(tmp_path / "learned")
    click(settings.save)
    wait_until((tmp_path / "learned.safetensors").exists, 20)
    assert panel.session.status.state == "training"
    click(panel.train.stop)
    wait_until(lambda: panel.session.status.state == "idle", 20)
    assert "does not know" not in said.text()


SCRIPT = """
import napari
viewer = napari.Viewer(show=True)
import sys
assert "torch" not in sys.modules
_, panel = viewer.window.add_plugin_dock_widget("napari-sparseseg")
session = panel.session
session.open(sys.argv[1])
session.annotations.paint([(200, 250), (800, 250)], 20, 1)
session.annotations.paint([(200, 780), (800, 780)], 20, 2)
from qtpy.QtWidgets import QApplication
QApplication.processEvents()
session.train(steps=2, wait=True)
assert "torch" in sys.modules
labels, _ = session.predict((0, 0, 1024, 1024))
print("trained", session.status.step, labels.shape)
viewer.close()
"""


def test_torch_is_imported_after_the_viewer_in_a_fresh_process(tiny_slide):
    """The order that crashes where triton is imported beside a GL context; ordinary tests import torch too early."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny_slide)], capture_output=True, text=True, timeout=280, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.split()[:2] == ["trained", "2"]
