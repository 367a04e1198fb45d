"""Whole-slide runs with a real network, by threads and by the processes of a cluster."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

import dask
import distributed  # noqa: F401 - its defaults have to be there before any is changed
import numpy as np
import pytest
import torch
import zarr

from napari_sparseseg.errors import PredictionError
from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.io.ome_zarr import PredictionStore
from napari_sparseseg.prediction.slide import run_prediction
from napari_sparseseg.prediction.slide.shards import ShardTask, TilePlan, close_task, run_shard
from napari_sparseseg.prediction.slide.workspace import Journal
from napari_sparseseg.prediction.tiles import PredictionStopped, predict_region
from napari_sparseseg.prediction.tissue import detect_tissue
from napari_sparseseg.slides import open_slide
from tests.helpers.networks import network
from tests.helpers.smooth_model import SmoothModel, write_tall_slide

if TYPE_CHECKING:
    from pathlib import Path

    from napari_sparseseg.learning.model import Model


@pytest.fixture(scope="module")
def model() -> Model:
    return network()


@pytest.fixture(scope="module")
def tall_slide(tmp_path_factory) -> Path:
    return write_tall_slide(tmp_path_factory.mktemp("tall") / "tall.tif")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_seams_of_a_network_do_not_show(cmu_svs, model):
    with open_slide(cmu_svs) as slide:
        region = Box(801, 707, 330, 350)
        whole_labels, whole = predict_region(model, slide, region, Frame((2.0, 2.0)), tile=2048)
        tiled_labels, tiled = predict_region(model, slide, region, Frame((2.0, 2.0)), tile=176)
    # Sums of floats in another order: the same to the last digits, and the same class but for ties.
    assert np.abs(whole - tiled).max() < 1e-4
    assert (whole_labels != tiled_labels).mean() < 1e-4


def test_shards_of_a_worker_process_equal_those_of_threads(tall_slide, model, tmp_path):
    with open_slide(tall_slide) as slide:
        for name, workers in (("a", 1), ("b", 2)):
            run_prediction(slide, model, tmp_path / f"{name}.ome.zarr", mpp=1.0, tile=512, workers=workers)
        assert files(tmp_path / "a.ome.zarr") == files(tmp_path / "b.ome.zarr")
        model.save(tmp_path / "m.safetensors")
        detect_tissue(slide).save(tmp_path / "tissue.npz")
        store = PredictionStore(tmp_path / "b.ome.zarr")
        expected = store.labels[0][:]
        store.labels[0][:] = 0
        task = ShardTask(
            slide=str(tall_slide), fingerprint=slide.fingerprint, mpp=slide.mpp, model=str(tmp_path / "m.safetensors"),
            store=str(store.path), plan=TilePlan(Frame((2.0, 2.0)), Frame((2.0, 2.0)), 512),
            tissue=str(tmp_path / "tissue.npz"),
        )  # fmt: skip
    assert [run_shard(task, i) for i in (1, 0)] == [1, 0]
    close_task()
    np.testing.assert_array_equal(store.labels[0][:], expected)


def test_a_worker_says_in_words_what_is_wrong(tmp_path, model):
    model.save(tmp_path / "m.safetensors")
    task = ShardTask(
        slide=str(tmp_path / "gone.svs"), fingerprint="", mpp=None, model=str(tmp_path / "m.safetensors"),
        store=str(tmp_path), plan=TilePlan(Frame(), Frame(), 512), tissue=None,
    )  # fmt: skip
    with pytest.raises(PredictionError, match=r"gone\.svs"):
        run_shard(task, 0)


def test_a_scheduler_that_does_not_answer_is_named(tall_slide, model, tmp_path):
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        open_slide(tall_slide) as slide,
        pytest.raises(PredictionError, match=r"127\.0\.0\.1:9"),
    ):
        run_prediction(slide, model, tmp_path / "a.ome.zarr", scheduler="tcp://127.0.0.1:9")


@pytest.mark.slow
def test_a_cluster_of_two_processes_one_of_them_killed(tall_slide, model, tmp_path):
    from distributed import LocalCluster

    out = tmp_path / "a.ome.zarr"
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        open_slide(tall_slide) as slide,
    ):
        pids = [worker.pid for worker in cluster.workers.values()]
        killed = threading.Event()

        def kill_one(_) -> None:
            if not killed.is_set() and Journal(tmp_path / "a.ome.zarr.partial" / "journal.jsonl").done:
                os.kill(pids[0], signal.SIGKILL)
                killed.set()

        result = run_prediction(
            slide, model, out, tile=512, scheduler=cluster.scheduler_address, progress=kill_one, uncertainty=True
        )
        assert killed.is_set()
        assert result.shards == 4
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as the workers: with another number torch sums in another order
        try:
            run_prediction(slide, model, tmp_path / "b.ome.zarr", tile=512, uncertainty=True)
        finally:
            torch.set_num_threads(threads)
    assert files(out) == files(tmp_path / "b.ome.zarr")


def sparse(path, side):
    """An OME-Zarr pyramid of which no chunk is stored: as wide as one likes, and evenly grey."""
    group = zarr.open_group(path, mode="w", zarr_format=2)
    levels = range(0, 9, 2)
    for k in levels:
        group.create_array(str(k), shape=(3, side >> k, side >> k), chunks=(3, 512, 512), dtype="u1", fill_value=180)
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", "unit": "micrometer"} for n in "yx")]
    scale = [{"type": "scale", "scale": [1, 0.5 * 2**k, 0.5 * 2**k]} for k in levels]
    datasets = [{"path": str(k), "coordinateTransformations": [s]} for k, s in zip(levels, scale, strict=True)]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    return path


def test_a_run_starts_with_as_little_reading_on_a_slide_of_any_side(tmp_path, monkeypatch):
    before_first = []
    for side in (40_000, 200_000):
        stop, pixels = threading.Event(), []
        with open_slide(sparse(tmp_path / f"{side}.ome.zarr", side)) as slide:
            read = slide.read_region

            def counted(region, *args, read=read, pixels=pixels, stop=stop, **kwargs):
                if not stop.is_set():
                    pixels.append(Box(*region).area)
                return read(region, *args, **kwargs)

            monkeypatch.setattr(slide, "read_region", counted)
            with pytest.raises(PredictionStopped):
                run_prediction(
                    slide, SmoothModel(), tmp_path / f"{side}-out.ome.zarr", workers=1, stop=stop,
                    progress=lambda p, stop=stop: stop.set() if p.done else None,
                )  # fmt: skip
        before_first.append(sum(pixels))
    assert 0 < before_first[1] < 1.2 * before_first[0]
