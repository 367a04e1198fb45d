"""Labels that must not be painted over: the quadtree against a plain array that is painted the same way."""

from __future__ import annotations

import numpy as np
import pytest

from napari_sparseseg.annotations import Annotations
from napari_sparseseg.geometry import Box

SIDE = 700
ALL = frozenset(range(256))


@pytest.mark.parametrize("locked", [{1}, {2, 3}, {1, 2, 3}])
def test_locked_labels_stay_under_any_brush(locked):
    """Thin brushes write at level 0, thick ones at coarser levels whose chunks have finer ones below them."""
    rng = np.random.default_rng(len(locked))
    ours = Annotations((SIDE, SIDE), ["a", "b", "c", "d"])
    for label, radius in ((1, 6), (2, 90), (3, 25)):
        ours.paint(rng.uniform(0, SIDE, (4, 2)), radius, label)
    for radius in (3, 30, 200):
        before = ours.snapshot().read(Box(0, 0, SIDE, SIDE))
        ours.begin_stroke(4, keep=ALL - locked)
        p, q = rng.uniform(0, SIDE, (2, 2))
        ours.extend_stroke(p, q, radius)
        ours.commit_stroke()
        after = ours.snapshot().read(Box(0, 0, SIDE, SIDE))
        kept = np.isin(before, list(locked))
        assert kept.any()
        np.testing.assert_array_equal(after[kept], before[kept])
        assert (after[~kept] != before[~kept]).any()
        assert set(np.unique(after[after != before])) == {4}


def test_erasing_spares_locked_labels_and_undo_brings_the_rest_back():
    ours = Annotations((SIDE, SIDE), ["a", "b"])
    ours.paint([(100, 100), (100, 600)], 40, 1)
    ours.paint([(300, 100), (300, 600)], 40, 2)
    before = ours.snapshot().read(Box(0, 0, SIDE, SIDE))
    ours.begin_stroke(0, kind="erase", keep=ALL - {1})
    ours.extend_stroke((0, 350), (699, 350), 300)
    ours.commit_stroke()
    after = ours.snapshot().read(Box(0, 0, SIDE, SIDE))
    np.testing.assert_array_equal(after == 1, before == 1)
    assert (after == 2).sum() < (before == 2).sum()
    ours.undo()
    np.testing.assert_array_equal(ours.snapshot().read(Box(0, 0, SIDE, SIDE)), before)
