"""Scribbling by hand: real mouse and key events on a real canvas, pixels compared with discs computed here."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("napari")
pytest.importorskip("qtpy")

from napari_sparseseg.annotations import Annotations
from napari_sparseseg.gui.layers import napari_compat
from napari_sparseseg.gui.layers.scribbles import ScribbleLayer
from napari_sparseseg.gui.layers.slide_layers import Scribbles
from tests.helpers.mouse import camera, line, look_at, main_window, pump, wave
from tests.helpers.waiting import wait_until
from tests.helpers.windows import opened_viewer

pytestmark = pytest.mark.gui
SIDE = 40_000
CLASSES = ["tumour", "stroma", "fat"]
MIDDLE = SIDE / 2
BOTH = pytest.mark.parametrize("slicing", [False, True], indirect=True, ids=["sync", "async"])


@pytest.fixture(scope="module")
def stage(qapp):
    """One viewer with one pair of layers for most tests: opening one takes seconds.

    They stay in it to the end: napari 0.9.2 crashes in software GL when layers leave and come in a viewer that has
    shown a brush cursor, with napari's own layers too.
    """
    with opened_viewer(900, 620) as opened:
        shown = Scribbles(opened, Annotations((SIDE, SIDE), classes=CLASSES))
        yield shown
        shown.close()


@pytest.fixture
def own_viewer(qapp):
    with opened_viewer(900, 620) as opened:
        yield opened


@pytest.fixture
def viewer(stage):
    return stage.viewer


@pytest.fixture
def annotations(stage):
    """Nothing drawn and nothing to redo that matters; the classes as at the start."""
    yield stage.annotations
    while stage.annotations.undo() is not None:
        pass
    stage.annotations.set_classes(CLASSES)


@pytest.fixture
def slicing(request):
    from napari.settings import get_settings

    get_settings().experimental.async_ = request.param
    yield request.param
    get_settings().experimental.async_ = False


@pytest.fixture
def scribbles(stage, annotations):
    layer = stage.layer
    assert isinstance(layer, ScribbleLayer)
    stage.viewer.layers.selection.active = layer
    layer.mode, layer.brush_size, layer.selected_label = "paint", 21, 1
    layer.preserve_labels, layer.contour = False, 0
    return stage


@pytest.fixture
def layer(scribbles) -> ScribbleLayer:
    return scribbles.layer


def around(annotations: Annotations, y: float, x: float, reach: int, level: int = 0) -> tuple[np.ndarray, int, int]:
    """Labels of the square of `reach` level-0 pixels around (y, x), with the origin in pixels of `level`."""
    y0, x0 = (int(y) - reach) >> level, (int(x) - reach) >> level
    size = 2 * reach >> level
    return annotations.levels()[level][y0 : y0 + size, x0 : x0 + size], y0, x0


def capsule(shape, y0, x0, start, end, radius) -> np.ndarray:
    """Pixels whose centre lies within `radius` of the segment; centres at the integers, as napari has them."""
    ys, xs = np.mgrid[y0 : y0 + shape[0], x0 : x0 + shape[1]].astype(float)
    d = np.subtract(end, start)
    along = ((ys - start[0]) * d[0] + (xs - start[1]) * d[1]) / max(float(d @ d), 1e-12)
    along = np.clip(along, 0, 1)
    return np.hypot(ys - start[0] - along * d[0], xs - start[1] - along * d[1]) <= radius


def assert_drawn(labels, expected, slack, label=1):
    """All of `expected(-slack)` and nothing outside `expected(+slack)` has the label."""
    inner, outer = expected(-slack), expected(slack)
    assert inner.any()
    assert (labels[inner] == label).all()
    assert not (labels[~outer] == label).any()


def test_this_napari_has_what_painting_needs():
    assert napari_compat.problems() == ()
    assert napari_compat.qt_problem() == ""


@BOTH
@pytest.mark.parametrize("zoom", [0.02, 0.5, 3.0])
def test_stroke_is_as_wide_as_the_brush_on_the_screen(slicing, viewer, annotations, layer, mouse, zoom):
    look_at(viewer, MIDDLE, MIDDLE, zoom)
    w, h = mouse.size
    start, end = (w / 2 - 60, h / 2 + 10), (w / 2 + 80, h / 2 - 30)
    mouse.drag(line(start, end, 12))
    assert len(annotations.strokes) == 1
    radius = 21 / 2 / zoom
    level = max(0, int(np.log2(radius / 24)))  # where the brush is 48 to 96 pixels wide
    labels, y0, x0 = around(annotations, MIDDLE, MIDDLE, int(150 / zoom), level)
    p, q = (tuple((c + 0.5) / 2**level - 0.5 for c in mouse.world(point)) for point in (start, end))
    # the way there is by whole screen pixels
    slack = 0.7 / zoom / 2**level + 0.5
    assert_drawn(labels, lambda s: capsule(labels.shape, y0, x0, p, q, radius / 2**level + s), slack)


@pytest.mark.parametrize("mode", ["paint", "erase"])
def test_a_stroke_that_comes_all_at_once_reaches_to_its_end(viewer, annotations, layer, mouse, mode):
    """As where the window was busy meanwhile: napari holds back moves within 5 ms, and the release overtakes them."""
    look_at(viewer, MIDDLE, MIDDLE, 1.0)
    if mode == "erase":
        annotations.paint([(MIDDLE, MIDDLE - 200), (MIDDLE, MIDDLE + 200)], 40, 1)
    layer.mode = mode
    w, h = mouse.size
    path = line((w / 2 - 60, h / 2), (w / 2 + 80, h / 2), 12)
    mouse.move(path[0])
    mouse.press(path[0])
    for point in path[1:]:
        mouse.move(point, "left")
    mouse.release(path[-1])
    pump(0.05)
    labels, y0, x0 = around(annotations, MIDDLE, MIDDLE, 150)
    for point in (path[0], path[-1]):
        y, x = mouse.world(point)
        assert labels[round(y) - y0, round(x) - x0] == (mode == "paint")
    assert len(annotations.strokes) == (1 if mode == "paint" else 2)


def test_dab_at_full_resolution_is_the_exact_disc(viewer, annotations, layer, mouse):
    look_at(viewer, MIDDLE, MIDDLE, 1.0)
    point = (mouse.size[0] / 2 + 13, mouse.size[1] / 2 - 9)
    mouse.click(point)
    y, x = mouse.world(point)
    labels, y0, x0 = around(annotations, y, x, 40)
    assert np.array_equal(labels == 1, capsule(labels.shape, y0, x0, (y, x), (y, x), 10.5))


def test_one_drag_is_one_undo_by_keyboard(viewer, annotations, layer, mouse):
    look_at(viewer, MIDDLE, MIDDLE, 0.25)
    w, h = mouse.size
    mouse.drag(line((w / 3, h / 3), (w / 2, h / 3), 8))
    mouse.key("2")
    mouse.drag(line((w / 3, h / 2), (w / 2, h / 2), 8))
    full = annotations.counts()
    assert full[1] > 0
    assert full[2] > 0
    mouse.key("Z", ctrl=True)
    assert annotations.counts() == {**full, 2: 0}
    assert layer.label_at(mouse.world((w / 2.5, h / 2))) == 0
    mouse.key("Z", ctrl=True)
    assert not any(annotations.counts().values())
    mouse.key("Z", ctrl=True, shift=True)
    mouse.key("Z", ctrl=True, shift=True)
    assert annotations.counts() == full
    assert layer.label_at(mouse.world((w / 2.5, h / 2))) == 2


def test_class_keys_and_letter_keys(layer, mouse, capsys):
    for key, expected in (("3", 3), ("1", 1), ("9", 1)):
        mouse.key(key)
        assert layer.selected_label == expected
    for key, mode in (
        ("E", "erase"),
        ("F", "fill"),
        ("L", "pick"),
        ("G", "polygon"),
        ("P", "paint"),
        ("Z", "pan_zoom"),
    ):
        mouse.key(key)
        assert layer.mode == mode
    mouse.key("E")
    mouse.key("2")
    assert (layer.mode, layer.selected_label) == ("paint", 2)


def test_erase_removes_what_the_brush_passes(viewer, annotations, layer, mouse):
    look_at(viewer, MIDDLE, MIDDLE, 1.0)
    w, h = mouse.size
    mouse.drag(line((w / 2 - 100, h / 2), (w / 2 + 100, h / 2), 10))
    before = annotations.counts()[1]
    mouse.key("E")
    layer.brush_size = 9
    mouse.click((w / 2, h / 2))
    y, x = mouse.world((w / 2, h / 2))
    labels, y0, x0 = around(annotations, y, x, 8)
    hole = capsule(labels.shape, y0, x0, (y, x), (y, x), 4.5)
    assert np.array_equal(labels == 0, hole)
    assert annotations.counts()[1] == before - hole.sum()


def test_preserve_labels_draws_only_where_nothing_is(viewer, annotations, layer, mouse):
    look_at(viewer, MIDDLE, MIDDLE, 1.0)
    w, h = mouse.size
    mouse.drag(line((w / 2 - 100, h / 2), (w / 2 + 100, h / 2), 10))
    before = annotations.counts()[1]
    mouse.key("2")
    mouse.key("B")
    assert layer.preserve_labels
    mouse.drag(line((w / 2, h / 2 - 60), (w / 2, h / 2 + 60), 10))
    after = annotations.counts()
    assert after[1] == before
    p, q = mouse.world((w / 2, h / 2 - 60)), mouse.world((w / 2, h / 2 + 60))
    a, b = mouse.world((w / 2 - 100, h / 2)), mouse.world((w / 2 + 100, h / 2))
    labels, y0, x0 = around(annotations, *mouse.world((w / 2, h / 2)), 130)
    first = capsule(labels.shape, y0, x0, a, b, 10.5)
    second = capsule(labels.shape, y0, x0, p, q, 10.5)
    assert np.array_equal(labels, np.where(first, 1, np.where(second, 2, 0)))


@pytest.mark.parametrize("zoom", [1.0, 1 / 8])
def test_fill_closes_an_outline_and_stays_in_the_tile(viewer, annotations, layer, mouse, zoom):
    look_at(viewer, MIDDLE, MIDDLE, zoom)
    w, h = mouse.size
    corners = [(w / 2 - 60, h / 2 - 60), (w / 2 + 60, h / 2 - 60), (w / 2 + 60, h / 2 + 60), (w / 2 - 60, h / 2 + 60)]
    path = [p for a, b in zip(corners, corners[1:] + corners[:1], strict=True) for p in line(a, b, 6)]
    mouse.drag(path)
    mouse.key("F")
    mouse.key("2")
    assert layer.mode == "fill"
    mouse.click((w / 2, h / 2))
    side = (120 - 21) / zoom  # between the inner edges of the outline
    assert annotations.counts()[2] == pytest.approx(side**2, rel=0.04)
    mouse.click((w / 2 + 200, h / 2))
    tile = layer.tile.box
    assert annotations.counts()[2] <= (tile.area * layer.tile.factor**2)
    assert layer.label_at(mouse.world((w / 2 + 200, h / 2))) == 2
    mouse.key("Z", ctrl=True)
    mouse.key("Z", ctrl=True)
    assert annotations.counts()[2] == 0


def test_pick_takes_the_label_under_the_cursor(viewer, layer, mouse):
    look_at(viewer, MIDDLE, MIDDLE, 0.1)
    w, h = mouse.size
    mouse.key("3")
    mouse.click((w / 2, h / 2))
    mouse.key("1")
    mouse.key("L")
    mouse.click((w / 2 + 3, h / 2 - 3))
    assert layer.selected_label == 3
    mouse.click((w / 2 + 100, h / 2))
    assert layer.selected_label == 0


@pytest.mark.parametrize("zoom", [1.0, 1 / 16])
def test_polygon_is_filled_where_it_was_previewed(viewer, annotations, layer, mouse, zoom):
    look_at(viewer, MIDDLE, MIDDLE, zoom)
    w, h = mouse.size
    corners = [(w / 2 - 80, h / 2 - 50), (w / 2 + 70, h / 2 - 50), (w / 2 + 70, h / 2 + 90), (w / 2 - 80, h / 2 + 90)]
    mouse.key("G")
    mouse.key("3")
    for corner in corners[:3]:
        mouse.click(corner)
    mouse.hover(corners[3])
    assert len(annotations.strokes) == 0
    green = (0x00, 0x9E, 0x73)  # class 3 at opacity 0.7 on black
    shot = viewer.screenshot(flash=False, canvas_only=True)[..., :3].astype(int)
    drawn = np.abs(shot - np.round(np.array(green) * 0.7)).max(axis=-1) < 12
    ys, xs = np.nonzero(drawn)
    assert xs.min() == pytest.approx(corners[0][0], abs=6)
    assert xs.max() == pytest.approx(corners[1][0], abs=6)
    assert ys.min() == pytest.approx(corners[0][1], abs=6)
    assert ys.max() == pytest.approx(corners[2][1], abs=6)
    mouse.double_click(corners[3])
    (y0, x0), (y1, x1) = mouse.world(corners[0]), mouse.world(corners[2])
    reach = int(120 / zoom)
    level = layer.tile.level
    labels, oy, ox = around(annotations, MIDDLE, MIDDLE, reach, level)
    ys, xs = np.nonzero(labels == 3)
    f = 2**level
    for got, world in ((ys.min() + oy, y0), (ys.max() + oy, y1), (xs.min() + ox, x0), (xs.max() + ox, x1)):
        assert got == pytest.approx((world + 0.5) / f - 0.5, abs=1.5)
    assert annotations.counts()[3] == pytest.approx((y1 - y0 + 1) * (x1 - x0 + 1), rel=0.02)
    mouse.key("Z", ctrl=True)
    assert annotations.counts()[3] == 0


@pytest.mark.parametrize("zoom", [1.0, 1 / 16])
def test_right_click_encircling_fills_the_loop_as_one_stroke(viewer, annotations, layer, mouse, zoom):
    look_at(viewer, MIDDLE, MIDDLE, zoom)
    w, h = mouse.size
    turn = np.linspace(0, 2 * np.pi, 60)
    loop = [(w / 2 + 100 * np.cos(t), h / 2 + 100 * np.sin(t)) for t in turn]
    mouse.click(loop[0], "right")
    mouse.trace(loop)
    assert len(annotations.strokes) == 1
    assert annotations.counts()[1] == pytest.approx(np.pi * (110.5 / zoom) ** 2, rel=0.03)
    mouse.key("Z", ctrl=True)
    assert not any(annotations.counts().values())


def test_brush_keeps_its_size_on_the_screen_and_the_slider_works(viewer, layer, mouse):
    from qtpy.QtWidgets import QSlider

    look_at(viewer, MIDDLE, MIDDLE, 0.05)
    assert layer.brush_diameter == pytest.approx(21 / 0.05)
    look_at(viewer, MIDDLE, MIDDLE, 2.0)
    assert layer.brush_diameter == pytest.approx(21 / 2)
    sliders = [s for s in main_window(viewer).findChildren(QSlider) if s.maximum() == 40 and s.isVisible()]
    assert [s.value() for s in sliders] == [21]
    sliders[0].setValue(30)
    assert layer.brush_size == 30
    assert layer.brush_diameter == pytest.approx(15)
    mouse.key("BracketRight")
    assert layer.brush_size == 31


def test_alt_and_mouse_change_the_brush_by_screen_pixels(viewer, layer, mouse):
    from qtpy.QtCore import Qt

    look_at(viewer, MIDDLE, MIDDLE, 0.05)
    w, h = mouse.size
    mouse.hover((w / 2, h / 2), Qt.KeyboardModifier.AltModifier)
    mouse.hover((w / 2 + 15, h / 2), Qt.KeyboardModifier.AltModifier)
    mouse.hover((w / 2 + 15, h / 2))
    assert layer.brush_size == 36


@BOTH
def test_scribbles_show_from_the_whole_slide_to_one_to_one(slicing, viewer, annotations, layer, mouse):
    look_at(viewer, MIDDLE, MIDDLE, 1.0)
    point = (mouse.size[0] / 2, mouse.size[1] / 2)
    layer.brush_size = 4
    mouse.click(point)
    orange = np.array([0xE6, 0x9F, 0x00]) * 0.7
    for zoom in (1.0, 0.3, 1 / 8, 1 / 32, 0.02):
        look_at(viewer, MIDDLE, MIDDLE, zoom)
        wait_until(lambda: layer.loaded)
        shot = viewer.screenshot(flash=False, canvas_only=True)[..., :3].astype(int)
        assert (np.abs(shot - orange).max(axis=-1) < 12).any(), f"nothing to see at zoom {zoom}"


@BOTH
def test_changes_from_elsewhere_show_up(slicing, viewer, annotations, layer, mouse):
    look_at(viewer, MIDDLE, MIDDLE, 0.5)
    annotations.paint([(MIDDLE, MIDDLE)], 30, 2)
    wait_until(lambda: layer.label_at((MIDDLE, MIDDLE)) == 2)
    annotations.undo()
    wait_until(lambda: layer.label_at((MIDDLE, MIDDLE)) == 0)


def test_changes_from_another_thread_reach_the_gui_thread(viewer, annotations, layer):
    import threading

    look_at(viewer, MIDDLE, MIDDLE, 0.5)
    seen = []
    layer.events.labels_update.connect(lambda event: seen.append(threading.current_thread()))
    worker = threading.Thread(target=annotations.paint, args=([(MIDDLE, MIDDLE)], 30, 3))
    worker.start()
    worker.join()
    wait_until(lambda: layer.label_at((MIDDLE, MIDDLE)) == 3)
    assert set(seen) == {threading.main_thread()}


def test_three_dimensions_and_transposed_axes_are_refused(viewer, layer, mouse):
    look_at(viewer, MIDDLE, MIDDLE, 0.5)
    viewer.dims.ndisplay = 3
    pump(0.1)
    assert viewer.dims.ndisplay == 2
    assert camera(viewer).zoom == pytest.approx(0.5)
    viewer.dims.order = (1, 0)
    pump(0.1)
    assert tuple(viewer.dims.order) == (0, 1)
    mouse.click((mouse.size[0] / 2, mouse.size[1] / 2))
    assert layer.annotations.counts()[1] > 300


def test_colours_and_names_follow_the_classes(viewer, annotations, layer, mouse):
    def rgb(class_id):
        return tuple(np.round(np.asarray(layer.get_color(class_id))[:3] * 255).astype(int))

    assert [rgb(c.id) for c in annotations.classes] == [c.rgb for c in annotations.classes]
    annotations.set_classes([("tumour", "#102030"), ("stroma", "#405060"), ("fat", "#708090")])
    wait_until(lambda: rgb(1) == (0x10, 0x20, 0x30))
    look_at(viewer, MIDDLE, MIDDLE, 1.0)
    centre = (mouse.size[0] / 2, mouse.size[1] / 2)
    mouse.click(centre)
    mouse.hover((centre[0] + 2, centre[1]))
    wait_until(lambda: "class: tumour" in str(viewer.status))


def test_label_without_a_class_is_refused_with_words(viewer, annotations, layer, mouse):
    from napari.utils.notifications import notification_manager

    layer.selected_label = 77
    mouse.drag(line((200, 200), (260, 200), 5))
    assert len(annotations.strokes) == 0
    assert any("77" in str(n.message) for n in notification_manager.records)


def test_contours_are_updated_while_painting(viewer, annotations, layer, mouse):
    look_at(viewer, MIDDLE, MIDDLE, 1.0)
    layer.contour = 2
    w, h = mouse.size
    mouse.drag(line((w / 2 - 50, h / 2), (w / 2 + 50, h / 2), 10))
    shot = viewer.screenshot(flash=False, canvas_only=True)[..., :3].astype(int)
    column = shot[int(h / 2) - 20 : int(h / 2) + 21, int(w / 2)].max(axis=-1) > 100
    inside = np.flatnonzero(column) - 20
    assert inside.min() == pytest.approx(-10, abs=1.5)
    assert inside.max() == pytest.approx(10, abs=1.5)
    assert not column[14:27].any()


def test_napari_writes_full_resolution_or_nothing(tmp_path, own_viewer):
    import tifffile

    small = Annotations((3000, 2000), classes=CLASSES)
    small.paint([(1500, 1000)], 40, 2)
    shown = Scribbles(own_viewer, small)
    own_viewer.layers.save(str(tmp_path / "labels.tif"), selected=True)
    image = tifffile.imread(tmp_path / "labels.tif")
    assert image.shape[0] >= 3000
    assert (image == 2).sum() == small.counts()[2]
    pump(0.1)
    shown.close()


def test_napari_refuses_to_write_a_pyramid_that_is_too_large(tmp_path, layer):
    from napari_sparseseg.errors import AnnotationError

    with pytest.raises(AnnotationError, match=r"\.sparseseg or \.geojson"):
        layer.save(str(tmp_path / "labels.tif"))


def test_own_formats_hold_all(tmp_path, viewer, annotations, layer, mouse):
    mouse.drag(wave(mouse.size, 10))
    counts = annotations.counts()
    for name in ("a.sparseseg", "a.geojson"):
        written = layer.save(str(tmp_path / name))
        assert written == [str(tmp_path / name)]
    assert Annotations.load(tmp_path / "a.sparseseg").counts() == counts


def test_dense_rectangle_is_drawn_shown_and_undone(viewer, annotations, scribbles, mouse):
    look_at(viewer, MIDDLE, MIDDLE, 0.5)
    scribbles.layer.selected_label = 2
    dense = scribbles.dense_layer
    viewer.layers.selection.active = dense
    dense.mode = "add_rectangle"
    w, h = mouse.size
    mouse.drag(line((w / 2 - 100, h / 2 - 50), (w / 2 + 60, h / 2 + 90), 6))
    wait_until(lambda: len(annotations.dense_regions) == 1)
    region = annotations.dense_regions[0]
    (y0, x0), (y1, x1) = mouse.world((w / 2 - 100, h / 2 - 50)), mouse.world((w / 2 + 60, h / 2 + 90))
    assert region.class_id == 2
    assert np.asarray(region.points).min(axis=0) == pytest.approx((y0, x0), abs=3)
    assert np.asarray(region.points).max(axis=0) == pytest.approx((y1, x1), abs=3)
    assert dense.nshapes == 1
    shot = viewer.screenshot(flash=False, canvas_only=True)[..., :3].astype(int)
    outline = shot[int(h / 2) - 54 : int(h / 2) - 46, int(w / 2)].max(axis=0)
    assert outline == pytest.approx(annotations.classes[1].rgb, abs=40)
    mouse.key("Z", ctrl=True)
    wait_until(lambda: not annotations.dense_regions)
    assert dense.nshapes == 0
    dense.mode = "pan_zoom"


def test_dense_regions_from_elsewhere_are_shown(viewer, annotations, scribbles):
    annotations.fill_polygon([(100, 100), (100, 900), (900, 900)], 1, dense=True)
    wait_until(lambda: scribbles.dense_layer.nshapes == 1)
    assert scribbles.dense_layer.data[0].max() == pytest.approx(900, abs=1)


def test_closing_a_slide_lets_go_of_everything(own_viewer):
    import gc
    import weakref

    annotations = Annotations((SIDE, SIDE), classes=CLASSES)
    shown = Scribbles(own_viewer, annotations)
    gone = weakref.ref(shown)
    own_viewer.layers.remove(shown.layer)
    assert shown.closed
    assert len(own_viewer.layers) == 0
    annotations.paint([(MIDDLE, MIDDLE)], 30, 1)
    del shown
    pump(0.1)
    gc.collect()
    assert gone() is None
