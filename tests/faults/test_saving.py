"""Saving, closing and reopening: what was drawn survives each, and a save that fails changes nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import pytest

from napari_sparseseg import Annotations, Session, save_annotations
from napari_sparseseg.cli import main
from napari_sparseseg.errors import AnnotationError, ProjectError, SparseSegError
from napari_sparseseg.session.project import Project
from napari_sparseseg.session.recovery import delete_unsaved, recoverable, recovery_folder, unsaved_work
from tests.helpers.data import ROOT, two_textures, write_slide
from tests.helpers.limits import file_size_limited

CLASSES = ["stripes", "dots"]


@pytest.fixture
def slides(tmp_path):
    return [write_slide(tmp_path / f"{name}.tif", two_textures(256, seed)) for seed, name in enumerate("ab")]


def draw(session, rows, class_id=1):
    for row in rows:
        session.annotations.paint([(row, 20), (row, 200)], 2, class_id)


def strokes(session):
    return {os.path.basename(e.slide.path): len(e.annotations.strokes) for e in session.entries}


def labels(session):
    """Names of the labelled classes of the active slide."""
    names = {c.id: c.name for c in session.classes}
    return {names[k] for k, n in session.annotations.counts().items() if n}


def project_with(slides, path, rows=(10, 20, 30)):
    with Session(CLASSES) as session:
        for slide in slides:
            session.open(slide)
            draw(session, rows)
        session.save(path)
    return path


def test_a_save_under_a_new_name_that_fails_leaves_all_where_it_was(slides, tmp_path):
    """The second slide's file cannot be bound: another program holds a lock on it."""
    with Session(CLASSES) as session:
        for slide in slides:
            session.open(slide)
            draw(session, [10])
        session.save(tmp_path / "one.sparseseg")
        blocked = tmp_path / "two.sparseseg"
        blocked.mkdir()
        (blocked / "mine.txt").write_text("mine")
        with pytest.raises(ProjectError, match="exists already"):
            session.save(blocked)
        assert os.listdir(blocked) == ["mine.txt"]
        with pytest.raises(ProjectError, match="cannot"):
            session.save(tmp_path / "a.tif" / "three")  # below a file
        assert session.project == tmp_path / "one.sparseseg"
        draw(session, [20, 30])
    with Session.load(tmp_path / "one.sparseseg") as again:
        assert strokes(again) == {"a.tif": 1, "b.tif": 3}
    assert sorted(os.listdir(tmp_path)) == ["a.tif", "b.tif", "one.sparseseg", "two.sparseseg"]


def test_a_project_that_exists_is_not_touched_unless_told(slides, tmp_path):
    path = project_with(slides[:1], tmp_path / "p.sparseseg")
    with Session(["x", "y"]) as session:
        session.open(slides[0])
        draw(session, [100])
        with pytest.raises(ProjectError, match="exists already"):
            session.save(path)
        session.save(path, exists="replace")
    with Session.load(path) as again:
        assert strokes(again) == {"a.tif": 1}
    (aside,) = tmp_path.glob("p-before-*.sparseseg")
    with Session.load(aside) as old:
        assert strokes(old) == {"a.tif": 3}
        assert [c.name for c in old.classes] == CLASSES


def test_a_merge_adds_slides_strokes_and_classes(slides, tmp_path):
    """Their stroke of class 1 and ours of another class 1, which is named as their class 2, cross."""
    path = project_with(slides[:1], tmp_path / "p.sparseseg", rows=[100])
    with Session(["dots", "glass"]) as session:
        for slide in slides:
            session.open(slide)
            session.annotations.paint([(20, 100), (200, 100)], 2, 1)
            session.annotations.paint([(220, 20), (220, 200)], 2, 2)
        session.annotations.set_others([{"type": "Feature"}])
        session.save(path, exists="merge")
        assert [c.name for c in session.classes] == ["stripes", "dots", "glass"]
        draw(session, [240])
    with Session.load(path) as again:
        assert strokes(again) == {"a.tif": 3, "b.tif": 3}
        a = again.entries[0].annotations
        assert [a.read((100, x, 1, 1))[0, 0] for x in (50, 100)] == [1, 2]
        assert a.read((220, 50, 1, 1))[0, 0] == 3
        assert again.entries[1].annotations.others == ({"type": "Feature"},)
        assert again.notes == ()
    assert len(list((path / "annotations").glob("a-*.sqlite"))) == 2, "the file before the merge stays beside"


def test_a_merge_into_a_project_that_is_open_elsewhere_changes_nothing(slides, tmp_path):
    path = project_with(slides[:1], tmp_path / "p.sparseseg")
    before = (path / "project.json").read_bytes()
    with Session.load(path), Session(CLASSES) as session:
        session.open(slides[0])
        draw(session, [100])
        with pytest.raises(AnnotationError, match="open for writing"):
            session.save(path, exists="merge")
        with pytest.raises(AnnotationError, match="open for writing"):
            session.save(path, exists="replace")
        assert strokes(session) == {"a.tif": 1}
    assert (path / "project.json").read_bytes() == before
    with Session.load(path) as again:
        assert strokes(again) == {"a.tif": 3}


@pytest.mark.parametrize("kind", ["unsaved", "autosave", "project"])
def test_close_and_open_restores_strokes_role_and_resolution(slides, tmp_path, kind):
    with Session(CLASSES, autosave=kind == "autosave") as session:
        slide = session.open(slides[0])
        session.open(slides[1])
        if kind == "project":
            session.save(tmp_path / "p")
        draw(session, [10, 20])
        session.set_role("held-out")
        session.set_mpp(0.3)
        session.remove()
        assert session.slides == (slide,)
        if kind == "project":
            session.close()
            session = Session.load(tmp_path / "p.sparseseg")
            assert strokes(session) == {"a.tif": 0}
        session.open(slides[1])
        assert len(session.annotations.strokes) == 2
        assert session.entry.role == "held-out"
        assert session.slide.mpp == (0.3, 0.3)
        session.close()


def test_strokes_of_a_closed_slide_go_where_the_session_is_saved(slides, tmp_path):
    with Session(CLASSES, autosave=True) as session:
        session.open(slides[0])
        session.open(slides[1])
        draw(session, [10, 20])
        session.remove()
        session.save(tmp_path / "p")
        assert not list(recovery_folder().iterdir())
        session.open(slides[1])
        assert len(session.annotations.strokes) == 2


def test_quitting_after_the_drawn_slide_was_closed_keeps_its_strokes(slides):
    with Session(CLASSES, autosave=True) as session:
        fingerprint = session.open(slides[0]).fingerprint
        draw(session, [10, 20])
        session.remove()
    (folder,) = recoverable(fingerprint)
    (work,) = unsaved_work()
    assert (work.path, work.strokes, work.in_use) == (folder, 2, False)
    with Session(CLASSES, autosave=True) as session:
        session.open(slides[0])
        assert recoverable(fingerprint) == [folder], "a session without strokes is not offered"


def test_unsaved_work_is_deleted_only_when_it_is_old_and_unused(slides):
    with Session(CLASSES, autosave=True) as session:
        session.open(slides[0])
        draw(session, [10])
        (work,) = unsaved_work()
        assert (work.slides, work.in_use) == (("a.tif",), True)
        with pytest.raises(ProjectError, match="running"):
            delete_unsaved(work)
    (work,) = unsaved_work()
    with pytest.raises(ProjectError, match="30 days"):
        delete_unsaved(work)
    old = time.time() - 31 * 86400
    for path in work.path.rglob("*"):
        os.utime(path, (old, old))
    delete_unsaved(unsaved_work()[0])
    assert unsaved_work() == ()


@pytest.mark.parametrize(("fate", "said"), [("missing", "is missing"), ("empty", "is empty"), ("older", "older")])
def test_what_an_annotation_file_lacks_is_said(slides, tmp_path, fate, said):
    path = tmp_path / "p.sparseseg"
    with Session(CLASSES) as session:
        session.open(slides[0])
        draw(session, [10])
        session.save(path)
        file = session.annotations.path
    old = file.read_bytes()
    with Session.load(path) as session:
        draw(session, [20, 30, 40])
    if fate == "missing":
        file.unlink()
    else:
        file.write_bytes(old if fate == "older" else b"")
    with Session.load(path) as session:
        left = 1 if fate == "older" else 0
        assert strokes(session) == {"a.tif": left}
        assert said in session.status.message
        assert f"{left} of at least 4 strokes" in session.notes[0]


def test_a_run_without_a_home_folder_keeps_its_model_in_memory(slides, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("NAPARI_SPARSESEG_HOME", str(tmp_path / "file" / "state"))
    with Session(CLASSES) as session:
        session.open(slides[0])
        draw(session, [50, 100])
        draw(session, [150, 200], 2)
        session.train(steps=1, wait=True)
        assert session.checkpoint is None
        session.save_model(tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").exists()


def test_a_model_that_was_saved_leaves_no_recovery_folder(slides, tmp_path):
    with Session(CLASSES) as session:
        session.open(slides[0])
        draw(session, [50, 100])
        draw(session, [150, 200], 2)
        session.train(steps=1, wait=True)
        assert session.checkpoint is not None
        session.save_model(tmp_path / "m.safetensors")
    assert not list(recovery_folder().iterdir())


HOMELESS = """
import pwd, sys
def getpwuid(uid):
    raise KeyError(uid)
pwd.getpwuid = getpwuid
from napari_sparseseg.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name == "nt", reason="home folders come from the environment and the password database")
def test_training_and_prediction_need_no_home_folder(slides, tmp_path):
    """Neither HOME nor an entry for the user, as in a container with an arbitrary user id."""
    with Session(CLASSES) as session:
        session.open(slides[0])
        draw(session, [50, 100])
        draw(session, [150, 200], 2)
        save_annotations(session.annotations, tmp_path / "a.geojson")
    without = {k: v for k, v in os.environ.items() if k != "HOME" and not k.startswith(("XDG_", "NAPARI_SPARSESEG"))}
    before = set(os.listdir(tmp_path))
    for command in (
        ["train", "a.tif", "--model", "m.safetensors", "--steps", "1"],
        ["predict", "a.tif", "--model", "m.safetensors", "--output", "o.ome.tif"],
    ):
        ended = subprocess.run(
            [sys.executable, "-c", HOMELESS, *command],
            cwd=tmp_path, env={**without, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
    assert set(os.listdir(tmp_path)) - before == {"m.safetensors", "o.ome.tif"}


@pytest.mark.fault("merge while slides are closed")
@pytest.mark.parametrize("autosave", [False, True])
def test_a_merge_brings_closed_slides(slides, tmp_path, autosave):
    """Under the name of their class, which has another id in the project."""
    project_with(slides[:1], tmp_path / "p.sparseseg")
    with Session(["glass", "dots"], autosave=autosave) as session:
        session.open(slides[1])
        draw(session, [10], 2)
        draw(session, [20], 1)
        session.set_role("held-out")
        session.set_mpp(0.3)
        session.remove()
        session.open(slides[0])
        draw(session, [40], 2)
        session.save(tmp_path / "p", exists="merge")
        assert unsaved_work() == ()
    with Session.load(tmp_path / "p.sparseseg") as again:
        assert strokes(again) == {"a.tif": 4}
        again.open(slides[1])
        assert labels(again) == {"dots", "glass"}
        assert (again.entry.role, again.slide.mpp) == ("held-out", (0.3, 0.3))


@pytest.mark.fault("a model that cannot be loaded")
def test_saving_as_a_project_keeps_a_model_that_could_not_be_loaded(slides, tmp_path):
    with Session(CLASSES, autosave=True) as session:
        session.open(slides[0])
        draw(session, [10])
        folder = session.project
        (folder / "models" / "model.safetensors").write_bytes(b"of a newer version")
    with Session.load(folder, autosave=True) as session:
        session.save(tmp_path / "p")
    assert (folder / "models" / "model.safetensors").read_bytes() == b"of a newer version"


@pytest.mark.fault("disk full before the model is in the saved project")
def test_the_unsaved_folder_goes_only_after_the_model_is_in_the_project(slides, tmp_path):
    with Session(CLASSES, autosave=True) as session:
        session.open(slides[0])
        draw(session, [50, 100])
        draw(session, [150, 200], 2)
        session.train(steps=1, wait=True)
        model = session.checkpoint
        whole = model.read_bytes()
        with file_size_limited(len(whole) // 2), pytest.raises((SparseSegError, OSError)):
            session.save(tmp_path / "p")
        assert model.read_bytes() == whole
        session.save(tmp_path / "p")
    assert (tmp_path / "p.sparseseg" / "models" / "model.safetensors").stat().st_size > len(whole) // 2


@pytest.mark.fault("saved under another name while a slide is missing")
@pytest.mark.parametrize("fate", ["missing", "closed"])
def test_a_save_takes_along_what_is_not_open(slides, tmp_path, fate):
    old = project_with(slides, tmp_path / "p.sparseseg")
    if fate == "missing":
        aside = slides[1].rename(tmp_path / "elsewhere.tif")
    with Session.load(old) as session:
        if fate == "closed":
            session.remove()
        (tmp_path / "sub").mkdir()
        session.save(tmp_path / "sub" / "q")
    shutil.rmtree(old)
    if fate == "missing":
        aside.rename(slides[1])
    with Session.load(tmp_path / "sub" / "q.sparseseg") as again:
        again.open(slides[1])
        assert strokes(again) == {"a.tif": 3, "b.tif": 3}
        assert again.notes == ()


@pytest.mark.fault("import over what labels nothing")
def test_a_first_import_keeps_the_objects_that_label_nothing(slides, tmp_path):
    drawn = project_with(slides[:1], tmp_path / "p.sparseseg")
    with Session(CLASSES) as session:
        session.open(slides[0])
        session.annotations.set_others([{"type": "Feature", "id": "lumen"}])
        assert session.import_annotations(drawn) == 3
        assert [feature["id"] for feature in session.annotations.others] == ["lumen"]


@pytest.mark.fault("a script that is run twice")
def test_files_of_another_run_are_replaced_only_when_asked_for(slides, tmp_path):
    """What an object wrote itself it may write again, until somebody else has changed the file."""
    with Session(CLASSES) as session:
        session.open(slides[0])
        draw(session, [50, 100])
        draw(session, [150, 200], 2)
        session.train(steps=1, wait=True)
        for write, name in (
            (session.save_model, "m.safetensors"),
            (session.annotations.to_geojson, "a.geojson"),
            (session.annotations.save, "a.sparseseg"),
        ):
            path = tmp_path / name
            write(path)
            draw(session, [10])
            write(path)
            path.write_bytes(b"of another run")
            with pytest.raises(SparseSegError, match="exists already"):
                write(path)
            assert path.read_bytes() == b"of another run"
            write(path, overwrite=True)
    loaded = Annotations.load(tmp_path / "a.sparseseg")
    loaded.paint([(30, 20), (30, 200)], 2, 1)
    loaded.save(tmp_path / "a.sparseseg")
    with pytest.raises(AnnotationError, match="exists already"):
        Annotations((256, 256)).save(tmp_path / "a.sparseseg")
    assert len(Annotations.load(tmp_path / "a.sparseseg").strokes) == len(loaded.strokes)


@pytest.mark.fault("a script that is run twice")
def test_a_training_command_refuses_a_model_that_exists_before_it_trains(slides, tmp_path, capsys):
    (tmp_path / "m.safetensors").write_bytes(b"trained for a night")
    command = ["train", str(slides[0]), "--model", str(tmp_path / "m.safetensors"), "--seconds", "1000"]
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "m.safetensors").read_bytes() == b"trained for a night"


@pytest.mark.fault("disk full while a project is opened")
def test_a_full_disk_is_not_taken_for_a_damaged_file(slides, tmp_path):
    """A log that a kill left needs room beside it to be read."""
    path = project_with(slides[:1], tmp_path / "p.sparseseg")
    (file,) = (path / "annotations").glob("*.sqlite")
    with Session.load(path) as session:
        draw(session, [50])
        left = {tail: file.with_name(file.name + tail).read_bytes() for tail in ("", "-wal")}
    for tail, content in left.items():
        file.with_name(file.name + tail).write_bytes(content)
    with file_size_limited(1024), pytest.raises(AnnotationError) as caught:
        Annotations.load(file)
    assert "rescue" not in str(caught.value)
    assert "make room" in str(caught.value)
    assert len(Annotations.load(file).strokes) == 4


@pytest.mark.fault("save whose files cannot all be bound")
def test_a_save_that_cannot_bind_its_files_leaves_nothing_behind(slides, tmp_path, monkeypatch):
    """The folder for the new project is made, then the second file cannot be opened for writing."""
    with Session(CLASSES) as session:
        for slide in slides:
            session.open(slide)
            draw(session, [10])
        session.save(tmp_path / "one")
        attach = Annotations.attach

        def fails_for_b(self, path):
            if path.parent.parent.name == "two.sparseseg" and path.name.startswith("b"):
                raise AnnotationError("no room")
            attach(self, path)

        monkeypatch.setattr(Annotations, "attach", fails_for_b)
        with pytest.raises(AnnotationError, match="no room"):
            session.save(tmp_path / "two")
        monkeypatch.undo()
        assert not (tmp_path / "two.sparseseg").exists()
        draw(session, [20])
        session.save(tmp_path / "two")
    with Session.load(tmp_path / "two.sparseseg") as again:
        assert strokes(again) == {"a.tif": 1, "b.tif": 2}


@pytest.mark.fault("one slide's file cannot be written while another is closed")
def test_a_slide_is_closed_although_the_file_of_another_cannot_be_written(slides, tmp_path):
    path = project_with(slides, tmp_path / "p.sparseseg")
    with Session.load(path) as session:
        first, second = session.slides
        session.activate(first)
        with file_size_limited(1024), pytest.raises(AnnotationError, match="in memory only"):
            draw(session, [60])
        file = session.annotations.path
        aside = file.rename(tmp_path / "aside")
        session.remove(second)
        assert session.slides == (first,)
        aside.rename(file)
        session.save(path)
        assert session.annotations.saved
    with Session.load(path) as again:
        assert strokes(again) == {"a.tif": 4}
        again.open(slides[1])
        assert strokes(again) == {"a.tif": 4, "b.tif": 3}


@pytest.mark.fault("disk full before the model is in the saved project")
def test_unsaved_work_is_not_listed_once_the_model_is_saved_too(slides, tmp_path):
    with Session(CLASSES, autosave=True) as session:
        session.open(slides[0])
        draw(session, [50, 100])
        draw(session, [150, 200], 2)
        session.train(steps=1, wait=True)
        size = session.checkpoint.stat().st_size
        with file_size_limited(size // 2), pytest.raises(SparseSegError):
            session.save(tmp_path / "p")
        assert len(unsaved_work()) == 1
        session.save(tmp_path / "p")
        assert unsaved_work() == ()


@pytest.mark.fault("two sessions close and open slides of one project")
def test_what_another_session_has_closed_stays_listed(slides, tmp_path):
    path = project_with(slides, tmp_path / "p.sparseseg")
    with Session.load(path) as session:
        for slide in session.slides:
            session.remove(slide)
    with Session.load(path) as one, Session.load(path) as two:
        one.open(slides[0])
        two.open(slides[1])
        third = write_slide(tmp_path / "c.tif", two_textures(256, 7))
        two.open(third)
        draw(two, [10])
        two.remove()
        one.set_role("predict")
    with Session.load(path) as again:
        for slide in (*slides, third):
            again.open(slide)
        assert strokes(again) == {"a.tif": 3, "b.tif": 3, "c.tif": 1}


@pytest.mark.fault("stroke drawn while a merge is saved")
def test_a_stroke_that_is_drawn_while_a_merge_is_saved_is_in_it(slides, tmp_path, monkeypatch):
    path = project_with(slides[:1], tmp_path / "p.sparseseg")
    with Session(CLASSES) as session:
        session.open(slides[0])
        draw(session, [100])
        write, late = Project.write, [120, 140]

        def draws_first(self, state):
            if late:
                draw(session, [late.pop()], 2)
            write(self, state)

        monkeypatch.setattr(Project, "write", draws_first)
        session.save(path, exists="merge")
        monkeypatch.undo()
    with Session.load(path) as again:
        assert strokes(again) == {"a.tif": 6}
        assert again.notes == ()
    listed = {r.annotations for r in Project.open(path).state.slides}
    assert len({f.name for f in (path / "annotations").glob("*.sqlite")} - listed) == 1, "that before the merge"


def test_a_merge_that_fails_after_it_was_listed_is_not_listed_any_more(slides, tmp_path, monkeypatch):
    path = project_with(slides[:1], tmp_path / "p.sparseseg")
    before = (path / "project.json").read_bytes()
    with Session(CLASSES) as session:
        session.open(slides[0])
        draw(session, [100])
        write = Project.write

        def then_renames(self, state):
            write(self, state)
            monkeypatch.undo()
            session.classes = ["stripes", "spots"]

        monkeypatch.setattr(Project, "write", then_renames)
        with pytest.raises(ProjectError, match="classes were changed"):
            session.save(path, exists="merge")
        assert strokes(session) == {"a.tif": 1}
    assert (path / "project.json").read_bytes() == before
    with Session.load(path) as again:
        assert strokes(again) == {"a.tif": 3}
        assert again.notes == ()
