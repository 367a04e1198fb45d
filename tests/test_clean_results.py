"""Clean-up of results on disk: what is written beside them, tables, doubt, interruptions, refusals."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import shapely
import tifffile
import zarr

from napari_sparseseg import CleanUp
from napari_sparseseg.cli import main
from napari_sparseseg.errors import PredictionError
from napari_sparseseg.geometry import Box, Frame, Placement, tiles
from napari_sparseseg.io.ome_zarr import SHARD, PredictionStore, StoreLayout, create_store
from napari_sparseseg.prediction.results.cleanup import Cleaner
from napari_sparseseg.prediction.results.preview import clean_image
from napari_sparseseg.prediction.slide import cleaning, run_prediction
from napari_sparseseg.prediction.slide.cleaning import clean_up
from napari_sparseseg.prediction.tiles import predict_region
from napari_sparseseg.session import Session
from napari_sparseseg.slides import ArraySlide
from tests.helpers.smooth_model import CLASSES, SmoothModel, level0

ALL = CleanUp(smooth_um=0.6, holes_um2=3, smallest_um2=2, separate=("nuclei",), unsure_below=0.8)


def noisy_slide() -> ArraySlide:
    """Touching discs on blocks of the three class colours, so noisy that single pixels are wrong; 0.5 um per px."""
    rng = np.random.default_rng(5)
    truth = np.kron(rng.integers(0, 2, (5, 7)), np.ones((80, 80), int))
    y, x = np.mgrid[:400, :560]
    for cy, cx in rng.integers(20, 380, (60, 2)):
        truth[(y - cy) ** 2 + (x - cx - 80) ** 2 < 120] = 2
    image = SmoothModel().colours[truth] + rng.normal(0, 35, (400, 560, 3))
    return ArraySlide(np.clip(image, 0, 255).astype(np.uint8), mpp=0.5, name="noisy")


MODEL = {"radius": 0, "size_divisor": 1}


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
    """A result with probabilities; two regions, 0.5 um per px."""
    out = tmp_path_factory.mktemp("predicted") / "a.ome.zarr"
    run_prediction(
        noisy_slide(), SmoothModel(**MODEL), out, probabilities=True, tissue_only=False,
        regions={"left": shapely.box(20, 30, 300, 380), "right": shapely.box(330, 9, 550, 350)},
    )  # fmt: skip
    return out


@pytest.fixture
def result(predicted, tmp_path):
    import shutil

    return shutil.copytree(predicted, tmp_path / "a.ome.zarr")


def cleaned(path, name="cleaned"):
    return zarr.open_group(path, mode="r")[f"labels/{name}/0"][:]


def test_a_cleaned_image_lies_beside_what_was_predicted(result, tmp_path):
    before = level0(result)
    found = clean_up(result, ALL, [tmp_path / "a.csv", tmp_path / "a.geojson"], min_area_um2=0)
    np.testing.assert_array_equal(level0(result), before)
    image = cleaned(result)
    np.testing.assert_array_equal(image == 0, before == 0)
    assert 0.001 < (image != before).mean() < 0.2
    assert {row.region for row in found.table} == {"slide", "left", "right"}
    counts = {(r.region, r.class_id): r.pixels for r in found.table}
    assert counts["slide", 4] == (image == 4).sum()
    assert counts["left", 2] == (image[30:380, 20:300] == 2).sum()
    with (tmp_path / "a.csv").open() as file:
        assert {row["class"] for row in csv.DictReader(file)} == {*(c.name for c in CLASSES), "unsure", "not predicted"}
    assert len(json.loads((tmp_path / "a.geojson").read_text())["features"]) == found.objects > 5
    group = zarr.open_group(result / "labels" / "cleaned", mode="r")
    assert group.attrs["napari_sparseseg"]["clean_up"] == ALL.to_json()
    assert group.attrs["image-label"]["properties"][-1]["name"] == "unsure"
    assert group["1"].shape == (200, 280)
    assert zarr.open_group(result / "labels", mode="r").attrs["labels"] == ["classes", "cleaned"]
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


@pytest.mark.parametrize("block", [128, 300])
def test_the_size_of_the_blocks_changes_nothing(result, block, monkeypatch):
    clean_up(result, ALL)
    monkeypatch.setattr(cleaning, "SHARD", block)
    clean_up(result, ALL, name="other")
    np.testing.assert_array_equal(cleaned(result, "other"), cleaned(result))


def test_shards_in_several_threads_make_what_the_image_in_memory_does(tmp_path):
    path, shape = tmp_path / "four.ome.zarr", (2200, 2300)
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 3, (22, 23)), np.ones((100, 100), np.uint8)).astype(np.uint8)
    y, x = np.mgrid[-12:13, -12:13]
    for cy, cx in rng.integers(1980, 2110, (30, 2)):  # where the four shards meet
        labels[cy - 12 : cy + 13, cx - 12 : cx + 13][y**2 + x**2 <= rng.integers(16, 144)] = 3
    labels[rng.random(shape) < 0.01] = 1
    create_store(
        path,
        StoreLayout(shape, Placement(Frame((1.0, 1.0)), (0.5, 0.5)), CLASSES),
        {"downsample": [1.0, 1.0], "mpp": [0.5, 0.5]},
    )
    store = PredictionStore(path)
    for shard in tiles(Box(0, 0, *shape), SHARD):
        store.write(shard, labels[shard.intersection(Box(0, 0, *shape)).slices()], None)
    settings = CleanUp(smooth_um=0.6, holes_um2=9, smallest_um2=5, separate=("nuclei",))
    Cleaner(store, settings, tmp_path / "work", workers=3).run(lambda done, total: None)
    np.testing.assert_array_equal(
        zarr.open_group(tmp_path / "work" / "image", mode="r")["0"][:],
        clean_image(labels, settings, CLASSES, (0.5, 0.5)),
    )


def test_an_interrupted_clean_up_goes_on_where_it_was(result, monkeypatch):
    clean_up(result, ALL, name="whole")
    monkeypatch.setattr(cleaning, "SHARD", 150)
    reached = [0.0]

    def stop_now_and_then(share):
        if share > reached[-1] + 0.25:
            reached.append(share)
            raise KeyboardInterrupt

    for _ in range(30):
        try:
            clean_up(result, ALL, progress=stop_now_and_then)
            break
        except KeyboardInterrupt:
            assert "cleaned" not in PredictionStore(result, "r").others
    else:
        raise AssertionError("it begins anew each time")
    np.testing.assert_array_equal(cleaned(result), cleaned(result, "whole"))


def test_unsure_pixels_are_those_whose_best_probability_is_lower(result):
    clean_up(result, CleanUp(unsure_below=0.9))
    slide, model = noisy_slide(), SmoothModel(**MODEL)
    labels, probabilities = predict_region(model, slide, Box(0, 0, *slide.shape), slide.frame(None))
    stored = PredictionStore(result, "r").probabilities[0][:]
    inside = level0(result) > 0
    np.testing.assert_array_equal(stored, np.rint(probabilities * 255) * inside)
    unsure = np.rint(probabilities.max(axis=0) * 255) < 0.9 * 255
    assert 0.001 < unsure[inside].mean() < 0.5
    np.testing.assert_array_equal(cleaned(result), np.where(unsure, 4, labels) * inside)


def test_unsure_objects_are_measured_with_the_probability_that_was_too_low(result):
    clean_up(result, CleanUp(unsure_below=0.9))
    with Session() as session:
        found = session.results.measure_objects(result / "labels" / "cleaned", min_area_um2=0)
    means = found.numbers["probability_mean"]
    unsure = np.array([name == "unsure" for name in found.class_names])
    assert 0 < unsure.sum() < len(unsure)
    assert means[unsure].max() < 0.9 <= means[~unsure].min() + 0.002  # stored in steps of 1/255
    assert found.numbers["area"].sum() == pytest.approx((cleaned(result) > 0).sum() * 0.25)


def test_a_prediction_can_end_with_a_clean_up_and_its_tables_are_of_that(tmp_path):
    run_prediction(noisy_slide(), SmoothModel(**MODEL), tmp_path / "raw.ome.zarr", probabilities=True)
    apart = clean_up(tmp_path / "raw.ome.zarr", ALL)
    fractions = []
    result = run_prediction(
        noisy_slide(), SmoothModel(**MODEL), tmp_path / "a.ome.zarr", clean_up=ALL, csv=tmp_path / "a.csv",
        progress=lambda p: fractions.append(p.fraction),
    )  # fmt: skip
    assert result.table[0].pixels == apart.table[0].pixels
    assert {r.class_name for r in result.table} >= {"unsure"}
    np.testing.assert_array_equal(cleaned(tmp_path / "a.ome.zarr"), cleaned(tmp_path / "raw.ome.zarr"))
    assert result.to_json()["cleaned"].endswith("cleaned")
    assert fractions[-1] == 1
    again = SmoothModel(**MODEL)
    run_prediction(noisy_slide(), again, tmp_path / "a.ome.zarr", clean_up=ALL, csv=tmp_path / "a.csv", resume=True)
    assert not again.calls


def test_probabilities_are_an_image_with_named_channels_in_both_formats(tmp_path, predicted):
    run_prediction(noisy_slide(), SmoothModel(), tmp_path / "a.ome.tif", probabilities=True)
    run_prediction(noisy_slide(), SmoothModel(), tmp_path / "b.ome.zarr", probabilities=True, ome_zarr="0.5")
    stored = PredictionStore(tmp_path / "b.ome.zarr", "r")
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tiff:
        assert tiff.series[1].axes == "CYX"
        np.testing.assert_array_equal(tiff.series[1].asarray(), stored.probabilities[0][:])
        np.testing.assert_array_equal(tiff.series[1].levels[1].asarray(), stored.probabilities[1][:])
        assert 'Channel ID="Channel:1:0" SamplesPerPixel="1" Name="glass"' in tiff.ome_metadata
    attributes = zarr.open_group(predicted / "probabilities", mode="r").attrs
    assert [c["label"] for c in attributes["omero"]["channels"]] == [c.name for c in CLASSES]
    assert [a["name"] for a in attributes["multiscales"][0]["axes"]] == ["c", "y", "x"]
    assert attributes["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"] == [1, 0.5, 0.5]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no clean-up is asked for"),
        (["--unsure-below", "1.5"], "unsure is 1.5; give 0 to 1"),
        (["--separate", "glands"], "no class 'glands' to separate; there are: glass, stroma, nuclei"),
        (["--smallest-um2", "9", "--name", "classes"], "cannot be the name"),
        (["--smallest-um2", "9", "--csv", "nowhere/a.csv"], "no folder nowhere"),
        (["--smallest-um2", "9", "--regions", "missing.geojson"], "no file missing.geojson"),
    ],
)
def test_a_mistake_exits_with_2_and_one_line_and_leaves_what_was_there(predicted, capsys, arguments, words):
    before = sorted(str(p) for p in predicted.parent.rglob("*"))
    assert main(["clean", str(predicted), *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert "\n" not in error
    assert sorted(str(p) for p in predicted.parent.rglob("*")) == before


def test_without_probabilities_nothing_can_be_unsure_afterwards(tmp_path):
    run_prediction(noisy_slide(), SmoothModel(), tmp_path / "a.ome.zarr")
    with pytest.raises(PredictionError, match="has no probabilities"):
        clean_up(tmp_path / "a.ome.zarr", CleanUp(unsure_below=0.5))
    clean_up(tmp_path / "a.ome.zarr", CleanUp(smooth_um=2))
    with pytest.raises(PredictionError, match="exists"):
        clean_up(tmp_path / "a.ome.zarr", CleanUp(smooth_um=3))
    clean_up(tmp_path / "a.ome.zarr", CleanUp(smooth_um=3), overwrite=True)


def test_the_command_cleans_and_says_the_areas(result, capsys):
    assert main(["clean", str(result), "--smallest-um2", "50", "--holes-um2", "50", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["output"] == str(result / "labels" / "cleaned")
    assert {row["region"] for row in answer["table"]} == {"slide", "left", "right"}
