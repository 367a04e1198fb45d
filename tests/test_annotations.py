"""Strokes, polygons, dense regions, classes, history and snapshots, against dense arrays and hand counts."""

from __future__ import annotations

import itertools
import math
import threading
import tracemalloc

import numpy as np
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from napari_sparseseg.annotations import Annotations, Shape, stroke_mask
from napari_sparseseg.annotations.document import UNDO_STEPS, Edit, History
from napari_sparseseg.annotations.quadtree import Change
from napari_sparseseg.annotations.raster import Polygon, capsule_mask, write_level
from napari_sparseseg.config import ClassDef
from napari_sparseseg.errors import AnnotationError, SparseSegError
from napari_sparseseg.geometry import Box, Frame
from tests.helpers.classes import add_class

H, W = 2500, 3003
WHOLE = Box(0, 0, H, W)


@pytest.fixture
def a():
    return Annotations((H, W), classes=[("tumour", "#e6194b"), ("stroma", "#3cb44b"), "fat"])


def assert_no_stroke_is_open(a):
    with pytest.raises(AnnotationError, match="no stroke is open"):
        a.abort_stroke()


def pixels_within(points, radius):
    """Pixels whose centre lies in the path widened by radius: one rectangle per side, one disc per corner."""
    yy, xx = (np.arange(n, dtype=np.float64) + 0.5 for n in (H, W))
    out = np.zeros((H, W), bool)
    for y, x in points:
        out |= (yy[:, None] - y) ** 2 + (xx[None] - x) ** 2 <= radius**2
    for (y0, x0), (y1, x1) in itertools.pairwise(points):
        length = math.hypot(y1 - y0, x1 - x0)
        uy, ux = (y1 - y0) / length, (x1 - x0) / length
        along = (yy[:, None] - y0) * uy + (xx[None] - x0) * ux
        across = (yy[:, None] - y0) * ux - (xx[None] - x0) * uy
        out |= (along >= 0) & (along <= length) & (np.abs(across) <= radius)
    return out


def test_a_thin_stroke_is_exact(a):
    points = [(100.5, 200.25), (180, 300), (150, 420.75)]
    a.paint(points, 7.3, 2)
    labels = a.read(WHOLE)
    np.testing.assert_array_equal(labels == 2, pixels_within(points, 7.3))
    assert a.counts() == {1: 0, 2: int((labels == 2).sum()), 3: 0}
    assert a.version == 1


def test_a_wide_stroke_is_within_a_pixel_of_its_level(a):
    a.paint([(1000, 1000), (1400, 1900)], 300, 1)
    # 3,003 pixels have levels 0, 1 and 2; a brush of 600 pixels would be 75 pixels wide at level 3.
    assert a.top_level == 2
    reach = 2**2 * math.sqrt(2) / 2
    drawn = a.read(WHOLE) == 1
    blocks = drawn[:, : W - W % 4].reshape(H // 4, 4, W // 4, 4)
    assert (blocks.all((1, 3)) == blocks.any((1, 3))).all()  # whole pixels of level 2
    assert drawn[pixels_within([(1000, 1000), (1400, 1900)], 300 - reach)].all()
    assert not drawn[~pixels_within([(1000, 1000), (1400, 1900)], 300 + reach)].any()


@pytest.mark.parametrize("diameter", [0.5, 10, 48, 95.9, 96, 600, 1536, 5000, 100_000])
def test_the_level_of_a_brush_is_the_coarsest_at_which_it_is_48_pixels_wide(diameter):
    widths = [diameter / 2**level for level in range(8)]
    expected = max((level for level, width in enumerate(widths) if width >= 48), default=0)
    assert write_level(diameter / 2, 7) == expected


def test_the_thinnest_dab_hits_the_pixel_it_is_in(a):
    for y, x in [(10.01, 20.01), (30.5, 40.5), (50.99, 60.0)]:
        a.paint([(y, x)], 0.1, 1)
        assert a.read((int(y), int(x), 1, 1)) == 1


def test_strokes_that_leave_the_slide_are_cut(a):
    a.paint([(-500, -500), (5, 5)], 30, 1)
    a.paint([(H + 100, 10), (H + 200, W)], 10, 1)
    assert a.version == 1
    assert a.read((-20, -20, 40, 40))[:20].sum() == 0
    assert a.read((-20, -20, 40, 40))[21:, 21:].any()


def test_erasing_and_level_reads(a):
    a.paint([(500, 500), (500, 900)], 20, 3)
    a.erase([(500, 700)], 60)
    full = a.read(WHOLE)
    assert full[500, 700] == 0
    assert full[500, 510] == 3
    np.testing.assert_array_equal(a.read((480, 480, 40, 200), level=2), a.snapshot().read((480, 480, 40, 200), 2))
    padded = np.pad(full, ((0, -H % 4), (0, -W % 4)))
    blocks = padded.reshape(padded.shape[0] // 4, 4, -1, 4).max((1, 3))
    np.testing.assert_array_equal(a.read((480, 480, 40, 200), level=2), blocks[120:130, 120:170])
    with pytest.raises(AnnotationError, match="level 99"):
        a.read((0, 0, 1, 1), level=99)


@given(seed=st.integers(0, 10_000), corners=st.integers(3, 12), scale=st.sampled_from([20.0, 300.0, 2000.0]))
@settings(max_examples=6, deadline=None)
def test_polygons_hold_exactly_the_pixels_whose_centre_is_inside(seed, corners, scale):
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2 * np.pi, corners)) + np.linspace(0, 1e-3, corners)
    radius = rng.uniform(0.3, 1, corners) * scale
    ring = np.stack([H / 2 + radius * np.sin(angle), W / 2 + radius * np.cos(angle)], 1)
    hole = (ring - ring.mean(0)) * 0.3 + ring.mean(0)
    a = Annotations((H, W), ["a"])
    a.fill_polygon(ring, 1, holes=[hole])
    yy, xx = np.mgrid[:H, :W] + 0.5
    rings = [shapely.Polygon(ring), shapely.Polygon(hole)]
    assume(all(polygon.is_valid for polygon in rings))
    odd = np.zeros((H, W), bool)
    for polygon in rings:
        shapely.prepare(polygon)
        odd ^= shapely.contains_xy(polygon, yy.ravel(), xx.ravel()).reshape(H, W)
    np.testing.assert_array_equal(a.read(WHOLE) == 1, odd)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=5, deadline=None)
def test_many_small_polygons_are_drawn_one_over_the_other(seed):
    """Some have a hole, some lie over the edge of the slide or of several chunks, some are erasers."""
    rng = np.random.default_rng(seed)
    shape = (300, 560)
    yy, xx = (grid.ravel() for grid in np.mgrid[: shape[0], : shape[1]] + 0.5)
    shapes, expected = [], np.zeros(shape, np.uint8)
    for _ in range(40):
        corners = int(rng.integers(3, 9))
        angle = np.sort(rng.uniform(0, 2 * np.pi, corners)) + np.linspace(0, 1e-3, corners)
        radius = (rng.uniform(0.3, 1, corners) * rng.choice([2, 20, 120]))[:, None]
        ring = rng.uniform(-30, (330, 590)) + radius * np.stack([np.sin(angle), np.cos(angle)], 1)
        rings = [ring, (ring - ring.mean(0)) * 0.4 + ring.mean(0)][: int(rng.integers(1, 3))]
        polygons = [shapely.Polygon(ring) for ring in rings]
        assume(all(polygon.is_valid for polygon in polygons))
        inside = np.bitwise_xor.reduce([shapely.contains_xy(polygon, yy, xx) for polygon in polygons]).reshape(shape)
        shapes.append(Shape("polygon", int(rng.integers(0, 4)), rings))
        expected[inside] = shapes[-1].class_id
    a = Annotations(shape, ["a", "b", "c"])
    told = []
    a.draw(shapes, lambda done, of: told.append((done, of)))
    np.testing.assert_array_equal(a.read((0, 0, *shape)), expected)
    assert a.counts() == {k: int((expected == k).sum()) for k in (1, 2, 3)}
    assert (told[0], told[-1]) == ((0, 40), (40, 40))
    a.undo()
    assert not a.read((0, 0, *shape)).any()


@given(seed=st.integers(0, 10_000))
@settings(max_examples=3, deadline=None)
def test_many_small_polygons_give_the_labels_of_one_after_the_other(seed):
    """At every level, on empty tissue, on strokes and where they meet, overlap, fill a chunk or come in thousands."""
    rng = np.random.default_rng(seed)
    shape = (1500, 2300)
    together, apart = Annotations(shape, ["a", "b", "c"]), Annotations(shape, ["a", "b", "c"])
    for each in (together, apart):
        each.paint([(100, 100), (1200, 2000)], 60, 3)
    shapes = []
    for _ in range(400):
        angle, size = np.sort(rng.uniform(0, 2 * np.pi, 6)), rng.choice([3, 20, 60])
        ring = rng.uniform((-20, -20), (1520, 2320)) + size * np.stack([np.sin(angle), np.cos(angle)], 1)
        if rng.random() < 0.2:
            ring = np.array([(0, 0), (0, 256), (256, 256), (256, 0)]) + 256.0 * rng.integers(0, 8, 2)
        shapes.append(Shape("polygon", int(rng.integers(1, 4)), [ring]))
    together.draw(iter(shapes), of=len(shapes))
    for shape_ in shapes:
        apart.fill_polygon(shape_.rings[0], shape_.class_id)
    for level in range(together.top_level + 1):
        np.testing.assert_array_equal(
            together.read((0, 0, *shape), level), apart.read((0, 0, *shape), level), err_msg=f"level {level}"
        )
    assert together.counts() == apart.counts()


def test_a_rectangle_counts_its_pixels_by_hand(a):
    a.fill_polygon([(10, 10), (10, 50), (50, 50), (50, 10)], 1)
    assert a.counts()[1] == 1600
    a.fill_polygon([(0, 0), (0, 3000), (2400, 3000), (2400, 0)], 2)
    assert a.counts() == {1: 0, 2: 2400 * 3000, 3: 0}


def test_neighbouring_polygons_share_no_pixel_and_leave_none_out():
    rng = np.random.default_rng(5)
    corners = [(0, 0), (0, 300), (300, 300), (300, 0)]
    middle = tuple(rng.uniform(50, 250, 2))
    total = np.zeros((300, 300), int)
    for p, q in zip(corners, [*corners[1:], corners[0]], strict=True):
        total += Polygon([np.array([p, q, middle], float)]).mask(Box(0, 0, 300, 300))
    assert (total == 1).all()


def test_a_huge_polygon_stays_coarse_inside():
    a = Annotations((100_000, 100_000), ["a"])
    side = 50_000
    a.fill_polygon([(1000, 1000), (1000, 1000 + side), (1000 + side, 1000 + side), (1000 + side, 1000)], 1)
    assert a.counts()[1] == side**2
    fine = len(a.snapshot().scribbles.levels[0])
    assert fine <= 4 * side / 256 + 8


def test_too_complex_polygons_are_refused_and_leave_nothing_open(a):
    zigzag = np.array([(y, x) for x in range(20_000) for y in (0, 90_000)], float)
    with pytest.raises(AnnotationError, match="too complex"):
        a.fill_polygon(zigzag, 1)
    assert_no_stroke_is_open(a)
    assert a.version == 0


@pytest.mark.parametrize("points", [[(np.nan, 1)], [(np.inf, 1)], [(1e308, 1)], [1, 2], [], [("a", "b")], [(1, 2, 3)]])
def test_bad_points_are_refused(a, points):
    with pytest.raises(AnnotationError):
        a.paint(points, 5, 1)
    assert_no_stroke_is_open(a)


def test_unknown_classes_kinds_and_radii_are_refused(a):
    with pytest.raises(AnnotationError, match="no class 9; the classes are: 1 tumour"):
        a.paint([(1, 1)], 5, 9)
    with pytest.raises(AnnotationError, match="radius"):
        a.paint([(1, 1)], -1, 1)
    with pytest.raises(AnnotationError, match="kind"):
        a.begin_stroke(1, kind="spray")
    with pytest.raises(AnnotationError, match="begin one first"):
        a.commit_stroke()
    assert_no_stroke_is_open(a)


def test_interactive_strokes_preserve_and_abort(a):
    a.paint([(300, 300)], 40, 1)
    before = a.read(WHOLE)
    a.begin_stroke(2, keep=0)
    dirty = a.extend_stroke((300, 250), (300, 350), 30)
    assert dirty.contains(Box(280, 260, 40, 80))
    shown = a.read(WHOLE)
    assert (shown[before == 1] == 1).all()
    assert (shown[(before == 0) & pixels_within([(300, 250), (300, 350)], 25)] == 2).all()
    assert (a.snapshot().read(WHOLE) == before).all()
    stroke = a.commit_stroke()
    assert (stroke.kind, stroke.class_id, stroke.radius, len(stroke.points)) == ("brush", 2, 30, 2)
    a.begin_stroke(3)
    a.extend_stroke((0, 0), (500, 500), 50)
    with pytest.raises(AnnotationError, match="stroke is open"):
        a.undo()
    a.abort_stroke()
    np.testing.assert_array_equal(a.read(WHOLE), shown)
    a.begin_stroke(1)
    assert a.commit_stroke() is None
    assert a.version == 2


def test_undo_and_redo_bring_back_labels_strokes_and_counts(a):
    states = [(a.read(WHOLE), a.counts(), a.strokes)]
    rng = np.random.default_rng(0)
    for k in range(6):
        a.paint(rng.uniform(0, 2500, (4, 2)), 5 * 2**k, 1 + k % 3)
        states.append((a.read(WHOLE), a.counts(), a.strokes))
    seen = []
    a.changed.connect(lambda version, box: seen.append((version, box)))
    for labels, counts, strokes in reversed(states[:-1]):
        assert a.undo() is not None
        np.testing.assert_array_equal(a.read(WHOLE), labels)
        assert a.counts() == counts
        assert a.strokes == strokes
    assert a.undo() is None
    for labels, counts, strokes in states[1:]:
        assert a.redo() is not None
        np.testing.assert_array_equal(a.read(WHOLE), labels)
        assert (a.counts(), a.strokes) == (counts, strokes)
    assert a.redo() is None
    assert a.version == 18
    assert [version for version, _ in seen] == list(range(7, 19))
    a.undo()
    a.paint([(5, 5)], 3, 1)
    assert a.redo() is None


def test_the_history_is_bounded(a):
    for k in range(UNDO_STEPS + 12):
        a.paint([(4 * k, 100)], 1, 1)
    assert sum(a.undo() is not None for _ in range(2 * UNDO_STEPS)) == UNDO_STEPS
    assert len(a.strokes) == 12


def edit_of(number, nbytes):
    """An edit whose memory is `nbytes`: a chunk costs 200 bytes beside its data."""
    return Edit(Box(number, 0, 1, 1), Change({(0, (0, 0)): (None, bytes(nbytes - 200))}, np.zeros(256, np.int64)))


@pytest.mark.parametrize(("sizes", "kept"), [([400] * 3, 2), ([900, 50_000], 1), ([1000, 250, 250], 2), ([300] * 9, 3)])
def test_the_memory_of_the_history_is_bounded_but_the_newest_edit_always_kept(sizes, kept):
    history = History(steps=4, nbytes=1000)
    for number, nbytes in enumerate(sizes):
        history.push(edit_of(number, nbytes))
    undone = []
    while (edit := history.undo()) is not None:
        undone.append(edit.box.y)
    assert undone == list(range(len(sizes)))[::-1][:kept]


def test_strokes_over_one_place_give_their_memory_back():
    a = Annotations((256, 256), ["a", "b"])
    rng = np.random.default_rng(1)

    def correct(n):
        for k in range(n):
            y, x = rng.uniform(0, 256, 2)
            a.paint([(y, x), (y + 8, x + 5)], 2, 1 + k % 2)

    tracemalloc.start()
    correct(800)  # the history and the caches are full now
    before = tracemalloc.get_traced_memory()[0]
    correct(1200)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 4e6  # 1,200 strokes as vectors are 0.6 MB; their chunks before and after would be 40 MB
    assert sum(a.undo() is not None for _ in range(600)) > 400


def test_dense_regions_are_kept_apart(a):
    a.paint([(600, 600)], 10, 1)
    scribble = a.read(WHOLE)
    a.fill_polygon([(500, 500), (500, 800), (700, 800), (700, 500)], 2, dense=True)
    shown = a.read(WHOLE)
    expected = np.zeros((H, W), np.uint8)
    expected[500:700, 500:800] = 2
    expected[scribble == 1] = 1
    np.testing.assert_array_equal(shown, expected)
    np.testing.assert_array_equal(a.read(WHOLE, scribbles_only=True), scribble)
    assert a.counts() == {1: int((scribble == 1).sum()), 2: 60_000 - int((scribble == 1).sum()), 3: 0}
    (region,) = a.dense_regions
    assert region.class_id == 2
    assert a.strokes[0].kind == "brush"
    assert (a.snapshot().dense.read(0, 0, H, 0, W) > 0).sum() == 200 * 300
    a.fill_polygon([(600, 700), (600, 900), (900, 900), (900, 700)], 3, dense=True)
    assert a.read((650, 750, 1, 1)) == 3
    a.erase([(600, 600)], 30)
    assert a.read((600, 600, 1, 1)) == 2
    a.remove_dense_region(a.dense_regions[1].id)
    assert a.read((650, 750, 1, 1)) == 2
    a.remove_dense_region(region.id)
    assert not a.read(WHOLE).any()
    a.undo()
    a.undo()
    assert [r.class_id for r in a.dense_regions] == [2, 3]
    assert a.read((650, 750, 1, 1)) == 3
    with pytest.raises(AnnotationError, match="no dense region"):
        a.remove_dense_region(12345)


def test_counts_under_scribbles_are_exact_in_dense_regions(a):
    rng = np.random.default_rng(7)
    a.fill_polygon([(100, 100), (50, 2900), (2300, 2500), (2400, 300)], 3, dense=True)
    for k in range(12):
        a.paint(rng.uniform(0, 2500, (3, 2)), float(2 ** rng.uniform(1, 8)), 1 + k % 2)
        labels = a.read(WHOLE)
        assert a.counts() == {c: int((labels == c).sum()) for c in (1, 2, 3)}


def test_snapshots_do_not_change(a):
    a.paint([(300, 300), (900, 1200)], 50, 1)
    a.fill_polygon([(0, 0), (0, 100), (100, 100)], 2, dense=True)
    snapshot = a.snapshot()
    assert a.snapshot() is snapshot
    labels, counts, strokes = snapshot.read(WHOLE), snapshot.counts(), snapshot.strokes
    stop = threading.Event()

    def paint_on():
        rng = np.random.default_rng(1)
        while not stop.is_set():
            a.paint(rng.uniform(0, 2500, (3, 2)), float(rng.uniform(1, 200)), 1 + int(rng.integers(3)))

    thread = threading.Thread(target=paint_on)
    thread.start()
    try:
        for _ in range(10):
            np.testing.assert_array_equal(snapshot.read(WHOLE), labels)
            assert (snapshot.counts(), snapshot.strokes) == (counts, strokes)
    finally:
        stop.set()
        thread.join()
    assert a.version > snapshot.version == 2


@pytest.mark.parametrize("downsample", [(1.0, 1.0), (3.7, 3.7), (2.0, 5.5), (0.6, 0.6), (40.0, 40.0)])
def test_reading_in_a_frame_takes_the_pixel_under_the_centre(a, downsample):
    rng = np.random.default_rng(2)
    for k in range(8):
        a.paint(rng.uniform(0, 2500, (3, 2)), float(2 ** rng.uniform(1, 8)), 1 + k % 3)
    a.fill_polygon([(100, 100), (100, 900), (800, 700)], 2, dense=True)
    frame = Frame(downsample)
    region = frame.cover(Box(-50, 700, 1200, 1500))
    got = a.snapshot().read_region(region, frame)
    full = a.read(WHOLE)
    expected = np.zeros((region.height, region.width), np.uint8)
    for i in range(region.height):
        y = math.floor((region.y + i + 0.5) * downsample[0])
        columns = np.floor((region.x + np.arange(region.width) + 0.5) * downsample[1]).astype(int)
        ok = (columns >= 0) & (columns < W)
        if 0 <= y < H:
            expected[i, ok] = full[y, columns[ok]]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("downsample", "size"), [(1.0, 64), (2.0, 256), (3.3, 100), (8.0, 256), (0.5, 256)])
def test_occupied_cells(a, downsample, size):
    rng = np.random.default_rng(4)
    for k in range(4):
        a.paint(rng.uniform(0, 2500, (2, 2)), float(2 ** rng.uniform(0, 8)), 1 + k % 3)
    a.erase(rng.uniform(0, 2500, (2, 2)), 100)
    a.fill_polygon([(2000, 2000), (2000, 2200), (2200, 2100)], 1, dense=True)
    frame = Frame((downsample, downsample))
    step = downsample * size
    rows, columns = np.nonzero(a.read(WHOLE))
    expected = set()
    for dy in (0.0, 1 - 1e-5):  # a pixel may lie in two cells where the step is fractional
        for dx in (0.0, 1 - 1e-5):
            expected |= set(zip(((rows + dy) // step).astype(int), ((columns + dx) // step).astype(int), strict=True))
    got = a.snapshot().occupied(frame, size)
    assert {(b.y // size, b.x // size) for b in got} == expected
    assert all(b.height == b.width == size for b in got)


def test_where_a_stroke_was_drawn(a):
    a.paint([(500, 500), (600, 800)], 12, 1)
    a.fill_polygon([(1000, 1000), (1000, 1400), (1300, 1400)], 2, holes=[[(1050, 1200), (1050, 1300), (1100, 1300)]])
    brush, polygon = a.strokes
    region, frame = Box(200, 200, 300, 400), Frame((2.0, 2.0))
    yy, xx = (np.mgrid[200:500, 200:600] + 0.5) * 2
    line = shapely.LineString([(500, 500), (600, 800)])
    distance = shapely.distance(shapely.points(yy.ravel(), xx.ravel()), line).reshape(300, 400)
    clear = np.abs(distance - 12) > 0.01
    np.testing.assert_array_equal(stroke_mask(brush, region, frame)[clear], (distance <= 12)[clear])
    drawn = stroke_mask(polygon, WHOLE, Frame((1.0, 1.0)))
    np.testing.assert_array_equal(drawn, a.read(WHOLE) == 2)
    wide = stroke_mask(brush, Box(0, 0, 400, 300), Frame((2.0, 4.0)))
    yy, xx = (np.mgrid[0:400, 0:300] + 0.5) * np.array([2.0, 4.0])[:, None, None]
    distance = shapely.distance(shapely.points(yy.ravel(), xx.ravel()), line).reshape(400, 300)
    np.testing.assert_array_equal(wide, distance <= 12)


def test_capsule_far_from_the_origin_is_as_exact_as_near():
    clip = Box(0, 0, 1 << 25, 1 << 25)
    near = capsule_mask((100.3, 200.6), (130.1, 260.2), 9.4, clip)[1]
    far = capsule_mask((100.3 + (1 << 24), 200.6 + (1 << 24)), (130.1 + (1 << 24), 260.2 + (1 << 24)), 9.4, clip)[1]
    assert (near != far).mean() < 1e-3


def test_editing_the_class_table(a):
    seen = []
    a.classes_changed.connect(lambda: seen.append(a.classes))
    new = [ClassDef(4, "necrosis", "#010203"), ClassDef(3, "fat", "#ffff00"), ClassDef(1, "carcinoma", "#e6194b")]
    a.paint([(300, 300)], 60, 1)
    labels = a.read(WHOLE)
    a.set_classes([*new, a.classes[1]])
    assert [(c.id, c.name) for c in a.classes] == [(4, "necrosis"), (3, "fat"), (1, "carcinoma"), (2, "stroma")]
    assert seen == [a.classes]
    np.testing.assert_array_equal(a.read(WHOLE), labels)
    for bad in ([*new, ClassDef(5, "fat", "#000000")], [*new, ClassDef(4, "twice", "#000000")]):
        with pytest.raises(SparseSegError):
            a.set_classes(bad)
    with pytest.raises(SparseSegError, match="255"):
        a.set_classes([f"c{i}" for i in range(256)])
    assert seen == [a.classes]


def test_removing_a_class_takes_its_labels_and_undo_brings_them_back(a):
    a.paint([(300, 300), (900, 900)], 60, 1)
    a.paint([(900, 300), (300, 900)], 30, 2)
    a.fill_polygon([(0, 0), (0, 90), (90, 90)], 2, dense=True)
    labels, classes = a.read(WHOLE), a.classes
    a.set_classes([c for c in classes if c.id != 2])
    expected = np.where(labels == 2, 0, labels)
    np.testing.assert_array_equal(a.read(WHOLE), expected)
    assert [c.id for c in a.classes] == [1, 3]
    assert [s.class_id for s in a.strokes] == [1]
    assert a.dense_regions == ()
    assert a.counts() == {1: int((expected == 1).sum()), 3: 0}
    add_class(a, "other")
    assert a.history.next_undo.title == "add other"
    a.undo()
    np.testing.assert_array_equal(a.read(WHOLE), expected)
    assert [c.id for c in a.classes] == [1, 3]
    assert a.history.next_undo.title == "remove stroma"
    a.undo()
    np.testing.assert_array_equal(a.read(WHOLE), labels)
    assert a.classes == classes
    assert len(a.strokes) == 2
    a.set_classes([ClassDef(2, "stroma", "#000000")])
    assert set(np.unique(a.read(WHOLE))) == {0, 2}


def test_one_slide_smaller_than_a_chunk():
    a = Annotations((30, 40), ["a"])
    a.fill_polygon([(-10, -10), (-10, 100), (100, 100), (100, -10)], 1)
    assert a.counts() == {1: 1200}
    assert (a.read((0, 0, 30, 40)) == 1).all()
