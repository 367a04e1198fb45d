"""Many slides with one model: a file each, and one table of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from napari_sparseseg.errors import PredictionError, SparseSegError
from napari_sparseseg.files import result_name, write_atomic
from napari_sparseseg.io.measurements import write_csv
from napari_sparseseg.prediction.tiles import PredictionStopped

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from napari_sparseseg.prediction.slide.options import SlideResult
    from napari_sparseseg.slides import Slide

SUMMARY = "summary.csv"


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
    predict: Callable[[Slide, dict[str, Path]], SlideResult],
    *,
    replace: bool = False,
) -> BatchResult:
    """Predict slides one after the other into ``NAME.ome.zarr``, ``NAME.geojson`` and ``NAME.csv`` of a folder.

    The summary is written again after each slide, so that it exists whenever the run ends, and names each slide by its
    path too. A slide that fails does not stop the others from being predicted.

    Parameters
    ----------
    slides
        Open slides.
    folder
        Made where it does not exist.
    predict
        Does one slide, given the files to write by name of their option (``out``, ``geojson``, ``csv``).
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
    folder.mkdir(parents=True, exist_ok=True)
    results: list[SlideResult] = []
    failed: list[tuple[str, str]] = []
    for slide, name in zip(slides, _names(slides), strict=True):
        files = {
            "out": folder / f"{name}.ome.zarr",
            "geojson": folder / f"{name}.geojson",
            "csv": folder / f"{name}.csv",
        }
        try:
            results.append(predict(slide, files))
        except PredictionStopped:
            raise
        except SparseSegError as error:
            failed.append((str(slide.path), str(error)))
            continue
        write_atomic(summary, lambda path: _write_summary(path, results))
    return BatchResult(tuple(results), summary, tuple(failed))


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
