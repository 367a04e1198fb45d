"""The balanced loss against the formulas written out as loops, and against hand numbers."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_sparseseg.balancing import (
    BatchTotals,
    balanced_cross_entropy,
    class_shares,
    count_labels,
    pixel_weights,
    weight_table,
)
from napari_sparseseg.config import Balancing
from napari_sparseseg.errors import SparseSegError

# Hypothesis would fail an example that takes long once, as any does on a busy machine.
untimed = settings(deadline=None)
BALANCINGS = get_args(Balancing)
CLASSES = 5
balancings = st.sampled_from(BALANCINGS)
floors = st.integers(1, 12)
# Class 2 never occurs: ids have a gap. Empty patches come up by themselves, being the simplest example.
label_batches = hnp.arrays(
    np.uint8,
    hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5),
    elements=st.sampled_from([0, 1, 3, 4, 5]),
)
seeds = st.integers(0, 2**32 - 1)


def reference_weights(labels: np.ndarray, balancing: str, min_pixels: int = 1) -> np.ndarray:
    """The formulas at the top of the module, one pixel at a time, in float64."""
    patches = [p for p in labels if p.any()]
    batch_classes = {int(c) for c in labels.ravel() if c}
    weights = np.zeros(labels.shape)
    for b, i, j in np.ndindex(labels.shape):
        c = labels[b, i, j]
        if c == 0:
            continue
        if balancing == "none":
            weights[b, i, j] = 1 / int((labels > 0).sum())
        elif balancing == "instance":
            in_patch = {int(k) for k in labels[b].ravel() if k}
            n = max(int((labels[b] == c).sum()), min_pixels)
            weights[b, i, j] = 1 / (len(patches) * len(in_patch) * n)
        elif balancing == "mini-batch":
            n = max(int((labels == c).sum()), min_pixels)
            weights[b, i, j] = 1 / (len(batch_classes) * n)
        else:
            pytest.fail(f"write the loop for {balancing}")
    return weights


def reference_loss(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    total = 0.0
    for b, i, j in np.ndindex(labels.shape):
        if labels[b, i, j]:
            z = logits[b, :, i, j]
            top = z.max()
            total += weights[b, i, j] * (math.log(sum(math.exp(v - top) for v in z)) + top - z[labels[b, i, j] - 1])
    return total


def reference_gradient(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(softmax - one hot) * w, the derivative of weighted cross-entropy by the logits."""
    e = np.exp(logits - logits.max(1, keepdims=True))
    softmax = e / e.sum(1, keepdims=True)
    onehot = (labels[:, None] == np.arange(1, logits.shape[1] + 1)[None, :, None, None]).astype(float)
    return (softmax - onehot) * weights[:, None]


def random_logits(seed: int, labels: np.ndarray, classes: int = CLASSES) -> np.ndarray:
    b, h, w = labels.shape
    return np.random.default_rng(seed).normal(0, 3, (b, classes, h, w))


@given(label_batches, balancings, floors)
@untimed
def test_weights_follow_the_formulas(labels, balancing, floor):
    weights = pixel_weights(labels, balancing, min_pixels=floor)
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights.numpy(), reference_weights(labels, balancing, floor), rtol=1e-6)


@given(label_batches, balancings)
@untimed
def test_weights_sum_to_one_or_nothing(labels, balancing):
    total = float(pixel_weights(labels, balancing).double().sum())
    assert total == pytest.approx(1.0 if labels.any() else 0.0, abs=1e-6)


@given(label_batches, balancings, floors)
@untimed
def test_a_floor_only_takes_weight_away(labels, balancing, floor):
    plain, floored = pixel_weights(labels, balancing), pixel_weights(labels, balancing, min_pixels=floor)
    assert bool((floored <= plain).all())
    assert bool((floored[torch.from_numpy(labels) > 0] > 0).all())


@given(label_batches, balancings, seeds)
@untimed
def test_loss_and_gradient_follow_the_formulas(labels, balancing, seed):
    logits = random_logits(seed, labels)
    weights = reference_weights(labels, balancing)
    x = torch.from_numpy(logits).requires_grad_()
    loss = balanced_cross_entropy(x, labels, balancing)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(reference_loss(logits, labels, weights), rel=1e-5, abs=1e-7)
    np.testing.assert_allclose(x.grad.numpy(), reference_gradient(logits, labels, weights), rtol=1e-5, atol=1e-8)


@given(label_batches, balancings, floors, seeds, st.data())
@untimed
def test_losses_of_parts_sum_to_the_joint_loss(labels, balancing, floor, seed, data):
    cut = data.draw(st.integers(0, len(labels)))
    logits = torch.from_numpy(random_logits(seed, labels)).requires_grad_()
    joint = balanced_cross_entropy(logits, labels, balancing, min_pixels=floor)
    joint.backward()
    expected, logits.grad = logits.grad, None
    parts = [slice(0, cut), slice(cut, None)]
    # As ranks do it: each part is counted where it lives, and only the packed vectors meet.
    packed = [BatchTotals.of(count_labels(labels[p])).pack() for p in parts]
    totals = BatchTotals.unpack(packed[0] + packed[1])
    losses = [balanced_cross_entropy(logits[p], labels[p], balancing, min_pixels=floor, totals=totals) for p in parts]
    for loss in losses:
        loss.backward()
    assert float(sum(losses).detach()) == pytest.approx(float(joint.detach()), rel=1e-6, abs=1e-9)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-6, atol=1e-9)


@given(label_batches)
@untimed
def test_totals_add_up(labels):
    whole = BatchTotals.of(count_labels(labels))
    parts = [BatchTotals.of(count_labels(labels[i : i + 1])) for i in range(len(labels))]
    joined = parts[0]
    for part in parts[1:]:
        joined = joined + part
    assert int(whole.pixels) == int((labels > 0).sum()) == int(joined.pixels)
    assert int(whole.patches) == sum(bool(p.any()) for p in labels) == int(joined.patches)
    assert whole.n_c.tolist() == [0, *((labels == c).sum() for c in range(1, 256))] == joined.n_c.tolist()


@given(label_batches, balancings, seeds)
@settings(max_examples=40, deadline=None)
def test_autocast_computes_in_float32(labels, balancing, seed):
    logits = random_logits(seed, labels).astype(np.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = torch.from_numpy(logits).requires_grad_()
        loss = balanced_cross_entropy(x, labels, balancing)
        weights = pixel_weights(labels, balancing)
    loss.backward()
    assert loss.dtype == x.grad.dtype == weights.dtype == torch.float32
    expected = reference_weights(labels, balancing)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(x.grad.numpy(), reference_gradient(logits.astype(float), labels, expected), atol=1e-6)
    half = torch.from_numpy(logits).bfloat16()
    rounded = half.float().numpy().astype(float)
    from_half = balanced_cross_entropy(half, labels, balancing)
    assert from_half.dtype == torch.float32
    assert float(from_half) == pytest.approx(reference_loss(rounded, labels, expected), rel=1e-5, abs=1e-6)


def test_hand_numbers():
    """Patch 0: 3 pixels of class 1, 1 of class 4. Patch 1: 2 of class 1. Patch 2: nothing."""
    labels = np.zeros((3, 2, 3), np.uint8)
    labels[0] = [[1, 1, 1], [4, 0, 0]]
    labels[1, 0, :2] = 1
    none, instance, batch = (pixel_weights(labels, b) for b in ("none", "instance", "mini-batch"))
    assert none[0, 0, 0] == none[0, 1, 0] == none[1, 0, 0] == pytest.approx(1 / 6)
    assert instance[0, 0].tolist() == pytest.approx([1 / 12] * 3)
    assert float(instance[0, 1, 0]) == pytest.approx(1 / 4)
    assert instance[1, 0].tolist() == pytest.approx([1 / 4, 1 / 4, 0])
    assert float(batch[0, 1, 0]) == pytest.approx(1 / 2)
    assert float(batch[0, 0, 0]) == float(batch[1, 0, 1]) == pytest.approx(1 / 10)
    assert float(pixel_weights(labels, "instance", min_pixels=2)[0, 1, 0]) == pytest.approx(1 / 8)
    for weights in (none, instance, batch):
        assert not weights[2].any()


def test_shares_of_the_loss_by_hand():
    """Patch 0: 90 pixels of class 1, 10 of class 5. Patch 1: 300 of class 1. Patch 2: 999 unlabelled pixels."""
    counts = np.zeros((3, 256), np.int64)
    counts[0, [1, 5]] = 90, 10
    counts[1, 1] = 300
    counts[2, 0] = 999
    by_hand = {"none": (390 / 400, 10 / 400), "instance": ((1 / 2 + 1) / 2, 1 / 4), "mini-batch": (1 / 2, 1 / 2)}
    for balancing, expected in by_hand.items():
        shares = class_shares(counts, balancing)
        assert shares[[1, 5]] == pytest.approx(expected)
        assert shares.sum() == pytest.approx(1)
    assert class_shares(counts, "instance", min_pixels=20)[5] == pytest.approx(1 / 8)
    assert class_shares(counts, "mini-batch", min_pixels=20)[5] == pytest.approx(1 / 4)
    assert not class_shares(counts[2:]).any()
    with pytest.raises(SparseSegError, match="none, instance, mini-batch"):
        class_shares(counts, "batch")


@given(label_batches, balancings, floors)
@untimed
def test_shares_are_the_summed_weights_of_the_pixels(labels, balancing, floor):
    weights = pixel_weights(labels, balancing, min_pixels=floor).double().numpy()
    expected = np.bincount(labels.ravel(), weights.ravel(), minlength=256)
    np.testing.assert_allclose(class_shares(count_labels(labels), balancing, floor), expected, atol=1e-6)


def test_the_formulas_load_no_torch():
    code = (
        "import sys, numpy as np; from napari_sparseseg.balancing import class_shares;"
        "class_shares(np.ones((1, 3))); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_one_class_makes_mini_batch_and_none_the_same():
    labels = (np.random.default_rng(0).random((3, 8, 8)) < 0.1).astype(np.uint8) * 7
    torch.testing.assert_close(pixel_weights(labels, "none"), pixel_weights(labels, "mini-batch"))


def test_fully_labelled_without_balancing_is_plain_cross_entropy():
    rng = np.random.default_rng(1)
    labels = rng.integers(1, 4, (2, 6, 6))
    logits = torch.from_numpy(rng.normal(size=(2, 3, 6, 6)))
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels) - 1)
    assert float(balanced_cross_entropy(logits, labels, "none")) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("balancing", BALANCINGS)
@pytest.mark.parametrize("shape", [(2, 4, 4), (0, 4, 4), (2, 0, 4)])
def test_a_batch_without_labels_costs_nothing(balancing, shape):
    logits = torch.randn(shape[0], 3, *shape[1:], requires_grad=True)
    loss = balanced_cross_entropy(logits, np.zeros(shape, np.uint8), balancing)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert not logits.grad.any()


@pytest.mark.parametrize("balancing", BALANCINGS)
def test_large_logits_stay_finite(balancing):
    labels = np.array([[[1, 2, 0]]])
    logits = torch.tensor([-3e4, 3e4]).view(1, 2, 1, 1).expand(1, 2, 1, 3).clone().requires_grad_()
    loss = balanced_cross_entropy(logits, labels, balancing)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(3e4)
    assert bool(torch.isfinite(logits.grad).all())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16])
def test_integer_tensors_of_every_width(dtype):
    labels = torch.tensor([[[0, 1], [3, 3]]]).to(dtype)
    assert pixel_weights(labels).tolist() == [[[0.0, 0.5], [0.25, 0.25]]]


def test_numpy_views_and_byte_orders():
    labels = np.zeros((2, 4, 6), np.uint8)
    labels[:, 1::2] = 2
    labels.flags.writeable = False
    expected = reference_weights(labels, "instance")
    for view in (labels, labels.astype(">u2"), labels.astype(np.int64)):
        np.testing.assert_allclose(pixel_weights(view).numpy(), expected, rtol=1e-6)
        np.testing.assert_allclose(pixel_weights(view[:, ::-1, ::-1]).numpy(), expected[:, ::-1, ::-1], rtol=1e-6)


def test_table_serves_pixels_kept_as_lists():
    """The instant head keeps (patch, class) per pixel instead of maps; the table gives the same weights."""
    labels = np.random.default_rng(2).integers(0, 4, (3, 5, 5)).astype(np.uint8)
    patch, row, column = np.nonzero(labels)
    table = weight_table(count_labels(labels), "instance", min_pixels=3)
    np.testing.assert_allclose(
        table[patch, labels[patch, row, column].astype(int)], pixel_weights(labels, min_pixels=3)[patch, row, column]
    )
    assert not table[:, 0].any()


def test_class_255_counts():
    labels = np.full((1, 2, 2), 255, np.uint8)
    assert float(pixel_weights(labels).sum()) == pytest.approx(1.0)
    assert float(balanced_cross_entropy(torch.zeros(1, 255, 2, 2), labels)) == pytest.approx(math.log(255))


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (np.zeros((2, 3), np.uint8), r"shape \(2, 3\)"),
        (np.zeros((1, 2, 2)), "float64"),
        (torch.zeros(1, 2, 2), "float32"),
        (np.zeros((1, 2, 2), bool), "bool"),
        (torch.zeros(1, 2, 2, dtype=torch.bool), "bool"),
        ([[[0, 1]]], "list"),
        (np.full((1, 2, 2), -1), "from -1 to -1"),
        (np.full((1, 2, 2), 256), "from 256 to 256"),
        (np.full((1, 2, 2), 2**64 - 1, np.uint64), "from -1"),
    ],
)
def test_bad_labels_are_refused(labels, found):
    for call in (pixel_weights, count_labels, lambda x: balanced_cross_entropy(torch.zeros(1, 3, 2, 2), x)):
        with pytest.raises(SparseSegError, match=found):
            call(labels)


def test_other_mistakes_are_refused():
    labels, logits = np.ones((1, 2, 2), np.uint8), torch.zeros(1, 3, 2, 2)
    for name in ("batch", "minibatch", "", None):
        with pytest.raises(ValueError, match="none, instance, mini-batch"):
            pixel_weights(labels, name)
        with pytest.raises(SparseSegError, match="none, instance, mini-batch"):
            balanced_cross_entropy(logits, labels, name)
    with pytest.raises(SparseSegError, match="min_pixels is 0"):
        pixel_weights(labels, min_pixels=0)
    with pytest.raises(SparseSegError, match="up to class 4 but logits have 3 channels"):
        balanced_cross_entropy(logits, labels * 4)
    with pytest.raises(SparseSegError, match="floating"):
        balanced_cross_entropy(logits.long(), labels)
    with pytest.raises(SparseSegError, match="floating"):
        balanced_cross_entropy(logits[0], labels)
    with pytest.raises(SparseSegError, match="labels are"):
        balanced_cross_entropy(logits, np.ones((1, 2, 3), np.uint8))
