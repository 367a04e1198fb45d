"""A real viewer on a real (virtual) display, and nothing left behind.

Without Qt or a display the tests skip with the reason, except where ``REQUIRE_GUI=1`` or ``CI=true`` says that they
must run; there the same reason is a failure.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.desktop import MUST_RUN
from tests.helpers.windows import opened_viewer

if TYPE_CHECKING:
    from napari_sparseseg.gui.widget import SparseSegWidget

# before napari is imported: it reads and writes the file named here, never the user's own settings
os.environ.setdefault("NAPARI_CONFIG", str(Path(tempfile.mkdtemp(prefix="sparseseg-napari-")) / "settings.yaml"))
# Qt ends the process where it finds no display, so another one tries
PROBE = """
from qtpy.QtGui import QGuiApplication, QOpenGLContext
application = QGuiApplication([])
raise SystemExit(None if QOpenGLContext().create() else "no OpenGL")
"""


@cache
def missing_for_gui() -> str:
    """Why no window can be opened here; empty when one can."""
    for module in ("napari", "qtpy", "pytestqt"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
    if not any(importlib.util.find_spec(binding) for binding in ("PyQt6", "PySide6", "PyQt5")):
        return "no Qt binding is installed"
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "no display (pytest-xvfb needs the Xvfb program)"
    tried = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=120)
    if tried.returncode:
        return f"Qt opens no window here: {' '.join(tried.stderr.split())[:300]}"
    return ""


# before any fixture: that of the application is made first, and Qt would end the run
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    reason = missing_for_gui()
    if reason and MUST_RUN:
        pytest.fail(f"GUI tests must run here, but {reason}")
    if reason:
        pytest.skip(reason)


@pytest.fixture
def viewer(qapp):
    """A viewer of one's own, checked for what it leaves behind."""
    with opened_viewer() as opened:
        yield opened


@pytest.fixture
def mouse(viewer):
    """The mouse on the canvas of `viewer`."""
    from tests.helpers.mouse import Mouse

    return Mouse(viewer)


@pytest.fixture
def open_panel(viewer):
    """Opens the panel by its name, complete; shut down just before the viewer closes."""
    from tests.helpers.mouse import pump

    opened: list[SparseSegWidget] = []

    def make() -> SparseSegWidget:
        opened.append(viewer.window.add_plugin_dock_widget("napari-sparseseg")[1])
        assert opened[-1].sections  # whoever asks for a part waits for all of them
        pump(0.05)
        return opened[-1]

    yield make
    for widget in opened:
        widget.shut_down()


@pytest.fixture
def panel(open_panel) -> SparseSegWidget:
    return open_panel()
