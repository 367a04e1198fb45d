"""Saving a session as a project: a new one, or into one that exists. It is saved whole, or nothing was changed."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from napari_sparseseg.annotations import Annotations, merged, renumbered
from napari_sparseseg.annotations.file_state import classes_in
from napari_sparseseg.annotations.sqlite_file import require_unlocked
from napari_sparseseg.errors import AnnotationError, ProjectError
from napari_sparseseg.files import sync_folder
from napari_sparseseg.session.binding import RebindingError, aside, bind_all, copy_annotations, copy_file
from napari_sparseseg.session.class_tables import joined, meant, renamed, translated, used_in
from napari_sparseseg.session.project import SUFFIX, Project, ProjectState, SlideRecord, free_name, moved_record
from napari_sparseseg.session.run_files import RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from napari_sparseseg.config import TrainConfig
    from napari_sparseseg.session.class_tables import Table

    RecordsOf = Callable[[Project], dict[str, SlideRecord]]


@dataclass(frozen=True, slots=True)
class Carried:
    """A slide that is not open and goes along with the session.

    Attributes
    ----------
    record
        Its role, mpp and the classes that its ids mean.
    closed
        Whether its user has closed it; else it could not be opened.
    annotations, file
        What was drawn on it, in memory or on disk; both None where there is nothing.
    """

    record: SlideRecord
    closed: bool
    annotations: Annotations | None = None
    file: Path | None = None

    def load(self) -> Annotations | None:
        """What was drawn on it; None where there is nothing."""
        if self.annotations is not None:
            return self.annotations
        return None if self.file is None or not self.file.stat().st_size else Annotations.load(self.file)

    def copy_to(self, target: Path) -> None:
        """Write what was drawn on it to a file of its own; a damaged file is copied as it is."""
        if self.annotations is not None:
            self.annotations.save(target)
        elif self.file is not None:
            copy_annotations(self.file, target)


@dataclass(frozen=True, slots=True)
class Contents:
    """What is to be saved.

    Attributes
    ----------
    drawn
        Annotations of the open slides by their keys.
    carried
        The slides that are not open.
    classes, config
        The session's.
    unreadable, unreadable_files
        Entries of slides that this version cannot read, and the annotation files that they name.
    home
        The project that the session was saved to before.
    has_model
        Whether a model will be saved after this.
    """

    drawn: dict[str, Annotations]
    carried: tuple[Carried, ...]
    classes: Table
    config: TrainConfig
    unreadable: tuple[Any, ...] = ()
    unreadable_files: tuple[Path, ...] = ()
    home: Path | None = None
    has_model: bool = False


def write_new(path: Path, contents: Contents, records: RecordsOf) -> Project:
    """A new project; it is written beside `path` and renamed, and a project that is there is moved aside."""
    if path.exists() and not (path / "project.json").exists():
        Project.create(path)  # refuses what is not a project, and completes one whose creation was interrupted
    part = path.with_name(f".{path.stem}-{os.getpid()}.partial{SUFFIX}")
    shutil.rmtree(part, ignore_errors=True)
    old, placed = aside(path), False
    try:
        project = Project.create(part)
        opened = _opened(project, contents, records)
        for key, record in opened.items():
            contents.drawn[key].save(project.annotations_path(record))
        slides, closed = _bring(project, contents, opened.values())
        if contents.home is not None:
            RunFolder(contents.home).copy_to(RunFolder(part), [])
        project.write(
            replace(
                project.state,
                slides=(*opened.values(), *slides),
                classes=contents.classes,
                config=contents.config,
                closed=tuple(closed),
                unreadable=contents.unreadable,
            )
        )
        if path.exists():
            _require_unused(path)
            path.rename(old)
        part.rename(path)
        placed = True
        sync_folder(path.parent)
        project = Project(path.resolve(), project.state)
        bind_all([(contents.drawn[key], project.annotations_path(record)) for key, record in opened.items()])
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if placed and not isinstance(error, RebindingError):
            shutil.rmtree(path, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    return project


def merge_into(path: Path, contents: Contents, records: RecordsOf) -> tuple[Project, dict[str, Annotations]]:
    """Add slides and strokes to a project; each slide that it has gets a new file, and the old one stays beside it.

    Roles, resolutions and settings are the project's. Returns it and the annotations of the open slides by their keys.
    """
    project = Project.open(path)
    _require_unused(project.path)
    merge = _Merge(project, contents, _opened(project, contents, records))
    try:
        merge.add_open()
        merge.add_carried()
        merge.add_runs()
        merge.finish()
        while merge.renew():  # somebody draws meanwhile
            merge.finish()
    except BaseException:
        merge.take_back()
        raise
    return project, merge.made


class _Merge:
    """One merge into a project: every annotation file that it makes is new, and nothing is listed before the end.

    The joint class table is complete before anything is written. Open slides of the project keep their ids, because
    `_joint_table` begins with all that they use.
    """

    def __init__(self, project: Project, contents: Contents, opened: dict[str, SlideRecord]) -> None:
        self._project, self._contents, self._opened = project, contents, opened
        self._before = project.state
        state, self._listed = project.state, project.state.next_classes or project.state.classes
        self._slides, self._closed = (
            {r.annotations: r for r in _settled(records, state)} for records in (state.slides, state.closed)
        )
        self._stamp = time.strftime("%Y%m%d-%H%M%S")
        self._written: list[Path] = []
        self.made: dict[str, Annotations] = {}
        self._unreadable = (*state.unreadable, *contents.unreadable)
        self._sources: dict[str, tuple[SlideRecord, SlideRecord | None, bool]] = {}
        self._versions: dict[str, int] = {}
        there = _matches(project, [one.record for one in contents.carried], opened.values())
        self._pairs = [
            (one, known, one.load() if known else None) for one, known in zip(contents.carried, there, strict=True)
        ]
        self._table, self._ids = self._joint_table({r.annotations for r in (*opened.values(), *filter(None, there))})

    def _joint_table(self, touched: set[str]) -> tuple[Table, dict[int, int]]:
        """The project's classes and ours, and the new id of each of the session's; the project's keep their ids."""
        contents = self._contents
        table = self._listed
        for record in self._slides.values():
            if not record.classes:
                known, names = {c.id for c in table}, {c.name.casefold() for c in table}
                for c in self._used(record):
                    if c.id not in known:
                        table += (replace(c, name=f"{c.name} ({c.id})") if c.name.casefold() in names else c,)
        labelled = any(any(a.counts().values()) for a in contents.drawn.values())
        drawn_with = {c.id for a in contents.drawn.values() for c in used_in(a)}
        table, ids = joined(table, tuple(c for c in contents.classes if labelled or c.id in drawn_with))
        for one, _, drawn in self._pairs:
            table, _ = joined(table, () if drawn is None else meant(used_in(drawn), one.record.classes))
        for record in (*self._slides.values(), *self._closed.values()):
            if record.annotations in touched and (record.classes or record.annotations in self._closed):
                table, _ = joined(table, meant(self._used(record), record.classes))
        return table, ids

    def _used(self, record: SlideRecord) -> Table:
        """Classes in a file of the project; none where it cannot be read."""
        with suppress(AnnotationError, ProjectError):
            return classes_in(self._project.annotations_path(record))
        return ()

    def add_open(self) -> None:
        """Add the strokes of the open slides, which the project then lists as open."""
        for key, record in self._opened.items():
            closed = record.annotations in self._closed
            known = self._slides.pop(record.annotations, None) or self._closed.pop(record.annotations, None)
            if known is not None:
                record = replace(record, role=known.role, mpp=known.mpp)
            else:
                record = replace(record, annotations=free_name(record.annotations, self._names()))
            self._sources[key] = record, known, closed
            self._add(key)

    def _add(self, key: str) -> None:
        record, known, closed = self._sources[key]
        drawn = self._contents.drawn[key]
        self._versions[key] = drawn.version
        mine = renumbered(drawn, self._ids, self._table)
        if known is not None:
            mine, record = self._over(known, mine, record, closed=closed)
        mine.attach(self._new_file(record))
        self.made[key] = mine
        self._slides[record.annotations] = _counted(replace(record, classes=()), mine)

    def renew(self) -> bool:
        """Add the strokes again of slides that were drawn on since; whether there were any."""
        if any(drawn.classes != self._contents.classes for drawn in self._contents.drawn.values()):
            raise ProjectError("the classes were changed while the project was saved; save it again.")
        late = [key for key, version in self._versions.items() if self._contents.drawn[key].version != version]
        for key in late:
            before = self.made[key]
            if (file := before.path) is not None:
                del self._slides[file.name]
                before.close()
                file.unlink(missing_ok=True)
            self._add(key)
        return bool(late)

    def add_carried(self) -> None:
        """Add the slides that are not open; where the project has one, their strokes."""
        for one, known, drawn in self._pairs:
            if known is None:
                record = moved_record(one.record, self._contents.home, self._project.path, self._names())
                one.copy_to(self._new_file(record))
                (self._closed if one.closed else self._slides)[record.annotations] = record
            elif drawn is not None:
                _, ids = joined(self._table, meant(used_in(drawn), one.record.classes))
                closed = known.annotations in self._closed
                listed = self._closed if closed else self._slides
                known = listed.pop(known.annotations)
                mine, new = self._over(known, renumbered(drawn, ids, self._table), known, closed=closed)
                mine.save(self._new_file(new))
                listed[new.annotations] = _counted(replace(new, classes=self._table if closed else ()), mine)

    def add_runs(self) -> None:
        """Add the training runs."""
        if self._contents.home is not None:
            RunFolder(self._contents.home).copy_to(RunFolder(self._project.path), self._written)

    def finish(self) -> None:
        """Put the project's model aside where another will be saved, and list everything."""
        project, contents = self._project, self._contents
        if contents.has_model and project.checkpoint.exists():
            copy_file(project.checkpoint, project.checkpoint.with_name(f"model-{self._stamp}.safetensors"))
        project.write(
            replace(
                project.state,
                slides=tuple(self._slides.values()),
                classes=self._table,
                closed=tuple(self._closed.values()),
                unreadable=self._unreadable,
                next_classes=(),
            )
        )

    def take_back(self) -> None:
        """Remove what was written, after the project no longer lists it."""
        for drawn in self.made.values():
            drawn.close()
        if self._project.state is not self._before:
            self._project.write(self._before)
        for file in self._written:
            file.unlink(missing_ok=True)

    def _over(
        self, known: SlideRecord, mine: Annotations, record: SlideRecord, *, closed: bool
    ) -> tuple[Annotations, SlideRecord]:
        """Strokes over those that the project has on the same slide, and the record with a new file for both."""
        file = self._project.annotations_path(known)
        if not file.exists() or not file.stat().st_size:
            return mine, record
        theirs = Annotations.load(file)
        _, ids = joined(self._table, meant(used_in(theirs), known.classes or (() if closed else self._listed)))
        both = merged(translated(theirs, ids, self._table), mine)
        both.set_classes(self._table)
        return both, replace(record, annotations=free_name(f"{file.stem}-{self._stamp}.sqlite", self._names()))

    def _names(self) -> set[str]:
        """Names that a new file may not have."""
        folder = self._project.path / "annotations"
        return {*self._slides, *self._closed, *(path.name for path in folder.iterdir())}

    def _new_file(self, record: SlideRecord) -> Path:
        self._written.append(self._project.annotations_path(record))
        return self._written[-1]


def _opened(project: Project, contents: Contents, records: RecordsOf) -> dict[str, SlideRecord]:
    """Records of the slides that are to be saved; one that is being opened just now waits for the end."""
    return {key: record for key, record in records(project).items() if key in contents.drawn}


def _bring(
    project: Project, contents: Contents, opened: Iterable[SlideRecord]
) -> tuple[list[SlideRecord], list[SlideRecord]]:
    """Copy the annotations of slides that are not open into a new project; their records, those not closed first."""
    taken = {r.annotations for r in opened}
    for file in contents.unreadable_files:
        if file.name not in taken:
            copy_annotations(file, project.path / "annotations" / file.name)
            taken.add(file.name)
    slides: list[SlideRecord] = []
    closed: list[SlideRecord] = []
    for one in contents.carried:
        record = moved_record(one.record, contents.home, project.path, taken)
        one.copy_to(project.annotations_path(record))
        taken.add(record.annotations)
        (closed if one.closed else slides).append(record)
    return slides, closed


def _matches(project: Project, ours: Iterable[SlideRecord], opened: Iterable[SlideRecord]) -> list[SlideRecord | None]:
    """The project's record of each of our slides, by fingerprint; each belongs to one slide only."""
    listed = (*project.state.slides, *project.state.closed)
    taken, found = {r.annotations for r in opened}, list[SlideRecord | None]()
    for record in ours:
        same = [r for r in listed if r.fingerprint == record.fingerprint and r.annotations not in taken]
        found.append(next((r for r in same if r.path == record.path), same[0] if same else None))
        taken |= {r.annotations for r in found[-1:] if r is not None}
    return found


def _settled(records: Iterable[SlideRecord], state: ProjectState) -> tuple[SlideRecord, ...]:
    """Records after a change of the classes that was interrupted; the files follow when they are opened."""
    if not state.next_classes:
        return tuple(records)
    return tuple(replace(r, classes=renamed(r.classes, state.classes, state.next_classes)) for r in records)


def _counted(record: SlideRecord, drawn: Annotations) -> SlideRecord:
    return replace(record, strokes=len(drawn.strokes) + len(drawn.dense_regions), version=drawn.version)


def _require_unused(path: Path) -> None:
    """Raise FileInUseError where another window has the project open."""
    for file in (path / "annotations").glob("*.sqlite"):
        require_unlocked(file)
