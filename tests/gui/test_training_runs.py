"""Training runs in the window: undone by a button, named, compared and gone back to in the list."""

from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QLineEdit

from napari_sparseseg import Session, load_model
from napari_sparseseg.gui.runs.view import DICE, NAME
from tests.helpers.answers import answer_file
from tests.helpers.mouse import pump
from tests.helpers.panel import click, open_slide, palette_entry, quiet
from tests.helpers.waiting import wait_until

BOX = (0, 0, 400, 1000)


@pytest.fixture
def panel(viewer, open_panel, tiny_slide):
    """Two runs, of two and of three strokes."""
    viewer.window.resize(1390, 1000)
    opened = open_panel()
    open_slide(opened, tiny_slide)
    opened.session.classes = ["stripes", "dots"]
    for y, x, label in ((100, 50, 1), (100, 700, 2), (300, 50, 2)):
        opened.session.annotations.paint([(y, x), (y, x + 250)], 10, label)
        if label == 2:
            opened.session.train("none" if y == 100 else "instance", steps=1, wait=True)
    quiet(opened)
    return opened


def listed(panel):
    table = panel.runs.view.table
    return [table.item(n, NAME).text() for n in range(table.rowCount())]


def click_row(panel, n, column=DICE, modifier=Qt.KeyboardModifier.NoModifier):
    table = panel.runs.view.table
    at = table.visualItemRect(table.item(n, column)).center()
    QTest.mouseClick(table.viewport(), Qt.MouseButton.LeftButton, modifier, at)
    pump(0.05)


def open_list(panel, count=2):
    click(panel.train.runs)
    wait_until(lambda: len(listed(panel)) == count and not panel.busy, 20)


def test_a_button_undoes_training_and_makes_it_again(viewer, panel):
    session = panel.session
    after = session.predict(BOX)[1]
    strokes = session.annotations.version
    wait_until(panel.train.undo.isEnabled, 20)
    assert panel.train.undo.text() == "Undo training"
    click(panel.train.undo)
    wait_until(lambda: panel.train.undo.text() == "Redo training" and not panel.busy, 20)
    assert not np.array_equal(session.predict(BOX)[1], after)
    assert session.annotations.version == strokes
    palette_entry(viewer, "Undo training, go back")
    wait_until(lambda: panel.train.undo.text() == "Undo training" and not panel.busy, 20)
    np.testing.assert_array_equal(session.predict(BOX)[1], after)


def test_the_list_names_compares_and_goes_back(viewer, panel, tmp_path):
    open_list(panel)
    view, session = panel.runs.view, panel.session
    assert listed(panel) == ["● unnamed", "unnamed"]
    assert not view.use.isEnabled()
    click_row(panel, 0)
    assert not view.use.isEnabled(), "its model predicts already"
    click_row(panel, 1)
    assert view.facts.isColumnHidden(2)
    table = view.table
    at = table.visualItemRect(table.item(1, NAME)).center()
    click_row(panel, 1, NAME)
    QTest.mouseDClick(table.viewport(), Qt.MouseButton.LeftButton, pos=at)
    editor = table.findChild(QLineEdit)
    editor.selectAll()
    QTest.keyClicks(editor, "before")
    QTest.keyClick(editor, Qt.Key.Key_Return)
    wait_until(lambda: [r.story.name for r in session.runs.list()] == ["", "before"], 20)
    wait_until(lambda: listed(panel) == ["● unnamed", "before"] and not panel.busy, 20)
    pump(0.2)
    click_row(panel, 0)
    click_row(panel, 1, modifier=Qt.KeyboardModifier.ControlModifier)
    facts = {view.facts.item(n, 0).text(): n for n in range(view.facts.rowCount())}
    assert [view.facts.item(facts["balancing"], k).text() for k in (1, 2)] == ["instance", "none"]
    assert "seed" not in facts
    click(view.differing)
    assert view.facts.rowCount() > len(facts)
    click(view.difference)
    quiet(panel)
    layer = next(layer for layer in viewer.layers if layer.name == "difference of runs")
    assert "They differ" in view.status.text()
    new, old = session.runs.list()
    session.runs.use(old.id)
    before = session.predict((0, 0, *session.slide.shape))[0]
    session.runs.use(new.id)
    after = session.predict((0, 0, *session.slide.shape))[0]
    down = before.shape[0] / session.slide.shape[0]
    differing = np.argwhere(before != after)[::7]
    values = [layer.get_value(((y + 0.5) / down - 0.5, (x + 0.5) / down - 0.5), world=True) for y, x in differing]
    seen = [value for value in values if value is not None]  # None: beyond the edge of the view
    assert seen
    assert np.mean([value > 0 for value in seen]) > 0.95
    wait_until(lambda: listed(panel)[0].startswith("●") and not panel.busy, 20)
    click_row(panel, 1)
    click(view.use)
    wait_until(lambda: listed(panel) == ["unnamed", "● before"] and not panel.busy, 20)
    np.testing.assert_array_equal(session.predict((0, 0, *session.slide.shape))[0], before)
    answer_file(tmp_path / "old.safetensors")
    click(view.export)
    quiet(panel)
    assert load_model(tmp_path / "old.safetensors").metadata.step == 1


def test_the_list_follows_training_and_a_project_that_is_opened(panel, tmp_path):
    open_list(panel)
    panel.session.train(steps=1, wait=True)
    wait_until(lambda: len(listed(panel)) == 3 and listed(panel)[0].startswith("●"), 20)
    panel.session.save(tmp_path / "p")
    with Session() as session:
        session.save(tmp_path / "empty")
    panel._panel._project.open(str(tmp_path / "empty.sparseseg"))
    wait_until(lambda: not listed(panel) and not panel.busy, 30)
    assert "No training run" in panel.runs.view.status.text()
    assert not panel.train.undo.isEnabled()
