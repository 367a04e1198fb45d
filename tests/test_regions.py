"""Prediction inside regions only: what is paid for, what is measured, which files say where."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import shapely

from napari_sparseseg.errors import PredictionError
from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.prediction.results.regions import RegionMask, find_regions
from napari_sparseseg.prediction.slide import run_prediction
from tests.helpers.smooth_model import CLASSES, SmoothModel, level0, patches_slide

# no edge passes a pixel's centre
RING = shapely.Polygon(
    [(120.3, 150.7), (620.1, 180.9), (560.3, 700.2), (130.7, 650.1)], [[(250.3, 300.7), (250.9, 500.3), (450.1, 480.6)]]
)


def feature(geometry, name=None, title=None) -> dict:
    properties = {"objectType": "annotation"}
    if name is not None:
        properties["classification"] = {"name": name, "color": [1, 2, 3]}
    if title is not None:
        properties["name"] = title
    return {"type": "Feature", "geometry": json.loads(shapely.to_geojson(geometry)), "properties": properties}


def write(path, *features):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def inside(polygon, shape, downsample=1.0) -> np.ndarray:
    y, x = (np.mgrid[: shape[0], : shape[1]] + 0.5) * downsample
    return shapely.contains_xy(polygon, x, y)


class CountingSlide:
    """The slide, and the regions that were read from it."""

    def __init__(self, slide):
        self._slide, self.read = slide, []

    def __getattr__(self, name):
        return getattr(self._slide, name)

    def read_region(self, region, frame, *, mirrored=False):
        self.read.append(region)
        return self._slide.read_region(region, frame, mirrored=mirrored)


@pytest.mark.parametrize("mpp", [0.5, 0.8])
def test_pixels_inside_are_as_always_and_those_outside_are_not_paid_for(tmp_path, mpp):
    whole_model, model = SmoothModel(), SmoothModel()
    slide = CountingSlide(patches_slide())
    run_prediction(slide, whole_model, tmp_path / "all.ome.zarr", mpp=mpp, tile=64, tissue_only=False)
    everywhere = len(slide.read)
    slide.read.clear()
    result = run_prediction(
        slide, model, tmp_path / "a.ome.zarr", mpp=mpp, tile=64, tissue_only=False, uncertainty=True,
        regions={"ring": RING}, csv=tmp_path / "a.csv",
    )  # fmt: skip
    whole, labels = level0(tmp_path / "all.ome.zarr"), level0(tmp_path / "a.ome.zarr")
    mask = inside(RING, labels.shape, mpp / 0.5)
    np.testing.assert_array_equal(labels, whole * mask)
    frame = Frame((mpp / 0.5, mpp / 0.5))
    touched = sum(
        bool(RegionMask({"ring": RING}).overlaps(Box(y, x, 64, 64).intersection(Box(0, 0, *labels.shape)), frame))
        for y in range(0, labels.shape[0], 64)
        for x in range(0, labels.shape[1], 64)
    )
    assert len(slide.read) == model.calls == touched < everywhere / 2
    rows = {(r.region, r.class_id): r for r in result.table}
    for c in CLASSES:
        assert rows["ring", c.id].pixels == ((whole == c.id) & mask).sum() == rows["slide", c.id].pixels
        assert rows["ring", c.id].mm2 == pytest.approx(((whole == c.id) & mask).sum() * mpp**2 * 1e-6)
    assert ("ring", 0) not in rows
    assert rows["slide", 0].pixels == (~mask).sum()
    with (tmp_path / "a.csv").open() as file:
        assert {r["region"] for r in csv.DictReader(file)} == {"slide", "ring"}


def test_glass_inside_a_region_has_its_class_and_that_outside_none(cmu_svs, tmp_path):
    from napari_sparseseg.slides import open_slide

    box = (0, 0, 1200, 900)
    with open_slide(cmu_svs) as slide:
        run_prediction(slide, SmoothModel(), tmp_path / "all.ome.zarr", mpp=2, tile=64)
        run_prediction(slide, SmoothModel(), tmp_path / "a.ome.zarr", mpp=2, tile=64, regions=[box])
        frame = slide.frame(2)
    whole, labels = level0(tmp_path / "all.ome.zarr"), level0(tmp_path / "a.ome.zarr")
    mask = RegionMask({"r": shapely.box(0, 0, 900, 1200)}).read_region(Box(0, 0, *labels.shape), frame)
    assert 0.05 < mask.mean() < 0.5
    np.testing.assert_array_equal(labels, whole * mask)


def test_regions_belong_to_the_run_that_is_resumed(tmp_path):
    slide, out = patches_slide(), tmp_path / "a.ome.zarr"
    run_prediction(slide, SmoothModel(), out, regions={"ring": RING})
    again = SmoothModel()
    run_prediction(slide, again, out, regions={"ring": RING}, resume=True)
    assert not again.calls
    with pytest.raises(PredictionError, match="exists"):
        run_prediction(slide, SmoothModel(), out, regions={"other": shapely.box(0, 0, 90, 90)}, resume=True)


def test_areas_of_a_file_are_found_by_class_with_their_holes_and_names(tmp_path):
    slide = patches_slide()
    left, right = shapely.box(10, 10, 200, 200), shapely.box(500, 10, 700, 200)
    two = shapely.MultiPolygon([shapely.box(10, 500, 40, 540), shapely.box(60, 500, 90, 540)])
    path = write(
        tmp_path / "a.geojson", feature(RING, "Region*", "biopsy"), feature(left, "Tumor"), feature(right, "tumor"),
        feature(two), feature(shapely.LineString([(0, 0), (50, 50)]), "Tumor"),
    )  # fmt: skip
    ring = find_regions(f"{path}:Region*", slide)
    assert list(ring) == ["biopsy"]
    assert ring["biopsy"].equals(RING)
    found = find_regions(f"{path}:TUMOR", slide)
    assert [p.bounds for p in found.values()] == [left.bounds, right.bounds]
    every = find_regions(path, slide)
    assert shapely.union_all(list(every.values())).equals(shapely.union_all([RING, left, right, two]))


def test_areas_of_annotations_are_their_pixels(tmp_path):
    from napari_sparseseg import Annotations

    slide = patches_slide()
    annotations = Annotations(slide.shape, classes=["tumour", "stroma"])
    annotations.paint([(100, 100), (200, 400)], 20, 1)
    annotations.fill_polygon([(300, 300), (300, 500), (600, 500)], 1, dense=True)
    mask = RegionMask(find_regions("tumour", slide, annotations)).read_region(Box(0, 0, *slide.shape), Frame())
    np.testing.assert_array_equal(mask, annotations.read(Box(0, 0, *slide.shape)) == 1)


def test_a_class_and_a_file_of_one_name_are_told_apart(tmp_path, monkeypatch):
    from napari_sparseseg import Annotations

    monkeypatch.chdir(tmp_path)
    slide = patches_slide()
    annotations = Annotations(slide.shape, classes=["a.geojson", "x:y"])
    annotations.fill_polygon([(300, 300), (300, 500), (600, 500)], 1, dense=True)
    annotations.fill_polygon([(10, 10), (10, 50), (60, 50)], 2, dense=True)
    write(tmp_path / "a.geojson", feature(RING, "Region*"))

    def area(asked):
        return shapely.union_all(list(find_regions(asked, slide, annotations).values())).area

    with pytest.raises(PredictionError, match=r"write \./a\.geojson or :a\.geojson"):
        find_regions("a.geojson", slide, annotations)
    assert area("./a.geojson") == area(Path("a.geojson")) == area("a.geojson:Region*") == RING.area
    assert area(":a.geojson") == annotations.counts()[1]
    assert area("x:y") == area(":x:y") == annotations.counts()[2]
    with pytest.raises(PredictionError, match="no area of class 'nothing'"):
        find_regions(":nothing", slide, annotations)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"far": shapely.box(5000, 5000, 6000, 6000)}, "'far' lies outside the slide"),
        ({"line": shapely.LineString([(0, 0), (9, 9)])}, "encloses no area"),
        ({}, "no region is given"),
        ([(0, 0, 0, 10)], "is empty"),
        ("nowhere.geojson", "no file nowhere.geojson"),
    ],
)
def test_regions_that_cannot_be_meant_are_refused(tmp_path, asked, words):
    with pytest.raises(PredictionError, match=words):
        run_prediction(patches_slide(), SmoothModel(), tmp_path / "a.ome.zarr", regions=asked)
    assert not list(tmp_path.iterdir())


def test_a_class_that_a_file_has_not_is_refused_with_those_it_has(tmp_path):
    path = write(tmp_path / "a.geojson", feature(RING, "Region*"), feature(RING, "Tumor"))
    with pytest.raises(PredictionError, match=r"no area of class 'Stroma'.*Region\*, Tumor"):
        find_regions(f"{path}:Stroma", patches_slide())
