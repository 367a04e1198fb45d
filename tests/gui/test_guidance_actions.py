"""Accept, Review and the area table, as a user meets them: real clicks on the panel and the canvas."""

from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtGui import QGuiApplication
from qtpy.QtTest import QTest

from napari_sparseseg.geometry import Box
from napari_sparseseg.gui.sections.predict.view import DRAWN, SCREEN, WHOLE
from tests.helpers.mouse import line, look_at, pump
from tests.helpers.smooth_model import CLASSES, SmoothModel
from tests.helpers.waiting import wait_until


@pytest.fixture
def panel(viewer, tiny_slide):
    """The panel with a slide and a model that needs no training."""
    widget = viewer.window.add_plugin_dock_widget("napari-sparseseg")[1]
    widget.slides.open(tiny_slide)
    wait_until(lambda: widget.slides.binding is not None and not widget.busy, 20)
    session = widget.session
    session.classes = CLASSES
    session.use_model(SmoothModel())
    look_at(viewer, session.slide.shape[0] / 2, session.slide.shape[1] / 2, 0.5)
    wait_until(lambda: session.live is not None and session.live.store.top.any() and session.live.pending == 0, 30)
    pump(0.5)
    yield widget
    widget.shut_down()


def click(button) -> None:
    QTest.mouseClick(button, Qt.MouseButton.LeftButton)
    pump(0.1)


def idle(panel) -> None:
    wait_until(lambda: not panel.busy, 20)
    pump(0.2)


def test_a_clicked_region_becomes_dense_and_a_stroke_corrects_it(viewer, panel, mouse):
    session, a = panel.session, panel.session.annotations
    drawing = viewer.layers.selection.active
    h, w = session.slide.shape
    at = (h // 2, w // 4)
    labels, _ = session.predict((0, 0, h, w))
    click(panel.predict.accept)
    assert panel.predict.accept.isChecked()
    mouse.click(mouse.canvas(*at))
    wait_until(lambda: bool(a.dense_regions), 10)
    idle(panel)
    region = a.dense_regions[0]
    assert region.class_id == labels[at]
    dense = a.snapshot().dense.read(0, 0, h, 0, w) > 0
    assert dense[at]
    assert (labels[dense] == labels[at]).mean() > 0.97
    assert "Added" in panel.predict.doubt.text()
    click(panel.predict.accept)
    assert viewer.layers.selection.active is drawing
    look_at(viewer, h / 2, w / 2, 0.5)
    drawing.mode, drawing.selected_label = "paint", region.class_id % 3 + 1
    mouse.drag(line(mouse.canvas(at[0], at[1] - 10), mouse.canvas(at[0], at[1] + 10), 6))
    assert a.read(Box(*at, 1, 1))[0, 0] == region.class_id % 3 + 1
    a.undo()
    a.undo()
    assert not a.dense_regions


def test_the_key_accepts_from_any_layer_and_ends_it(viewer, panel, mouse):
    drawing = viewer.layers.selection.active
    viewer.layers.selection.active = panel.slides.binding.images[0]
    mouse.key("G", shift=True)
    assert panel.predict.accept.isChecked()
    assert viewer.layers.selection.active is drawing
    mouse.key("G", shift=True)
    assert not panel.predict.accept.isChecked()
    assert drawing.tool is None


def test_review_says_why_there_is_nothing(panel, mouse):
    mouse.key("R", shift=True)
    idle(panel)
    assert "was loaded" in panel.header.error.text.text()


def choose(panel, place: int) -> None:
    panel.predict.areas.place.setCurrentIndex(place)
    panel.predict.areas.place.activated.emit(place)
    pump(0.05)


def test_areas_of_a_drawn_region_and_of_the_slide(viewer, panel, tmp_path):
    """A rectangle of 100 x 60 px by hand: its areas are counted from the same labels that `predict` gives."""
    session, shown = panel.session, panel.predict.areas
    h, w = session.slide.shape
    choose(panel, DRAWN)
    assert shown.table.isHidden()
    assert "Select" in shown.empty.text()
    shapes = viewer.add_shapes([[(99.5, 199.5), (99.5, 299.5), (159.5, 299.5), (159.5, 199.5)]], shape_type="rectangle")
    assert not shown.areas
    shapes.selected_data = {0}
    pump(0.4)
    labels, _ = session.predict((100, 200, 60, 100))
    expected = np.bincount(labels.ravel(), minlength=4)
    assert [a.pixels for a in shown.areas] == expected[1:].tolist()
    click(shown.copy)
    text = QGuiApplication.clipboard().text()
    assert text.startswith("class,area_mm2,area_px,percent")
    assert f",{expected[1]}," in text
    choose(panel, WHOLE)
    assert shown.table.isHidden()
    assert "Predict the whole slide" in shown.empty.text()
    panel.prediction.predict_slide(str(tmp_path / "o.ome.zarr"), tissue_only=False)
    idle(panel)
    labels, _ = session.predict((0, 0, h, w))
    assert [round(a.pixels) for a in shown.areas] == np.bincount(labels.ravel(), minlength=4)[1:].tolist()
    choose(panel, SCREEN)
    assert sum(a.share for a in shown.areas) == pytest.approx(1)
