"""Binding annotations to files of a project: all or none, and what such a file lacks."""

from __future__ import annotations

import shutil
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from napari_sparseseg.annotations import Annotations
from napari_sparseseg.annotations.file_state import summary
from napari_sparseseg.errors import AnnotationError, ProjectError, SlideError, SparseSegError
from napari_sparseseg.files import write_atomic
from napari_sparseseg.session.project import SUFFIX, SlideRecord, is_remote
from napari_sparseseg.slides import open_slide
from napari_sparseseg.slides.slide import BY_USER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from napari_sparseseg.session.project import Project
    from napari_sparseseg.session.slides import SlideCollection, SlideEntry
    from napari_sparseseg.slides import Slide


RELINK = "open it where it is now to relink it"


def listed_slide(project: Project, record: SlideRecord) -> tuple[Slide | None, str]:
    """A slide of a project, opened; or None and why it cannot be."""
    name = Path(record.path).name
    if is_remote(record.path):
        why = f"remote slides are not opened automatically ({record.path}); open it to continue"
        return None, f"{name} is left out: {why}"
    found = project.locate(record)
    if found is None:
        return None, f"{name} was not found and is left out; {RELINK}"
    try:
        slide = open_slide(found, image=record.image, crop=record.crop)
    except SlideError as error:
        return None, f"{name} is left out: {error}"
    if slide.fingerprint == record.fingerprint:
        return slide, ""
    slide.close()
    return None, (
        f"{found} is not the slide that was annotated and is left out; its strokes stay in "
        f"{project.path / 'annotations' / record.annotations}. Put the slide back, or open it from where it is now"
    )


def records_of(project: Project, entries: Iterable[SlideEntry]) -> dict[str, SlideRecord]:
    """The record of each open slide by its key; two copies of one slide have two records."""
    records: dict[str, SlideRecord] = {}
    folder = project.path / "annotations"
    opened = tuple(entries)
    bound = {
        e.key: SlideRecord("", "", e.annotations.path.name)
        for e in opened
        if e.annotations.path is not None and e.annotations.path.parent == folder
    }
    for e in opened:
        drawn = e.annotations
        others = [*records.values(), *(r for key, r in bound.items() if key != e.key)]
        record = project.record_for(e.slide.path, e.slide.fingerprint, e.role, others)
        strokes = len(drawn.strokes) + len(drawn.dense_regions)
        mpp = e.slide.mpp if e.slide.mpp_source == BY_USER else None
        record = replace(record, role=e.role, mpp=mpp, strokes=strokes, version=drawn.version, classes=())
        if e.key in bound:
            record = replace(record, annotations=bound[e.key].annotations)
        records[e.key] = replace(record, image=e.slide.image, crop=e.slide.contents.crop)
    return records


def what_is_missing(path: Path, record: SlideRecord, *, mend: bool = False) -> str:
    """What an annotation file lacks of what the project lists, as a clause, or nothing.

    `mend`: a log of an earlier time is put aside, before SQLite writes it over the file.
    """
    if mend and (aside := _old_log_aside(path, record)):
        return aside
    try:
        found = summary(path)
    except AnnotationError:
        return ""  # damaged: opening it says so
    if found.complete and found.version >= record.version:
        return ""
    if not path.exists():
        why = "is missing"
    elif not path.stat().st_size:
        why = "is empty"
    elif not found.complete:
        why = f"was copied without its whole log {path.name}-wal"
    else:
        why = "is older than the project"
    listed = max(record.strokes, found.strokes)
    return (
        f"{Path(record.path).name}: its annotation file {path.name} {why}; {found.strokes} of at least {listed} "
        "strokes are there. Before you draw, put the whole file back, from a backup or from where it was copied"
    )


def _old_log_aside(path: Path, record: SlideRecord) -> str:
    """Put aside a log that is older than its file, as a folder that synchronises leaves it; says so, or nothing.

    SQLite would take any log that is whole, and write the older state over the newer one.
    """
    log = path.with_name(path.name + "-wal")
    try:
        if not log.exists() or not path.exists() or summary(path).version >= record.version:
            return ""
    except AnnotationError:
        pass  # pages of two times
    try:
        with TemporaryDirectory() as folder:
            alone = Path(folder) / path.name
            shutil.copyfile(path, alone)
            if Annotations.load(alone).version < record.version:
                return ""
        log.rename(log.with_name(f"{log.name}.old"))
        path.with_name(path.name + "-shm").unlink(missing_ok=True)
    except (OSError, AnnotationError):
        return ""
    return f"{Path(record.path).name}: the log {log.name} was older than its annotation file, and was put aside"


@contextmanager
def still_open(slides: SlideCollection, entry: SlideEntry) -> Iterator[None]:
    """Around a long act of drawing: what is drawn on a slide that was closed meanwhile would be saved nowhere.

    Raises
    ------
    SlideError
        Where it was closed before the act, or before what the act drew was written.
    """
    closed = SlideError(f"{Path(entry.slide.path).name} was closed meanwhile; open it and try again.")
    if entry not in slides.entries:
        raise closed
    yield
    if entry not in slides.entries and not entry.annotations.saved:
        raise closed


def bind_to(annotations: Annotations, path: Path, *, overwrite: bool = True) -> None:
    """Write annotations to a file of ours and bind them to it, also while another thread draws.

    Not `overwrite`: `AnnotationError` where the file holds anything but an earlier state of these annotations.
    """
    for _ in range(20):
        annotations.save(path, overwrite=overwrite)
        written = annotations.version
        try:
            annotations.attach(path)
        except AnnotationError:
            if annotations.version == written:
                raise
        else:
            return


class RebindingError(ProjectError):
    """Some slides stay bound to a project that could not be completed: where they were cannot be written any more."""


def bind_all(files: list[tuple[Annotations, Path]]) -> None:
    """Bind all annotations to the files they were saved to, or, if one cannot be, all to where they were.

    Raises
    ------
    RebindingError
        Where one can be bound neither to the new file nor, afterwards, to the old one.
    """
    before = [(annotations, annotations.path) for annotations, _ in files]
    try:
        for annotations, path in files:
            try:
                annotations.attach(path)
            except AnnotationError:  # a stroke was drawn since
                bind_to(annotations, path)
    except BaseException as error:
        stuck = []
        for annotations, old in before:
            try:
                if old is None:
                    annotations.close()
                elif annotations.path != old:
                    bind_to(annotations, old)
            except SparseSegError as failed:
                stuck.append(str(failed))
        if stuck:
            raise RebindingError(f"{error} The slides are saved in both places now: {' '.join(stuck)}") from error
        raise


def aside(path: Path) -> Path:
    """Where a project that is replaced is moved to."""
    name = f"{path.stem}-before-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (name, *(f"{name}-{k}" for k in range(2, 100)))
    return next(p for p in (path.with_name(n + SUFFIX) for n in names) if not p.exists())


def place_of(path: Path) -> Path:
    """Where a project of this name is saved, with its suffix.

    Raises
    ------
    ProjectError
        Where no file can have the name, or it lies inside a project, which may be moved or deleted as a whole.
    """
    path = path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)
    try:
        outer = next((p for p in path.resolve().parents if (p / "project.json").exists()), None)
        path.exists()
    except OSError as error:
        raise ProjectError(f"cannot save project {path}: {error.strerror or error}. Nothing was changed.") from error
    if outer is not None:
        raise ProjectError(f"{path} would be inside the project {outer}; choose another folder.")
    return path


def copy_annotations(source: Path, target: Path) -> None:
    """Copy an annotation file with what is in its log; one that cannot be read is copied as it is, with the log."""
    try:
        Annotations.load(source).save(target, overwrite=True)
    except AnnotationError:
        for tail in ("", "-wal"):
            part = source.with_name(source.name + tail)
            if part.exists():
                copy_file(part, target.with_name(target.name + tail))


def copy_file(source: Path, target: Path) -> None:
    """Copy a file durably, whole or not at all."""
    write_atomic(target, lambda part: shutil.copyfile(source, part))
