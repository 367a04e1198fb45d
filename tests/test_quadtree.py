"""The sparse quadtree against a dense array, under random histories."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from napari_sparseseg.annotations import packing
from napari_sparseseg.annotations.quadtree import LabelQuadtree
from napari_sparseseg.annotations.transaction import zoomed
from napari_sparseseg.errors import AnnotationError

SHAPE = (610, 1101)


def new_tree(shape=SHAPE):
    """Several levels on a small slide, and hardly any raw chunks, so that every path is covered."""
    return LabelQuadtree(shape, coarsest=200, open_chunks=3)


def enlarged(mask, level):
    return mask.repeat(1 << level, 0).repeat(1 << level, 1)


def pooled(dense):
    return dense.reshape(dense.shape[0] // 2, 2, dense.shape[1] // 2, 2).max((1, 3))


class Histories(RuleBasedStateMachine):
    """Paint, erase, preserve, relabel, commit, abort, undo and redo; the oracle is one array of the padded size."""

    @initialize()
    def start(self):
        self.tree = new_tree()
        self.dense = np.zeros(self.tree.shapes[0], np.uint8)
        self.open = None
        self.done, self.undone = [], []
        self.frozen = []

    @precondition(lambda self: self.open is None)
    @rule()
    def begin(self):
        self.tree.begin()
        self.open = self.dense.copy()

    @precondition(lambda self: self.open is not None)
    @rule(
        level=st.integers(0, 3),
        corner=st.tuples(st.floats(-0.1, 1), st.floats(-0.1, 1)),
        size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
        share=st.sampled_from([0.02, 0.6, 1.0]),
        label=st.integers(0, 3),
        keep=st.sampled_from([None, None, 0, 1, 2]),
        live=st.booleans(),
        seed=st.integers(0, 99),
    )
    def paint(self, level, corner, size, share, label, keep, live, seed):
        level = min(level, self.tree.top_level)
        y, x = (int(c * n) for c, n in zip(corner, self.tree.shapes[level], strict=True))
        mask = np.random.default_rng(seed).random(size) < share
        box = self.tree.paint_mask(level, y, x, mask, label, keep, live=live)
        big = np.zeros(self.dense.shape, bool)
        up = enlarged(mask, level)
        y, x = y << level, x << level
        part = up[max(0, -y) : max(0, SHAPE[0] - y), max(0, -x) : max(0, SHAPE[1] - x)]
        big[max(0, y) : max(0, y) + part.shape[0], max(0, x) : max(0, x) + part.shape[1]] = part
        if keep is not None:
            big &= self.open == keep
        if box is None:
            assert label == keep or not big.any()
        elif big.any():
            rows, columns = np.nonzero(big)
            assert box.y <= rows.min()
            assert rows.max() < box.y1
            assert box.x <= columns.min()
            assert columns.max() < box.x1
        self.open[big] = label
        np.testing.assert_array_equal(self.read(0), self.open)

    @precondition(lambda self: self.open is not None)
    @rule(old=st.integers(1, 3), new=st.integers(0, 3))
    def replace(self, old, new):
        self.tree.replace_label(old, new)
        self.open[self.open == old] = new

    @precondition(lambda self: self.open is not None)
    @rule()
    def commit(self):
        change = self.tree.commit()
        assert (change is not None) == (self.open != self.dense).any()
        if change is not None:
            self.done.append((change, self.dense))
            self.undone.clear()
        self.dense, self.open = self.open, None

    @precondition(lambda self: self.open is not None)
    @rule()
    def abort(self):
        self.tree.abort()
        self.open = None

    @precondition(lambda self: self.open is None and self.done)
    @rule()
    def undo(self):
        change, before = self.done.pop()
        self.tree.apply(change.inverse())
        self.undone.append((change, self.dense))
        self.dense = before

    @precondition(lambda self: self.open is None and self.undone)
    @rule()
    def redo(self):
        change, after = self.undone.pop()
        self.tree.apply(change)
        self.done.append((change, self.dense))
        self.dense = after

    @rule()
    def freeze(self):
        self.frozen = [*self.frozen[-2:], (self.tree.freeze(), self.dense)]

    def read(self, level, tree=None):
        tree = tree or self.tree
        height, width = tree.shapes[level]
        return tree.read(level, 0, height, 0, width)

    @invariant()
    def exact_at_every_level(self):
        for tree, dense in [*self.frozen, *([(self.tree, self.dense)] if self.open is None else [])]:
            level0 = dense
            for level in range(tree.top_level + 1):
                np.testing.assert_array_equal(self.read(level, tree), dense)
                dense = pooled(dense) if level < tree.top_level else dense
            rows, columns = np.arange(-7, SHAPE[0], 13), np.arange(3, SHAPE[1] + 30, 17)
            expected = np.zeros((len(rows), len(columns)), np.uint8)
            inside = np.ix_((rows >= 0) & (rows < SHAPE[0]), columns < SHAPE[1])
            expected[inside] = level0[np.ix_(rows[rows >= 0], columns[columns < SHAPE[1]])]
            frozen = tree.freeze() if tree is self.tree else tree
            np.testing.assert_array_equal(frozen.sample(rows, columns), expected)
        if self.open is None:
            np.testing.assert_array_equal(self.tree.top, self.read(self.tree.top_level))
            counts = np.bincount(self.dense.reshape(-1), minlength=256)
            np.testing.assert_array_equal(self.tree.counts()[1:], counts[1:])


Histories.TestCase.settings = settings(
    max_examples=6, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestHistories = Histories.TestCase


def stroke(tree, level, y, x, mask, label, keep=None):
    tree.begin()
    tree.paint_mask(level, y, x, mask, label, keep)
    return tree.commit()


def test_painting_over_fine_chunks_from_rim_to_rim_drops_them():
    tree = new_tree((4096, 4096))
    noise = np.random.default_rng(0).random((1024, 1024)) < 0.5
    stroke(tree, 0, 1024, 1024, noise, 1)
    assert len(tree.freeze().levels[0]) == 16
    stroke(tree, 2, 200, 200, np.ones((400, 400), bool), 2)
    assert len(tree.freeze().levels[0]) == 0
    assert tree.counts()[[1, 2]].tolist() == [0, 1600**2]


def test_erasing_everything_leaves_nothing():
    tree = new_tree((4096, 4096))
    rng = np.random.default_rng(1)
    for _ in range(5):
        stroke(tree, 0, *rng.integers(0, 3500, 2).tolist(), rng.random((300, 300)) < 0.3, 1)
    stroke(tree, tree.top_level, 0, 0, np.ones((4096, 4096), bool), 0)
    assert tree.packed() == {}
    assert not tree.top.any()


def test_chunks_are_small_when_at_rest():
    tree = new_tree((100_000, 100_000))
    mask = np.zeros((4000, 4000), bool)
    mask[1000:1100] = mask[:, 500:600] = True
    stroke(tree, 0, 50_000, 50_000, mask, 1)
    chunks = tree.packed()
    assert len(chunks) > 25
    raw = len(chunks) * packing.PIXELS
    assert sum(map(len, chunks.values())) < raw / 20


def test_packing_keeps_every_chunk():
    rng = np.random.default_rng(2)
    for chunk in (
        np.full((256, 256), 7, np.uint8),
        rng.integers(0, 256, (256, 256), dtype=np.uint8),
        (rng.random((256, 256)) < 0.05).astype(np.uint8) * 255,
        np.arange(65536, dtype=np.uint32).reshape(256, 256).astype(np.uint8),
    ):
        packed = packing.pack(chunk)
        np.testing.assert_array_equal(packing.unpack(packed), chunk)
        values, n = np.unique(chunk[chunk > 0], return_counts=True)
        assert packing.label_counts(packed) == tuple(zip(values.tolist(), n.tolist(), strict=True))


def test_results_for_chunks_are_cached_up_to_a_number_of_bytes():
    calls = []

    @packing.cached_for_chunks(10 * (packing.ENTRY_BYTES + 1000))
    def length(chunk, factor=1):
        calls.append(chunk)
        return len(chunk) * factor

    chunks = [bytes([k]) * 1000 for k in range(20)]
    assert [length(chunk) for chunk in chunks] == [1000] * 20
    assert [length(chunk, 2) for chunk in chunks[:5]] == [2000] * 5
    assert len(calls) == 25
    assert [length(chunk) for chunk in chunks[-5:]] == [1000] * 5  # the last five of the first round are still there
    assert len(calls) == 25
    length(chunks[0])
    assert len(calls) == 26
    assert length(bytes(20_000)) == 20_000  # larger than the cache


@pytest.mark.parametrize("data", [b"", b"U", b"R\0", b"R\0\0\1", b"Zxx", b"X1", b"U\1\1"])
def test_bytes_that_are_no_chunk_are_refused(data):
    with pytest.raises(ValueError, match="chunk"):
        packing.unpack(data)


def test_levels_for_the_viewer():
    tree = new_tree((3001, 2000))
    levels = tree.levels()
    shapes = [level.shape for level in levels]
    assert all(a == (2 * b[0], 2 * b[1]) for a, b in itertools.pairwise(shapes))
    assert levels[-1] is tree.top
    stroke(tree, 0, 10, 20, np.ones((5, 6), bool), 3)
    assert levels[0][10:15, 20:26].tolist() == [[3] * 6] * 5
    assert levels[0][12, 21] == 3
    assert levels[0][-1].shape == (tree.shapes[0][1],)
    with pytest.raises(AnnotationError, match="read a box"):
        np.asarray(levels[0])
    with pytest.raises(IndexError):
        levels[0][::2]


def test_frozen_copy_stays_while_another_thread_reads():
    tree = new_tree((3000, 3000))
    stroke(tree, 0, 0, 0, np.ones((2000, 2000), bool), 1)
    frozen = tree.freeze()
    wrong = []
    stop = threading.Event()

    def watch():
        while not stop.is_set():
            if not (frozen.read(0, 0, 700, 0, 700) == 1).all() or frozen.read(1, 1100, 1200, 0, 100).any():
                wrong.append(1)

    reader = threading.Thread(target=watch)
    reader.start()
    for k in range(30):
        stroke(tree, k % 3, 0, 0, np.random.default_rng(k).random((400, 400)) < 0.5, 2 + k % 3)
    stop.set()
    reader.join()
    assert not wrong


def test_only_one_transaction_at_a_time():
    tree = new_tree((100, 100))
    with pytest.raises(AnnotationError, match="no stroke is open"):
        tree.paint_mask(0, 0, 0, np.ones((1, 1), bool), 1)
    tree.begin()
    with pytest.raises(AnnotationError, match="open already"):
        tree.begin()


@pytest.mark.parametrize("shape", [(0, 10), (10, -1), (1 << 40, 10)])
def test_impossible_slides_are_refused(shape):
    with pytest.raises(AnnotationError, match="slide shape"):
        new_tree(shape)


def test_a_level_finer_by_more_than_a_chunk():
    mask = np.zeros((256, 256), bool)
    mask[3, 5] = True
    assert zoomed(mask, (3 * 4, 5 * 4), 10).all()
    assert not zoomed(mask, (3 * 4 - 1, 5 * 4), 10).any()
