"""The learner on small real slides: what it learns, follows, keeps, and refuses."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from napari_sparseseg.annotations import Annotations
from napari_sparseseg.config import ClassDef
from napari_sparseseg.errors import TrainingError
from napari_sparseseg.geometry import Box
from napari_sparseseg.learning.learner import Learner
from napari_sparseseg.learning.model import load_model
from napari_sparseseg.learning.validation import KEEP_NOISE, NOISE, SHARES, Turns
from napari_sparseseg.prediction.tiles import predict_region
from napari_sparseseg.slides.backends.array import ArraySlide
from tests.helpers.data import two_textures
from tests.helpers.texture_scene import (
    CLASSES,
    CONFIG,
    SIDE,
    accuracy,
    annotated,
    fitted,
    slide_of,
    sources,
    steps,
)


@pytest.fixture(scope="module")
def slide():
    return slide_of()


def test_instant_head_tells_two_textures_apart(slide):
    a = annotated()
    learner = fitted(slide, a)
    assert accuracy(learner.model, slide) > 0.9
    assert accuracy(learner.model, slide_of(5)) > 0.9
    assert learner.annotation_version == a.version == 6
    assert [c.id for c in learner.model.metadata.classes] == [4, 9]
    assert learner.model.metadata.sources[0]["fingerprint"] == slide.fingerprint


def test_one_class_is_a_problem_not_an_error(slide):
    a = Annotations((SIDE, SIDE), classes=CLASSES)
    a.paint([(50, 50)], 5, 4)
    learner = Learner(CONFIG, CLASSES)
    learner.set_sources(sources(slide, a))
    assert learner.refit() is None
    assert "stripes" in learner.problem
    with pytest.raises(TrainingError, match="refit"):
        learner.step()


def test_a_correction_is_followed_and_undone(slide):
    a = annotated()
    learner = fitted(slide, a)
    first = learner.model.probabilities(slide.read((0, 0, 128, 128)))
    a.paint([(60, 40), (80, 150)], 20, 9)
    learner.set_sources(sources(slide, a))
    second = learner.refit().probabilities(slide.read((0, 0, 128, 128)))
    assert second[1].mean() > first[1].mean() + 0.05
    a.undo()
    learner.set_sources(sources(slide, a))
    third = learner.refit().probabilities(slide.read((0, 0, 128, 128)))
    np.testing.assert_allclose(third, first, atol=1e-5)
    assert learner.model_version >= 3


def test_fine_steps_compare_and_never_serve_a_worse_share(slide):
    learner = fitted(slide, annotated())
    learner.turns = Turns(first=4)
    found = []
    while len(found) < 1:
        report = learner.step()
        if report.validation:
            found.append(report.validation)
    shares = found[0]["shares"]
    assert set(shares) == {"instant", "0.0", *map(str, SHARES)}
    heads = max(shares["instant"], shares["0.0"])
    assert found[0]["balanced_dice"] == pytest.approx(heads, abs=1e-4) or (
        shares[str(found[0]["share"])] >= heads - NOISE
    )
    before = learner.model
    learner.step()
    assert learner.model is not before
    assert learner.metrics == found[0]
    assert learner.model.net.share == found[0]["share"]
    assert set(found[0]["classes"]) == {"stripes", "dots"}
    assert accuracy(learner.model, slide) > 0.9
    assert np.isfinite(report.loss)


def test_the_best_model_is_kept_and_comparisons_without_gain_are_counted(slide, monkeypatch):
    monkeypatch.setattr("napari_sparseseg.learning.validation.LEAST_STEPS", 1)
    monkeypatch.setattr("napari_sparseseg.learning.validation.TIME_SHARE", 100)
    a = annotated()
    learner = fitted(slide, a)
    learner.turns = Turns(first=1)
    scores, served, best, stale = [], None, -1.0, 0
    while len(scores) < 5:
        report = learner.step()
        if report.validation:
            scores.append(report.validation["balanced_dice"])
            gained = scores[-1] > best
            stale = (0 if gained else stale + 1) if len(scores) > 1 else 0
            served = scores[-1] if scores[-1] >= best - KEEP_NOISE else served
            best = max(best, scores[-1])
            assert learner.metrics["balanced_dice"] == served
            assert learner.turns.stale == stale
    a.paint([(100, 50), (100, 150)], 5, 4)
    learner.set_sources(sources(slide, a))
    assert learner.turns.stale == 0


def served(learner):
    return torch.cat([p.flatten() for p in learner.model.net.decoder.parameters()])


def until_compared(learner):
    while not learner.step().validation:
        pass


def test_a_good_decoder_is_served_as_it_learns_on_and_a_worse_one_gives_way(slide, monkeypatch):
    monkeypatch.setattr("napari_sparseseg.learning.learner.PUBLISH_STEPS", 2)
    monkeypatch.setattr("napari_sparseseg.learning.validation.LEAST_STEPS", 8)
    monkeypatch.setattr("napari_sparseseg.learning.validation.TIME_SHARE", 1000)
    monkeypatch.setattr("napari_sparseseg.learning.validation.NOISE", 1.0)  # the decoder has a share from the first on
    learner = fitted(slide, annotated())
    learner.turns = Turns(first=4)
    until_compared(learner)
    learner.step()
    good = served(learner)
    assert learner.model.net.share > 0
    steps(learner, 4)
    assert not torch.equal(served(learner), good)  # newer weights, before they were compared
    monkeypatch.setattr(Turns, "keeps_up", lambda *_: False)
    until_compared(learner)
    steps(learner, 4)
    learner.refit()
    assert torch.equal(served(learner), good)
    monkeypatch.undo()
    monkeypatch.setattr("napari_sparseseg.learning.learner.PUBLISH_STEPS", 2)
    learner.turns = Turns(first=learner.step_count + 1)
    until_compared(learner)
    learner.step()
    assert not torch.equal(served(learner), good)


def test_held_out_strokes_are_swapped_and_then_kept_out_of_training(slide, monkeypatch):
    monkeypatch.setattr("napari_sparseseg.learning.validation.SWAP_AFTER", 1)
    a = annotated()
    learner = fitted(slide, a)
    learner.turns = Turns(first=1)

    def held():
        return {u.stroke.id for units in learner.held.exclude.values() for u in units}

    before = held()
    while not learner.step().validation:
        pass
    assert before
    assert held()
    assert not before & held()
    ends = [tuple(map(int, p)) for s in a.snapshot().strokes if s.id in held() for p in s.points]
    seen = 0
    for _ in range(10):
        batch = learner._patches.draw(2)
        for labels, (_, top, left) in zip(batch.labels, batch.origins, strict=True):
            inside = [
                (y - top, x - left) for y, x in ends if 0 <= y - top < len(labels) and 0 <= x - left < len(labels)
            ]
            assert not any(labels[at] for at in inside)
            seen += len(inside)
    assert seen > 0


def test_classes_come_and_go_without_starting_over(slide):
    a = annotated()
    learner = fitted(slide, a)
    steps(learner, 3)
    third = ClassDef(200, "edge", "#009e73")
    a.set_classes((CLASSES[1], third, dataclasses.replace(CLASSES[0], name="lines")))
    a.paint([(20, 192), (360, 192)], 6, 200)
    learner.set_classes(a.classes)
    learner.set_sources(sources(slide, a))
    model = learner.refit()
    assert [c.id for c in model.metadata.classes] == [9, 200, 4]
    assert model.metadata.classes[2].name == "lines"
    labels, _ = predict_region(model, slide, Box(0, 0, SIDE, SIDE), slide.frame(1.0))
    assert (labels == 200).any()
    report = steps(learner, 2)
    assert report.step == 5
    a.set_classes((CLASSES[0], CLASSES[1]))
    learner.set_classes(a.classes)
    learner.set_sources(sources(slide, a))
    assert accuracy(learner.refit(), slide) > 0.9


def test_checkpoint_goes_on_where_it_ended(slide, tmp_path):
    a = annotated()
    learner = fitted(slide, a)
    steps(learner, 3)
    learner.checkpoint(tmp_path / "c.safetensors")
    again = Learner.resume(tmp_path / "c.safetensors", device="cpu")
    assert again.step_count == 3
    pixels = slide.read((100, 100, 128, 128))
    np.testing.assert_array_equal(again.model.probabilities(pixels), learner.model.probabilities(pixels))
    again.set_sources(sources(slide, a))
    again.refit()
    steps(again, 1)
    assert again.step_count == 4
    before, after = learner._trainer.averaged.stages[0].mix.weight, again._trainer.averaged.stages[0].mix.weight
    assert 0 < float((before - after).abs().max()) < 0.02


def test_a_model_goes_on_to_another_slide_without_forgetting(slide, tmp_path):
    fitted(slide, annotated()).checkpoint(tmp_path / "c.safetensors")
    other = slide_of(7)
    a = Annotations((SIDE, SIDE), classes=CLASSES)
    a.paint([(60, 40), (80, 150)], 5, 4)
    alone = Learner(CONFIG, CLASSES)
    alone.set_sources(sources(other, a))
    assert alone.refit() is None
    learner = fitted(other, a, model=load_model(tmp_path / "c.safetensors", device="cpu"))
    assert accuracy(learner.model, other) > 0.9


def test_corrected_labels_are_not_remembered(slide, tmp_path):
    fitted(slide, annotated(flip=True)).checkpoint(tmp_path / "c.safetensors")
    learner = fitted(slide, annotated(), model=load_model(tmp_path / "c.safetensors", device="cpu"))
    assert accuracy(learner.model, slide) > 0.9


def test_a_seed_gives_one_result(slide):
    runs = []
    for _ in range(2):
        learner = fitted(slide, annotated())
        learner.turns = Turns(first=10**9)
        steps(learner, 2)
        runs.append([p.clone() for p in learner._trainer.averaged.parameters()])
    for p, q in zip(*runs, strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())


def test_later_the_decoder_is_trained_with_an_encoder_of_its_own(slide, monkeypatch, tmp_path):
    monkeypatch.setattr("napari_sparseseg.learning.learner.UNFREEZE_AFTER", 2)
    learner = fitted(slide, annotated())
    learner.turns = Turns(first=4)
    steps(learner, 2)
    frozen = [p.clone() for p in learner._features.parameters()]
    while not learner.step().validation or learner._fine.tuned is None:
        pass
    tuned = learner._trainer.averaged.tuned
    assert learner.step_count >= 4
    moved = [float((p - q).abs().max()) for p, q in zip(tuned.parameters(), frozen, strict=True)]
    assert 0 < max(moved) < 1e-3
    for p, q in zip(learner._features.parameters(), frozen, strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())
    learner._share = 0.5
    learner.checkpoint(tmp_path / "c.safetensors")
    pixels = slide.read((100, 100, 128, 128))
    loaded = load_model(tmp_path / "c.safetensors", device="cpu")
    np.testing.assert_array_equal(loaded.probabilities(pixels), learner.model.probabilities(pixels))
    shared = copy.deepcopy(loaded.net)
    shared.decoder.tuned = None
    image = loaded.scale.unit(pixels[None])
    assert float((shared(image) - loaded.net(image)).detach().abs().max()) > 0
    again = Learner.resume(tmp_path / "c.safetensors", device="cpu")
    again.set_sources(sources(slide, annotated()))
    again.refit()
    steps(again, 1)
    assert again._trainer.averaged.tuned is not None


def test_plain_unet_learns_from_scratch(slide):
    learner = fitted(slide, annotated(), dataclasses.replace(CONFIG, architecture="scratch"))
    first = learner.model
    losses = [steps(learner, 1).loss for _ in range(21)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert learner.model is not first
    assert learner.model.metadata.step == 10  # that of its first comparison


def test_16_bit_channels_are_scaled_to_what_they_hold():
    image = two_textures(SIDE).astype(np.uint16) * 37 + 500
    slide = ArraySlide(image[..., [0, 1, 2, 0, 1]], mpp=1.0, channels=("DAPI", "CD3", "CD8", "CD20", "PanCK"))
    learner = fitted(slide, annotated())
    assert learner.model.metadata.channels == ("DAPI", "CD3", "CD8", "CD20", "PanCK")
    assert learner.model.scale.low[0] > 500
    assert accuracy(learner.model, slide) > 0.9
    learner.turns = Turns(first=10**9)
    assert np.isfinite(steps(learner, 2).loss)
