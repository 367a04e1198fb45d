"""Leaving: ask while something runs, hold the engine meanwhile, and shut the panel down when the window has gone."""

from __future__ import annotations

import atexit
import gc
from typing import TYPE_CHECKING

from qtpy.QtCore import QEvent, QObject, QTimer
from qtpy.QtWidgets import QApplication, QWidget

from napari_sparseseg.gui.dialogs import ask_yes

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari_sparseseg.gui.context import Context

CLOSING = {
    "training": "Training is running. It ends after the step at hand, and the model is written to disk.",
    "paused": "Training is paused. It ends here, and the model is written to disk.",
    "predicting": "A slide is being predicted. What is done is kept; the next run into the same file completes it.",
}
NAPARIS_QUESTION = "ConfirmCloseDialog"
"""The class of the question that napari asks itself where its menu or its keys close the window."""


class Closing(QObject):
    """Watches the window that a panel is in.

    While a question about closing is open the engine gets no new work, so that nothing is under way any more when the
    answer comes.

    Parameters
    ----------
    panel
        What is shut down.
    context
        Its session.
    shut_down
        Called once the window is hidden after it has agreed to close; before, the user may still cancel.
    """

    def __init__(self, panel: QWidget, context: Context, shut_down: Callable[[], None]) -> None:
        super().__init__(panel)
        self._panel, self._context, self._shut_down = panel, context, shut_down
        self._window: QWidget | None = None
        self._leaving = False

    def watch(self) -> None:
        """Watch the window that the panel is in now."""
        window = self._panel.window()
        if window is not self._panel and window is not self._window and not self._context.closed:
            self.leave()
            self._window = window
            window.installEventFilter(self)

    def leave(self) -> None:
        """Watch no window."""
        if self._window is not None:
            self._window.removeEventFilter(self)
        self._window = None

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Takes the close button's question over from napari; sees napari's own."""
        if watched is not self._window or event is None:
            return False
        kind = event.type()
        if kind == QEvent.Type.Close:
            if event.spontaneous() and self._is_busy():
                event.ignore()
                QTimer.singleShot(0, self._ask)
                return True
            self._leaving = True
        elif kind == QEvent.Type.Hide and self._leaving:
            self._context.leaving = True
            # Python's last walks over all objects of napari and torch take longer than all else at the end
            atexit.register(gc.freeze)
            self._shut_down()
        elif kind == QEvent.Type.WindowBlocked and self._is_busy():
            if type(QApplication.activeModalWidget()).__name__ == NAPARIS_QUESTION:
                self._context.session.hold(True)
        elif kind == QEvent.Type.WindowUnblocked and not self._context.closed:
            QTimer.singleShot(0, self._go_on)  # the window closes before that where the answer was yes
        return False

    def _is_busy(self) -> bool:
        return not self._context.closed and self._context.session.status.state in CLOSING

    def _ask(self) -> None:
        """In place of napari's own question: closed by a call, the window asks no more."""
        window, session = self._window, self._context.session
        if window is None:
            return
        session.hold(True)
        if ask_yes(window, "Close napari?", CLOSING.get(session.status.state, ""), "Close"):
            window.close()
        self._go_on()  # another plugin may have kept the window open

    def _go_on(self) -> None:
        if not self._context.closed:
            self._context.session.hold(False)
