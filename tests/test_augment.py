"""Augmentation: labels follow pixels, channels stay apart, stains change as light through tissue does."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from skimage.color import rgb2hed

from napari_sparseseg.errors import TrainingError
from napari_sparseseg.learning.augment import Augmentation, augment, hed_from_rgb, rgb_from_hed
from napari_sparseseg.learning.sampling import Batch

OFF = Augmentation.none()
MOVES = replace(OFF, flips=True, rotation=0.7, scale=0.3)
EVERYTHING = Augmentation(rotation=1, blur=1, noise=1, jpeg=1)


def make_batch(n=4, size=64, channels=3, dtype=np.uint8, seed=0, brightfield=True) -> Batch:
    rng = np.random.default_rng(seed)
    top = 255 if dtype == np.uint8 else 4000
    pixels = (rng.random((n, size, size, channels)) * top).astype(dtype)
    labels = rng.integers(0, 4, (n, size, size)).astype(np.uint8)
    return Batch(pixels, labels, np.zeros(n, bool), np.zeros((n, 3), np.int64), brightfield)


def smooth_batch(n=8, size=96) -> Batch:
    """The label says what the pixels are: four flat areas of distinct grey, class 1 to 4."""
    labels = np.ones((n, size, size), np.uint8)
    labels[:, :, size // 2 :] += 1
    labels[:, size // 3 :, :] += 2
    pixels = np.repeat((labels * 50)[..., None], 3, axis=-1)
    return Batch(pixels, labels, np.zeros(n, bool), np.zeros((n, 3), np.int64), brightfield=True)


def hematoxylin_and_eosin(size=64) -> np.ndarray:
    """Glass, eosin, hematoxylin and both by Beer's law: light falls off exponentially with the stain."""
    od = {"h": np.array([0.650, 0.704, 0.286]), "e": np.array([0.072, 0.990, 0.105])}
    density = np.zeros((size, size, 3))
    density[:, size // 4 : 3 * size // 4] += 0.8 * od["e"]
    density[:, size // 2 :] += 0.9 * od["h"]
    return np.round(255 * np.exp(-density)).astype(np.uint8)


def test_switched_off_it_changes_nothing():
    batch = make_batch()
    out = augment(batch, np.random.default_rng(0), OFF)
    np.testing.assert_array_equal(out.pixels, batch.pixels)
    np.testing.assert_array_equal(out.labels, batch.labels)


def test_flips_and_quarter_turns_are_exact_and_all_eight_come():
    batch = make_batch(n=64, size=16)
    out = augment(batch, np.random.default_rng(0), replace(OFF, flips=True))
    seen = set()
    for pixels, labels, p0, l0 in zip(out.pixels, out.labels, batch.pixels, batch.labels, strict=True):
        turned = [(k, m, np.rot90(p0, k)[:, ::m], np.rot90(l0, k)[:, ::m]) for k in range(4) for m in (1, -1)]
        match = [(k, m) for k, m, p, q in turned if (p == pixels).all() and (q == labels).all()]
        assert len(match) == 1
        seen.add(match[0])
    assert len(seen) == 8


def test_labels_follow_the_pixels():
    """Grey values were made from labels: after any move, away from borders, they must still agree."""
    batch = smooth_batch()
    for seed in range(5):
        out = augment(batch, np.random.default_rng(seed), MOVES)
        grey = out.pixels[..., 0].astype(int)
        flat = (np.abs(grey % 50) == 0) & (out.labels > 0)
        assert flat.mean() > 0.6
        agree = grey[flat] // 50 == out.labels[flat]
        # Half-way between grey 50 and 150 lies 100: the few blended pixels that look flat sit on a border.
        assert agree.mean() > 0.99


def test_what_comes_from_outside_is_unlabelled_and_mirrored():
    batch = smooth_batch(n=16)
    out = augment(batch, np.random.default_rng(1), replace(OFF, rotation=1.0))
    assert set(np.unique(out.labels)) == {0, 1, 2, 3, 4}
    assert (out.labels == 0).mean() > 0.02
    assert out.pixels.min() >= 50


def test_a_margin_fills_the_corners():
    batch = smooth_batch(n=16, size=150)
    out = augment(batch, np.random.default_rng(1), replace(OFF, rotation=1.0), size=100)
    assert out.pixels.shape == (16, 100, 100, 3)
    assert out.labels.shape == (16, 100, 100)
    assert (out.labels > 0).all()


def test_the_middle_is_cut_out_exactly():
    batch = make_batch(size=50)
    out = augment(batch, np.random.default_rng(0), OFF, size=30)
    np.testing.assert_array_equal(out.pixels, batch.pixels[:, 10:40, 10:40])
    np.testing.assert_array_equal(out.labels, batch.labels[:, 10:40, 10:40])
    with pytest.raises(TrainingError, match="draw them with a margin"):
        augment(batch, np.random.default_rng(0), OFF, size=51)


def test_the_only_label_in_a_corner_is_never_lost():
    batch = make_batch(n=64, size=32)
    labels = np.zeros_like(batch.labels)
    labels[:, 0, 0] = 7
    out = augment(replace(batch, labels=labels), np.random.default_rng(0), Augmentation(rotation=1.0))
    assert (out.labels == 7).any(axis=(1, 2)).all()
    assert set(np.unique(out.labels)) == {0, 7}


def test_every_class_id_survives():
    labels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    batch = replace(make_batch(n=1, size=16), labels=labels)
    out = augment(batch, np.random.default_rng(0), replace(OFF, flips=True))
    np.testing.assert_array_equal(np.sort(out.labels.ravel()), np.arange(256))


def test_stain_space_is_that_of_scikit_image():
    rgb = hematoxylin_and_eosin()
    ours = hed_from_rgb(torch.from_numpy(rgb).permute(2, 0, 1)[None].float())
    theirs = rgb2hed(rgb)
    # Other units (log base) and another floor for black: proportional, not equal.
    for k in range(2):
        a, b = ours[0, k].numpy().ravel(), theirs[..., k].ravel()
        assert np.corrcoef(a, b)[0, 1] > 0.999


def test_stain_space_and_back_is_the_identity():
    rgb = torch.from_numpy(make_batch().pixels).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(rgb_from_hed(hed_from_rgb(rgb)), rgb, atol=1e-2, rtol=0)


def test_stain_changes_colour_of_tissue_but_not_of_glass():
    pixels = np.repeat(hematoxylin_and_eosin()[None], 32, axis=0)
    batch = Batch(pixels, np.zeros(pixels.shape[:3], np.uint8), np.zeros(32, bool), np.zeros((32, 3), int), True)
    out = augment(batch, np.random.default_rng(0), replace(OFF, stain=0.1)).pixels.astype(int)
    change = np.abs(out - pixels).mean(axis=(1, 3))
    assert change[:, :16].max() <= 2
    assert change[:, 16:].mean() > 4
    # Hues move apart between patches, as they do between laboratories.
    assert out[:, :, 16:].mean(axis=(1, 2)).std(0).min() > 1
    # The order of the stains stays readable: hematoxylin is bluer than eosin in every patch.
    blue = out[..., 2] - out[..., 0]
    assert (blue[:, :, 50:60].mean(axis=(1, 2)) > blue[:, :, 20:30].mean(axis=(1, 2))).all()


def test_brightness_scales_the_light():
    pixels = np.full((16, 8, 8, 3), 100, np.uint8)
    batch = Batch(pixels, np.zeros((16, 8, 8), np.uint8), np.zeros(16, bool), np.zeros((16, 3), int), True)
    out = augment(batch, np.random.default_rng(0), replace(OFF, brightness=0.1)).pixels
    assert (out == out[:, :1, :1, :1]).all()
    factors = (out[:, 0, 0, 0] + 1.0) / 101
    assert 0.05 < np.log(factors).std() < 0.2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, ">u2"])
def test_fluorescence_channels_never_mix(dtype):
    """Channel 1 is empty: whatever happens to the others, it must stay so."""
    batch = make_batch(channels=4, dtype=np.dtype(dtype), brightfield=False)
    pixels = batch.pixels.copy()
    pixels[..., 1] = 0
    settings = replace(EVERYTHING, noise=0)
    for seed in range(4):
        out = augment(replace(batch, pixels=pixels), np.random.default_rng(seed), settings)
        assert out.pixels.dtype == np.dtype(dtype)
        assert not out.pixels[..., 1].any()
        assert (out.pixels[..., [0, 2, 3]] != pixels[..., [0, 2, 3]]).any()


def test_fluorescence_gain_is_affine_per_channel():
    batch = make_batch(channels=2, dtype=np.uint16, brightfield=False)
    out = augment(batch, np.random.default_rng(0), replace(OFF, brightness=0.05)).pixels.astype(float)
    for b in range(4):
        for c in range(2):
            x, y = batch.pixels[b, ..., c].ravel(), out[b, ..., c].ravel()
            unclipped = y > 0
            slope, offset = np.polyfit(x[unclipped], y[unclipped], 1)
            assert np.abs(slope * x[unclipped] + offset - y[unclipped]).max() <= 1
    assert augment(batch, np.random.default_rng(0), replace(OFF, stain=0.5)).pixels.tolist() == batch.pixels.tolist()


def test_blur_smooths_and_keeps_the_mean():
    batch = make_batch()
    out = augment(batch, np.random.default_rng(0), replace(OFF, blur=1.0)).pixels.astype(float)
    before = batch.pixels.astype(float)
    assert (out.std(axis=(1, 2)) < 0.97 * before.std(axis=(1, 2))).all()
    np.testing.assert_allclose(out.mean(axis=(1, 2)), before.mean(axis=(1, 2)), atol=3)


def test_noise_and_jpeg_are_small_and_do_not_move_anything():
    pixels = np.repeat(hematoxylin_and_eosin()[None], 8, axis=0)
    batch = Batch(pixels, np.ones((8, 64, 64), np.uint8), np.zeros(8, bool), np.zeros((8, 3), int), True)
    for settings in (replace(OFF, noise=1.0), replace(OFF, jpeg=1.0)):
        out = augment(batch, np.random.default_rng(0), settings)
        error = out.pixels.astype(float) - pixels
        assert 0 < np.abs(error).mean() < 8
        assert np.abs(error.mean(axis=(1, 2, 3))).max() < 2
        np.testing.assert_array_equal(out.labels, batch.labels)


def test_same_state_same_result_and_the_input_is_left_alone():
    batch = make_batch()
    kept = batch.pixels.copy(), batch.labels.copy()
    first, again = (augment(batch, np.random.default_rng(4), EVERYTHING) for _ in range(2))
    other = augment(batch, np.random.default_rng(5), EVERYTHING)
    np.testing.assert_array_equal(first.pixels, again.pixels)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert (first.pixels != other.pixels).any()
    np.testing.assert_array_equal(batch.pixels, kept[0])
    np.testing.assert_array_equal(batch.labels, kept[1])


def test_by_default_every_change_is_on():
    assert all(getattr(Augmentation(), f.name) for f in fields(Augmentation))
