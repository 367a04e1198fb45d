"""Objects and areas of a predicted slide: the dock, its table, and what a click in it does to the view."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
import tifffile
from qtpy.QtCore import Qt
from qtpy.QtGui import QGuiApplication
from qtpy.QtTest import QTest
from scipy import ndimage

from napari_sparseseg.config import make_classes
from napari_sparseseg.geometry import Frame, Placement
from napari_sparseseg.gui.results.histogram import histogram
from napari_sparseseg.gui.results.model import Wanted, find_rows
from napari_sparseseg.io.objects import measure_image
from tests.helpers.answers import answer_file, choose_entry
from tests.helpers.data import two_textures, write_slide
from tests.helpers.mouse import camera, pump
from tests.helpers.panel import click, give_model, menu_entry, open_slide, palette_entry, quiet
from tests.helpers.smooth_model import COLOURS
from tests.helpers.waiting import wait_until

SIDE = 600
DISCS = ((100, 120, 20), (300, 420, 40), (480, 150, 60))
"""Centre and radius of the nuclei of `write_discs`, in reading order, from small to large."""


def write_discs(path):
    """A slide of 0.5 µm per pixel: stroma with three nuclei and a speck."""
    yy, xx = np.mgrid[:SIDE, :SIDE]
    labels = np.ones((SIDE, SIDE), int)
    for y, x, radius in (*DISCS, (50, 500, 3)):
        labels[(yy - y) ** 2 + (xx - x) ** 2 <= radius**2] = 2
    pixels = np.array(COLOURS, np.uint8)[labels]
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", resolution=(20000, 20000), resolutionunit=3)
    return path


def predict(panel, out) -> None:
    answer_file(out)
    click(panel.predict.predict_slide)
    wait_until(lambda: panel.predict.result.text() == f"Saved {out}", 60)
    quiet(panel)


def measured(panel):
    """What the dock shows, once it is measured."""
    wait_until(lambda: panel.results.measured is not None, 60)
    quiet(panel)
    return panel.results.measured


def header_click(table, column: int) -> None:
    header = table.horizontalHeader()
    at = header.sectionViewportPosition(column) + header.sectionSize(column) // 2
    QTest.mouseClick(header.viewport(), Qt.MouseButton.LeftButton, pos=header.rect().center().__class__(at, 8))


def row_click(table, row: int, modifiers=Qt.KeyboardModifier.NoModifier) -> None:
    at = table.visualRect(table.model().index(row, 1)).center()
    QTest.mouseClick(table.viewport(), Qt.MouseButton.LeftButton, modifiers, at)
    pump(0.05)


def texts(table, name: str) -> list[str]:
    """A column of the table as it is read, by its heading."""
    model = table.model()
    headings = [model.headerData(k, Qt.Orientation.Horizontal) for k in range(model.columnCount())]
    return [model.index(r, headings.index(name)).data() for r in range(model.rowCount())]


@pytest.fixture
def discs(viewer, panel, tmp_path):
    """The dock of the predicted slide of `write_discs`, opened by the button beside the result."""
    open_slide(panel, write_discs(tmp_path / "discs.tif"))
    give_model(panel)
    predict(panel, tmp_path / "discs.ome.zarr")
    click(panel.predict.show_table)
    measured(panel)
    wait_until(lambda: viewer.layers.selection.active is not None)
    return panel.results.panel


def test_a_table_sorted_filtered_copied_and_saved(panel, discs, tmp_path):
    tab, table = discs.objects, discs.objects.table
    assert table.isVisible()
    assert tab.count.text() == "4 objects", "the speck is too small"
    assert texts(table, "Class").count("nuclei") == 3

    tab.kind.setFocus()
    while tab.kind.currentText() != "nuclei":
        QTest.keyClick(tab.kind, Qt.Key.Key_Down)
    wait_until(lambda: tab.count.text() == "3 of 4 objects", 10)
    found = [float(text.replace(",", "")) for text in texts(table, "Area µm²")]
    for area, (_, _, radius) in zip(found, DISCS, strict=True):
        assert area == pytest.approx(np.pi * (radius * 0.5) ** 2, rel=0.1)

    header_click(table, 2)  # area, from the least
    quiet(panel)
    header_click(table, 2)  # and from the greatest
    wait_until(lambda: texts(table, "Id") != sorted(texts(table, "Id"), key=int), 10)
    assert [float(t.replace(",", "")) for t in texts(table, "Area µm²")] == sorted(found, reverse=True)

    tab.low.setFocus()
    QTest.keyClicks(tab.low, "1,000")
    wait_until(lambda: tab.count.text() == "2 of 4 objects", 10)

    table.setFocus()
    row_click(table, 0)
    row_click(table, 1, Qt.KeyboardModifier.ControlModifier)
    QTest.keyClick(table, Qt.Key.Key_C, Qt.KeyboardModifier.ControlModifier)
    wait_until(lambda: discs.said.text() == "2 objects copied.", 10)
    pasted = list(csv.DictReader(io.StringIO(QGuiApplication.clipboard().text()), delimiter="\t"))
    assert [row["class"] for row in pasted] == ["nuclei", "nuclei"]
    assert float(pasted[0]["area_um2"]) == pytest.approx(max(found), rel=1e-3)

    answer_file(tmp_path / "large.csv")
    click(tab.save)
    wait_until((tmp_path / "large.csv").exists, 10)
    quiet(panel)
    rows = list(csv.DictReader((tmp_path / "large.csv").read_text().splitlines()))
    assert [row["id"] for row in rows] == texts(table, "Id")

    parquet = pytest.importorskip("pyarrow.parquet")
    answer_file(tmp_path / "large.parquet")
    click(tab.save)
    wait_until((tmp_path / "large.parquet").exists, 10)
    quiet(panel)
    saved = parquet.read_table(tmp_path / "large.parquet")
    assert [str(k) for k in saved["id"].to_pylist()] == texts(table, "Id")
    assert saved["class"].to_pylist() == ["nuclei", "nuclei"]
    assert saved["area_um2"].to_pylist() == [float(row["area_um2"]) for row in rows]


@pytest.mark.parametrize(
    ("text", "shown"), [("many", 4), ("0,5", 4), ("1,00", 4), ("1e3", 3), (" 1 000.5 ", 3), ("-1", 4)]
)
def test_a_limit_that_is_no_number_is_marked_and_does_not_limit(discs, text, shown):
    tab = discs.objects
    tab.low.setFocus()
    QTest.keyClicks(tab.low, text)
    wrong = text in ("many", "0,5", "1,00")
    wait_until(lambda: tab.count.text() == (f"{text} is no number" if wrong else counted(shown)), 10)
    assert len(texts(tab.table, "Id")) == shown
    assert ("no number" in tab.low.toolTip()) == wrong
    assert bool(tab.low.styleSheet()) == wrong
    tab.low.selectAll()
    QTest.keyClick(tab.low, Qt.Key.Key_Delete)
    wait_until(lambda: tab.count.text() == "4 objects", 10)
    assert not tab.low.styleSheet()


def counted(shown: int) -> str:
    return "4 objects" if shown == 4 else f"{shown} of 4 objects"


def test_a_click_goes_to_the_object_and_marks_it(viewer, panel, discs):
    table = discs.objects.table
    row = texts(table, "Class").index("nuclei")  # the first in reading order
    active = viewer.layers.selection.active
    row_click(table, row)
    wait_until(lambda: "object" in viewer.layers, 10)
    pump(0.2)
    y, x, radius = DISCS[0]
    np.testing.assert_allclose(camera(viewer).center[-2:], (y, x), atol=4)
    corners = viewer.layers["object"].data[0]
    np.testing.assert_allclose(np.hypot(corners[:, -2] - y, corners[:, -1] - x), radius, atol=6)
    assert viewer.layers.selection.active == active, "drawing goes on"

    before = len(viewer.layers)
    QTest.keyClick(table, Qt.Key.Key_Down)
    second = DISCS[1]
    wait_until(lambda: np.abs(np.array(camera(viewer).center[-2:]) - second[:2]).max() < 5, 10)
    pump(0.2)
    assert len(viewer.layers) == before

    open_slide(panel, write_slide(panel.results.measured.path.parents[2] / "other.tif", two_textures(512, 3)))
    assert "object" not in viewer.layers
    row_click(table, row)
    wait_until(lambda: panel.session.slide.path.endswith("discs.tif") and "object" in viewer.layers, 20)
    pump(0.2)
    np.testing.assert_allclose(camera(viewer).center[-2:], (y, x), atol=4)


def test_histograms_and_areas(panel, discs, tmp_path):
    bar = discs.tabs.tabBar()
    QTest.mouseClick(bar, Qt.MouseButton.LeftButton, pos=bar.tabRect(1).center())
    quiet(panel)
    shown = discs.histogram.shown
    assert shown.counts == {2: 1, 3: 3}
    assert all(share.sum() == pytest.approx(100) for share in shown.shares.values())
    QTest.mouseClick(bar, Qt.MouseButton.LeftButton, pos=bar.tabRect(2).center())
    table = discs.areas.table
    names = [table.item(r, 1).text() for r in range(table.rowCount())]
    nuclei = names.index("nuclei")
    wanted = sum(np.pi * (radius * 0.5e-3) ** 2 for _, _, radius in DISCS)
    assert float(table.item(nuclei, 2).text()) == pytest.approx(wanted, rel=0.1)
    assert table.item(nuclei, 4).text() == "3"
    answer_file(tmp_path / "areas.csv")
    click(discs.areas.save)
    wait_until((tmp_path / "areas.csv").exists, 10)
    quiet(panel)
    rows = {r["class"]: r for r in csv.DictReader((tmp_path / "areas.csv").read_text().splitlines())}
    assert float(rows["nuclei"]["mm2"]) == pytest.approx(wanted, rel=0.1)
    click(discs.areas.copy)
    assert QGuiApplication.clipboard().text().splitlines()[0].split("\t")[:2] == ["slide", "region"]


def test_a_result_of_another_program_from_the_menu(viewer, panel, tmp_path):
    labels = np.zeros((300, 200), np.uint8)
    labels[20:60, 30:90], labels[100:200, 100:150] = 1, 2
    tifffile.imwrite(tmp_path / "other.tif", labels, tile=(64, 64))
    menu_entry(viewer.window.layers_menu, "Results, objects and areas… (napari-sparseseg)").trigger()
    dock = panel.results.panel
    wait_until(dock.isVisible, 10)
    assert dock.objects.model.rowCount() == 0
    answer_file(tmp_path / "other.tif")
    choose_entry(dock.open, "OME-TIFF (file)…")
    measured(panel)
    assert texts(dock.objects.table, "Area px²") == ["2,400", "5,000"]
    row_click(dock.objects.table, 0)
    wait_until(lambda: "is not open" in dock.said.text(), 10)

    dock.parentWidget().destroyOnClose()
    pump(0.2)
    assert "Results" not in viewer.window.dock_widgets
    palette_entry(viewer, "Results, objects")
    wait_until(dock.isVisible, 10)
    assert texts(dock.objects.table, "Area px²") == ["2,400", "5,000"]


def test_measuring_can_be_cancelled_and_bad_files_are_said(panel, tmp_path):
    panel.results.show()
    dock = panel.results.panel
    rng = np.random.default_rng(0)
    tifffile.imwrite(tmp_path / "large.tif", rng.integers(0, 3, (6000, 6000), np.uint8), tile=(256, 256))
    answer_file(tmp_path / "large.tif")
    choose_entry(dock.open, "OME-TIFF (file)…")
    wait_until(dock.cancel.isVisible, 20)
    click(dock.cancel)
    quiet(panel)
    assert dock.said.text() == "Stopped."
    assert not dock.cancel.isVisible()
    assert panel.results.measured is None
    assert not panel.header.error.isVisible()

    (tmp_path / "empty.tif").write_bytes(b"II*\0")
    answer_file(tmp_path / "empty.tif")
    choose_entry(dock.open, "OME-TIFF (file)…")
    wait_until(panel.header.error.isVisible, 20)
    assert "empty.tif" in panel.header.error.text.text()


def many_objects():
    field = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=(300, 400)), 1.5)
    labels = np.digitize(field, np.quantile(field, [0.3, 0.6, 0.8])).astype(np.uint8)
    classes = make_classes([("b", "#e6194b"), ("A", "#3cb44b"), ("c", "#4363d8")])
    return measure_image(labels, classes, Placement(Frame(), (0.5, 0.5)))


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("column", ["id", "class", "area", "distance_to A"])
def test_rows_are_those_of_a_plain_sort(column, descending):
    table = many_objects()
    rows = find_rows(table, Wanted(sort=column, descending=descending, column="area", low=2.0, high=500.0))
    keep = [k for k in range(len(table)) if 2.0 <= table.numbers["area"][k] <= 500.0]
    if column == "class":
        keys = [str(name).casefold() for name in table.class_names]
    else:
        keys = (table.id if column == "id" else table.numbers[column]).tolist()
    known = [k for k in keep if keys[k] == keys[k]]
    unknown = [k for k in keep if keys[k] != keys[k]]
    wanted = sorted(known, key=lambda k: keys[k], reverse=descending)
    assert rows.tolist() == wanted + unknown


def test_a_histogram_counts_every_object_with_a_number():
    table = many_objects()
    rows = np.arange(0, len(table), 2)
    made = histogram(table, rows, "distance_to A")
    for class_id, share in made.shares.items():
        values = table.numbers["distance_to A"][rows][table.class_id[rows] == class_id]
        values = values[np.isfinite(values)]
        assert made.counts[class_id] == len(values)
        np.testing.assert_allclose(share, 100 * np.histogram(values, made.edges)[0] / len(values))
    logarithmic = histogram(table, rows, "area", logarithmic=True)
    assert 10 ** logarithmic.edges[0] == pytest.approx(table.numbers["area"][rows].min())
