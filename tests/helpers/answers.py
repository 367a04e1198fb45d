"""How a user answers what a window asks: clicks and keys on questions, file dialogs and menus, once they are up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Qt, QTimer
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QDialog, QDialogButtonBox, QFileDialog, QLabel, QLineEdit, QPushButton

from tests.helpers.mouse import pump

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qtpy.QtWidgets import QAbstractButton, QMenu

TRIES, EVERY_MS = 2400, 50
"""Two minutes: some questions come after torch was imported."""


def _when(answered: Callable[[], bool], tries: int = TRIES) -> None:
    if not answered() and tries:
        QTimer.singleShot(EVERY_MS, lambda: _when(answered, tries - 1))


def answer(button: str, look: Callable[[QDialog], None] | None = None) -> list[str]:
    """Press `button` of the next question, ours or napari's own, after a `look`; its text arrives in the list."""
    asked: list[str] = []

    def press() -> bool:
        box = QApplication.activeModalWidget()
        if not isinstance(box, QDialog) or isinstance(box, QFileDialog) or not box.isVisible():
            return False
        asked.append(" ".join(label.text() for label in box.findChildren(QLabel)))
        if look is not None:
            look(box)
        wanted = next(b for b in box.findChildren(QPushButton) if b.text().replace("&", "") == button)
        QTest.mouseClick(wanted, Qt.MouseButton.LeftButton)
        return True

    QTimer.singleShot(EVERY_MS, lambda: _when(press))
    return asked


def answer_file(path: Path) -> list[str]:
    """Type `path` into the next file dialog; its title arrives in the list."""
    QApplication.setAttribute(Qt.ApplicationAttribute.AA_DontUseNativeDialogs)
    asked: list[str] = []

    def type_path() -> bool:
        dialog = QApplication.activeModalWidget()
        if not isinstance(dialog, QFileDialog):
            return False
        if not asked:
            asked.append(dialog.windowTitle())
        edit = dialog.findChild(QLineEdit)
        edit.selectAll()
        QTest.keyClicks(edit, str(path))
        if edit.completer() is not None:
            edit.completer().popup().hide()  # its choice would be taken instead
        if edit.text() != str(path):
            return False
        buttons = dialog.findChild(QDialogButtonBox)
        accept = next(b for b in buttons.buttons() if buttons.buttonRole(b) == QDialogButtonBox.ButtonRole.AcceptRole)
        QTest.mouseClick(accept, Qt.MouseButton.LeftButton)
        return not dialog.isVisible()  # it may first have to list the folder

    QTimer.singleShot(EVERY_MS, lambda: _when(type_path))
    return asked


def choose_entry(button: QAbstractButton, text: str) -> None:
    """Open the menu of a button and click the entry."""

    def press() -> bool:
        menu: QMenu | None = QApplication.activePopupWidget()
        if menu is None:
            return False
        action = next(a for a in menu.actions() if a.text() == text)
        QTest.mouseClick(menu, Qt.MouseButton.LeftButton, pos=menu.actionGeometry(action).center())
        return True

    QTimer.singleShot(EVERY_MS, lambda: _when(press))
    QTest.mouseClick(button, Qt.MouseButton.LeftButton)
    pump(0.1)
