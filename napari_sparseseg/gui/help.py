"""The documentation in a window of its own: the README of the installed version, also without a network."""

from __future__ import annotations

import re
from importlib.metadata import metadata
from pathlib import Path

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QTextBrowser, QWidget

PLUGIN = "napari-sparseseg"
WIDTH, HEIGHT = 720, 760
_PICTURE = re.compile(r"^!\[(?P<what>[^\]]*)\]\([^)]*\)$", re.MULTILINE)


def documentation() -> str:
    """The README as Markdown, pictures replaced by what they show."""
    checkout = Path(__file__).resolve().parents[2] / "README.md"
    text = checkout.read_text(encoding="utf-8") if checkout.exists() else metadata(PLUGIN).json["description"]
    return _PICTURE.sub(r"*\g<what>*", str(text))


def show_documentation(parent: QWidget) -> QTextBrowser:
    """Open the window; napari stays usable beside it."""
    browser = QTextBrowser(parent)
    browser.setWindowFlag(Qt.WindowType.Window)
    browser.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    browser.setWindowTitle("napari-sparseseg: documentation")
    browser.setOpenExternalLinks(True)
    browser.setMarkdown(documentation())
    browser.resize(WIDTH, HEIGHT)
    browser.show()
    return browser
