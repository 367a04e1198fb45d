"""Files and folders that go away, come back, are changed by others or are open twice while somebody draws."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from napari_sparseseg import Annotations, Session
from napari_sparseseg.errors import AnnotationError, ProjectError
from napari_sparseseg.session.recovery import recovery_folder, unsaved_work
from tests.faults.jobs import CLASSES
from tests.helpers.data import ROOT, two_textures, write_slide

STROKE = [(10, 10), (20, 200)]


@pytest.fixture
def slide(tmp_path):
    return write_slide(tmp_path / "a.tif", two_textures(256))


@pytest.fixture
def session(slide, tmp_path):
    (tmp_path / "share").mkdir()
    with Session(CLASSES) as made:
        made.open(slide)
        made.annotations.paint(STROKE, 5, 1)
        made.save(tmp_path / "share" / "study")
        yield made


def refused(annotations, row=40):
    """A stroke that is told to be in memory only."""
    with pytest.raises(AnnotationError, match="in memory only") as caught:
        annotations.paint([(row, 10), (row, 200)], 4, 2)
    assert not annotations.saved
    return str(caught.value)


def kept_elsewhere(session, row=40):
    """A stroke that goes to a folder of unsaved work."""
    a = session.annotations
    a.paint([(row, 10), (row, 200)], 4, 2)
    assert a.saved
    assert a.path.is_relative_to(recovery_folder())
    assert in_file(a.path) == len(a.strokes)


def in_file(path):
    return len(Annotations.load(path).strokes)


def cut_off(folder):
    """Every open file of the folder is dead from now on, as the handles of a share that is gone; the folder is away."""
    dead, other = os.pipe()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith(str(folder)):
            os.dup2(dead, int(name))
    os.close(dead)
    os.close(other)
    return shutil.move(folder, folder.with_name("elsewhere"))


@pytest.mark.fault("share that vanishes and returns while drawing")
@pytest.mark.skipif(sys.platform != "linux", reason="dead file handles are made by /proc/self/fd")
@pytest.mark.parametrize("strokes", [1, 2, 5])
def test_a_share_that_vanishes_and_returns(session, tmp_path, strokes):
    a = session.annotations
    aside = cut_off(tmp_path / "share")
    for k in range(strokes):
        kept_elsewhere(session, 40 + 9 * k)
    assert len(a.strokes) == 1 + strokes
    with pytest.raises(ProjectError):
        Session.load(tmp_path / "share" / "study.sparseseg")
    shutil.move(aside, tmp_path / "share")
    a.paint(STROKE, 5, 2)
    assert a.saved
    assert a.path.is_relative_to(tmp_path / "share")
    assert in_file(a.path) == 2 + strokes
    assert unsaved_work() == ()


@pytest.mark.fault("share that vanishes for good while drawing")
@pytest.mark.skipif(sys.platform != "linux", reason="dead file handles are made by /proc/self/fd")
def test_a_share_that_stays_away(session, tmp_path):
    cut_off(tmp_path / "share")
    kept_elsewhere(session)
    session.save(tmp_path / "here")
    assert session.annotations.saved
    session.close()
    with Session.load(tmp_path / "here.sparseseg") as again:
        assert len(again.annotations.strokes) == 2


@pytest.mark.fault("annotation file removed or replaced while drawing")
@pytest.mark.skipif(os.name == "nt", reason="Windows does not let an open file be removed")
@pytest.mark.parametrize("fate", ["removed", "folder removed", "older copy", "another's", "same again"])
def test_the_file_goes_or_is_replaced(session, tmp_path, fate):
    a = session.annotations
    path = a.path
    copy = tmp_path / "copy"
    if fate == "another's":
        other = Annotations(a.shape, CLASSES)
        other.paint(STROKE, 9, 1)
        other.save(copy)
    else:
        a.save(copy)
    if fate == "older copy":
        a.paint(STROKE, 7, 1)
    if fate == "removed":
        path.unlink()
    elif fate == "folder removed":
        shutil.rmtree(path.parent)
    else:
        shutil.move(copy, path)  # as a program that synchronises folders does it
    if fate == "folder removed":
        kept_elsewhere(session)
        return
    assert "removed or replaced" in refused(a)
    drawn = len(a.strokes)
    if fate in ("removed", "same again", "older copy"):
        a.paint(STROKE, 5, 2)
        assert a.saved
        assert in_file(path) == drawn + 1
        return
    refused(a, 60)
    if fate == "another's":
        assert Annotations.load(path).counts() == other.counts(), "what others drew is theirs"
    session.save(tmp_path / "here")
    session.close()
    with Session.load(tmp_path / "here.sparseseg") as again:
        assert len(again.annotations.strokes) == drawn + 1


@pytest.mark.fault("project file changed by another program")
def test_slides_that_another_program_listed_stay_listed(session, tmp_path):
    """A colleague's program, or a synchronised folder, brings a project file with one more slide."""
    project = session.project
    file = project / "project.json"
    data = json.loads(file.read_text())
    record = data["slides"][0] | {
        "path": "/elsewhere/b.tif",
        "relative": "",
        "fingerprint": "b",
        "annotations": "b.sqlite",
    }
    file.write_text(json.dumps({**data, "slides": [*data["slides"], record]}))
    session.slide.mpp = 0.3
    session.save(project)
    found = {s["annotations"]: s for s in json.loads(file.read_text())["slides"]}
    assert "b.sqlite" in found
    assert next(s for k, s in found.items() if k != "b.sqlite")["mpp"] == [0.3, 0.3]


HOLDER = """
import sys
from napari_sparseseg import Session
session = Session.load(sys.argv[1])
for line in sys.stdin:
    session.annotations.paint([(int(line), 10), (int(line), 200)], 3, 2)
    print(len(session.annotations.strokes), flush=True)
"""


@pytest.mark.fault("two viewers on one project")
@pytest.mark.parametrize("end", ["closed", "killed"])
def test_two_programs_on_one_project(session, tmp_path, end):
    """The second reads only and says so, the first goes on; when the first is gone, nothing of either is lost."""
    project = session.project
    session.close()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(project)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=ROOT, env={**os.environ},
    )  # fmt: skip

    def ask(row):
        holder.stdin.write(f"{row}\n")
        holder.stdin.flush()
        return int(holder.stdout.readline())

    try:
        assert ask(50) == 2
        with Session.load(project) as second:
            assert "open in another window" in second.status.message
            assert len(second.annotations.strokes) == 2
            second.annotations.paint(STROKE, 9, 1)
            with pytest.raises(ProjectError, match="another name"):
                second.save(project)
            second.save(tmp_path / "mine")
            assert ask(70) == 3
        if end == "killed":
            holder.kill()
    finally:
        holder.communicate(timeout=30)
    with Session.load(project) as again, Session.load(tmp_path / "mine.sparseseg") as mine:
        assert again.status.message == ""
        assert (len(again.annotations.strokes), len(mine.annotations.strokes)) == (3, 3)
