"""Clean-up of label images: by hand, against scikit-image on the whole image, and whatever the size of the blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from skimage.filters.rank import majority as rank_majority
from skimage.measure import label, regionprops
from skimage.morphology import remove_small_holes, remove_small_objects

from napari_sparseseg.geometry import Box, tiles
from napari_sparseseg.prediction.results.components import BlockGraph, BlockRuns, cleaned_classes
from napari_sparseseg.prediction.results.separation import cut_touching
from napari_sparseseg.prediction.results.smoothing import half_widths, majority_within

mosaics = st.tuples(st.integers(3, 24), st.integers(3, 24)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 3))
)


def in_blocks(labels, side, holes, smallest):
    """The label image after filling and merging, from blocks of a size."""
    whole = Box(0, 0, *labels.shape)
    blocks = [b.intersection(whole) for b in tiles(whole, side)]
    graphs = [BlockGraph.of(labels[b.slices()]) for b in blocks]
    out = np.zeros_like(labels)
    classes = cleaned_classes(graphs, -(-labels.shape[1] // side), holes, smallest)
    for block, of_block in zip(blocks, classes, strict=True):
        out[block.slices()] = BlockRuns.of(labels[block.slices()]).painted(of_block, block.width)
    return out


def filled(labels, most):
    """Holes filled, by scikit-image's labels of the whole image."""
    found = []
    for c in np.unique(labels[labels > 0]):
        numbers = label(labels != c, connectivity=1, background=0)
        padded = np.pad(labels, 1)
        for region in regionprops(numbers):
            mask = numbers == region.label
            edge = mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()
            beside_nothing = (ndimage.binary_dilation(np.pad(mask, 1)) & (padded == 0)).any()
            if region.area <= most and not edge and not beside_nothing:
                found.append((-region.area, c, mask))
    out, done = labels.copy(), np.zeros(labels.shape, bool)
    for _, c, mask in sorted(found, key=lambda f: f[:2]):
        out[mask & ~done] = c
        done |= mask
    return out


def merged(labels, least):
    """Small regions merged round by round, by scikit-image's labels of the whole image."""
    numbers = label(labels, connectivity=1, background=0)
    area = {r.label: r.area for r in regionprops(numbers)}
    cls = {n: int(labels[numbers == n][0]) for n in area}
    waiting = {n for n in area if area[n] < least}
    border: dict[int, dict[int, int]] = {n: {} for n in area}
    pairs = np.concatenate(
        [
            np.stack([p.ravel(), q.ravel()], 1)
            for p, q in ((numbers[:-1], numbers[1:]), (numbers[:, :-1], numbers[:, 1:]))
        ]
    )
    for a, b in pairs.tolist():
        if a != b and a and b:
            border[a][b] = border[a].get(b, 0) + 1
            border[b][a] = border[b].get(a, 0) + 1
    while True:
        decided = {}
        for n in waiting:
            votes: dict[int, int] = {}
            for other, sides in border[n].items():
                if other not in waiting:
                    votes[cls[other]] = votes.get(cls[other], 0) + sides
            if votes:
                decided[n] = min(votes, key=lambda c: (-votes[c], c))
        if not decided:
            break
        cls.update(decided)
        waiting -= decided.keys()
    return np.array([0, *(cls[n] for n in sorted(cls))], np.uint8)[numbers]


@settings(max_examples=60, deadline=None)
@given(labels=mosaics, side=st.integers(1, 24), most=st.integers(1, 40))
def test_holes_are_those_of_the_whole_image_whatever_the_blocks(labels, side, most):
    np.testing.assert_array_equal(in_blocks(labels, side, most, 0), filled(labels, most))


@settings(max_examples=60, deadline=None)
@given(labels=mosaics, side=st.integers(1, 24), least=st.integers(1, 30))
def test_small_regions_are_merged_as_on_the_whole_image_whatever_the_blocks(labels, side, least):
    np.testing.assert_array_equal(in_blocks(labels, side, 0, least), merged(labels, least))


@settings(max_examples=25, deadline=None)
@given(labels=mosaics, side=st.integers(2, 24), least=st.integers(1, 30), most=st.integers(1, 40))
def test_after_both_no_small_region_is_left_but_where_there_is_no_other(labels, side, least, most):
    out = in_blocks(labels, side, most, least)
    np.testing.assert_array_equal(out, merged(filled(labels, most), least))
    np.testing.assert_array_equal(out == 0, labels == 0)
    islands = label(out > 0, connectivity=1)
    for region in regionprops(label(out, connectivity=1, background=0)):
        around = islands == islands[tuple(region.coords[0])]
        large = [r.area >= least for r in regionprops(label(np.where(around, out, 0), connectivity=1, background=0))]
        assert region.area >= least or not any(large)


@pytest.mark.parametrize("size", [2, 9, 40])
def test_with_two_classes_it_is_what_scikit_image_does_to_a_mask(size):
    """Spots in a frame, for scikit-image also fills what the edge cuts."""
    rng = np.random.default_rng(size)
    spots = np.pad(ndimage.gaussian_filter(rng.random((60, 70)), 1.2) > 0.6, 4)
    assert regionprops(label(~spots, connectivity=1))[0].area > size
    assert label(spots, connectivity=1).max() > 5
    out = in_blocks(spots.astype(np.uint8) + 1, 13, 0, size) == 2
    np.testing.assert_array_equal(out, remove_small_objects(spots, max_size=size - 1, connectivity=1))
    out = in_blocks(spots.astype(np.uint8) + 1, 13, size, 0) == 1
    np.testing.assert_array_equal(out, remove_small_holes(~spots, max_size=size, connectivity=1))


def test_a_speck_takes_the_class_with_the_longest_border_and_zeros_are_left():
    labels = np.array([[1, 1, 1, 2, 2], [1, 1, 3, 2, 2], [1, 1, 1, 2, 2], [0, 0, 0, 0, 0], [0, 3, 0, 0, 0]], np.uint8)
    out = in_blocks(labels, 2, 0, 2)
    assert out[1, 2] == 1
    assert out[4, 1] == 3, "nothing larger is beside it"
    np.testing.assert_array_equal(out == 0, labels == 0)


@settings(max_examples=25, deadline=None)
@given(labels=mosaics, radius=st.sampled_from([1.0, 1.5, 2.3, 3.0]))
def test_smoothing_is_the_majority_of_scikit_image_where_one_class_leads(labels, radius):
    widths = half_widths(radius, (1, 1))
    rows, columns = len(widths) // 2, int(widths.max())
    out = majority_within(np.pad(labels, ((rows, rows), (columns, columns))), widths)
    y, x = np.mgrid[-rows : rows + 1, -columns : columns + 1]
    disc = (y**2 + x**2 <= radius**2 + 1e-6).astype(np.uint8)
    counts = np.stack([ndimage.convolve((labels == c).astype(int), disc, mode="constant") for c in (1, 2, 3)])
    leads = ((counts == counts.max(axis=0)).sum(axis=0) == 1) & (labels > 0)
    expected = rank_majority(labels, disc, mask=(labels > 0).astype(np.uint8))
    np.testing.assert_array_equal(out[leads], expected[leads])
    np.testing.assert_array_equal(out == 0, labels == 0)
    own = np.take_along_axis(counts, labels[None].astype(int) - 1, 0)[0]
    stays = (labels > 0) & (own == counts.max(axis=0))
    np.testing.assert_array_equal(out[stays], labels[stays])


def test_a_disc_in_micrometres_is_an_ellipse_of_oblong_pixels():
    assert half_widths(2.0, (1.0, 0.5)).tolist() == [0, 3, 4, 3, 0]
    large = half_widths(12, (1, 1))
    window = np.ones((60, 60), np.uint8)
    window[:, 30:] = 2
    np.testing.assert_array_equal(majority_within(np.pad(window, 12), large), window)


def discs(*circles, shape=(80, 120)):
    y, x = np.mgrid[: shape[0], : shape[1]]
    out = np.ones(shape, np.uint8)
    for cy, cx, r in circles:
        out[(y - cy) ** 2 + (x - cx) ** 2 <= r * r] = 2
    return out


def apart(labels, side, depth=1.0, largest=40):
    whole = Box(0, 0, *labels.shape)
    out = np.zeros_like(labels)
    for tile in tiles(whole, side):
        block = tile.intersection(whole)
        window = block.grown(largest + 1).intersection(whole)
        inner = Box(block.y - window.y, block.x - window.x, block.height, block.width)
        more = (window.y > 0, window.y1 < whole.height, window.x > 0, window.x1 < whole.width)
        out[block.slices()] = cut_touching(
            labels[window.slices()], inner, more, [2], depth=depth, spacing=(1, 1), largest=largest
        )
    return out


def test_touching_discs_become_as_many_objects_and_single_ones_stay_whole():
    labels = discs((20, 20, 10), (20, 37, 10), (55, 30, 9), (60, 90, 12), (45, 80, 8), (20, 100, 7))
    out = apart(labels, 200)
    assert label(out == 2, connectivity=1).max() == 6
    cut = out != labels
    assert set(out[cut]) == {1}
    assert 10 < cut.sum() < 60
    assert label(apart(labels, 200, largest=20) == 2, connectivity=1).max() == 4, "too large to be cut"


@settings(max_examples=25, deadline=None)
@given(
    circles=st.lists(st.tuples(st.integers(0, 80), st.integers(0, 120), st.integers(1, 14)), min_size=1, max_size=14),
    side=st.integers(7, 90),
    noise=st.integers(0, 3),
)
def test_objects_are_cut_alike_whatever_the_blocks(circles, side, noise):
    labels = discs(*circles)
    rng = np.random.default_rng(noise)
    labels[rng.random(labels.shape) < 0.02 * noise] = 3
    np.testing.assert_array_equal(apart(labels, side), apart(labels, 1000))


@pytest.mark.parametrize("value", [1, 2])
def test_an_image_of_one_class_is_left_as_it_is(value):
    labels = np.full((30, 30), value, np.uint8)
    np.testing.assert_array_equal(apart(labels, 16), labels)
    np.testing.assert_array_equal(in_blocks(labels, 16, 50, 50), labels)
