"""What the panel says and does in every state, and what napari's own ways in (palette, menus, keys) do with it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from qtpy.QtCore import Qt, QTimer, QUrl
from qtpy.QtGui import QGuiApplication
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QTextBrowser

from napari_sparseseg.gui.sections.classes.table import LOCK, NAME
from tests.helpers.answers import answer
from tests.helpers.mouse import Mouse, line, pump
from tests.helpers.panel import click, click_cell, draw, draw_both, names, open_slide, palette_entry
from tests.helpers.waiting import wait_until

if TYPE_CHECKING:
    from napari_sparseseg.gui.widget import SparseSegWidget


def fitted(panel: SparseSegWidget, steps: int = 1) -> None:
    """A model, made as a user would but without waiting for many steps."""
    draw_both(panel, Mouse(panel.viewer))
    click(panel.train.train)
    wait_until(lambda: panel.session.status.step >= steps)


def test_one_class_only(panel):
    click_cell(panel, 1, NAME)
    click(panel.classes.remove)
    assert names(panel) == ["tissue"]
    panel.slides.open_sample()
    wait_until(lambda: len(panel.session.classes) > 2, 20)


def test_a_locked_class_is_neither_drawn_over_nor_erased(viewer, panel, mouse, tiny_slide):
    open_slide(panel, tiny_slide)
    draw(viewer, mouse, 500)
    first = panel.session.annotations.counts()[1]
    click_cell(panel, 0, LOCK)
    click_cell(panel, 1, NAME)
    mouse.drag(line(mouse.canvas(300, 500), mouse.canvas(700, 500), 12))
    pump(0.1)
    counts = panel.session.annotations.counts()
    assert counts[1] == first
    assert counts[2] > 0
    mouse.key("E")
    mouse.drag(line(mouse.canvas(300, 500), mouse.canvas(700, 500), 12))
    pump(0.1)
    counts = panel.session.annotations.counts()
    assert counts[1] == first
    assert counts[2] == 0
    click_cell(panel, 0, NAME)
    QTest.keyClick(panel.classes.table, Qt.Key.Key_L)
    mouse.key("E")
    mouse.drag(line(mouse.canvas(300, 500), mouse.canvas(700, 500), 12))
    pump(0.1)
    assert panel.session.annotations.counts()[1] < first


def test_keys_over_the_slide_are_naparis(viewer, panel, mouse, tiny_slide):
    """Delete and Alt+Up act on the table only when it has the focus."""
    open_slide(panel, tiny_slide)
    mouse.hover((mouse.size[0] / 2, mouse.size[1] / 2))
    mouse.widget.setFocus()
    mouse.key("Delete")
    QTest.keyClick(mouse.widget, Qt.Key.Key_Down, Qt.KeyboardModifier.AltModifier)
    pump(0.1)
    assert names(panel) == ["tissue", "background"]
    panel.classes.table.setFocus()
    click_cell(panel, 0, NAME)
    QTest.keyClick(panel.classes.table, Qt.Key.Key_Down, Qt.KeyboardModifier.AltModifier)
    pump(0.1)
    assert names(panel) == ["background", "tissue"]
    QTest.keyClick(panel.classes.table, Qt.Key.Key_Delete)
    pump(0.1)
    assert names(panel) == ["background"]


def test_our_shortcuts_are_in_naparis_editor_and_clash_with_none(viewer, panel):
    from napari._app_model import get_app_model
    from napari._qt.widgets.qt_keyboard_settings import ShortcutEditor
    from napari.settings import get_settings
    from napari.utils.action_manager import action_manager

    editor = ShortcutEditor()
    listed = editor.key_bindings_strs[editor.VIEWER_KEYBINDINGS]
    ours = {name for name in listed if name.startswith("napari-sparseseg:")}
    assert len(ours) == 13
    taken = {str(k) for n, keys in action_manager._shortcuts.items() if n not in ours for k in keys}
    taken |= {str(rule.keybinding) for rule in get_app_model().keybindings}
    keys = [str(k) for name in ours for k in action_manager._shortcuts[name]]
    assert len(keys) == len(set(keys)) == 13
    assert not set(keys) & taken
    editor.deleteLater()
    assert panel.train.train.toolTip().endswith("Key: Shift+T")
    settings = get_settings().shortcuts
    before = settings.shortcuts
    settings.shortcuts = {**before, "napari-sparseseg:train": ["Alt-Y"]}  # what the editor does when a key is chosen
    assert panel.train.train.toolTip().endswith("Key: Alt+Y")
    settings.shortcuts = before


def test_a_shortcut_does_what_the_button_does(viewer, panel, mouse, tiny_slide):
    open_slide(panel, tiny_slide)
    mouse.hover((mouse.size[0] / 2, mouse.size[1] / 2))
    assert panel.predict.live.isChecked()
    mouse.key("D", shift=True)
    assert not panel.predict.live.isChecked()
    assert not panel.session.live_enabled
    mouse.key("T", shift=True)
    assert "at least two classes" in panel.header.error.text.text()


def test_the_command_palette_opens_the_panel_and_uses_it(viewer):
    palette_entry(viewer, "Add a class")  # napari 0.9 takes a bracket for a pattern and fails

    def panels():
        return [w for w in QApplication.allWidgets() if type(w).__name__ == "SparseSegWidget" and w.isVisible()]

    wait_until(lambda: bool(panels()), 20)
    (panel,) = panels()
    wait_until(lambda: len(panel.session.classes) == 3, 20)
    menu = [
        a.text() for m in viewer.window.layers_menu.findChildren(type(viewer.window.layers_menu)) for a in m.actions()
    ]
    assert any("Train, pause or resume" in entry for entry in menu)
    panel.shut_down()


def test_help_is_the_documentation_and_not_modal(panel):
    next(a for a in panel.header.menu.actions() if a.text() == "Help").trigger()
    pump(0.2)
    window = next(w for w in QApplication.topLevelWidgets() if isinstance(w, QTextBrowser) and w.isVisible())
    assert "Five-minute tour" in window.toPlainText()
    assert not window.isModal()
    window.setSource(QUrl("how-to/qupath.md"))  # as a click on a link does
    assert "QuPath round trip" in window.toPlainText()
    window.setSource(QUrl("../glossary.md"))
    assert "training resolution" in window.toPlainText()
    window.close()


def test_recent_slides_are_one_click_away(viewer, panel, tiny_slide):
    assert not panel.slide.recent.isVisible()
    open_slide(panel, tiny_slide)
    wait_until(panel.slide.recent.isVisible, 10)
    click(panel.slide.close_slide)
    assert panel.session.entry is None
    next(a for a in panel.slide.recent.menu().actions() if a.text() == tiny_slide.name).trigger()
    wait_until(lambda: panel.session.entry is not None, 10)
    assert panel.session.slide.shape == (1024, 1024)
    pump(0.3)


def test_copied_python_runs(viewer, panel, tiny_slide, tmp_path):
    open_slide(panel, tiny_slide)
    for class_id, x in ((1, 250), (2, 780)):
        panel.session.annotations.paint([(200, x), (800, x)], 20, class_id)
    panel.session.config = panel.session.config
    next(a for a in panel.header.menu.actions() if a.text() == "Copy as Python").trigger()
    script = QGuiApplication.clipboard().text().replace("seconds=60", "steps=1")
    assert "steps=1" in script
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert (tmp_path / "prediction.ome.zarr").is_dir()
    assert (tmp_path / "model.safetensors").stat().st_size > 10_000


def test_copied_commands_run(viewer, panel, tiny_slide, tmp_path):
    open_slide(panel, tiny_slide)
    for class_id, x in ((1, 250), (2, 780)):
        panel.session.annotations.paint([(200, x), (800, x)], 20, class_id)
    next(a for a in panel.header.menu.actions() if a.text() == "Copy as command").trigger()
    for command in QGuiApplication.clipboard().text().replace("--seconds 60", "--seconds 1").splitlines():
        words = command.replace("napari-sparseseg ", f"{sys.executable} -m napari_sparseseg ", 1)
        run = subprocess.run(words, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
        assert run.returncode == 0, run.stderr[-2000:]
    assert (tmp_path / "prediction.ome.zarr").is_dir()


def test_closing_the_only_slide_ends_training_and_says_so(viewer, panel, tiny_slide):
    open_slide(panel, tiny_slide)
    fitted(panel)
    click(panel.slide.close_slide)
    wait_until(lambda: panel.session.status.state == "failed", 20)
    wait_until(panel.header.error.isVisible, 5)
    assert panel.header.error.text.text() == "No slide is left to train on: open one, or do not hold all of them out."
    assert panel.header.next_step.text().startswith("1 of 3")
    assert panel.train.train.text() == "Train"


def close_from_outside(window):
    """What a window manager sends when its close button is pressed."""
    from Xlib import X
    from Xlib.display import Display
    from Xlib.protocol.event import ClientMessage

    screen = Display()
    target = screen.create_resource_object("window", int(window.winId()))
    words = [screen.intern_atom("WM_DELETE_WINDOW"), X.CurrentTime, 0, 0, 0]
    target.send_event(ClientMessage(window=target, client_type=screen.intern_atom("WM_PROTOCOLS"), data=(32, words)))
    screen.sync()
    screen.close()


@pytest.mark.skipif(sys.platform != "linux", reason="speaks X11")
def test_closing_napari_while_it_trains_asks_first(viewer, panel, tiny_slide):
    open_slide(panel, tiny_slide)
    fitted(panel)
    session, window = panel.session, panel.window()
    asked = answer("Cancel")
    close_from_outside(window)
    wait_until(lambda: bool(asked), 10)
    pump(0.3)
    assert "Training is running" in asked[0]
    assert window.isVisible()
    assert session.status.state == "training"
    step = session.status.step
    wait_until(lambda: session.status.step > step, 30)  # it was held while the question was open
    asked = answer("Close")
    close_from_outside(window)
    wait_until(lambda: bool(asked), 10)
    wait_until(lambda: not window.isVisible(), 20)
    assert not session._engine.running
    assert (session.project / "models" / "model.safetensors").exists()


def test_training_waits_while_napari_asks_whether_to_close(viewer, panel, tiny_slide):
    """Its own question, by its keys: nothing new is begun meanwhile; no goes on, yes writes the model and leaves."""
    open_slide(panel, tiny_slide)
    fitted(panel)
    session, window = panel.session, panel.window()
    held: list[int] = []

    def look() -> None:
        if QApplication.activeModalWidget() is not None:
            held.append(session.status.step)

    looking = QTimer()
    looking.timeout.connect(look)
    looking.start(50)
    QTimer.singleShot(3000, lambda: answer("Cancel"))
    window.activateWindow()
    wait_until(window.isActiveWindow, 5)  # else keys are no shortcuts
    QTest.keyClick(window, Qt.Key.Key_W, Qt.KeyboardModifier.ControlModifier)  # returns after the answer
    looking.stop()
    assert len(held) > 10
    assert held[-1] <= held[len(held) // 2]  # a step under way may end first
    assert window.isVisible()
    wait_until(lambda: session.status.step > held[-1], 30)
    answer("Close")
    window.activateWindow()
    wait_until(window.isActiveWindow, 5)
    QTest.keyClick(window, Qt.Key.Key_W, Qt.KeyboardModifier.ControlModifier)
    wait_until(lambda: not window.isVisible(), 20)
    assert not session._engine.running
    assert (session.project / "models" / "model.safetensors").exists()


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_text_can_be_read_in_both_themes(viewer, panel, theme):
    """WCAG contrast of the panel's own colours: 4.5 for text, 3 for marks."""
    from napari_sparseseg.gui.widgets import palette

    def luminance(colour: str) -> float:
        rgb = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    def contrast(a: str, b: str) -> float:
        high, low = sorted((luminance(a), luminance(b)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    viewer.theme = theme
    colours = palette(viewer)
    for name in ("text", "muted"):
        assert contrast(getattr(colours, name), colours.background) > 4.5, name
    assert contrast(colours.error, colours.background) > 3
    viewer.theme = "dark"


def test_tab_reaches_every_control_in_the_order_of_the_work(viewer, panel, tiny_slide):
    open_slide(panel, tiny_slide)
    reached, widget = [], panel.slide.open
    for _ in range(400):
        if panel.isAncestorOf(widget) and widget.isVisible() and widget.focusPolicy() & Qt.FocusPolicy.TabFocus:
            reached.append(widget)
        widget = widget.nextInFocusChain()
        if widget is panel.slide.open:
            break
    order = [panel.slide.open, panel.slide.role, panel.classes.table, panel.classes.add,
             panel.train.balancing, panel.predict.live, panel.predict.opacity, panel.train.train]  # fmt: skip
    assert [w for w in reached if w in order] == order
