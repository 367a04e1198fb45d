"""Dense regions changed with napari's own tools, saving through napari, and a napari whose private parts changed."""

import numpy as np
import pytest
from napari.layers import Labels

from napari_sparseseg import Annotations
from napari_sparseseg.errors import SparseSegError
from napari_sparseseg.gui.layers import napari_compat
from napari_sparseseg.gui.layers.scribbles import ScribbleLayer
from napari_sparseseg.gui.layers.slide_layers import Scribbles
from napari_sparseseg.io import load_annotations
from tests.helpers.mouse import Mouse, line, look_at, pump, wave
from tests.helpers.waiting import wait_until
from tests.helpers.windows import opened_viewer

SIDE = 6000
SQUARE = [(2800, 2800), (2800, 3100), (3100, 3100), (3100, 2800)]


@pytest.fixture
def shown(qapp):
    with opened_viewer(900, 620) as viewer:
        scribbles = Scribbles(viewer, Annotations((SIDE, SIDE), classes=["tumour", "stroma"]))
        look_at(viewer, 3000, 3000, 0.5)
        yield scribbles
        scribbles.close()


def test_dense_regions_are_deleted_moved_and_brought_back(shown):
    a, layer, mouse = shown.annotations, shown.dense_layer, Mouse(shown.viewer)
    a.fill_polygon(SQUARE, 1, dense=True)
    a.fill_polygon([(3200, 2800), (3200, 2900), (3300, 2900)], 2, dense=True)
    wait_until(lambda: len(layer.data) == 2)
    shown.viewer.layers.selection.active = layer
    layer.mode = "select"
    # drag the square 40 canvas pixels to the right: 80 level-0 pixels
    start = mouse.canvas(2900, 2900)
    mouse.drag(line(start, (start[0] + 40, start[1]), 5))
    wait_until(lambda: a.dense_regions[-1].box.x == pytest.approx(2880, abs=2))
    assert len(a.dense_regions) == 2
    assert a.dense_regions[-1].class_id == 1
    assert a.counts()[1] == 300 * 300
    layer.selected_data = {1}
    mouse.key("Delete")
    wait_until(lambda: len(a.dense_regions) == 1)
    assert a.counts() == {1: 0, 2: pytest.approx(5000, abs=60)}
    wait_until(lambda: len(layer.data) == 1)
    mouse.key("Z", ctrl=True)
    mouse.key("Z", ctrl=True)
    wait_until(lambda: len(layer.data) == 2)
    assert sorted(region.box.x for region in a.dense_regions) == [2800, 2800]
    np.testing.assert_array_equal(a.read((2800, 2800, 300, 300)), 1)


def test_several_regions_are_deleted_as_one_step(shown):
    a, layer = shown.annotations, shown.dense_layer
    for offset in (0, 400, 800):
        a.fill_polygon([(y, x + offset) for y, x in SQUARE], 2, dense=True)
    wait_until(lambda: len(layer.data) == 3)
    layer.selected_data = {0, 2}
    layer.remove_selected()
    wait_until(lambda: len(a.dense_regions) == 1)
    assert a.dense_regions[0].box.x == 3200
    a.undo()
    assert len(a.dense_regions) == 3


def test_a_region_of_many_corners_is_a_line_that_keeps_its_shape(shown):
    a, layer, mouse = shown.annotations, shown.dense_layer, Mouse(shown.viewer)
    angles = np.linspace(0, 2 * np.pi, 10000, endpoint=False)
    circle = np.stack([3000 + 200 * np.sin(angles), 3000 + 200 * np.cos(angles)], axis=1)
    a.fill_polygon(circle, 1, dense=True)
    wait_until(lambda: layer.nshapes == 1)
    assert list(layer.shape_type) == ["path"]
    drawn = layer.data[0][:, -2:] + 0.5
    np.testing.assert_allclose(drawn, [*circle[::3], circle[0]], atol=1e-3)
    shown.viewer.layers.selection.active = layer
    layer.mode = "select"
    start = mouse.canvas(*drawn[0])
    mouse.drag(line(start, (start[0] + 40, start[1]), 5))
    wait_until(lambda: layer.nshapes == 1 and np.array_equal(layer.data[0][:, -2:] + 0.5, drawn))
    assert a.dense_regions[0].box.x == 2800
    layer.selected_data = {0}
    mouse.key("Delete")
    wait_until(lambda: not a.dense_regions)


@pytest.mark.parametrize("name", ["saved.sparseseg", "saved.geojson", "saved.xml"])
def test_save_selected_layers_writes_all_scribbles(shown, tmp_path, name):
    mouse = Mouse(shown.viewer)
    shown.layer.mode, shown.layer.brush_size = "paint", 20
    mouse.drag(wave(mouse.size, 10))
    shown.viewer.layers.selection = {shown.layer}
    written = shown.viewer.layers.save(str(tmp_path / name), selected=True, plugin="napari-sparseseg")
    assert [str(p) for p in written] == [str(tmp_path / name)]
    back = load_annotations(tmp_path / name, (SIDE, SIDE))
    np.testing.assert_array_equal(back.read((0, 0, SIDE, SIDE)), shown.annotations.read((0, 0, SIDE, SIDE)))
    assert back.counts()[1] > 0


@pytest.mark.parametrize("broken", ["missing", "renamed parameter", "no texture event"])
def test_a_napari_that_cannot_paint_is_refused_with_a_sentence(viewer, monkeypatch, tiny_slide, broken):
    if broken == "missing":
        monkeypatch.delattr(Labels, "_partial_labels_refresh")
    elif broken == "renamed parameter":
        monkeypatch.setattr(Labels, "_draw", lambda self, label, last, now: None)
    else:
        monkeypatch.setattr(ScribbleLayer, "_partial_labels_refresh", lambda self: None)
    napari_compat.problems.cache_clear()
    try:
        with pytest.raises(SparseSegError, match=r"nothing can be drawn.*Install"):
            Scribbles(viewer, Annotations((SIDE, SIDE)))
        panel = viewer.window.add_plugin_dock_widget("napari-sparseseg")[1]
        assert "nothing can be drawn" in panel.header.error.text.text()
        assert not any(section.isEnabled() for section in panel.sections)
        panel.session.open(tiny_slide)
        pump(0.3)
        assert not viewer.layers
        panel.shut_down()
    finally:
        napari_compat.problems.cache_clear()
