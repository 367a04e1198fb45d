"""Slides as they come into napari: dropped, from its command line, by its readers; and images that others opened."""

from __future__ import annotations

import json
import subprocess
import sys

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr
from napari.layers._source import layer_source
from PIL import Image
from qtpy.QtCore import QMimeData, QPoint, QPointF, Qt, QTimer, QUrl
from qtpy.QtGui import QDragEnterEvent, QDropEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QDialogButtonBox, QRadioButton

from napari_sparseseg.errors import SlideOpenError
from napari_sparseseg.slides.cache import TILES
from napari_sparseseg.slides.pyramid import SlideWarning
from tests.helpers.bad_slides import sparse
from tests.helpers.data import ROOT
from tests.helpers.mouse import Mouse, line, look_at, main_window, part_of, pump
from tests.helpers.slide_files import (
    mean2,
    overwrite,
    texture,
    write_ome,
    write_raw,
    write_reduced_pages,
    write_svs,
    write_zarr,
)
from tests.helpers.waiting import wait_until

COMMAND_LINE = """
import json, sys
from napari_sparseseg.gui.host import prefer_reader_for_slides
prefer_reader_for_slides()  # as after the panel was open once
from napari.qt import get_qapp
from qtpy.QtCore import QTimer
app = get_qapp()

def look():
    import napari
    viewer = napari.current_viewer()
    if viewer is None or not viewer.layers or not app.thread().loopLevel():  # napari.run() has not begun
        QTimer.singleShot(100, look)
        return
    layer = viewer.layers[0]
    print(json.dumps([layer.name, layer.multiscale, layer.rgb, layer.source.reader_plugin]))
    viewer.close()
    app.quit()

QTimer.singleShot(100, look)
from napari.__main__ import main
sys.argv = ["napari", sys.argv[1]]
main()
"""


def choose_us(tries=600):
    """Answer napari's question which reader to take, once it comes up."""
    dialog = QApplication.activeModalWidget()
    if dialog is None:
        if tries:
            QTimer.singleShot(50, lambda: choose_us(tries - 1))
        return
    [ours] = [b for b in dialog.findChildren(QRadioButton) if b.text() == "napari-sparseseg"]
    QTest.mouseClick(ours, Qt.MouseButton.LeftButton, pos=QPoint(8, ours.height() // 2))
    box = dialog.findChild(QDialogButtonBox)
    QTest.mouseClick(box.button(QDialogButtonBox.StandardButton.Ok), Qt.MouseButton.LeftButton)


def drop(viewer, *paths):
    """What the window system sends when files are let go over the canvas."""
    target = part_of(main_window(viewer), "QtViewer")
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(p)) for p in paths])
    at, left, none = QPointF(200, 200), Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    enter = QDragEnterEvent(at.toPoint(), Qt.DropAction.CopyAction, data, left, none)
    QApplication.sendEvent(target, enter)
    assert enter.isAccepted()
    QApplication.sendEvent(target, QDropEvent(at, Qt.DropAction.CopyAction, data, left, none))
    pump(0.1)


def test_a_slide_dropped_on_napari_is_read_by_us(viewer, panel, tmp_path):
    pixels = texture(700, 900)
    write_svs(tmp_path / "a.svs", pixels)
    drop(viewer, tmp_path / "a.svs")
    layer = viewer.layers[0]
    assert layer.source.reader_plugin == "napari-sparseseg"
    assert layer.multiscale
    assert layer.rgb
    np.testing.assert_array_equal(np.asarray(layer.data[0][100:150, 200:250]), pixels[100:150, 200:250])
    wait_until(lambda: panel.slides.binding is not None, 10)
    assert panel.session.slide is layer.metadata["slide"]


@pytest.mark.parametrize(
    ("name", "write"), [("a.tif", write_reduced_pages), ("a.ome.tif", write_ome), ("a.ome.zarr", write_zarr)]
)
def test_a_pyramid_dropped_on_napari_can_be_read_by_us(viewer, tmp_path, name, write):
    """napari has one question for names that are not only slides'."""
    pixels = texture(700, 900)
    write(tmp_path / name, pixels)
    choose_us()
    drop(viewer, tmp_path / name)
    [layer] = viewer.layers
    assert layer.source.reader_plugin == "napari-sparseseg"
    assert layer.multiscale
    np.testing.assert_array_equal(np.asarray(layer.data[0][100:150, 200:250]), pixels[100:150, 200:250])
    layer.metadata["slide"].close()


def test_napari_with_a_slide_on_its_command_line(tmp_path):
    write_svs(tmp_path / "a.svs", texture(700, 900))
    ended = subprocess.run(
        [sys.executable, "-c", COMMAND_LINE, str(tmp_path / "a.svs")], cwd=ROOT, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == ["a.svs", True, True, "napari-sparseseg"]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_channels_are_added_up_in_their_colours(viewer, panel, tmp_path, dtype):
    """Three bars: only the first channel, the first and second, all three; seen as blue, cyan, white."""
    top = 1.0 if dtype == np.float32 else np.iinfo(dtype).max // 2
    pixels = np.zeros((900, 1200, 3), dtype)
    for c, end in enumerate((1200, 800, 400)):
        pixels[:, 1200 - end :, c] = top
    pixels[:, :100] = 0
    channel = {"Name": ["DAPI", "CD3", "CK"], "Color": [0x0000FFFF, 0x00FF00FF, -0x00FFFF01]}
    write_ome(tmp_path / "a.ome.tif", pixels, rgb=False, levels=2, metadata={"Channel": channel})
    viewer.open(tmp_path / "a.ome.tif", plugin="napari-sparseseg")
    wait_until(lambda: panel.slides.binding is not None, 10)
    images = panel.slides.binding.images
    assert [la.name for la in images] == ["a.ome.tif: DAPI", "a.ome.tif: CD3", "a.ome.tif: CK"]
    assert list(viewer.layers[:3]) == images
    for layer in images:
        assert layer.contrast_limits == pytest.approx((0, top), rel=1e-3)
    look_at(viewer, 450, 600, 0.2)
    shot = viewer.screenshot(canvas_only=True, flash=False)
    middle, scale = shot.shape[0] // 2, shot.shape[1] / Mouse(viewer).size[0]
    seen = [shot[middle, int(shot.shape[1] / 2 + (x - 600) * 0.2 * scale), :3] for x in (50, 250, 600, 1000)]
    np.testing.assert_allclose(seen, [[0, 0, 0], [0, 0, 255], [0, 255, 255], [255, 255, 255]], atol=3)
    QTest.mouseClick(panel.slide.close_slide, Qt.MouseButton.LeftButton)
    wait_until(lambda: not viewer.layers, 20)


def levels_of(kind):
    """One image of two levels as three other readers hand it over."""
    pixels = texture(600, 800)
    both = [pixels, mean2(pixels)]
    if kind == "dask":
        return pixels, [da.from_array(p, chunks=(256, 256, 3)) for p in both]
    if kind == "zarr":
        return pixels, [zarr.array(p, chunks=(256, 256, 3)) for p in both]
    return pixels, both


@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr"])
def test_a_pyramid_of_another_reader_in_micrometres(viewer, panel, mouse, kind):
    pixels, levels = levels_of(kind)
    layer = viewer.add_image(
        levels, rgb=True, multiscale=True, name="other", scale=(0.5, 0.25), translate=(7, 9), units="um"
    )
    pump(0.1)
    QTest.mouseClick(panel.slide.use_layer, Qt.MouseButton.LeftButton)
    wait_until(lambda: panel.slides.binding is not None, 10)
    slide = panel.session.slide
    assert slide.mpp == (0.5, 0.25)
    assert slide.downsamples == (1, 2)
    np.testing.assert_array_equal(slide.read((40, 50, 60, 70)), pixels[40:100, 50:120])
    np.testing.assert_array_equal(layer.extent.world, [[0, 0], [599, 799]])
    viewer.reset_view()
    mouse.drag(line(mouse.canvas(300, 200), mouse.canvas(300, 600), 10))
    pump(0.1)
    box = panel.session.annotations.snapshot().strokes[0].box
    assert abs(box.y + box.height / 2 - 300) < 3
    assert abs(box.x + box.width / 2 - 400) < 3


def test_a_layer_that_was_there_before_the_panel_is_offered(viewer, open_panel, tmp_path):
    write_svs(tmp_path / "a.svs", texture(700, 900))
    [layer] = viewer.open(tmp_path / "a.svs")
    panel = open_panel()
    assert panel.slide.layers.currentText() == layer.name
    QTest.mouseClick(panel.slide.use_layer, Qt.MouseButton.LeftButton)
    wait_until(lambda: panel.slides.binding is not None, 10)
    assert panel.slides.binding.images == [layer]


@pytest.mark.parametrize("edited", [False, True])
def test_a_slide_that_napari_itself_opened(viewer, panel, tmp_path, edited):
    """`viewer.open` means napari's own reader unless one is named; the file knows the resolution, the pixels win."""
    pixels = texture(700, 900)
    write_svs(tmp_path / "a.svs", pixels)
    [layer] = viewer.open(tmp_path / "a.svs")
    assert layer.source.reader_plugin == "napari"
    assert not layer.multiscale
    if edited:
        layer.data = 255 - np.asarray(layer.data)
    QTest.mouseClick(panel.slide.use_layer, Qt.MouseButton.LeftButton)
    wait_until(lambda: panel.slides.binding is not None, 10)
    assert panel.slides.binding.images == [layer]
    slide = panel.session.slide
    assert slide.mpp == (None if edited else (0.25, 0.25))
    np.testing.assert_array_equal(slide.read((40, 50, 60, 70)), np.asarray(layer.data[40:100, 50:120]))


def test_channels_of_another_reader_are_one_slide(viewer, panel):
    """As napari-ome-zarr does: one grey layer per channel, the same file, its scale in micrometres."""
    pixels = texture(600, 800, 4, np.uint16)
    names = ["DAPI", "CD3", "CD8", "CK"]
    with layer_source(path="/somewhere/a.zarr", reader_plugin="napari-ome-zarr"):
        viewer.add_image(
            [np.moveaxis(p, -1, 0) for p in (pixels, mean2(pixels))], channel_axis=0, multiscale=True, name=names,
            scale=(0.5, 0.5), units="um",
        )  # fmt: skip
    viewer.add_image(np.zeros((600, 800), np.uint16), name="mine")
    pump(0.1)
    panel.slide.layers.setFocus()
    QTest.keyClick(panel.slide.layers, Qt.Key.Key_Home)
    QTest.mouseClick(panel.slide.use_layer, Qt.MouseButton.LeftButton)
    wait_until(lambda: panel.slides.binding is not None, 10)
    assert panel.session.slide.channels == tuple(names)
    assert panel.session.slide.mpp == (0.5, 0.5)
    np.testing.assert_array_equal(panel.session.slide.read((0, 0, 600, 800)), pixels)
    assert [la.name for la in panel.slides.binding.images] == names


def test_the_resolution_is_asked_for_and_remembered(viewer, panel, tmp_path):
    from napari_sparseseg import Session

    Image.fromarray(texture(600, 800)).save(tmp_path / "a.png")
    panel.slides.open(tmp_path / "a.png")
    wait_until(lambda: panel.slides.binding is not None, 10)
    assert "enter it" in panel.slide.facts.text().replace("\u00a0", " ")
    assert panel.slide.mpp.isVisible()
    panel.slide.mpp.setFocus()
    panel.slide.mpp.selectAll()
    QTest.keyClicks(panel.slide.mpp, "0.325")
    QTest.keyClick(panel.slide.mpp, Qt.Key.Key_Return)
    pump(0.2)
    assert panel.session.slide.mpp == (0.325, 0.325)
    assert "enter it" not in panel.slide.facts.text().replace("\u00a0", " ")
    panel.session.save(tmp_path / "a.sparseseg")
    with Session.load(tmp_path / "a.sparseseg") as again:
        assert again.slide.mpp == (0.325, 0.325)
        assert again.slide.mpp_source == "set by the user"


def test_what_would_take_minutes_to_show_is_refused(viewer, panel, tmp_path):
    path = sparse(100_000)(tmp_path)
    with pytest.raises(SlideOpenError, match=r"10\.0 billion px.*vips tiffsave"):
        viewer.open(path, plugin="napari-sparseseg")
    panel.slides.open(path)
    wait_until(panel.header.error.isVisible, 20)
    assert "vips tiffsave" in panel.header.error.text.text()
    assert panel.session.entry is None
    assert not viewer.layers


def test_one_level_of_moderate_size_is_shown(viewer, tmp_path):
    """5,000 px without levels: the coarse ones are made, and what napari shows is the mean of what is in the file."""
    block = texture(1000, 1000)
    pixels = np.tile(block, (5, 5, 1))
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(256, 256), photometric="rgb", metadata=None)
    [layer] = viewer.open(tmp_path / "a.tif", plugin="napari-sparseseg")
    assert [data.shape[0] for data in layer.data] == [5000, 2500, 1250, 625]
    half = block.astype(np.float64)
    for _ in range(3):
        half = (half[::2, ::2] + half[1::2, ::2] + half[::2, 1::2] + half[1::2, 1::2]) / 4
    shown = np.asarray(layer.data[3])
    assert np.abs(shown[:125, :125] - half).max() <= 2
    layer.metadata["slide"].close()


def _look_around_in_grey(viewer):
    for place in (1500, 1450, 1550):
        look_at(viewer, place, place, 1)
        pump(0.3)
        shown = viewer.screenshot(flash=False)
        assert len(np.unique(shown[shown.shape[0] // 2, shown.shape[1] // 3 : shown.shape[1] // 2, :3])) == 1


def test_a_slide_overwritten_while_it_is_shown(viewer, panel, mouse, tmp_path, monkeypatch):
    """What was not on screen yet is grey, the next stroke says so in the panel; Close and Open bring the new one."""
    old, new = texture(2048, 2048), np.ascontiguousarray(texture(2048, 2048)[::-1])
    path, other = write_raw(tmp_path / "a.tif", old), write_raw(tmp_path / "b.tif", new)
    raised = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: raised.append(str(error)))  # napari shows them
    panel.slides.open(path)
    wait_until(lambda: panel.slides.binding is not None, 20)
    look_at(viewer, 500, 500, 1)
    pump(0.3)
    overwrite(path, other.read_bytes())
    with TILES.limited(0), pytest.warns(SlideWarning, match=r"open it again\. Showing a grey placeholder") as told:
        _look_around_in_grey(viewer)
    assert len({str(w.message) for w in told}) == 1  # napari shows a text once
    assert raised == []
    mouse.drag(line(mouse.canvas(1500, 1400), mouse.canvas(1500, 1600), 12))
    wait_until(panel.header.error.isVisible, 20)
    assert "was overwritten or replaced" in panel.header.error.text.text()
    assert len(panel.session.annotations.strokes) == 1
    assert panel.session.annotations.saved
    QTest.mouseClick(panel.slide.close_slide, Qt.MouseButton.LeftButton)
    wait_until(lambda: panel.session.entry is None, 10)
    panel.slides.open(path)
    wait_until(lambda: panel.slides.binding is not None, 20)
    pump(0.3)
    np.testing.assert_array_equal(np.asarray(panel.slides.binding.images[0].data[0][:64, :64]), new[:64, :64])
    assert panel.session.annotations.strokes == ()
