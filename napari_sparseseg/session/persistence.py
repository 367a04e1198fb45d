"""Saves a session to disk: into the user's project, or into a recovery folder until there is one."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from napari_sparseseg.annotations import Annotations, FileInUseError, NotWritableError
from napari_sparseseg.errors import ProjectError, SlideError, SparseSegError
from napari_sparseseg.session import recovery
from napari_sparseseg.session.project import SUFFIX, Project, ProjectState, SlideRecord, is_remote
from napari_sparseseg.session.slides import checked_role
from napari_sparseseg.slides import open_slide
from napari_sparseseg.slides.slide import BY_USER

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from napari_sparseseg.session.project import Role
    from napari_sparseseg.session.slides import SlideCollection, SlideEntry
    from napari_sparseseg.session.training import Training
    from napari_sparseseg.slides import Slide

_log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _one_at_a_time(
    method: Callable[Concatenate[ProjectKeeper, _P], _T],
) -> Callable[Concatenate[ProjectKeeper, _P], _T]:
    """A slide that is opened while another thread saves must not be bound to the folder that is being left."""

    @wraps(method)
    def locked(self: ProjectKeeper, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        with self._binding:
            return method(self, *args, **kwargs)

    return locked


class ProjectKeeper:
    """Binds slides' annotations to files of a project and writes ``project.json`` whenever that changes.

    Parameters
    ----------
    slides, training
        The slides and the training settings to save.
    autosave
        Save every stroke from the first on, in a recovery folder until there is a project.
    """

    def __init__(self, slides: SlideCollection, training: Training, *, autosave: bool) -> None:
        self._slides, self._training, self._autosave = slides, training, autosave
        self._lock = threading.RLock()  # the engine thread asks for `checkpoint_path`
        self._binding = threading.RLock()  # never taken by the engine thread: signals are sent while it is held
        self._written: tuple[object, ...] = ()
        self.project: Project | None = None
        self.left_out: list[SlideRecord] = []
        """Slides of the project that are not open because they could not be; they stay listed."""
        self.read_only = ""
        """Why nothing can be written, or empty: what is drawn here stays in memory until it is saved elsewhere."""

    @property
    def checkpoint(self) -> Path | None:
        """The model file that the last run wrote, or None; `ProjectError` where it is a link to elsewhere."""
        path = None if self.project is None else self.project.checkpoint
        return path if path is not None and path.exists() else None

    def checkpoint_path(self) -> Path | None:
        """Where a run writes its model, None in a read-only project; makes a recovery folder where there is none."""
        if self.read_only:
            return None
        project = self._any_project()
        self.write()
        return project.checkpoint

    def open(self, path: str | os.PathLike[str], role: Role | None) -> SlideEntry:
        """Open a slide; one that the project lists gets its strokes, role and mpp back. See `Session.open`."""
        known = self._slides.entries
        entry = self._slides.open(path, checked_role(role or "train"))
        if entry in known:
            return entry
        missed = [r for r in self.left_out if r.fingerprint == entry.slide.fingerprint]
        if missed:
            entry.role = role or missed[0].role
            if missed[0].mpp is not None:
                entry.slide.mpp = missed[0].mpp
        self._bind(entry)
        if missed:
            self._slides.changed.emit()
        return entry

    def add(self, slide: Slide, role: Role) -> None:
        """Add an open slide."""
        self._bind(self._slides.add(slide, role))

    def open_project(self, path: str | os.PathLike[str], *, read_only: bool) -> list[str]:
        """Open a project's slides, classes and settings; returns what the user must know about it, one clause each."""
        project = Project.open(path)
        self._training.recall(project.state.config)
        self._slides.set_classes(project.state.classes)
        self.project, self.left_out = project, list(project.state.slides)
        if read_only:
            self.read_only = "is open read-only"
        notes = [note for note in (self._open_record(project, r) for r in project.state.slides) if note]
        if self.read_only and not read_only:
            notes.append(f"the project {self.read_only}: changes here will not be saved; save under another name")
        _log.info("opened project %s: %d slides%s", project.path, len(self._slides.entries), "".join(notes))
        return notes

    def load_checkpoint(self, load: Callable[[Path], None]) -> list[str]:
        """Load the project's model; one that cannot be used must not keep anyone from the annotations."""
        try:
            if self.checkpoint is not None:
                load(self.checkpoint)
        except SparseSegError as error:
            _log.warning("model of %s skipped: %s", self.project, error)
            return [f"its model is left out: {error}"]
        return []

    def _open_record(self, project: Project, record: SlideRecord) -> str:
        """Open a slide of a project; returns what is wrong with it, or nothing. It stays listed in any case."""
        name = Path(record.path).name
        if is_remote(record.path):
            return (
                f"{name} is left out: remote slides are not opened automatically ({record.path}); open it to continue"
            )
        found = project.locate(record)
        if found is None:
            return f"{name} was not found and is left out; open it to relink it"
        try:
            slide = open_slide(found)
        except SlideError as error:
            return f"{name} is left out: {error}"
        if slide.fingerprint != record.fingerprint:
            slide.close()
            return (
                f"{found} is not the slide that was annotated and is left out; its strokes stay in "
                f"{project.annotations_path(record)}. Put the slide back, or open it from where it is now"
            )
        if record.mpp is not None:
            slide.mpp = record.mpp
        try:
            self.add(slide, record.role)
        except SparseSegError as error:
            return f"{name} is left out: {error}"
        return ""

    def _bind(self, entry: SlideEntry) -> None:
        """Save a newly opened slide; one that cannot be saved is closed, so that no strokes on it get lost."""
        try:
            self.on_open(entry)
        except SparseSegError:
            self._slides.remove(entry)
            raise

    @_one_at_a_time
    def on_open(self, entry: SlideEntry) -> None:
        """Keep a slide that was just opened or whose annotations were replaced, if this session keeps any."""
        if not self._autosave and self.project is None:
            return
        project = self._any_project()
        record = self._records(project)[entry.key]
        path = project.annotations_path(record)
        if not self.read_only:
            try:
                self._slides.attach(entry, path)
            except FileInUseError:
                self.read_only = "is open in another window"
            except NotWritableError:
                self.read_only = "cannot be written to"
        if self.read_only and path.exists():
            self._slides.replace_annotations(entry, Annotations.load(path))
        self.left_out = [r for r in self.left_out if r.annotations != record.annotations]
        self.write()

    @_one_at_a_time
    def replace_annotations(self, entry: SlideEntry, annotations: Annotations) -> None:
        """Give a slide other annotations and save them."""
        self._slides.replace_annotations(entry, annotations)
        if (self._autosave or self.project is not None) and not self.read_only:
            project = self._any_project()
            self._move(entry, project, self._records(project)[entry.key])
            self.write()

    def add_annotations(self, entry: SlideEntry, loaded: Annotations) -> int:
        """Draw other annotations over those of a slide as one undo step; see `Session.import_annotations`."""
        from napari_sparseseg.io.trace import shapes_of

        mine, counts = entry.annotations, loaded.counts()
        if loaded.others:
            mine.set_others((*mine.others, *loaded.others))
        if not any(counts.values()):
            return 0
        if not mine.strokes and not mine.dense_regions:
            self.replace_annotations(entry, loaded)
            return len(loaded.strokes) + len(loaded.dense_regions)
        known = {c.id for c in self._slides.classes}
        self._slides.set_classes(
            (*self._slides.classes, *(c for c in loaded.classes if c.id not in known and counts.get(c.id)))
        )
        self.write_changes()
        return mine.draw(shapes_of(loaded.snapshot()))

    @_one_at_a_time
    def save_as(self, path: Path) -> Project:
        """Move everything to the project at `path`, made where it does not exist."""
        path = path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)
        before = self.project
        if before is not None and before.path == path.resolve():
            if self.read_only:
                raise ProjectError(f"{path} {self.read_only}; save under another name.")
            self.write()
            return before
        project = Project.open(path) if (path / "project.json").exists() else Project.create(path)
        records = self._records(project)
        for entry in self._slides.entries:
            if entry.key in records:
                self._move(entry, project, records[entry.key])
        names = {r.annotations for r in self._records(project).values()}
        stays = before is not None and (self.read_only or self.left_out)
        self.project, self.read_only = project, ""
        self.left_out = [r for r in project.state.slides if r.annotations not in names]
        self.write()
        if before is not None and not stays:
            recovery.discard(before)
        return project

    def write(self) -> None:
        """Write ``project.json`` as things are now; slides that could not be found stay listed."""
        with self._lock:
            project = self.project
            if project is None or self.read_only:
                return
            now = self._to_write()
            ours = self._records(project).values()
            known = {r.annotations for r in (*ours, *self.left_out)}
            self.left_out += [r for r in project.listed_by_others() if r.annotations not in known]
            records = (*ours, *self.left_out)
            state = ProjectState(records, self._slides.classes, self._training.settings)
            if state != project.state or not (project.path / "project.json").exists():
                project.write(state)
            self._written = now

    def write_changes(self) -> None:
        """Write ``project.json`` if roles, resolutions, classes or settings have changed; cheap where they have not."""
        if self._written and self._written != self._to_write():
            self.write()

    def _to_write(self) -> tuple[object, ...]:
        slides = tuple((e.key, e.role, e.slide.mpp) for e in self._slides.entries)
        return slides, self._slides.classes, self._training.settings

    def close(self) -> None:
        """Close all slides; a recovery folder without strokes and without a model is removed."""
        with suppress(ProjectError):  # the strokes are in their own files
            self.write()
        empty = not self._slides.labelled
        self._slides.close()
        if self.project is None or not empty or self.read_only or self.left_out:
            return
        with suppress(ProjectError):  # it contains links, so no session of ours made it
            if self.checkpoint is None:
                recovery.discard(self.project)

    def _any_project(self) -> Project:
        with self._lock:
            if self.project is None:
                self.project = recovery.new_recovery_project()
            return self.project

    def _records(self, project: Project) -> dict[str, SlideRecord]:
        """The record of each open slide by its key; two copies of one slide have two records."""
        records: dict[str, SlideRecord] = {}
        for e in tuple(self._slides.entries):
            slide = e.slide
            record = project.record_for(slide.path, slide.fingerprint, e.role, records.values())
            mpp = slide.mpp if slide.mpp_source == BY_USER else None
            records[e.key] = replace(record, role=e.role, mpp=mpp)
        return records

    @staticmethod
    def _move(entry: SlideEntry, project: Project, record: SlideRecord) -> None:
        path = project.annotations_path(record)
        entry.annotations.save(path)
        entry.annotations.attach(path)
