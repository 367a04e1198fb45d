"""Scores against hand numbers, scikit-learn and loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from napari_sparseseg import metrics
from napari_sparseseg.errors import SparseSegError

CLASSES = (2, 7, 3)


@st.composite
def label_pairs(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.tuples(st.integers(0, 6), st.integers(1, 6)))
    # Truth may hold a class that is not asked for (9); predictions may hold 0 and other ids.
    return rng.choice([0, 2, 3, 7, 9], shape).astype(np.uint8), rng.choice([0, 2, 3, 7, 255], shape)


@given(label_pairs())
@settings(deadline=None)
def test_confusion_counts_every_labelled_pixel_once(pair):
    truth, predicted = pair
    counts = metrics.confusion(truth, predicted, CLASSES)
    assert counts.shape == (3, 4)
    for i, t in enumerate(CLASSES):
        for j, p in enumerate(CLASSES):
            assert counts[i, j] == np.count_nonzero((truth == t) & (predicted == p))
        assert counts[i].sum() == (truth == t).sum()


@given(label_pairs())
@settings(deadline=None)
def test_scores_per_class_agree_with_scikit_learn(pair):
    truth, predicted = pair
    counts = metrics.confusion(truth, predicted, CLASSES)
    known = np.isin(truth, CLASSES)
    t, p = truth[known].astype(int), predicted[known].astype(int)
    if not t.size:
        assert np.isnan([metrics.dice(counts), metrics.recall(counts), metrics.precision(counts)]).all()
        return
    nan = {"labels": list(CLASSES), "average": None, "zero_division": np.nan}
    zero = {**nan, "zero_division": 0.0}
    absent = ~np.isin(CLASSES, t)
    np.testing.assert_allclose(metrics.recall(counts), sk.recall_score(t, p, **nan))
    np.testing.assert_allclose(metrics.precision(counts), sk.precision_score(t, p, **nan))
    expected = sk.f1_score(t, p, **zero)
    expected[absent] = np.nan
    np.testing.assert_allclose(metrics.dice(counts), expected)


def test_hand_numbers():
    """8 of 10 and 1 of 2 right: balanced, the rows are (0.8, 0.2) and (0.5, 0.5)."""
    counts = np.array([[8, 2, 0], [1, 1, 0]])
    np.testing.assert_allclose(metrics.dice(counts), [16 / 19, 2 / 5])
    np.testing.assert_allclose(metrics.balanced(counts)[:, :2], [[0.8, 0.2], [0.5, 0.5]])
    assert metrics.balanced_dice(counts) == pytest.approx((1.6 / 2.3 + 1.0 / 1.7) / 2)


def test_stroke_length_does_not_change_the_balanced_score():
    counts = np.array([[8, 2], [1, 1]])
    longer = counts * np.array([[1], [50]])
    assert metrics.balanced_dice(longer) == pytest.approx(metrics.balanced_dice(counts))
    assert not np.allclose(metrics.dice(longer), metrics.dice(counts))


def test_absent_classes_are_nan_and_left_out_of_the_mean():
    truth, predicted = np.array([2, 2, 7, 7]), np.array([2, 3, 7, 0])
    counts = metrics.confusion(truth, predicted, CLASSES)
    np.testing.assert_allclose(metrics.recall(counts), [0.5, 0.5, np.nan])
    np.testing.assert_allclose(metrics.precision(counts), [1.0, 1.0, 0.0])
    np.testing.assert_allclose(metrics.dice(counts), [2 / 3, 2 / 3, np.nan])
    assert metrics.balanced_dice(counts) == pytest.approx(2 / 3)
    assert np.isnan(metrics.balanced_dice(np.zeros((3, 4))))


def test_calibration_error_of_hand_made_bins():
    """Ten pixels at 0.95, nine right; ten at 0.55, five right: errors 0.05 and 0.05."""
    confidence = np.r_[np.full(10, 0.95), np.full(10, 0.55)]
    correct = np.r_[np.ones(9), 0, np.ones(5), np.zeros(5)].astype(bool)
    counts = metrics.calibration_counts(confidence, correct, bins=10)
    assert counts[0].tolist() == [0, 0, 0, 0, 0, 10, 0, 0, 0, 10]
    assert metrics.expected_calibration_error(counts) == pytest.approx(0.05)
    halves = [metrics.calibration_counts(confidence[s], correct[s], bins=10) for s in (slice(0, 7), slice(7, None))]
    np.testing.assert_allclose(halves[0] + halves[1], counts)
    assert np.isnan(metrics.expected_calibration_error(np.zeros((3, 10))))


def test_a_calibrated_predictor_has_almost_no_error_and_a_sure_one_has_all():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.2, 1, 200_000)
    correct = rng.random(200_000) < confidence
    assert metrics.expected_calibration_error(metrics.calibration_counts(confidence, correct)) < 0.01
    sure = metrics.calibration_counts(np.ones(100), np.arange(100) < 60)
    assert metrics.expected_calibration_error(sure) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("truth", "predicted", "classes", "message"),
    [
        (np.zeros((2, 2), int), np.zeros((2, 3), int), (1,), "compare like with like"),
        (np.zeros(2), np.zeros(2, int), (1,), "float64"),
        (np.zeros(2, int), np.full(2, 256), (1,), "256"),
        (np.full(2, -1), np.zeros(2, int), (1,), "-1"),
        (np.zeros(2, int), np.zeros(2, int), (1, 1), "distinct"),
        (np.zeros(2, int), np.zeros(2, int), (0,), r"1\.\.255"),
    ],
)
def test_mistakes_are_refused(truth, predicted, classes, message):
    with pytest.raises(SparseSegError, match=message):
        metrics.confusion(truth, predicted, classes)


def test_balanced_log_loss_by_hand():
    truth = np.array([1, 1, 1, 3, 7])
    p = np.array([[0.5, 0.25, 0.0, 0.9, 0.1], [0.5, 0.75, 1.0, 0.1, 0.9]])
    sums = metrics.log_loss_sums(truth, p, [1, 3])
    np.testing.assert_allclose(sums, [[np.log(2) + np.log(4) + np.log(1000), np.log(10)], [3, 1]])
    assert metrics.balanced_log_loss(sums) == pytest.approx((np.log(8000) / 3 + np.log(10)) / 2)
    assert np.isnan(metrics.balanced_log_loss(np.zeros((2, 3))))
