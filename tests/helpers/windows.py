"""A shown viewer that leaves nothing behind."""

from __future__ import annotations

import gc
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tests.helpers.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import napari


def _windows() -> set:
    from qtpy.QtWidgets import QApplication

    return {w for w in QApplication.topLevelWidgets() if w.isVisible()}


@contextmanager
def opened_viewer(width: int = 1000, height: int = 760) -> Iterator[napari.Viewer]:
    """A shown napari viewer; afterwards no thread and no visible window may be left that was not there before."""
    import napari
    from napari.settings import get_settings

    from tests.helpers.mouse import pump

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


def _is_pooled(thread: threading.Thread) -> bool:
    # napari keeps one status checker, dask and the slide reader one pool per process; none belongs to a viewer
    return thread.daemon or thread.name.startswith(("ThreadPoolExecutor", "Dummy", "slide-window"))
