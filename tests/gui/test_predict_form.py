"""The form of a whole-slide prediction: where to predict, and what a clean-up does, previewed on the live view."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import zarr
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from skimage.measure import label

from napari_sparseseg import CleanUp
from napari_sparseseg.prediction.results.preview import clean_image
from tests.helpers.mouse import look_at, pump
from tests.helpers.panel import click, give_model, open_slide, palette_entry, quiet
from tests.helpers.smooth_model import CLASSES, COLOURS
from tests.helpers.waiting import wait_until

SIDE = 512
TITLE = "Predict the whole slide"


@pytest.fixture
def slide(panel, tmp_path):
    """0.5 µm per pixel: stroma with one large nucleus small ones, and two that touch, and a model that sees them."""
    yy, xx = np.mgrid[:SIDE, :SIDE]
    labels = np.ones((SIDE, SIDE), int)
    labels[(yy - 250) ** 2 + (xx - 250) ** 2 <= 60**2] = 2
    for y, x, r in ((60, 60, 12), (60, 400, 12), (440, 440, 12), (450, 60, 30), (450, 113, 30)):
        labels[(yy - y) ** 2 + (xx - x) ** 2 <= r**2] = 2
    path = tmp_path / "case.tif"
    tifffile.imwrite(path, np.array(COLOURS, np.uint8)[labels], tile=(256, 256), photometric="rgb",
                     resolution=(20000, 20000), resolutionunit=3)  # fmt: skip
    open_slide(panel, path)
    give_model(panel)
    return path


@pytest.fixture
def form(viewer, panel, slide):
    palette_entry(viewer, "Predict the whole slide with options")
    wait_until(lambda: TITLE in viewer.window.dock_widgets, 10)
    pump(0.3)
    return viewer.window.dock_widgets[TITLE]


def type_into(field, text: str) -> None:
    edit = getattr(field, "line_edit", field).native
    edit.setFocus()
    edit.selectAll()
    QTest.keyClicks(edit, text)
    QTest.keyClick(edit, Qt.Key.Key_Tab)
    pump(0.05)


def tick(box) -> None:
    box.native.setFocus()
    QTest.keyClick(box.native, Qt.Key.Key_Space)
    pump(0.05)


def choose(box, text: str) -> None:
    box.native.setFocus()
    for _ in range(len(box.choices)):
        if box.value == text:
            return
        QTest.keyClick(box.native, Qt.Key.Key_Down)
    assert box.value == text


def test_the_preview_shows_what_the_run_then_makes(viewer, panel, form, tmp_path):
    look_at(viewer, SIDE / 2, SIDE / 2, 0.45)
    wait_until(lambda: panel.session.live is not None and panel.session.live.pending == 0, 30)
    pump(0.5)

    def shown():
        return np.array(viewer.layers["prediction"].data[0][:SIDE, :SIDE])

    raw = shown()
    assert (raw[50:70, 50:70] == 3).any()
    tick(form.preview)
    pump(0.5)
    np.testing.assert_array_equal(shown(), raw, "nothing is to be cleaned up yet")
    type_into(form.smallest_um2, "500")
    wait_until(lambda: not (shown()[40:80, 40:80] == 3).any(), 20)  # the small ones are gone
    assert (shown()[220:280, 220:280] == 3).all()
    assert viewer.layers["prediction"].label_at_world((60.0, 60.0)) == 2

    type_into(form.out, str(tmp_path / "case.ome.zarr"))
    click(form.call_button.native)
    quiet(panel)
    made = np.asarray(zarr.open_group(tmp_path / "case.ome.zarr", mode="r")["labels/cleaned/0"])
    np.testing.assert_array_equal(shown(), made)
    np.testing.assert_array_equal(
        np.asarray(zarr.open_group(tmp_path / "case.ome.zarr", mode="r")["labels/classes/0"]), raw
    )

    tick(form.preview)
    np.testing.assert_array_equal(shown(), raw)
    assert viewer.layers["prediction"].label_at_world((60.0, 60.0)) == 3
    tick(form.preview)
    wait_until(lambda: not (shown()[40:80, 40:80] == 3).any(), 20)
    form.native.parent().destroyOnClose()
    pump(0.2)
    np.testing.assert_array_equal(shown(), raw)


def test_touching_objects_of_a_chosen_class_are_cut(viewer, panel, form, tmp_path):
    """The class is chosen with the mouse; what is shown is what is made."""
    look_at(viewer, SIDE / 2, SIDE / 2, 0.45)
    wait_until(lambda: panel.session.live is not None and panel.session.live.pending == 0, 30)
    pump(0.5)
    assert list(form.separate.choices) == [c.name for c in panel.session.classes]
    listed = form.separate.native
    place = listed.visualItemRect(listed.findItems("nuclei", Qt.MatchFlag.MatchExactly)[0]).center()
    listed.scrollToItem(listed.findItems("nuclei", Qt.MatchFlag.MatchExactly)[0])
    place = listed.visualItemRect(listed.findItems("nuclei", Qt.MatchFlag.MatchExactly)[0]).center()
    QTest.mouseClick(listed.viewport(), Qt.MouseButton.LeftButton, pos=place)
    assert form.separate.value == ["nuclei"]

    def parts():
        return label(viewer.layers["prediction"].data[0][:SIDE, :SIDE] == 3, connectivity=1).max()

    assert parts() == 5
    tick(form.preview)
    wait_until(lambda: parts() == 6, 20)
    type_into(form.out, str(tmp_path / "cut.ome.zarr"))
    click(form.call_button.native)
    quiet(panel)
    made = np.asarray(zarr.open_group(tmp_path / "cut.ome.zarr", mode="r")["labels/cleaned/0"])
    assert label(made == 3, connectivity=1).max() == 6


def test_regions_and_unsure_pixels(viewer, panel, form, tmp_path):
    type_into(form.out, str(tmp_path / "part.ome.zarr"))
    choose(form.where, "the selected shapes")
    click(form.call_button.native)
    assert "no shape is selected" in panel.header.error.text.text().lower()

    corners = np.array([[99.5, 149.5], [99.5, 349.5], [399.5, 349.5], [399.5, 149.5]])
    layer = viewer.add_shapes([corners], shape_type="polygon", name="where")
    layer.selected_data = {0}
    assert form.where.value == "the selected shapes"
    type_into(form.unsure_below, "60")
    tick(form.areas)
    click(form.call_button.native)
    quiet(panel)
    root = zarr.open_group(tmp_path / "part.ome.zarr", mode="r")
    inside = np.zeros((SIDE, SIDE), bool)
    inside[100:400, 150:350] = True
    np.testing.assert_array_equal(np.asarray(root["labels/classes/0"]) > 0, inside)
    best = np.asarray(root["probabilities/0"]).max(axis=0)
    cleaned = np.asarray(root["labels/cleaned/0"])
    np.testing.assert_array_equal(cleaned == 4, inside & (best < 0.6 * 255))
    rows = list(csv.DictReader((tmp_path / "part.csv").read_text().splitlines()))
    assert {row["region"] for row in rows} == {"slide", "shape 1"}
    assert "unsure" in {row["class"] for row in rows}


def test_an_area_drawn_of_a_class_is_a_region(panel, form, tmp_path):
    panel.session.annotations.fill_polygon([(50, 60), (50, 160), (150, 160), (150, 60)], 2)
    choose(form.where, "areas of stroma")
    type_into(form.out, str(tmp_path / "part.ome.tif"))
    click(form.call_button.native)
    quiet(panel)
    predicted = tifffile.imread(tmp_path / "part.ome.tif").squeeze() > 0
    assert predicted.sum() == 100 * 100
    assert predicted[50:150, 60:160].all()


def test_an_image_in_memory_by_hand():
    labels = np.full((20, 20), 1, np.uint8)
    labels[2:4, 2:4], labels[8:16, 8:16], labels[11, 11] = 2, 2, 1
    best = np.full(labels.shape, 255, np.uint8)
    best[0, 19] = 100
    spacing = (0.5, 0.5)  # a pixel is 0.25 µm²
    filled = clean_image(labels, CleanUp(holes_um2=0.25), CLASSES, spacing)
    assert filled[11, 11] == 2
    assert filled[2, 2] == 2
    merged = clean_image(labels, CleanUp(smallest_um2=1.01), CLASSES, spacing)
    assert merged[2, 2] == 1
    assert merged[9, 9] == 2
    unsure = clean_image(labels, CleanUp(unsure_below=0.5), CLASSES, spacing, best)
    assert np.argwhere(unsure == 4).tolist() == [[0, 19]]
    smooth = clean_image(labels, CleanUp(smooth_um=1.5), CLASSES, spacing)
    assert smooth[2, 2] == 1
    assert smooth[12, 12] == 2


def run_form(panel, form, tmp_path) -> None:
    type_into(form.out, str(tmp_path / "r.ome.zarr"))
    click(form.call_button.native)
    quiet(panel)


def test_the_window_says_that_a_slide_is_stained_unlike_the_training_slides(panel, form, tmp_path):
    """The model was made on tissue of another density in every channel, which varied by a tenth."""
    rng = np.random.default_rng(0)
    patches = rng.normal((-2.0, -0.1, -2.0, -2.0, -2.0, -2.0), 0.1, (20, 6))
    model = panel.session.model
    model.metadata = replace(model.metadata, tissue=tuple(map(tuple, patches.tolist())))
    run_form(panel, form, tmp_path)
    assert "stain or scanner differ" in panel.predict.result.text()
    assert zarr.open_group(tmp_path / "r.ome.zarr", mode="r").attrs["napari_sparseseg"]["stain"]["unlike"] > 1


def test_a_stain_that_cannot_be_adapted_is_refused(panel, form, tmp_path):
    tick(form.adapt_stain)
    assert form.adapt_stain.value
    run_form(panel, form, tmp_path)
    assert "cannot be adapted" in panel.header.error.text.text()
    assert not (tmp_path / "r.ome.zarr").exists()
