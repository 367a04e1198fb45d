"""The snap brush: hand-made pictures, and real tissue with a known truth."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

from napari_sparseseg import Annotations
from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.prediction.live_view import LiveView
from napari_sparseseg.prediction.snap import Snapper, Surroundings, view_around
from napari_sparseseg.prediction.tile_store import TILE, Tile, encode
from napari_sparseseg.slides.backends.array import ArraySlide
from tests.helpers.data import real_data

TISSUES = ("ADI", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
SIDE = 224


def two_halves(left=90, right=200, noise=8):
    rng = np.random.default_rng(0)
    image = np.full((120, 160, 3), left, float)
    image[:, 80:] = right
    return np.clip(image + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8)


def drawn(shape, *boxes):
    mask = np.zeros(shape, bool)
    for y, x, h, w in boxes:
        mask[y : y + h, x : x + w] = True
    return mask


def test_it_ends_where_the_tissue_does():
    image, stroke = two_halves(), drawn((120, 160), (50, 20, 6, 30))
    grown = Snapper(Surroundings(image, np.zeros((120, 160), np.uint8)), stroke, 1).grow(1.0)
    assert grown[stroke].all()
    assert grown[:, :70].mean() > 0.9
    assert not grown[:, 88:].any()


def test_it_is_connected_bounded_and_empty_handed_without_tolerance():
    image, stroke = two_halves(), drawn((120, 160), (50, 20, 6, 30))
    image[:, 60:64] = 200  # a wall inside the same tissue
    snapper = Snapper(Surroundings(image, np.zeros((120, 160), np.uint8)), stroke, 1)
    assert not snapper.grow(1.0)[:, 66:].any()
    near = snapper.grow(1.0, reach=10)
    assert ndimage.distance_transform_edt(~stroke)[near].max() <= 11
    np.testing.assert_array_equal(snapper.grow(0.0), stroke)


def test_labels_of_other_classes_are_neither_drawn_over_nor_crossed():
    image, stroke = two_halves(), drawn((120, 160), (50, 10, 6, 20))
    labels = np.zeros((120, 160), np.uint8)
    labels[:, 40:44] = 2
    grown = Snapper(Surroundings(image, labels), stroke, 1).grow(1.0)
    assert not grown[:, 40:].any()


def test_what_a_model_tells_apart_is_not_joined():
    image = two_halves(150, 150)  # one colour
    probabilities = np.zeros((2, 120, 160), np.float32)
    probabilities[0, :, :80] = probabilities[1, :, 80:] = 1
    stroke = drawn((120, 160), (50, 20, 6, 30))
    grown = Snapper(Surroundings(image, np.zeros((120, 160), np.uint8), probabilities), stroke, 1).grow(2.0)
    assert not grown[:, 84:].any()
    assert Snapper(Surroundings(image, np.zeros((120, 160), np.uint8)), stroke, 1).grow(2.0)[:, 100:].any()


def test_the_view_lies_where_it_says_and_has_the_probabilities_that_are_there():
    rng = np.random.default_rng(1)
    slide = ArraySlide([rng.integers(0, 255, (400, 600, 3), np.uint8)], mpp=(1.0, 1.0), name="a")
    annotations = Annotations((400, 600), ["a", "b"])
    annotations.fill_polygon([(100, 200), (100, 300), (140, 300), (140, 200)], 2)
    live = LiveView(slide, Frame((2.0, 2.0)), 2)
    box = Box(90, 190, 64, 128)
    view, region = view_around(slide, annotations, live, box, 1)
    assert view.probabilities is None, "nothing is predicted yet"
    assert region == Box(45, 95, 32, 64)
    np.testing.assert_array_equal(view.image, slide.read_region(region, Frame((2.0, 2.0))))
    expected = np.zeros((32, 64), np.uint8)
    expected[5:25, 5:55] = 2
    np.testing.assert_array_equal(view.labels, expected)
    columns = np.linspace(0, 1, TILE, dtype=np.float32)
    chance = np.stack([np.tile(columns, (TILE, 1)), np.tile(1 - columns, (TILE, 1))])
    live.store.put((0, 0, 0), Tile(encode((1 + chance.argmax(0)).astype(np.uint8), chance, None), 1, 1))
    view, _ = view_around(slide, annotations, live, box, 1)
    np.testing.assert_allclose(view.probabilities, chance[:, 45:77, 95:159], atol=0.003)
    finer, _ = view_around(slide, annotations, live, box, 0)
    np.testing.assert_allclose(finer.probabilities[:, ::2, ::2], view.probabilities)
    slide.close()


def test_a_mosaic_of_real_tissues_is_kept_apart():
    """At least 0.95 of what grows is the tissue that was stroked, in nine strokes of ten."""
    rng = np.random.default_rng(3)
    tiles = {t: sorted((real_data("crc7k")).glob(f"{t}__*.jpg")) for t in TISSUES}
    right, grown_from = [], []
    for _ in range(3):
        kinds = rng.choice(len(TISSUES), 4, replace=False)
        parts = [np.asarray(Image.open(rng.choice(tiles[TISSUES[k]])).convert("RGB")) for k in kinds]
        image = np.vstack([np.hstack(parts[:2]), np.hstack(parts[2:])])
        for n in range(4):
            y, x = SIDE * (n // 2), SIDE * (n % 2)
            stroke = drawn(image.shape[:2], (y + int(rng.integers(60, 160)), x + 60, 7, 70))
            grown = Snapper(Surroundings(image, np.zeros(image.shape[:2], np.uint8)), stroke, 1).grow(reach=100)
            new = grown & ~stroke
            right.append(new[y : y + SIDE, x : x + SIDE].sum() / max(1, new.sum()))
            grown_from.append(grown.sum() / stroke.sum())
    assert np.mean(np.array(right) >= 0.95) >= 0.9
    assert np.median(grown_from) > 2


def test_a_grown_stroke_is_held_out_as_what_it_covers():
    """A brush's path would leave the region beside it in training."""
    annotations = Annotations((400, 400), ["a", "b"])
    annotations.begin_stroke(1, kind="fill")
    annotations.extend_stroke((100, 100), (100, 200), 5)
    annotations.paint_mask(0, 80, 90, np.ones((60, 150), bool))
    stroke = annotations.commit_stroke()
    assert stroke.kind == "fill"
    assert stroke.box == Box(80, 90, 60, 150)
    assert annotations.counts()[1] == 60 * 150
    annotations.undo()
    assert annotations.counts()[1] == 0
