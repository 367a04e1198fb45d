"""Areas and counts against numbers made by hand."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import shapely
from skimage.draw import polygon2mask

from napari_sparseseg.config import make_classes
from napari_sparseseg.geometry import Frame, Placement
from napari_sparseseg.io.contours import Region
from napari_sparseseg.io.measurements import AreaTable, plain_cell, write_csv

CLASSES = make_classes(["tumour", "stroma", "fat"])
PLACEMENT = Placement(Frame((4.0, 2.0)), (0.25, 0.5))  # label pixels of 1 x 1 um


def filled(table, labels, band):
    for y in range(0, len(labels), band):
        table.add_rows(y, labels[y : y + band])
    return table


def test_areas_by_hand(tmp_path):
    labels = np.zeros((100, 200), np.uint8)
    labels[:50, :100] = 1
    labels[50:, 100:150] = 2
    table = filled(AreaTable(CLASSES, PLACEMENT), labels, 30)
    table.add_objects([Region(1, 5000, (25, 50)), Region(2, 2000, (75, 120)), Region(2, 500, (75, 140))])
    write_csv(tmp_path / "a.csv", table.rows("s.svs"))
    with (tmp_path / "a.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["slide", "region", "class_id", "class", "pixels", "mm2", "percent", "objects"],
        ["s.svs", "slide", "1", "tumour", "5000", "0.005", "66.6667", "1"],
        ["s.svs", "slide", "2", "stroma", "2500", "0.0025", "33.3333", "2"],
        ["s.svs", "slide", "3", "fat", "0", "0.0", "0.0", "0"],
        ["s.svs", "slide", "0", "not predicted", "12500", "0.0125", "", ""],
    ]


@pytest.mark.parametrize("band", [1, 7, 64])
def test_regions_count_the_pixels_whose_centres_they_hold(band):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (64, 90)).astype(np.uint8)
    outline = np.array([(10.3, 5.2), (80.7, 12.1), (60.4, 55.9), (20.2, 40.3)])  # (x, y) in label pixels
    hole = np.array([(30.1, 15.2), (45.3, 15.8), (40.2, 30.6)])
    polygon = shapely.Polygon(outline * (2, 4), [hole * (2, 4)])
    table = filled(AreaTable(CLASSES, PLACEMENT, {"part": polygon}), labels, band)
    # polygon2mask tests whole-numbered points (row, column); ours are at pixel centres.
    inside = polygon2mask(labels.shape, outline[:, ::-1] - 0.5) & ~polygon2mask(labels.shape, hole[:, ::-1] - 0.5)
    found = {row.class_id: row.pixels for row in table.rows("s") if row.region == "part"}
    assert found == {c: int((labels[inside] == c).sum()) for c in (1, 2, 3, 0)}


def test_an_object_counts_where_its_centroid_lies():
    table = AreaTable(CLASSES, PLACEMENT, {"left": shapely.box(0, 0, 100, 400), "right": shapely.box(100, 0, 200, 400)})
    # Centroids in label pixels (y, x); the border between left and right is at x = 50.
    table.add_objects([Region(1, 9, (50, 49.5)), Region(1, 9, (50, 50.5)), Region(2, 9, (50, 70))])
    counts = {(row.region, row.class_id): row.objects for row in table.rows("s")}
    assert (counts["left", 1], counts["right", 1], counts["left", 2], counts["right", 2]) == (1, 1, 0, 1)
    assert table.objects == 3


def test_multipolygons_and_unknown_mpp():
    labels = np.ones((10, 10), np.uint8)
    two = shapely.MultiPolygon([shapely.box(0, 0, 2, 2), shapely.box(5, 5, 8, 9)])
    table = filled(AreaTable(CLASSES, Placement(Frame(), None), {"two": two}), labels, 10)
    row = next(r for r in table.rows("s") if r.region == "two" and r.class_id == 1)
    assert (row.pixels, row.mm2, row.percent) == (4 + 12, None, 100)


@pytest.mark.parametrize(
    "text",
    ["=cmd|' /C calc'!A0", "+1+1", "-2", "@SUM(A1)", " =1", "\t=1", "\r\n+1", "\uff1d1", "\uff0b1", "\u202e=1"],
)
def test_no_cell_is_a_formula_or_a_command_to_a_terminal(tmp_path, text):
    classes = make_classes([text, "a\x1b[31mred\x07", "plain-name = 1"])
    table = AreaTable(classes, Placement(Frame(), (0.5, 0.5)))
    table.add_rows(0, np.array([[1, 2, 3]], np.uint8))
    rows = table.rows("-slide.svs")
    write_csv(tmp_path / "a.csv", rows, slides=["=1/a.svs"] * len(rows))
    raw = (tmp_path / "a.csv").read_bytes()
    assert not [byte for byte in raw if byte < 32 and byte != 10]
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    for row in found:
        for cell in row.values():
            assert not cell.lstrip().startswith(("=", "+", "-", "@", "\uff1d", "\uff0b")), cell
    assert [row["class"] for row in found[1:]] == ["a [31mred ", "plain-name = 1"]
    assert {row["path"] for row in found} == {"'=1/a.svs"}
    assert plain_cell("Drüse 1-2") == "Drüse 1-2"
