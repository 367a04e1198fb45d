"""One run: from slide and model to files."""

from __future__ import annotations

import json
import logging
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_sparseseg.errors import PredictionError, SparseSegError
from napari_sparseseg.geometry import Box, Placement
from napari_sparseseg.io.measurements import Measurement
from napari_sparseseg.io.ome_tiff import label_bands, write_ome_tiff
from napari_sparseseg.io.ome_zarr import PredictionStore, StoreLayout
from napari_sparseseg.prediction.results.regions import RegionMask, find_regions
from napari_sparseseg.prediction.slide.cleaning import Finish
from napari_sparseseg.prediction.slide.executors import run_in_threads, run_on_cluster, workers_here
from napari_sparseseg.prediction.slide.options import PredictOptions, Progress, SlideResult, Stage
from napari_sparseseg.prediction.slide.shards import (
    READ_CACHE,
    Control,
    ShardPredictor,
    ShardTask,
    TilePlan,
    fitting_tile,
    shard_grid,
)
from napari_sparseseg.prediction.slide.workspace import Workspace
from napari_sparseseg.prediction.stain import checked
from napari_sparseseg.prediction.tiles import PredictionStopped, model_frame
from napari_sparseseg.prediction.tissue import TissueMask, where_to_predict
from napari_sparseseg.slides.cache import TILES

if TYPE_CHECKING:
    import os
    import threading
    from collections.abc import Callable, Iterable, Iterator
    from typing import Unpack

    import numpy as np

    from napari_sparseseg.io.measurements import AreaRow
    from napari_sparseseg.learning.model_file import ModelMetadata
    from napari_sparseseg.prediction.slide.options import PredictSettings
    from napari_sparseseg.prediction.tiles import SavableSegmenter
    from napari_sparseseg.slides import Slide

    OnBlock = Callable[[int, int], None]

_REPORT_S = 0.1
logger = logging.getLogger(__name__)


def run_prediction(
    slide: Slide,
    model: SavableSegmenter,
    out: str | os.PathLike[str],
    options: PredictOptions | None = None,
    *,
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
    **settings: Unpack[PredictSettings],
) -> SlideResult:
    """Predict a whole slide into ``OUT.ome.zarr`` or ``OUT.ome.tif``.

    The label image is the slide's level-0 frame scaled to the prediction resolution, uint8 class ids. It is made in
    shards; a run that was killed or stopped leaves ``OUT.partial`` and can be resumed. The result does not depend on
    the number of workers. Memory does not grow with the slide.

    Parameters
    ----------
    slide
        An open slide.
    model
        From `learning.load_model` or a session.
    out
        File or folder to make; its suffix chooses the format.
    options
        How to predict; None: the defaults.
    progress
        Called on this thread, at most ten times a second.
    stop
        Set it from another thread to end the run after the tile in progress.
    **settings
        Fields of `options` to override.

    Raises
    ------
    PredictionStopped
        When `stop` was set; finished shards are saved for `resume`.
    PredictionError
        For an output that exists, a slide that does not fit the model, a failed worker, a full disk.
    SlideError
        Where the slide cannot be read.
    """
    logger.info("predicting %s into %s", slide.path, out)
    chosen = replace(options or PredictOptions(), **settings)
    if chosen.clean_up is not None:
        return _then_clean(slide, model, Path(out), chosen, progress, stop)
    try:
        run = SlideRun(slide, model, chosen, Reporter(progress, Control(stop)))
        with Workspace(Path(out), chosen.tables) as files:
            result = run.execute(files)
    except PredictionStopped:
        logger.info("prediction of %s was stopped", slide.path)
        raise
    except OSError as error:
        logger.exception("prediction of %s failed", slide.path)
        raise PredictionError(f"cannot write {out}: {error}. Fix this and resume; finished tiles are saved.") from error
    except SparseSegError as error:
        logger.error("prediction of %s failed: %s", slide.path, error)
        raise
    logger.info("predicted %s in %s s", slide.path, result.seconds)
    return result


def _then_clean(
    slide: Slide,
    model: SavableSegmenter,
    out: Path,
    options: PredictOptions,
    progress: Callable[[Progress], None] | None,
    stop: threading.Event | None,
) -> SlideResult:
    """Predict, then clean up what was predicted; see `run_prediction`."""
    finish = Finish(out, options, model.metadata.classes)
    result = run_prediction(slide, model, out, finish.raw, progress=progress, stop=stop)
    return finish(result, progress, stop)


class Reporter:
    """Times the stages of a run and passes its progress on, at most ten reports a second and the last of each stage.

    Parameters
    ----------
    progress
        Gets the reports.
    control
        Ends the run from inside a stage.
    """

    def __init__(self, progress: Callable[[Progress], None] | None, control: Control) -> None:
        self.control = control
        self.seconds: dict[str, float] = {}
        self.speed = 0.0
        """Megapixels per second of the prediction."""
        self._progress = progress
        self._stage: Stage = "predict"
        self._start = self._last = time.monotonic()

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[OnBlock]:
        """Time a stage; gives the function that reports (done, total) blocks of it."""
        self.control.check()
        self._stage, self._start = stage, time.monotonic()
        yield self._blocks
        self.seconds[stage] = time.monotonic() - self._start

    def pixels(self, done: int, todo: int, whole: int) -> None:
        """Report predicted pixels: `done` of the `todo` pixels of this run, of `whole` in all."""
        seconds = time.monotonic() - self._start
        speed = done / seconds if seconds > 0 else 0.0
        left = (todo - done) / speed if speed > 0 else None
        self._send(Progress("predict", whole - todo + done, whole, seconds, speed / 1e6, left))

    def end(self) -> None:
        """Report that the run is complete."""
        self._send(Progress("write", 1, 1, self.seconds.get("write", 0.0), self.speed, 0.0))

    def _blocks(self, done: int, total: int) -> None:
        self.control.check()
        seconds = time.monotonic() - self._start
        left = seconds / done * (total - done) if done else None
        self._send(Progress(self._stage, done, total, seconds, self.speed, left))

    def _send(self, progress: Progress) -> None:
        now = time.monotonic()
        if self._progress is not None and (progress.done >= progress.total or now - self._last >= _REPORT_S):
            self._last = now
            self._progress(progress)


class SlideRun:
    """One call of `run_prediction`: what is fixed by slide, model and options, and the stages in order."""

    def __init__(self, slide: Slide, model: SavableSegmenter, options: PredictOptions, reporter: Reporter) -> None:
        self._options = options
        self._slide, self._reporter = slide, reporter
        self._warnings: list[str] = []
        self._model, self._stain = model, None
        self._placement = Placement(
            slide.frame(_resolution(model.metadata, slide, options.mpp, self._warnings)), slide.mpp
        )
        frame = self._placement.frame
        self._shape = frame.shape(slide.shape)
        self._model, self._stain = checked(model, slide, adapt=options.adapt_stain)
        read_frame = model_frame(model.metadata, slide, frame)
        self._plan = TilePlan(
            frame,
            read_frame,
            options.tile or fitting_tile(model, frame, read_frame),
            options.flips,
            strips=options.tile is None and not options.flips,
        )
        self._shards = shard_grid(self._shape)
        self._tissue: TissueMask | None = None
        self._tissue_share: float | None = None
        self._regions = None if options.regions is None else find_regions(options.regions, slide)
        self._where = None if self._regions is None or options.beyond_regions else RegionMask(self._regions)

    def execute(self, files: Workspace) -> SlideResult:
        """Do what is still missing."""
        options, reporter = self._options, self._reporter
        self._slide.identity.check()
        header = self._header(files.save_model(self._model))
        if options.resume and not options.overwrite and files.is_complete(header):
            return self._complete_tables(files)
        files.check_free(overwrite=options.overwrite, resume=options.resume)
        resumed = self._prepare(files, header)
        self._predict(files)
        store = PredictionStore(files.store)
        with reporter.stage("pyramid") as on_block:
            store.build_pyramid(on_block)
        table, objects = self._measure(files, store.bands(), files.tables)
        with reporter.stage("write") as on_block:
            if files.is_tiff:
                write_ome_tiff(files.tiff, store, self._placement, self._model.metadata.classes, on_block)
        self._slide.identity.check()
        files.publish(files.tables)
        reporter.end()
        return self._result(files.out, table, objects, resumed)

    def _header(self, model_hash: str) -> dict[str, Any]:
        """What decides the answer: a run with the same header may continue with this one's shards."""
        options, plan = self._options, self._plan
        where = {} if self._where is None else {"regions": self._where.to_json()}
        return {
            "format": 1,
            "slide": self._slide.fingerprint,
            "model": model_hash,
            "shape": list(self._shape),
            "downsample": list(plan.frame.downsample),
            "read_downsample": list(plan.read_frame.downsample),
            "mpp": None if self._slide.mpp is None else list(self._slide.mpp),
            "tile": plan.side,
            "tissue_only": options.tissue_only,
            **({"tissue": rule} if (rule := self._model.metadata.rules.tissue) > 1 else {}),
            "uncertainty": options.uncertainty,
            "flips": options.flips,
            "ome_zarr": options.ome_zarr,
            **({"probabilities": True} if options.probabilities else {}),
            **({} if self._stain is None else {"stain": json.loads(json.dumps(asdict(self._stain)))}),
            **where,
        }

    def _prepare(self, files: Workspace, header: dict[str, Any]) -> int:
        """Continue an unfinished run with the same header, or start a new one; returns how many shards are done."""
        if self._options.resume and files.can_resume(header):
            return len(files.journal.done)
        if self._options.resume and files.journal.header is not None:
            self._warnings.append("an unfinished run with another slide, model or settings was discarded.")
        options, name = self._options, Path(self._slide.path).name
        classes = self._model.metadata.classes
        layout = StoreLayout(
            self._shape, self._placement, classes, options.uncertainty, options.probabilities, options.ome_zarr, name
        )
        files.begin(header, layout)
        return 0

    def _predict(self, files: Workspace) -> None:
        """Predict the shards that are missing."""
        if self._options.tissue_only:
            seen = self._plan.read_frame.shape(self._slide.shape)
            self._tissue = where_to_predict(self._slide, seen, self._model.metadata.rules.tissue)
            self._tissue_share = 1.0 if self._tissue is None else self._tissue.share
        if self._tissue is not None:
            self._tissue.save(files.tissue)
        if self._where is not None:
            self._where.save(files.regions)
        todo = [(i, box) for i, box in enumerate(self._shards) if i not in files.journal.done]
        if not todo:
            return
        whole, missing = self._area(self._shards), self._area(box for _, box in todo)
        done = 0

        def on_pixels(pixels: int) -> None:
            nonlocal done
            done += pixels
            self._reporter.pixels(done, missing, whole)

        def on_cluster_shard(index: int) -> None:
            files.journal.shard_done(index)
            on_pixels(self._area([self._shards[index]]))

        control, options = self._reporter.control, self._options
        with self._reporter.stage("predict"):
            if options.scheduler is not None:
                run_on_cluster(options.scheduler, self._task(files), [i for i, _ in todo], control, on_cluster_shard)
            else:
                predictors = [
                    ShardPredictor(
                        self._slide, self._model, PredictionStore(files.store), self._plan, self._tissue, self._where
                    )
                    for _ in range(min(options.workers or workers_here(self._model, options.memory_gb), len(todo)))
                ]
                with TILES.limited(READ_CACHE):
                    run_in_threads(predictors, todo, control, files.journal.shard_done, on_pixels)
                self._reporter.seconds["wait"] = sum(p.waited for p in predictors) / len(predictors)
        self._reporter.speed = missing / 1e6 / self._reporter.seconds["predict"]

    def _task(self, files: Workspace) -> ShardTask:
        path = Path(self._slide.path)
        if not path.exists():
            raise PredictionError(f"slide {path} is not a file, so the workers of a cluster cannot open it.")
        return ShardTask(
            slide=str(path.resolve()),
            fingerprint=self._slide.fingerprint,
            image=self._slide.image,
            crop=self._slide.contents.crop,
            mpp=self._slide.mpp,
            model=str(files.model.resolve()),
            store=str(files.store.resolve()),
            plan=self._plan,
            tissue=None if self._tissue is None else str(files.tissue.resolve()),
            regions=None if self._where is None else str(files.regions.resolve()),
        )

    def _measure(self, files: Workspace, bands: Iterator[np.ndarray], wanted: list[Path]) -> tuple[list[AreaRow], int]:
        """Table and number of objects of the label image; the `wanted` files are written, to be published later."""
        options = self._options
        measurement = Measurement(
            slide=Path(self._slide.path).name,
            shape=self._shape,
            classes=self._model.metadata.classes,
            placement=self._placement,
            min_area=options.min_area_um2,
            regions=self._regions,
        )
        geojson, csv = (
            files.temporary(path) if path is not None and path in wanted else None
            for path in (options.geojson, options.csv)
        )
        with self._reporter.stage("measure") as on_block:
            return measurement.run(bands, geojson, csv, on_block)

    def _complete_tables(self, files: Workspace) -> SlideResult:
        """Write the missing tables of a label image that is complete."""
        missing = [path for path in files.tables if not path.exists()]
        bands = label_bands(files.out) if files.is_tiff else PredictionStore(files.out, "r").bands()
        table, objects = self._measure(files, bands, missing)
        files.publish(missing, image=False)
        self._reporter.end()
        return self._result(files.out, table, objects, len(self._shards))

    def _result(self, out: Path, table: list[AreaRow], objects: int, resumed: int) -> SlideResult:
        return SlideResult(
            slide=str(self._slide.path),
            output=out,
            shape=self._shape,
            mpp=self._placement.spacing if self._placement.mpp else None,
            table=table,
            geojson=self._options.geojson,
            csv=self._options.csv,
            objects=objects,
            shards=len(self._shards),
            shards_resumed=resumed,
            seconds={k: round(v, 3) for k, v in self._reporter.seconds.items()},
            megapixels_per_second=round(self._reporter.speed, 3),
            tissue_share=self._tissue_share,
            warnings=(*self._warnings, *self._slide.warnings),
            stain=self._stain,
        )

    def _area(self, shards: Iterable[Box]) -> int:
        """Pixels of shards inside the label image."""
        whole = Box(0, 0, *self._shape)
        return sum(box.intersection(whole).area for box in shards)


def _resolution(metadata: ModelMetadata, slide: Slide, asked: float | None, warnings: list[str]) -> float | None:
    """The mpp of the label image; None: that of level 0.

    Raises
    ------
    PredictionError
        For a slide with other channels than the model's, or without the mpp that the asked resolution needs.
    """
    if len(slide.channels) != len(metadata.channels):
        raise PredictionError(
            f"the model was trained on {len(metadata.channels)} channels ({', '.join(metadata.channels)}), the slide "
            f"has {len(slide.channels)} ({', '.join(slide.channels)}); train a model on such slides."
        )
    if slide.mpp is None and asked is not None:
        raise PredictionError(f"slide {slide.path} has no mpp, so it cannot be predicted at {asked} um per px; set it.")
    mpp = asked if asked is not None else metadata.mpp
    if slide.mpp is None and mpp is not None:
        warnings.append(f"the model was trained at {mpp} um per px, but the slide has no mpp: predicted at level 0.")
    return mpp
