"""Comparing results: numbers by hand, against an independent reference, at two resolutions, and mistakes."""

from __future__ import annotations

import csv
import json
from collections import Counter

import numpy as np
import pytest
import shapely
import zarr

from napari_sparseseg import Annotations, Session, SparseSegError, save_annotations
from napari_sparseseg.cli import main
from napari_sparseseg.config import make_classes
from napari_sparseseg.geometry import Box, Frame, Placement
from napari_sparseseg.io.ome_tiff import write_ome_tiff
from napari_sparseseg.io.ome_zarr import PredictionStore, StoreLayout, create_store

CLASSES = tuple(make_classes([("tumour", "#e6194b"), ("stroma", "#3cb44b"), ("glass", "#999999")]))
OTHER_ORDER = tuple(make_classes([("Stroma", "#3cb44b"), ("Tumour", "#e6194b"), ("necrosis", "#000000")]))


def stored(path, labels, classes=CLASSES, downsample=2.0, slide="a slide"):
    placement = Placement(Frame((downsample,) * 2), (0.25, 0.25))
    record = {"slide": slide, "downsample": [downsample] * 2, "mpp": [0.25, 0.25]}
    create_store(path, StoreLayout(labels.shape, placement, classes), record)
    store = PredictionStore(path)
    store.write(Box(0, 0, 2048, 2048), labels, None)
    store.build_pyramid()
    return path


def compared(*args, **options):
    with Session(()) as session:
        return session.results.compare(*args, **options)


def test_numbers_by_hand(tmp_path):
    a, b = np.ones((10, 10), np.uint8), np.ones((10, 10), np.uint8)
    a[:, 6:] = 2  # 60 tumour, 40 stroma
    b[:, 5:] = 2  # 50 and 50; the column between is tumour / stroma
    b[0, :] = 0  # the first row is in a alone
    found = compared(stored(tmp_path / "a.ome.zarr", a), stored(tmp_path / "b.ome.zarr", b))
    counts = found.counts["slide"]
    assert counts[1:3, :3].tolist() == [[6, 45, 9], [4, 0, 36]]
    assert found.compared("slide") == 90
    assert found.agreement("slide") == pytest.approx(81 / 90)
    assert found.dice("slide")[:2] == pytest.approx([90 / 99, 72 / 81])
    assert np.isnan(found.dice("slide")[2])
    chance = (54 * 45 + 36 * 45) / 90**2
    assert found.kappa("slide") == pytest.approx((0.9 - chance) / (1 - chance))
    assert found.pixel_area == 0.25


def reference(a, b):
    """Dice by name, agreement and kappa of two lists of names, by counting in pure Python."""
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x and y]
    first, second = Counter(x for x, _ in pairs), Counter(y for _, y in pairs)
    same = Counter(x for x, y in pairs if x == y)
    dice = {name: 2 * same[name] / (first[name] + second[name]) for name in {*first, *second}}
    agreement = sum(same.values()) / len(pairs)
    chance = sum(first[name] * second[name] for name in first) / len(pairs) ** 2
    return dice, agreement, (agreement - chance) / (1 - chance)


@pytest.mark.parametrize("downsample", [2.0, 4.0, 5.0])
def test_two_resolutions_and_two_tables_are_compared_at_the_coarser_one(tmp_path, downsample):
    rng = np.random.default_rng(int(downsample))
    a = rng.integers(0, 4, (60, 80)).astype(np.uint8)
    h, w = int(np.ceil(120 / downsample)), int(np.ceil(160 / downsample))
    b = rng.integers(0, 4, (h, w)).astype(np.uint8)
    found = compared(stored(tmp_path / "a.ome.zarr", a), stored(tmp_path / "b.ome.zarr", b, OTHER_ORDER, downsample))
    names_a = ["", "tumour", "stroma", "glass"]
    names_b = ["", "stroma", "tumour", "necrosis"]
    first, second = [], []
    for y in range(h):
        for x in range(w):
            at = int((y + 0.5) * downsample // 2), int((x + 0.5) * downsample // 2)
            first.append(names_a[a[at]] if at[0] < 60 and at[1] < 80 else "")
            second.append(names_b[b[y, x]])
    dice, agreement, kappa = reference(first, second)
    assert [c.name for c in found.classes] == ["tumour", "stroma", "glass", "necrosis"]
    assert dict(zip(["tumour", "stroma", "glass", "necrosis"], found.dice("slide"), strict=True)) == pytest.approx(dice)
    assert found.agreement("slide") == pytest.approx(agreement)
    assert found.kappa("slide") == pytest.approx(kappa)


def test_a_truth_of_annotations_counts_where_it_is_labelled(tmp_path):
    labels = np.ones((50, 50), np.uint8)
    labels[:, 25:] = 2
    truth = Annotations((100, 100), classes=["stroma", "tumour"])
    truth.fill_polygon([(0, 0), (0, 60), (40, 60), (40, 0)], 2)
    save_annotations(truth, tmp_path / "truth.geojson")
    found = compared(stored(tmp_path / "a.ome.zarr", labels), tmp_path / "truth.geojson")
    assert found.compared("slide") == 20 * 30
    assert found.agreement("slide") == pytest.approx(25 / 30)
    turned = compared(tmp_path / "truth.geojson", tmp_path / "a.ome.zarr")
    assert turned.names == ("truth.geojson", "a.ome.zarr")
    assert turned.kappa("slide") == found.kappa("slide")


def test_regions_are_scored_apart(tmp_path):
    a, b = np.ones((40, 40), np.uint8), np.ones((40, 40), np.uint8)
    b[:, 20:] = 2
    regions = {"left": shapely.box(0, 0, 40, 80), "middle": shapely.box(30, 0, 50, 80)}
    found = compared(
        stored(tmp_path / "a.ome.zarr", a), stored(tmp_path / "b.ome.zarr", b), tmp_path / "t.csv", regions=regions
    )
    assert [found.agreement(name) for name in ("slide", "left", "middle")] == [0.5, 1.0, 0.5]
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [r["agreement"] for r in rows if r["class"] == "all classes"] == ["0.5", "1.0", "0.5"]
    assert len(rows) == 3 * 4


def test_the_difference_is_a_label_image_of_pairs(tmp_path):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 4, (30, 50)).astype(np.uint8) for _ in range(2))
    out = tmp_path / "d.ome.zarr"
    paths = stored(tmp_path / "a.ome.zarr", a), stored(tmp_path / "b.ome.zarr", b)
    compared(*paths, difference=out)
    group = zarr.open_group(str(out), mode="r")["labels/classes"]
    names = {p["label-value"]: p["name"] for p in group.attrs["image-label"]["properties"]}
    values = group["0"][:]
    for y, x in np.ndindex(a.shape):
        i, j = a[y, x], b[y, x]
        wanted = f"{CLASSES[i - 1].name} > {CLASSES[j - 1].name}" if i and j and i != j else ""
        assert names.get(values[y, x], "") == wanted
    with pytest.raises(SparseSegError, match="exists"):
        compared(*paths, difference=out)
    compared(*paths, difference=out, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ome.zarr", "b.ome.zarr", "d.ome.zarr"]


def test_labels_of_another_program_are_placed_by_their_scale_or_their_size(tmp_path):
    labels = np.random.default_rng(1).integers(1, 3, (64, 48)).astype(np.uint8)
    path = stored(tmp_path / "a.ome.zarr", labels)
    placement = Placement(Frame((2.0, 2.0)), (0.25, 0.25))
    write_ome_tiff(tmp_path / "same.ome.tif", PredictionStore(path, "r"), placement, CLASSES)
    assert compared(path, tmp_path / "same.ome.tif").agreement("slide") == 1
    foreign = zarr.open_group(str(path), mode="r+")
    del foreign.attrs["napari_sparseseg"]
    path.rename(tmp_path / "foreign.ome.zarr")
    found = compared(tmp_path / "foreign.ome.zarr", stored(tmp_path / "a.ome.zarr", labels))
    assert found.agreement("slide") == 1
    assert found.compared("slide") == labels.size


def test_a_lone_label_image_with_five_axes_is_read_as_qupath_writes_it(tmp_path):
    labels = np.random.default_rng(2).integers(0, 3, (64, 48)).astype(np.uint8)
    root = zarr.open_group(str(tmp_path / "qupath.ome.zarr"), mode="w", zarr_format=3)
    root.create_array("s0", data=labels[None, None, None], chunks=(1, 1, 1, 32, 32))
    axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}]
    axes += [{"name": k, "type": "space", "unit": "micrometer"} for k in "zyx"]
    scale = {"type": "scale", "scale": [1, 1, 1, 0.5, 0.5]}
    label = {"colors": [{"label-value": k, "rgba": [9 * k, 0, 0, 255]} for k in (0, 1, 2)]}
    label["properties"] = [{"label-value": k, "name": n} for k, n in enumerate(("Ignore", "Stroma", "Tumour"))]
    multiscales = [{"axes": axes, "datasets": [{"path": "s0", "coordinateTransformations": [scale]}]}]
    root.attrs["ome"] = {"version": "0.5", "multiscales": multiscales, "image-label": label}
    ours = np.array([0, 2, 1], np.uint8)[labels]
    found = compared(stored(tmp_path / "a.ome.zarr", ours), tmp_path / "qupath.ome.zarr")
    assert found.agreement("slide") == 1
    assert found.compared("slide") == (labels > 0).sum()


def test_mistakes_end_with_2_and_one_line(tmp_path, capsys):
    labels = np.ones((20, 20), np.uint8)
    a = stored(tmp_path / "a.ome.zarr", labels)
    other = stored(tmp_path / "other.ome.zarr", labels, slide="another")
    strange = stored(tmp_path / "strange.ome.zarr", labels, tuple(make_classes(["x", "y"])))
    small = stored(tmp_path / "small.ome.zarr", labels[:10])
    (tmp_path / "there.csv").write_text("mine")
    mistakes = [
        ([a, other], "different slides"),
        ([a, strange], "no class in common"),
        ([a, small], "different size"),
        ([a, tmp_path / "none.geojson"], "no annotation file"),
        ([tmp_path / "none.geojson", tmp_path / "none.geojson"], "there is no result"),
        ([a, a, "--csv", tmp_path / "there.csv"], "exists"),
        ([a, a, "--difference", a, "--overwrite"], "one of the two"),
        ([a, a, "--difference", tmp_path / "d.tif"], "does not end with .ome.zarr"),
    ]
    for arguments, text in mistakes:
        assert main(["compare", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert text in error
        assert error.count("\n") == 1
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_the_command_prints_scores(tmp_path, capsys):
    a = stored(tmp_path / "a.ome.zarr", np.array([[1, 1], [2, 2]], np.uint8))
    b = stored(tmp_path / "b.ome.zarr", np.array([[1, 2], [2, 2]], np.uint8))
    assert main(["compare", str(a), str(b)]) == 0
    assert "agreement 0.7500, kappa 0.5000" in capsys.readouterr().out
    assert main(["compare", str(a), str(b), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["regions"]["slide"]["kappa"] == 0.5
