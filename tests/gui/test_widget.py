"""The panel as a user meets it: opened from napari, clicked, typed into, drawn beside."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtGui import QGuiApplication, QWheelEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QGraphicsView, QLabel, QScrollArea, QWidget

from napari_sparseseg import Session
from napari_sparseseg.config import Balancing, make_classes
from napari_sparseseg.gui.sections.classes.table import COLOUR, KEY, NAME, SHARE, STROKES, VISIBLE
from napari_sparseseg.gui.sections.train.view import BALANCING, MEASURED
from tests.helpers.answers import answer_file, choose_entry
from tests.helpers.mouse import Mouse, camera, line, look_at, pump
from tests.helpers.panel import (
    LEFT,
    click,
    click_cell,
    draw,
    names,
    open_slide,
    rename,
    scribble,
    text,
    type_name,
)
from tests.helpers.waiting import wait_until
from tests.helpers.windows import opened_viewer


def test_it_opens_from_the_menu_and_says_what_to_do(panel):
    assert isinstance(panel.session, Session)
    assert [s.heading.text() for s in panel.sections] == ["Slide", "Classes", "Train", "Predict", "Progress"]
    assert panel.header.state.text() == "No slide open"
    assert panel.header.next_step.text().startswith("1 of 3")
    assert names(panel) == ["tissue", "background"]
    assert not panel.train.stop.isEnabled()
    assert not panel.predict.predict_slide.isEnabled()


def test_training_without_a_slide_is_refused_in_one_sentence(panel):
    click(panel.train.train)
    assert panel.header.error.isVisible()
    assert "open a slide" in panel.header.error.text.text()
    assert "Traceback" not in panel.header.error.text.text()
    click(panel.header.error.more)
    assert panel.header.error.details.isVisible()
    click(panel.header.error.copy)
    assert "open a slide" in QGuiApplication.clipboard().text()
    click(panel.header.error.dismiss)
    assert not panel.header.error.isVisible()


def test_every_control_says_why(panel):
    kinds = ("QPushButton", "QComboBox", "QCheckBox", "QDoubleSpinBox", "QSpinBox", "QSlider")
    for widget in panel.findChildren(QWidget):
        if widget.metaObject().className() in kinds:
            tip = widget.toolTip()
            assert tip, (widget, getattr(widget, "text", lambda: "")())
            assert all(len(row) <= 64 for row in tip.splitlines()), "Qt breaks no line of it"


def test_nothing_is_cut_off_at_320_px(viewer, panel, tiny_slide):
    """Every control of every section lies left of the scroll bar, with all sections open."""
    open_slide(panel, tiny_slide)
    click(panel.train.more.heading)
    dock = panel.parent()
    # a column of its own, as one drags it, in a window of this size
    panel.window().addDockWidget(Qt.DockWidgetArea.RightDockWidgetArea, dock)
    panel.window().resizeDocks([dock], [320], Qt.Orientation.Horizontal)
    pump(0.3)
    assert panel.width() <= 325
    shown = [w for s in panel.sections for w in s.findChildren(QWidget) if w.isVisible() and not w.isWindow()]
    assert len(shown) > 50
    viewport = panel.findChild(QScrollArea).viewport()
    right_edge = viewport.mapTo(panel, viewport.rect().topRight()).x()
    assert right_edge < panel.width() - 5, "there is a scroll bar"
    for widget in shown:
        if widget.parent().metaObject().className() in ("QScrollArea", "QTableWidget", "ClassTableView"):
            continue
        right = widget.mapTo(panel, widget.rect().topRight()).x()
        assert right <= right_edge <= panel.width(), (widget, getattr(widget, "text", lambda: "")(), right)
    for section in panel.sections:
        assert section.minimumSizeHint().width() <= section.width()
    table = panel.classes.table
    widest = max(table.fontMetrics().horizontalAdvance(name) for name in names(panel))
    assert widest + 6 <= table.columnWidth(NAME)


def test_the_wheel_scrolls_the_panel_and_changes_no_value(panel):
    curves = panel.train.curves
    curves.add_loss(30.0, 0.5)
    curves.add_loss(2.0, 0.9)
    assert curves.points == 1, "a clock that went back is a new run"
    plot = curves.findChild(QGraphicsView).viewport()
    for control, value in (
        (plot, lambda: curves.points),
        (panel.train.balancing, panel.train.balancing.currentIndex),
        (panel.predict.what, panel.predict.what.currentIndex),
        (panel.predict.opacity, panel.predict.opacity.value),
    ):
        before, at = value(), QPointF(control.rect().center())
        event = QWheelEvent(
            at, control.mapToGlobal(at), QPoint(), QPoint(0, -120), Qt.MouseButton.NoButton,
            Qt.KeyboardModifier.NoModifier, Qt.ScrollPhase.NoScrollPhase, False,
        )  # fmt: skip
        QApplication.sendEvent(control, event)
        assert value() == before
        assert not event.isAccepted(), "Qt offers it to the scroll area then"


def test_the_panel_stays_where_it_is_when_a_pressed_button_is_disabled(panel):
    """Its focus goes to the next control, which may be far below."""
    scroll = panel.findChild(QScrollArea)
    last = panel.predict.export
    below = last.mapTo(scroll.widget(), last.rect().bottomLeft()).y() - scroll.viewport().height()
    assert below > 0, "out of sight"
    panel.classes.protect.setFocus()
    for control in scroll.widget().findChildren(QWidget):
        if control.focusPolicy() & Qt.FocusPolicy.TabFocus and control not in (panel.classes.protect, last):
            control.setEnabled(False)
    scroll.verticalScrollBar().setValue(0)
    panel.classes.protect.setEnabled(False)
    assert panel.window().focusWidget() is last
    assert scroll.verticalScrollBar().value() == 0


def test_sections_fold(panel):
    for section in panel.sections:
        click(section.heading)
        assert not section.body.isVisible()
        QTest.keyClick(section.heading, Qt.Key.Key_Space)
        pump()
        assert section.body.isVisible()


def test_a_slide_that_is_none_says_so(panel, tmp_path):
    path = tmp_path / "notes.svs"
    path.write_text("not a slide")
    panel.slides.open(path)
    wait_until(panel.header.error.isVisible, 10)
    assert "notes.svs" in panel.header.error.text.text()
    assert panel.session.entry is None


def test_world_coordinates_are_level_0_pixels(viewer, panel, cmu_svs):
    open_slide(panel, cmu_svs)
    image, dense, scribbles = viewer.layers
    assert (image.metadata["slide"].shape, panel.session.slide.shape) == ((2967, 2220), (2967, 2220))
    np.testing.assert_array_equal(image.extent.world[1] - image.extent.world[0], (2966, 2219))
    np.testing.assert_array_equal(scribbles.scale, (1, 1))
    assert scribbles.annotations is panel.session.annotations
    assert dense.annotations is panel.session.annotations
    assert "0.499" in panel.slide.facts.text()
    assert viewer.layers.selection.active is scribbles
    assert str(scribbles.mode) == "paint"


def test_a_slide_dropped_on_the_viewer_is_adopted(viewer, panel, tiny_slide):
    viewer.open(tiny_slide, plugin="napari-sparseseg")
    wait_until(lambda: panel.slides.binding is not None, 10)
    assert panel.session.slide is viewer.layers[0].metadata["slide"]
    assert len(panel.session.slides) == 1
    assert len([la for la in viewer.layers if la.name == "tiny.tif"]) == 1


def test_a_slide_that_napari_opens_again_is_only_shown(viewer, panel, tiny_slide, cmu_svs):
    """Two sets of strokes on one slide would replace each other on disk."""
    for path in (tiny_slide, cmu_svs, tiny_slide):
        viewer.open(path, plugin="napari-sparseseg")
        wait_until(lambda path=path: panel.session.slide.path == str(path) and not panel.busy, 10)
        pump(0.1)
    assert [Path(s.path).name for s in panel.session.slides] == [tiny_slide.name, cmu_svs.name]
    assert panel.slides.binding.entry is panel.session.entries[0]
    assert len([la for la in viewer.layers if la.name.startswith("tiny.tif")]) == 1


def test_a_panel_that_cannot_be_made_says_so_and_leaves_nothing_behind(viewer, open_panel, monkeypatch):
    from napari_sparseseg.gui import panel as parts

    def fail(*_):
        raise RuntimeError("no room for guidance")

    with monkeypatch.context() as patch:
        patch.setattr(parts, "GuidanceActions", fail)
        _, broken = viewer.window.add_plugin_dock_widget("napari-sparseseg")
        with pytest.raises(RuntimeError, match="no room for guidance"):
            _ = broken.session
        assert any("could not be made: no room for guidance" in la.text() for la in broken.findChildren(QLabel))
        assert not broken.complete
        broken.shut_down()
        viewer.window.remove_dock_widget(broken)
    assert open_panel().session.entries == ()


def test_a_slide_opened_before_the_panel_is_adopted(viewer, open_panel, tiny_slide):
    viewer.open(tiny_slide, plugin="napari-sparseseg")
    panel = open_panel()
    pump(0.2)
    assert panel.session.slide.shape == (1024, 1024)


def test_an_image_of_another_reader_can_be_chosen(viewer, panel, mouse):
    image = np.full((600, 800, 3), 200, np.uint8)
    viewer.add_image(image, name="photo")
    pump(0.1)
    assert panel.slide.layers.isVisible()
    click(panel.slide.use_layer)
    wait_until(lambda: panel.slides.binding is not None, 10)
    assert panel.session.slide.shape == (600, 800)
    assert not panel.slide.layers.isVisible()
    mouse.drag(line(mouse.canvas(300, 200), mouse.canvas(300, 600), 10))
    pump(0.1)
    assert panel.session.annotations.counts()[1] > 0


def test_strokes_are_counted_and_the_guide_moves_on(viewer, panel, mouse, tiny_slide):
    open_slide(panel, tiny_slide)
    assert panel.header.next_step.text().startswith("2 of 3: choose a class")
    draw(viewer, mouse, 300)
    wait_until(lambda: text(panel, 0, STROKES) == "1", 10)
    assert "only tissue" in panel.header.next_step.text()
    click(panel.train.train)
    assert "at least two classes" in panel.header.error.text.text()
    click_cell(panel, 1, NAME)
    draw(viewer, mouse, 700)
    wait_until(lambda: text(panel, 1, STROKES) == "1", 10)
    assert panel.header.next_step.text().startswith("3 of 3")
    counts = panel.session.annotations.counts()
    share = counts[1] / sum(counts.values())
    assert text(panel, 0, SHARE) == f"{share:.0%}".replace("%", " %")
    assert panel.train.bars.isVisible()


def test_keys_and_table_choose_the_same_class(viewer, panel, mouse, tiny_slide):
    open_slide(panel, tiny_slide)
    layer = panel.slides.binding.scribbles.layer
    mouse.hover((mouse.size[0] / 2, mouse.size[1] / 2))
    mouse.key("2")
    assert (layer.selected_label, panel.classes.table.selected) == (2, 2)
    click_cell(panel, 0, NAME)
    assert layer.selected_label == 1
    assert [text(panel, r, KEY) for r in range(2)] == ["1", "2"]


def test_classes_are_added_renamed_moved_and_taken_back(panel):
    click(panel.classes.add)
    type_name(panel, "necrosis")
    assert names(panel) == ["tissue", "background", "necrosis"]
    rename(panel, 0, "tumour")
    assert names(panel) == ["tumour", "background", "necrosis"]
    click_cell(panel, 2, NAME)
    click(panel.classes.up)
    assert names(panel) == ["tumour", "necrosis", "background"]
    assert [c.id for c in panel.session.classes] == [1, 3, 2]
    for expected in (
        ["tumour", "background", "necrosis"],
        ["tissue", "background", "necrosis"],
        ["tissue", "background", "class 3"],
        ["tissue", "background"],
    ):
        click(panel.classes.undo)
        assert names(panel) == expected
    assert not panel.classes.undo.isEnabled()


def test_a_name_used_twice_is_refused_and_shown_as_before(panel):
    rename(panel, 1, "tissue")
    assert "used twice" in panel.header.error.text.text()
    assert names(panel) == ["tissue", "background"]
    assert text(panel, 1, NAME) == "background"


def test_a_removed_class_comes_back_with_its_strokes(viewer, panel, mouse, tiny_slide):
    open_slide(panel, tiny_slide)
    click_cell(panel, 1, NAME)
    draw(viewer, mouse, 500)
    before = panel.session.annotations.counts()
    assert before[2] > 0
    click(panel.classes.remove)
    assert names(panel) == ["tissue"]
    assert panel.session.annotations.counts() == {1: 0}
    layer = panel.slides.binding.scribbles.layer
    assert layer.selected_label == 1, "nothing can be drawn in a class that is gone"
    draw(viewer, mouse, 700)
    assert [s.class_id for s in panel.session.annotations.strokes] == [1]
    click(panel.classes.undo)
    click(panel.classes.undo)
    assert names(panel) == ["tissue", "background"]
    assert panel.session.annotations.counts() == before
    assert len(panel.session.annotations.strokes) == 1


def test_an_unticked_class_is_hidden_not_removed(viewer, panel, mouse, tiny_slide):
    open_slide(panel, tiny_slide)
    draw(viewer, mouse, 500)
    layer = panel.slides.binding.scribbles.layer
    panel.classes.table.setFocus()
    click_cell(panel, 0, COLOUR)
    QTest.keyClick(panel.classes.table, Qt.Key.Key_Space)
    pump(0.1)
    assert panel.classes.table.item(0, VISIBLE).checkState() == Qt.CheckState.Unchecked
    assert layer.colormap.map(np.array([1, 2], np.uint8))[:, 3].tolist() == [0, 1]
    assert panel.session.annotations.counts()[1] > 0


def test_a_preset_replaces_the_table_and_classes_of_qupath_join_it(panel, tmp_path):
    choose_entry(panel.classes.presets, "Colorectal tissue")
    wait_until(lambda: len(panel.session.classes) == 9, 5)
    assert names(panel)[0] == "tumour epithelium"
    assert len({c.colour for c in panel.session.classes}) == 9
    assert panel.classes.table.verticalScrollBar().isVisible() is False
    file = tmp_path / "classes.json"
    # alpha, red, green and blue in a signed 32-bit integer, as QuPath writes them
    theirs = [{"name": "Necrosis", "color": -13487566}, {"name": "Stroma", "color": -6895466}]
    file.write_text(json.dumps({"pathClasses": theirs}))
    asked = answer_file(file)
    choose_entry(panel.classes.presets, "Add the classes of QuPath…")
    wait_until(lambda: len(panel.session.classes) == 10, 20)
    assert asked == ["Classes of QuPath"]
    assert text(panel, 9, NAME) == "Necrosis"
    by_name = {c.name: c.colour for c in panel.session.classes}
    assert (by_name["stroma"], by_name["Necrosis"]) == ("#96c896", "#323232")
    click(panel.classes.undo)
    assert len(names(panel)) == 9


def test_protected_labels_are_not_painted_over(viewer, panel, mouse, tiny_slide):
    open_slide(panel, tiny_slide)
    draw(viewer, mouse, 500)
    first = panel.session.annotations.counts()[1]
    QTest.mouseClick(panel.classes.protect, LEFT, pos=panel.classes.protect.rect().center())
    if not panel.classes.protect.isChecked():
        QTest.keyClick(panel.classes.protect, Qt.Key.Key_Space)
    click_cell(panel, 1, NAME)
    mouse.drag(line(mouse.canvas(300, 500), mouse.canvas(700, 500), 12))
    pump(0.1)
    counts = panel.session.annotations.counts()
    assert counts[1] == first
    assert counts[2] > 0


def test_scribbles_of_an_unsaved_session_are_offered_after_a_restart(qapp, tiny_slide):
    with opened_viewer() as viewer:
        panel = viewer.window.add_plugin_dock_widget("napari-sparseseg")[1]
        open_slide(panel, tiny_slide)
        draw(viewer, Mouse(viewer), 500)
        counts = panel.session.annotations.counts()
        panel.shut_down()
    with opened_viewer() as viewer:
        panel = viewer.window.add_plugin_dock_widget("napari-sparseseg")[1]
        open_slide(panel, tiny_slide)
        wait_until(panel.header.recovery.isVisible, 10)
        assert sum(panel.session.annotations.counts().values()) == 0, "never loaded silently"
        click(panel.header.recovery.restore)
        wait_until(lambda: panel.session.annotations.counts() == counts, 10)
        wait_until(lambda: panel.slides.binding.scribbles.annotations is panel.session.annotations, 10)
        panel.shut_down()


def test_saved_as_a_project_and_opened_again(viewer, panel, tiny_slide, tmp_path):
    open_slide(panel, tiny_slide)
    scribble(panel)
    assert panel.header.saved.text() == "✓ auto-saved"
    counts = panel.session.annotations.counts()
    asked = answer_file(tmp_path / "study")
    choose_entry(panel.header.menu_button, "Save project…")
    assert asked == ["Save project"]
    wait_until(lambda: panel.header.saved.text() == "✓ study", 10)
    first = panel.session
    answer_file(tmp_path / "study.sparseseg")
    choose_entry(panel.header.menu_button, "Open project…")
    wait_until(lambda: panel.session is not first and panel.slides.binding is not None, 20)
    assert panel.session.annotations.counts() == counts
    assert len(viewer.layers) == 3
    second = panel.session
    wait_until(lambda: "study.sparseseg" in [a.text() for a in panel.slide.recent.menu().actions()], 10)
    choose_entry(panel.slide.recent, "study.sparseseg")
    wait_until(lambda: panel.session is not second and panel.slides.binding is not None, 20)
    assert panel.session.annotations.counts() == counts


def test_two_slides_share_classes_and_show_one_at_a_time(viewer, panel, mouse, tiny_slide, cmu_svs):
    open_slide(panel, tiny_slide)
    draw(viewer, mouse, 500)
    open_slide(panel, cmu_svs)
    wait_until(lambda: len(viewer.layers) == 6, 10)
    assert [la.visible for la in viewer.layers if "CMU" in la.name] == [True] * 3
    assert [la.visible for la in viewer.layers if "tiny" in la.name] == [False] * 3
    np.testing.assert_allclose(camera(viewer).center[1:], (2966 / 2, 2219 / 2))
    fits = min(mouse.size[0] / 2220, mouse.size[1] / 2967)
    assert camera(viewer).zoom == pytest.approx(0.95 * fits, rel=0.01), "the whole of it fits"
    look_at(viewer, 700, 900, 2.0)
    rename(panel, 0, "tumour")
    panel.slide.slides.setFocus()
    QTest.keyClick(panel.slide.slides, Qt.Key.Key_Up)
    pump(0.2)
    assert panel.session.slide.shape == (1024, 1024)
    assert [la.visible for la in viewer.layers if "tiny" in la.name] == [True] * 3
    assert [c.name for c in panel.session.annotations.classes] == ["tumour", "background"]
    QTest.keyClick(panel.slide.slides, Qt.Key.Key_Down)
    pump(0.2)
    assert (*camera(viewer).center[1:], camera(viewer).zoom) == (700, 900, 2.0), "seen as it was left"
    QTest.keyClick(panel.slide.slides, Qt.Key.Key_Up)
    pump(0.2)
    click(panel.slide.close_slide)
    assert len(panel.session.slides) == 1
    wait_until(lambda: len(viewer.layers) == 3, 10)


def test_removing_the_image_closes_the_slide(viewer, panel, tiny_slide):
    open_slide(panel, tiny_slide)
    slide = panel.session.slide
    viewer.layers.remove(viewer.layers["tiny.tif"])
    pump(0.3)
    assert slide.closed
    assert panel.session.entry is None
    assert not viewer.layers


def test_what_was_done_as_a_script_and_as_commands(viewer, panel, mouse, tiny_slide):
    from napari_sparseseg.cli import _parser

    open_slide(panel, tiny_slide)
    draw(viewer, mouse, 500)
    panel.train.balancing.setFocus()
    QTest.keyClick(panel.train.balancing, Qt.Key.Key_Down)
    actions = {a.text(): a for a in panel.header.menu.actions()}
    actions["Copy as Python"].trigger()
    script = QGuiApplication.clipboard().text()
    compile(script, "copied", "exec")
    assert "session.train('mini-batch', seconds=60, wait=True)" in script
    actions["Copy as command"].trigger()
    train, predict = QGuiApplication.clipboard().text().splitlines()
    parsed = _parser().parse_args(shlex.split(train)[1:])
    assert (parsed.balancing, parsed.seconds) == ("mini-batch", 60.0)
    assert [p.name for p in parsed.slides] == ["tiny.tif"]
    assert parsed.annotations[0].exists()
    assert _parser().parse_args(shlex.split(predict)[1:]).output.name == "prediction.ome.zarr"


def test_the_mpp_can_be_said_where_the_file_does_not(viewer, panel):
    viewer.add_image(np.full((600, 800, 3), 200, np.uint8), name="photo")
    pump(0.1)
    click(panel.slide.use_layer)
    wait_until(panel.slide.mpp.isVisible, 10)
    panel.slide.mpp.setFocus()
    panel.slide.mpp.selectAll()
    QTest.keyClicks(panel.slide.mpp, "0.25")
    QTest.keyClick(panel.slide.mpp, Qt.Key.Key_Return)
    pump(0.2)
    assert panel.session.slide.mpp == (0.25, 0.25)
    assert "0.25" in panel.slide.facts.text()


def test_the_theme_is_followed(viewer, panel):
    click(panel.train.train)
    dark = panel.header.error.styleSheet()
    viewer.theme = "light"
    pump(0.1)
    assert panel.header.error.styleSheet() != dark
    viewer.theme = "dark"


def test_the_console_has_the_session(viewer, panel, tiny_slide):
    """What a script does in the console shows in the panel."""
    panel.session.open(tiny_slide)
    wait_until(lambda: panel.slides.binding is not None, 10)
    panel.session.classes = make_classes(["gland", "stroma", "glass"])
    wait_until(lambda: panel.classes.table.rowCount() == 3, 5)
    panel.session.annotations.paint([(100, 100), (100, 500)], 10, 3)
    wait_until(lambda: text(panel, 2, STROKES) == "1", 10)


def test_the_menu_opens_no_second_panel(panel, open_panel):
    assert open_panel() is panel


def test_the_panel_explains_every_balancing():
    assert set(BALANCING) == set(MEASURED) == set(get_args(Balancing))
