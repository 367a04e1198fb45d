"""Clean up a result that is on disk: another label image beside the predicted one, and its tables."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from napari_sparseseg.errors import PredictionError
from napari_sparseseg.files import is_link, links_in, result_name
from napari_sparseseg.io.measurements import Measurement
from napari_sparseseg.io.ome_zarr import CHUNK, SHARD, PredictionStore
from napari_sparseseg.prediction.results.cleanup import Cleaner
from napari_sparseseg.prediction.results.regions import RegionMask
from napari_sparseseg.prediction.slide.options import Progress
from napari_sparseseg.prediction.tiles import PredictionStopped

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    import zarr

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.io.measurements import AreaRow
    from napari_sparseseg.prediction.results.cleanup import CleanUp
    from napari_sparseseg.prediction.results.regions import Regions
    from napari_sparseseg.prediction.slide.options import PredictOptions, SlideResult

NAME = "cleaned"


@dataclass(frozen=True, slots=True)
class CleanResult:
    """Files and figures of a clean-up."""

    output: Path
    """The label image, ``RESULT.ome.zarr/labels/NAME``."""
    table: list[AreaRow]
    objects: int
    """Connected regions of at least the minimum area, all classes."""
    geojson: Path | None = None
    csv: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Values that JSON can hold; paths become strings."""
        data = {**asdict(self), "table": [asdict(row) for row in self.table], "output": str(self.output)}
        return data | {name: None if data[name] is None else str(data[name]) for name in ("geojson", "csv")}


def clean_up(
    result: str | os.PathLike[str],
    settings: CleanUp,
    out: Sequence[Path] = (),
    *,
    name: str = NAME,
    min_area_um2: float = 100.0,
    regions: Regions | None = None,
    overwrite: bool = False,
    progress: Callable[[float], None] | None = None,
) -> CleanResult:
    """Make a cleaned label image ``labels/NAME`` in a predicted OME-Zarr; what was predicted stays as it is.

    A run that was interrupted leaves a folder ``RESULT.NAME.partial`` beside the result, and the same call goes on
    there. Memory grows with the number of regions, some hundred bytes each, not with the slide.

    Parameters
    ----------
    result, settings
        ``RESULT.ome.zarr``, and what to do.
    out
        Files to write: objects to a ``.geojson``, areas to a ``.csv`` of the cleaned image.
    name
        Of the label image.
    min_area_um2
        Smaller objects are neither counted nor written.
    regions
        Polygons in level-0 (x, y) by name, to measure apart; None: those that the prediction was limited to.
    overwrite
        Replace what exists.
    progress
        Called with 0..1; what it raises ends the run.

    Raises
    ------
    PredictionError
        For a result that is none, a class that it has not, a name or file that exists.
    """
    path = Path(result)
    tables = {table.suffix.lower(): table for table in map(Path, out)}
    store, target = _checked(path, settings, name, tables, len(out), overwrite=overwrite)
    geojson, csv = tables.get(".geojson"), tables.get(".csv")
    report = progress or (lambda share: None)
    folder = path.with_name(f"{result_name(path)}.{name}.partial")
    with _locked(folder):
        cleaner = Cleaner(store, settings, folder / "work", name=name, block=SHARD)
        levels = cleaner.run(lambda done, total: report(0.9 * done / total))
        partial = {t: t.with_name(f".{t.name}.partial") for t in tables.values()}
        found = regions or RegionMask.from_json(store.record.get("regions") or {}).regions
        measurement = Measurement(
            result_name(path), store.shape, cleaner.classes, store.placement, min_area_um2, found or None
        )
        files = partial.get(geojson) if geojson else None, partial.get(csv) if csv else None
        rows, objects = measurement.run(_bands(levels[0]), *files, lambda done, total: report(0.9 + 0.1 * done / total))
        if target.exists():
            os.replace(target, folder / "replaced")
        for made, place in ((cleaner.image, target), *((temporary, table) for table, temporary in partial.items())):
            os.replace(made, place)
        store.list_label_image(name)
    shutil.rmtree(folder, ignore_errors=True)
    return CleanResult(target, rows, objects, geojson, csv)


def _checked(
    path: Path, settings: CleanUp, name: str, tables: dict[str, Path], count: int, *, overwrite: bool
) -> tuple[PredictionStore, Path]:
    """The result and where its label image goes; raises `PredictionError` as `clean_up` says."""
    if not path.name.lower().endswith(".ome.zarr"):
        raise PredictionError(f"{path} is not a predicted .ome.zarr; only that has room for a cleaned label image.")
    if not name.replace("-", "").replace("_", "").isalnum() or name == "classes":
        raise PredictionError(f"{name!r} cannot be the name of a cleaned image; use letters, digits, - and _.")
    store = PredictionStore(path)
    settings.check(store)
    target = path / "labels" / name
    if set(tables) - {".geojson", ".csv"} or len(tables) < count:
        raise PredictionError(
            f"the files {', '.join(map(str, tables.values()))} are not one .geojson and one .csv at most."
        )
    for file in (target, *tables.values()):
        if not file.parent.is_dir():
            raise PredictionError(f"there is no folder {file.parent} to write {file.name} into; make it first.")
        if file.exists() and not overwrite:
            raise PredictionError(f"{file} exists; choose another name, or ask to overwrite it.")
    return store, target


class Finish:
    """The clean-up that a prediction ends with: its tables are those of the cleaned image.

    Parameters
    ----------
    out
        What is predicted.
    options
        Of the prediction, with `clean_up`.

    Raises
    ------
    PredictionError
        For a class that is not there, another format, or tables that exist: before anything is predicted.
    """

    def __init__(self, out: Path, options: PredictOptions, classes: Sequence[ClassDef]) -> None:
        if options.clean_up is None:
            raise ValueError("there is no clean-up to finish with")
        self._options, self._settings = options, options.clean_up
        self._settings.separated(classes)
        if not out.name.lower().endswith(".ome.zarr"):
            raise PredictionError(f"{out} has no room for a cleaned label image; predict into an .ome.zarr.")
        for table in options.tables:
            if table.exists() and not (options.overwrite or options.resume):
                raise PredictionError(f"{table} exists; choose another name, or ask to overwrite it.")
        self.raw = replace(options, clean_up=None, probabilities=options.probabilities, geojson=None, csv=None)
        """Options of the prediction before it is cleaned."""

    def __call__(
        self, result: SlideResult, progress: Callable[[Progress], None] | None, stop: threading.Event | None
    ) -> SlideResult:
        """Clean a complete prediction; its result with the tables of the cleaned image."""
        begun = time.monotonic()

        def report(share: float) -> None:
            if stop is not None and stop.is_set():
                raise PredictionStopped("the clean-up was stopped; resume continues it.")
            if progress is not None:
                progress(Progress("clean", round(1000 * share), 1000, time.monotonic() - begun))

        options = self._options
        found = clean_up(
            result.output, self._settings, options.tables,
            min_area_um2=options.min_area_um2, overwrite=options.overwrite or options.resume, progress=report,
        )  # fmt: skip
        seconds = {**result.seconds, "clean": round(time.monotonic() - begun, 3)}
        return replace(
            result, table=found.table, objects=found.objects, geojson=found.geojson, csv=found.csv,
            cleaned=found.output, seconds=seconds,
        )  # fmt: skip


class _locked:
    """A working folder of one process, without links to elsewhere."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = FileLock(folder / "lock")

    def __enter__(self) -> None:
        folder = self._folder
        link = next(chain(filter(is_link, [folder]), links_in(folder) if folder.is_dir() else ()), None)
        if link is not None:  # a folder from somebody else could make us write through it
            raise PredictionError(f"{link} is a link to elsewhere; remove it, or choose another name.")
        folder.mkdir(exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise PredictionError(f"another process works in {folder}; wait for it, or choose another name.") from error

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _bands(level: zarr.Array) -> Iterator[np.ndarray]:
    for y in range(0, level.shape[0], CHUNK):
        yield level[y : y + CHUNK]
