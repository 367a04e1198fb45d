"""Objects of a result: numbers against scikit-image, scipy and shapely, whatever the height of the bands; files."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import shapely
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist
from skimage.color import rgb2hed
from skimage.measure import label as numbered
from skimage.measure import regionprops

from napari_sparseseg import Session, SparseSegError
from napari_sparseseg.cli import main
from napari_sparseseg.config import make_classes
from napari_sparseseg.geometry import Box, Frame, Placement
from napari_sparseseg.io.object_shapes import ShapeMeter
from napari_sparseseg.io.objects import measure_image, stain_densities
from napari_sparseseg.io.ome_tiff import write_ome_tiff
from napari_sparseseg.io.ome_zarr import PredictionStore, StoreLayout, create_store
from napari_sparseseg.slides.backends.array import ArraySlide

CLASSES = tuple(make_classes([("tumour", "#e6194b"), ("=cmd|'/c calc'!A1", "#3cb44b"), ("lymphoid", "#4363d8")]))
PLACEMENT = Placement(Frame((2.0, 2.0)), (0.25, 0.25))


def blobs(shape, sigma, seed, share=0.3):
    """Smooth regions of classes 1 to 3, or noise; a share of the pixels is 0."""
    field = np.random.default_rng(seed).normal(size=shape)
    field = ndimage.gaussian_filter(field, sigma) if sigma else field
    return np.digitize(field, np.quantile(field, np.linspace(share, 1, 4)[:-1])).astype(np.uint8)


def measured(labels, heights, values):
    """Rows (first, class, pixels, y, x, perimeter, convex pixels, eccentricity, means, minimum), fed in such bands."""
    meter = ShapeMeter(labels.shape[1], means=("a", "b"), minima=("a",))
    found, top = [], 0
    while top < len(labels):
        rows = slice(top, top + heights[len(found) % len(heights)])
        found.append(meter.feed(labels[rows], {name: image[rows] for name, image in values.items()}))
        top = rows.stop
    found.append(meter.finish())
    rows = []
    for part in found:
        yy, xx, yx = part.moments
        apart = np.hypot((yy - xx) / 2, yx)
        longest, shortest = (yy + xx) / 2 + apart, (yy + xx) / 2 - apart
        ratio = np.divide(shortest, longest, out=np.ones_like(longest), where=longest > 0)
        eccentricity = np.sqrt(np.clip(1 - ratio, 0, 1))
        shape = (part.perimeter, part.convex_pixels, eccentricity)
        means = (part.means["a"], part.means["b"], part.minima["a"])
        rows += zip(part.first, part.class_id, part.pixels, part.y, part.x, *shape, *means, strict=True)
    return np.array(sorted(rows), float)


def expected(labels, values):
    """The same from scikit-image, on the whole image."""
    rows = []
    for class_id in np.unique(labels[labels > 0]):
        for p in regionprops(numbered(labels == class_id, connectivity=1), np.stack([*values.values()], axis=-1)):
            first = p.coords[0, 0] * labels.shape[1] + p.coords[0, 1]
            shape = (p.perimeter, p.area_convex, p.eccentricity)
            y, x = p.centroid
            rows.append((first, class_id, p.area, y + 0.5, x + 0.5, *shape, *p.intensity_mean, p.intensity_min[0]))
    return np.array(sorted(rows), float).reshape(-1, 11)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sigma=st.sampled_from([0, 0.8, 2.0, 5.0]),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    heights=st.lists(st.integers(1, 30), min_size=1, max_size=4),
)
def test_every_number_is_that_of_scikit_image_whatever_the_bands(seed, sigma, shape, heights):
    labels = blobs(shape, sigma, seed)
    rng = np.random.default_rng(seed)
    values = {"a": rng.integers(0, 255, shape).astype(np.uint8), "b": rng.normal(size=shape).astype(np.float32)}
    found, wanted = measured(labels, heights, values), expected(labels, values)
    np.testing.assert_allclose(found.reshape(-1, 11), wanted, rtol=1e-6, atol=1e-6)


def test_a_square_by_hand():
    labels = np.zeros((40, 60), np.uint8)
    labels[5:15, 5:25] = 1
    labels[30:36, 10:16] = 3
    table = measure_image(labels, CLASSES, PLACEMENT)
    assert len(table) == 2
    assert table.class_names.tolist() == ["tumour", "lymphoid"]
    n = table.numbers
    assert n["area"].tolist() == [200 * 0.25, 36 * 0.25]
    assert n["y"].tolist() == [20.0, 66.0]  # level 0: twice the label pixels
    assert n["x_unit"].tolist() == [7.5, 6.5]
    assert n["perimeter"].tolist() == [(2 * 19 + 2 * 9) * 0.5, 4 * 5 * 0.5]  # through the pixels' centres
    assert n["solidity"].tolist() == [1.0, 1.0]
    assert n["eccentricity"][1] == 0
    between = np.hypot(33 - 10, 13 - 15) * 0.5
    assert n["distance_to lymphoid"][0] == pytest.approx(between)
    assert n["distance_to tumour"][1] == pytest.approx(between)
    assert np.isnan(n["distance_to lymphoid"][1])


def test_areas_and_objects_in_one_pass_are_those_of_two(tmp_path):
    labels = blobs((90, 120), 2.0, 7)
    regions = {"left": shapely.box(0, 0, 100, 180), "right": shapely.box(100, 0, 240, 180)}
    layout = StoreLayout(labels.shape, PLACEMENT, CLASSES)
    create_store(tmp_path / "a.ome.zarr", layout, {"downsample": [2.0, 2.0], "mpp": [0.25, 0.25]})
    PredictionStore(tmp_path / "a.ome.zarr").write(Box(0, 0, *labels.shape), labels, None)
    with Session() as session:
        made = session.results.measure(tmp_path / "a.ome.zarr", regions=regions, min_area_um2=0)
        assert [path.name for path in session.results.images(tmp_path / "a.ome.zarr")] == ["classes"]
    for row in made.areas:
        part = {"slide": labels, "left": labels[:, :50], "right": labels[:, 50:]}[row.region]
        assert row.pixels == (part == row.class_id).sum()
        mine = made.objects.class_id == row.class_id
        inside = {"slide": mine, "left": mine & (made.objects.region == 0), "right": mine & (made.objects.region == 1)}
        assert row.objects in (None, inside[row.region].sum())
    some = np.array([5, 0, 3])
    text = made.objects.taken(some).tab_separated().splitlines()
    assert [line.split("\t")[0] for line in text] == ["id", "6", "1", "4"]
    first = made.outline(4)
    assert first.class_id == made.objects.class_id[4]
    assert shapely.Polygon(first.rings[0], first.rings[1:]).area == pytest.approx(
        made.objects.numbers["area"][4] * 16, rel=0.2
    )


def test_distances_are_those_of_all_pairs():
    table = measure_image(blobs((120, 90), 1.5, 4), CLASSES, PLACEMENT)
    centres = np.stack([table.numbers["y_unit"], table.numbers["x_unit"]], axis=1)
    for c in CLASSES:
        mine = table.class_id == c.id
        column = table.numbers[f"distance_to {c.name}"]
        np.testing.assert_allclose(column[~mine], cdist(centres[~mine], centres[mine]).min(axis=1))
        assert np.isnan(column[mine]).all()


def test_stains_are_those_of_scikit_image():
    rgb = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    np.testing.assert_allclose(stain_densities(rgb), 6 * np.moveaxis(rgb2hed(rgb), -1, 0), atol=1e-4)


@pytest.fixture
def scene(tmp_path):
    """A result of a slide with probability maps, as OME-Zarr; the slide; the labels."""
    labels = blobs((300, 260), 4, 1)
    rng = np.random.default_rng(1)
    slide = ArraySlide(rng.integers(0, 256, (600, 520, 3)).astype(np.uint8), mpp=0.25, name="case 7")
    record = {"slide": slide.fingerprint, "downsample": [2.0, 2.0], "mpp": [0.25, 0.25]}
    path = tmp_path / "case.ome.zarr"
    create_store(path, StoreLayout(labels.shape, PLACEMENT, CLASSES), record)
    store = PredictionStore(path)
    store.write(Box(0, 0, 2048, 2048), labels, None)
    store.build_pyramid()
    return path, slide, labels


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_csv_holds_every_object_and_no_formula(scene, tmp_path):
    path, slide, labels = scene
    out = tmp_path / "objects.csv"
    rgb = slide.read_region(Box(0, 0, *labels.shape), PLACEMENT.frame)
    with Session(()) as session:
        session.add(slide)
        table = session.results.measure_objects(path, out, min_area_um2=0)
    rows = rows_of(out)
    assert len(rows) == len(table) == sum(numbered(labels == k, connectivity=1).max() for k in (1, 2, 3))
    assert [int(r["id"]) for r in rows] == list(range(1, len(rows) + 1))
    names = {r["class"] for r in rows}
    assert names == {"tumour", "'=cmd|'/c calc'!A1", "lymphoid"}
    assert sum(float(r["area_um2"]) for r in rows) == pytest.approx((labels > 0).sum() * 0.25)
    y, x = np.divmod(int(table.first[0]), labels.shape[1])
    regions = numbered(labels == labels[y, x], connectivity=1)
    haematoxylin = 6 * rgb2hed(rgb)[regions == regions[y, x]][:, 0]
    assert float(rows[0]["h_od"]) == pytest.approx(haematoxylin.mean(), rel=1e-4)


def test_parquet_has_the_numbers_of_the_csv(scene, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet", reason="Parquet is an extra")
    path, _, _ = scene
    with Session(()) as session:
        session.results.measure_objects(path, [tmp_path / "a.csv", tmp_path / "a.parquet"])
    table = pq.read_table(tmp_path / "a.parquet").to_pydict()
    rows = rows_of(tmp_path / "a.csv")
    assert table["id"] == [int(r["id"]) for r in rows]
    for name in ("area_um2", "perimeter_um", "solidity", "distance_um_to lymphoid"):
        wanted = [float(r[name] or "nan") for r in rows]
        np.testing.assert_allclose(np.array(table[name], float), wanted, rtol=1e-5)


@pytest.mark.parametrize("kind", ["annotation", "detection"])
def test_geojson_has_the_outline_and_the_numbers_of_the_same_object(scene, tmp_path, kind):
    path, _, _ = scene
    with Session(()) as session:
        table = session.results.measure_objects(path, tmp_path / "a.geojson", kind=kind)
    features = json.loads((tmp_path / "a.geojson").read_text(encoding="utf-8"))["features"]
    assert len(features) == len(table)
    seen = set()
    for feature in features:
        assert feature["properties"]["objectType"] == kind
        numbers = feature["properties"]["measurements"]
        outline = shapely.from_geojson(json.dumps(feature["geometry"]))
        assert outline.area / 16 == pytest.approx(numbers["Area um^2"], rel=0.1)
        k = int(np.abs(table.numbers["area"] - numbers["Area um^2"]).argmin())
        assert numbers["Solidity"] == pytest.approx(table.numbers["solidity"][k], rel=1e-6)
        assert feature["properties"]["classification"]["name"] == table.class_names[k]
        assert numbers["Id"] == table.id[k]
        seen.add(k)
    assert len(seen) == len(table)


def test_certainty_is_that_of_the_own_class(scene):
    path, _, labels = scene
    maps = np.random.default_rng(3).integers(0, 256, (3, *labels.shape)).astype(np.uint8)
    zarr.open_group(str(path), mode="r+").create_group("probabilities").create_array("0", data=maps)
    with Session(()) as session:
        table = session.results.measure_objects(path, min_area_um2=0)
    for k in (0, len(table) // 2, len(table) - 1):
        y, x = np.divmod(int(table.first[k]), labels.shape[1])
        regions = numbered(labels == labels[y, x], connectivity=1)
        own = maps[labels[y, x] - 1][regions == regions[y, x]] / 255
        assert table.numbers["probability_mean"][k] == pytest.approx(own.mean(), rel=1e-5)
        assert table.numbers["probability_min"][k] == pytest.approx(own.min(), rel=1e-5)


def test_the_tiff_gives_the_same_table(scene, tmp_path):
    path, _, _ = scene
    write_ome_tiff(tmp_path / "case.ome.tif", PredictionStore(path, "r"), PLACEMENT, CLASSES)
    with Session(()) as session:
        a = session.results.measure_objects(path)
        b = session.results.measure_objects(tmp_path / "case.ome.tif")
    assert a.classes == b.classes
    for name, values in a.numbers.items():
        np.testing.assert_array_equal(values, b.numbers[name])


def test_an_object_is_in_the_region_of_its_centroid(scene, tmp_path):
    path, _, _ = scene
    regions = {"left": shapely.box(0, 0, 260, 600), "all": shapely.box(0, 0, 520, 600)}
    with Session(()) as session:
        table = session.results.measure_objects(path, regions=regions)
    assert set(table.region_names) == {"left", "all"}
    assert ((table.region_names == "left") == (table.numbers["x"] < 260)).all()


def test_the_command_writes_and_says_how_many(scene, tmp_path, capsys):
    path, _, _ = scene
    out = tmp_path / "o.csv"
    assert main(["objects", str(path), "--csv", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["objects"] == len(rows_of(out))


def mistakes(path, tmp_path):
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "text.tif").write_text("no image")
    return [
        ([str(path), "--csv", str(tmp_path / "there.csv")], "exists"),
        ([str(path), "--csv", str(tmp_path / "o.txt")], "does not end with .csv"),
        ([str(path), "--csv", str(tmp_path / "no" / "o.csv")], "there is no folder"),
        ([str(tmp_path / "none.ome.zarr"), "--csv", str(tmp_path / "o.csv")], "there is no result"),
        ([str(tmp_path / "text.tif"), "--csv", str(tmp_path / "o.csv")], "cannot read"),
        ([str(tmp_path), "--csv", str(tmp_path / "o.csv")], "no label image"),
        ([str(path), "--regions", str(tmp_path / "none.geojson"), "--csv", str(tmp_path / "o.csv")], "no file"),
    ]


def test_mistakes_end_with_2_and_one_line_and_leave_what_was_there(scene, tmp_path, capsys):
    path, _, _ = scene
    for arguments, text in mistakes(path, tmp_path):
        assert main(["objects", *arguments]) == 2
        error = capsys.readouterr().err
        assert text in error
        assert error.count("\n") == 1
    assert (tmp_path / "there.csv").read_text() == "mine"
    assert not list(tmp_path.glob("*.partial"))
    assert not (tmp_path / "o.csv").exists()


def test_another_slide_is_refused(scene):
    path, _, _ = scene
    other = ArraySlide(np.zeros((600, 520, 3), np.uint8), mpp=0.25, name="other")
    with other, Session(()) as session, pytest.raises(SparseSegError, match="was not made of slide"):
        session.results.measure_objects(path, slide=other)
