"""Whole-slide runs: frames, resuming, workers, refusals; with a real slide and a small exact segmenter."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile

from napari_sparseseg.config import make_classes
from napari_sparseseg.errors import PredictionError
from napari_sparseseg.geometry import Box
from napari_sparseseg.io.ome_zarr import PredictionStore
from napari_sparseseg.learning.model_file import ModelMetadata
from napari_sparseseg.prediction.slide import PredictOptions, PredictSettings, run_prediction
from napari_sparseseg.prediction.slide.executors import default_workers
from napari_sparseseg.prediction.slide.shards import default_tile
from napari_sparseseg.prediction.slide.workspace import Journal
from napari_sparseseg.prediction.tiles import PredictionStopped, predict_region
from napari_sparseseg.slides import ArraySlide, open_slide
from tests.helpers.smooth_model import CLASSES, SmoothModel, level0, patches_slide, write_tall_slide

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def tall_slide(tmp_path_factory) -> Path:
    """A narrow slide file of four shards, so that runs can be interrupted between them."""
    return write_tall_slide(tmp_path_factory.mktemp("tall") / "tall.tif")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_label_image_is_the_slides_frame_at_the_asked_resolution(cmu_svs, tmp_path):
    model = SmoothModel()
    with open_slide(cmu_svs) as slide:
        result = run_prediction(slide, model, tmp_path / "a.ome.zarr", mpp=1.3)
        frame = slide.frame(1.3)
        assert result.shape == frame.shape(slide.shape) == (1139, 853)
        expected, _ = predict_region(model, slide, Box(0, 0, *result.shape), frame, tile=4096)
        image, _ = slide.thumbnail(1024)
    labels = level0(tmp_path / "a.ome.zarr")
    np.testing.assert_array_equal(labels, expected)
    assert result.mpp == pytest.approx((1.3, 1.3))
    # The right way round and in place: bright where the slide is bright.
    rows = (np.arange(image.shape[0]) + 0.5) * labels.shape[0] / image.shape[0]
    columns = (np.arange(image.shape[1]) + 0.5) * labels.shape[1] / image.shape[1]
    glass = labels[np.ix_(rows.astype(int), columns.astype(int))] == 1
    assert ((image.mean(axis=-1) > 225) == glass).mean() > 0.9


def test_known_blocks_come_out_as_drawn(tmp_path):
    slide = patches_slide()
    result = run_prediction(slide, SmoothModel(), tmp_path / "a.ome.zarr")
    labels = level0(tmp_path / "a.ome.zarr")
    inner = np.kron(np.ones((9, 13), bool), np.pad(np.ones((60, 60), bool), 20))
    np.testing.assert_array_equal(labels[inner], slide.truth[inner])
    by_class = {row.class_id: row for row in result.table}
    assert {k: row.pixels for k, row in by_class.items()} == {k: int((labels == k).sum()) for k in (1, 2, 3)}
    assert sum(row.mm2 for row in result.table) == pytest.approx(900 * 1300 * 0.25e-6)
    assert sum(row.percent for row in result.table) == pytest.approx(100, abs=1e-3)


@pytest.mark.parametrize(("mpp", "step"), [(2.0, 4), (1.0, 2)])
def test_a_coarser_label_image_is_made_by_the_model_at_its_own_resolution(tmp_path, mpp, step):
    """Pixels of 100 / step a side: the model, which was trained at 0.5 um per px, is right about all of them."""
    slide = patches_slide((1000, 1200))
    result = run_prediction(slide, SmoothModel(mpp=0.5, radius=0), tmp_path / "a.ome.zarr", mpp=mpp)
    assert result.shape == (1000 // step, 1200 // step)
    labels = level0(tmp_path / "a.ome.zarr")
    np.testing.assert_array_equal(labels, slide.truth[step // 2 :: step, step // 2 :: step])
    again = run_prediction(slide, SmoothModel(mpp=0.5, radius=0), tmp_path / "b.ome.zarr", mpp=mpp, tile=64, workers=2)
    assert again.shape == result.shape
    np.testing.assert_array_equal(level0(tmp_path / "b.ome.zarr"), labels)


def test_both_formats_hold_the_same_image_and_scale(tmp_path):
    slide = patches_slide()
    run_prediction(slide, SmoothModel(), tmp_path / "a.ome.zarr", mpp=0.8, uncertainty=True)
    run_prediction(slide, SmoothModel(), tmp_path / "a.ome.tif", mpp=0.8, uncertainty=True)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tiff:
        np.testing.assert_array_equal(tiff.series[0].asarray(), level0(tmp_path / "a.ome.zarr"))
        stored = PredictionStore(tmp_path / "a.ome.zarr", "r")
        np.testing.assert_array_equal(tiff.series[1].asarray(), stored.uncertainty[0][:])
        assert 'PhysicalSizeX="0.8' in tiff.ome_metadata
        assert stored.uncertainty[0][:].std() > 10


def test_the_result_does_not_depend_on_tiles_or_workers(cmu_svs, tmp_path):
    with open_slide(cmu_svs) as slide:
        for name, workers, tile in (("a", 1, 700), ("b", 3, 700), ("c", 2, 2048)):
            run_prediction(
                slide, SmoothModel(), tmp_path / f"{name}.ome.zarr", workers=workers, tile=tile, uncertainty=True
            )
    assert files(tmp_path / "a.ome.zarr") == files(tmp_path / "b.ome.zarr")
    np.testing.assert_array_equal(level0(tmp_path / "a.ome.zarr"), level0(tmp_path / "c.ome.zarr"))


def test_glass_is_skipped_unless_asked_for_and_has_the_label_of_a_class_so_called(cmu_svs, tmp_path):
    model = SmoothModel(classes=make_classes("abc"))
    with open_slide(cmu_svs) as slide:
        run_prediction(slide, model, tmp_path / "all.ome.zarr", tile=256, tissue_only=False)
        everywhere = model.calls
        result = run_prediction(slide, model, tmp_path / "tissue.ome.zarr", tile=256)
        assert model.calls - everywhere < everywhere
        named = SmoothModel(classes=make_classes(["a", "b", "Glass"]))
        other = run_prediction(slide, named, tmp_path / "named.ome.zarr", tile=256)
    whole, tissue = level0(tmp_path / "all.ome.zarr"), level0(tmp_path / "tissue.ome.zarr")
    assert (whole > 0).all()
    np.testing.assert_array_equal(tissue[tissue > 0], whole[tissue > 0])
    assert (tissue > 0).mean() == pytest.approx(result.tissue_share, abs=0.01)
    assert (whole[tissue == 0] == 1).mean() > 0.95
    assert [row.class_name for row in result.table if row.class_id == 0] == ["not predicted"]
    np.testing.assert_array_equal(level0(tmp_path / "named.ome.zarr"), np.where(tissue > 0, tissue, 3))
    assert all(row.class_id for row in other.table)


def test_flips_are_undone(tmp_path):
    slide = patches_slide()
    run_prediction(slide, SmoothModel(), tmp_path / "a.ome.zarr")
    run_prediction(slide, SmoothModel(), tmp_path / "b.ome.zarr", flips=True)
    np.testing.assert_array_equal(level0(tmp_path / "a.ome.zarr"), level0(tmp_path / "b.ome.zarr"))


def test_objects_and_table_agree_with_the_labels(tmp_path):
    slide = patches_slide()
    region = shapely.box(100, 200, 500, 600)
    result = run_prediction(
        slide, SmoothModel(), tmp_path / "a.ome.zarr", geojson=tmp_path / "a.geojson", csv=tmp_path / "a.csv",
        min_area_um2=0, regions={"part": region}, beyond_regions=True,
    )  # fmt: skip
    labels = level0(tmp_path / "a.ome.zarr")
    with (tmp_path / "a.csv").open() as file:
        rows = {(r["region"], r["class"]): r for r in csv.DictReader(file)}
    for c in CLASSES:
        assert int(rows["part", c.name]["pixels"]) == (labels[200:600, 100:500] == c.id).sum()
        assert float(rows["slide", c.name]["mm2"]) == pytest.approx((labels == c.id).sum() * 0.25e-6)
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert len(features) == result.objects == sum(int(r["objects"]) for k, r in rows.items() if k[0] == "slide")
    y, x = np.mgrid[:900, :1300] + 0.5
    filled = np.zeros((900, 1300), int)
    ids = {c.name: c.id for c in CLASSES}
    for feature in features:
        polygon = shapely.from_geojson(json.dumps(feature["geometry"]))
        filled[shapely.contains_xy(polygon, x, y)] = ids[feature["properties"]["classification"]["name"]]
    np.testing.assert_array_equal(filled, labels)


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from napari_sparseseg.prediction.slide import PredictOptions, PredictSettings, run_prediction
from napari_sparseseg.slides import open_slide
from tests.helpers.smooth_model import SmoothModel
with open_slide(sys.argv[2]) as slide:
    out = Path(sys.argv[3])
    model = SmoothModel(delay=float(sys.argv[4]))
    run_prediction(slide, model, out, geojson=out.with_suffix(".json"), tile=256, workers=2, resume=True)
"""


def wait_for_shard(journal: Path, process: subprocess.Popen) -> int:
    for _ in range(2000):
        done = journal.read_text().count('"shard"') if journal.exists() else 0
        if done or process.poll() is not None:
            return done
        time.sleep(0.02)
    raise AssertionError("no shard was stored in 40 s")


def test_a_killed_run_goes_on_and_ends_the_same(tall_slide, tmp_path):
    out = tmp_path / "a.ome.zarr"
    process = subprocess.Popen([sys.executable, "-c", RUN, str(ROOT), str(tall_slide), str(out), "0.1"], cwd=ROOT)
    journal = tmp_path / "a.ome.zarr.partial" / "journal.jsonl"
    wait_for_shard(journal, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    done = len(Journal(journal).done)
    assert 1 <= done < 4
    with open_slide(tall_slide) as slide:
        model = SmoothModel()
        result = run_prediction(slide, model, out, geojson=out.with_suffix(".json"), tile=256, workers=2, resume=True)
        assert result.shards_resumed == done
        again = tmp_path / "b.ome.zarr"
        fresh = SmoothModel()
        run_prediction(slide, fresh, again, geojson=again.with_suffix(".json"), tile=256)
    assert 0 < model.calls < fresh.calls
    assert files(out) == files(again)
    assert out.with_suffix(".json").read_bytes() == again.with_suffix(".json").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ome.json", "a.ome.zarr", "b.ome.json", "b.ome.zarr"]


def stopped_run(slide, out, **options) -> None:
    """Stop a run as soon as it has stored a shard."""
    stop = threading.Event()

    def watch(_):
        if Journal(out.with_name(out.name + ".partial") / "journal.jsonl").done:
            stop.set()

    with pytest.raises(PredictionStopped):
        run_prediction(slide, SmoothModel(delay=0.03), out, stop=stop, progress=watch, tile=256, **options)


def test_stop_keeps_what_is_done(tall_slide, tmp_path):
    out = tmp_path / "a.ome.zarr"
    with open_slide(tall_slide) as slide:
        stopped_run(slide, out)
        assert not out.exists()
        result = run_prediction(slide, SmoothModel(), out, tile=256, resume=True)
        assert 1 <= result.shards_resumed < result.shards == 4
        run_prediction(slide, SmoothModel(), tmp_path / "b.ome.zarr", tile=256)
    assert files(out) == files(tmp_path / "b.ome.zarr")


@pytest.mark.parametrize(
    ("colours", "options"),
    [(((200, 240, 240), (215, 150, 190), (110, 70, 140)), {}), (None, {"mpp": 0.45}), (None, {"uncertainty": True})],
)
def test_another_model_or_setting_starts_afresh(tall_slide, tmp_path, colours, options):
    out = tmp_path / "a.ome.zarr"
    other = SmoothModel(colours=colours) if colours else SmoothModel()
    with open_slide(tall_slide) as slide:
        stopped_run(slide, out)
        result = run_prediction(slide, other, out, tile=256, resume=True, **options)
    assert result.shards_resumed == 0
    assert any("discarded" in w for w in result.warnings)


def test_a_torn_journal_line_costs_its_shard_only(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.begin({"model": "x"})
    journal.shard_done(3)
    with path.open("ab") as file:
        file.write(b'{"shard": 1')
    read = Journal(path)
    assert read.done == {3}
    read.shard_done(4)
    assert Journal(path).done == {3, 4}
    assert Journal(path).header == {"model": "x"}


def test_a_finished_output_is_not_made_again_but_missing_tables_are(tmp_path):
    slide, model = patches_slide(), SmoothModel()
    for name in ("a.ome.zarr", "a.ome.tif"):
        first = run_prediction(slide, model, tmp_path / name, geojson=tmp_path / "1.geojson", overwrite=True)
        calls = model.calls
        second = run_prediction(
            slide,
            model,
            tmp_path / name,
            geojson=tmp_path / f"{name}.geojson",
            csv=tmp_path / f"{name}.csv",
            resume=True,
        )
        assert model.calls == calls
        assert second.shards_resumed == first.shards
        assert second.table == first.table
        assert (tmp_path / f"{name}.geojson").read_bytes() == (tmp_path / "1.geojson").read_bytes()
        assert (tmp_path / f"{name}.csv").exists()
        assert not (tmp_path / f"{name}.partial").exists()


def test_nothing_is_overwritten_unasked(tmp_path):
    slide, model = patches_slide((200, 200)), SmoothModel()
    out, table = tmp_path / "a.ome.zarr", tmp_path / "a.csv"
    run_prediction(slide, model, out)
    table.write_text("mine")
    before = files(out)
    with pytest.raises(PredictionError, match=r"a\.ome\.zarr exists"):
        run_prediction(slide, model, out)
    with pytest.raises(PredictionError, match=r"a\.csv exists"):
        run_prediction(slide, model, tmp_path / "b.ome.zarr", csv=table)
    with pytest.raises(PredictionError, match=r"a\.ome\.zarr exists"):
        run_prediction(slide, SmoothModel(radius=1), out, resume=True)
    assert table.read_text() == "mine"
    assert files(out) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "a.ome.zarr"]
    run_prediction(slide, SmoothModel(radius=1), out, csv=table, overwrite=True)
    assert table.read_text() != "mine"
    assert files(out) != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "a.ome.zarr"]


def test_two_processes_cannot_write_the_same_output(tall_slide, tmp_path):
    out = tmp_path / "a.ome.zarr"
    process = subprocess.Popen([sys.executable, "-c", RUN, str(ROOT), str(tall_slide), str(out), "0.2"], cwd=ROOT)
    try:
        wait_for_shard(tmp_path / "a.ome.zarr.partial" / "journal.jsonl", process)
        with open_slide(tall_slide) as slide, pytest.raises(PredictionError, match="another process"):
            run_prediction(slide, SmoothModel(), out)
    finally:
        process.kill()
        process.wait()


def test_progress_rises_to_one_and_counts_every_pixel(tmp_path):
    seen = []
    run_prediction(patches_slide((600, 600)), SmoothModel(), tmp_path / "a.ome.zarr", progress=seen.append, tile=128)
    fractions = [p.fraction for p in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert {p.stage for p in seen} == {"predict", "pyramid", "measure", "write"}
    predicted = [p for p in seen if p.stage == "predict"][-1]
    assert predicted.done == predicted.total == 360_000
    assert predicted.seconds_left == 0


def test_settings_override_options_and_have_the_same_fields(tmp_path):
    assert set(PredictSettings.__annotations__) == {f.name for f in fields(PredictOptions)}
    options = PredictOptions(mpp=1.0, min_area_um2=5)
    result = run_prediction(patches_slide((200, 200)), SmoothModel(), tmp_path / "a.ome.zarr", options, mpp=2.0)
    assert result.mpp == (2.0, 2.0)
    assert options.mpp == 1.0


def test_a_failed_prediction_leaves_a_line_in_the_log(tmp_path, caplog):
    class Failing(SmoothModel):
        def probabilities(self, pixels, *, origin=(0, 0)):
            raise PredictionError("the device is out of memory")

    with pytest.raises(PredictionError):
        run_prediction(patches_slide((200, 200)), Failing(), tmp_path / "a.ome.zarr")
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert "patches" in record.getMessage()
    assert "out of memory" in record.getMessage()


def test_an_error_in_a_worker_reaches_the_caller_and_leaves_a_resumable_run(tmp_path):
    class Failing(SmoothModel):
        def probabilities(self, pixels, *, origin=(0, 0)):
            if self.calls == 3:
                raise PredictionError("the device is out of memory")
            return super().probabilities(pixels, origin=origin)

    slide, out = patches_slide(), tmp_path / "a.ome.zarr"
    with pytest.raises(PredictionError, match="out of memory"):
        run_prediction(slide, Failing(), out, tile=256, workers=2)
    assert not out.exists()
    run_prediction(slide, SmoothModel(), out, tile=256, resume=True)
    assert (level0(out) > 0).all()


def test_an_error_in_the_progress_callback_ends_the_run(tmp_path):
    def broken(_):
        raise KeyError("the panel is gone")

    class Slow(SmoothModel):
        def probabilities(self, pixels, *, origin=(0, 0)):
            time.sleep(0.01)  # 88 tiles take longer than a report is held back
            return super().probabilities(pixels, origin=origin)

    model = Slow()
    with pytest.raises(KeyError, match="panel"):
        run_prediction(patches_slide(), model, tmp_path / "a.ome.zarr", progress=broken, tile=128)
    assert model.calls < 88
    assert not (tmp_path / "a.ome.zarr").exists()


def test_refusals_say_what_to_do(tmp_path):
    slide, model = patches_slide((100, 100)), SmoothModel()
    cases = [
        (tmp_path / "a.png", {}, "chooses the format"),
        (tmp_path / "no" / "a.ome.zarr", {}, "no folder"),
        (tmp_path / "a.ome.zarr", {"workers": 0}, "1 or more"),
        (tmp_path / "a.ome.zarr", {"min_area_um2": -1}, "minimum area"),
        (tmp_path / "a.ome.zarr", {"ome_zarr": "0.6"}, "0.4, 0.5"),
    ]
    for out, options, message in cases:
        with pytest.raises(PredictionError, match=message):
            run_prediction(slide, model, out, **options)
    unknown = ArraySlide(np.zeros((50, 50, 3), np.uint8))
    with pytest.raises(PredictionError, match="has no mpp"):
        run_prediction(unknown, model, tmp_path / "a.ome.zarr", mpp=2.0)
    four = ArraySlide(np.zeros((50, 50, 4), np.uint16))
    with pytest.raises(PredictionError, match="3 channels"):
        run_prediction(four, model, tmp_path / "a.ome.zarr")
    assert list(tmp_path.iterdir()) == []


def test_a_slide_without_mpp_is_predicted_at_level_0_with_a_warning(tmp_path):
    slide = ArraySlide(np.full((70, 90, 3), 240, np.uint8))
    result = run_prediction(slide, SmoothModel(mpp=2.0), tmp_path / "a.ome.zarr", csv=tmp_path / "a.csv")
    assert result.shape == (70, 90)
    assert result.mpp is None
    assert any("level 0" in w for w in result.warnings)
    assert result.table[0].mm2 is None
    json.dumps(result.to_json())


def test_class_ids_with_gaps_reach_the_file(tmp_path):
    model = SmoothModel()
    classes = tuple(type(c)(i, c.name, c.colour) for c, i in zip(CLASSES, (3, 77, 255), strict=True))
    model.metadata = ModelMetadata(classes=classes, mpp=None, encoder="smooth")
    slide = patches_slide((300, 300))
    run_prediction(slide, model, tmp_path / "a.ome.zarr")
    assert set(np.unique(level0(tmp_path / "a.ome.zarr"))) <= {3, 77, 255}
    model.metadata = ModelMetadata(classes=make_classes(["x", "y", "z"]), mpp=None, encoder="smooth")
    with pytest.raises(PredictionError, match="exists"):
        run_prediction(slide, model, tmp_path / "a.ome.zarr", resume=True)


@pytest.mark.parametrize(
    ("device", "cores", "threads", "memory_gb", "workers"),
    [
        ("cpu", 2, 1, 5, 2),  # cores
        ("cpu", 16, 4, 25, 4),  # cores over torch's threads
        ("cpu", 8, 1, 3.2, 3),  # memory
        ("cpu", 8, 1, 0.3, 1),  # never none
        ("cuda:0", 16, 1, 100, 1),
        ("mps", 8, 1, 100, 1),
    ],
)
def test_workers_by_default(device, cores, threads, memory_gb, workers):
    assert default_workers(device, cores, threads, memory_gb * 1e9) == workers


def test_the_tile_fits_halo_and_shard():
    for halo, multiple in ((12, 4), (130, 16), (176, 16), (400, 32)):
        model = SmoothModel(multiple)
        model.halo = halo
        tile = default_tile(model)
        assert tile % multiple == 0
        assert tile >= 256
        assert tile + 2 * halo <= 1088
