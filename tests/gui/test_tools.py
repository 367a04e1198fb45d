"""Snap brush, superpixels and predicted regions as a hand uses them: keys, clicks, drags, Shift, the wheel, undo."""

from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtCore import Qt

from napari_sparseseg.geometry import Box
from napari_sparseseg.gui.sections.classes.view import BRUSH, REGIONS, SNAP, SUPERPIXELS
from tests.helpers.mouse import camera, line, look_at, pump
from tests.helpers.panel import draw, give_model, open_from_menu, open_slide, quiet
from tests.helpers.waiting import wait_until

SHIFT = Qt.KeyboardModifier.ShiftModifier


@pytest.fixture
def panel(viewer, tiny_slide):
    opened = open_from_menu(viewer)
    open_slide(opened, tiny_slide)
    h, w = opened.session.slide.shape
    look_at(viewer, h / 2, w / 2, 0.6)
    yield opened
    opened.shut_down()


@pytest.fixture
def layer(panel):
    return panel.slides.binding.scribbles.layer


def tool(panel) -> str:
    return panel.classes.tool.currentData()


def press(mouse, key: str, **modifiers) -> None:
    mouse.hover((mouse.size[0] / 2, mouse.size[1] / 2))
    mouse.key(key, **modifiers)


def shift_click(mouse, point) -> None:
    mouse.hover(point, SHIFT)
    mouse.press(point, modifiers=SHIFT)
    pump()
    mouse.release(point)
    pump(0.1)


def wait_for_stroke(panel, number: int) -> None:
    wait_until(lambda: len(panel.session.annotations.strokes) == number, 20)
    pump(0.1)


def test_a_click_labels_the_outlined_superpixel_at_every_zoom_and_one_undo_takes_it_back(viewer, panel, layer, mouse):
    a, (h, w) = panel.session.annotations, panel.session.slide.shape
    press(mouse, "U")
    assert tool(panel) == SUPERPIXELS
    for n, zoom in enumerate((0.3, 1.0, 4.0), 1):
        look_at(viewer, h / 2, w / 2, zoom)
        at = mouse.canvas(h / 2 + 7 * n, w / 2)
        mouse.hover(at)
        wait_until(lambda: layer.preview.outlined is not None, 20)
        shown = layer.preview.outlined
        mouse.click(at)
        wait_for_stroke(panel, 1)
        expected = shown.mask.sum() * shown.step[0] * shown.step[1]
        assert sum(a.counts().values()) == pytest.approx(expected)
        width = np.sqrt(expected) * zoom
        assert 6 < width < 80, "as wide on the screen at every zoom"
        mouse.key("Z", ctrl=True)
        assert not any(a.counts().values())


def test_a_drag_labels_all_superpixels_that_it_crosses_and_shift_takes_one_away(viewer, panel, layer, mouse):
    a, (h, w) = panel.session.annotations, panel.session.slide.shape
    press(mouse, "U")
    mouse.drag(line(mouse.canvas(h / 2, w / 2 - 100), mouse.canvas(h / 2, w / 2 + 100), 6))
    wait_for_stroke(panel, 1)
    y, x = (int(v + 0.5) for v in mouse.world(mouse.canvas(h / 2, w / 2)))
    row = a.read(Box(y, x - 95, 1, 190))[0]
    assert (row == layer.selected_label).all()
    before = sum(a.counts().values())
    assert before > 200 * 10
    shift_click(mouse, mouse.canvas(h / 2, w / 2))
    wait_until(lambda: sum(a.counts().values()) < before, 20)
    assert a.read(Box(y, x, 1, 1))[0, 0] == 0
    mouse.key("Z", ctrl=True)
    assert sum(a.counts().values()) == before
    mouse.key("E")
    mouse.click(mouse.canvas(h / 2, w / 2))
    wait_until(lambda: sum(a.counts().values()) < before, 20)


def test_locked_classes_and_other_keys_hold_for_superpixels_too(viewer, panel, layer, mouse):
    a, (h, w) = panel.session.annotations, panel.session.slide.shape
    a.paint([(h / 2, w / 2 - 50), (h / 2, w / 2 + 50)], 10, 1)
    layer.locked_classes = frozenset({1})
    press(mouse, "U")
    mouse.key("2")
    kept = a.counts()[1]
    mouse.click(mouse.canvas(h / 2, w / 2))
    wait_for_stroke(panel, 2)
    assert a.counts()[1] == kept
    press(mouse, "U")
    assert tool(panel) == BRUSH
    assert layer.tool is None


def test_the_wheel_changes_the_outline_of_the_snap_brush_before_the_press(viewer, panel, layer, mouse):
    """What is outlined when the button goes down is what is labelled; the picture is not zoomed by it."""
    a, (h, w) = panel.session.annotations, panel.session.slide.shape
    press(mouse, "S")
    zoom = camera(viewer).zoom
    at = mouse.canvas(h / 2, w / 2 - 90)
    mouse.hover(at)
    wait_until(lambda: layer.preview.outlined is not None, 20)
    amount, small = layer.tool.amount, layer.preview.outlined.mask.sum()
    for _ in range(4):
        mouse.wheel(at, 1)
    wait_until(lambda: layer.preview.outlined is not None and layer.preview.outlined.mask.sum() > small, 20)
    assert layer.tool.amount == pytest.approx(min(1.2, amount * 1.15**4))
    assert panel.classes.amount.value() == pytest.approx(1000 * (layer.tool.amount - 0.1) / 1.1, abs=1)
    assert camera(viewer).zoom == zoom
    wait_until(lambda: panel.busy == (), 10)
    pump(0.2)
    shown = layer.preview.outlined
    mouse.press(at)
    pump()
    mouse.release(at)
    wait_for_stroke(panel, 1)
    assert sum(a.counts().values()) == pytest.approx(shown.mask.sum() * shown.step[0] ** 2, rel=0.02)
    mouse.wheel(at, 1, Qt.KeyboardModifier.NoModifier)
    assert camera(viewer).zoom > zoom, "without Shift it zooms"


def test_no_outline_of_another_place_is_shown(viewer, panel, layer, mouse):
    """The pointer moves on while a region is being looked for, by every number of milliseconds."""
    h, w = panel.session.slide.shape
    press(mouse, "S")
    for n in range(12):
        place = h / 2 - 60 + 10 * n, w / 2 - 90 + 15 * n
        mouse.move(mouse.canvas(*place))
        pump(0.01 * n)
        shown = layer.preview.outlined
        if shown is not None:
            assert shown.covers(layer.pen([layer.world_to_data(viewer.cursor.position)])[0][0])
    mouse.hover(mouse.canvas(-500, -500))
    pump(0.3)
    assert layer.preview.outlined is None or not layer.preview.outlined.mask.any()


def test_regions_are_a_mode_with_the_key_of_accepting(viewer, panel, layer, mouse):
    session, a = panel.session, panel.session.annotations
    press(mouse, "G", shift=True)
    assert tool(panel) == BRUSH, "without a prediction there is nothing to accept"
    give_model(panel)
    wait_until(lambda: session.live is not None and session.live.store.top.any() and session.live.pending == 0, 30)
    h, w = session.slide.shape
    press(mouse, "G", shift=True)
    assert tool(panel) == REGIONS
    assert panel.predict.accept.isChecked()
    at = mouse.canvas(h / 2, w / 4)
    mouse.hover(at)
    wait_until(lambda: layer.preview.outlined is not None, 20)
    labels, _ = session.predict((0, 0, h, w))
    assert layer.preview.outlined.class_id == labels[h // 2, w // 4]
    mouse.drag(line(at, mouse.canvas(h / 2, 3 * w / 4), 6))
    wait_until(lambda: bool(a.dense_regions), 20)
    quiet(panel)
    number = len(a.dense_regions)
    assert number == len({id(r) for r in a.dense_regions})
    assert a.snapshot().dense.read(0, h // 2, h // 2 + 1, w // 4, 3 * w // 4).all()
    assert not a.strokes, "the brush draws nothing"
    shift_click(mouse, at)
    wait_until(lambda: len(a.dense_regions) == number - 1, 20)
    quiet(panel)
    mouse.key("Z", ctrl=True)
    assert len(a.dense_regions) == number
    mouse.key("Z", ctrl=True)
    assert not a.dense_regions
    press(mouse, "G", shift=True)
    assert tool(panel) == BRUSH


def test_the_choice_in_the_panel_is_that_of_the_keys(viewer, panel, layer, mouse):
    box = panel.classes.tool
    for index, kind in ((1, SNAP), (2, SUPERPIXELS), (0, BRUSH)):
        box.setCurrentIndex(index)
        box.activated.emit(index)
        assert (layer.tool is None) == (kind == BRUSH)
        assert panel.classes.amount.isEnabled() == (kind != BRUSH)
    press(mouse, "S")
    panel.classes.amount.setValue(0)
    assert layer.tool.amount == pytest.approx(0.1)
    press(mouse, "U")
    press(mouse, "S")
    assert layer.tool.amount == pytest.approx(0.1), "each keeps its own"
    draw(viewer, mouse, 500)
    wait_for_stroke(panel, 1)
