"""The list of annotations beside the slide, by mouse and keys, against a model whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QDockWidget, QFrame

from napari_sparseseg.geometry import Box
from napari_sparseseg.gui.strokes.table import AGREES, CLASS, HELD, KIND, LOSS, MARK, PIXELS, PREDICTED
from napari_sparseseg.gui.view.marking import FRAME
from tests.helpers.answers import choose_entry
from tests.helpers.mouse import camera, pump
from tests.helpers.panel import click, palette_entry
from tests.helpers.smooth_model import CLASSES, SmoothModel, patches_slide
from tests.helpers.waiting import wait_until


def square(y, x, side):
    return [(y, x), (y, x + side), (y + side, x + side), (y + side, x)]


@pytest.fixture
def panel(viewer, open_panel):
    """Six squares of 40 px in blocks of 100 px: right, but for the third and the fifth, which have the next class."""
    viewer.window.resize(1390, 900)
    opened = open_panel()
    opened.session.add(patches_slide())
    wait_until(lambda: opened.slides.binding is not None and not opened.busy, 20)
    opened.session.classes = CLASSES
    for k in range(6):
        a = opened.session.annotations
        a.fill_polygon(square(30, 100 * k + 30, 40), truth(opened, k) if k not in (2, 4) else wrong(opened, k))
    return opened


def truth(panel, k: int) -> int:
    return int(panel.session.slide.truth[50, 100 * k + 50])


def wrong(panel, k: int) -> int:
    return truth(panel, k) % 3 + 1


def fresh(panel) -> None:
    """Wait until the list shows the present annotations and model, by its signal or because it does already."""
    seen = []
    panel.strokes.listed.connect(lambda: seen.append(True))
    panel.session.status_changed.emit(panel.session.status)
    rows = panel.strokes.view.rows

    def same() -> bool:
        strokes = {
            s.id: s.class_id for s in (*panel.session.annotations.strokes, *panel.session.annotations.dense_regions)
        }
        scored = panel.session.model is None or all(r.loss is not None for r in rows.rows)
        return {r.id: r.class_id for r in rows.rows} == strokes and scored and not panel.busy

    wait_until(same, 20)
    pump(0.1)


def listed(panel, column: int) -> list[str]:
    rows = panel.strokes.view.rows
    return [rows.data(rows.index(n, column)) for n in range(rows.rowCount())]


def click_row(panel, n: int, column: int = LOSS, modifier=Qt.KeyboardModifier.NoModifier) -> None:
    table = panel.strokes.view.table
    at = table.visualRect(table.model().index(n, column)).center()
    QTest.mouseClick(table.viewport(), Qt.MouseButton.LeftButton, modifier, at)
    pump(0.05)


def press(panel, key: Qt.Key) -> None:
    QTest.keyClick(panel.strokes.view.table, key)
    pump(0.05)


def classes_of(panel) -> list[int]:
    return [s.class_id for s in panel.session.annotations.strokes]


def test_without_a_model_it_lists_what_was_drawn(panel):
    click(panel.classes.list)
    fresh(panel)
    names = {c.id: c.name for c in CLASSES}
    assert sorted(listed(panel, CLASS)) == sorted(names[c] for c in classes_of(panel))
    assert set(listed(panel, KIND)) == {"polygon"}
    assert set(listed(panel, PIXELS)) == {"1,600"}
    assert set(listed(panel, LOSS)) == {""}
    assert "Train or load a model" in panel.strokes.view.status.text()
    assert not panel.strokes.view.next.isEnabled()


def test_contradictions_come_first_and_are_relabelled_with_one_undo_each(viewer, panel, mouse):
    panel.session.use_model(SmoothModel())
    before = panel.session.annotations.read(Box(0, 0, 900, 1300))
    palette_entry(viewer, "List the annotations and where")
    fresh(panel)
    view, drawn = panel.strokes.view, classes_of(panel)
    assert view.window().focusWidget() is view.table
    assert [float(t) > 1 for t in listed(panel, LOSS)] == [True, True, False, False, False, False]
    assert listed(panel, AGREES)[:3] == ["0 %", "0 %", "100 %"]
    names = {c.id: c.name for c in CLASSES}
    assert {*zip(listed(panel, CLASS)[:2], listed(panel, PREDICTED)[:2], strict=True)} == {
        (names[wrong(panel, k)], names[truth(panel, k)]) for k in (2, 4)
    }
    assert "2 contradict" in view.status.text()
    press(panel, Qt.Key.Key_N)
    first = view.table.current
    y, x = camera(viewer).center[-2:]
    assert (y, x) == pytest.approx((50, first.box.x + 20), abs=2), "the view went there"
    frame = next(f for f in viewer.window._qt_window.findChildren(QFrame) if f.objectName() == FRAME)
    assert frame.isVisible()
    press(panel, Qt.Key.Key_R)
    wait_until(lambda: classes_of(panel) != drawn, 10)
    fresh(panel)
    assert "1 contradicts" in view.status.text()
    press(panel, Qt.Key.Key_N)
    second = view.table.current
    assert second.id != first.id
    press(panel, Qt.Key.Key_A)
    assert "None of these" in view.status.text()
    assert listed(panel, MARK).count("✓") == 1
    assert panel.session.history.next_undo.startswith("polygon to")
    mouse.key("Z", ctrl=True)
    fresh(panel)
    assert classes_of(panel) == drawn
    np.testing.assert_array_equal(panel.session.annotations.read(Box(0, 0, 900, 1300)), before)


def test_digits_and_delete_change_what_is_selected_unless_its_class_is_locked(panel):
    click(panel.classes.list)
    fresh(panel)
    view = panel.strokes.view
    click_row(panel, 0)
    click_row(panel, 2, modifier=Qt.KeyboardModifier.ControlModifier)
    chosen = {s.id for s in view.table.chosen}
    assert len(chosen) == 2
    press(panel, Qt.Key.Key_3)
    wait_until(lambda: all(s.class_id == 3 for s in panel.session.annotations.strokes if s.id in chosen), 10)
    fresh(panel)
    assert {s.id for s in view.table.chosen} == chosen, "they stay selected"
    panel.classes.table.toggle_lock(3)
    press(panel, Qt.Key.Key_Delete)
    assert "nuclei is locked" in view.status.text()
    panel.classes.table.toggle_lock(3)
    press(panel, Qt.Key.Key_Delete)
    wait_until(lambda: len(panel.session.annotations.strokes) == 4, 10)
    fresh(panel)
    assert len(listed(panel, CLASS)) == 4
    panel.session.history.undo()
    fresh(panel)
    click_row(panel, 0)
    choose_entry(view.relabel, "glass")
    wait_until(lambda: not panel.busy, 10)
    fresh(panel)
    assert next(s.class_id for s in panel.session.annotations.strokes if s.id == view.table.current.id) == 1


def test_filters_and_cells_of_the_matrix(panel):
    panel.session.use_model(SmoothModel())
    click(panel.classes.list)
    fresh(panel)
    view = panel.strokes.view
    glass = classes_of(panel).count(1)
    view.only_class.setCurrentIndex(1)
    view.only_class.activated.emit(1)
    assert listed(panel, CLASS) == ["glass"] * glass
    view.only_class.setCurrentIndex(0)
    view.only.setCurrentIndex(2)
    view.only.activated.emit(2)
    assert len(listed(panel, CLASS)) == 2
    view.only.setCurrentIndex(0)
    view.only.activated.emit(0)
    click_row(panel, 5)
    chosen = view.table.current.id
    matrix = view.matrix
    assert not matrix.table.isVisible()
    assert "No held-out annotation" in matrix.empty.text()
    click(matrix.every)
    assert matrix.table.isVisible()
    assert [s.id for s in view.table.chosen] == [chosen], "counting others changes no choice"
    at, across = wrong(panel, 2) - 1, truth(panel, 2) - 1
    cell = matrix.table.visualItemRect(matrix.table.item(at, across)).center()
    QTest.mouseClick(matrix.table.viewport(), Qt.MouseButton.LeftButton, pos=cell)
    names = {c.id: c.name for c in CLASSES}
    assert set(listed(panel, CLASS)) == {names[at + 1]}
    assert set(listed(panel, PREDICTED)) == {names[across + 1]}
    click(matrix.clear)
    assert len(listed(panel, CLASS)) == 6


def test_a_click_on_a_heading_sorts(panel):
    panel.session.annotations.fill_polygon(square(300, 300, 90), 1, dense=True)
    click(panel.classes.list)
    fresh(panel)
    header = panel.strokes.view.table.horizontalHeader()
    for expected in ("1,600", "8,100"):
        at = header.sectionViewportPosition(PIXELS) + 5
        QTest.mouseClick(header.viewport(), Qt.MouseButton.LeftButton, pos=header.rect().center().__class__(at, 8))
        pump(0.05)
        if listed(panel, PIXELS)[0] != expected:
            QTest.mouseClick(header.viewport(), Qt.MouseButton.LeftButton, pos=header.rect().center().__class__(at, 8))
        assert listed(panel, PIXELS)[0] == expected
    assert "dense region" in listed(panel, KIND)


def test_the_dock_closes_and_opens_again_and_goes_with_its_panel(viewer, panel):
    click(panel.classes.list)
    fresh(panel)
    view = panel.strokes.view
    dock = view.parent()
    assert isinstance(dock, QDockWidget)
    dock.titleBarWidget().close_button.click()
    pump(0.1)
    assert not view.isVisible()
    panel.session.annotations.fill_polygon(square(300, 300, 90), 1)
    click(panel.classes.list)
    fresh(panel)
    assert view.isVisible()
    assert len(listed(panel, CLASS)) == 7
    panel.shut_down()
    pump(0.1)
    docks = viewer.window._qt_window.findChildren(QDockWidget)
    assert not [d for d in docks if d.name == "Annotation list" and d.isVisible()]


def test_held_out_strokes_are_marked_after_training(panel):
    panel.session.train(steps=1, seconds=30)
    click(panel.classes.list)
    wait_until(lambda: panel.session.status.state == "idle" and panel.session.model is not None, 100)
    fresh(panel)
    wait_until(lambda: "✓" in listed(panel, HELD), 20)
    assert all(listed(panel, LOSS))


def test_what_is_selected_stays_selected_in_one_go(panel):
    """One announcement, not one for each row: of a thousand rows they took seconds."""
    click(panel.classes.list)
    fresh(panel)
    view = panel.strokes.view
    view.table.selectAll()
    chosen = {s.id for s in view.table.chosen}
    assert len(chosen) == 6
    told = []
    view.table.selectionModel().selectionChanged.connect(lambda *_: told.append(True))
    panel.session.strokes.change([min(chosen)], 0)
    fresh(panel)
    assert {s.id for s in view.table.chosen} == chosen - {min(chosen)}
    assert len(told) <= 2
    told.clear()
    panel.session.history.undo()
    click_row(panel, 1)
    click_row(panel, 3, modifier=Qt.KeyboardModifier.ControlModifier)
    apart = {s.id for s in view.table.chosen}
    fresh(panel)
    assert {s.id for s in view.table.chosen} == apart
    assert len(apart) == 2
