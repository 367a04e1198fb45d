"""The store behind the live layers, against dense arrays."""

from __future__ import annotations

import numpy as np
import pytest

from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.prediction.live_view import View, plan
from napari_sparseseg.prediction.tile_store import (
    CHANGED,
    LABELS,
    PROBABILITY,
    TILE,
    UNCERTAINTY,
    LiveLevel,
    Tile,
    TileStore,
    encode,
    live_levels,
)


def tile(value, version=1, channels=5):
    return Tile(np.full((channels, TILE, TILE), value, np.uint8), version, 1)


def test_levels_are_exact_halves_and_cover_the_slide():
    store = TileStore((5000, 3001), 5)
    assert store.shapes[0][0] >= 5000
    assert store.shapes[0][1] >= 3001
    for fine, coarse in zip(store.shapes, store.shapes[1:], strict=False):
        assert fine == (coarse[0] * 2, coarse[1] * 2)
    assert max(store.shapes[-1]) <= 1024


def test_every_level_shows_the_nearest_pixel_of_level_0():
    rng = np.random.default_rng(0)
    store = TileStore((4096, 4096), 5)
    dense = np.zeros(store.shapes[0], np.uint8)
    for i, j in [(0, 0), (2, 3), (7, 7), (2, 2)]:
        data = rng.integers(0, 255, (5, TILE, TILE), dtype=np.uint8)
        store.put((0, i, j), Tile(data, 1, 1))
        dense[i * TILE : (i + 1) * TILE, j * TILE : (j + 1) * TILE] = data[LABELS]
    for level, shape in enumerate(store.shapes):
        step = 1 << level
        np.testing.assert_array_equal(store.read(LABELS, level, Box(0, 0, *shape)), dense[::step, ::step])


def test_missing_tile_shows_its_coarse_ancestor_enlarged():
    store = TileStore((4096, 4096), 5)
    data = np.arange(TILE * TILE, dtype=np.uint32).astype(np.uint8).reshape(TILE, TILE)
    store.put((1, 1, 2), Tile(np.stack([data] * 5), 1, 1))
    shown = store.read(LABELS, 0, Box(2 * TILE + 10, 4 * TILE + 20, 31, 33))
    np.testing.assert_array_equal(shown, data.repeat(2, 0).repeat(2, 1)[10:41, 20:53])


def test_a_finer_tile_keeps_the_rest_of_its_coarse_parent():
    store = TileStore((4096, 4096), 5)
    store.put((1, 0, 0), tile(9))
    store.put((0, 0, 0), tile(4))
    shown = store.read(LABELS, 1, Box(0, 0, TILE, TILE))
    assert (shown[: TILE // 2, : TILE // 2] == 4).all()
    assert (shown[TILE // 2 :] == 9).all()


def test_budget_drops_the_oldest_but_not_the_wanted():
    store = TileStore((16384, 16384), 5, budget=(5 * TILE * TILE) * 8)
    kept = frozenset({(0, 0, 0)})
    for j in range(32):
        store.put((0, 0, j), tile(1), kept)
    assert store.nbytes <= 8 * 5 * TILE * TILE + store.top.nbytes
    assert store.get((0, 0, 0)) is not None
    assert store.get((0, 0, 1)) is None


def test_small_slide_has_two_levels_and_remembers_versions():
    store = TileStore((700, 600), 4)
    assert store.shapes == [(700, 600), (350, 300)]
    store.put((0, 0, 0), tile(3, version=5, channels=4))
    assert store.model_version((0, 0, 0)) == 5
    assert store.read(LABELS, 0, Box(0, 0, 512, 512)).min() == 3
    assert store.model_version((0, 1, 1)) == -1


def test_live_level_slices_like_numpy_and_refuses_to_be_read_whole():
    store = TileStore((4096, 4096), 4)
    store.put((0, 1, 1), Tile(np.random.default_rng(1).integers(0, 9, (4, TILE, TILE), dtype=np.uint8), 1, 1))
    level = LiveLevel(store, LABELS, 0)
    dense = store.read(LABELS, 0, Box(0, 0, *store.shapes[0]))
    np.testing.assert_array_equal(level[500:900, 600:], dense[500:900, 600:])
    np.testing.assert_array_equal(level[700, ::7], dense[700, ::7])
    assert level[-1, -1] == dense[-1, -1]
    with pytest.raises(MemoryError):
        np.asarray(level)


def test_coarsest_level_is_the_live_array():
    store = TileStore((4096, 4096), 4)
    top = live_levels(store, LABELS)[-1]
    store.put((0, 0, 0), tile(7, channels=4))
    assert top[0, 0] == 7


def test_encode_by_hand():
    probabilities = np.array([[[1.0, 0.5]], [[0.0, 0.5]]], np.float32)
    labels = np.array([[1, 2]], np.uint8)
    packed = encode(labels, probabilities, np.array([[2, 2]], np.uint8))
    assert packed[UNCERTAINTY].tolist() == [[0, 255]]
    assert packed[CHANGED].tolist() == [[255, 0]]
    assert packed[PROBABILITY].tolist() == [[255, 128]]
    assert packed[PROBABILITY + 1].tolist() == [[0, 128]]


def test_plan_of_a_small_view_goes_from_the_centre_out_then_the_margin():
    store = TileStore((8192, 8192), 4)
    wanted = plan(View(Box(2048, 2048, 1024, 1024), 1.0), Frame(), store)
    assert set(wanted[:4]) == {(0, 4, 4), (0, 4, 5), (0, 5, 4), (0, 5, 5)}
    assert set(wanted[4:]) == {(0, i, j) for i in range(3, 7) for j in range(3, 7)} - set(wanted[:4])


def test_plan_of_a_wide_view_is_coarse_first_and_bounded():
    store = TileStore((100_000, 100_000), 4)
    wanted = plan(View(Box(0, 0, 100_000, 100_000), 100.0), Frame(), store)
    levels = [key[0] for key in wanted]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] > 0
    assert levels.count(0) <= 64


def test_plan_outside_the_slide_is_empty():
    store = TileStore((1000, 1000), 4)
    assert plan(View(Box(5000, 5000, 100, 100), 1.0), Frame(), store) == []
