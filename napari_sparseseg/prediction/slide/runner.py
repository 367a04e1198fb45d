"""One run: from slide and model to files."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_sparseseg.errors import PredictionError
from napari_sparseseg.geometry import Box
from napari_sparseseg.io.ome_tiff import label_bands, read_record, write_ome_tiff
from napari_sparseseg.io.ome_zarr import PredictionStore, StoreLayout, create_store
from napari_sparseseg.io.placement import Placement
from napari_sparseseg.prediction.slide.cluster import run_on_cluster
from napari_sparseseg.prediction.slide.local import run_in_threads
from napari_sparseseg.prediction.slide.measuring import Measurement
from napari_sparseseg.prediction.slide.options import Options, Progress, SlideResult, Stage
from napari_sparseseg.prediction.slide.shards import READ_CACHE, Control, ShardPredictor, ShardTask, shard_grid
from napari_sparseseg.prediction.slide.tile_size import fitting_tile
from napari_sparseseg.prediction.slide.workspace import Workspace, model_hash
from napari_sparseseg.prediction.tiles import model_frame
from napari_sparseseg.prediction.tissue import TissueMask, detect_tissue
from napari_sparseseg.slides.cache import TILES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy as np

    from napari_sparseseg.io.tables import AreaRow
    from napari_sparseseg.learning.model_file import ModelMetadata
    from napari_sparseseg.prediction.tiles import SavableSegmenter
    from napari_sparseseg.slides import Slide

_REPORT_S = 0.1


@dataclass
class _Counter:
    """Pixels of the prediction stage: those of the slide, those of this run, those done."""

    whole: int
    todo: int
    done: int = 0

    def progress(self, seconds: float) -> Progress:
        speed = self.done / seconds if seconds > 0 else 0.0
        left = (self.todo - self.done) / speed if speed > 0 else None
        return Progress("predict", self.whole - self.todo + self.done, self.whole, seconds, speed / 1e6, left)


class SlideRun:
    """The state of one call of `predict_slide`."""

    def __init__(
        self,
        slide: Slide,
        model: SavableSegmenter,
        out: Path,
        options: Options,
        control: Control,
        report: Callable[[Progress], None] | None,
    ) -> None:
        self._slide, self._model, self._options, self._control = slide, model, options, control
        self._report = report
        self._warnings: list[str] = []
        self._classes = model.metadata.classes
        mpp = _resolution(model.metadata, slide, options.mpp, self._warnings)
        self._placement = Placement(slide.frame(mpp), slide.mpp)
        self._shape = self._placement.frame.shape(slide.shape)
        self._read_frame = model_frame(model.metadata, slide, self._placement.frame)
        self._tile = options.tile or fitting_tile(model, self._placement.frame, self._read_frame)
        self._shards = list(enumerate(shard_grid(self._shape)))
        self._files = Workspace(out, [path for path in (options.geojson, options.csv) if path is not None])
        self._tissue: TissueMask | None = None
        self._seconds: dict[str, float] = {}
        self._speed = 0.0
        self._resumed = 0
        self._objects = 0
        self._stage_start = self._last_report = time.monotonic()

    def execute(self) -> SlideResult:
        """Do what is still to be done and answer with what there is then."""
        options = self._options
        with self._files as files:
            header = self._header()
            if options.resume and files.out.exists() and not options.overwrite and self._record() == header:
                return self._complete_tables()
            files.check_free(overwrite=options.overwrite, resume=options.resume)
            self._prepare(header)
            self._predict()
            store = PredictionStore(files.store)
            self._timed("pyramid", lambda: store.build_pyramid(self._block_reporter("pyramid")))
            table = self._timed("measure", lambda: self._measure(store.bands(), files.tables))
            self._timed("write", lambda: self._write_image(store))
            self._slide.identity.check()
            files.place(files.tables)
        return self._result(table)

    def _header(self) -> dict[str, Any]:
        """What decides the answer: a run with the same header may go on with this one's shards."""
        files, options = self._files, self._options
        self._slide.identity.check()
        self._model.save(files.model)
        metadata = self._model.metadata.to_json()
        return {
            "format": 1,
            "slide": self._slide.fingerprint,
            "model": model_hash(files.model, metadata),
            "shape": list(self._shape),
            "downsample": list(self._placement.frame.downsample),
            "read_downsample": list(self._read_frame.downsample),
            "mpp": None if self._slide.mpp is None else list(self._slide.mpp),
            "tile": self._tile,
            "tissue_only": options.tissue_only,
            "uncertainty": options.uncertainty,
            "flips": options.flips,
            "ome_zarr": options.ome_zarr,
        }

    def _record(self) -> dict[str, Any]:
        """How the existing output was made; empty where it is not ours."""
        out = self._files.out
        if self._files.is_tiff:
            return read_record(out)
        try:
            return PredictionStore(out, "r").record
        except PredictionError:
            return {}

    def _prepare(self, header: dict[str, Any]) -> None:
        """Go on with an unfinished run of the same header, or start a new one."""
        files = self._files
        journal = files.journal
        if self._options.resume and journal.header == header and files.store.exists():
            self._resumed = len(journal.done)
            return
        if self._options.resume and journal.header is not None:
            self._warnings.append("an unfinished run with another slide, model or parameters was thrown away.")
        files.clear()
        name = Path(self._slide.path).name
        layout = StoreLayout(
            self._shape, self._placement, self._classes, self._options.uncertainty, self._options.ome_zarr, name
        )
        create_store(files.store, layout, header)
        journal.begin(header)

    def _predict(self) -> None:
        """Predict the shards that are missing."""
        if self._options.tissue_only:
            self._tissue = detect_tissue(self._slide)
            self._tissue.save(self._files.tissue)
        journal = self._files.journal
        todo = [(i, box) for i, box in self._shards if i not in journal.done]
        counter = _Counter(
            _area([box for _, box in self._shards], self._shape), _area([box for _, box in todo], self._shape)
        )
        self._stage_start = time.monotonic()

        def on_pixels(pixels: int) -> None:
            counter.done += pixels
            self._send(counter.progress(time.monotonic() - self._stage_start))

        if not todo:
            return
        options = self._options
        if options.scheduler is not None:
            task = self._task()
            boxes = dict(todo)

            def on_shard(index: int) -> None:
                journal.shard_done(index)
                on_pixels(_area([boxes[index]], self._shape))

            run_on_cluster(options.scheduler, task, list(boxes), self._control, on_shard)
        else:
            count = min(options.workers or 1, len(todo))
            predictors = [self._predictor() for _ in range(count)]
            with TILES.limited(READ_CACHE):
                run_in_threads(predictors, todo, self._control, journal.shard_done, on_pixels)
            self._seconds["wait"] = sum(p.waited for p in predictors) / count
        seconds = time.monotonic() - self._stage_start
        self._seconds["predict"] = seconds
        self._speed = counter.todo / 1e6 / seconds

    def _predictor(self) -> ShardPredictor:
        store = PredictionStore(self._files.store)
        return ShardPredictor(
            self._slide,
            self._model,
            store,
            self._placement.frame,
            tile=self._tile,
            read_frame=self._read_frame,
            tissue=self._tissue,
            flips=self._options.flips,
        )

    def _task(self) -> ShardTask:
        path = Path(self._slide.path)
        if not path.exists():
            raise PredictionError(f"slide {path} is not a file, so the workers of a cluster cannot open it.")
        return ShardTask(
            slide=str(path.resolve()),
            fingerprint=self._slide.fingerprint,
            mpp=self._slide.mpp,
            model=str(self._files.model.resolve()),
            store=str(self._files.store.resolve()),
            downsample=self._placement.frame.downsample,
            read_downsample=self._read_frame.downsample,
            tile=self._tile,
            tissue=None if self._tissue is None else str(self._files.tissue.resolve()),
            flips=self._options.flips,
        )

    def _measure(self, bands: Iterator[np.ndarray], wanted: list[Path]) -> list[AreaRow]:
        """Table and objects of the label image, those `wanted` as files that wait to be put in place."""
        options = self._options
        measurement = Measurement(
            slide=Path(self._slide.path).name,
            shape=self._shape,
            classes=self._classes,
            placement=self._placement,
            min_area=options.min_area_um2,
            regions=options.regions,
        )
        geojson, csv = (
            self._files.temporary(path) if path is not None and path in wanted else None
            for path in (options.geojson, options.csv)
        )
        table, self._objects = measurement.run(bands, geojson, csv, self._block_reporter("measure"))
        return table

    def _write_image(self, store: PredictionStore) -> None:
        if self._files.is_tiff:
            report = self._block_reporter("write")
            write_ome_tiff(self._files.tiff, store, self._placement, self._classes, report)

    def _complete_tables(self) -> SlideResult:
        """The image is there already: write the tables that are not."""
        files = self._files
        missing = [path for path in files.tables if not path.exists()]
        bands = label_bands(files.out) if files.is_tiff else PredictionStore(files.out, "r").bands()
        table = self._timed("measure", lambda: self._measure(bands, missing))
        files.place(missing, image=False)
        self._resumed = len(self._shards)
        return self._result(table)

    def _timed(self, stage: Stage, work: Callable[[], Any]) -> Any:
        self._control.check()
        self._stage_start = time.monotonic()
        value = work()
        self._seconds[stage] = time.monotonic() - self._stage_start
        return value

    def _block_reporter(self, stage: Stage) -> Callable[[int, int], None]:
        def on_block(done: int, total: int) -> None:
            self._control.check()
            seconds = time.monotonic() - self._stage_start
            left = seconds / done * (total - done) if done else None
            self._send(Progress(stage, done, total, seconds, self._speed, left))

        return on_block

    def _send(self, progress: Progress) -> None:
        """Pass a report on, at most ten a second and the last of each stage."""
        now = time.monotonic()
        if self._report is not None and (progress.done >= progress.total or now - self._last_report >= _REPORT_S):
            self._last_report = now
            self._report(progress)

    def _result(self, table: list[AreaRow]) -> SlideResult:
        options = self._options
        return SlideResult(
            output=self._files.out,
            shape=self._shape,
            mpp=self._placement.spacing if self._placement.mpp else None,
            table=table,
            geojson=options.geojson,
            csv=options.csv,
            objects=self._objects,
            shards=len(self._shards),
            shards_resumed=self._resumed,
            seconds={k: round(v, 3) for k, v in self._seconds.items()},
            megapixels_per_second=round(self._speed, 3),
            tissue_share=self._tissue.share if self._tissue is not None else None,
            warnings=(*self._warnings, *self._slide.warnings),
        )


def _resolution(metadata: ModelMetadata, slide: Slide, asked: float | None, warnings: list[str]) -> float | None:
    """The mpp of the label image; raises where it cannot be had."""
    if len(slide.channels) != len(metadata.channels):
        raise PredictionError(
            f"the model was trained on {len(metadata.channels)} channels ({', '.join(metadata.channels)}), the slide "
            f"has {len(slide.channels)} ({', '.join(slide.channels)}); train a model on such slides."
        )
    if slide.mpp is None and asked is not None:
        raise PredictionError(f"slide {slide.path} does not say its mpp, so {asked} um per px cannot be had; set it.")
    mpp = asked if asked is not None else metadata.mpp
    if slide.mpp is None and mpp is not None:
        warnings.append(
            f"the model was trained at {mpp} um per px, but the slide does not say its mpp: predicted at level 0."
        )
    return mpp


def _area(boxes: Iterable[Box], shape: tuple[int, int]) -> int:
    whole = Box(0, 0, *shape)
    return sum(box.intersection(whole).area for box in boxes)
