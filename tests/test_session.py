"""The session as scripts use it: the contract, on a small real slide with real training."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import numpy as np
import pytest

from napari_sparseseg import Annotations, Session
from napari_sparseseg.config import ClassDef
from napari_sparseseg.errors import PredictionError, SlideError, SlideOpenError, SparseSegError, TrainingError
from napari_sparseseg.geometry import Box
from tests.helpers.classes import add_class
from tests.helpers.waiting import wait_until


def scribble(session, shift=0):
    """A few strokes on either side of the border."""
    a = session.annotations
    for y in (150, 500, 850):
        a.paint([(y + shift, 100), (y + shift, 400)], 6, 1)
        a.paint([(y + shift, 620), (y + shift, 920)], 6, 2)


@pytest.fixture
def session(tiny_slide):
    with Session(["stripes", "dots"]) as s:
        s.open(tiny_slide)
        yield s
    assert not [t for t in threading.enumerate() if t.name.startswith("sparseseg")]


@pytest.fixture(scope="module")
def model_file(tiny_slide, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    with Session(["stripes", "dots"]) as s:
        s.open(tiny_slide)
        scribble(s)
        s.train(steps=2, seed=1, wait=True)
        s.save_model(path)
    return path


def accuracy(labels):
    truth = np.where(np.arange(labels.shape[1]) < labels.shape[1] // 2, 1, 2)
    return float((labels == truth[None]).mean())


def test_a_new_session_has_two_classes_and_is_idle():
    with Session() as s:
        assert len(s.classes) == 2
        assert s.status.state == "idle"
        with pytest.raises(SlideError, match="open one first"):
            _ = s.annotations


def test_train_and_predict_learn_the_two_textures(session):
    scribble(session)
    session.train(balancing="mini-batch", seconds=4, wait=True)
    labels, probabilities = session.predict((0, 0, 1024, 1024))
    assert labels.shape == (1024, 1024)
    assert labels.dtype == np.uint8
    assert probabilities.shape == (2, 1024, 1024)
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-4)
    np.testing.assert_array_equal(labels, probabilities.argmax(axis=0) + 1)
    assert accuracy(labels) > 0.9
    status = session.status
    assert status.state == "idle"
    assert status.model_version > 0
    assert status.live_annotation_version == session.annotations.version
    assert session.checkpoint.exists()


def test_train_without_wait_returns_and_follows_new_strokes(session):
    scribble(session)
    session.train()
    assert session.status.state == "training"
    wait_until(lambda: session.status.live_annotation_version == session.annotations.version)
    session.annotations.paint([(300, 100), (300, 300)], 6, 1)
    wait_until(lambda: session.status.live_annotation_version == session.annotations.version)
    session.pause()
    assert session.status.state == "paused"
    session.predict((0, 0, 32, 32))  # the step at hand ends before it
    step = session.status.step
    for _ in range(20):  # each goes through the thread that trains
        session.predict((0, 0, 32, 32))
    assert session.status.step == step
    session.resume()
    wait_until(lambda: session.status.step > step)
    session.stop()
    assert session.status.state == "idle"


def test_a_patient_run_ends_by_itself_when_nothing_is_gained(session, monkeypatch):
    from napari_sparseseg.learning.learner import LearnerSettings
    from napari_sparseseg.learning.validation import ValidationSettings

    often = LearnerSettings(validation=ValidationSettings(first=2, least_steps=1, time_share=100))
    monkeypatch.setattr("napari_sparseseg.learning.learner.LearnerSettings", lambda: often)
    scribble(session)
    session.train(patience=2, wait=True)
    assert session.status.state == "idle"
    assert session.model is not None


def test_training_needs_two_classes(session):
    with pytest.raises(TrainingError, match="two classes"):
        session.train()
    session.annotations.paint([(10, 10), (20, 20)], 5, 1)
    with pytest.raises(TrainingError, match="labelled so far: stripes"):
        session.train()
    assert session.status.state == "idle"


def test_settings_are_checked_before_anything_starts(session):
    scribble(session)
    with pytest.raises(SparseSegError, match="balancing"):
        session.train(balancing="magic")
    with pytest.raises(TrainingError, match="unknown setting colour"):
        session.train(colour=3)
    with pytest.raises(SparseSegError, match="mpp"):
        session.train(mpp=-1)


def test_classes_change_under_a_running_training(session):
    scribble(session)
    session.train(patch_px=64, batch_size=1, seed=1, device="cpu")
    wait_until(lambda: session.status.step >= 2)
    a = session.annotations
    third = add_class(a, "border", "#009e73")
    a.paint([(100, 512), (900, 512)], 8, third)

    def fitted(*names):
        return session.status.live_annotation_version == a.version and names == tuple(
            c.name for c in session.model.metadata.classes
        )

    wait_until(lambda: fitted("stripes", "dots", "border"))
    assert (session.predict((0, 384, 1024, 256))[0] == third).any()
    session.classes = [replace(c, name="lines") if c.id == 1 else c for c in session.classes]
    wait_until(lambda: fitted("lines", "dots", "border"))
    session.classes = [c for c in session.classes if c.id != third]
    wait_until(lambda: fitted("lines", "dots"))
    step = session.status.step
    assert step >= 2  # not begun anew
    wait_until(lambda: session.status.step > step)
    assert session.status.state == "training"
    session.stop()
    assert accuracy(session.predict((0, 0, 1024, 1024))[0]) > 0.9


def test_predict_needs_a_model(session):
    with pytest.raises(PredictionError, match="no model"):
        session.predict((0, 0, 10, 10))


def test_bad_slide_leaves_the_session_usable(session, tmp_path):
    bad = tmp_path / "bad.svs"
    bad.write_text("not a slide")
    with pytest.raises(SlideOpenError):
        session.open(bad)
    assert session.annotations.shape == (1024, 1024)


def test_saved_model_predicts_the_same_in_another_session(session, model_file):
    session.load_model(model_file)
    labels, _ = session.predict((0, 0, 1024, 1024))
    assert accuracy(labels) > 0.9


def test_loaded_model_goes_on_learning(session, model_file):
    session.load_model(model_file)
    scribble(session, shift=60)
    session.train(steps=3, wait=True)
    assert session.status.step == 2 + 3  # those of the model, and the budget of this run
    assert session.model.metadata.step == 2 + 3, "what predicts now is what was written when the run ended"
    assert session.status.model_version > 1


def test_project_round_trip(session, tiny_slide, tmp_path, model_file):
    scribble(session)
    session.load_model(model_file)
    session.save(tmp_path / "study")
    expected = session.annotations.read((0, 0, 1024, 1024))
    session.close()
    with Session.load(tmp_path / "study.sparseseg") as again:
        np.testing.assert_array_equal(again.annotations.read((0, 0, 1024, 1024)), expected)
        assert [c.name for c in again.classes] == ["stripes", "dots"]
        assert accuracy(again.predict((0, 0, 1024, 1024))[0]) > 0.9
        again.annotations.paint([(5, 5), (5, 50)], 3, 2)
    with Session.load(tmp_path / "study.sparseseg") as third:
        assert third.annotations.read((5, 5, 1, 1))[0, 0] == 2


def test_second_opener_of_a_project_reads_only_and_says_so(session, tmp_path):
    session.annotations.paint([(5, 5), (5, 50)], 3, 2)
    session.save(tmp_path / "study")
    with Session.load(tmp_path / "study.sparseseg") as second:
        assert "open in another window" in second.status.message
        assert second.annotations.read((5, 20, 1, 1))[0, 0] == 2
        second.annotations.paint([(500, 5), (500, 50)], 3, 1)
        with pytest.raises(SparseSegError, match="another name"):
            second.save(tmp_path / "study")
        second.save(tmp_path / "copy")
    assert session.annotations.read((500, 20, 1, 1))[0, 0] == 0
    with Session.load(tmp_path / "copy.sparseseg") as third:
        assert third.annotations.read((500, 20, 1, 1))[0, 0] == 1


def test_autosave_keeps_strokes_of_a_session_that_was_never_saved(tiny_slide):
    from napari_sparseseg.session.recovery import recoverable

    with Session(autosave=True) as s:
        fingerprint = s.open(tiny_slide).fingerprint
        s.annotations.paint([(5, 5), (5, 50)], 3, 2)
        assert recoverable(fingerprint, running=False) == [], "what is open now is not offered in another window"
    found = recoverable(fingerprint)
    assert len(found) == 1
    with Session.load(found[0]) as again:
        assert again.annotations.read((5, 20, 1, 1))[0, 0] == 2


def test_empty_autosave_leaves_nothing_behind(tiny_slide):
    from napari_sparseseg.session.recovery import recovery_folder

    with Session(autosave=True) as s:
        s.open(tiny_slide)
    assert list(recovery_folder().iterdir()) == []


def written(project):
    return json.loads((project / "project.json").read_text())


def test_what_is_set_is_on_disk_at_once(session, tmp_path):
    """Without a save: a process that is killed now loses none of it."""
    session.save(tmp_path / "p")
    project = tmp_path / "p.sparseseg"
    session.set_mpp((0.25, 0.5))
    assert written(project)["slides"][0]["mpp"] == [0.25, 0.5]
    session.set_role("held-out")
    assert written(project)["slides"][0]["role"] == "held-out"
    session.config = session.config.updated({"balancing": "none"})
    assert written(project)["config"]["balancing"] == "none"
    session.classes = [*session.classes, ClassDef(3, "glass", "#999999")]
    assert [c["name"] for c in written(project)["classes"]] == ["stripes", "dots", "glass"]
    session.slide.mpp = 0.3
    session.annotations.paint([(100, 100), (100, 200)], 5, 1)
    assert written(project)["slides"][0]["mpp"] == [0.3, 0.3]


def test_a_new_resolution_refits_the_learner(session):
    """The resolution of the slide decides what the network sees, so the head is fitted again without a stroke."""
    scribble(session)
    session.train(steps=1, wait=True)
    session.live_enabled = True
    fitted = session.status.model_version
    session.set_mpp(0.5)
    wait_until(lambda: session.status.model_version > fitted)
    assert session.training_mpp == 1.0


def test_live_view_predicts_what_is_on_screen(session):
    scribble(session)
    session.live_enabled = True
    session.look_at((0, 0, 1024, 1024), 1.0)
    session.train(seconds=3, wait=True)
    wait_until(
        lambda: (
            session.live is not None
            and session.live.pending == 0
            and session.live.store.read(0, 0, Box(0, 0, 1024, 1024)).all()
        )
    )
    assert accuracy(session.live.store.read(0, 0, Box(0, 0, 1024, 1024))) > 0.9


def test_annotations_of_another_size_are_refused(session):
    with pytest.raises(SparseSegError, match="were drawn on a slide of"):
        session.annotations = Annotations((10, 10))


def test_class_added_on_one_slide_is_there_on_all(session, tmp_path, tiny_slide):
    import shutil

    other = shutil.copy(tiny_slide, tmp_path / "other.tif")
    session.open(other)
    add_class(session.annotations, "necrosis", "#123456")
    assert [c.name for c in session.classes] == ["stripes", "dots", "necrosis"]
    session.open(tiny_slide)
    assert [c.name for c in session.annotations.classes] == ["stripes", "dots", "necrosis"]


def test_close_while_training_is_quick_and_leaves_a_checkpoint(tiny_slide):
    s = Session(["stripes", "dots"])
    s.open(tiny_slide)
    scribble(s)
    s.train()
    wait_until(lambda: s.status.model_version > 0)
    s.close()
    assert s.checkpoint.exists()
    s.close()
