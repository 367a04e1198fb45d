"""Many slides with one model: a file each, and one table of all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_sparseseg.errors import PredictionError, SparseSegError
from napari_sparseseg.files import write_atomic
from napari_sparseseg.io.measurements import write_csv
from napari_sparseseg.prediction.tiles import PredictionStopped

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from napari_sparseseg.prediction.slide.options import SlideResult
    from napari_sparseseg.slides import Slide

SUMMARY = "summary.csv"


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of many slides."""

    results: tuple[SlideResult, ...]
    summary: Path
    """CSV: pixels, mm2, percent and objects of each class on each slide."""
    failed: tuple[tuple[str, str], ...]
    """Slides that could not be predicted, and why."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        failed = [{"slide": slide, "error": error} for slide, error in self.failed]
        return {"slides": [r.to_json() for r in self.results], "summary": str(self.summary), "failed": failed}


def predict_batch(
    slides: Sequence[Slide],
    folder: Path,
    predict: Callable[[Slide, dict[str, Path]], SlideResult],
    *,
    suffix: str = ".ome.zarr",
    replace: bool = False,
) -> BatchResult:
    """Predict slides one after the other into ``NAME.ome.zarr``, ``NAME.geojson`` and ``NAME.csv`` of a folder.

    The summary is written anew after each slide, so that it is there whenever the run ends. A slide that fails does not
    keep the others from being predicted.

    Parameters
    ----------
    slides
        Open slides.
    folder
        Made where it does not exist.
    predict
        Does one slide, given the files to write by name of their option (``out``, ``geojson``, ``csv``).
    suffix
        Of the label images; chooses their format.
    replace
        Whether a summary that exists may be replaced.

    Raises
    ------
    PredictionStopped
        When a run was stopped; what is done is kept.
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
        files = {"out": folder / (name + suffix), "geojson": folder / f"{name}.geojson", "csv": folder / f"{name}.csv"}
        try:
            results.append(predict(slide, files))
        except PredictionStopped:
            raise
        except SparseSegError as error:
            failed.append((str(slide.path), str(error)))
            continue
        write_atomic(summary, lambda path: write_csv(path, [row for result in results for row in result.table]))
    return BatchResult(tuple(results), summary, tuple(failed))


def _names(slides: Sequence[Slide]) -> list[str]:
    """The slides' names without suffix, numbered where two are the same."""
    names: list[str] = []
    for slide in slides:
        stem = Path(slide.path).name.split(".")[0] or "slide"
        name, k = stem, 2
        while name.casefold() in (n.casefold() for n in names):
            name, k = f"{stem}-{k}", k + 1
        names.append(name)
    return names
