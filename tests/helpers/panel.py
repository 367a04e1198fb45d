"""What a user does in the panel: clicks, types, opens, draws beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import QEvent, Qt
from qtpy.QtGui import QKeyEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QLineEdit, QWidget

from napari_sparseseg.gui.sections.classes.table import NAME
from tests.helpers.mouse import line, main_window, part_of, pump
from tests.helpers.smooth_model import CLASSES, SmoothModel
from tests.helpers.waiting import wait_until

if TYPE_CHECKING:
    from napari_sparseseg.gui.widget import SparseSegWidget

LEFT = Qt.MouseButton.LeftButton


def click(button: QWidget) -> None:
    QTest.mouseClick(button, LEFT)
    pump(0.05)


def cell(panel: SparseSegWidget, row: int, column: int):
    """Centre of a cell of the class table, in its viewport."""
    table = panel.classes.table
    return table.visualItemRect(table.item(row, column)).center()


def click_cell(panel: SparseSegWidget, row: int, column: int, *, double: bool = False) -> None:
    viewport, at = panel.classes.table.viewport(), cell(panel, row, column)
    QTest.mouseClick(viewport, LEFT, pos=at)
    if double:
        QTest.mouseDClick(viewport, LEFT, pos=at)
    pump(0.05)


def rename(panel: SparseSegWidget, row: int, name: str) -> None:
    click_cell(panel, row, NAME, double=True)
    type_name(panel, name)


def type_name(panel: SparseSegWidget, name: str) -> None:
    editor = panel.classes.table.findChild(QLineEdit)
    editor.selectAll()
    QTest.keyClicks(editor, name)
    QTest.keyClick(editor, Qt.Key.Key_Return)
    pump(0.1)


def text(panel: SparseSegWidget, row: int, column: int) -> str:
    return panel.classes.table.item(row, column).text()


def open_slide(panel: SparseSegWidget, path) -> None:
    panel.slides.open(path)
    wait_until(lambda: panel.slides.binding is not None and not panel.busy, 20)
    pump(0.2)


def draw(viewer, mouse, y: float, x0: float = 200, x1: float = 800) -> None:
    """A stroke of the selected class along row `y` of the slide."""
    mouse.drag(line(mouse.canvas(y, x0), mouse.canvas(y, x1), 12))
    pump(0.1)


def scribble(panel: SparseSegWidget) -> None:
    """A stroke by command, where the mouse is not what is tested."""
    panel.session.annotations.paint([(500, 200), (500, 800)], 10, 1)
    pump(0.2)


def names(panel: SparseSegWidget) -> list[str]:
    return [c.name for c in panel.session.classes]


def draw_both(panel, mouse) -> None:
    """One stroke on the stripes (left), one on the dots (right)."""
    table = panel.classes.table
    for row, x in ((0, 250), (1, 780)):
        QTest.mouseClick(table.viewport(), LEFT, pos=table.visualItemRect(table.item(row, 2)).center())
        mouse.drag(line(mouse.canvas(200, x), mouse.canvas(800, x), 20))
        pump(0.1)


def palette_entry(viewer, words: str) -> None:
    """View > Command Palette, type, Enter."""
    next(a for a in viewer.window.view_menu.actions() if a.text() == "Command Palette").trigger()
    pump(0.2)
    edit = part_of(main_window(viewer), "QCommandPalette").findChild(QLineEdit)
    wait_until(edit.isVisible, 10)
    for letter in words:
        _press(edit, 0, letter)
    pump(0.5)
    _press(edit, Qt.Key.Key_Return)
    pump(0.3)


def _press(widget: QWidget, key: int, text: str = "") -> None:
    """Press and release a key by events that Python made.

    QTest makes its events on the stack, where a mouse event was that vispy still holds; PyQt then takes one for the
    other, and napari's palette, which asks a mouse event for its key, loses the letter.
    """
    for kind in (QEvent.Type.KeyPress, QEvent.Type.KeyRelease):
        QApplication.sendEvent(widget, QKeyEvent(kind, key, Qt.KeyboardModifier.NoModifier, text))


def menu_entry(menu, text: str):
    """The entry of a menu or of one of its submenus."""
    for action in menu.actions():
        found = menu_entry(action.menu(), text) if action.menu() is not None else action
        if found is not None and found.text().replace("&", "") == text:
            return found
    return None


def give_model(panel: SparseSegWidget, delay: float = 0.0) -> SmoothModel:
    """A model that needs no training and no network."""
    model = SmoothModel(delay=delay)
    panel.session.classes = CLASSES
    panel.session.use_model(model)
    wait_until(panel.predict.predict_slide.isEnabled, 20)
    return model


def quiet(panel: SparseSegWidget) -> None:
    """Every background call has ended."""
    wait_until(lambda: not panel.busy and panel.session.status.state != "predicting", 60)
    pump(0.2)


def panels() -> list[SparseSegWidget]:
    """All panels that can be seen."""
    return [w for w in QApplication.allWidgets() if type(w).__name__ == "SparseSegWidget" and w.isVisible()]


def open_from_menu(viewer) -> SparseSegWidget:
    """Plugins > Scribbles (napari-sparseseg)."""
    menu_entry(viewer.window.plugins_menu, "Scribbles (napari-sparseseg)").trigger()
    wait_until(lambda: bool(panels()), 20)
    assert panels()[0].sections  # whoever asks for a part waits for all of them
    return panels()[0]
