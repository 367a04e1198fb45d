"""Boxes, frames and tile grids against hand numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_sparseseg.geometry import Box, Frame, tiles

boxes = st.builds(Box, st.integers(-500, 500), st.integers(-500, 500), st.integers(1, 300), st.integers(1, 300))


def test_intersection_and_union_by_hand():
    a, b = Box(0, 0, 10, 10), Box(5, 8, 10, 10)
    assert a.intersection(b) == Box(5, 8, 5, 2)
    assert a.union(b) == Box(0, 0, 15, 18)
    assert a.intersection(Box(20, 20, 5, 5)).area == 0


@given(boxes, boxes)
def test_intersection_is_inside_both_and_union_holds_both(a, b):
    inside = a.intersection(b)
    if inside.area:
        assert a.contains(inside)
        assert b.contains(inside)
    assert a.union(b).contains(a)
    assert a.union(b).contains(b)


@pytest.mark.parametrize(
    ("downsample", "shape", "expected"),
    [((1.0, 1.0), (100, 70), (100, 70)), ((4.0, 4.0), (101, 70), (26, 18)), ((4.008, 4.008), (2967, 2220), (741, 554))],
)
def test_frame_shape_covers_the_slide(downsample, shape, expected):
    assert Frame(downsample).shape(shape) == expected


def test_frame_shape_ignores_rounding_noise():
    # 1.0 / 0.1 is 10.000000000000002 in floats for some quotients; the frame must not grow a row for it
    assert Frame((0.1 * 3, 0.1 * 3)).shape((300, 300)) == (1000, 1000)


@given(boxes, st.floats(0.3, 40), st.floats(0.3, 40))
def test_cover_covers(box, dy, dx):
    frame = Frame((dy, dx))
    assert frame.level0(frame.cover(box)).grown(1).contains(box)


def test_region_rounds_origin_and_size():
    assert Frame((4.0, 2.0)).region((10, 10, 40, 40)) == Box(2, 5, 10, 20)
    assert Frame((100.0, 100.0)).region((0, 0, 3, 3)) == Box(0, 0, 1, 1)


@given(boxes, st.integers(24, 200))
def test_tiles_cover_the_region_once(region, size):
    cells = list(tiles(region, size))
    assert len(set(cells)) == len(cells)
    assert all(c.y % size == 0 and c.x % size == 0 and c.intersection(region).area for c in cells)
    assert sum(c.intersection(region).area for c in cells) == region.area
