"""Waiting for what another thread, process or the window does."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY_S = 0.01


def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait for `condition()`; AssertionError when it does not come true in time.

    Where there is a window, its event loop runs meanwhile, asleep between two looks as in an application: a loop that
    polls would take the processor from the training that is waited for.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        _rest()


def _rest() -> None:
    widgets = sys.modules.get("qtpy.QtWidgets")
    if (
        widgets is None
        or widgets.QApplication.instance() is None
        or threading.current_thread() is not threading.main_thread()
    ):
        time.sleep(EVERY_S)
        return
    from qtpy.QtCore import QEventLoop, QTimer

    loop = QEventLoop()
    QTimer.singleShot(round(1000 * EVERY_S), loop.quit)
    loop.exec()
