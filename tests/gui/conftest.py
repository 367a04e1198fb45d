"""A real viewer on a real (virtual) display, and nothing left behind.

Without Qt or a display the tests skip with the reason, except where ``REQUIRE_GUI=1`` or ``CI=true`` says that they
must run; there the same reason is a failure.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import tempfile
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    import napari

# before napari is imported: it reads and writes the file named here, never the user's own settings
os.environ.setdefault("NAPARI_CONFIG", str(Path(tempfile.mkdtemp(prefix="sparseseg-napari-")) / "settings.yaml"))
MUST_RUN = os.environ.get("REQUIRE_GUI") == "1" or os.environ.get("CI") == "true"


def missing_for_gui() -> str:
    """Why no window can be opened here; empty when one can."""
    for module in ("napari", "qtpy", "pytestqt"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
    if not any(importlib.util.find_spec(binding) for binding in ("PyQt6", "PySide6", "PyQt5")):
        return "no Qt binding is installed"
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "no display (pytest-xvfb needs the Xvfb program)"
    return ""


@pytest.fixture(autouse=True)
def _gui_or_skip():
    reason = missing_for_gui()
    if reason and MUST_RUN:
        pytest.fail(f"GUI tests must run here, but {reason}")
    if reason:
        pytest.skip(reason)


def _windows() -> set:
    from qtpy.QtWidgets import QApplication

    return {w for w in QApplication.topLevelWidgets() if w.isVisible()}


@contextmanager
def opened_viewer(width: int = 1000, height: int = 760) -> Iterator[napari.Viewer]:
    """A shown napari viewer; afterwards no thread and no visible window may be left that was not there before."""
    import napari
    from napari.settings import get_settings

    from tests.helpers.mouse import pump, wait_until

    settings = get_settings()
    settings.application.save_window_geometry = False
    settings.application.ipy_interactive = False
    # napari collects garbage with every layer that goes: half a million objects of libraries need no second look
    gc.freeze()
    threads, windows = set(threading.enumerate()), _windows()
    viewer = napari.Viewer(show=True)
    viewer.window.resize(width, height)
    pump(0.2)
    try:
        yield viewer
    finally:
        with suppress(RuntimeError):  # the window is gone already where a test pressed its close button
            viewer.close()
        pump(0.1)
        gc.collect()

    def left() -> list[str]:
        new = set(threading.enumerate()) - threads
        return [t.name for t in new if t.is_alive() and not _is_pooled(t)] + [str(w) for w in _windows() - windows]

    try:
        wait_until(lambda: not left(), 5.0)
    except AssertionError:
        pytest.fail(f"left behind: {left()}")


@pytest.fixture
def viewer(qapp):
    """A viewer of one's own, checked for what it leaves behind."""
    with opened_viewer() as opened:
        yield opened


def _is_pooled(thread: threading.Thread) -> bool:
    # napari keeps one status checker, dask and the slide reader one pool per process; none belongs to a viewer
    return thread.daemon or thread.name.startswith(("ThreadPoolExecutor", "Dummy", "slide-window"))


@pytest.fixture
def mouse(viewer):
    """The mouse on the canvas of `viewer`."""
    from tests.helpers.mouse import Mouse

    return Mouse(viewer)
