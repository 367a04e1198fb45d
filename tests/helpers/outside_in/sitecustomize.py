"""Runs inside the napari that is driven from outside: says where widgets are and how long its event loop stood still.

Python imports a module of this name at its start when its folder is on the path. Without ``SPARSESEG_PROBE``, the path
of a socket, it does nothing. A line sent to the socket is a Python expression, evaluated on the GUI thread; the answer
is its value as JSON. Nothing is pressed or changed from here: hands do that.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from typing import Any

BEAT_MS = 10
SAMPLE_S = 0.01
SLICE_MS = 60.0
"""A shorter slice of the event loop is not kept."""


def panels() -> list[Any]:
    from qtpy.QtWidgets import QApplication

    return [w for w in QApplication.allWidgets() if type(w).__name__ == "SparseSegWidget" and w.isVisible()]


def place(widget: Any) -> list[int]:
    """Left, top, width and height on the screen, in its pixels."""
    from qtpy.QtCore import QPoint

    ratio = widget.devicePixelRatioF()
    at = widget.mapToGlobal(QPoint(0, 0))
    return [round(v * ratio) for v in (at.x(), at.y(), widget.width(), widget.height())]


def cell(table: Any, row: int, column: int) -> list[int]:
    """Place of a cell of a table."""
    port, r = table.viewport(), table.visualItemRect(table.item(row, column))
    left, top, _, _ = place(port)
    ratio = table.devicePixelRatioF()
    return [
        left + round(r.x() * ratio),
        top + round(r.y() * ratio),
        round(r.width() * ratio),
        round(r.height() * ratio),
    ]


def entry(menu: Any, text: str) -> list[int] | None:
    """Place of an entry of an open menu, or None."""
    for action in menu.actions():
        if action.text().replace("&", "").partition("\t")[0] == text:
            r = menu.actionGeometry(action)
            (left, top, _, _), ratio = place(menu), menu.devicePixelRatioF()
            return [
                left + round(r.x() * ratio),
                top + round(r.y() * ratio),
                round(r.width() * ratio),
                round(r.height() * ratio),
            ]
    return None


def popup(text: str) -> list[int] | None:
    """Place of an entry of the menu that was opened last."""
    from qtpy.QtWidgets import QApplication, QMenu

    for menu in (QApplication.activePopupWidget(), *QApplication.topLevelWidgets()):
        if isinstance(menu, QMenu) and menu.isVisible():
            found = entry(menu, text)
            if found is not None:
                return found
    return None


def modal() -> Any:
    """The open dialog, or None."""
    from qtpy.QtWidgets import QApplication

    return QApplication.activeModalWidget()


def notes() -> list[str]:
    """What the sentence on the slide and napari's notifications in sight say."""
    from napari._qt.dialogs.qt_notification import NapariQtNotification
    from qtpy.QtWidgets import QApplication

    seen = [w for w in QApplication.allWidgets() if w.isVisible()]
    ours = [w.text().replace("\u200b", "") for w in seen if w.objectName() == "SparseSegNote"]
    return [*ours, *(w.message.text() for w in seen if isinstance(w, NapariQtNotification))]


def closer() -> list[int]:
    """Place of the cross of the panel's dock."""
    from qtpy.QtWidgets import QPushButton

    dock = panels()[0].parentWidget()
    return place(next(b for b in dock.findChildren(QPushButton) if b.objectName() == "QTitleBarCloseButton"))


def press_of(widget: Any, text: str) -> list[int]:
    """Place of the button with that text inside a widget."""
    from qtpy.QtWidgets import QAbstractButton

    found = [b for b in widget.findChildren(QAbstractButton) if b.text().replace("&", "") == text and b.isVisible()]
    return place(found[0])


class Stalls:
    """Slices of the GUI thread between two beats of a timer, with its processor time and what it did."""

    def __init__(self) -> None:
        from qtpy.QtCore import Qt, QTimer

        self.slices: list[dict[str, Any]] = []
        self.painting = 0.0
        self._seen: Counter[str] = Counter()
        self._thread = threading.get_ident()
        self._last, self._cpu, self._painted = time.perf_counter(), time.thread_time(), 0.0
        self._timer = QTimer()
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._beat)
        self._timer.start(BEAT_MS)
        self._count_frames()
        if os.environ.get("SPARSESEG_PROBE_STACKS"):
            threading.Thread(target=self._sample, daemon=True).start()

    def _count_frames(self) -> None:
        from vispy.app.backends import _qt

        backend = _qt.CanvasBackendDesktop
        paint = backend.paintGL

        def paint_and_count(canvas: Any) -> None:
            before = time.thread_time()
            paint(canvas)
            self.painting += time.thread_time() - before

        backend.paintGL = paint_and_count

    def _beat(self) -> None:
        now, cpu = time.perf_counter(), time.thread_time()
        wall = 1e3 * (now - self._last)
        if wall > SLICE_MS:
            self.slices.append(
                {
                    "at": now,
                    "wall": round(wall),
                    "cpu": round(1e3 * (cpu - self._cpu)),
                    "frames": round(1e3 * (self.painting - self._painted)),
                    "doing": self._seen.most_common(),
                }
            )
        self._last, self._cpu, self._painted = now, cpu, self.painting
        self._seen = Counter()

    def _sample(self) -> None:
        while True:
            time.sleep(SAMPLE_S)
            frame = sys._current_frames().get(self._thread)
            stack = []
            while frame is not None and len(stack) < 90:
                code = frame.f_code
                stack.append(f"{'/'.join(code.co_filename.split('/')[-2:])}:{frame.f_lineno} {code.co_name}")
                frame = frame.f_back
            self._seen[" < ".join(stack)] += 1

    def take(self) -> list[dict[str, Any]]:
        """The slices since the last call."""
        taken, self.slices = self.slices, []
        return taken


def _serve(path: str) -> None:
    while "qtpy.QtWidgets" not in sys.modules or "napari._qt.qt_viewer" not in sys.modules:
        time.sleep(0.02)
    from qtpy.QtCore import QObject, Qt, Signal
    from qtpy.QtWidgets import QApplication, QPushButton

    while QApplication.instance() is None:
        time.sleep(0.02)

    class Asked(QObject):
        put = Signal(object)

        def __init__(self) -> None:
            super().__init__()
            self.names: dict[str, Any] = {}
            self.moveToThread(
                QApplication.instance().thread()
            )  # before its slot is connected, which settles its thread
            self.put.connect(self.answer, Qt.ConnectionType.QueuedConnection)

        def answer(self, question: dict[str, Any]) -> None:
            import napari

            if not self.names:
                self.names = {"stalls": Stalls()}
            viewer = napari.current_viewer()
            found = panels()
            names = {**globals(), **self.names, "viewer": viewer, "QPushButton": QPushButton}
            names |= {
                "panel": found[0] if found and found[0].complete else None,
                "window": viewer and viewer.window._qt_window,
            }
            try:
                question["answer"] = {"value": eval(question["text"], names)}  # noqa: S307 - a test's own words
            except Exception:  # noqa: BLE001 - told to the test
                question["answer"] = {"error": traceback.format_exc()}
            question["done"].set()

    asked = Asked()
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    while True:
        connection, _ = server.accept()
        with connection, connection.makefile("rw") as lines:
            for text in lines:
                question = {"text": json.loads(text), "done": threading.Event()}
                asked.put.emit(question)
                question["done"].wait(60)
                lines.write(json.dumps(question.get("answer", {"error": "no answer in 60 s"}), default=str) + "\n")
                lines.flush()


if os.environ.get("SPARSESEG_PROBE"):
    threading.Thread(target=_serve, args=(os.environ["SPARSESEG_PROBE"],), daemon=True, name="probe").start()
