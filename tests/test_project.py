"""The project folder: whole or absent, movable, closed to names that point outside."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from napari_sparseseg.config import PALETTE, ClassDef, TrainConfig, make_classes, match_classes
from napari_sparseseg.errors import ProjectError, SparseSegError
from napari_sparseseg.files import write_atomic
from napari_sparseseg.session.project import Project, ProjectState, SlideRecord


@pytest.fixture
def project(tmp_path):
    return Project.create(tmp_path / "liver.sparseseg")


def test_round_trip(project, tmp_path):
    slide = tmp_path / "a.svs"
    slide.write_bytes(b"x")
    record = project.record_for(str(slide), "sha:12345678")
    state = ProjectState((record,), make_classes(["tumour", ("stroma", "#00ff00")]), TrainConfig(mpp=2.0, seed=4))
    project.write(state)
    again = Project.open(project.path)
    assert again.state == state
    assert again.locate(again.state.slides[0]) == slide


def test_moved_together_with_its_slides(project, tmp_path):
    slide = tmp_path / "a.svs"
    slide.write_bytes(b"x")
    project.write(ProjectState((project.record_for(str(slide), "f"),)))
    other = tmp_path / "elsewhere"
    other.mkdir()
    shutil.move(project.path, other / "liver.sparseseg")
    shutil.move(slide, other / "a.svs")
    moved = Project.open(other / "liver.sparseseg")
    assert moved.locate(moved.state.slides[0]) == (other / "a.svs").resolve()


def test_same_fingerprint_keeps_its_annotation_file(project, tmp_path):
    first = project.record_for(str(tmp_path / "a.svs"), "same")
    project.write(ProjectState((first,)))
    assert project.record_for(str(tmp_path / "renamed.svs"), "same").annotations == first.annotations


@pytest.mark.parametrize("name", ["../evil.sqlite", "/etc/passwd", "..", "", "a/b.sqlite"])
def test_annotation_name_cannot_leave_the_folder(project, name):
    with pytest.raises(ProjectError):
        project.annotations_path(SlideRecord("a.svs", "f", name))


def test_annotation_file_cannot_be_a_link(project, tmp_path):
    target = tmp_path / "secret"
    target.write_text("x")
    os.symlink(target, project.path / "annotations" / "a.sqlite")
    with pytest.raises(ProjectError, match="link"):
        project.annotations_path(SlideRecord("a.svs", "f", "a.sqlite"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"schema": 1}',
        '{"schema": 99, "slides": [], "classes": [], "config": {}}',
        "[" * 100_000,
    ],
)
def test_damaged_project_is_refused_with_one_clear_line(project, text):
    (project.path / "project.json").write_text(text)
    with pytest.raises(ProjectError) as caught:
        Project.open(project.path)
    assert str(project.path) in str(caught.value) or "newer version" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"slides": [{"path": 3}]}, "slide 1 of project.json is left out"),
        ({"classes": [{"id": 0, "name": "x", "colour": "#000000"}]}, "class table"),
        ({"config": {"balancing": "magic", "seed": 7}}, "the setting balancing has its default"),
    ],
)
def test_one_bad_value_costs_only_itself_and_is_written_back(project, changes, problem):
    file = project.path / "project.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    opened = Project.open(project.path)
    assert [problem in text for text in opened.problems] == [True]
    assert opened.state.config == TrainConfig(seed=7 if "config" in changes else 0)
    opened.write(opened.state)
    if "slides" in changes:
        assert json.loads(file.read_text())["slides"] == changes["slides"]


def test_not_a_project(tmp_path):
    with pytest.raises(ProjectError, match=r"no project\.json"):
        Project.open(tmp_path)


def test_create_refuses_a_folder_in_use(tmp_path):
    (tmp_path / "x.sparseseg").mkdir()
    (tmp_path / "x.sparseseg" / "mine.txt").write_text("keep")
    with pytest.raises(ProjectError, match="exists"):
        Project.create(tmp_path / "x.sparseseg")
    assert (tmp_path / "x.sparseseg" / "mine.txt").read_text() == "keep"


def test_unknown_keys_of_a_newer_minor_version_are_ignored(project):
    file = project.path / "project.json"
    data = json.loads(file.read_text())
    data["config"]["future"] = 1
    file.write_text(json.dumps(data))
    assert Project.open(project.path).state.config == TrainConfig()


def test_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomic(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_classes_need_distinct_names_and_ids_and_real_colours():
    with pytest.raises(SparseSegError, match="twice"):
        make_classes(["a", "a"])
    with pytest.raises(SparseSegError, match=r"not in 1\.\.255"):
        ClassDef(0, "a", "#000000")
    with pytest.raises(SparseSegError, match="#rrggbb"):
        ClassDef(1, "a", "red")
    assert [c.id for c in make_classes(["a", ("b", "#112233")])] == [1, 2]


def test_model_classes_are_matched_by_name():
    ours = make_classes([("Stroma", "#111111"), ("tumour", "#222222")])
    theirs = make_classes([("tumour", "#333333"), ("necrosis", "#444444")])
    table, channels = match_classes(ours, theirs)
    assert [c.name for c in table] == ["Stroma", "tumour", "necrosis"]
    assert [c.id for c in channels] == [2, 3]
    assert match_classes((), theirs) == (theirs, theirs)


def test_a_class_of_a_model_does_not_look_like_another_of_ours():
    ours = make_classes([("stroma", PALETTE[0]), ("tumour", PALETTE[1])])
    theirs = make_classes([("Stroma", "#123456"), ("gland", PALETTE[1].upper()), ("fat", "#654321")])
    table, _ = match_classes(ours, theirs)
    assert [c.colour for c in table] == [PALETTE[0], PALETTE[1], PALETTE[2], "#654321"]
