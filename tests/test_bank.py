"""The cache of features against its plain counterparts: all cells read anew, all features in one tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_sparseseg.annotations import Annotations
from napari_sparseseg.config import TrainConfig, make_classes
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.geometry import Frame
from napari_sparseseg.learning.encoders import Encoder
from napari_sparseseg.learning.feature_cache import CELL, CacheSettings, FeatureCache, LabelledFeatures, Parts, join
from napari_sparseseg.learning.features import FeatureMaps, InputScale
from napari_sparseseg.learning.head import Samples, fit_head
from napari_sparseseg.learning.sources import Source, changed_cells
from napari_sparseseg.slides.backends.array import ArraySlide
from tests.helpers.data import two_textures

CLASSES = make_classes("ab")


class Counted(FeatureMaps):
    """The encoder's maps, with the number of images that were encoded."""

    encoded = 0

    def forward(self, image):
        self.encoded += len(image)
        return super().forward(image)


def cache_of(**limits):
    maps = Counted(Encoder(), 3).requires_grad_(False).eval()
    return FeatureCache(maps, InputScale.for_rgb(), CacheSettings(**limits))


@pytest.fixture(scope="module")
def slide():
    return ArraySlide(two_textures(700, 0), mpp=1.0, name="textures")


def seen(a, frame):
    """Labels of every cell that has any, read anew."""
    snapshot = a.snapshot()
    cells = {c: snapshot.read_region(c, frame) for c in snapshot.occupied(frame, CELL)}
    return {c: labels for c, labels in cells.items() if labels.any()}


SIDE = 3000
PLACE = st.integers(0, SIDE)
POINTS = st.lists(st.tuples(PLACE, PLACE), min_size=1, max_size=3)
CHANGE = st.one_of(
    st.tuples(st.just("paint"), POINTS, st.sampled_from([2, 20, 300]), st.integers(1, 2)),
    st.tuples(st.just("erase"), POINTS, st.sampled_from([5, 400])),
    st.tuples(st.just("dense"), PLACE, PLACE, st.integers(40, 900), st.integers(1, 2)),
    st.tuples(st.just("undo")),
    st.tuples(st.just("redo")),
    st.tuples(st.just("remove class"), st.integers(1, 2)),
)


def perform(a, change):
    kind, *values = change
    if kind == "paint":
        a.paint(*values)
    elif kind == "erase":
        a.erase(*values)
    elif kind == "dense":
        y, x, side, class_id = values
        a.fill_polygon([(y, x), (y, x + side), (y + side, x + side), (y + side, x)], class_id, dense=True)
    elif kind == "remove class":
        a.set_classes([c for c in a.classes if c.id != values[0]] or CLASSES)
        a.set_classes(CLASSES)
    else:
        getattr(a, kind)()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(CHANGE, min_size=1, max_size=8), st.sampled_from([1.0, 2.5]))
def test_cells_said_to_be_the_same_are(changes, downsample):
    frame = Frame((downsample, downsample))
    a = Annotations((SIDE, SIDE), classes=CLASSES)
    for change in changes:
        before, then = a.snapshot(), seen(a, frame)
        try:
            perform(a, change)
        except AnnotationError:
            continue
        now = seen(a, frame)
        said = changed_cells(before, a.snapshot(), frame, CELL)
        if said is None:
            continue
        differ = {c for c in then.keys() | now.keys() if not np.array_equal(then.get(c, 0), now.get(c, 0))}
        assert differ <= said


def test_a_stroke_among_many_is_looked_at_alone():
    rng = np.random.default_rng(0)
    a = Annotations((100_000, 100_000), classes=CLASSES)
    for y, x in rng.uniform(0, 100_000, (300, 2)):
        a.paint([(y, x), (y, x + 500)], 30, 1)
    before = a.snapshot()
    a.paint([(50_000, 50_000), (50_000, 50_500)], 30, 2)
    cells = changed_cells(before, a.snapshot(), Frame((4.0, 4.0)), CELL)
    assert 1 <= len(cells) <= 12
    a.undo()
    assert changed_cells(before, a.snapshot(), Frame((4.0, 4.0)), CELL) == set()


def test_the_cache_after_every_change_is_that_of_a_fresh_look(slide):
    a = Annotations((700, 700), classes=CLASSES)
    cache, plain, read = cache_of(), cache_of(), []

    class CountedSource(Source):
        def read_labels(self, region):
            read.append(region)
            return super().read_labels(region)

    def follow():
        encoded = cache.features.encoded
        read.clear()
        lost = cache.set_sources([CountedSource(slide, a.snapshot(), slide.frame(1.0))])
        cells = len(read)
        cache.encode()
        plain.set_sources([])  # forgets the cells, not the maps
        plain.set_sources([Source(slide, a.snapshot(), slide.frame(1.0))])
        plain.encode()
        ours, theirs = cache.rows(), plain.rows()
        assert len(ours) == len(theirs)
        for p, q in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(p.labels, q.labels)
            assert torch.equal(p.features, q.features)
        return lost, cache.features.encoded - encoded, cells

    for y in (60, 400, 650):
        a.paint([(y, 40), (y + 20, 600)], 5, 1)
    assert follow() == (False, 9, 9)
    a.paint([(100, 60), (110, 200)], 5, 2)
    assert follow() == (False, 0, 1)  # in a cell that is known
    a.paint([(60, 40), (61, 60)], 8, 2)
    assert follow() == (True, 0, 1)  # relabelled
    a.erase([(100, 60), (110, 200)], 9)
    assert follow() == (True, 0, 1)
    a.undo()
    assert follow() == (False, 0, 1)
    a.undo()
    a.undo()
    a.undo()
    assert follow()[:2] == (True, 0)
    a.set_classes(CLASSES[1:])
    assert follow()[0] is True
    assert cache.rows() == []


def test_two_copies_of_a_slide_are_always_looked_at(slide):
    first, second = (Annotations((700, 700), classes=CLASSES) for _ in range(2))
    cache = cache_of()
    second.paint([(60, 40), (60, 90)], 5, 2)
    for y in (60, 100):
        first.paint([(y, 40), (y, 90)], 5, 1)
        cache.set_sources([Source(slide, a.snapshot(), slide.frame(1.0)) for a in (first, second)])
        assert list(cache.cells.values()) == [{2}]
    cache.set_sources([Source(slide, first.snapshot(), slide.frame(1.0))])
    assert list(cache.cells.values()) == [{1}]


def test_features_stay_within_their_bytes_and_stand_for_all_pixels(slide):
    a = Annotations((700, 700), classes=CLASSES)
    for y in range(20, 700, 40):
        a.paint([(y, 20), (y, 680)], 6, 1 + (y // 40) % 2)
    source = Source(slide, a.snapshot(), slide.frame(1.0))

    def encoded(**limits):
        cache = cache_of(**limits)
        cache.set_sources([source])
        cache.encode()
        return cache

    whole = encoded()
    full = sum(r.features.nbytes for r in whole.rows())
    small = encoded(row_bytes=full // 3)
    assert full // 20 < sum(r.features.nbytes for r in small.rows()) == small.row_bytes <= full // 3
    for p, q in zip(whole.rows(), small.rows(), strict=True):
        np.testing.assert_array_equal(p.counts, q.counts)
        assert set(p.labels.tolist()) == set(q.labels.tolist())
    for balancing in ("none", "instance", "mini-batch"):
        weights = []
        for rows in (whole.rows(), small.rows()):
            samples = join(rows, (1, 2), TrainConfig(balancing))
            weights.append(torch.bincount(samples.channel, samples.weight).tolist())
        assert weights[0] == pytest.approx(weights[1], rel=1e-4)


def test_maps_are_cached_by_slide_place_and_resolution_and_the_oldest_give_way(slide):
    a = Annotations((700, 700), classes=CLASSES)
    a.paint([(60, 40), (60, 600)], 5, 1)
    other = ArraySlide(two_textures(700, 1), mpp=1.0, name="others")
    one = Source(slide, a.snapshot(), slide.frame(1.0))
    cells = one.labels.occupied(one.frame, CELL)
    cache = cache_of()
    size = sum(m.nbytes for m in cache.maps_for(one, cells[0]))
    cache = cache_of(map_bytes=int(2.5 * size))
    for source in (
        one,
        one,
        Source(other, a.snapshot(), other.frame(1.0)),
        Source(slide, a.snapshot(), slide.frame(2.0)),
    ):
        cache.maps_for(source, cells[0])
    assert cache.features.encoded == 3
    cache.maps_for(one, cells[1])
    assert len(cache.maps) == 2
    assert cache.maps.currsize == sum(m.nbytes for maps in cache.maps.values() for m in maps) == 2 * size
    assert cache.features.encoded == 4
    cache.maps_for(one, cells[1])
    cache.maps_for(one, cells[0])
    assert cache.features.encoded == 5


def test_without_room_nothing_is_cached_and_the_features_are_the_same(slide):
    a = Annotations((700, 700), classes=CLASSES)
    a.paint([(60, 40), (60, 600)], 5, 1)
    found = []
    for limits in ({}, {"map_bytes": 0}):
        cache = cache_of(**limits)
        cache.set_sources([Source(slide, a.snapshot(), slide.frame(1.0))])
        cache.encode()
        found.append(torch.cat([r.features for r in cache.rows()]))
    assert len(cache.maps) == 0
    assert torch.equal(*found)


def test_where_memory_runs_out_the_cached_maps_go_first(slide):
    a = Annotations((700, 700), classes=CLASSES)
    a.paint([(60, 40), (60, 600)], 5, 1)
    source = Source(slide, a.snapshot(), slide.frame(1.0))
    cache = cache_of()
    cells = source.labels.occupied(source.frame, CELL)
    cache.maps_for(source, cells[0])

    class Greedy(torch.nn.Module):
        def forward(self, image):
            if cache.maps:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")
            return [image]

    (found,) = cache.maps_by(Greedy(), source, cells[1])
    assert found.shape[0] == 1
    assert not cache.maps
    with pytest.raises(RuntimeError, match="broken"):
        cache.maps_by(lambda _image: (_ for _ in ()).throw(RuntimeError("broken")), source, cells[1])


@given(st.lists(st.integers(0, 7), min_size=1, max_size=6), st.data())
def test_parts_are_the_tensor_they_are_parts_of(sizes, data):
    parts = [torch.randn(n, 3) for n in (*sizes, 1)]
    whole = torch.cat(parts)
    index = torch.tensor(data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=20)), dtype=torch.int64)
    assert torch.equal(Parts(parts)[index], whole[index])


def test_the_head_copies_no_more_rows_than_it_draws():
    rng = np.random.default_rng(0)
    labels = rng.integers(1, 3, 300_000).astype(np.uint8)
    where = np.zeros(len(labels), np.int64)
    counts = np.bincount(labels, minlength=256)
    rows = LabelledFeatures(torch.randn(len(labels), 4).half(), labels, where, where, counts)
    samples = join([rows], (1, 2), TrainConfig())
    asked = []

    class Counted:
        def __getitem__(self, index):
            asked.append(len(index))
            return samples.features[index]

    ours = fit_head(Samples(Counted(), samples.channel, samples.weight), (4,), 2)
    assert max(asked) <= 300 * 512
    plain = fit_head(Samples(rows.features, samples.channel, samples.weight), (4,), 2)
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), plain.parameters(), strict=True))
