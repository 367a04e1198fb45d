"""From a model to files, by buttons, menus and dialogs; and napari's own ways in: forms and the activity dock."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import tifffile
import zarr
from napari.layers import Shapes
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QPushButton, QWidget

from tests.helpers.answers import answer, answer_file, choose_entry
from tests.helpers.data import two_textures, write_slide
from tests.helpers.hub_server import Hub, at_hub
from tests.helpers.mouse import camera, look_at, pump
from tests.helpers.panel import click, click_cell, give_model, open_slide, palette_entry, quiet
from tests.helpers.smooth_model import CLASSES
from tests.helpers.waiting import wait_until


def test_predict_cancel_complete_export_and_next(viewer, panel, tiny_slide, tmp_path):
    open_slide(panel, tiny_slide)
    model = give_model(panel, delay=0.4)
    asked = answer_file(tmp_path / "whole")
    click(panel.predict.predict_slide)
    assert asked == ["Predict the whole slide into"]
    wait_until(lambda: panel.predict.predict_slide.text() == "Cancel prediction", 20)
    window = panel.window()

    def cancels() -> list[QPushButton]:
        buttons = window.findChildren(QPushButton)
        return [b for b in buttons if b.text() == "Cancel" and not b.isHidden()]

    wait_until(lambda: bool(cancels()), 10)
    click(window.findChild(QWidget, "QtActivityButton"))
    click(cancels()[0])
    quiet(panel)
    assert not (tmp_path / "whole.ome.zarr").exists()
    assert (tmp_path / "whole.ome.zarr.partial").is_dir()
    assert panel.predict.predict_slide.text() == "Predict slide…"
    assert not panel.header.error.isVisible(), "a cancel is no error"

    model.delay = 0.0
    answer_file(tmp_path / "whole")
    click(panel.predict.predict_slide)
    quiet(panel)
    assert panel.predict.result.text() == f"Saved {tmp_path / 'whole.ome.zarr'}"
    written = np.asarray(zarr.open_group(tmp_path / "whole.ome.zarr", mode="r")["labels/classes/0"])
    expected, _ = panel.session.predict((0, 0, 1024, 1024))
    np.testing.assert_array_equal(written, expected)

    answer_file(tmp_path / "regions.geojson")
    choose_entry(panel.predict.export, "Regions for QuPath (GeoJSON)…")
    quiet(panel)
    assert panel.predict.result.text() == f"Saved {tmp_path / 'regions.geojson'}"
    features = json.loads((tmp_path / "regions.geojson").read_text())["features"]
    found = {f["properties"]["classification"]["name"] for f in features}
    assert "stroma" in found
    assert found <= {c.name for c in CLASSES if (expected == c.id).any()}, "specks are left out"

    answer_file(tmp_path / "areas.csv")
    choose_entry(panel.predict.export, "Areas of the slide (CSV)…")
    quiet(panel)
    rows = list(csv.DictReader((tmp_path / "areas.csv").read_text().splitlines()))
    assert len(rows) >= len(found)

    look_at(viewer, 500, 500, 0.6)
    before = np.array(camera(viewer).center)
    click(panel.predict.next)
    quiet(panel)
    assert panel.predict.doubt.text().startswith("The model is uncertain between")
    assert np.abs(np.array(camera(viewer).center) - before).max() > 1

    open_slide(panel, write_slide(tmp_path / "other.tif", two_textures(512, 3)))
    (tmp_path / "all").mkdir()
    answer_file(tmp_path / "all")
    choose_entry(panel.header.menu_button, "Predict all slides…")
    wait_until((tmp_path / "all" / "summary.csv").exists, 60)
    quiet(panel)
    assert not panel.header.error.isVisible()
    rows = list(csv.DictReader((tmp_path / "all" / "summary.csv").read_text().splitlines()))
    assert {Path(r["slide"]).stem for r in rows} == {tiny_slide.stem, "other"}

    table = tmp_path / "all" / "summary.csv"
    table.write_text("somebody's notes")
    for button, kept in (("Cancel", True), ("Continue", False)):
        asked = answer(button)
        answer_file(tmp_path / "all")
        choose_entry(panel.header.menu_button, "Predict all slides…")
        wait_until(lambda asked=asked: bool(asked), 30)
        quiet(panel)
        assert f"{table} exists" in asked[0]
        assert (table.read_text() == "somebody's notes") == kept


def form(viewer, title: str):
    """A docked form of magicgui."""
    wait_until(lambda: title in viewer.window.dock_widgets, 10)
    pump(0.3)
    return viewer.window.dock_widgets[title]


def test_forms_take_layers_over_and_predict_with_options(viewer, panel, tiny_slide, tmp_path):
    """Opened from the command palette; two classes drawn by napari's own tools become annotations, and come back."""
    open_slide(panel, tiny_slide)
    a = panel.session.annotations
    corners = [[99.5, 199.5], [99.5, 299.5], [159.5, 299.5], [159.5, 199.5]]
    viewer.add_shapes([np.array(corners)], shape_type="polygon", name="drawn before")
    click_cell(panel, 1, 3)
    palette_entry(viewer, "Annotations from a Shapes")
    shown = form(viewer, "Annotations from a layer")
    assert [str(la) for la in shown.layer.choices] == ["drawn before"], "the panel's own layers are no choice"
    click(shown.call_button.native)
    quiet(panel)
    assert a.counts() == {1: 0, 2: 60 * 100}
    np.testing.assert_array_equal(a.read((100, 200, 60, 100)), 2)

    palette_entry(viewer, "Annotations as a Shapes layer")
    wait_until(lambda: "annotations" in viewer.layers, 10)
    layer = viewer.layers["annotations"]
    assert isinstance(layer, Shapes)
    assert list(layer.features["class"]) == ["background"]
    np.testing.assert_array_equal(np.unique(layer.data[0], axis=0), np.unique(corners, axis=0))

    palette_entry(viewer, "Predict the whole slide with options")
    shown = form(viewer, "Predict the whole slide")
    click(shown.call_button.native)
    assert panel.header.error.text.text().startswith("There is no model")
    give_model(panel)
    edit = shown.out.line_edit.native
    edit.setFocus()
    edit.selectAll()
    QTest.keyClicks(edit, str(tmp_path / "coarse.ome.tif"))
    QTest.keyClick(edit, Qt.Key.Key_Tab)
    shown.mpp.native.setFocus()
    shown.mpp.native.selectAll()
    QTest.keyClicks(shown.mpp.native, "4")
    QTest.keyClick(shown.mpp.native, Qt.Key.Key_Tab)
    QTest.mouseClick(shown.areas.native, Qt.MouseButton.LeftButton, pos=shown.areas.native.rect().center())
    if not shown.areas.value:
        QTest.keyClick(shown.areas.native, Qt.Key.Key_Space)
    click(shown.call_button.native)
    quiet(panel)
    assert tifffile.imread(tmp_path / "coarse.ome.tif").squeeze().shape == (256, 256)
    assert (tmp_path / "coarse.csv").read_text().count("\n") >= 2
    before = (tmp_path / "coarse.ome.tif").read_bytes()
    shown.mpp.native.setFocus()
    shown.mpp.native.selectAll()
    QTest.keyClicks(shown.mpp.native, "2")
    QTest.keyClick(shown.mpp.native, Qt.Key.Key_Tab)
    click(shown.call_button.native)
    quiet(panel)
    assert "exists; choose another name" in panel.header.error.text.text()
    assert (tmp_path / "coarse.ome.tif").read_bytes() == before
    assert not (tmp_path / "coarse.geojson").exists()


def test_a_network_is_downloaded_only_after_licence_and_size_were_shown(
    viewer, panel, tiny_slide, tmp_path, monkeypatch
):
    card = {"license": "<b>Tissue</b>\x1b[2J"}
    seen = []

    def look(box):
        seen.append(box.defaultButton().text().replace("&", ""))

    open_slide(panel, tiny_slide)
    for class_id, x in ((1, 250), (2, 780)):
        panel.session.annotations.paint([(200, x), (800, x)], 20, class_id)
    click(panel.train.more.heading)
    edit = panel.train.settings.encoder.lineEdit()
    edit.setFocus()
    edit.selectAll()
    QTest.keyClicks(edit, "resnet18")
    asked = answer("Cancel", look)
    with at_hub(Hub("timm/resnet18.a1_in1k", {}, card=card), tmp_path, monkeypatch) as hub:
        click(panel.train.train)
        wait_until(lambda: bool(asked))
        pump(0.2)
    (question,) = asked
    assert seen == ["Cancel"]
    assert f"Licence: apache-2.0, see {hub.address}/timm/resnet18.a1_in1k" in question
    assert not any(path.endswith(".safetensors") for _, path in hub.asked)
    assert "resnet18: 47 MB" in question  # 11.69 million parameters of four bytes
    assert "timm/resnet18" in question
    assert panel.session.status.state == "idle"
    assert panel.train.train.text() == "Train"
