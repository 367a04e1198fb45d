"""Scale bar, magnification, overview map, places and keys of the view, as a user reaches them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from qtpy.QtCore import QObject, QPoint, Qt, QUrl, Slot
from qtpy.QtGui import QDesktopServices
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

from tests.helpers.answers import answer, answer_file, choose_entry
from tests.helpers.mouse import camera, look_at, pump
from tests.helpers.panel import click, draw, open_from_menu, open_slide, palette_entry, type_name
from tests.helpers.smooth_model import CLASSES, SmoothModel
from tests.helpers.waiting import wait_until

NONE, CTRL = Qt.KeyboardModifier.NoModifier, Qt.KeyboardModifier.ControlModifier
SHIFT = Qt.KeyboardModifier.ShiftModifier


@pytest.fixture
def panel(viewer, tiny_slide):
    """The panel as the menu opens it, with a slide of 1024 x 1024 px and 1 um per px."""
    viewer.window.resize(1390, 900)
    opened = open_from_menu(viewer)
    open_slide(opened, tiny_slide)
    wait_until(lambda: opened.view.map.has_slide, 20)
    viewer.window._qt_window.activateWindow()
    pump(0.1)
    yield opened
    opened.shut_down()


def press(widget, key: Qt.Key, modifiers=NONE) -> None:
    """Put the focus on a widget and press a key, which Qt sends there."""
    widget.window().activateWindow()  # a dialog may have been open
    pump(0.05)
    widget.setFocus()
    assert QApplication.focusWidget() is widget
    QTest.keyClick(widget, key, modifiers)
    pump(0.05)


def drawn_length(panel) -> float:
    """Length of the scale bar on the screen, measured along its row of white pixels."""
    shot = panel.view.scale_bar.grab().toImage()
    row = shot.height() - 8 - 6  # through the bar, which is in the middle of its ticks
    white = [x for x in range(shot.width()) if shot.pixelColor(x, row).lightness() > 200]
    return (white[-1] - white[0] + 1) / shot.devicePixelRatio()


def test_the_scale_bar_is_right_at_every_zoom(viewer, panel, mouse):
    for zoom, text, um, pixels in [
        (1.0, "100 µm", 100, 100),
        (0.25, "500 µm", 500, 125),
        (3.0, "50 µm", 50, 150),
        (0.06, "2 mm", 2000, 120),
    ]:
        look_at(viewer, 512, 512, zoom)
        assert panel.view.scale_bar.isVisible()
        assert panel.view.scale_bar.bar.text == text
        assert drawn_length(panel) == pytest.approx(pixels, abs=1)
        # as far apart on the slide as the bar says
        assert mouse.world((100 + pixels, 100))[1] - mouse.world((100, 100))[1] == pytest.approx(um)
    panel.session.set_mpp(None)
    look_at(viewer, 512, 512, 1.0)
    bar = panel.view.bar
    wait_until(lambda: panel.view.scale_bar.bar.text == "100 px" and bar.magnification.text() == "100 %", 5)
    assert not bar.objectives[20].isEnabled()
    assert bar.fit.isEnabled()
    panel.session.set_mpp(0.25)
    wait_until(lambda: bar.magnification.text() == "40×", 5)
    viewer.canvas.overlays["scale_bar"].visible = True  # View > Scale Bar
    assert not panel.view.scale_bar.isVisible()
    assert not viewer.canvas.overlays["scale_bar"].visible
    viewer.canvas.overlays["scale_bar"].visible = True
    assert panel.view.scale_bar.isVisible()


def test_buttons_and_keys_set_the_magnification(viewer, panel, mouse):
    bar, layer = panel.view.bar, panel.slides.binding.scribbles.layer
    mouse.widget.setFocus()
    click(bar.objectives[20])
    assert QApplication.focusWidget() is mouse.widget, "keys go on meaning what they mean over the slide"
    assert camera(viewer).zoom == pytest.approx(2.0)  # 0.5 um per screen pixel are 20x
    assert bar.magnification.text() == "20×"
    layer.brush_size = 20
    assert bar.brush.text() == "Brush 10 µm"
    press(mouse.widget, Qt.Key.Key_BracketRight)
    assert bar.brush.text() == "Brush 10.5 µm"
    press(mouse.widget, Qt.Key.Key_1, CTRL)
    assert camera(viewer).zoom == pytest.approx(0.5)
    assert layer.selected_label == 1, "no class key"
    assert bar.brush.text() == "Brush 42 µm"
    palette_entry(viewer, "Magnification 40")
    assert camera(viewer).zoom == pytest.approx(4.0)
    press(mouse.widget, Qt.Key.Key_0, CTRL)
    assert camera(viewer).zoom == pytest.approx(0.95 * min(mouse.size) / 1024, rel=0.01)
    assert "Ctrl+1" in bar.objectives[5].toolTip()
    layer.mode = "polygon"
    assert not bar.brush.isVisible()


def test_the_overview_map_goes_where_it_is_clicked(viewer, panel, mouse):
    view, overview = panel.view, panel.view.map
    assert not overview.isVisible(), "the whole slide is in view"
    click(view.bar.objectives[20])
    assert overview.isVisible()
    side = overview.width() - 2
    QTest.mouseClick(overview, Qt.MouseButton.LeftButton, pos=QPoint(1 + side // 4, 1 + side // 2))
    y, x = (c + 0.5 for c in camera(viewer).center[-2:])
    assert (y, x) == (pytest.approx(512, abs=5), pytest.approx(256, abs=5))
    assert overview.view_box.center().x() == pytest.approx(1 + side // 4, abs=0.6)
    assert overview.view_box.width() == pytest.approx(side * mouse.size[0] / 2 / 1024, abs=0.6)
    QTest.mousePress(overview, Qt.MouseButton.LeftButton, pos=QPoint(20, 20))
    QTest.mouseMove(overview, QPoint(side, side))
    QTest.mouseRelease(overview, Qt.MouseButton.LeftButton, pos=QPoint(side, side))
    assert not any(panel.session.annotations.counts().values()), "nothing is drawn"
    viewer.window.resize(1150, 640)
    pump(0.3)
    width, height = (int(n) for n in mouse.size)
    for widget in (view.scale_bar, view.map, view.bar):
        assert 0 < widget.x() < widget.geometry().right() < width
        assert 0 < widget.y() < widget.geometry().bottom() < height
    assert not view.scale_bar.geometry().intersects(view.bar.geometry())
    for typed, unit in (("300, 700", "px"), ("350, 150", "µm")):
        refused = []

        def fill(dialog, typed=typed, unit=unit, refused=refused) -> None:
            dialog.text.setText("9000, 1")
            refused.append(dialog.go.isEnabled())
            dialog.unit.setCurrentText(unit)
            dialog.text.setText(typed)

        asked = answer("Go", fill)
        choose_entry(view.bar.menu_button, "Go to coordinates…")
        wait_until(lambda asked=asked: bool(asked), 10)
        pump(0.1)
        assert refused == [False]
        assert [c + 0.5 for c in camera(viewer).center[-1:-3:-1]] == [float(n) for n in typed.split(",")]
    click(panel.slide.close_slide)
    wait_until(lambda: not view.bar.isVisible(), 5)
    assert not view.scale_bar.isVisible()
    assert not view.map.isVisible()


def give_model(panel) -> None:
    panel.session.classes = CLASSES
    panel.session.use_model(SmoothModel())
    wait_until(lambda: panel.prediction.display.layer is not None, 20)


def test_one_key_hides_the_prediction_and_one_changes_its_opacity(viewer, panel, mouse):
    give_model(panel)
    display = panel.prediction.display
    press(mouse.widget, Qt.Key.Key_H)
    assert not display.layer.visible
    assert panel.predict.hide_prediction.isChecked()
    assert viewer.layers.selection.active == panel.slides.binding.scribbles.layer, "drawing goes on"
    press(mouse.widget, Qt.Key.Key_H)
    assert display.layer.visible
    seen = []
    for _ in range(4):
        press(mouse.widget, Qt.Key.Key_H, SHIFT)
        seen.append((display.layer.opacity, panel.predict.opacity.value()))
    assert seen == [(0.7, 70), (1.0, 100), (0.25, 25), (0.45, 45)]
    display.layer.visible = False  # the eye in the layer list
    assert panel.predict.hide_prediction.isChecked()
    assert "Key: H" in panel.predict.hide_prediction.toolTip()
    assert "Key: Shift+H" in panel.predict.opacity.toolTip()


def test_the_keys_are_nobody_else_s():
    from napari.utils.shortcuts import default_shortcuts

    from napari_sparseseg.gui.commands import SHORTCUTS
    from napari_sparseseg.gui.layers.slide_layers import BRUSH_KEYS, MODE_KEYS

    ours = [key for _, _, key in SHORTCUTS.values()]
    assert len(ours) == len(set(ours))
    theirs = {str(key) for keys in default_shortcuts.values() for key in keys}
    assert not set(ours) & (theirs | set(MODE_KEYS) | set(BRUSH_KEYS))


def test_ctrl_s_and_ctrl_z_mean_the_same_wherever_the_focus_is(viewer, panel, mouse, tmp_path):
    annotations, project = panel.session.annotations, tmp_path / "study.sparseseg"
    layer_list = viewer.window._qt_viewer.layers
    for focused in (mouse.widget, panel.classes.table, panel.train.train, layer_list):
        draw(viewer, mouse, 500)
        assert annotations.counts()[1] > 0
        press(focused, Qt.Key.Key_Z, CTRL)
        assert annotations.counts()[1] == 0, focused
    press(layer_list, Qt.Key.Key_Z, CTRL | SHIFT)
    assert annotations.counts()[1] > 0
    asked = answer_file(project)
    press(mouse.widget, Qt.Key.Key_S, CTRL)
    wait_until(lambda: not panel.busy and panel.session.project == project, 20)
    assert asked == ["Save project"]
    (project / "project.json").unlink()
    press(panel.classes.table, Qt.Key.Key_S, CTRL)
    wait_until(lambda: not panel.busy and (project / "project.json").exists(), 20)
    click(panel.classes.add)
    editor = QApplication.focusWidget()
    QTest.keyClicks(editor, "gland")
    QTest.keyClick(editor, Qt.Key.Key_Z, CTRL)
    assert annotations.counts()[1] > 0, "a name being typed has its own undo"
    type_name(panel, "fat")
    other = viewer.add_labels(np.zeros((1024, 1024), np.uint8))
    other.mode = "paint"
    mouse.drag([mouse.canvas(700, 300), mouse.canvas(700, 500)])
    assert other.data.any()
    press(mouse.widget, Qt.Key.Key_Z, CTRL)
    assert not other.data.any(), "another layer of labels keeps its own"
    assert annotations.counts()[1] > 0


def test_snapshot_and_legend(viewer, panel, tmp_path):
    look_at(viewer, 512, 512, 1.0)
    for entry, name in (("Snapshot…", "view.png"), ("Legend…", "legend.svg"), ("Legend…", "legend.png")):
        answer_file(tmp_path / name)
        choose_entry(panel.view.bar.menu_button, entry)
        wait_until(lambda name=name: (tmp_path / name).exists(), 10)
    screen = viewer.screenshot(canvas_only=True, flash=False)
    height, width, _ = screen.shape
    shot = np.asarray(Image.open(tmp_path / "view.png").convert("RGB"))
    assert shot.shape[1] == width
    assert shot.shape[0] > height, "the legend is below the picture"
    np.testing.assert_array_equal(shot[:200, :200], screen[:200, :200, :3])
    bar = shot[height - 60 : height, :140]
    assert (bar.min(axis=2) == 255).sum(axis=1).max() >= 100, "100 um are 100 pixels here"
    legend = shot[height:].reshape(-1, 3)
    for c in panel.session.classes:
        assert (legend == c.rgb).all(axis=1).sum() > 100, c.name
        assert f">{c.name}</text>" in (tmp_path / "legend.svg").read_text()
    assert Image.open(tmp_path / "legend.png").size[1] > 60


def test_the_predicted_slide_is_shown_as_a_layer(viewer, panel, mouse, tmp_path):
    give_model(panel)
    wait_until(panel.predict.predict_slide.isEnabled, 10)
    answer_file(tmp_path / "whole")
    click(panel.predict.predict_slide)
    wait_until(lambda: not panel.busy and "whole" in panel.predict.result.text(), 60)
    wait_until(lambda: panel.predict.live.text() == "Live prediction", 30)
    click(panel.predict.show_layer)
    layer = next(la for la in viewer.layers if la.name == "predicted whole.ome.zarr")
    expected = panel.session.predict((300, 300, 64, 64))[0]
    np.testing.assert_array_equal(np.asarray(layer.data[0][300:364, 300:364]), expected)
    assert viewer.layers.index(layer) < viewer.layers.index(panel.slides.binding.scribbles.layer)
    assert viewer.layers.selection.active == panel.slides.binding.scribbles.layer
    np.testing.assert_allclose(layer.extent.world, panel.slides.binding.images[0].extent.world)
    opened = []
    catcher = Catcher(opened)
    QDesktopServices.setUrlHandler("file", catcher, "catch")
    click(panel.predict.open_folder)
    QDesktopServices.unsetUrlHandler("file")
    assert opened == [str(tmp_path)]
    panel.predict.what.setCurrentIndex(1)
    panel.predict.what.activated.emit(1)
    assert panel.predict.ramp.isVisible()
    click(panel.slide.close_slide)
    wait_until(lambda: layer not in viewer.layers, 10)


class Catcher(QObject):
    """Takes the folders that would be opened."""

    def __init__(self, opened: list[str]) -> None:
        super().__init__()
        self.opened = opened

    @Slot(QUrl)
    def catch(self, url: QUrl) -> None:
        self.opened.append(url.toLocalFile())


def test_closing_the_panel_clears_the_canvas_and_gives_the_keys_back(viewer, panel):
    view = panel.view
    for widget in (view.bar, view.scale_bar):
        assert widget.isVisible()
    viewer.window.remove_dock_widget(panel.parent())
    pump(0.3)
    for widget in (view.bar, view.scale_bar, view.map):
        assert not widget.isVisible()
    saves = [a.text() for a in viewer.window.file_menu.actions() if a.shortcut().toString() == "Ctrl+S"]
    assert saves == ["Save Selected Layers..."]
