"""What a run may not do: go on from another network unasked, learn from what it is scored on, depend on the clock."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from napari_sparseseg import Session
from napari_sparseseg.cli import main
from napari_sparseseg.config import DEFAULT_ENCODER
from napari_sparseseg.errors import ModelError
from napari_sparseseg.geometry import Box
from napari_sparseseg.learning.feature_cache import CELL, MARGIN
from napari_sparseseg.learning.features import InputScale
from napari_sparseseg.learning.holdout import Window
from napari_sparseseg.learning.learner import Learner
from napari_sparseseg.learning.network import PlainUNet
from napari_sparseseg.learning.validation import (
    PlainComparison,
    ValidationSchedule,
    ValidationSettings,
    cost_of,
)
from napari_sparseseg.metrics import Scorer
from napari_sparseseg.slides.backends.array import ArraySlide
from tests.helpers.data import two_textures
from tests.helpers.geojson import qupath
from tests.helpers.texture_scene import (
    CLASSES,
    CONFIG,
    NEVER,
    SIDE,
    Slow,
    accuracy,
    annotated,
    comparing,
    fitted,
    slide_of,
    sources,
    steps,
    until_compared,
)

SCRATCH = dataclasses.replace(CONFIG, architecture="scratch", patch_px=64)
QUICK = {"patch_px": 64, "batch_size": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def slide():
    return slide_of()


def encoder_file(name, folder):
    """A small encoder of timm with random weights, as a setting."""
    net = timm.create_model(name, pretrained=False)
    save_file(net.state_dict(), folder / f"{name}.safetensors")
    return f"{name}@{folder / f'{name}.safetensors'}"


@pytest.fixture
def session(tiny_slide):
    with Session(["stripes", "dots"]) as s:
        s.open(tiny_slide)
        for y in (150, 500):
            s.annotations.paint([(y, 100), (y, 400)], 6, 1)
            s.annotations.paint([(y, 620), (y, 920)], 6, 2)
        yield s


def architecture(session):
    return session.model.net.features.encoder.architecture


def test_another_encoder_begins_anew_and_says_so(session, tmp_path):
    other = encoder_file("test_resnet", tmp_path)
    session.train(steps=1, wait=True, **QUICK)
    assert (architecture(session), session.status.message) == (DEFAULT_ENCODER, "")
    session.train(steps=1, wait=True, encoder=other)
    assert architecture(session).startswith("test_resnet")
    assert session.model.metadata.encoder == other
    assert session.status.step == 1
    assert f"anew with encoder {other}" in session.status.message
    with pytest.raises(ModelError, match="no_such_encoder"):
        session.train(steps=1, wait=True, encoder="no_such_encoder@x.safetensors")
    assert session.status.state == "failed"
    session.train(steps=1, wait=True, encoder=other)  # the model before the mistake is still there to go on from
    assert (session.status.step, session.status.message) == (2, "")
    session.save_model(tmp_path / "m.safetensors")
    session.load_model(tmp_path / "m.safetensors")
    assert session.config.encoder == other
    session.train(steps=1, wait=True)
    assert session.status.step == 3


def test_a_saved_model_goes_on_with_its_own_encoder_unless_another_is_named(tiny_slide, tmp_path, capsys):
    other = encoder_file("test_resnet", tmp_path)
    marks = qupath(tmp_path / "marks.geojson", [("stripes", (50, 50, 200, 60)), ("dots", (700, 500, 200, 60))])

    def train(*options):
        command = ["train", tiny_slide, "--annotations", marks, "--model", tmp_path / "m.safetensors", "--steps", 1]
        assert main([str(v) for v in (*command, "--device", "cpu", "--json", *options)]) == 0
        return json.loads(capsys.readouterr().out)

    train("--encoder", other)
    again = train("--resume")
    assert (again["steps"], "anew" in again["message"]) == (2, False)
    anew = train("--resume", "--encoder", DEFAULT_ENCODER)
    assert (anew["steps"], "anew" in anew["message"]) == (1, True)


@pytest.mark.parametrize(("change", "again"), [({"balancing": "mini-batch"}, False), ({"seed": 5}, True)])
def test_a_run_with_another_balancing_encodes_no_labelled_cell_again(session, change, again):
    session.train(steps=1, wait=True, **QUICK)
    before = session.status.step
    cells = []

    def count(_module, given):
        if given[0].shape[-1] == CELL + 2 * MARGIN:  # patches in training are smaller
            cells.append(len(given[0]))

    session.model.net.features.encoder.register_forward_pre_hook(count)
    session.train(steps=1, wait=True, **change)
    assert session.status.step == before + 1
    assert session.model.metadata.config.balancing == change.get("balancing", "instance")
    assert bool(cells) is again


def test_a_transformer_learns(slide, tmp_path):
    config = dataclasses.replace(CONFIG, encoder=encoder_file("test_vit", tmp_path))
    learner = fitted(slide, annotated(), config, settings=NEVER)
    assert accuracy(learner.model, slide) > 0.9
    losses = [steps(learner, 1).loss for _ in range(12)]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])


def test_what_the_head_knows_of_training_patches_ends_with_what_is_held_out(slide):
    a = annotated()
    learner = fitted(slide, a, settings=comparing(first=3, swap_after=1, least_steps=6, time_share=1000))
    steps(learner, 3)
    known = learner.trainer.task.rows
    assert len(known) >= 3
    until_compared(learner)
    assert known == []
    steps(learner, 3)
    assert known
    # A new stroke of a class is held out before one that was trained on: nothing has to be forgotten.
    a.paint([(100, 50), (110, 150)], 5, 4)
    learner.set_sources(sources(slide, a))
    assert known
    # Without the strokes held out, others that were trained on take their place.
    held = {u.stroke.id for u in learner.held.exclude[0]}
    for stroke in a.snapshot().strokes:
        if stroke.id in held:
            a.erase(stroke.points, 12)
    learner.set_sources(sources(slide, a))
    assert {u.stroke.id for u in learner.held.exclude[0]} - held
    assert known == []


def test_nothing_to_hold_out_is_said_and_ends_a_patient_run(tiny_slide):
    with Session(["stripes", "dots"]) as s:
        s.open(tiny_slide)
        s.annotations.paint([(150, 100), (150, 400)], 6, 1)
        s.annotations.paint([(150, 620), (150, 920)], 6, 2)
        s.train(steps=1, wait=True, **QUICK)
        assert "second stroke" in s.status.message
        assert len(s.status.metrics["warnings"]) == 2
        assert "stripes cannot be scored" in s.status.metrics["warnings"][0]
        s.annotations.paint([(500, 100), (500, 400)], 6, 1)
        s.train(steps=1, wait=True)
        assert s.status.message == ""
        (warning,) = s.status.metrics["warnings"]
        assert "dots cannot be scored" in warning


def test_comparisons_come_by_steps_and_windows_and_an_unscored_one_counts_as_stale():
    schedule = ValidationSchedule()
    assert [n for n in (9, 10) if schedule.is_due(n)] == [10]
    half, whole = (cost_of(n, dataclasses.replace(CONFIG, patch_px=192, batch_size=4)) for n in (0, 24))
    assert 0 < half < whole
    assert cost_of(24, CONFIG) > whole  # smaller steps: more of them take as long
    schedule.begin(100, 3.0)
    assert [n for n in (129, 130) if schedule.is_due(n)] == [130]
    for now, due in ((10, 30), (30, 90), (600, 1600)):  # an expensive one: in a tenth of the time, but early sooner
        schedule.begin(now, 100.0)
        assert [n for n in (due - 1, due) if schedule.is_due(n)] == [due]
    schedule.skip(40, 0.1)
    assert schedule.stale == 1
    assert [n for n in (49, 50) if schedule.is_due(n)] == [50]


def constant(channel):
    """A plain U-Net that says one class everywhere."""
    net = PlainUNet(3, 2, width=4, depth=2).eval()
    with torch.no_grad():
        net.scores.weight.zero_()
        net.scores.bias[:] = torch.eye(2)[channel] * 9
    return net


@pytest.mark.parametrize(("now", "served", "wins"), [(0, None, 0), (1, None, 0), (0, 1, 0), (1, 0, 1), (0, 0, 0)])
def test_the_plain_unet_served_is_the_one_that_scored_best(slide, now, served, wins):
    labels = np.full((256, 256), 4, np.uint8)
    held = SimpleNamespace(
        windows=lambda: (Window(0, Box(0, 0, 256, 256), labels),),
        scores=Scorer.scores,
        sources=sources(slide, annotated()),
        classes=CLASSES,
    )
    nets = [constant(k) for k in (now, served) if k is not None]
    contest = PlainComparison(held, InputScale.for_rgb(), nets)
    assert contest.advance()
    assert contest.fine is nets[wins]
    assert contest.metrics["balanced_dice"] == (1.0 if 0 in (now, served) else 0.0)


def test_the_plain_unet_is_scored_kept_at_its_best_and_ends_when_patient(slide, monkeypatch):
    often = comparing(first=1, least_steps=1, time_share=100)
    learner = fitted(slide, annotated(), SCRATCH, settings=often)
    margin = ValidationSettings().noise
    served, best, found = None, -1.0, []
    while len(found) < 3:
        report = learner.step()
        if report.validation:
            found.append(report.validation["balanced_dice"])
            served = found[-1] if found[-1] >= best - margin else served
            best = max(best, found[-1])
            assert learner.metrics["balanced_dice"] == served
    learner.step()
    assert learner.model.metadata.metrics["balanced_dice"] == served
    assert report.validation["held_out"] == 2
    assert report.validation["seen"] == 0
    monkeypatch.setattr("napari_sparseseg.learning.learner.LearnerSettings", lambda: often)
    with Session(CLASSES) as session:
        session.add(slide_of())
        session.annotations = annotated()
        session.train(patience=1, wait=True, architecture="scratch", **QUICK)
        assert session.status.metrics["pixels"] > 0


@pytest.mark.parametrize("config", [dataclasses.replace(CONFIG, patch_px=64), SCRATCH], ids=["two-speed", "scratch"])
def test_a_seed_and_a_number_of_steps_give_one_model_however_fast_the_machine_is(config):
    runs = []
    for kind in (ArraySlide, Slow):
        slide = kind(two_textures(SIDE, 0), mpp=1.0, name="textures")
        learner = fitted(slide, annotated(), config)
        compared = 0
        while learner.step_count < 14 or not compared:
            compared += learner.step().validation is not None
        learner.refit()
        runs.append((learner.step_count, learner.metrics, learner.model.net.state_dict()))
    assert runs[0][:2] == runs[1][:2]
    for name, value in runs[0][2].items():
        np.testing.assert_array_equal(value.numpy(), runs[1][2][name].numpy(), err_msg=name)


def test_a_learner_takes_only_its_own_architecture(slide):
    plain = fitted(slide, annotated(), SCRATCH)
    other = Learner(CONFIG, CLASSES, model=plain.model)
    assert other.model is None
    assert "anew with encoder" in other.note
    assert Learner(SCRATCH, CLASSES, model=plain.model).model is plain.model
