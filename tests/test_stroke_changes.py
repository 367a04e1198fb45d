"""Strokes removed and given another class afterwards, against drawing without them, and undone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_sparseseg.annotations import Annotations
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.geometry import Box

H, W = 700, 900
WHOLE = Box(0, 0, H, W)
CLASSES = [("tumour", "#e6194b"), ("stroma", "#3cb44b"), ("fat", "#ffe119")]


def square(y, x, side):
    return [(y, x), (y, x + side), (y + side, x + side), (y + side, x)]


@pytest.fixture
def a():
    return Annotations((H, W), classes=CLASSES)


def test_a_removed_square_leaves_what_another_of_its_class_covers(a):
    """Squares of 100 px at 0 and 50: 10,000 + 10,000 - 2,500 px; without the first, the second is whole."""
    a.fill_polygon(square(0, 0, 100), 1)
    a.fill_polygon(square(50, 50, 100), 1)
    assert a.counts()[1] == 17_500
    first, second = a.strokes
    a.change_strokes([first.id], 0)
    assert a.counts() == {1: 10_000, 2: 0, 3: 0}
    assert a.read(Box(50, 50, 100, 100)).all()
    assert a.strokes == (second,)
    assert a.history.next_undo.title == "removal of polygon"


def test_what_another_class_has_drawn_over_stays(a):
    a.fill_polygon(square(0, 0, 100), 1)
    a.fill_polygon(square(50, 50, 100), 2)
    a.erase([(10, 10)], 3)
    a.change_strokes([a.strokes[0].id], 3)
    assert a.counts()[2] == 10_000
    assert a.counts()[1] == 0
    assert 7_460 < a.counts()[3] < 7_500, "a hole was erased"
    assert [s.class_id for s in a.strokes] == [3, 2, 0]
    assert a.history.next_undo.title == "polygon to fat"


def test_a_dense_region_changes_in_its_place_below_the_later_one(a):
    for n, (y, class_id) in enumerate(((0, 1), (50, 2), (100, 1))):
        a.fill_polygon(square(y, 10 * n, 100), class_id, dense=True)
    before = a.read(WHOLE)
    first, second, third = a.dense_regions
    a.change_strokes([second.id], 3)
    np.testing.assert_array_equal(a.read(WHOLE), np.where(before == 2, 3, before))
    assert [r.id for r in a.dense_regions] == [first.id, second.id, third.id]
    a.change_strokes([first.id, third.id], 0)
    assert a.counts() == {1: 0, 2: 0, 3: 10_000}
    a.undo()
    a.undo()
    np.testing.assert_array_equal(a.read(WHOLE), before)


def test_a_region_beside_a_removed_one_is_not_drawn_over(a):
    """Third over second, second over first; only the first goes, and the third must stay on top of the second."""
    a.fill_polygon(square(0, 0, 100), 1, dense=True)
    a.fill_polygon(square(50, 50, 200), 2, dense=True)
    a.fill_polygon(square(150, 150, 50), 3, dense=True)
    a.remove_dense_region(a.dense_regions[0].id)
    assert a.counts() == {1: 0, 2: 40_000 - 2_500, 3: 2_500}


def test_what_cannot_be_changed_is_said(a):
    a.paint([(10, 10)], 4, 1)
    with pytest.raises(AnnotationError, match="no stroke or dense region 77"):
        a.change_strokes([77], 2)
    with pytest.raises(AnnotationError, match="no class 9"):
        a.change_strokes([a.strokes[0].id], 9)
    a.begin_stroke(2)
    with pytest.raises(AnnotationError, match="stroke is open"):
        a.change_strokes([a.strokes[0].id], 2)
    a.abort_stroke()
    version = a.version
    a.change_strokes([a.strokes[0].id], 1)
    assert a.version == version, "it has that class already"


def test_it_is_on_disk_at_once(a, tmp_path):
    a.attach(tmp_path / "a.sqlite")
    a.paint([(100, 100), (300, 400)], 30, 1)
    a.paint([(200, 100), (100, 400)], 12, 1)
    a.fill_polygon(square(400, 400, 90), 2, dense=True)
    ids = [s.id for s in (*a.strokes, *a.dense_regions)]
    a.change_strokes([ids[0], ids[2]], 3)
    a.change_strokes([ids[1]], 0)
    a.close()
    again = Annotations.load(tmp_path / "a.sqlite")
    np.testing.assert_array_equal(again.read(WHOLE), a.read(WHOLE))
    assert [(s.id, s.class_id) for s in again.strokes] == [(ids[0], 3)]
    assert [(s.id, s.class_id) for s in again.dense_regions] == [(ids[2], 3)]


def quarters(high):
    """Numbers that single precision, in which outlines are stored, holds exactly."""
    return st.integers(0, 4 * high).map(lambda n: n / 4)


points = st.tuples(quarters(H), quarters(W))
brush = st.tuples(st.lists(points, min_size=1, max_size=4), quarters(60).map(lambda r: r + 1), st.integers(1, 3))
polygon = st.tuples(st.lists(points, min_size=3, max_size=5), st.just(0.0), st.integers(1, 3))


def put(a, path, radius, class_id):
    if radius:
        a.paint(path, radius, class_id)
    else:
        a.fill_polygon(path, class_id)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(brush, polygon), min_size=1, max_size=5), st.integers(0, 4), st.integers(1, 3))
def test_any_stroke_goes_without_a_trace_and_comes_back(drawn, pick, step):
    """A stroke's pixels: covered by it, of its class still, and covered by no other stroke of this class."""
    a = Annotations((H, W), classes=CLASSES)
    masks = {}
    for one in drawn:
        put(a, *one)
        if len(a.strokes) > len(masks):  # not where it missed the slide, or changed nothing
            alone = Annotations((H, W), classes=CLASSES)
            put(alone, *one)
            masks[a.strokes[-1].id] = alone.read(WHOLE) > 0
    if not masks:
        return
    picked = a.strokes[pick % len(masks)]
    before, counts, old = a.read(WHOLE), a.counts(), picked.class_id
    new = (old + step) % 4
    own = masks[picked.id] & (before == old)
    for other in a.strokes:
        if other.class_id == old and other is not picked:
            own &= ~masks[other.id]
    a.change_strokes([picked.id], new)
    np.testing.assert_array_equal(a.read(WHOLE), np.where(own, new, before))
    assert {s.id: s.class_id for s in a.strokes}.get(picked.id, 0) == new
    a.undo()
    np.testing.assert_array_equal(a.read(WHOLE), before)
    assert a.counts() == counts
    assert [s.class_id for s in a.strokes if s.id == picked.id] == [old]
