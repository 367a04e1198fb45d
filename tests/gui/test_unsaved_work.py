"""Saving over a project, and the list of unsaved work: every choice, by menus and dialogs."""

from __future__ import annotations

import os
import time

import pytest
from qtpy.QtWidgets import QApplication

from napari_sparseseg import Session
from napari_sparseseg.gui.sections.header.unsaved import UnsavedDialog
from napari_sparseseg.session.recovery import unsaved_work
from tests.helpers.answers import answer, answer_file, choose_entry
from tests.helpers.mouse import pump
from tests.helpers.panel import click, open_slide
from tests.helpers.waiting import wait_until


def draw_unsaved(slide, rows) -> None:
    """A session that ends without a project."""
    with Session(["tissue", "background"], autosave=True) as session:
        session.open(slide)
        for y in rows:
            session.annotations.paint([(y, 50), (y, 400)], 10, 1)


def shown_list(panel) -> UnsavedDialog:
    choose_entry(panel.header.menu_button, "Unsaved work…")
    wait_until(lambda: any(isinstance(w, UnsavedDialog) for w in QApplication.topLevelWidgets()), 10)
    dialog = next(w for w in QApplication.topLevelWidgets() if isinstance(w, UnsavedDialog) and w.isVisible())
    wait_until(lambda: "Looking" not in dialog.about.text(), 20)
    return dialog


@pytest.mark.timeout(300)
def test_saving_over_a_project_asks_and_does_what_is_chosen(panel, tiny_slide, tmp_path):
    path = tmp_path / "study.sparseseg"
    with Session(["glands", "tissue"]) as session:
        session.open(tiny_slide)
        session.annotations.paint([(100, 50), (100, 400)], 10, 1)
        session.save(path)
    open_slide(panel, tiny_slide)
    panel.session.annotations.paint([(300, 50), (300, 400)], 10, 1)
    for choice, strokes in (("Cancel", 1), ("Merge", 2)):
        answer_file(tmp_path / "study")
        asked = answer(choice)
        choose_entry(panel.header.menu_button, "Save project…")
        wait_until(lambda asked=asked: bool(asked) and not panel.busy, 20)
        assert "is a project already" in asked[0]
        pump(0.3)
        with Session.load(path, read_only=True) as session:
            assert len(session.annotations.strokes) == strokes
    assert panel.session.project == path
    assert not panel.header.error.isVisible()
    panel.session.save(tmp_path / "other")
    answer_file(tmp_path / "study")
    answer("Replace")
    choose_entry(panel.header.menu_button, "Save project…")
    wait_until(lambda: panel.session.project == path and not panel.busy, 20)
    (kept,) = tmp_path.glob("study-before-*.sparseseg")
    with Session.load(kept) as session:
        assert len(session.annotations.strokes) == 2


@pytest.mark.timeout(300)
def test_unsaved_work_is_listed_opened_and_deleted(panel, tiny_slide):
    draw_unsaved(tiny_slide, [100, 200, 300])
    old = unsaved_work()[0].path
    days = time.time() - 40 * 86400
    for file in (old, *old.rglob("*")):
        os.utime(file, (days, days))
    draw_unsaved(tiny_slide, [400])
    dialog = shown_list(panel)
    texts = [[dialog.table.item(r, c).text() for c in range(4)] for r in range(dialog.table.rowCount())]
    assert [row[1:3] for row in texts] == [[tiny_slide.name, "1"], [tiny_slide.name, "3"]]
    assert not dialog.delete_it.isEnabled()
    assert "30 days" in dialog.delete_it.toolTip()
    dialog.table.selectRow(1)
    asked = answer("Delete")
    click(dialog.delete_it)
    wait_until(lambda: dialog.table.rowCount() == 1, 20)
    assert "3 strokes" in asked[0]
    assert not old.exists()
    first = panel.session
    click(dialog.open_it)
    wait_until(lambda: panel.session is not first and not panel.busy, 30)
    wait_until(lambda: panel.slides.binding is not None, 30)
    assert len(panel.session.annotations.strokes) == 1
    dialog = shown_list(panel)
    assert dialog.table.item(0, 4).text() == "open now"
    assert not dialog.open_it.isEnabled()
    dialog.close()
    pump(0.1)
