"""What a hand does: real Qt mouse and key events on napari's canvas, and the time they take.

Events go to the native GL widget with `QApplication.sendEvent`, so they run through Qt, vispy and napari exactly as a
user's do. Positions are canvas pixels (x, y) from the top left corner.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from qtpy.QtCore import QEvent, QPoint, QPointF, Qt
from qtpy.QtGui import QMouseEvent, QWheelEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QWidget

if TYPE_CHECKING:
    from collections.abc import Iterable

    import napari
    from qtpy.QtWidgets import QMainWindow

    Point = tuple[float, float]

BUTTONS = {"left": Qt.MouseButton.LeftButton, "right": Qt.MouseButton.RightButton}
MOVE_GAP_S = 0.006
"""napari drops mouse moves that come within 5 ms of the last one."""


def pump(seconds: float = 0.0) -> None:
    """Run the event loop for that long, at least once."""
    end = time.perf_counter() + seconds
    QApplication.processEvents()
    while time.perf_counter() < end:
        QApplication.processEvents()
        time.sleep(0.001)


def camera(viewer: napari.Viewer):
    """The viewer's camera, wherever this napari keeps it."""
    return viewer.scene.camera if hasattr(viewer, "scene") else viewer.camera


def main_window(viewer: napari.Viewer) -> QMainWindow:
    """The window of a viewer, for which napari has no public name."""
    return viewer.window._qt_window


def part_of(window: QWidget, kind: str) -> QWidget:
    """The widget inside a window whose class is called `kind`."""
    return next(w for w in window.findChildren(QWidget) if w.metaObject().className() == kind)


def look_at(viewer: napari.Viewer, y: float, x: float, zoom: float) -> None:
    """Centre the view on world (y, x) at `zoom` canvas pixels per world unit and let napari load the tiles."""
    camera(viewer).center = (0.0, y, x)
    camera(viewer).zoom = zoom
    pump(0.3)


def _whole(point: Point) -> tuple[int, int]:
    """vispy rounds positions to whole pixels; so that nobody has to know how, only whole ones are sent."""
    return int(point[0]), int(point[1])


@dataclass
class Timing:
    """Milliseconds spent inside event delivery: all Python work and the texture upload call, not the repaint."""

    press: float = 0.0
    moves: list[float] = field(default_factory=list)
    release: float = 0.0


class Mouse:
    """Presses, moves and releases on the canvas of `viewer`."""

    def __init__(self, viewer: napari.Viewer) -> None:
        self.viewer = viewer
        self.widget = viewer.window._qt_viewer.canvas.native  # napari offers no public way to it

    @property
    def size(self) -> Point:
        """Canvas width and height in pixels."""
        return self.widget.width(), self.widget.height()

    def world(self, point: Point) -> Point:
        """World (y, x) under a canvas point, from camera centre and zoom alone."""
        (w, h), eye, (x, y) = self.size, camera(self.viewer), _whole(point)
        return eye.center[1] + (y - h / 2) / eye.zoom, eye.center[2] + (x - w / 2) / eye.zoom

    def canvas(self, y: float, x: float) -> Point:
        """Canvas point of world (y, x); inverse of `world`."""
        (w, h), eye = self.size, camera(self.viewer)
        return (x - eye.center[2]) * eye.zoom + w / 2, (y - eye.center[1]) * eye.zoom + h / 2

    def _send(self, kind: QEvent.Type, point: Point, button, buttons, modifiers) -> float:
        at = QPointF(*_whole(point))
        event = QMouseEvent(kind, at, QPointF(self.widget.mapToGlobal(at.toPoint())), button, buttons, modifiers)
        start = time.perf_counter()
        QApplication.sendEvent(self.widget, event)
        return (time.perf_counter() - start) * 1e3

    def press(self, point: Point, button: str = "left", modifiers=Qt.KeyboardModifier.NoModifier) -> float:
        return self._send(QEvent.Type.MouseButtonPress, point, BUTTONS[button], BUTTONS[button], modifiers)

    def move(self, point: Point, button: str | None = None, modifiers=Qt.KeyboardModifier.NoModifier) -> float:
        held = BUTTONS[button] if button else Qt.MouseButton.NoButton
        return self._send(QEvent.Type.MouseMove, point, Qt.MouseButton.NoButton, held, modifiers)

    def release(self, point: Point, button: str = "left", modifiers=Qt.KeyboardModifier.NoModifier) -> float:
        return self._send(QEvent.Type.MouseButtonRelease, point, BUTTONS[button], Qt.MouseButton.NoButton, modifiers)

    def wheel(self, point: Point, notches: int, modifiers=Qt.KeyboardModifier.ShiftModifier) -> None:
        """Turn the wheel over a point, with Shift unless told otherwise."""
        at = QPointF(*_whole(point))
        event = QWheelEvent(
            at, QPointF(self.widget.mapToGlobal(at.toPoint())), QPoint(), QPoint(0, 120 * notches),
            Qt.MouseButton.NoButton, modifiers, Qt.ScrollPhase.NoScrollPhase, False,
        )  # fmt: skip
        QApplication.sendEvent(self.widget, event)
        pump()

    def hover(self, point: Point, modifiers=Qt.KeyboardModifier.NoModifier) -> None:
        """Move without a button and let napari see it."""
        self.move(point, None, modifiers)
        pump(0.02)

    def click(self, point: Point, button: str = "left") -> None:
        self.hover(point)
        self.press(point, button)
        pump()
        self.release(point, button)
        pump(0.02)

    def double_click(self, point: Point) -> None:
        """The four events of a double click on a spot that was not clicked just before."""
        self.click(point)
        self._send(
            QEvent.Type.MouseButtonDblClick, point, BUTTONS["left"], BUTTONS["left"], Qt.KeyboardModifier.NoModifier
        )
        pump()
        self.release(point)
        pump(0.02)

    def drag(self, points: Iterable[Point], button: str = "left", hz: float = 0.0) -> Timing:
        """One stroke through the points; `hz` > 0 paces it like a hand."""
        path, timing = list(points), Timing()
        self.hover(path[0])
        timing.press = self.press(path[0], button)
        pump()
        for point in path[1:]:
            start = time.perf_counter()
            pump(MOVE_GAP_S)
            timing.moves.append(self.move(point, button))
            pump()
            if hz:
                pump(max(0.0, 1 / hz - (time.perf_counter() - start)))
        # the last move may sit in napari's 5 ms throttle; the release must not overtake it
        pump(0.02)
        timing.release = self.release(path[-1], button)
        pump()
        return timing

    def trace(self, points: Iterable[Point]) -> None:
        """Moves without a button, paced so that napari sees each."""
        for point in points:
            time.sleep(MOVE_GAP_S)
            self.move(point)
            pump()
        pump(0.02)

    def key(self, key: str, *, ctrl: bool = False, shift: bool = False) -> None:
        """Press and release a key with the canvas focused."""
        modifiers = Qt.KeyboardModifier.NoModifier
        if ctrl:
            modifiers |= Qt.KeyboardModifier.ControlModifier
        if shift:
            modifiers |= Qt.KeyboardModifier.ShiftModifier
        QTest.keyClick(self.widget, getattr(Qt.Key, f"Key_{key}"), modifiers)
        pump(0.02)


def line(start: Point, end: Point, moves: int) -> list[Point]:
    """`moves` + 1 evenly spaced points."""
    return [
        (float(x), float(y))
        for x, y in zip(np.linspace(start[0], end[0], moves + 1), np.linspace(start[1], end[1], moves + 1), strict=True)
    ]


def wave(size: Point, moves: int = 60) -> list[Point]:
    """A wavy stroke over the middle of the canvas, as long as a hand makes them."""
    t = np.linspace(0, 1, moves + 1)
    xs, ys = (0.15 + 0.7 * t) * size[0], (0.5 + 0.25 * np.sin(4 * np.pi * t)) * size[1]
    return [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]
