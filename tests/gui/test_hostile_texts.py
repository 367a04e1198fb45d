"""Names and metadata of files from strangers are text in the window: no markup, no images, no formats."""

from __future__ import annotations

import html

import pytest
import tifffile
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QLabel, QWidget

from napari_sparseseg.errors import SparseSegError
from napari_sparseseg.gui.sections.classes.table import NAME
from tests.helpers.classes import add_class, rename_class
from tests.helpers.data import two_textures
from tests.helpers.mouse import pump
from tests.helpers.panel import click, click_cell
from tests.helpers.waiting import wait_until

MARK = '<img src="file:///etc/hostname">'
EVIL = f"{MARK}<b>bold</b> {{0.__class__}} %s %n"


@pytest.fixture
def panel(viewer, tmp_path):
    path = tmp_path / ("%s {0} <b>&lt;" + "x" * 60 + "<img src=a>.tif")
    tifffile.imwrite(
        path, two_textures(256), tile=(256, 256), photometric="rgb", metadata=None, description=EVIL,
        software=EVIL, resolution=(1e4, 1e4), resolutionunit="CENTIMETER",
    )  # fmt: skip
    _, widget = viewer.window.add_plugin_dock_widget("napari-sparseseg")
    widget.slides.open(path)
    wait_until(lambda: widget.slides.binding is not None and not widget.busy, 20)
    yield widget
    widget.shut_down()


def rendered(widget: QWidget) -> list[str]:
    """What Qt would take for markup although it came from a file."""
    found = []
    for w in [widget, *widget.findChildren(QWidget)]:
        tip = w.toolTip()
        if "<img" in tip or (Qt.mightBeRichText(tip) and tip != f"<qt>{html.escape(html.unescape(tip[4:-5]))}</qt>"):
            found.append(f"tooltip of {w}: {tip}")
        if isinstance(w, QLabel) and w.textFormat() != Qt.TextFormat.PlainText and Qt.mightBeRichText(w.text()):
            found.append(f"{w}: {w.text()}")
    return found


def test_names_and_metadata_are_text(panel):
    session = panel.session
    rename_class(session.annotations, 1, EVIL)
    add_class(session.annotations, "<table width=9999><tr><td>" + "y" * 80)

    def fail():
        raise SparseSegError(f"cannot open {EVIL}")

    assert not panel.attempt(fail)
    for section in panel.sections:
        for _ in range(2):  # folded sections show a summary, open ones their body
            section.heading.click()
            pump(0.1)
            assert not rendered(panel)
    assert panel.header.error.text.text() == f"Cannot open {EVIL}"
    assert panel.classes.table.item(0, NAME).text() == EVIL
    assert panel.slide.slides.currentText().startswith("%s {0} <b>&lt;")
    click_cell(panel, 0, NAME)
    click(panel.classes.remove)
    assert EVIL in html.unescape(panel.classes.undo.toolTip())
    assert not rendered(panel)
    assert "<img" not in panel.slide.facts.toolTip()
