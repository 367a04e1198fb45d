"""Patches: every class, slide and stroke in turn, labels as drawn, held-out labels gone."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from napari_sparseseg.annotations import Annotations
from napari_sparseseg.config import TrainConfig
from napari_sparseseg.errors import SparseSegError, TrainingError
from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.learning.sampling import PatchSampler, ReadAhead, Source
from napari_sparseseg.learning.sources import (
    find_pixel,
    held_labels,
    stroke_area,
    training_labels,
    units_of,
    whole_slide,
)
from napari_sparseseg.slides import ArraySlide, open_slide
from tests.helpers.learning_scene import CLASSES, make_source, scribbled, write_slide

CONFIG = TrainConfig(patch_px=64, dense_fraction=0.25)


@pytest.fixture
def source(tmp_path):
    made = make_source(write_slide(tmp_path / "slide.tif"), scribbled())
    yield made
    made.slide.close()


def white_slide(shape=(600, 800)) -> ArraySlide:
    return ArraySlide(np.full((*shape, 3), 255, np.uint8), mpp=0.5)


def test_patches_are_what_slide_and_annotations_say(source):
    batch = PatchSampler([source], CONFIG, seed=1).draw(12)
    assert batch.pixels.shape == (12, 64, 64, 3)
    assert batch.pixels.dtype == np.uint8
    assert batch.labels.shape == (12, 64, 64)
    assert batch.labels.dtype == np.uint8
    assert batch.brightfield
    annotations = scribbled()
    for pixels, labels, (k, y, x) in zip(batch.pixels, batch.labels, batch.origins, strict=True):
        assert k == 0
        assert labels.any()
        np.testing.assert_array_equal(labels, annotations.read((y, x, 64, 64)))
        rows, columns = np.mgrid[y : y + 64, x : x + 64]
        np.testing.assert_array_equal(pixels[..., 0], rows % 251)
        np.testing.assert_array_equal(pixels[..., 1], columns % 251)


def test_classes_get_the_same_number_of_turns(source):
    """Eight strokes, one of them of class 3: it still is what a third of the patches are drawn for."""
    sampler = PatchSampler([source], replace(CONFIG, patch_px=16), seed=0)
    assert sampler.classes == (1, 2, 3)
    labels = sampler.draw(60).labels
    present = Counter(int(c) for patch in labels for c in np.unique(patch) if c)
    assert present == {1: 20, 2: 20, 3: 20}


def test_strokes_get_the_same_number_of_turns_whatever_their_length():
    annotations = Annotations((600, 800), classes=CLASSES)
    annotations.paint([(50, 20), (50, 780)], 5, 1)
    annotations.paint([(500, 400), (500, 405)], 5, 1)
    slide = white_slide()
    source = Source(slide, annotations.snapshot(), Frame())
    for power, expected in ((0.0, 0.5), (0.5, None)):
        sampler = PatchSampler([source], replace(CONFIG, patch_px=32, area_power=power), seed=3)
        origins = sampler.draw(100).origins
        short = float(np.mean(origins[:, 1] > 300))
        if expected is None:
            areas = [stroke_area(s) for s in annotations.snapshot().strokes]
            expected = areas[1] ** 0.5 / (areas[0] ** 0.5 + areas[1] ** 0.5)
        assert short == pytest.approx(expected, abs=0.02)


def test_stroke_areas_by_hand():
    annotations = Annotations((600, 800), classes=CLASSES)
    annotations.paint([(50, 100), (50, 200)], 5, 1)
    hole = [(130, 130), (130, 150), (150, 150), (150, 130)]
    annotations.fill_polygon([(100, 100), (100, 200), (200, 200), (200, 100)], 2, holes=[hole])
    brush, polygon = annotations.snapshot().strokes
    assert stroke_area(brush) == pytest.approx(1000 + np.pi * 25)
    assert stroke_area(polygon) == pytest.approx(10_000 - 400)


def test_the_labelled_pixel_lands_anywhere_in_the_patch():
    annotations = Annotations((2000, 2000), classes=CLASSES)
    annotations.paint([(1000, 1000)], 1, 1)
    source = Source(white_slide((2000, 2000)), annotations.snapshot(), Frame())
    origins = PatchSampler([source], CONFIG, seed=0).draw(300).origins[:, 1:]
    offset = 1000 - origins
    assert offset.min() >= -1
    assert offset.max() <= 64
    for axis in (0, 1):
        counts, _ = np.histogram(offset[:, axis], bins=4, range=(0, 64))
        assert counts.min() > 45  # 75 expected each; below 45 is 4 standard deviations away


def test_patches_lie_on_the_slide_where_it_is_large_enough(source):
    origins = PatchSampler([source], CONFIG, seed=0).draw(80).origins
    assert origins.min() >= 0
    assert (origins[:, 1] <= 600 - 64).all()
    assert (origins[:, 2] <= 800 - 64).all()


def test_a_slide_smaller_than_a_patch_is_shown_whole_and_goes_on_mirrored():
    annotations = Annotations((40, 50), classes=CLASSES)
    annotations.paint([(20, 20)], 4, 1)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    batch = PatchSampler([Source(ArraySlide(image), annotations.snapshot(), Frame())], CONFIG, seed=0).draw(10)
    around = np.pad(image, ((64, 64), (64, 64), (0, 0)), mode="symmetric")
    for pixels, labels, (_, y, x) in zip(batch.pixels, batch.labels, batch.origins, strict=True):
        np.testing.assert_array_equal(pixels[-y : 40 - y, -x : 50 - x], image)
        np.testing.assert_array_equal(pixels, around[64 + y : 128 + y, 64 + x : 128 + x])
        inside = np.zeros((64, 64), bool)
        inside[-y : 40 - y, -x : 50 - x] = True
        assert not labels[~inside].any()


def test_a_margin_is_read_around_the_patch_and_keeps_the_label_inside():
    annotations = Annotations((600, 800), classes=CLASSES)
    for y, x in ((3, 3), (300, 400), (597, 797)):
        annotations.paint([(y, x)], 1, 1)
    source = Source(white_slide(), annotations.snapshot(), Frame())
    batch = PatchSampler([source], CONFIG, seed=0, margin=20).draw(40)
    assert batch.pixels.shape == (40, 104, 104, 3)
    assert all(patch[20:-20, 20:-20].any() for patch in batch.labels)


def test_slides_of_different_resolution_meet_at_the_training_resolution(tmp_path):
    """The same stroke in um on a slide at 0.25 and one at 0.5 um per px covers the same patch pixels at 1 um."""
    areas, sources = [], []
    for mpp in (0.25, 0.5):
        scale = 1 / mpp
        shape = (int(300 * scale), int(400 * scale))
        slide = ArraySlide(np.full((*shape, 3), 200, np.uint8), mpp=mpp, name=f"at {mpp}")
        annotations = Annotations(shape, classes=CLASSES)
        annotations.paint(np.array([(150, 150), (150, 200)]) * scale, 8 * scale, 1)
        sources.append(Source(slide, annotations.snapshot(), slide.frame(1.0)))
    batch = PatchSampler(sources, replace(CONFIG, patch_px=128), seed=0).draw(20)
    assert Counter(batch.origins[:, 0].tolist()) == {0: 10, 1: 10}
    for source in sources:
        areas.append(int((source.read_labels(Box(0, 0, *source.shape)) == 1).sum()))
    expected = 50 * 16 + np.pi * 64
    assert areas == pytest.approx([expected, expected], rel=0.03)
    assert (batch.pixels == 200).all()


def test_slides_of_different_resolution_show_the_same_tissue_alike():
    """One pattern scanned at 0.25, 0.5 and 1 um per pixel: patches at 1 um say the same."""
    y, x = np.mgrid[:384, :384]
    coarse = np.stack([128 + 100 * np.sin(y / 9), 128 + 100 * np.sin(x / 7), 128 + 50 * np.cos((x + y) / 11)], -1)
    truth = coarse.round().astype(np.uint8)
    for factor in (4, 2, 1):
        slide = ArraySlide(truth.repeat(factor, 0).repeat(factor, 1), mpp=1 / factor, name=f"times {factor}")
        annotations = Annotations(slide.shape, classes=CLASSES)
        annotations.paint([(90.5 * factor, 60.5 * factor), (90.5 * factor, 300.5 * factor)], 8 * factor, 1)
        source = Source(slide, annotations.snapshot(), slide.frame(1.0))
        batch = PatchSampler([source], CONFIG, seed=3).draw(4)
        for pixels, labels, (_, top, left) in zip(batch.pixels, batch.labels, batch.origins, strict=True):
            wanted = truth[top : top + 64, left : left + 64].astype(int)
            assert np.abs(pixels.astype(int) - wanted).max() <= 1
            rows = np.flatnonzero(labels.any(1)) + top
            assert 80 <= rows.min() <= rows.max() <= 100  # a stroke along row 90, 16 um wide


def test_slides_get_their_turn_within_each_class():
    many, one = Annotations((600, 800), classes=CLASSES), Annotations((600, 800), classes=CLASSES)
    for y in range(20, 580, 20):
        many.paint([(y, 100), (y, 200)], 3, 1)
    one.paint([(300, 100), (300, 200)], 3, 1)
    one.paint([(400, 100), (400, 200)], 3, 2)
    sources = [Source(white_slide(), a.snapshot(), Frame()) for a in (many, one)]
    origins = PatchSampler(sources, replace(CONFIG, patch_px=16), seed=0).draw(40).origins
    # Class 1 has 20 turns, half of them on either slide; class 2 has 20, all on the second.
    assert Counter(origins[:, 0].tolist()) == {0: 10, 1: 30}


def test_dense_regions_get_their_share_only_where_there_are_any(source):
    assert not PatchSampler([source], CONFIG, seed=0).draw(20).dense.any()
    annotations = scribbled()
    annotations.fill_polygon([(520, 50), (520, 250), (590, 250), (590, 50)], 2, dense=True)
    both = replace_labels(source, annotations)
    for fraction in (0.0, 0.1, 0.25, 1.0):
        batch = PatchSampler([both], replace(CONFIG, dense_fraction=fraction), seed=0).draw(40)
        assert int(batch.dense.sum()) == pytest.approx(40 * fraction, abs=1)
        for labels, (_, y, x), dense in zip(batch.labels, batch.origins, batch.dense, strict=True):
            inside = Box(int(y), int(x), 64, 64).intersection(Box(520, 50, 70, 200)).area
            assert inside > 0 or not dense
            assert np.count_nonzero(labels) >= inside


def test_only_dense_regions_are_enough():
    annotations = Annotations((600, 800), classes=CLASSES)
    annotations.fill_polygon([(100, 100), (100, 300), (300, 200)], 1, dense=True)
    source = Source(white_slide(), annotations.snapshot(), Frame())
    batch = PatchSampler([source], CONFIG, seed=0).draw(8)
    assert batch.dense.all()
    assert all(patch.any() for patch in batch.labels)


def replace_labels(source, annotations):
    return replace(source, labels=annotations.snapshot())


@pytest.mark.parametrize("downsample", [1.0, 2.0, 3.3, 0.5])
@pytest.mark.parametrize("radius", [0.5, 4, 40, 130])
def test_no_pixel_of_a_held_out_stroke_is_left_for_training(downsample, radius):
    """Painted alone, the held-out stroke says which pixels are its own; none may carry a label in training."""
    frame = Frame((downsample, downsample))
    path = [(301.3, 200.7), (333.1, 420.2), (250.9, 600.4)]
    alone, both = Annotations((600, 800), classes=CLASSES), Annotations((600, 800), classes=CLASSES)
    alone.paint(path, radius, 1)
    both.paint([(300, 20), (320, 790)], 20, 2)
    both.paint(path, radius, 1)
    source = Source(white_slide(), both.snapshot(), frame)
    whole = Box(0, 0, *source.shape)
    held = [u for u in units_of(source, 256) if 1 in u.classes]
    painted = alone.snapshot().read_region(whole, frame) > 0
    train, test = training_labels(source, whole, held), held_labels(source, whole, held)
    assert not train[painted].any()
    assert (train == 2).any()
    np.testing.assert_array_equal(test == 1, painted)
    assert not ((train > 0) & (test > 0)).any()


def test_a_held_out_polygon_leaves_what_was_drawn_over_it_out_of_both():
    annotations = Annotations((600, 800), classes=CLASSES)
    annotations.fill_polygon([(100, 100), (100, 500), (400, 500), (400, 100)], 1)
    annotations.paint([(250, 50), (250, 550)], 10, 2)
    source = Source(white_slide(), annotations.snapshot(), Frame())
    whole = Box(0, 0, 600, 800)
    held = [u for u in units_of(source, 256) if 1 in u.classes]
    train, test = training_labels(source, whole, held), held_labels(source, whole, held)
    assert set(np.unique(test)) == {0, 1}
    assert not train[100:400, 100:500].any()
    assert (train[240:260, 60:95] == 2).all()


def test_held_out_strokes_never_reach_a_batch(source):
    held = [units_of(source, 256)[k] for k in (0, 4)]
    sampler = PatchSampler([source], CONFIG, seed=0, exclude={0: held})
    batch = sampler.draw(60)
    for labels, (_, y, x) in zip(batch.labels, batch.origins, strict=True):
        region = Box(int(y), int(x), 64, 64)
        for unit in held:
            assert not labels[unit.covers(region, source.frame)].any()
    assert sampler.classes == (1, 2, 3)
    only_left = [u for u in units_of(source, 256) if 3 not in u.classes]
    assert set(np.unique(PatchSampler([source], CONFIG, exclude={0: only_left}).draw(5).labels)) == {0, 3}


def test_a_slide_held_out_gives_no_patches(source):
    other = replace_labels(source, scribbled())
    sampler = PatchSampler([source, other], CONFIG, exclude={0: [whole_slide(source)]})
    assert set(sampler.draw(10).origins[:, 0]) == {1}
    apart = PatchSampler([replace(source, role="held-out"), other], CONFIG)
    assert set(apart.draw(10).origins[:, 0]) == {1}


def test_erased_and_covered_strokes_drop_out(source):
    annotations = scribbled()
    annotations.erase([(60, 20), (90, 200), (60, 350)], 30)
    annotations.paint([(400, 590), (400, 630)], 30, 1)
    sampler = PatchSampler([replace_labels(source, annotations)], CONFIG, seed=0)
    batch = sampler.draw(30)
    assert all(patch.any() for patch in batch.labels)
    assert not (batch.labels == 3).any()
    strokes = annotations.snapshot().strokes
    assert find_pixel(replace_labels(source, annotations), strokes[0], np.random.default_rng(0)) is None


def test_everything_erased_is_an_error(source):
    annotations = scribbled()
    annotations.erase([(300, 0), (300, 800)], 600)
    with pytest.raises(TrainingError, match="no labelled pixel is left"):
        PatchSampler([replace_labels(source, annotations)], CONFIG).draw(1)


def test_a_thin_triangle_is_found():
    annotations = Annotations((600, 800), classes=CLASSES)
    annotations.fill_polygon([(10, 10), (590, 790), (590, 786)], 1)
    source = Source(white_slide(), annotations.snapshot(), Frame((2.0, 2.0)))
    rng = np.random.default_rng(0)
    (stroke,) = annotations.snapshot().strokes
    rows = []
    for _ in range(20):
        row, column = find_pixel(source, stroke, rng)
        assert source.read_labels(Box(row, column, 1, 1))[0, 0] == 1
        rows.append(row)
    assert max(rows) - min(rows) > 60


def test_same_seed_same_patches_other_seed_other_patches(source):
    first, again, other = (PatchSampler([source], CONFIG, seed=s).draw(16) for s in (5, 5, 6))
    np.testing.assert_array_equal(first.origins, again.origins)
    np.testing.assert_array_equal(first.labels, again.labels)
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert (first.origins != other.origins).any()
    default = PatchSampler([source], replace(CONFIG, seed=5)).draw(16)
    np.testing.assert_array_equal(first.origins, default.origins)


def test_fluorescence_keeps_its_dtype_and_channels(tmp_path):
    path = write_slide(tmp_path / "fluo.tif", dtype=np.uint16, channels=4)
    source = make_source(path, scribbled())
    with source.slide:
        batch = PatchSampler([source], CONFIG, seed=0).draw(3)
    assert batch.pixels.shape == (3, 64, 64, 4)
    assert batch.pixels.dtype == np.uint16
    assert not batch.brightfield


def test_slides_of_different_kinds_are_refused(tmp_path, source):
    other = make_source(write_slide(tmp_path / "fluo.tif", dtype=np.uint16, channels=4), scribbled())
    with other.slide, pytest.raises(SparseSegError, match=r"fluo\.tif has uint16 channels .* slides of one kind"):
        PatchSampler([source, other], CONFIG)


def test_nothing_to_train_on_is_an_error(source):
    empty = replace_labels(source, Annotations((600, 800), classes=CLASSES))
    with pytest.raises(TrainingError, match="nothing labelled"):
        PatchSampler([empty], CONFIG)
    for none_left in ([], [replace(source, role="held-out")]):
        with pytest.raises(TrainingError, match="no slide is left"):
            PatchSampler(none_left, CONFIG)


def test_batches_read_ahead_are_the_same_in_the_same_order(source):
    plain = PatchSampler([source], CONFIG, seed=2)
    ahead = ReadAhead(PatchSampler([source], CONFIG, seed=2))
    for _ in range(5):
        np.testing.assert_array_equal(ahead.draw(4).origins, plain.draw(4).origins)
    mine = [t for t in threading.enumerate() if t.name.startswith("sparseseg-read-ahead")]
    ahead.close()
    for thread in mine:
        thread.join(30)
        assert not thread.is_alive()


def test_the_next_batch_is_read_while_the_last_one_is_learned_from():
    begun, release = [threading.Event() for _ in range(3)], threading.Event()
    drawn = []

    class Sampler:
        def draw(self, n):
            begun[len(drawn)].set()
            if drawn:
                assert release.wait(20)
            drawn.append(n)
            return drawn[:]

    ahead = ReadAhead(Sampler())
    try:
        assert ahead.draw(4) == [4]
        assert begun[1].wait(20)  # nobody has asked for it, and whoever learns from the first is not kept waiting
        assert not begun[2].is_set()
        release.set()
        assert ahead.draw(4) == [4, 4]
    finally:
        release.set()
        ahead.close()


def test_a_failed_read_reaches_the_consumer(source):
    ahead = ReadAhead(PatchSampler([source], CONFIG))
    source.slide.close()
    for _ in range(2):
        with pytest.raises(SparseSegError, match="closed"):
            ahead.draw(2)
    ahead.close()


def test_sampling_and_validation_load_no_torch():
    modules = "napari_sparseseg.learning.holdout, napari_sparseseg.learning.sampling"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_patches_of_a_real_slide_at_one_um(cmu_svs):
    """The patch is the slide read at 1 um per px in the same place; ids under the centres of its pixels."""
    with open_slide(cmu_svs) as slide:
        annotations = Annotations(slide.shape, classes=CLASSES)
        annotations.paint([(600, 500), (900, 800), (700, 1200)], 25, 1)
        annotations.fill_polygon([(1500, 300), (1500, 900), (1900, 600)], 2)
        source = Source(slide, annotations.snapshot(), slide.frame(1.0))
        batch = PatchSampler([source], replace(CONFIG, patch_px=128), seed=0).draw(6)
        for pixels, labels, (_, y, x) in zip(batch.pixels, batch.labels, batch.origins, strict=True):
            np.testing.assert_array_equal(pixels, slide.read_region(Box(int(y), int(x), 128, 128), source.frame))
            scale = 1.0 / slide.mpp[0]
            at = (np.array([y, x])[:, None] + np.arange(128) + 0.5) * scale
            rows, columns = np.floor(at).astype(int)
            full = annotations.read((int(rows[0]), int(columns[0]), int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1))
            np.testing.assert_array_equal(labels, full[np.ix_(rows - rows[0], columns - columns[0])])
    assert {int(c) for c in np.unique(batch.labels)} >= {1, 2}
