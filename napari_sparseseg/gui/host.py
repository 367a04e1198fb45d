"""Everything that changes the application around the panel, each with its reason.

- `prefer_reader_for_slides` adds entries to the user's napari settings.
- `CloseGuard` replaces napari's question when the window is closed while something runs; otherwise napari's remains.
- At exit, and while layers are taken out, Python's garbage collector is told to skip the objects that are there.
- `CanvasFocus` gives napari's canvas the keyboard focus when the mouse is over it.
- `WindowKeys` takes Ctrl+S from napari's menu and gives it, Ctrl+Z and Ctrl+Shift+Z one meaning in the whole window.
- `keep_window_alive` lets the event loop run while a call in napari's console waits for the end of training.
- `LogTrail` attaches a handler to this package's own logger; other loggers are not touched.
"""

from __future__ import annotations

import atexit
import gc
import logging
import math
import platform
import sys
import time
from collections import deque
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from napari.settings import get_settings
from qtpy.QtCore import QEvent, QEventLoop, QObject, QPointF, QTimer
from qtpy.QtGui import QEnterEvent, QKeySequence, QMouseEvent, QShortcut
from qtpy.QtOpenGLWidgets import QOpenGLWidget
from qtpy.QtWidgets import QAbstractSpinBox, QApplication, QLineEdit, QMainWindow, QPlainTextEdit, QTextEdit, QWidget

from napari_sparseseg.gui.dialogs import ask_yes
from napari_sparseseg.gui.reader import SLIDE_SUFFIXES
from napari_sparseseg.session.engine import stay_alive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from napari.components import LayerList
    from qtpy.QtGui import QAction
    from qtpy.QtWidgets import QMenu

    from napari_sparseseg.gui.context import Context

PACKAGE = "napari-sparseseg"
OURS = "napari_sparseseg."
LOG_LINES = 5000
MEANT_PX, REST_S = 40.0, 0.5
"""A mouse that goes so far over the slide, without a rest so long, was not only pushed aside."""
KEY_SAVE = "Ctrl+S"
CLOSING = {
    "training": "Training is running. It will stop after the current step, and the model will be saved.",
    "paused": "Training is paused. It will end here, and the model will be saved.",
    "predicting": "A slide is being predicted. Finished tiles are saved; predicting into the same file continues them.",
}
NAPARI_DIALOG = "ConfirmCloseDialog"
"""Class of napari's own question, which its menu and its shortcut open."""


def prefer_reader_for_slides() -> None:
    """Let napari open files that can only be slides with this plugin, unless the user has chosen another reader.

    napari's built-in reader accepts these files too and shows one page of them. Readers have no priority in napari, so
    without a preference it asks for every file.
    """
    plugins = get_settings().plugins
    new = {f"*{suffix}": PACKAGE for suffix in SLIDE_SUFFIXES if f"*{suffix}" not in plugins.extension2reader}
    if new:
        plugins.extension2reader = {**plugins.extension2reader, **new}


def keep_window_alive() -> None:
    """While the main thread waits for the end of training, let windows be drawn and Stop be pressed."""
    stay_alive(_spin)


def _spin(seconds: float) -> None:
    loop = QEventLoop()
    QTimer.singleShot(round(1000 * seconds), loop.quit)
    loop.exec()


class LogTrail(logging.Handler):
    """The last messages of this package's loggers, for "Save log"."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: deque[str] = deque(maxlen=LOG_LINES)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(threadName)s %(name)s: %(message)s"))
        logger = logging.getLogger("napari_sparseseg")
        logger.setLevel(min(logger.level or logging.INFO, logging.INFO))
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record))

    def text(self) -> str:
        """Versions, then one line per message, oldest first."""
        versions = ", ".join(f"{name} {version(name)}" for name in (PACKAGE, "napari", "torch", "numpy"))
        heading = f"{versions}, Python {platform.python_version()}, {platform.platform()}"
        return "\n".join([heading, *self._lines]) + "\n"

    def detach(self) -> None:
        """Stop recording."""
        logging.getLogger("napari_sparseseg").removeHandler(self)


@contextmanager
def taking_out(layers: LayerList) -> Iterator[None]:
    """Remove layers inside of this: napari cleans up once after all of them, and does not look through torch for it.

    After each layer napari collects the garbage of the whole process, a third of a second where torch is loaded. It is
    for Windows' drivers, where that stays; elsewhere the next collection of Python's own takes what is left.
    """
    hide = sys.platform != "win32"
    if hide:
        gc.freeze()
    try:
        with layers.batched_update():
            yield
    finally:
        if hide:
            gc.unfreeze()


def canvas_beside(widget: QWidget) -> QWidget | None:
    """The canvas of the window that a widget is docked in."""
    window = widget.window()
    centre = window.centralWidget() if isinstance(window, QMainWindow) else None
    return None if centre is None else centre.findChild(QOpenGLWidget)


class CanvasFocus(QObject):
    """Gives the canvas the keyboard focus when the mouse moves over it; otherwise keys go to what was clicked last.

    Text that is being typed in one of our widgets stays until the mouse has gone a way over the slide: then the next
    digit is a class, not a letter of a name. Text elsewhere in the window, as in napari's console, is left alone.

    Parameters
    ----------
    panel
        The panel; the canvas is that of its window.
    """

    def __init__(self, panel: QWidget) -> None:
        super().__init__(panel)
        self._panel = panel
        self._canvas: QWidget | None = None
        self._at, self._when, self._way = QPointF(), 0.0, 0.0
        for edit in panel.findChildren(QLineEdit):
            edit.returnPressed.connect(self._focus_canvas)

    def watch(self) -> None:
        """Watch the canvas of the window that the panel is in now."""
        self.release()
        self._canvas = canvas_beside(self._panel)
        if self._canvas is not None:
            self._canvas.installEventFilter(self)

    def release(self) -> None:
        """Watch no canvas."""
        if self._canvas is not None:
            self._canvas.removeEventFilter(self)
        self._canvas = None

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Take the focus when the mouse enters or moves."""
        if isinstance(event, QEnterEvent | QMouseEvent) and event.type() in (QEvent.Type.Enter, QEvent.Type.MouseMove):
            way = self._way_to(event.position(), entered=event.type() == QEvent.Type.Enter)
            focused, canvas = QApplication.focusWidget(), self._canvas
            if focused is None or canvas is None or focused is canvas or focused.window() is not canvas.window():
                return False
            typing = isinstance(focused, QLineEdit | QAbstractSpinBox | QPlainTextEdit | QTextEdit)
            if not typing or (way > MEANT_PX and _is_ours(focused)):
                self._focus_canvas()
        return False

    def _way_to(self, at: QPointF, *, entered: bool) -> float:
        """Pixels that the mouse has gone over the canvas without a rest."""
        now, step = time.monotonic(), at - self._at
        rested = entered or now - self._when > REST_S
        self._way = 0.0 if rested else self._way + math.hypot(step.x(), step.y())
        self._at, self._when = at, now
        return self._way

    def _focus_canvas(self) -> None:
        if self._canvas is not None:
            self._canvas.setFocus()


def _is_ours(widget: QWidget) -> bool:
    """Whether a widget is in one of this package."""
    above: QWidget | None = widget
    while above is not None and not type(above).__module__.startswith(OURS):
        above = above.parentWidget()
    return above is not None


class WindowKeys(QObject):
    """Ctrl+S, Ctrl+Z and Ctrl+Shift+Z wherever in the window the focus is; a text being typed has its own undo.

    napari's Ctrl+S is taken from its menu meanwhile: two owners of a key take turns in Qt. It still saves layers while
    the focus is neither on the canvas nor in the panel. (An event filter would not do: PyQt may hand it a key event as
    the mouse event that was at its address before.)

    Parameters
    ----------
    panel
        The panel in the window.
    menu
        napari's File menu.
    save, undo, redo
        What the keys do.
    """

    def __init__(
        self,
        panel: QWidget,
        menu: QMenu,
        *,
        save: Callable[[], object],
        undo: Callable[[], object],
        redo: Callable[[], object],
    ) -> None:
        super().__init__(panel)
        self._panel, self._menu, self._save = panel, menu, save
        self._keys = ((KEY_SAVE, self._on_save), ("Ctrl+Z", undo), ("Ctrl+Shift+Z", redo))
        self._window: QWidget | None = None
        self._shortcuts: list[QShortcut] = []
        self._napari_save: QAction | None = None

    def watch(self) -> None:
        """Give the keys of the window that the panel is in now their meaning."""
        canvas = canvas_beside(self._panel)
        window = None if canvas is None else canvas.window()
        if window is None or window is self._window:
            return
        self.release()
        self._window = window
        saves = (a for a in self._menu.actions() if a.shortcut() == QKeySequence(KEY_SAVE))
        self._napari_save = next(saves, None)
        if self._napari_save is not None:
            self._napari_save.setShortcut(QKeySequence())
        for key, call in self._keys:
            shortcut = QShortcut(QKeySequence(key), window)
            shortcut.activated.connect(call)
            self._shortcuts.append(shortcut)

    def release(self) -> None:
        """Give the keys back."""
        if self._napari_save is not None:
            self._napari_save.setShortcut(QKeySequence(KEY_SAVE))
        for shortcut in self._shortcuts:
            shortcut.setEnabled(False)
            shortcut.deleteLater()
        self._window, self._napari_save, self._shortcuts = None, None, []

    def _on_save(self) -> None:
        focused, canvas = QApplication.focusWidget(), canvas_beside(self._panel)
        here = focused is None or focused is canvas or self._panel.isAncestorOf(focused)
        if here or self._napari_save is None:
            self._save()
        else:
            self._napari_save.trigger()


class CloseGuard(QObject):
    """Asks before a window closes while something runs, and shuts the panel down after it has closed.

    While the question is open the session starts no new work, so that closing is quick when the answer is yes.

    Parameters
    ----------
    panel
        The panel in the window.
    context
        Its session.
    shut_down
        Called when the window has agreed to close and is hidden; until then the user can still cancel.
    """

    def __init__(self, panel: QWidget, context: Context, shut_down: Callable[[], None]) -> None:
        super().__init__(panel)
        self._panel, self._context, self._shut_down = panel, context, shut_down
        self._window: QWidget | None = None
        self._closing = False

    def watch(self) -> None:
        """Watch the window that the panel is in now."""
        window = self._panel.window()
        if window is not self._panel and window is not self._window and not self._context.closed:
            self.release()
            self._window = window
            window.installEventFilter(self)

    def release(self) -> None:
        """Watch no window."""
        if self._window is not None:
            self._window.removeEventFilter(self)
        self._window = None

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Replace napari's question for the close button; notice napari's own."""
        if watched is not self._window or event is None:
            return False
        kind = event.type()
        if kind == QEvent.Type.Close:
            if event.spontaneous() and self._is_busy():
                event.ignore()
                QTimer.singleShot(0, self._ask)
                return True
            self._closing = True
        elif kind == QEvent.Type.Hide and self._closing:
            self._context.leaving = True
            if "torch" in sys.modules:
                # the last collections of the interpreter walk all objects of torch, which takes seconds
                atexit.register(gc.freeze)
            self._shut_down()
        elif kind == QEvent.Type.WindowBlocked and self._is_busy():
            if type(QApplication.activeModalWidget()).__name__ == NAPARI_DIALOG:
                self._context.session.hold(True)
        elif kind == QEvent.Type.WindowUnblocked and not self._context.closed:
            QTimer.singleShot(0, self._continue)  # after a yes the window closes before that
        return False

    def _is_busy(self) -> bool:
        return not self._context.closed and self._context.session.status.state in CLOSING

    def _ask(self) -> None:
        """Ask instead of napari: a window closed by a call asks no more."""
        window, session = self._window, self._context.session
        if window is None:
            return
        session.hold(True)
        if ask_yes(window, "Close napari?", CLOSING.get(session.status.state, ""), "Close"):
            window.close()
        self._continue()  # another plugin may have refused to close

    def _continue(self) -> None:
        if not self._context.closed:
            self._context.session.hold(False)
