"""Pseudo-labels: what the averaged decoder is sure of on unlabelled pixels of labelled cells, and nothing else."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from napari_sparseseg.config import class_ids
from napari_sparseseg.learning import learner as learner_module
from napari_sparseseg.learning import pseudo_labels
from napari_sparseseg.learning.augment import Augmentation, augment
from napari_sparseseg.learning.feature_cache import CELL, MARGIN
from napari_sparseseg.learning.pseudo_labels import KEEP, SETTLE, PseudoLabels
from napari_sparseseg.learning.trainer import PSEUDO_WEIGHT
from napari_sparseseg.learning.validation import SURE, Comparison
from napari_sparseseg.slides import ArraySlide
from tests.helpers.data import two_textures
from tests.helpers.texture_scene import CLASSES, CONFIG, SIDE, Slow, annotated, fitted, slide_of, steps
from tests.helpers.trainer_tasks import batch, finish, plain_task, trainer_of


@pytest.fixture(scope="module")
def trained():
    """A learner with a decoder that has had some steps."""
    learner = fitted(slide_of(), annotated())
    steps(learner, 12)
    learner.rest()
    return learner


def settled(learner, trusted=True):
    """Pseudo-labels after as many batches as they wait for."""
    pseudo = PseudoLabels(learner._bank, class_ids(learner.classes))
    pseudo.trusted = trusted
    for _ in range(SETTLE):
        one = learner._patches.draw(1)
        assert pseudo.fill(one, learner._sources, learner._trainer.averaged) is one
    return pseudo


def sure(learner, cell):
    """Ids that the decoder is sure of in a cell, by the decoder's own forward pass and plain numpy."""
    pixels = learner._sources[0].read_pixels(cell.grown(MARGIN))
    image = torch.from_numpy(pixels[None].astype(np.float32) / 255).permute(0, 3, 1, 2)
    with torch.inference_mode():
        scores = learner._trainer.averaged(learner._bank.features(image))
        scores = F.interpolate(scores, size=pixels.shape[:2], mode="bilinear", align_corners=False)[0].numpy()
    e = np.exp(scores - scores.max(0))
    found = (e / e.sum(0))[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
    ids = np.array([c.id for c in CLASSES])[found.argmax(0)]
    return np.where(found.max(0) > SURE, ids, 0), found.max(0)


def test_they_are_what_the_decoder_is_sure_of_where_nothing_is_labelled(trained, monkeypatch):
    monkeypatch.setattr(pseudo_labels, "KEEP", 0)  # every cell in turn, so that all are made after some batches
    pseudo = settled(trained)
    compared = 0
    for _ in range(40):
        one = trained._patches.draw(2)
        out = pseudo.fill(one, trained._sources, trained._trainer.averaged)
        assert np.array_equal(out.labels, one.labels)
        assert not (out.pseudo[one.labels > 0]).any()
    for key, (_, found) in pseudo._cells.items():
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
        cell = pseudo._cells.get(trained._bank.key(trained._sources[0], _cell_of(at)))
        known = 0 if cell is None or out.labels[0][17 * row, 17 * column] else cell[1][at[0] % CELL, at[1] % CELL]
        assert value == known


def _cell_of(at):
    from napari_sparseseg.geometry import Box

    return Box(at[0] // CELL * CELL, at[1] // CELL * CELL, CELL, CELL)


def test_none_where_held_out_strokes_do_not_bear_the_decoder_out(trained):
    pseudo = settled(trained, trusted=False)
    one = trained._patches.draw(2)
    assert pseudo.fill(one, trained._sources, trained._trainer.averaged) is one


def test_after_a_stroke_there_are_none_until_training_has_settled(trained):
    pseudo = settled(trained)
    averaged = trained._trainer.averaged
    assert pseudo.fill(trained._patches.draw(1), trained._sources, averaged).pseudo is not None
    pseudo.forget()
    assert pseudo.fill(trained._patches.draw(1), trained._sources, averaged).pseudo is None


def test_a_cell_is_predicted_anew_only_when_it_is_old_and_one_a_step(trained, monkeypatch):
    made = []
    before = PseudoLabels._predict
    monkeypatch.setattr(PseudoLabels, "_predict", lambda self, *a: made.append(a[1]) or before(self, *a))
    pseudo = settled(trained)
    counts = []
    for _ in range(KEEP):
        pseudo.fill(trained._patches.draw(2), trained._sources, trained._trainer.averaged)
        counts.append(len(made))
    assert np.diff([0, *counts]).max() == 1
    assert len(set(made)) == len(made)
    assert 1 < len(made) <= len(trained._bank._cells)


def test_only_so_many_cells_are_kept_and_the_oldest_goes(trained, monkeypatch):
    monkeypatch.setattr(pseudo_labels, "KEEP", 0)
    monkeypatch.setattr(pseudo_labels, "MOST_CELLS", 2)
    pseudo = settled(trained)
    for _ in range(30):
        pseudo.fill(trained._patches.draw(2), trained._sources, trained._trainer.averaged)
        made = [step for step, _ in pseudo._cells.values()]
        assert len(made) <= 2
        assert made == sorted(made)
    assert made[-1] > made[0]


def test_they_are_moved_as_labels_are():
    one = batch()
    one = dataclasses.replace(one, pseudo=one.labels.copy())
    out = augment(one, np.random.default_rng(3), Augmentation(rotation=1, elastic=3))
    np.testing.assert_array_equal(out.pseudo, out.labels)
    assert (out.labels != one.labels).any()
    alone = augment(
        dataclasses.replace(one, pseudo=None), np.random.default_rng(3), Augmentation(rotation=1, elastic=3)
    )
    assert alone.pseudo is None
    np.testing.assert_array_equal(alone.pixels, out.pixels)


@pytest.mark.parametrize("part", [4, 3, 1])
def test_their_loss_is_a_term_of_its_own_over_all_pixels(monkeypatch, part):
    monkeypatch.setattr("napari_sparseseg.learning.trainer.augment", lambda b, *_, **__: b)
    one = batch()
    pseudo = np.where(one.labels == 0, np.random.default_rng(1).choice([0, 5, 2], one.labels.shape), 0).astype(np.uint8)
    trainer = trainer_of(plain_task())
    trainer._part = part
    with torch.no_grad():
        logits = trainer.task.weights.logits(torch.from_numpy(one.pixels).permute(0, 3, 1, 2) / 255).numpy()
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    by_hand = -(log_p[:, 0][pseudo == 5].sum() + log_p[:, 1][pseudo == 2].sum()) / pseudo.size
    alone = finish(trainer_of(plain_task()), lambda _n: one)
    both = finish(trainer, lambda _n: dataclasses.replace(one, pseudo=pseudo))
    assert both == pytest.approx(alone + PSEUDO_WEIGHT * by_hand, rel=1e-4)


def test_reliable_is_the_mean_over_held_out_classes_of_right_among_sure(trained):
    given = (copy.deepcopy(trained._trainer.averaged), (trained.classes, trained.config))
    comparison = Comparison(trained._bank, trained.held, trained._sources, *given)
    labels = np.array([[4, 4, 4, 4, 9, 9, 0, 0]], np.uint8)
    first = np.array(
        [[0.9, 0.9, 0.1, 0.6, 0.1, 0.9, 0.9, 0.1]], np.float32
    )  # sure of 4, 4, 9, -, 9, 4; rest unlabelled
    comparison._count_sure(labels, np.stack([first, 1 - first]))
    comparison._decide()
    assert comparison.reliable == pytest.approx((2 / 3 + 1 / 2) / 2)
    # A class that is held out and of which the decoder is never sure counts nothing.
    comparison._sure[1] = comparison._right[1] = 0
    comparison._decide()
    assert comparison.reliable == pytest.approx(1 / 3)


def test_with_them_a_seed_and_a_number_of_steps_give_one_model_however_fast_reading_is(monkeypatch):
    monkeypatch.setattr(pseudo_labels, "SETTLE", 2)
    monkeypatch.setattr(learner_module, "RELIABLE", 0.0)
    runs = []
    for kind in (ArraySlide, Slow):
        learner = fitted(kind(two_textures(SIDE, 0), mpp=1.0, name="textures"), annotated(), CONFIG)
        used = 0
        while learner.step_count < 24:
            learner.step()
            used += learner._trainer is not None and learner._trainer._pseudo is not None
        learner.rest()
        runs.append((used, learner._trainer.averaged.state_dict()))
    assert runs[0][0] == runs[1][0] > 3
    for name, value in runs[0][1].items():
        np.testing.assert_array_equal(value.numpy(), runs[1][1][name].numpy(), err_msg=name)
