"""Pseudo-labels: what the averaged decoder is sure of on unlabelled pixels of labelled cells, and nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from napari_sparseseg.config import class_ids
from napari_sparseseg.learning.augment import Augmentation, augment
from napari_sparseseg.learning.feature_cache import CELL, MARGIN
from napari_sparseseg.learning.learner import LearnerSettings
from napari_sparseseg.learning.pseudo_labels import PseudoLabels, PseudoLabelSettings
from napari_sparseseg.learning.trainer import PSEUDO_WEIGHT
from napari_sparseseg.learning.validation import SURE, Reliability
from napari_sparseseg.slides import ArraySlide
from tests.helpers.data import two_textures
from tests.helpers.texture_scene import CLASSES, CONFIG, SIDE, Slow, annotated, fitted, slide_of, steps
from tests.helpers.trainer_tasks import batch, finish, plain_task, trainer_of


@pytest.fixture(scope="module")
def trained():
    """A learner with a decoder that has had some steps."""
    learner = fitted(slide_of(), annotated())
    steps(learner, 12)
    learner.stop_reading()
    return learner


def settled(learner, trusted=True, **settings):
    """Pseudo-labels after as many batches as they wait for."""
    settings = PseudoLabelSettings(**settings)
    pseudo = PseudoLabels(learner.cache, class_ids(learner.classes), settings)
    pseudo.trusted = trusted
    for _ in range(settings.settle):
        one = learner.patches.draw(1)
        assert pseudo.fill(one, learner.sources, learner.trainer.averaged) is one
    return pseudo


def sure(learner, cell):
    """Ids that the decoder is sure of in a cell, by the decoder's own forward pass and plain numpy."""
    pixels = learner.sources[0].read_pixels(cell.grown(MARGIN))
    image = torch.from_numpy(pixels[None].astype(np.float32) / 255).permute(0, 3, 1, 2)
    with torch.inference_mode():
        scores = learner.trainer.averaged(learner.cache.features(image))
        scores = F.interpolate(scores, size=pixels.shape[:2], mode="bilinear", align_corners=False)[0].numpy()
    e = np.exp(scores - scores.max(0))
    found = (e / e.sum(0))[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
    ids = np.array([c.id for c in CLASSES])[found.argmax(0)]
    return np.where(found.max(0) > SURE, ids, 0), found.max(0)


def test_they_are_what_the_decoder_is_sure_of_where_nothing_is_labelled(trained):
    pseudo = settled(trained, reuse=0)  # every cell in turn, so that all are made after some batches
    compared = 0
    for _ in range(40):
        one = trained.patches.draw(2)
        out = pseudo.fill(one, trained.sources, trained.trainer.averaged)
        assert np.array_equal(out.labels, one.labels)
        assert not (out.pseudo[one.labels > 0]).any()
    for key, (_, found) in pseudo.cells.items():
        expected, certain = sure(trained, key[2])
        beside = np.zeros_like(expected, bool)
        beside[max(0, SIDE - key[2].y) :] = beside[:, max(0, SIDE - key[2].x) :] = True
        assert not found[beside].any()
        clear = ~beside & (np.abs(certain - SURE) > 0.02)  # kept maps are of half precision
        np.testing.assert_array_equal(found[clear], expected[clear])
        compared += clear.sum()
    assert compared > CELL**2
    # In the batch they lie where its pixels are.
    _, y, x = out.origins[0]
    for (row, column), value in np.ndenumerate(out.pseudo[0][::17, ::17]):
        at = y + 17 * row, x + 17 * column
        cell = pseudo.cells.get(trained.cache.key(trained.sources[0], _cell_of(at)))
        known = 0 if cell is None or out.labels[0][17 * row, 17 * column] else cell[1][at[0] % CELL, at[1] % CELL]
        assert value == known


def _cell_of(at):
    from napari_sparseseg.geometry import Box

    return Box(at[0] // CELL * CELL, at[1] // CELL * CELL, CELL, CELL)


def test_none_where_held_out_strokes_do_not_bear_the_decoder_out(trained):
    pseudo = settled(trained, trusted=False)
    one = trained.patches.draw(2)
    assert pseudo.fill(one, trained.sources, trained.trainer.averaged) is one


def test_after_a_stroke_there_are_none_until_training_has_settled(trained):
    pseudo = settled(trained)
    averaged = trained.trainer.averaged
    assert pseudo.fill(trained.patches.draw(1), trained.sources, averaged).pseudo is not None
    pseudo.forget()
    assert pseudo.fill(trained.patches.draw(1), trained.sources, averaged).pseudo is None


def test_a_cell_is_predicted_anew_only_when_it_is_old_and_one_a_step(trained):
    pseudo, reuse = settled(trained), PseudoLabelSettings().reuse
    made, before = [], {}
    for _ in range(2 * reuse):
        pseudo.fill(trained.patches.draw(2), trained.sources, trained.trainer.averaged)
        now = {key: step for key, (step, _) in pseudo.cells.items()}
        changed = {key for key, step in now.items() if before.get(key) != step}
        made.append(len(changed))
        assert all(now[key] - before[key] >= reuse for key in changed & before.keys())
        before = now
    assert max(made) == 1
    assert 1 < len(pseudo.cells) <= len(trained.cache.cells)


def test_only_so_many_cells_are_kept_and_the_oldest_goes(trained):
    pseudo = settled(trained, reuse=0, most_cells=2)
    for _ in range(30):
        pseudo.fill(trained.patches.draw(2), trained.sources, trained.trainer.averaged)
        made = [step for step, _ in pseudo.cells.values()]
        assert len(made) <= 2
        assert made == sorted(made)
    assert made[-1] > made[0]


def test_they_are_moved_as_labels_are():
    one = batch()
    one = dataclasses.replace(one, pseudo=one.labels.copy())
    out = augment(one, np.random.default_rng(3), Augmentation(rotation=1))
    np.testing.assert_array_equal(out.pseudo, out.labels)
    assert (out.labels != one.labels).any()
    alone = augment(dataclasses.replace(one, pseudo=None), np.random.default_rng(3), Augmentation(rotation=1))
    assert alone.pseudo is None
    np.testing.assert_array_equal(alone.pixels, out.pixels)


@pytest.mark.parametrize("part", [4, 3, 1])
def test_their_loss_is_a_term_of_its_own_over_all_pixels(part):
    one = batch()
    pseudo = np.where(one.labels == 0, np.random.default_rng(1).choice([0, 5, 2], one.labels.shape), 0).astype(np.uint8)
    plain = Augmentation.none()
    trainer = trainer_of(plain_task(), augmentation=plain, part=part)
    with torch.no_grad():
        logits = trainer.task.weights.logits(torch.from_numpy(one.pixels).permute(0, 3, 1, 2) / 255).numpy()
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    by_hand = -(log_p[:, 0][pseudo == 5].sum() + log_p[:, 1][pseudo == 2].sum()) / pseudo.size
    alone = finish(trainer_of(plain_task(), augmentation=plain), lambda _n: one)
    both = finish(trainer, lambda _n: dataclasses.replace(one, pseudo=pseudo))
    assert both == pytest.approx(alone + PSEUDO_WEIGHT * by_hand, rel=1e-4)


def test_reliable_is_the_mean_over_held_out_classes_of_right_among_sure():
    labels = np.array([[4, 4, 4, 4, 9, 9, 0, 0]], np.uint8)
    # Sure of 4, 4, 9, nothing, 9, 4; the last two are not labelled.
    first = np.array([[0.9, 0.9, 0.1, 0.6, 0.1, 0.9, 0.9, 0.1]], np.float32)
    found = Reliability((4, 9))
    assert found.value == 0.0
    found.add(labels, np.stack([first, 1 - first]))
    assert found.value == pytest.approx((2 / 3 + 1 / 2) / 2)
    # A class that is held out and of which the decoder is never sure counts 0.
    timid = Reliability((4, 9))
    timid.add(labels, np.stack([first, 0.15 + 0 * first]))
    assert timid.value == pytest.approx((2 / 3 + 0) / 2)


def test_with_them_a_seed_and_a_number_of_steps_give_one_model_however_fast_reading_is():
    settings = LearnerSettings(pseudo=PseudoLabelSettings(settle=2, reliable=0.0))
    runs = []
    for kind in (ArraySlide, Slow):
        learner = fitted(kind(two_textures(SIDE, 0), mpp=1.0, name="textures"), annotated(), CONFIG, settings=settings)
        used = 0
        while learner.step_count < 24:
            learner.step()
            used += learner.trainer is not None and learner.trainer.uses_pseudo_labels
        learner.stop_reading()
        runs.append((used, learner.trainer.averaged.state_dict()))
    assert runs[0][0] == runs[1][0] > 3
    for name, value in runs[0][1].items():
        np.testing.assert_array_equal(value.numpy(), runs[1][1][name].numpy(), err_msg=name)
