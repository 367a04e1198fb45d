"""Places and names that a project can have, and folders that only look like one."""

from __future__ import annotations

import json
import shutil

import pytest

from napari_sparseseg import Session
from napari_sparseseg.errors import ProjectError
from napari_sparseseg.session.recovery import unsaved_work
from tests.faults.jobs import CLASSES
from tests.helpers.data import two_textures, write_slide


@pytest.fixture
def session(tmp_path):
    with Session(CLASSES, autosave=True) as made:
        made.open(write_slide(tmp_path / "a.tif", two_textures(128)))
        made.annotations.paint([(10, 10), (20, 100)], 5, 1)
        yield made


@pytest.mark.fault("project saved inside another, or under a name that no file can have")
@pytest.mark.parametrize("place", ["{project}/inner", "{project}/annotations/inner", "x" * 250, "x" * 3000])
def test_where_a_project_cannot_be(session, tmp_path, place):
    """Inside the folder of unsaved work it would be deleted with it, once it is saved."""
    with pytest.raises(ProjectError, match=r"inside the project|File name too long"):
        session.save(tmp_path / place.format(project=session.project))
    session.annotations.paint([(40, 10), (50, 100)], 5, 2)
    assert session.annotations.saved
    assert unsaved_work()[0].strokes == 2


@pytest.mark.fault("two slides whose names differ in case only")
def test_copies_whose_names_differ_in_case_only(session, tmp_path):
    """On the disks of macOS and Windows annotation files of such names would be one."""
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(tmp_path / "a.tif", other / "A.tif")
    session.open(other / "A.tif")
    names = {e.annotations.path.name.casefold() for e in session.entries}
    assert len(names) == 2


@pytest.mark.fault("unsaved work whose project file cannot be read")
@pytest.mark.parametrize("fate", ["newer", "damaged", "gone"])
def test_unsaved_work_is_listed_whatever_its_project_file_says(session, fate):
    file = session.project / "project.json"
    session.close()
    if fate == "newer":
        file.write_text(json.dumps({**json.loads(file.read_text()), "schema": 99}))
    elif fate == "damaged":
        file.write_text('{"schema": 1, "slid')
    else:
        file.unlink()
    (work,) = unsaved_work()
    assert (work.path, work.strokes) == (file.parent, 1)
    with pytest.raises(ProjectError, match=r"newer version|is damaged|is not a project"):
        Session.load(work.path)
