"""The temperature and the threshold that held-out pixels ask for, against networks whose sureness is known."""

from __future__ import annotations

import numpy as np
import pytest

from napari_sparseseg.learning.calibration import MOST_PIXELS, TEMPERATURES, Calibration, calibrate, thinned


def drawn(sureness, n=20_000, classes=3, seed=0):
    """Scores of a network that is right as often as it says, multiplied by `sureness`, and the truth."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 1.5, (n, classes))
    odds = np.exp(scores)
    truth = (rng.random((n, 1)) > np.cumsum(odds / odds.sum(1, keepdims=True), 1)).sum(1)
    return scores * sureness, truth


@pytest.mark.parametrize("sureness", [1.0, 1.5, 2.5])
def test_the_temperature_undoes_too_much_sureness(sureness):
    scores, truth = drawn(sureness)
    found = calibrate(scores, scores, 0.0, truth)
    assert found.temperature == pytest.approx(sureness, rel=0.12)
    assert found.error < 0.02
    assert found.error <= found.error_before + 1e-9


def test_strokes_never_make_a_network_surer_than_it_is():
    scores, truth = drawn(0.4)
    assert calibrate(scores, scores, 0.5, truth).temperature == 1.0


def test_the_mixture_is_what_is_calibrated():
    scores, truth = drawn(3.0)
    modest = np.zeros_like(scores)
    alone, mixed = (calibrate(scores, modest, share, truth) for share in (0.0, 0.8))
    assert mixed.temperature < alone.temperature


def test_pixels_at_and_above_the_threshold_are_right_nineteen_times_in_twenty():
    scores, truth = drawn(1.0, n=200_000)
    found = calibrate(scores, scores, 0.0, truth)
    fresh, truth = drawn(1.0, n=200_000, seed=1)
    odds = np.exp(fresh / found.temperature)
    sure = (odds.max(1) / odds.sum(1)) >= found.unsure_below
    right = fresh.argmax(1) == truth
    assert right.mean() < 0.8
    assert right[sure].mean() == pytest.approx(0.95, abs=0.01)


def test_a_network_that_is_always_right_or_never_needs_no_threshold():
    scores = np.eye(2)[[0, 1] * 50] * 9
    assert calibrate(scores, scores, 0.0, np.array([0, 1] * 50)).unsure_below == 0.0
    assert calibrate(scores, scores, 0.0, np.array([1, 0] * 50)).unsure_below is None
    assert calibrate(scores, scores, 0.0, np.array([1, 0] * 50)).temperature == TEMPERATURES[-1]


def test_classes_count_the_same_however_long_their_strokes_were():
    rng = np.random.default_rng(0)
    scores, truth = drawn(1.0, classes=2)
    repeated = np.concatenate([np.flatnonzero(truth == 0).repeat(20), np.flatnonzero(truth == 1)])
    long = repeated[rng.permutation(len(repeated))]
    even, lopsided = (calibrate(scores[at], scores[at], 0.0, truth[at]) for at in (np.arange(len(truth)), long))
    assert lopsided.temperature == even.temperature
    assert lopsided.unsure_below == pytest.approx(even.unsure_below, abs=1e-3)


def test_nothing_held_out_says_nothing():
    empty = np.empty((0, 2))
    found = calibrate(empty, empty, 0.5, np.empty(0, int))
    assert found.to_json() == Calibration().to_json() == {"temperature": 1.0, "unsure_below": None}


def test_a_window_gives_some_of_its_labelled_pixels_with_their_class():
    labels = np.zeros((100, 100), np.uint8)
    labels[:60], labels[90:] = 7, 4
    labels[95, 5] = 9
    (rows, columns), truth = thinned(labels, (4, 7), np.random.default_rng(0))
    assert len(truth) == MOST_PIXELS == len(set(zip(rows.tolist(), columns.tolist(), strict=True)))
    np.testing.assert_array_equal(np.array([4, 7])[truth], labels[rows, columns])
