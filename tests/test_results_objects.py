"""GeoJSON objects: places, classes and shapes, read back with json and shapely."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
import shapely
from scipy import ndimage

from napari_sparseseg.config import make_classes
from napari_sparseseg.geometry import Frame, Placement
from napari_sparseseg.io.contours import Region, RegionTracer, Rings
from napari_sparseseg.io.measurements import GeoJsonWriter, Measurement, polygons_of

CLASSES = make_classes([("tumour", "#e6194b"), ("stroma", "#3cb44b")])


def write(path, labels, placement, min_pixels=1):
    tracer = RegionTracer(labels.shape[1], min_pixels)
    with GeoJsonWriter(path, CLASSES, placement) as writer:
        for y in range(0, len(labels), 50):
            writer.write(tracer.feed(labels[y : y + 50]))
        writer.write(tracer.finish())
    return json.loads(path.read_text(encoding="utf-8"))["features"]


def blobs(shape=(200, 160), sigma=6, seed=2):
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return np.digitize(field, np.quantile(field, [0.4, 0.7])).astype(np.uint8)


def shape_of(feature):
    return shapely.from_geojson(json.dumps(feature["geometry"]))


def test_a_square_lies_where_it_lies_on_the_slide(tmp_path):
    labels = np.zeros((20, 30), np.uint8)
    labels[4:14, 5:25] = 2
    placement = Placement(Frame((8.0, 4.0)), (0.25, 0.5))
    (feature,) = write(tmp_path / "a.geojson", labels, placement)
    assert shape_of(feature).bounds == (5 * 4, 4 * 8, 25 * 4, 14 * 8)
    assert feature["properties"] == {
        "objectType": "annotation",
        "classification": {"name": "stroma", "color": [0x3C, 0xB4, 0x4B]},
        "measurements": {"Area um^2": 200 * (8 * 0.25) * (4 * 0.5)},
    }


def test_area_is_in_level_0_pixels_without_mpp(tmp_path):
    labels = np.ones((3, 4), np.uint8)
    (feature,) = write(tmp_path / "a.geojson", labels, Placement(Frame((2.0, 2.0)), None))
    assert feature["properties"]["measurements"] == {"Area px^2": 48}


@pytest.mark.parametrize("sigma", [0.7, 2, 6])
@pytest.mark.parametrize("downsample", [(1.0, 1.0), (3.3, 2.7)])
def test_filling_the_polygons_gives_every_pixel_back(tmp_path, sigma, downsample):
    labels = blobs(sigma=sigma)
    features = write(tmp_path / "a.geojson", labels, Placement(Frame(downsample), (0.5, 0.5)))
    y, x = (np.mgrid[: labels.shape[0], : labels.shape[1]] + 0.5) * np.array(downsample)[:, None, None]
    centres = shapely.STRtree(shapely.points(x.ravel(), y.ravel()))
    filled = np.zeros_like(labels)
    ids = {c.name: c.id for c in CLASSES}
    for feature in features:
        polygon = shape_of(feature)
        assert polygon.geom_type == "Polygon"
        assert polygon.is_valid
        assert polygon.exterior.is_ccw
        filled.flat[centres.query(polygon, predicate="contains")] = ids[feature["properties"]["classification"]["name"]]
    np.testing.assert_array_equal(filled, labels)


def test_outlines_stay_within_half_a_pixel_and_lose_points(tmp_path):
    labels = (blobs(sigma=8) == 2).astype(np.uint8)
    features = write(tmp_path / "a.geojson", labels, Placement(Frame(), None), min_pixels=20)
    numbered, _ = ndimage.label(labels)
    kept = np.isin(numbered, np.flatnonzero(np.bincount(numbered.ravel()) >= 20)[1:])
    rows, columns = np.nonzero(kept)
    exact = shapely.union_all(shapely.box(columns, rows, columns + 1, rows + 1))
    drawn = shapely.union_all([shape_of(f) for f in features])
    for a, b in ((drawn, exact), (exact, drawn)):
        points = shapely.points(shapely.get_coordinates(shapely.segmentize(shapely.boundary(a), 0.2)))
        assert shapely.distance(points, shapely.boundary(b)).max() <= 0.5
    assert shapely.get_num_coordinates(drawn) < 0.5 * shapely.get_num_coordinates(exact)


def test_small_regions_are_left_out(tmp_path):
    labels = np.zeros((20, 20), np.uint8)
    labels[2:4, 2:4] = 1
    labels[10:13, 10:13] = 1
    (feature,) = write(tmp_path / "a.geojson", labels, Placement(Frame(), None), min_pixels=5)
    assert shape_of(feature).bounds == (10, 10, 13, 13)


def test_no_object_is_a_valid_file(tmp_path):
    assert write(tmp_path / "a.geojson", np.zeros((5, 5), np.uint8), Placement(Frame(), None)) == []


def test_names_with_quotes_and_umlauts_survive(tmp_path):
    classes = make_classes(['Drüse "A"\\'])
    ring = np.array([[0, 1], [1, 2], [2, 1], [1, 0]], np.int32)
    with GeoJsonWriter(tmp_path / "a.geojson", classes, Placement(Frame(), None)) as writer:
        writer.write([Region(1, 1, (0.5, 0.5), [ring])])
    (feature,) = json.loads((tmp_path / "a.geojson").read_text(encoding="utf-8"))["features"]
    assert feature["properties"]["classification"]["name"] == 'Drüse "A"\\'


def test_points_on_a_straight_or_diagonal_border_are_dropped():
    triangle = np.tril(np.ones((40, 40), np.uint8))
    tracer = RegionTracer(40)
    regions = tracer.feed(triangle) + tracer.finish()
    (shape,) = polygons_of(regions, Placement(Frame(), None))
    assert shapely.get_num_coordinates(shape) <= 9


@pytest.mark.parametrize("many", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_30_000_and_300_000_objects_need_no_more_memory_than_6_000(tmp_path, many):
    dots = np.zeros((60, 200), np.uint8)
    dots[::2, ::2] = 1  # 3,000 regions of one pixel

    def peak(bands):
        measurement = Measurement("a.svs", (60 * bands, 200), CLASSES, Placement(Frame(), None), min_area=0)
        path = tmp_path / f"{bands}.geojson"
        tracemalloc.start()
        _, objects = measurement.run((dots for _ in range(bands)), path, None, lambda *_: None)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        with path.open("rb") as file:
            assert sum(line.count(b'"Feature"') for line in file) == objects == 3_000 * bands
        return most

    peak(1)  # what is imported or cached once
    assert peak(many) < 1.1 * peak(2)


def holes(rows, columns):
    """One region with a hole of one pixel in every second row and column."""
    labels = np.ones((2 * rows + 1, 2 * columns + 1), np.uint8)
    labels[1::2, 1::2] = 0
    return labels


def test_a_region_of_many_holes_is_written_in_pieces_as_shapely_writes_the_whole(tmp_path):
    labels = holes(210, 200)
    placement = Placement(Frame((2.0, 2.0)), (0.5, 0.5))
    tracer = RegionTracer(labels.shape[1])
    found = tracer.feed(labels[:150]) + tracer.feed(labels[150:]) + tracer.finish()
    with GeoJsonWriter(tmp_path / "a.geojson", CLASSES, placement) as writer:
        writer.write(found)
    (feature,) = json.loads((tmp_path / "a.geojson").read_text(encoding="utf-8"))["features"]
    (whole,) = polygons_of(found, placement)
    assert shapely.get_num_interior_rings(whole) == 42_000
    assert feature["geometry"] == json.loads(shapely.to_geojson(whole))
    assert f'"geometry": {shapely.to_geojson(whole)}, ' in (tmp_path / "a.geojson").read_text(encoding="utf-8")


def test_a_hole_of_a_region_needs_less_than_200_bytes(tmp_path):
    def peak(rows):
        labels = holes(rows, 200)
        tracemalloc.start()
        try:
            write_only(tmp_path / "a.geojson", labels)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def write_only(path, labels):
        tracer = RegionTracer(labels.shape[1])
        with GeoJsonWriter(path, CLASSES, Placement(Frame(), None)) as writer:
            for y in range(0, len(labels), 50):
                writer.write(tracer.feed(labels[y : y + 50]))
            writer.write(tracer.finish())

    assert peak(1000) - peak(200) < 800 * 200 * 200


def test_rings_are_a_sequence():
    rings = [np.full((n, 2), n, np.int32) for n in (3, 4, 5)]
    found = Rings.of(rings)
    assert [len(r) for r in found] == [3, 4, 5]
    np.testing.assert_array_equal(found[-1], rings[2])
    assert [r[0, 0] for r in found[1:]] == [4, 5]
    assert [r[0, 0] for r in found[::2]] == [3, 5]
    assert (len(found[2:1]), len(Rings.of([]))) == (0, 0)
    with pytest.raises(IndexError):
        found[3]
