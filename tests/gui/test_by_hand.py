"""What users do with menu, mouse and keys beside the straight path, each as they do it."""

from __future__ import annotations

import re

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QFrame, QPushButton

from napari_sparseseg import Annotations, Session
from napari_sparseseg.gui.view.marking import FRAME
from tests.helpers.answers import answer, answer_file, choose_entry
from tests.helpers.data import two_textures, write_slide
from tests.helpers.geojson import qupath
from tests.helpers.mouse import camera, pump
from tests.helpers.panel import (
    click,
    click_cell,
    draw,
    draw_both,
    names,
    open_from_menu,
    open_slide,
    palette_entry,
    panels,
    rename,
)
from tests.helpers.slide_files import texture, write_zarr
from tests.helpers.smooth_model import CLASSES, SmoothModel
from tests.helpers.vendor_files import mrxs, scn
from tests.helpers.waiting import wait_until
from tests.helpers.windows import opened_viewer

NAME = 3


@pytest.fixture
def panel(viewer, tiny_slide):
    """The panel as the menu opens it, with a slide."""
    opened = open_from_menu(viewer)
    open_slide(opened, tiny_slide)
    yield opened
    opened.shut_down()


def give_model(panel) -> None:
    panel.session.classes = CLASSES
    panel.session.use_model(SmoothModel())
    wait_until(lambda: panel.prediction.display.layer is not None, 20)


def bin_layer(viewer, layer) -> None:
    """Select a layer and press the bin of the layer list."""
    viewer.layers.selection.active = layer
    bins = [b for b in panels()[0].window().findChildren(QPushButton) if b.property("mode") == "delete_button"]
    click(bins[0])
    pump(0.2)


def over_slide(mouse) -> None:
    """Move the mouse over the canvas, as a hand does before it presses a key there."""
    mouse.hover((mouse.size[0] / 2, mouse.size[1] / 2))


def press(key: Qt.Key, modifiers=Qt.KeyboardModifier.NoModifier) -> None:
    """Press a key; Qt sends it to what has the focus."""
    focused = QApplication.focusWidget()
    QTest.keyClick(focused, key, modifiers)
    pump(0.05)


def test_there_is_one_panel_however_it_is_opened(viewer):
    opened = open_from_menu(viewer)
    palette_entry(viewer, "Add a class")
    wait_until(lambda: len(opened.session.classes) == 3, 20)
    assert panels() == [opened]
    assert viewer.window.add_plugin_dock_widget("napari-sparseseg")[1] is opened
    opened.shut_down()


def test_the_menu_finds_the_panel_that_a_command_opened(viewer):
    palette_entry(viewer, "Add a class")
    wait_until(lambda: bool(panels()), 20)
    [opened] = panels()
    dock = opened.parent()
    dock.hide()
    assert open_from_menu(viewer) is opened, "the menu shows it again"
    opened.shut_down()


def test_reader_and_writer_are_not_offered_as_commands(viewer):
    from napari._app_model import get_app_model

    app = get_app_model()
    for command in ("napari-sparseseg.read", "napari-sparseseg.write"):
        rule = app.registered_actions[command]
        assert rule.enablement is not None
        assert not rule.enablement.eval({})


@pytest.mark.parametrize("active", [0, 1], ids=["image", "dense regions"])
def test_class_keys_work_on_every_layer_of_the_slide(viewer, panel, mouse, active):
    """Key 2 is napari's transform mode on an image: the next drag would move the slide under its scribbles."""
    layer, scribbles = viewer.layers[active], panel.slides.binding.scribbles.layer
    before = layer.extent.world.copy()
    viewer.layers.selection.active = layer
    over_slide(mouse)
    mouse.key("2")
    assert scribbles.selected_label == 2
    draw(viewer, mouse, 500)
    np.testing.assert_array_equal(layer.extent.world, before)
    if active == 0:
        assert viewer.layers.selection.active is scribbles
        assert panel.session.annotations.counts()[2] > 0
        viewer.layers.selection.active = layer
        mouse.key("Z", ctrl=True)
        assert panel.session.annotations.counts()[2] == 0


def test_a_slide_cannot_be_moved_under_its_scribbles(viewer, panel, mouse):
    for layer in list(viewer.layers):
        before = layer.extent.world.copy()
        viewer.layers.selection.active = layer
        layer.mode = "transform"  # its button in the layer controls
        assert str(layer.mode) == "pan_zoom"
        layer.translate = (50, 70)
        layer.scale = (2, 2)
        np.testing.assert_array_equal(layer.extent.world, before)


def test_keys_over_the_slide_follow_the_mouse_not_the_last_click(viewer, panel, mouse):
    window = viewer.window._qt_window
    window.activateWindow()
    rename(panel, 0, "gland")
    over_slide(mouse)
    press(Qt.Key.Key_2)
    assert panel.slides.binding.scribbles.layer.selected_label == 2
    panel.train.train.setFocus()
    over_slide(mouse)
    press(Qt.Key.Key_Space)
    assert panel.session.status.state == "idle"
    assert not panel.header.error.isVisible(), "Space over the slide does not press Train"
    panel.predict.what.setFocus()
    over_slide(mouse)
    press(Qt.Key.Key_1)
    assert panel.slides.binding.scribbles.layer.selected_label == 1


def test_a_name_being_typed_keeps_the_keyboard(panel, mouse):
    panel.window().activateWindow()
    click_cell(panel, 0, NAME, double=True)
    editor = QApplication.focusWidget()
    QTest.keyClicks(editor, "gla")
    over_slide(mouse)
    assert QApplication.focusWidget() is editor
    QTest.keyClicks(editor, "nd")
    QTest.keyClick(editor, Qt.Key.Key_Return)
    pump(0.1)
    assert names(panel)[0] == "gland"


def test_an_accepted_region_is_undone_by_the_key_while_accepting(viewer, panel, mouse):
    give_model(panel)
    live = panel.session.live
    wait_until(lambda: live.store.top.any() and live.pending == 0, 30)
    click(panel.predict.accept)
    mouse.click(mouse.canvas(500, 250))
    wait_until(lambda: bool(panel.session.annotations.dense_regions), 20)
    over_slide(mouse)
    mouse.key("Z", ctrl=True)
    wait_until(lambda: not panel.session.annotations.dense_regions, 5)
    assert panel.predict.accept.isChecked()


def test_a_prediction_put_in_the_bin_comes_back(viewer, panel):
    give_model(panel)
    bin_layer(viewer, panel.prediction.display.layer)
    assert panel.prediction.display.layer is None
    assert not panel.predict.live.isChecked()
    wait_until(lambda: panel.header.next_step.text().startswith("Live prediction is off"), 5)
    QTest.keyClick(panel.predict.live, Qt.Key.Key_Space)
    wait_until(lambda: panel.prediction.display.layer in viewer.layers, 5)


@pytest.mark.parametrize("which", ["layer", "dense_layer"])
def test_scribbles_put_in_the_bin_come_back(viewer, panel, mouse, which):
    draw(viewer, mouse, 500)
    counts = panel.session.annotations.counts()
    bin_layer(viewer, getattr(panel.slides.binding.scribbles, which))
    scribbles = panel.slides.binding.scribbles
    assert scribbles.layer in viewer.layers
    assert scribbles.dense_layer in viewer.layers
    assert panel.session.annotations.counts() == counts
    draw(viewer, mouse, 700)
    assert panel.session.annotations.counts()[1] > counts[1]


def test_all_layers_in_the_bin_close_the_slide(viewer, panel):
    viewer.layers.select_all()
    viewer.layers.remove_selected()
    pump(0.3)
    assert panel.session.entry is None
    assert not viewer.layers


def test_an_encoder_typed_and_confirmed_with_enter_is_used(panel, mouse):
    draw_both(panel, mouse)
    click(panel.train.more.heading)
    edit = panel.train.settings.encoder.lineEdit()
    edit.setFocus()
    edit.selectAll()
    QTest.keyClicks(edit, "no_such_network")
    QTest.keyClick(edit, Qt.Key.Key_Return)
    assert panel.train.config(panel.session.config).encoder == "no_such_network"
    click(panel.train.train)
    wait_until(panel.header.error.isVisible, 60)
    assert "no_such_network" in panel.header.error.text.text()


def test_a_double_click_on_train_trains(panel, mouse):
    draw_both(panel, mouse)
    QTest.mouseClick(panel.train.train, Qt.MouseButton.LeftButton)
    QTest.mouseDClick(panel.train.train, Qt.MouseButton.LeftButton)
    QTest.mouseRelease(panel.train.train, Qt.MouseButton.LeftButton)
    wait_until(lambda: panel.session.status.step > 0)
    assert panel.session.status.state == "training"


def test_strokes_after_reopening_a_project_ask_for_train(viewer, panel, mouse, tmp_path):
    draw_both(panel, mouse)
    click(panel.train.train)
    wait_until(lambda: panel.session.status.model_version > 0)
    click(panel.train.stop)
    wait_until(lambda: panel.session.status.state == "idle" and not panel.busy)
    first = panel.session
    panel.session.save(tmp_path / "study.sparseseg")
    answer_file(tmp_path / "study.sparseseg")
    choose_entry(panel.header.menu_button, "Open project…")
    wait_until(lambda: panel.session is not first and panel.slides.binding is not None and not panel.busy, 30)
    pump(0.5)
    assert "not learned" not in panel.header.next_step.text()
    draw(viewer, mouse, 900)
    wait_until(lambda: "not learned yet: press Train" in panel.header.next_step.text(), 10)
    click(panel.train.train)
    wait_until(lambda: panel.session.status.live_annotation_version > 0)
    wait_until(lambda: "not learned" not in panel.header.next_step.text(), 10)


def test_exporting_after_more_training_asks_before_the_file_is_replaced(panel, tmp_path):
    give_model(panel)
    wait_until(panel.predict.predict_slide.isEnabled, 10)
    answer_file(tmp_path / "whole")
    click(panel.predict.predict_slide)
    wait_until(lambda: not panel.busy and "whole" in panel.predict.result.text(), 60)
    panel.session.use_model(SmoothModel(radius=3))
    wait_until(lambda: not panel.busy, 20)
    for button, written in (("Cancel", False), ("Predict again", True)):
        wait_until(panel.predict.export.isEnabled, 10)
        asked = answer(button)
        answer_file(tmp_path / "areas.csv")
        choose_entry(panel.predict.export, "Areas of the slide (CSV)…")
        wait_until(lambda asked=asked: bool(asked), 20)
        wait_until(lambda: not panel.busy, 60)
        pump(0.2)
        assert "whole.ome.zarr was predicted by an earlier model" in asked[0]
        assert (tmp_path / "areas.csv").exists() == written
        assert not panel.header.error.isVisible()


def test_an_import_adds_to_what_is_drawn_and_one_undo_takes_it_back(viewer, panel, mouse, tmp_path):
    draw(viewer, mouse, 500)
    before = panel.session.annotations.read((0, 0, 1024, 1024))
    other = Annotations((1024, 1024), ["tissue", "fat"])
    other.paint([(100, 100), (100, 500)], 20, 2)
    other.to_geojson(tmp_path / "other.geojson")
    answer_file(tmp_path / "other.geojson")
    click(panel.slide.import_button)
    wait_until(lambda: not panel.busy and len(panel.session.classes) == 3, 20)
    after = panel.session.annotations.read((0, 0, 1024, 1024))
    np.testing.assert_array_equal(after[before > 0], before[before > 0])
    assert (after == 3).sum() > 15_000
    over_slide(mouse)
    mouse.key("Z", ctrl=True)
    np.testing.assert_array_equal(panel.session.annotations.read((0, 0, 1024, 1024)), before)


@pytest.mark.parametrize("chosen", ["Draw over mine", "Keep mine", "Replace all mine", "Cancel"])
def test_an_import_over_other_labels_asks(viewer, panel, mouse, tmp_path, chosen):
    draw(viewer, mouse, 500)
    session = panel.session
    before = session.annotations.read((0, 0, 1024, 1024))
    other = Annotations((1024, 1024), ["fat"])
    other.paint([(300, 400), (700, 400)], 20, 1)
    other.to_geojson(tmp_path / "other.geojson")
    theirs = other.read((0, 0, 1024, 1024)) * 3
    answer_file(tmp_path / "other.geojson")
    asked = answer(chosen)
    click(panel.slide.import_button)
    wait_until(lambda: bool(asked), 20)
    wait_until(lambda: not panel.busy and (chosen == "Cancel" or len(session.classes) == 3), 20)
    assert "1 of the 1 objects in other.geojson lies where something of another class is labelled" in asked[0]
    expected = {
        "Draw over mine": np.where(theirs, theirs, before), "Keep mine": np.where(before, before, theirs),
        "Replace all mine": theirs, "Cancel": before,
    }  # fmt: skip
    np.testing.assert_array_equal(session.annotations.read((0, 0, 1024, 1024)), expected[chosen])
    if chosen != "Cancel":
        over_slide(mouse)
        mouse.key("Z", ctrl=True)
    np.testing.assert_array_equal(session.annotations.read((0, 0, 1024, 1024)), before)


def test_objects_without_a_class_are_shown_and_label_nothing(viewer, panel, mouse, tmp_path):
    """QuPath writes annotations that were not classified yet, and ``Region*``: outlines to see, not to train on."""
    path = qupath(tmp_path / "q.geojson", [("Region*", (100, 60, 300, 200)), ("stroma", (10, 20, 30, 40))])
    assert panel.session.import_annotations(path) == 1
    wait_until(lambda: panel.slides.binding.others is not None, 20)
    layer = panel.slides.binding.others
    assert layer in viewer.layers
    assert not layer.editable
    assert list(viewer.layers).index(layer) < list(viewer.layers).index(panel.slides.binding.scribbles.layer)
    assert list(layer.features["class"]) == ["Region*"]
    corners = {(y + 0.5, x + 0.5) for y, x in layer.data[0]}
    assert corners == {(60, 100), (60, 400), (260, 400), (260, 100)}
    assert sum(panel.session.annotations.counts().values()) == 30 * 40
    bin_layer(viewer, layer)
    assert layer not in viewer.layers
    panel.session.remove()
    wait_until(lambda: not viewer.layers, 20)


def test_an_import_for_another_slide_says_so(viewer, panel, mouse, tmp_path):
    draw(viewer, mouse, 500)
    counts = panel.session.annotations.counts()
    far = Annotations((100_000, 100_000), ["Tumor"])
    far.fill_polygon([(90_000, 90_000), (90_000, 91_000), (91_000, 91_000)], 1)
    far.to_geojson(tmp_path / "far.geojson")
    answer_file(tmp_path / "far.geojson")
    click(panel.slide.import_button)
    wait_until(panel.header.error.isVisible, 20)
    assert "No object of far.geojson lies on this slide" in panel.header.error.text.text()
    assert panel.session.annotations.counts() == counts


def test_annotations_of_two_slides_are_offered_each_with_its_slide(qapp, tiny_slide, tmp_path):
    second = write_slide(tmp_path / "second.tif", two_textures(512, 5))
    with opened_viewer() as viewer:
        opened = open_from_menu(viewer)
        for path in (tiny_slide, second):
            open_slide(opened, path)
            opened.session.annotations.paint([(100, 100), (100, 400)], 10, 1)
            pump(0.2)
        opened.shut_down()
    with opened_viewer() as viewer:
        opened = open_from_menu(viewer)
        for path in (tiny_slide, second):
            open_slide(opened, path)
        wait_until(lambda: "second.tif" in opened.header.recovery.text.text(), 20)
        opened.slide.slides.setFocus()
        QTest.keyClick(opened.slide.slides, Qt.Key.Key_Up)
        wait_until(lambda: tiny_slide.name in opened.header.recovery.text.text(), 5)
        click(opened.header.recovery.restore)
        wait_until(lambda: bool(opened.session.annotations.strokes), 10)
        click(opened.slide.close_slide)
        wait_until(lambda: "second.tif" in opened.header.recovery.text.text(), 5)
        click(opened.slide.close_slide)
        wait_until(lambda: not opened.header.recovery.isVisible(), 10)  # its slide is closed
        opened.shut_down()


def test_a_preset_says_what_becomes_of_strokes_before_it_renames_them(viewer, panel, mouse):
    for row, y in ((0, 300), (1, 700)):
        click_cell(panel, row, NAME)
        draw(viewer, mouse, y)
    counts = panel.session.annotations.counts()
    for button, expected in (("Cancel", ["tissue", "background"]), ("Replace", ["tumour", "stroma"])):
        asked = answer(button)
        choose_entry(panel.classes.presets, "Tumour and stroma")
        wait_until(lambda asked=asked: bool(asked), 10)
        pump(0.2)
        assert "tissue: 1 become tumour" in asked[0]
        assert names(panel)[:2] == expected
    click(panel.classes.undo)
    assert names(panel) == ["tissue", "background"]
    assert panel.session.annotations.counts() == counts


def test_a_project_whose_slide_is_gone_says_so_in_the_banner_which_finds_it(viewer, panel, mouse, tmp_path):
    moved = write_slide(tmp_path / "moved.tif", two_textures(512, 5))
    open_slide(panel, moved)
    panel.session.annotations.paint([(100, 100), (100, 400)], 10, 1)
    panel.session.save(tmp_path / "study.sparseseg")
    click(panel.slide.close_slide)
    click(panel.slide.close_slide)
    with Session() as other:
        other.open(moved)
        other.annotations.paint([(300, 100), (300, 400)], 10, 1)
        other.save(tmp_path / "other.sparseseg")
    (tmp_path / "elsewhere").mkdir()
    gone = moved.rename(tmp_path / "elsewhere" / "gone.tif")
    answer_file(tmp_path / "other.sparseseg")
    choose_entry(panel.header.menu_button, "Open project…")
    wait_until(panel.header.error.isVisible, 20)
    assert "moved.tif" in panel.header.error.text.text()
    answer_file(gone)
    click(panel.header.error.find)
    wait_until(lambda: not panel.busy and panel.session.entry is not None, 20)
    assert len(panel.session.annotations.strokes) == 1
    assert not panel.header.error.isVisible()


def test_an_ome_zarr_can_be_chosen(panel, tmp_path):
    write_zarr(tmp_path / "slide.ome.zarr", texture(700, 900))
    answer_file(tmp_path / "slide.ome.zarr")
    choose_entry(panel.header.menu_button, "Open OME-Zarr…")
    wait_until(lambda: not panel.busy and panel.session.slide.shape == (700, 900), 20)


def test_a_problem_is_not_shown_any_more_once_the_action_succeeds(panel, mouse):
    click(panel.train.train)
    assert panel.header.error.isVisible()
    draw_both(panel, mouse)
    click(panel.train.train)
    assert not panel.header.error.isVisible()


def test_the_next_uncertain_region_is_framed_until_the_view_moves(viewer, panel, mouse):
    give_model(panel)
    wait_until(panel.predict.next.isEnabled, 10)
    click(panel.predict.next)
    wait_until(lambda: panel.predict.doubt.text().startswith("The model is uncertain"), 30)
    frame = panel.window().findChild(QFrame, FRAME)
    assert frame.isVisible()
    middle = frame.geometry().center()
    assert abs(middle.x() - mouse.size[0] / 2) <= 2
    assert abs(middle.y() - mouse.size[1] / 2) <= 2
    camera(viewer).zoom *= 1.1
    assert not frame.isVisible()


def test_the_log_is_saved_from_the_menu(panel, tmp_path):
    (tmp_path / "notes.svs").write_text("not a slide")
    panel.slides.open(tmp_path / "notes.svs")
    wait_until(panel.header.error.isVisible, 10)
    answer_file(tmp_path / "report.log")
    choose_entry(panel.header.menu_button, "Save log…")
    wait_until((tmp_path / "report.log").exists, 10)
    wait_until(lambda: not panel.busy, 10)
    text = (tmp_path / "report.log").read_text()
    assert text.startswith("napari-sparseseg ")
    assert "SlideOpenError" in text
    assert "notes.svs" in text


def test_a_stroke_snaps_to_its_tissue_and_one_undo_takes_both_back(viewer, panel, mouse):
    """The test slide has two textures side by side; the stroke grows in its own and stays out of the other."""
    session, layer = panel.session, panel.slides.binding.scribbles.layer
    over_slide(mouse)
    mouse.key("S")
    assert panel.classes.tool.currentText() == "Snap brush"
    draw(viewer, mouse, 500)
    wait_until(lambda: session.annotations.version == 1, 20)
    stroke = session.annotations.strokes[0]
    assert stroke.kind == "fill"
    grown = session.annotations.counts()[stroke.class_id]
    mouse.key("Z", ctrl=True)
    assert not any(session.annotations.counts().values())
    mouse.key("S")
    assert layer.tool is None
    draw(viewer, mouse, 500)
    assert session.annotations.strokes[0].kind == "brush"
    assert grown > 1.1 * session.annotations.counts()[stroke.class_id]


def test_a_stroke_that_waits_for_its_region_is_not_lost(viewer, panel, mouse):
    annotations = panel.session.annotations
    over_slide(mouse)
    mouse.key("S")
    draw(viewer, mouse, 400)
    draw(viewer, mouse, 600)
    panel.shut_down()
    assert len(annotations.strokes) == 2


def test_a_layer_saved_for_asap_is_in_the_frame_of_the_whole_canvas(viewer, tmp_path):
    """ASAP does not crop an MRXS to its scanned area, as QuPath and we do."""
    mrxs(tmp_path / "a.mrxs", [(r, c) for r in (2, 3) for c in (3, 4)])
    panel = open_from_menu(viewer)
    open_slide(panel, tmp_path / "a.mrxs")
    panel.session.annotations.fill_polygon([(10, 20), (10, 60), (50, 60), (50, 20)], 1)
    viewer.layers.selection.active = panel.slides.binding.scribbles.layer
    viewer.layers.save(str(tmp_path / "a.xml"), selected=True)
    corners = re.findall(r'X="([\d.]+)" Y="([\d.]+)"', (tmp_path / "a.xml").read_text())
    x, y = np.array(corners, float).T
    assert (x.min(), x.max(), y.min(), y.max()) == (3 * 64 + 20, 3 * 64 + 60, 2 * 64 + 10, 2 * 64 + 50)
    panel.shut_down()


def test_another_image_of_the_file_is_chosen_in_the_panel(viewer, tmp_path):
    path = tmp_path / "two.scn"
    scn(path, ((64, 64, 256, 320), (384, 512, 128, 192)))
    panel = open_from_menu(viewer)
    open_slide(panel, path)
    box = panel.slide.images
    assert box.isVisible()
    assert box.count() == 2
    assert panel.session.slide.shape == (256, 320)
    other = next(i for i in range(2) if i != panel.session.slide.image)
    box.setFocus()
    QTest.keyClick(box, Qt.Key.Key_Down if other == 1 else Qt.Key.Key_Up)
    wait_until(lambda: panel.slide.slides.count() == 2, 30)
    assert panel.session.slide.shape == (128, 192)
    assert box.currentIndex() == panel.session.slide.image == other
    assert len({panel.slide.slides.itemText(i) for i in range(2)}) == 2
    panel.shut_down()
