"""Many slides with one model: a file each, and one table of all."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from napari_sparseseg.errors import PredictionError, SparseSegError
from napari_sparseseg.files import SUMMARY, result_name, write_atomic
from napari_sparseseg.io.measurements import write_csv
from napari_sparseseg.prediction.slide.options import Progress
from napari_sparseseg.prediction.slide.shards import READ_CACHE
from napari_sparseseg.prediction.tiles import PredictionStopped
from napari_sparseseg.slides.cache import TILES

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from napari_sparseseg.prediction.slide.options import SlideResult
    from napari_sparseseg.slides import Slide


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Results of many slides."""

    results: tuple[SlideResult, ...]
    summary: Path
    """CSV: pixels, mm2, percent and objects of each class on each slide."""
    failed: tuple[tuple[str, str], ...]
    """Slides that could not be predicted, and why."""

    def to_json(self) -> dict[str, Any]:
        """Values that JSON can hold."""
        failed = [{"slide": slide, "error": error} for slide, error in self.failed]
        return {"slides": [r.to_json() for r in self.results], "summary": str(self.summary), "failed": failed}


def predict_batch(
    slides: Sequence[Slide],
    folder: Path,
    predict: Callable[[Slide, dict[str, Path], bool], SlideResult],
    *,
    workers: int = 1,
    small: Callable[[Slide], bool] = lambda _: False,
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
    replace: bool = False,
) -> BatchResult:
    """Predict slides into ``NAME.ome.zarr``, ``NAME.geojson`` and ``NAME.csv`` of a folder.

    Small slides come first, as many at once as there are workers; the others follow one by one. The summary, which
    names slides by path too, is written again after each. A slide that fails does not stop the others.

    Parameters
    ----------
    slides
        Open slides.
    folder
        Made where it does not exist.
    predict
        Does one slide, given the files to write by option, and whether it is one of several at once, on its own thread.
    workers
        How many small slides are predicted at once.
    small
        Whether a slide is too small for more than one worker.
    progress
        Told on this thread how much is done.
    stop
        Set here where a small slide ends otherwise than by a result or a failure of its own.
    replace
        Whether a summary that exists may be replaced.

    Raises
    ------
    PredictionStopped
        When a run was stopped; finished slides and tiles are saved.
    PredictionError
        Where there is nothing to predict, or a summary already.
    """
    if not slides:
        raise PredictionError("there is no slide to predict; open one first.")
    summary = folder / SUMMARY
    if summary.exists() and not replace:
        raise PredictionError(f"{summary} exists; choose another folder, or ask to overwrite or to resume.")
    batch = _Batch(slides, folder, predict)
    together = [k for k, slide in enumerate(slides) if small(slide)] if workers > 1 else []
    if len(together) > 1:
        report = _Report(progress, {k: math.prod(slides[k].shape) for k in together})
        with TILES.limited(READ_CACHE), ThreadPoolExecutor(workers, "slide") as pool, _ending(pool, stop):
            running = {pool.submit(batch.predicted, k, of_several=True): k for k in together}
            for future in as_completed(running):
                batch.keep(running[future], future.result)
                report(running[future])
    for k in batch.missing():
        batch.keep(k, partial(batch.predicted, k, of_several=False))
    if progress is not None:
        progress(Progress("write", 1, 1, 0.0, seconds_left=0.0))
    return batch.result()


class _Batch:
    """What is done of a batch, by the number of the slide."""

    def __init__(
        self, slides: Sequence[Slide], folder: Path, predict: Callable[[Slide, dict[str, Path], bool], SlideResult]
    ) -> None:
        self._slides, self._folder, self._predict = slides, folder, predict
        self._names = _names(slides)
        folder.mkdir(parents=True, exist_ok=True)
        self._results: dict[int, SlideResult] = {}
        self._failed: dict[int, tuple[str, str]] = {}

    def predicted(self, number: int, *, of_several: bool) -> SlideResult:
        """Predict a slide into its files; on any thread."""
        suffixes = {"out": ".ome.zarr", "geojson": ".geojson", "csv": ".csv"}
        files = {option: self._folder / f"{self._names[number]}{suffix}" for option, suffix in suffixes.items()}
        return self._predict(self._slides[number], files, of_several)

    def keep(self, number: int, make: Callable[[], SlideResult]) -> None:
        """Note a result, or why there is none, and write the summary."""
        try:
            self._results[number] = make()
        except PredictionStopped:
            raise
        except SparseSegError as error:
            self._failed[number] = (str(self._slides[number].path), str(error))
            return
        write_atomic(self._folder / SUMMARY, lambda path: _write_summary(path, self.result().results))

    def missing(self) -> list[int]:
        """Slides with neither a result nor a failure."""
        return [k for k in range(len(self._slides)) if k not in self._results and k not in self._failed]

    def result(self) -> BatchResult:
        """What there is, in the order of the slides."""
        results = tuple(self._results[k] for k in sorted(self._results))
        return BatchResult(results, self._folder / SUMMARY, tuple(self._failed[k] for k in sorted(self._failed)))


@contextmanager
def _ending(pool: ThreadPoolExecutor, stop: threading.Event | None) -> Iterator[None]:
    """Where the block ends with an error, begin no other slide, and ask those in progress to end."""
    try:
        yield
    except BaseException:
        if stop is not None:
            stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        raise


class _Report:
    """Progress of slides that are predicted at once, by their areas."""

    def __init__(self, progress: Callable[[Progress], None] | None, areas: dict[int, int]) -> None:
        self._progress, self._areas, self._done, self._begun = progress, areas, 0, time.monotonic()

    def __call__(self, number: int) -> None:
        """A slide is complete."""
        self._done += self._areas[number]
        if self._progress is not None:
            seconds, whole = time.monotonic() - self._begun, sum(self._areas.values())
            left = seconds / self._done * (whole - self._done)
            self._progress(Progress("predict", self._done, whole, seconds, self._done / 1e6 / seconds, left))


def _write_summary(path: Path, results: Sequence[SlideResult]) -> None:
    rows = [row for result in results for row in result.table]
    write_csv(path, rows, slides=[result.slide for result in results for _ in result.table])


def _names(slides: Sequence[Slide]) -> list[str]:
    """Names of the slides' results, numbered where two slides have the same name."""
    names: list[str] = []
    for slide in slides:
        stem = result_name(slide.path) + (f"-image-{slide.image}" if slide.image else "")
        name, k = stem, 2
        while name.casefold() in (n.casefold() for n in names):
            name, k = f"{stem}-{k}", k + 1
        names.append(name)
    return names
