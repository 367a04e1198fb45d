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
from napari_sparseseg.learning.holdout import HeldOut
from napari_sparseseg.learning.learner import Learner, LearnerSettings
from napari_sparseseg.learning.model import load_model
from napari_sparseseg.learning.validation import PRIOR, ValidationSchedule, ValidationSettings
from napari_sparseseg.prediction.tiles import predict_region
from napari_sparseseg.slides.backends.array import ArraySlide
from tests.helpers.data import two_textures
from tests.helpers.texture_scene import (
    CLASSES,
    CONFIG,
    NEVER,
    SIDE,
    accuracy,
    annotated,
    comparing,
    fitted,
    slide_of,
    sources,
    steps,
    until_compared,
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


@pytest.mark.parametrize(("noise", "mixed"), [(-2.0, False), (1.0, True)], ids=["a clear gain", "anything"])
def test_the_decoder_has_a_share_where_it_is_not_below_the_head_by_more_than_noise(slide, noise, mixed):
    learner = fitted(slide, annotated(), settings=comparing(first=4, noise=noise))
    report = until_compared(learner)
    found = report.validation
    assert set(found["shares"]) == {"instant", "0.0", "0.3", "0.5", "0.8"}
    plain, augmented = found["shares"]["instant"], found["shares"]["0.0"]
    heads = plain if plain > augmented + ValidationSettings().keep_noise else augmented
    # Dice lies in 0..1: no mixture can be better by 2, and none can be worse by more than 1.
    assert found["share"] == (0.3 if mixed else 0)  # no more for so young a decoder
    expected = found["shares"][str(found["share"])] if mixed else heads
    assert found["balanced_dice"] == pytest.approx(expected, abs=1e-4)
    before = learner.model
    learner.step()
    assert learner.model is not before
    assert learner.metrics == found
    assert learner.model.net.share == found["share"]
    assert set(found["classes"]) == {"stripes", "dots"}
    assert learner.model.net.temperature == found["temperature"] >= 1
    assert 0 <= found["unsure_below"] <= 1
    assert accuracy(learner.model, slide) > 0.9
    assert np.isfinite(report.loss)


def test_the_best_model_is_kept_and_comparisons_without_gain_are_counted(slide):
    a = annotated()
    learner = fitted(slide, a, settings=comparing(first=1, least_steps=1, time_share=100))
    margin = ValidationSettings().keep_noise
    scores, served, best, stale = [], -1.0, -1.0, 0
    while len(scores) < 5:
        report = learner.step()
        if report.validation:
            scores.append(report.validation["balanced_dice"])
            gained = scores[-1] > best
            stale = (0 if gained else stale + 1) if len(scores) > 1 else 0
            # Beyond the margin the spread over the windows decides; see the schedule's own test.
            shown = learner.metrics["balanced_dice"]
            assert shown == scores[-1] if scores[-1] >= served - margin else shown in (served, scores[-1])
            served, best = shown, max(best, scores[-1])
            assert learner.schedule.stale == stale
    a.paint([(100, 50), (100, 150)], 5, 4)
    learner.set_sources(sources(slide, a))
    assert learner.schedule.stale == 0


def served(learner):
    return torch.cat([p.flatten() for p in learner.model.net.decoder.parameters()])


def test_a_good_decoder_is_served_as_it_learns_on(slide):
    # With this much noise the decoder has a share from the first comparison on.
    settings = comparing(LearnerSettings(publish_steps=2), first=4, noise=1.0)
    learner = fitted(slide, annotated(), settings=settings)
    until_compared(learner)
    learner.step()
    good = served(learner)
    assert learner.model.net.share > 0
    steps(learner, 4)
    assert not torch.equal(served(learner), good)  # newer weights, before they were compared


def test_a_worse_decoder_gives_way_until_a_good_one_comes(slide):
    # A margin of -1: only a gain of a whole Dice would do, hence every later decoder counts as worse than the first.
    settings = comparing(
        LearnerSettings(publish_steps=2), first=4, noise=1.0, keep_noise=-1.0, least_steps=8, time_share=1000
    )
    learner = fitted(slide, annotated(), settings=settings)
    until_compared(learner)
    learner.step()
    good = served(learner)
    until_compared(learner)
    steps(learner, 4)
    learner.refit()
    assert torch.equal(served(learner), good)
    learner.schedule = ValidationSchedule(ValidationSettings(first=learner.step_count + 1))
    until_compared(learner)
    learner.step()
    assert not torch.equal(served(learner), good)


def test_held_out_strokes_are_swapped_and_then_left_out_of_training(slide):
    a = annotated()
    learner = fitted(slide, a, settings=comparing(first=1, swap_after=1))

    def held():
        return {u.stroke.id for units in learner.held.exclude.values() for u in units}

    before = held()
    until_compared(learner)
    assert before
    assert held()
    assert not before & held()
    ends = [tuple(map(int, p)) for s in a.snapshot().strokes if s.id in held() for p in s.points]
    seen = 0
    for _ in range(10):
        batch = learner.patches.draw(2)
        for labels, (_, top, left) in zip(batch.labels, batch.origins, strict=True):
            inside = [
                (y - top, x - left) for y, x in ends if 0 <= y - top < len(labels) and 0 <= x - left < len(labels)
            ]
            assert not any(labels[at] for at in inside)
            seen += len(inside)
    assert seen > 0


def test_odd_slides_decide_nothing_and_give_way_at_once():
    """Of four slides the one held out has its classes exchanged: no candidate predicts it, however good it is."""
    slides = [slide_of(k) for k in range(4)]

    def labelled(odd=None):
        return [sources(slide, annotated(flip=k == odd))[0] for k, slide in enumerate(slides)]

    chooser = HeldOut(CONFIG.seed)
    chooser.update(labelled(), CLASSES)
    ((odd, _),) = chooser.exclude.items()
    learner = Learner(CONFIG, CLASSES, settings=comparing(first=2, settled=2, ripe=(0, 2, 3), swap_after=10**6))
    learner.set_sources(labelled(odd))
    learner.refit()
    report = until_compared(learner)
    assert report.validation["balanced_dice"] < 0.3
    assert report.validation["share"] == PRIOR
    assert report.validation["temperature"] == 1.0
    assert odd not in learner.held.exclude
    learner.step()
    assert learner.model.net.share == PRIOR
    assert not learner.schedule.stale


def counted(learner):
    """Counts the images that the encoder of a learner sees from now on."""
    images = []
    learner.cache.features.encoder.register_forward_pre_hook(lambda _module, given: images.append(len(given[0])))
    return images


@pytest.mark.parametrize("change", [{"balancing": "mini-batch"}, {"min_pixels": 50}, {"learning_rate": 1e-4}])
def test_settings_that_come_after_the_features_encode_nothing_anew(slide, change):
    a = annotated()
    learner = fitted(slide, a)
    steps(learner, 2)
    images = counted(learner)
    assert learner.reconfigure(dataclasses.replace(CONFIG, **change))
    learner.set_sources(sources(slide, a))
    model = learner.refit()
    assert images == []
    assert learner.config == model.metadata.config == dataclasses.replace(CONFIG, **change)
    # The head is what a fresh learner with these settings would have fitted.
    fresh = fitted(slide, a, dataclasses.replace(CONFIG, **change)).model.net.head
    for p, q in zip(model.net.head.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-3)
    assert steps(learner, 1).step == learner.step_count > 0


def test_another_network_device_or_seed_needs_another_learner(slide):
    learner = fitted(slide, annotated())
    for change in ({"encoder": "resnet18"}, {"architecture": "scratch"}, {"device": "auto"}, {"seed": 5}):
        assert not learner.reconfigure(dataclasses.replace(CONFIG, **change))
    assert learner.config == CONFIG
    assert learner.reconfigure(CONFIG)


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


def resumed(path):
    """A learner that continues from a checkpoint, as a session makes one."""
    model = load_model(path, device="cpu")
    return Learner(model.metadata.config, model.metadata.classes, model=model)


def test_checkpoint_goes_on_where_it_ended(slide, tmp_path):
    a = annotated()
    learner = fitted(slide, a)
    steps(learner, 3)
    learner.checkpoint(tmp_path / "c.safetensors")
    again = resumed(tmp_path / "c.safetensors")
    assert again.step_count == 3
    pixels = slide.read((100, 100, 128, 128))
    np.testing.assert_array_equal(again.model.probabilities(pixels), learner.model.probabilities(pixels))
    again.set_sources(sources(slide, a))
    again.refit()
    steps(again, 1)
    assert again.step_count == 4
    before, after = learner.trainer.averaged.stages[0].mix.weight, again.trainer.averaged.stages[0].mix.weight
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
        learner = fitted(slide, annotated(), settings=NEVER)
        steps(learner, 2)
        runs.append([p.clone() for p in learner.trainer.averaged.parameters()])
    for p, q in zip(*runs, strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())


def test_later_the_decoder_is_trained_with_an_encoder_of_its_own(slide, tmp_path):
    # With this much noise the decoder has a share from its first comparison on.
    settings = comparing(LearnerSettings(unfreeze_after=2), first=4, noise=1.0)
    learner = fitted(slide, annotated(), settings=settings)
    steps(learner, 2)
    frozen = [p.clone() for p in learner.cache.features.parameters()]
    until_compared(learner)
    tuned = learner.trainer.averaged.tuned
    assert learner.step_count >= 4
    moved = [float((p - q).abs().max()) for p, q in zip(tuned.parameters(), frozen, strict=True)]
    assert 0 < max(moved) < 1e-3
    for p, q in zip(learner.cache.features.parameters(), frozen, strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())
    learner.step()
    learner.checkpoint(tmp_path / "c.safetensors")
    pixels = slide.read((100, 100, 128, 128))
    loaded = load_model(tmp_path / "c.safetensors", device="cpu")
    np.testing.assert_array_equal(loaded.probabilities(pixels), learner.model.probabilities(pixels))
    shared = copy.deepcopy(loaded.net)
    shared.decoder.tuned = None
    image = loaded.scale.unit(pixels[None])
    assert float((shared(image) - loaded.net(image)).detach().abs().max()) > 0
    again = resumed(tmp_path / "c.safetensors")
    again.set_sources(sources(slide, annotated()))
    again.refit()
    steps(again, 1)
    assert again.trainer.averaged.tuned is not None


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
    learner = fitted(slide, annotated(), settings=NEVER)
    assert learner.model.metadata.channels == ("DAPI", "CD3", "CD8", "CD20", "PanCK")
    assert learner.model.scale.low[0] > 500
    assert accuracy(learner.model, slide) > 0.9
    assert np.isfinite(steps(learner, 2).loss)
