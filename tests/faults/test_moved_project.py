"""A project folder that is renamed, moved, put into the bin or back while it is open: no stroke is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from napari_sparseseg import Annotations, Session
from napari_sparseseg.errors import ProjectError
from napari_sparseseg.session.recovery import recoverable, recovery_folder, unsaved_work
from tests.faults import report
from tests.faults.jobs import CLASSES
from tests.helpers.data import ROOT, two_textures, write_slide

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows does not let a folder with open files be moved")
ROWS = iter(range(10**6))


@pytest.fixture
def session(tmp_path):
    for k, name in enumerate(("a.tif", "b.tif", "c.tif")):
        write_slide(tmp_path / name, two_textures(256, k))
    with Session(CLASSES) as made:
        for name in ("c.tif", "a.tif", "b.tif"):
            made.open(tmp_path / name)
            draw(made)
        made.save(tmp_path / "study")
        made.remove(made.slides[0])
        yield made


def draw(session, strokes=1):
    for _ in range(strokes):
        y = 5 + next(ROWS) % 240
        session.annotations.paint([(y, 10), (y, 200)], 2, 1)


def counts(session):
    return {Path(e.slide.path).name: len(e.annotations.strokes) for e in session.entries}


def reopened(path, message=""):
    with Session.load(path, read_only=True) as again:
        assert message in again.status.message
        if not message:
            assert again.status.message == ""
        return counts(again)


@pytest.mark.fault("project renamed or moved while open")
def test_a_renamed_project_is_followed(session, tmp_path):
    old, new = tmp_path / "study.sparseseg", tmp_path / "study, final.sparseseg"
    shutil.copytree(old, tmp_path / "copy.sparseseg")  # holds the same, and is not it
    old.rename(new)
    draw(session, 2)
    assert session.project == new
    assert "renamed to study, final.sparseseg" in session.status.message
    assert all(e.annotations.saved and e.annotations.path.parent == new / "annotations" for e in session.entries)
    session.set_mpp(0.4)
    draw(session)
    assert reopened(new) == counts(session) == {"a.tif": 1, "b.tif": 4}
    assert not old.exists()
    assert unsaved_work() == ()
    session.open(tmp_path / "c.tif")
    assert len(session.annotations.strokes) == 1
    session.save(old)
    draw(session)
    assert reopened(old) == counts(session) == {"a.tif": 1, "b.tif": 4, "c.tif": 2}
    assert reopened(new) == {"a.tif": 1, "b.tif": 4, "c.tif": 1}


@pytest.mark.fault("project renamed or moved while open")
def test_a_project_is_followed_while_none_of_its_slides_is_open(session, tmp_path):
    for slide in session.slides:
        session.remove(slide)
    session.project.rename(tmp_path / "new.sparseseg")
    session.open(tmp_path / "b.tif")
    draw(session)
    assert session.project == tmp_path / "new.sparseseg"
    assert reopened(session.project) == counts(session) == {"b.tif": 2}
    assert unsaved_work() == ()


@pytest.mark.fault("project renamed or moved while open")
@pytest.mark.parametrize("back", ["drawn", "saved", "closed"])
def test_a_project_in_the_bin_that_is_put_back(session, tmp_path, back):
    old, trash = session.project, tmp_path / "bin" / "study.sparseseg"
    trash.parent.mkdir()
    old.rename(trash)
    draw(session, 3)
    assert "was moved or removed while it was open" in session.status.message
    assert session.project.parent == recovery_folder()
    assert reopened(session.project) == counts(session) == {"a.tif": 1, "b.tif": 4}
    trash.rename(old)
    if back == "drawn":
        draw(session)
    elif back == "saved":
        session.save(old)
    expected = counts(session)
    if back != "closed":
        assert session.project == old
        assert "is there again, and everything is saved in it" in session.status.message
    session.close()
    with Session.load(old) as again:
        assert again.status.message == ""
        assert counts(again) == expected
        again.open(tmp_path / "c.tif")
        assert counts(again)["c.tif"] == 1
    assert unsaved_work() == ()


@pytest.mark.fault("project renamed or moved while open")
def test_a_slide_that_is_closed_while_the_project_is_in_the_bin(session, tmp_path):
    """Nobody can tell whether its file in the project is the same: it says that its strokes stay unsaved work."""
    old, trash = session.project, tmp_path / "bin" / "study.sparseseg"
    trash.parent.mkdir()
    old.rename(trash)
    draw(session, 3)
    session.remove()
    draw(session)
    trash.rename(old)
    draw(session)
    assert session.project == old
    assert "slides that were closed meanwhile, and models, are unsaved work" in session.status.message
    assert reopened(old) == counts(session) == {"a.tif": 3}
    session.open(tmp_path / "b.tif")
    assert "of at least 4 strokes are there" in session.notes[-1]
    (work,) = unsaved_work()
    assert (work.slides, work.strokes) == (("a.tif", "b.tif"), 3 + 4)


@pytest.mark.fault("project renamed or moved while open")
def test_saved_again_under_the_old_name(session, tmp_path):
    """Everything is written again; of a slide that was closed, opening it says where its strokes are not."""
    old = session.project
    (tmp_path / "bin").mkdir()
    old.rename(tmp_path / "bin" / "study.sparseseg")
    draw(session)
    session.set_role("predict")
    session.save(old)
    draw(session)
    assert session.project == old
    assert reopened(old) == counts(session) == {"a.tif": 1, "b.tif": 3}
    assert unsaved_work() == ()
    session.open(tmp_path / "c.tif")
    assert "0 of at least 1 strokes are there" in session.notes[-1]
    assert reopened(tmp_path / "bin" / "study.sparseseg")["b.tif"] == 2


@pytest.mark.fault("project renamed or moved while open")
def test_saved_at_its_new_place(session, tmp_path):
    """It is the same project, so nothing is refused or doubled."""
    new = tmp_path / "elsewhere" / "study.sparseseg"
    new.parent.mkdir()
    session.project.rename(new)
    draw(session, 2)
    session.save(new)
    draw(session)
    assert session.project == new
    assert reopened(new) == counts(session) == {"a.tif": 1, "b.tif": 4}
    assert unsaved_work() == ()


@pytest.mark.fault("project renamed or moved while open")
def test_a_project_that_somebody_went_on_with(session, tmp_path):
    """Who opened it at its new place has it; what is drawn here stays unsaved work and is offered."""
    old, new = session.project, tmp_path / "bin" / "study.sparseseg"
    new.parent.mkdir()
    old.rename(new)
    draw(session)
    mine = counts(session)
    with Session.load(new) as other:
        assert other.status.message == ""
        other.activate(next(s for s in other.slides if Path(s.path).name == "b.tif"))
        draw(other, 2)
        theirs = counts(other)
    new.rename(old)
    draw(session)
    assert "another program has it open or has changed it" in session.status.message
    with pytest.raises(ProjectError, match="exists already"):
        session.save(old)
    fingerprint, shelter = session.slide.fingerprint, session.project
    session.close()
    assert reopened(old) == theirs
    assert recoverable(fingerprint) == [shelter]
    assert reopened(shelter) == {**mine, "b.tif": mine["b.tif"] + 1}


@pytest.mark.fault("project renamed or moved while open")
def test_training_ends_while_the_project_is_away(session, tmp_path):
    session.annotations.paint([(250, 10), (250, 200)], 3, 2)
    (tmp_path / "bin").mkdir()
    session.project.rename(tmp_path / "bin" / "study.sparseseg")
    session.train(steps=1, patch_px=64, batch_size=1, device="cpu", wait=True)
    assert session.status.state == "idle"
    assert session.checkpoint is not None
    before = counts(session)
    session.close()
    (work,) = unsaved_work()
    assert reopened(work.path) == before


@pytest.mark.fault("project renamed or moved while open")
def test_nowhere_else_to_go(session, tmp_path, monkeypatch):
    """Without a place for unsaved work a stroke says that it is in memory only; saving elsewhere writes it all."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NAPARI_SPARSESEG_HOME", str(tmp_path / "file" / "no folder"))
    (tmp_path / "bin").mkdir()
    session.project.rename(tmp_path / "bin" / "study.sparseseg")
    for _ in range(2):
        with pytest.raises(Exception, match="in memory only"):
            draw(session)
    session.save(tmp_path / "here")
    draw(session)
    assert reopened(tmp_path / "here.sparseseg") == counts(session) == {"a.tif": 1, "b.tif": 4}


PERSON = """
import sys
from napari_sparseseg import Session
with Session.load(sys.argv[1]) as session:
    for k, line in enumerate(sys.stdin):
        session.annotations.paint([(5 + k % 240, 10), (5 + k % 240, 30 + k % 190)], 2, 1 + k % 2)
        print(len(session.annotations.strokes), flush=True)
"""


@pytest.mark.fault("kill -9 after the project was renamed or moved")
@pytest.mark.parametrize("fate", ["renamed", "moved", "removed", "moved and back"])
@pytest.mark.parametrize("strokes", [1, 2, 9])
def test_killed_afterwards(session, tmp_path, fate, strokes):
    """Every stroke that was told of is in the project, or in the unsaved work that is offered for the slide."""
    project, fingerprint = session.project, session.slide.fingerprint
    session.close()
    row = report.row("kill -9 after the project was renamed or moved")
    target = tmp_path / ("new.sparseseg" if fate == "renamed" else "bin/study.sparseseg")
    (tmp_path / "bin").mkdir()
    person = subprocess.Popen(
        [sys.executable, "-c", PERSON, str(project)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )

    def ask(lines, answers):
        person.stdin.write("\n" * lines)
        person.stdin.flush()
        return [int(person.stdout.readline()) for _ in range(answers)]

    try:
        told = ask(2, 2)
        project.rename(target)
        if fate == "removed":
            shutil.rmtree(target)
        told += ask(30, strokes)
        if fate == "moved and back":
            target.rename(project)
            told += ask(0, strokes)
    finally:
        person.kill()
        told += map(int, person.stdout.read().split())
        person.communicate(timeout=30)
    places = [p for p in (project, target) if p.exists()] + recoverable(fingerprint)
    found = max(len(Annotations.load(file).strokes) for p in places for file in p.glob("annotations/b-*.sqlite"))
    row.promised += told[-1]
    row.lost += max(0, told[-1] - found)
    assert found >= told[-1]


@pytest.mark.fault("project renamed or moved while open")
@pytest.mark.parametrize("whose", ["a backup", "another"])
def test_something_else_has_the_name_now(session, tmp_path, whose):
    """The project was renamed and a backup, or another project, put where it was: the one that is open is followed."""
    old, new = session.project, tmp_path / "mine.sparseseg"
    if whose == "a backup":
        shutil.copytree(old, tmp_path / "other")
    else:
        with Session(CLASSES) as other:
            other.open(tmp_path / "b.tif")
            draw(other, 4)
            other.save(tmp_path / "theirs")
        (tmp_path / "theirs.sparseseg").rename(tmp_path / "other")
    draw(session)
    old.rename(new)
    (tmp_path / "other").rename(old)
    theirs = reopened(old)
    draw(session, 2)
    assert session.project == new
    assert reopened(new) == counts(session) == {"a.tif": 1, "b.tif": 4}
    assert reopened(old) == theirs
