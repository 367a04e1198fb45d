"""The instant head: what it learns, that its two ways to compute agree, and its optimizer against torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from napari_sparseseg.config import TrainConfig
from napari_sparseseg.errors import ModelError, TrainingError
from napari_sparseseg.learning.feature_cache import LabelledFeatures, join
from napari_sparseseg.learning.features import InputScale, sample
from napari_sparseseg.learning.head import ABSENT, Head, HeadSettings, Samples, _AdamW, fit_head, mean_of


def two_moons(n=2000, seed=0):
    """Two classes that no plane separates, in the first 2 of 5 columns."""
    g = torch.Generator().manual_seed(seed)
    t = torch.rand(n, generator=g) * 3.14159
    y = torch.randint(0, 2, (n,), generator=g)
    moons = torch.stack([torch.cos(t) * (1 - 2 * y) + y, torch.sin(t) * (1 - 2 * y) + 0.4 * y], 1)
    noise = torch.randn(n, 5, generator=g) * 0.1
    noise[:, :2] += moons
    return noise * torch.tensor([3.0, 0.01, 1, 100, 1]) + 7, y


def test_head_learns_what_no_plane_separates():
    x, y = two_moons()
    head = fit_head(Samples(x, y, torch.ones(len(y))), (2, 3), 2, settings=HeadSettings(dropout=0.05, steps=1000))
    held_x, held_y = two_moons(seed=1)
    assert (head.rows(held_x).argmax(1) == held_y).float().mean() > 0.95


def test_same_samples_and_seed_give_the_same_head():
    x, y = two_moons(500)
    a, b = (fit_head(Samples(x, y, torch.ones(500)), (5,), 2, seed=3) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_maps_and_rows_give_the_same_scores():
    torch.manual_seed(0)
    head = Head((3, 4), 8, 2)
    maps = [torch.rand(1, 3, 8, 8), torch.rand(1, 4, 8, 8)]
    dense = head(maps)[0].permute(1, 2, 0).reshape(-1, 2)
    rows = head.rows(torch.cat([m[0].permute(1, 2, 0).reshape(-1, m.shape[1]) for m in maps], 1))
    torch.testing.assert_close(dense, rows)


def test_the_mean_of_heads_has_the_mean_of_their_scores():
    torch.manual_seed(0)
    heads = [Head((3, 4), width, 2) for width in (8, 5, 6)]
    maps = [torch.rand(1, 3, 8, 8), torch.rand(1, 4, 4, 4)]
    torch.testing.assert_close(mean_of(heads)(maps), torch.stack([h(maps) for h in heads]).mean(0))
    x, y = two_moons(300)
    alone = [fit_head(Samples(x, y * 2, torch.ones(300)), (5,), 4, seed=seed) for seed in (0, 1)]
    assert torch.equal(mean_of(alone).rows(x)[:, [1, 3]], torch.full((300, 2), ABSENT))


def test_a_class_without_labels_is_never_chosen():
    x, y = two_moons(300)
    head = fit_head(Samples(x, y * 2, torch.ones(300)), (5,), 4)
    scores = head.rows(x).detach()
    assert torch.equal(scores[:, [1, 3]], torch.full((300, 2), ABSENT))
    assert float(scores.softmax(1)[:, [1, 3]].max()) < 1e-5


def test_weight_decides_between_contradicting_labels():
    x = torch.zeros(100, 2)
    y = torch.cat([torch.zeros(90), torch.ones(10)]).long()
    weight = torch.cat([torch.full((90,), 0.2 / 90), torch.full((10,), 0.8 / 10)])
    p = fit_head(Samples(x, y, weight), (2,), 2).rows(x[:1]).softmax(1)[0, 1].item()
    assert p == pytest.approx(0.8, abs=0.08)


def test_nothing_to_fit_is_an_error():
    with pytest.raises(TrainingError, match="scribble"):
        fit_head(Samples(torch.zeros(0, 3), torch.zeros(0).long(), torch.zeros(0)), (3,), 2)


def test_optimizer_agrees_with_torchs_adamw():
    torch.manual_seed(0)
    ours = [torch.randn(4, 3, requires_grad=True), torch.randn(4, requires_grad=True)]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    settings = HeadSettings(steps=10, learning_rate=0.01)
    adam, reference = _AdamW(ours, settings), torch.optim.AdamW(theirs, 0.01, weight_decay=0.01)
    # Warm-up over 3 of 10 steps, then half a cosine over 7: by hand.
    rates = [1 / 3, 2 / 3, 1] + [0.5 + 0.5 * np.cos(np.pi * k / 7) for k in range(1, 8)]
    for rate in rates:
        gradients = [torch.randn_like(p) for p in ours]
        adam.step(gradients)
        reference.param_groups[0]["lr"] = 0.01 * rate
        for p, g in zip(theirs, gradients, strict=True):
            p.grad = g.clone()
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_sample_reads_a_ramp_at_pixel_centres():
    # A map of stride 4 whose cell (i, j) holds the row of its centre, 4 i + 1.5: bilinear reading gives the row itself.
    ramp = (torch.arange(8) * 4 + 1.5).view(1, 1, 8, 1).expand(1, 1, 8, 8)
    ys, xs = torch.tensor([2, 7, 13, 29]), torch.tensor([3, 3, 20, 9])
    torch.testing.assert_close(sample([ramp], [4], ys, xs)[:, 0], ys.float())


def _rows(labels, total, columns=2):
    counts = np.bincount(labels, minlength=256) * 0
    counts[list(total)] = list(total.values())
    n = len(labels)
    empty = np.zeros(n, np.int64)
    return LabelledFeatures(torch.zeros(n, columns).half(), np.array(labels, np.uint8), empty, empty, counts)


def test_rows_stand_for_all_pixels_of_their_class():
    # Patch 1: 10 pixels of class 1 (2 kept) and 30 of class 7 (3 kept). Patch 2: 5 of class 7 (1 kept).
    rows = [_rows([1, 1, 7, 7, 7], {1: 10, 7: 30}), _rows([7], {7: 5})]
    instance = join(rows, (1, 7), TrainConfig(balancing="instance"))
    assert instance.channel.tolist() == [0, 0, 1, 1, 1, 1]
    # Each patch has half; patch 1 splits it over its two classes.
    assert instance.weight.tolist() == pytest.approx([1 / 8, 1 / 8, 1 / 12, 1 / 12, 1 / 12, 1 / 2])
    batch = join(rows, (1, 7), TrainConfig(balancing="mini-batch"))
    assert batch.weight.tolist() == pytest.approx([1 / 4, 1 / 4, 1 / 7, 1 / 7, 1 / 7, 1 / 14])
    none = join(rows, (1, 7), TrainConfig(balancing="none"))
    assert none.weight.tolist() == pytest.approx([5 / 45, 5 / 45, 10 / 45, 10 / 45, 10 / 45, 5 / 45])


def test_rows_of_removed_classes_are_left_out():
    samples = join([_rows([1, 7, 9], {1: 1, 7: 1, 9: 4})], (9, 1), TrainConfig())
    assert samples.channel.tolist() == [1, 0]
    assert float(samples.weight.sum()) == pytest.approx(1)


def test_hidden_pixels_take_their_share_of_the_counts():
    rows = LabelledFeatures(torch.zeros(4, 1).half(), np.array([1, 1, 1, 2], np.uint8), np.arange(4), np.zeros(4, int),
                np.bincount([1] * 30 + [2] * 5, minlength=256))  # fmt: skip
    hidden = np.zeros((4, 1), bool)
    hidden[[1, 3]] = True
    kept = rows.without(hidden)
    assert kept.labels.tolist() == [1, 1]
    assert (kept.counts[1], kept.counts[2]) == (20, 0)


def test_input_scale_maps_low_to_zero_and_high_to_one():
    scale = InputScale((100.0, 0.0), (300.0, 1.0))
    unit = scale.unit(np.array([[[[100, 0.5], [300, np.nan]]]], np.float32))
    assert unit[0, :, 0].tolist() == [[0, 1], [0.5, 0]]
    assert InputScale.from_json(scale.to_json()) == scale
    with pytest.raises(ModelError, match="2 channels"):
        scale.unit(np.zeros((1, 4, 4, 3)))


def test_measured_scale_ignores_hot_pixels():
    rng = np.random.default_rng(0)
    pixels = rng.uniform(200, 1000, (100, 100, 1))
    pixels[0, 0] = 65535
    scale = InputScale.measured([pixels.astype(np.uint16)])
    assert scale.low[0] == pytest.approx(204, abs=20)
    assert scale.high[0] == pytest.approx(996, abs=20)
