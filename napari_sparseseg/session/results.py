"""What can be done with results that are on disk: tables, comparisons, a report; `Session.results`."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_sparseseg.errors import PredictionError
from napari_sparseseg.files import result_name, write_atomic
from napari_sparseseg.slides import Slide, open_slide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Literal

    import numpy as np
    import shapely

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.geometry import Box
    from napari_sparseseg.io.comparison import Agreement, Pair, Reader
    from napari_sparseseg.io.measurements import AreaRow
    from napari_sparseseg.io.objects import ObjectTable
    from napari_sparseseg.io.results import StoredResult
    from napari_sparseseg.prediction.live_view import LiveView
    from napari_sparseseg.prediction.results.cleanup import CleanUp
    from napari_sparseseg.prediction.results.preview import CleanedView
    from napari_sparseseg.prediction.slide.cleaning import CleanResult
    from napari_sparseseg.session.measured import MeasuredResult
    from napari_sparseseg.session.slides import SlideCollection

    AnyPath = str | PathLike[str]

TABLES = (".csv", ".parquet", ".geojson")


class Results:
    """Results on disk.

    A slide that is open in the session is found by its fingerprint; any other one can be named.

    Parameters
    ----------
    slides
        The session's slides.
    """

    def __init__(self, slides: SlideCollection) -> None:
        self._slides = slides

    def measure_objects(
        self,
        result: AnyPath,
        out: AnyPath | Sequence[AnyPath] = (),
        *,
        slide: AnyPath | Slide | None = None,
        regions: Mapping[str, shapely.Geometry] | AnyPath | None = None,
        min_area_um2: float = 100.0,
        kind: Literal["annotation", "detection"] = "annotation",
        overwrite: bool = False,
        progress: Callable[[float], None] | None = None,
    ) -> ObjectTable:
        """Measure the connected regions of a predicted label image, and write them.

        Parameters
        ----------
        result
            ``.ome.zarr`` or ``.ome.tif``; of other programs too.
        out
            Files to write: ``.csv``, ``.parquet`` (needs pyarrow) or ``.geojson``.
        slide
            For stain densities; None: the open one that the result was made of, else none.
        regions
            Polygons in level-0 (x, y) by name, or ``FILE`` or ``FILE:CLASS``; None: those that were predicted.
        min_area_um2
            Smaller objects are left out; level-0 px^2 where the mpp is unknown.
        kind
            What the objects are in QuPath.
        overwrite
            Replace existing files.
        progress
            Called on this thread with the share of the image that is measured, 0..1.

        Raises
        ------
        PredictionError, AnnotationError
            Where there is no such result, a file exists, the slide is another one; or something cannot be read.
        """
        from napari_sparseseg.io.objects import write_objects_geojson
        from napari_sparseseg.io.results import open_result

        targets = [Path(out)] if isinstance(out, str | PathLike) else [Path(path) for path in out]
        check_targets(targets, TABLES, overwrite=overwrite)
        with self.slide_of(result, slide) as found, open_result(result, found) as stored:
            table, _ = _measured(stored, found, regions, min_area_um2, progress)
            writers = {
                ".csv": table.write_csv,
                ".parquet": table.write_parquet,
                ".geojson": lambda path: write_objects_geojson(path, table, stored, min_area=min_area_um2, kind=kind),
            }
            for path in targets:
                write_atomic(path, writers[path.suffix.lower()])
        return table

    def measure(
        self,
        result: AnyPath,
        *,
        slide: AnyPath | Slide | None = None,
        regions: Mapping[str, shapely.Geometry] | AnyPath | None = None,
        min_area_um2: float = 100.0,
        progress: Callable[[float], None] | None = None,
    ) -> MeasuredResult:
        """Measure objects and areas in one pass over a label image; parameters and errors as `measure_objects`.

        What `progress` raises ends it.
        """
        from napari_sparseseg.io.results import open_result
        from napari_sparseseg.session.measured import MeasuredResult

        with self.slide_of(result, slide) as found, open_result(result, found) as stored:
            table, areas = _measured(stored, found, regions, min_area_um2, progress)
            return MeasuredResult(stored.path, stored.record.get("slide"), table, areas, min_area_um2)

    def images(self, result: AnyPath) -> tuple[Path, ...]:
        """The label images of a result, what was predicted first: ``X.ome.zarr/labels/NAME``, or the file itself."""
        from napari_sparseseg.io.results import label_images

        return label_images(Path(result))

    def compare(
        self,
        a: AnyPath,
        b: AnyPath,
        out: AnyPath | Sequence[AnyPath] = (),
        *,
        difference: AnyPath | None = None,
        slide: AnyPath | Slide | None = None,
        regions: Mapping[str, shapely.Geometry] | AnyPath | None = None,
        overwrite: bool = False,
    ) -> Agreement:
        """Count two results, or a result and a truth, against each other.

        They are compared at the coarser resolution, with the nearest pixel of the finer one. Only pixels that both
        label count for the scores. Classes are matched by name.

        Parameters
        ----------
        a, b
            Label images, or for one of them an annotation file (GeoJSON, ASAP XML, ``.sparseseg``).
        out
            Tables to write: ``.csv``.
        difference
            ``.ome.zarr`` to write: labels of where they differ, a class for each pair of classes.
        slide
            The slide, for images that do not say their scale, and annotations that begin elsewhere; None: an open one.
        regions
            Polygons in level-0 (x, y) by name, or ``FILE`` or ``FILE:CLASS``, scored apart; None: those of `a`.
        overwrite
            Replace existing files.

        Raises
        ------
        PredictionError
            Where they are not of the same slide or have no class in common, or a file exists.
        AnnotationError
            Where one of them cannot be read.
        """
        from napari_sparseseg.io import comparison

        targets = [Path(out)] if isinstance(out, str | PathLike) else [Path(path) for path in out]
        check_targets(targets, (".csv",), overwrite=overwrite)
        if difference is not None:
            check_folder(Path(difference), sources=(Path(a), Path(b)), overwrite=overwrite)
        with ExitStack() as files:
            first = next((path for path in (a, b) if _is_image(path) and _record(path)), a if _is_image(a) else b)
            found = files.enter_context(self.slide_of(first, slide))
            pair, stored = _pair(a, b, first, found, files)
            scored = comparison.compare(pair, _regions(stored, found, regions))
            for path in targets:
                write_atomic(path, scored.write_csv)
            if difference is not None:
                record = {k: stored.record[k] for k in ("slide",) if k in stored.record}
                record |= {"downsample": list(pair.placement.frame.downsample), "compared": [str(a), str(b)]}
                record["mpp"] = None if pair.placement.mpp is None else list(pair.placement.mpp)
                comparison.write_difference(Path(difference), pair, scored, record)
        return scored

    def report(
        self, project: AnyPath, output: AnyPath, results: Sequence[AnyPath] = (), *, overwrite: bool = False
    ) -> tuple[str, ...]:
        """Write a project as one HTML page, which needs no network and no script; returns what could not be shown.

        Parameters
        ----------
        project
            A project folder; it is neither locked nor changed.
        output
            ``.html`` to write.
        results
            Label images, or folders of them; none: those in the project's folder ``predictions``.
        overwrite
            Replace an existing file.

        Raises
        ------
        ProjectError
            Where it is no project.
        PredictionError
            Where the file exists or a result does not.
        """
        from napari_sparseseg.session.report import write_report

        check_targets([Path(output)], (".html", ".htm"), overwrite=overwrite)
        missing = next((path for path in results if not Path(path).exists()), None)
        if missing is not None:
            raise PredictionError(f"there is no result {missing}. Check the path.")
        return write_report(Path(project), Path(output), [Path(path) for path in results])

    def clean_up(
        self,
        result: AnyPath,
        settings: CleanUp,
        out: Sequence[AnyPath] = (),
        *,
        name: str = "cleaned",
        min_area_um2: float = 100.0,
        regions: Mapping[str, shapely.Geometry] | AnyPath | None = None,
        overwrite: bool = False,
        progress: Callable[[float], None] | None = None,
    ) -> CleanResult:
        """Make a cleaned label image ``labels/NAME`` in a predicted ``.ome.zarr``; what was predicted stays as it is.

        Parameters
        ----------
        result, settings, name, overwrite
            See `prediction.slide.cleaning.clean_up`.
        out
            Files to write: objects to a ``.geojson``, areas to a ``.csv`` of the cleaned image.
        min_area_um2
            Smaller objects are neither counted nor written; level-0 px^2 where the mpp is unknown.
        regions
            What to measure apart: polygons by name, or ``FILE[:CLASS]``, in the frame of the slide if that is open.
            None: where the prediction was limited to.
        progress
            Called with 0..1; what it raises ends the run, which the same call continues.

        Raises
        ------
        PredictionError
            For a result that is none, a class or region that is not there, a name or file that exists.
        """
        from napari_sparseseg.io.results import open_result
        from napari_sparseseg.prediction.slide.cleaning import clean_up

        named = None
        if regions is not None:
            with self.slide_of(result, None) as source, open_result(result, source) as stored:
                named = _regions(stored, source, regions)
        return clean_up(
            result, settings, [Path(path) for path in out], name=name, min_area_um2=min_area_um2, regions=named,
            overwrite=overwrite, progress=progress,
        )  # fmt: skip

    def preview_clean_up(
        self, live: LiveView, box: tuple[int, int, int, int], settings: CleanUp, classes: Sequence[ClassDef]
    ) -> CleanedView | None:
        """What a clean-up makes of the live prediction in a level-0 box; None where that has no pixels.

        Only tiles that are there are cleaned, a wide box at a coarser level. It takes some tenths of a second.
        """
        from napari_sparseseg.geometry import Box
        from napari_sparseseg.prediction.results.preview import clean_live

        return clean_live(live, Box(*box), settings, classes)

    @contextmanager
    def slide_of(self, result: AnyPath, slide: AnyPath | Slide | None) -> Iterator[Slide | None]:
        """The slide of a result: the given one, else an open one with the fingerprint that the result names.

        Raises
        ------
        PredictionError
            Where the given one is another.
        """
        made_of = _record(result).get("slide")
        if slide is None:
            yield next((e.slide for e in self._slides.entries if made_of and e.slide.fingerprint == made_of), None)
            return
        if isinstance(slide, Slide):
            _check_slide(result, made_of, slide)
            yield slide
            return
        with open_slide(slide) as opened:
            _check_slide(result, made_of, opened)
            yield opened


def check_targets(targets: Sequence[Path], suffixes: Sequence[str], *, overwrite: bool) -> None:
    """Refuse to write over what is there, or what cannot be written, before anything is computed.

    Raises
    ------
    PredictionError
        Naming the file.
    """
    for path in targets:
        if path.suffix.lower() not in suffixes:
            raise PredictionError(f"{path} has none of the endings {', '.join(suffixes)}, which choose the format.")
        if not path.parent.is_dir():
            raise PredictionError(f"there is no folder {path.parent} to write {path.name} into; make it first.")
        if path.is_dir() or (path.exists() and not overwrite):
            raise PredictionError(f"{path} exists; choose another name, or ask to overwrite it.")
        if path.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
            raise PredictionError("Parquet needs pyarrow: pip install 'napari-sparseseg[parquet]', or write CSV.")
    if len({path.resolve() for path in targets}) < len(targets):
        raise PredictionError("two of the files to write have the same name; give each its own.")


def check_folder(path: Path, *, sources: Sequence[Path], overwrite: bool) -> None:
    """Refuse to make an OME-Zarr over what is there.

    Raises
    ------
    PredictionError
        Naming the folder.
    """
    if not path.name.lower().endswith(".ome.zarr"):
        raise PredictionError(f"{path} does not end with .ome.zarr; name it so.")
    if not path.parent.is_dir():
        raise PredictionError(f"there is no folder {path.parent} to write {path.name} into; make it first.")
    if any(path.resolve() == source.resolve() for source in sources):
        raise PredictionError(f"{path} is one of the two that are compared; choose another name.")
    if path.exists() and not (overwrite and path.is_dir() and _record(path)):
        raise PredictionError(f"{path} exists; choose another name, or ask to overwrite it.")


def _measured(
    stored: StoredResult,
    slide: Slide | None,
    regions: Mapping[str, shapely.Geometry] | AnyPath | None,
    min_area_um2: float,
    progress: Callable[[float], None] | None,
) -> tuple[ObjectTable, tuple[AreaRow, ...]]:
    """Objects and areas of a label image, in one pass."""
    from napari_sparseseg.io.measurements import AreaTable
    from napari_sparseseg.io.objects import measure_result
    from napari_sparseseg.io.results import store_of

    if not min_area_um2 >= 0:
        raise PredictionError(f"the minimum area is {min_area_um2} um^2; give 0 or more.")

    def on_rows(done: int, total: int) -> None:
        if progress is not None:
            progress(done / total)

    where = _regions(stored, slide, regions)
    counted = AreaTable(stored.classes, stored.placement, where)
    table = measure_result(
        stored, min_area=min_area_um2, regions=where, rgb=_rgb_reader(stored, slide), areas=counted, on_rows=on_rows
    )
    return table, tuple(counted.rows(result_name(store_of(stored.path))))


def _is_image(path: AnyPath) -> bool:
    """Whether a path is a label image rather than annotations."""
    return Path(path).suffix.lower() in (".tif", ".tiff") or any(
        part.lower().endswith(".zarr") for part in Path(path).parts
    )


def _pair(a: AnyPath, b: AnyPath, first: AnyPath, slide: Slide | None, files: ExitStack) -> tuple[Pair, StoredResult]:
    """Both sides on their common grid, and the label image that says where that lies."""
    from napari_sparseseg.io.comparison import AnnotationReader, Pair, ResultReader, common_grid
    from napari_sparseseg.io.files import load_annotations
    from napari_sparseseg.io.results import open_result

    stored = files.enter_context(open_result(first, slide))
    other = b if first is a else a
    whole = slide or _Extent(str(first), stored.slide_shape, stored.placement.mpp)
    mine = ResultReader(stored)
    theirs: Reader
    if _is_image(other):
        second = files.enter_context(open_result(other, whole))
        placement, shape = common_grid(stored, second)
        theirs = ResultReader(second)
    else:
        placement, shape = stored.placement, stored.shape
        theirs = AnnotationReader(load_annotations(other, whole.shape, slide=whole), Path(other).name)
    sides = (mine, theirs) if first is a else (theirs, mine)
    return Pair(sides[0], sides[1], placement, shape), stored


def _record(path: AnyPath) -> dict[str, Any]:
    from napari_sparseseg.io.results import record_of

    return record_of(path)


def _check_slide(result: AnyPath, made_of: str | None, slide: Slide) -> None:
    if made_of and made_of != slide.fingerprint:
        raise PredictionError(f"{result} was not made of slide {slide.path}; give the slide it was made of.")


def _rgb_reader(result: StoredResult, slide: Slide | None) -> Callable[[Box], np.ndarray] | None:
    """Reads the slide's colours of a region of the result; None for fluorescence, which has no stain to separate."""
    if slide is None or not slide.is_rgb or str(slide.dtype) != "uint8":
        return None
    return lambda region: slide.read_region(region, result.placement.frame)


def _regions(
    result: StoredResult, slide: Slide | None, regions: Mapping[str, shapely.Geometry] | AnyPath | None
) -> Mapping[str, shapely.Geometry]:
    """The regions that are asked for, or those that the prediction was limited to."""
    from napari_sparseseg.prediction.results.regions import RegionMask, find_regions

    if regions is not None:
        return find_regions(regions, slide or _Extent(str(result.path), result.slide_shape, result.placement.mpp))
    return RegionMask.from_json(result.record.get("regions") or {}).regions


@dataclass(slots=True)
class _Extent:
    """What a result says of its slide, where regions begin at the corner of level 0."""

    path: str
    shape: tuple[int, int]
    mpp: tuple[float, float] | None
