"""The sample slide: size, scale, and that colour does not give it away."""

from __future__ import annotations

import json

import imagecodecs
import numpy as np
from sklearn.ensemble import RandomForestClassifier

from napari_sparseseg import Annotations, open_slide
from napari_sparseseg.samples import (
    CLASS_NAMES,
    sample_scribbles,
    sample_slide,
    sample_truth,
    score,
    skin_scribbles,
    skin_slide,
)
from sample_data.scribble_skin import CLASSES as SKIN_CLASSES
from sample_data.scribble_skin import STROKES as SKIN_STROKES


def truth():
    return imagecodecs.png_decode(sample_truth().read_bytes())


def test_slide_and_files():
    with open_slide(sample_slide()) as slide:
        assert slide.shape == (4096, 4096)
        assert slide.mpp == (0.5, 0.5)
        assert len(slide.levels) >= 4
    assert sum(p.stat().st_size for p in sample_slide().parent.iterdir() if p.is_file()) < 7e6
    assert truth().shape == (1024, 1024)


def test_every_class_has_a_fair_part_and_one_is_rare():
    shares = np.bincount(truth().ravel(), minlength=6)[1:5] / (truth() < 5).sum()
    assert shares.min() > 0.05
    assert shares.max() / shares.min() > 4


def test_scribbles_are_sparse_and_right():
    a = Annotations.from_geojson(sample_scribbles(), (4096, 4096))
    assert [c.name for c in a.classes] == list(CLASS_NAMES)
    labels = a.read((0, 0, 4096, 4096))[2::4, 2::4]
    assert (labels > 0).mean() < 0.01
    drawn = labels > 0
    assert (labels[drawn] == truth()[drawn]).mean() > 0.98
    assert len(json.loads(sample_scribbles().read_text())["features"]) <= 40


def test_scribbles_on_skin_are_sparse_and_on_what_they_say():
    """No truth is known, but glass is bright, keratin dark, and connective tissue redder than epithelium."""
    with open_slide(skin_slide()) as slide:
        assert slide.shape == (2967, 2220)
        pixels = slide.read((0, 0, *slide.shape)).astype(float)
    a = Annotations.from_geojson(skin_scribbles(), (2967, 2220))
    assert [(c.name, c.colour) for c in a.classes] == SKIN_CLASSES
    labels = a.read((0, 0, 2967, 2220))
    assert (labels > 0).mean() < 0.03
    assert all((labels == k).sum() > 20 * 100 * len(strokes) for k, strokes in SKIN_STROKES.items())
    epithelium, connective, keratin, glass = (pixels[labels == k].mean(axis=0) for k in (1, 2, 3, 4))
    assert glass.min() > 230
    assert keratin.mean() < epithelium.mean() < connective.mean() < glass.mean()
    assert connective[0] - connective[2] > epithelium[0] - epithelium[2]


def test_colour_alone_does_not_separate_the_tissue():
    with open_slide(sample_slide()) as slide:
        pixels = slide.read((0, 0, 4096, 4096), level=0)[2::4, 2::4]
    tissue = truth() < 5
    x, y = pixels[tissue], truth()[tissue]
    order = np.random.default_rng(0).permutation(len(x))
    fit, check = order[:15000], order[15000:40000]
    forest = RandomForestClassifier(40, max_depth=12, class_weight="balanced", random_state=0).fit(x[fit], y[fit])
    found = forest.predict(x[check])
    dice = [
        2 * ((found == c) & (y[check] == c)).sum() / ((found == c).sum() + (y[check] == c).sum()) for c in range(1, 5)
    ]
    assert np.mean(dice) < 0.5


def test_score_by_hand(tmp_path):
    expected = np.ones((4, 4), np.uint8)
    expected[2:] = 2
    path = tmp_path / "t.png"
    path.write_bytes(imagecodecs.png_encode(expected))
    found = np.ones((8, 8), np.uint8)
    found[6:] = 2
    result = score(found, path)
    assert result["tumour glands"] == 2 * 8 / (12 + 8)
    assert result["stroma"] == 2 * 4 / (4 + 8)
