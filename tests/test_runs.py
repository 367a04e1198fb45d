"""Training runs that are kept: what comes back, in which order they go, what a kill and a hostile file do to them."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from napari_sparseseg import Session, load_model
from napari_sparseseg.cli import main
from napari_sparseseg.errors import ModelError, ProjectError, TrainingError
from napari_sparseseg.session import run_files
from napari_sparseseg.session.runs import project_runs

BOX = (0, 0, 400, 1000)


def draw(session, tiny_slide):
    session.open(tiny_slide)
    session.classes = ["stripes", "dots"]
    session.annotations.paint([(100, 50), (100, 300)], 10, 1)
    session.annotations.paint([(100, 700), (100, 950)], 10, 2)


def train(session, **settings):
    session.train(steps=1, wait=True, **settings)
    return session.runs.list()[0]


def predicted(session):
    return session.predict(BOX)[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_slide):
    """A project with three runs, of one, two and three pairs of strokes; and what each of them predicts."""
    folder = tmp_path_factory.mktemp("runs") / "p.sparseseg"
    with Session(autosave=True) as session:
        draw(session, tiny_slide)
        session.save(folder)
        answers = {}
        for k, balancing in enumerate(("none", "instance", "mini-batch")):
            if k:
                session.annotations.paint([(200 + 60 * k, 50), (200 + 60 * k, 300)], 10, 2)
            run = train(session, balancing=balancing)
            answers[run.id] = predicted(session)
    return folder, answers


@pytest.fixture
def project(made, tmp_path):
    """A copy of it, elsewhere."""
    return shutil.copytree(made[0], tmp_path / "copy.sparseseg"), made[1]


def test_a_project_that_is_opened_elsewhere_shows_its_runs(project):
    path, answers = project
    with Session.load(path) as session:
        runs = session.runs.list()
        assert [r.id for r in reversed(runs)] == list(answers)
        assert [r.config.balancing for r in runs] == ["mini-batch", "instance", "none"]
        assert [r.strokes for r in runs] == [4, 3, 2]
        assert [r.metadata.sources[0]["annotations"] for r in runs] == sorted(
            (r.metadata.sources[0]["annotations"] for r in runs), reverse=True
        )
        assert all(r.story.seconds > 0 and len(r.story.losses) == 1 for r in runs)
        assert [r.story.before for r in runs] == [runs[1].id, runs[2].id, ""]
        assert session.runs.in_use == runs[0].id


def test_one_goes_back_to_each_and_it_predicts_as_it_did(project):
    path, answers = project
    with Session.load(path) as session:
        for run_id, probabilities in answers.items():
            session.runs.use(run_id)
            np.testing.assert_array_equal(predicted(session), probabilities)
            assert session.runs.in_use == run_id
        first = next(iter(answers))
        session.runs.use(first)
    with Session.load(path) as session:
        assert session.runs.in_use == first
        np.testing.assert_array_equal(predicted(session), answers[first])
        again = train(session)
        assert again.story.before == first


def test_a_run_that_one_went_back_to_is_not_refitted_by_strokes_drawn_since(project):
    path, answers = project
    with Session.load(path) as session:
        train(session)
        session.live_enabled = True
        first = next(iter(answers))
        session.runs.use(first)
        session.annotations.paint([(350, 50), (350, 300)], 10, 2)
        session.predict((0, 0, 64, 64))
        np.testing.assert_array_equal(predicted(session), answers[first])


def test_training_is_undone_and_made_again_in_one_step(project):
    path, answers = project
    with Session.load(path) as session:
        before = predicted(session)
        assert session.runs.next_undo == "undo training"
        made = train(session, seed=5)
        after = predicted(session)
        assert session.runs.undo() == "undo training"
        np.testing.assert_array_equal(predicted(session), before)
        assert session.runs.in_use == list(answers)[-1]
        assert session.runs.undo() == "redo training"
        np.testing.assert_array_equal(predicted(session), after)
        assert session.runs.in_use == made.id
        assert session.history.next_undo != "undo training"


def test_undo_after_reopening_goes_to_the_run_before(project):
    path, answers = project
    with Session.load(path) as session:
        session.runs.undo()
        np.testing.assert_array_equal(predicted(session), answers[list(answers)[1]])


def test_undo_brings_back_what_was_learned_from_strokes_between_two_runs(tiny_slide):
    with Session() as session:
        draw(session, tiny_slide)
        train(session)
        session.live_enabled = True
        seen = session.model
        session.annotations.paint([(300, 50), (300, 300)], 10, 2)
        while session.model is seen:
            session.predict((0, 0, 64, 64))
        session.live_enabled = False
        before = predicted(session)
        train(session, seed=9)
        session.runs.undo()
        np.testing.assert_array_equal(predicted(session), before)


def test_a_loaded_model_is_kept_when_training_goes_on_from_it(made, tmp_path, tiny_slide):
    run_id, probabilities = list(made[1].items())[1]
    file = tmp_path / "theirs.safetensors"
    with Session.load(made[0], read_only=True) as session:
        session.runs.export(run_id, file)
        with pytest.raises(ModelError, match="exists already"):
            session.runs.export(run_id, file)
        with pytest.raises(ModelError, match="must end in"):
            session.runs.export(run_id, tmp_path / "a.onnx")
    assert load_model(file).metadata.step == 2
    with Session() as session:
        draw(session, tiny_slide)
        session.load_model(file)
        assert not session.runs.in_use
        train(session)
        new, loaded = session.runs.list()
        assert (new.story.trained, loaded.story.trained, new.story.before) == (True, False, loaded.id)
        session.runs.use(loaded.id)
        np.testing.assert_array_equal(predicted(session), probabilities)


def test_a_saved_project_takes_the_runs_of_unsaved_work_along_and_a_merge_adds_them(tmp_path, tiny_slide):
    with Session(autosave=True) as session:
        draw(session, tiny_slide)
        one = train(session)
        session.runs.rename(one.id, "first")
        recovery = session.project
        session.save(tmp_path / "a")
        assert not recovery.exists()
        assert [r.story.name for r in session.runs.list()] == ["first"]
    with Session(autosave=True) as session:
        draw(session, tiny_slide)
        two = train(session)
        session.save(tmp_path / "a", exists="merge")
        assert [r.id for r in session.runs.list()] == [two.id, one.id]
        assert session.runs.in_use == two.id


def test_the_oldest_without_a_name_goes_first(project, monkeypatch):
    path, answers = project
    first, _, third = answers
    monkeypatch.setattr(run_files, "MOST_RUNS", 3)
    with Session.load(path) as session:
        session.runs.rename(first, "best")
        fourth = train(session).id
        assert {r.id for r in session.runs.list()} == {first, third, fourth}
        session.runs.use(first)
        monkeypatch.setattr(run_files, "MOST_BYTES", 1)
        fifth = train(session).id
        assert [r.id for r in session.runs.list()] == [fifth, first]
        session.runs.rename(first, "")
        train(session)
        assert first not in {r.id for r in session.runs.list()}


def test_names_are_checked(project):
    path, answers = project
    first, second, _ = answers
    with Session.load(path) as session:
        session.runs.rename(first, "  best ")
        with pytest.raises(ProjectError, match="already"):
            session.runs.rename(second, "BEST")
        for bad in ("a\nb", "x" * 101):
            with pytest.raises(ProjectError, match="cannot be used"):
                session.runs.rename(second, bad)
        for unknown in ("../../etc/passwd", "20200101-000000-ffff"):
            with pytest.raises(ProjectError, match="no run"):
                session.runs.use(unknown)
        assert [r.story.name for r in session.runs.list()] == ["", "", "best"]


def test_nothing_is_changed_in_a_project_that_is_read_only(project):
    path, answers = project
    first = next(iter(answers))
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file() and p.suffix not in (".sqlite-shm",)}
    with Session.load(path, read_only=True) as session:
        session.runs.use(first)
        np.testing.assert_array_equal(predicted(session), answers[first])
        with pytest.raises(ProjectError, match="read-only"):
            session.runs.rename(first, "a")
        train(session)
        session.runs.undo()
        np.testing.assert_array_equal(predicted(session), answers[first])
    assert {p: p.read_bytes() for p in path.rglob("*") if p in before} == before


def test_two_runs_side_by_side_and_where_they_differ(project):
    path, answers = project
    first, _, third = answers
    with Session.load(path) as session:
        rows = session.runs.compare(first, third)
        assert rows["balancing"] == ("none", "mini-batch")
        assert rows["steps"] == (1, 3)
        assert next(v for k, v in rows.items() if k.startswith("strokes on")) == (2, 4)
        found = session.runs.difference(first, third, BOX)
        session.runs.use(first)
        a = session.predict(BOX)[0]
        session.runs.use(third)
        b = session.predict(BOX)[0]
        assert found.labels.shape == a.shape
        np.testing.assert_array_equal(found.labels > 0, a != b)
        for c in found.classes:
            names = [n.name for n in session.classes]
            x, y = (names.index(part) + 1 for part in c.name.split(" > "))
            assert (a[found.labels == c.id] == x).all()
            assert (b[found.labels == c.id] == y).all()
        assert found.agreement.agreement(next(iter(found.agreement.counts))) == pytest.approx((a == b).mean())


def test_no_run_is_touched_while_training_runs(project):
    path, answers = project
    with Session.load(path) as session:
        session.train()
        for act in (session.runs.undo, lambda: session.runs.use(next(iter(answers)))):
            with pytest.raises(TrainingError, match="stop it first"):
                act()
        session.stop()


def test_damaged_stories_and_models_cost_only_themselves(project):
    path, answers = project
    first, second, third = answers
    folder = path / "runs"
    (folder / f"{first}.json").write_text('{"format": "napari-sparseseg run", "name": 7, "ended": 1e300}')
    (folder / f"{second}.safetensors").write_bytes(b"PK\x03\x04 nothing")
    (folder / f"{third}.json").unlink()
    (folder / "in-use").write_text("../../../etc/passwd")
    with Session.load(path) as session:
        assert {r.id for r in session.runs.list()} == {first, third}
        assert len(session.runs.problems) == 1
        assert second in session.runs.problems[0]
        assert not session.runs.in_use
        train(session)
    assert (folder / f"{second}.safetensors").exists()


@pytest.mark.skipif(os.name == "nt", reason="links need a right on Windows")
def test_links_out_of_the_project_are_refused(project, tmp_path):
    path, answers = project
    first = next(iter(answers))
    outside = tmp_path / "outside"
    outside.mkdir()
    model = path / "runs" / f"{first}.safetensors"
    shutil.move(model, outside / model.name)
    model.symlink_to(outside / model.name)
    with Session.load(path) as session:
        assert first not in {r.id for r in session.runs.list()}
        with pytest.raises(ProjectError, match="link"):
            session.runs.use(first)
    shutil.rmtree(path / "runs")
    (path / "runs").symlink_to(outside)
    with Session.load(path) as session:
        assert session.runs.list() == ()
        session.train(steps=1, wait=True)
        assert "not in the list of runs" in session.status.message
    assert [p.name for p in outside.iterdir()] == [model.name]


@pytest.mark.skipif(os.name == "nt", reason="links need a right on Windows, and there are no pipes")
def test_links_and_pipes_among_the_runs_keep_nobody_from_saving(project, tmp_path):
    path, answers = project
    first, second, third = answers
    folder = path / "runs"
    shutil.move(folder / f"{first}.safetensors", tmp_path / "m.safetensors")
    (folder / f"{first}.safetensors").symlink_to(tmp_path / "m.safetensors")
    for name in (f"{second}.safetensors", f"{third}.json", "in-use"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
    with Session.load(path) as session:
        assert [r.id for r in session.runs.list()] == [third]
        session.save(tmp_path / "again")
        assert [r.id for r in session.runs.list()] == [third]


def test_a_run_that_cannot_be_kept_leaves_the_model_as_before(project, monkeypatch):
    path, _ = project

    def full(*_args):
        raise OSError(28, "No space left on device")

    with Session.load(path) as session:
        monkeypatch.setattr(run_files.RunFolder, "describe", full)
        session.train(steps=1, wait=True)
        assert "No space left" in session.status.message
        after = predicted(session)
    with Session.load(path) as session:
        np.testing.assert_array_equal(predicted(session), after)


def test_projects_of_before_have_no_runs_and_get_them(project):
    path, _ = project
    shutil.rmtree(path / "runs")
    with Session.load(path) as session:
        assert session.runs.list() == ()
        assert session.runs.next_undo == ""
        with pytest.raises(TrainingError, match="no earlier model"):
            session.runs.undo()
        before = predicted(session)
        train(session)
        _, old = session.runs.list()
        assert not old.story.trained
    with Session.load(path) as session:
        session.runs.undo()
        np.testing.assert_array_equal(predicted(session), before)


def test_the_shell_lists_compares_exports_names_and_goes_back(project, tmp_path, capsys):
    path, answers = project
    first, _, third = answers

    def run(*words):
        code = main(["runs", str(path), *words, "--json"])
        return code, json.loads(capsys.readouterr().out)

    code, listed = run()
    assert (code, [r["id"] for r in listed["runs"]]) == (0, list(reversed(answers)))
    assert run("--name", first, "first try")[0] == 0
    assert run("--compare", "first try", third)[1]["compared"]["balancing"] == ["none", "mini-batch"]
    out = tmp_path / "m.safetensors"
    assert run("--export", "First Try", str(out))[0] == 0
    assert run("--export", "first try", str(out))[0] == 2
    assert run("--export", "first try", str(out), "--overwrite")[0] == 0
    assert "several runs" in run("--use", first[:4])[1]["error"]
    assert run("--use", "first try")[0] == 0
    with Session.load(path) as session:
        assert session.runs.in_use == first
    assert main(["runs", str(path)]) == 0
    assert "first try" in capsys.readouterr().out
    assert project_runs(path)[-1].story.name == "first try"
    assert main(["runs", str(tmp_path)]) == 2
