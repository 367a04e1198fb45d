"""Regions and outlines of streamed label images against scikit-image, scipy and exact refilling."""

from __future__ import annotations

import tracemalloc

import numpy as np
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from skimage.measure import regionprops

from napari_sparseseg.io.contours import RegionTracer

CROSS = ndimage.generate_binary_structure(2, 1)


def trace(labels, band, min_pixels=1, *, rings=True):
    tracer = RegionTracer(labels.shape[1], min_pixels, rings=rings)
    found = [r for y in range(0, len(labels), band) for r in tracer.feed(labels[y : y + band])]
    return found + tracer.finish()


def polygon(region):
    shell, *holes = [ring[:, ::-1] / 2 for ring in region.rings]
    return shapely.Polygon(shell, holes)


def facts(labels, min_pixels=1):
    """(class, pixels, centroid) of each region by scipy and scikit-image."""
    out = []
    for c in np.unique(labels[labels > 0]):
        numbered, _ = ndimage.label(labels == c, CROSS)
        out += [
            (int(c), int(p.area), *(round(v + 0.5, 6) for v in p.centroid))
            for p in regionprops(numbered)
            if p.area >= min_pixels
        ]
    return sorted(out)


def own_facts(regions):
    return sorted((r.class_id, r.pixels, *(round(v, 6) for v in r.centroid)) for r in regions)


LABELS = arrays(np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.integers(0, 3))


@settings(max_examples=150, deadline=None)
@given(labels=LABELS, band=st.integers(1, 15), least=st.integers(1, 4))
def test_regions_equal_those_of_scipy_in_any_bands(labels, band, least):
    assert own_facts(trace(labels, band, least)) == facts(labels, least)
    assert own_facts(trace(labels, band, least, rings=False)) == facts(labels, least)


@settings(max_examples=150, deadline=None)
@given(labels=LABELS, band=st.integers(1, 15))
def test_outlines_are_valid_and_hold_exactly_their_pixels(labels, band):
    y, x = np.mgrid[: labels.shape[0], : labels.shape[1]] + 0.5
    filled = np.zeros_like(labels)
    for region in trace(labels, band):
        shape = polygon(region)
        assert shape.is_valid
        inside = shapely.contains_xy(shape, x, y)
        assert inside.sum() == region.pixels
        filled[inside] = region.class_id
    np.testing.assert_array_equal(filled, labels)


def test_a_square_with_a_hole_by_hand():
    labels = np.zeros((6, 7), np.uint8)
    labels[1:5, 1:6] = 9
    labels[2:4, 3] = 0
    (region,) = trace(labels, 2)
    assert (region.class_id, region.pixels) == (9, 18)
    # 4 x 5 square and 2 x 1 hole; each of their four corners is cut by a triangle of 1/8 px^2.
    shell, hole = (shapely.Polygon(ring[:, ::-1] / 2) for ring in region.rings)
    assert shell.area == 20 - 4 / 8
    assert hole.area == 2 - 4 / 8
    assert shell.bounds == (1, 1, 6, 5)
    assert hole.bounds == (3, 2, 4, 4)


def test_pixels_that_touch_at_a_corner_are_two_regions():
    assert len(trace(np.array([[1, 0], [0, 1]], np.uint8), 1)) == 2


def test_a_spiral_through_every_band_is_one_region():
    spiral = np.zeros((41, 41), np.uint8)
    y = x = 20
    dy, dx, length = 0, 1, 2
    while length < 40:
        for _ in range(2):
            for _ in range(length):
                spiral[y, x] = 4
                y, x = y + dy, x + dx
            dy, dx = dx, -dy
        length += 2
    (region,) = trace(spiral, 3)
    assert region.pixels == (spiral > 0).sum()
    assert polygon(region).is_valid
    assert len(region.rings) == 1


def test_a_comb_joins_regions_that_were_open_apart():
    comb = np.zeros((30, 61), np.uint8)
    comb[:29, ::2] = 1
    comb[29] = 1
    (region,) = trace(comb, 4)
    assert region.pixels == comb.sum()
    assert polygon(region).is_valid


def test_memory_is_that_of_a_band_not_of_the_number_of_regions():
    dots = np.zeros((40, 400), np.uint8)
    dots[1::4, 1::4] = 1

    def peak(bands):
        tracer, count = RegionTracer(400), 0
        tracemalloc.start()
        for _ in range(bands):
            count += len(tracer.feed(dots))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return count, most

    few, small = peak(2)
    many, large = peak(12)
    assert many == 6 * few
    assert large < 1.2 * small
