"""Strips: the same probabilities as one pass, whatever the columns, wherever they begin, whoever computes them."""

from __future__ import annotations

import copy
import functools
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_sparseseg.geometry import Box
from napari_sparseseg.learning.features import InputScale
from napari_sparseseg.learning.strips import Strip, fits_strips
from napari_sparseseg.prediction.slide import run_prediction
from napari_sparseseg.prediction.slide.executors import _Unclaimed
from napari_sparseseg.prediction.slide.shards import shard_grid
from napari_sparseseg.prediction.strips import CELL, SlideStrip, strips_through
from napari_sparseseg.slides import ArraySlide
from tests.helpers.networks import model_of, network, plain, two_speed
from tests.helpers.smooth_model import level0

SIDE, AROUND = 192, 256
SCALE = InputScale.for_rgb()
IMAGE = np.random.default_rng(2).integers(0, 255, (SIDE + 2 * AROUND, SIDE + 2 * AROUND, 3)).astype(np.uint8)


def read(rows, columns):
    """Of a slide whose row and column 0 are in the image; far below the result, anything: steps round up."""
    y, x = (np.arange(*side) + AROUND for side in (rows, columns))
    assert y[0] >= 0
    assert 0 <= x[0] < x[-1] < IMAGE.shape[1]
    return IMAGE[np.clip(y, 0, len(IMAGE) - 1)][:, x]


def net(kind):
    found = network(2).net if kind == "head" else two_speed().eval()
    if kind == "tuned":
        tuned = copy.deepcopy(found.features)
        with torch.no_grad():
            tuned.encoder.net.conv_stem.weight *= 1.5
        found.decoder.tuned = tuned
    if kind != "head":
        generator = torch.Generator().manual_seed(1)
        for name, values in (*found.decoder.named_parameters(), *found.decoder.named_buffers()):
            if "norm" in name or name in ("mean", "std"):
                values.data += torch.rand(values.shape, generator=generator)
        found.temperature = 1.7
    return found.requires_grad_(False)


@pytest.fixture(scope="module", params=["head", "decoder", "tuned"])
def whole(request):
    """A network, and what one pass says of the whole image."""
    found = net(request.param)
    with torch.inference_mode():
        answer = found(SCALE.unit(IMAGE[None]).contiguous(memory_format=torch.channels_last))[0].numpy()
    return found, answer[:, AROUND : AROUND + SIDE, AROUND : AROUND + SIDE]


def test_a_strip_is_one_pass_over_the_slide(whole):
    found, expected = whole
    strip = Strip(found, SCALE, (0, SIDE), read)
    answer = np.concatenate([strip.probabilities(y, y + 64) for y in range(0, SIDE, 64)], 1)
    assert expected.std() > 0.02
    np.testing.assert_allclose(answer, expected, atol=2e-5)


@functools.cache
def everything():
    found = net("decoder")
    return found, Strip(found, SCALE, (0, SIDE), read).probabilities(0, SIDE)


@given(
    left=st.integers(0, 92),
    width=st.integers(1, 100),
    top=st.integers(0, 150),
    cuts=st.lists(st.integers(1, 60), max_size=4),
)
@settings(max_examples=8, deadline=None)
def test_columns_rows_and_cuts_do_not_matter(left, width, top, cuts):
    found, expected = everything()
    strip, y = Strip(found, SCALE, (left, left + width), read), top
    for rows in cuts:
        stop = min(SIDE, y + rows)
        if stop > y:
            np.testing.assert_allclose(
                strip.probabilities(y, stop), expected[:, y:stop, left : left + width], atol=1e-6
            )
        y = max(0, stop - 3)  # as overlapping tiles of another resolution ask


def test_it_may_begin_anywhere_with_the_same_bits():
    found = net("decoder")
    first, second = (Strip(found, SCALE, (10, 190), read) for _ in range(2))
    rows = [first.probabilities(y, y + 64) for y in (0, 64, 128)]
    np.testing.assert_array_equal(second.probabilities(64, 128), rows[1])
    np.testing.assert_array_equal(second.probabilities(128, 192), rows[2])
    np.testing.assert_array_equal(first.probabilities(0, 64), rows[0])  # back to the top


def test_without_onednn_it_says_the_same(monkeypatch):
    found, expected = everything()
    monkeypatch.setattr("napari_sparseseg.learning.fused._has_onednn", lambda: False)
    answer = Strip(found, SCALE, (0, SIDE), read).probabilities(0, SIDE)
    np.testing.assert_allclose(answer, expected, atol=5e-6)


def test_channels_of_one_scale_or_of_several_give_the_same_bits():
    plain = SCALE.unit(IMAGE[None, :40, :40])
    odd = InputScale((0.0, 0.0, 0.0), (255.0, 255.0, 200.0)).unit(IMAGE[None, :40, :40])
    np.testing.assert_array_equal(plain[:, :2].numpy(), odd[:, :2].numpy())


def test_a_strip_that_is_done_with_leaves_memory_at_once():
    slide, model = ArraySlide(IMAGE, mpp=1.0), model_of(net("decoder"))
    with ThreadPoolExecutor(1) as reader:
        strip = SlideStrip(slide, model, slide.frame(1.0), (0, 64), reader, lambda _: None)
        strip.plan(0, 32)
        of_network = model.strip((0, 64), read)
        for found in (strip, of_network):
            found.probabilities(0, 32)
        gone = [weakref.ref(strip), weakref.ref(of_network)]
        gc.disable()
        try:
            del strip, of_network, found
            assert [g() for g in gone] == [None, None]
        finally:
            gc.enable()


def test_what_it_reads_is_what_the_answer_depends_on():
    found = net("decoder")
    strip = Strip(found, SCALE, (0, 64), read)
    first, last = strip.source_rows(64, 128)
    assert 64 - found.receptive_field <= first < 0 < 128 < last <= 128 + found.receptive_field
    assert -found.receptive_field <= strip.source_columns[0] < 0


def test_other_networks_are_given_tiles():
    assert fits_strips(two_speed())
    assert not fits_strips(plain())
    assert model_of(plain()).strip((0, 64), read) is None


@given(mask=st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=8, max_size=8), parts=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_strips_cover_what_is_wanted_once(mask, parts):
    shard = Box(2048, 4096, 2048, 2000)
    wanted = np.array(mask)

    def is_wanted(box):
        return bool(wanted[(box.y - shard.y) // CELL, (box.x - shard.x) // CELL])

    covered = np.zeros((8, 8), int)
    for box in strips_through(shard, is_wanted, float(parts)):
        assert box.intersection(shard) == box
        y, x = (box.y - shard.y) // CELL, (box.x - shard.x) // CELL
        covered[y : y + -(-box.height // CELL), x : x + -(-box.width // CELL)] += 1
    assert covered.max(initial=0) <= 1
    assert (covered[wanted] == 1).all()


def test_a_thread_goes_on_below_and_a_second_one_starts_far_away():
    shards = list(enumerate(shard_grid((5 * 2048, 2 * 2048))))
    unclaimed = _Unclaimed(shards)
    one, two = unclaimed.claims(), unclaimed.claims()
    assert [next(one)[0], next(two)[0], next(one)[0], next(two)[0]] == [0, 1, 2, 3]
    single = _Unclaimed([(i, b) for i, b in shards if b.x == 0])
    one, two = single.claims(), single.claims()
    assert [next(one)[0], next(two)[0]] == [0, 6]
    assert sorted(i for claims in (one, two) for i, _ in claims) == [2, 4, 8]


def test_a_slide_has_the_same_bytes_by_any_number_of_workers_and_the_labels_of_tiles(tmp_path):
    rng = np.random.default_rng(4)
    image = np.full((2900, 200, 3), 243, np.uint8)
    image[1500:2600, 20:180] = np.kron(rng.integers(90, 230, (138, 20, 3)), np.ones((8, 8, 1)))[:1100]
    slide, model = ArraySlide(image, mpp=1.0), model_of(two_speed())
    for name, workers, tile in (("a", 1, None), ("b", 3, None), ("c", 1, 512)):
        result = run_prediction(
            slide, model, tmp_path / f"{name}.ome.zarr", workers=workers, tile=tile, uncertainty=True
        )
    files = [sorted(p for p in (tmp_path / f"{n}.ome.zarr").rglob("*") if p.is_file()) for n in "ab"]
    assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]
    strips, in_tiles = level0(tmp_path / "a.ome.zarr"), level0(tmp_path / "c.ome.zarr")
    assert (strips != in_tiles).mean() < 1e-4
    assert ((strips == 0) == (in_tiles == 0)).all()
    assert result.shards == 2
