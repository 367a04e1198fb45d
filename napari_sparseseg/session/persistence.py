"""Saves a session to disk: into the user's project, or into a recovery folder until there is one."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, Literal, ParamSpec, TypeVar

from napari_sparseseg.annotations import Annotations, FileInUseError, NotWritableError, merged, renumbered
from napari_sparseseg.annotations.sqlite_file import require_unlocked
from napari_sparseseg.config import match_classes
from napari_sparseseg.errors import ProjectError, SlideError, SparseSegError
from napari_sparseseg.files import sync_folder
from napari_sparseseg.session import recovery
from napari_sparseseg.session.binding import aside, bind_all, bind_to, copy_file, what_is_missing
from napari_sparseseg.session.project import SUFFIX, Project, ProjectState, SlideRecord, is_remote
from napari_sparseseg.session.slides import checked_role
from napari_sparseseg.slides import open_slide
from napari_sparseseg.slides.slide import BY_USER

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from napari_sparseseg.session.project import Role
    from napari_sparseseg.session.slides import SlideCollection, SlideEntry
    from napari_sparseseg.session.training import Training
    from napari_sparseseg.slides import Slide

Exists = Literal["refuse", "replace", "merge"]
"""What `save` does with a project that exists: refuse; move it aside; add slides and strokes to it."""
_log = logging.getLogger(__name__)
_MOST_NOTES = 20
_WRITE_S = 5.0
"""Longest time for which the stroke counts in ``project.json`` are behind the annotation files."""
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
        self._lock = threading.RLock()  # the engine thread writes checkpoints
        self._binding = threading.RLock()  # never taken by the engine thread: signals are sent while it is held
        self._written: tuple[object, ...] = ()
        self._written_at = 0.0
        self._shelf: dict[str, SlideEntry] = {}
        """Slides that were closed while nothing was saved on disk, by fingerprint."""
        self._closed: tuple[SlideRecord, ...] = ()
        self.project: Project | None = None
        self.notes: list[str] = []
        """What was missing or incomplete when slides were opened."""
        self.left_out: list[SlideRecord] = []
        """Slides of the project that are not open because they could not be; they stay listed."""
        self.read_only = ""
        """Why nothing can be written, or empty: what is drawn here stays in memory until it is saved elsewhere."""

    @property
    def checkpoint(self) -> Path | None:
        """The model file that the last run wrote, or None; `ProjectError` where it is a link to elsewhere."""
        path = None if self.project is None else self.project.checkpoint
        return path if path is not None and path.exists() else None

    def write_checkpoint(self, save: Callable[[Path], None]) -> None:
        """Write the model when a run ends, unless the project is read-only; without a project, to a recovery folder.

        A script may have no home folder, or a full one: its model then stays in memory, and nothing fails.
        """
        if self.read_only:
            return
        try:
            project = self._any_project()
            self.write()
            save(project.checkpoint)
        except (OSError, SparseSegError) as error:
            if self._autosave or not (self.project is None or recovery.is_recovery(self.project)):
                raise
            _log.warning("no checkpoint was written: %s", error)

    def open(self, path: str | os.PathLike[str], role: Role | None, image: int | None = None) -> SlideEntry:
        """Open a slide; one that the project lists gets its strokes, role and mpp back. See `Session.open`."""
        known = self._slides.entries
        entry = self._slides.open(path, checked_role(role or "train"), image)
        if entry in known:
            return entry
        missed = [r for r in (*self.left_out, *self._closed) if r.fingerprint == entry.slide.fingerprint]
        shelved = self._shelf.pop(entry.slide.fingerprint, None)
        crop = shelved.slide.contents.crop if shelved else not missed or missed[0].crop
        if not crop and entry.slide.canvas != entry.slide.bounds:  # its strokes are in the frame of the whole canvas
            self._slides.remove(entry)
            entry = self._slides.add(open_slide(entry.slide.path, crop=False), entry.role)
        if missed or shelved:
            before, mpp = (shelved, _mpp_by_user(shelved.slide)) if shelved else (missed[0], missed[0].mpp)
            entry.role = role or before.role
            entry.slide.mpp = mpp or entry.slide.mpp
        if shelved is not None:
            self._slides.replace_annotations(entry, shelved.annotations, reconcile=True)
        else:
            self._bind(entry)
        if missed or shelved:
            self._slides.changed.emit()
        return entry

    @_one_at_a_time
    def remove(self, entry: SlideEntry) -> None:
        """Close a slide; `open` restores its strokes, role and mpp."""
        if self.project is not None and not self.read_only:
            self._save_in_place(self.project)
        if self.project is None or self.read_only:
            self._shelf[entry.slide.fingerprint] = entry
        else:
            self._closed = (*self._closed, self._records(self.project)[entry.key])
        self._slides.remove(entry)
        self.write()

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
        self._closed, self.notes = project.state.closed, list(project.problems)
        for record in project.state.slides:
            note = self._open_record(project, record)
            if note:
                self.notes.append(note)
        self._written, self._written_at = self._to_write(), time.monotonic()  # also where no slide was opened
        if self.read_only and not read_only:
            self.notes.append(f"the project {self.read_only}: changes here will not be saved; save under another name")
        _log.info("opened project %s: %d slides, %s", project.path, len(self._slides.entries), self.notes or "complete")
        shown = self.notes[:_MOST_NOTES]
        return [*shown, *([f"and {len(self.notes) - len(shown)} more"] if len(shown) < len(self.notes) else [])]

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
            slide = open_slide(found, image=record.image, crop=record.crop)
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
        """Save a slide that was just opened from now on, if this session saves any."""
        if not self._autosave and self.project is None:
            return
        project = self._any_project()
        record = self._records(project)[entry.key]
        path = project.annotations_path(record)
        listed = (*project.state.slides, *project.state.closed)
        note = what_is_missing(path, next((r for r in listed if r.annotations == record.annotations), record))
        if not self.read_only:
            try:
                self._slides.attach(entry, path)
            except FileInUseError:
                self.read_only = "is open in another window"
            except NotWritableError:
                self.read_only = "cannot be written to"
        if self.read_only and path.exists() and path.stat().st_size:
            self._slides.replace_annotations(entry, Annotations.load(path), reconcile=True)
        if note:
            _log.warning(note)
            self.notes.append(note)
            self._training.note(note)
        self.left_out = [r for r in self.left_out if r.annotations != record.annotations]
        self._closed = tuple(r for r in self._closed if r.annotations != record.annotations)
        self.write()

    @_one_at_a_time
    def replace_annotations(self, entry: SlideEntry, annotations: Annotations) -> None:
        """Give a slide other annotations and save them."""
        self._slides.replace_annotations(entry, annotations)
        if (self._autosave or self.project is not None) and not self.read_only:
            project = self._any_project()
            bind_to(annotations, project.annotations_path(self._records(project)[entry.key]))
            self.write()

    def import_annotations(self, entry: SlideEntry, path: str | os.PathLike[str] | None) -> int:
        """Add the annotations of a file to a slide's; see `Session.import_annotations`."""
        from napari_sparseseg.io import find_annotations, load_annotations

        slide, source = entry.slide, path or find_annotations(entry.slide.path)
        fresh = len(self._slides.entries) == 1 and not self._slides.labelled and self._training.model is None
        table = () if fresh else self._slides.classes
        return self.add_annotations(entry, load_annotations(source, slide.shape, classes=table, slide=slide))

    def add_annotations(self, entry: SlideEntry, loaded: Annotations) -> int:
        """Draw other annotations over those of a slide as one undo step; see `Session.import_annotations`."""
        from napari_sparseseg.io.trace import shapes_of

        mine, counts = entry.annotations, loaded.counts()
        if loaded.others:
            mine.set_others((*mine.others, *loaded.others))
        if not any(counts.values()):
            return 0
        if not mine.strokes and not mine.dense_regions:
            loaded.set_others(mine.others)
            self.replace_annotations(entry, loaded)
            return len(loaded.strokes) + len(loaded.dense_regions)
        known = {c.id for c in self._slides.classes}
        self._slides.set_classes(
            (*self._slides.classes, *(c for c in loaded.classes if c.id not in known and counts.get(c.id)))
        )
        self.write_changes()
        return mine.draw(shapes_of(loaded.snapshot()))

    @_one_at_a_time
    def save_as(self, path: Path, exists: Exists) -> tuple[Project, Project | None]:
        """Save all but the model at `path`, or change nothing; returns the project, and the one to `discard` then."""
        path = path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)
        before = self.project
        if before is not None and before.path == path.resolve():
            self._save_in_place(before)
            return before, None
        taken = (path / "project.json").exists()
        merges = taken and exists == "merge"
        if merges and self._shelf:
            raise ProjectError("slides that were closed would be lost by a merge; open them again, or save elsewhere.")
        if taken and exists == "refuse":
            raise ProjectError(
                f"{path} exists already. Open it to continue it, or choose another name; a script can also save with "
                'exists="merge", which adds to it, or exists="replace", which moves it aside.'
            )
        try:
            project = self._merge_into(path) if merges else self._write_new(path)
        except OSError as error:
            raise ProjectError(
                f"cannot save project {path}: {error.strerror or error}. Nothing was changed."
            ) from error
        left_out = self.left_out
        stays = left_out or (merges and self._closed) or (before is not None and before.state.unreadable)
        moves = before is not None and not self.read_only and not stays
        self.project, self.read_only, self._shelf, self._closed = project, "", {}, project.state.closed
        names = {r.annotations for r in self._records(project).values()}
        self.left_out = [r for r in project.state.slides if r.annotations not in names]
        self.write()
        if before is not None and (names_left := ", ".join(Path(r.path).name for r in left_out)):
            self._training.note(f"not saved here, because they are not open: {names_left}; still in {before.path}")
        _log.info("saved project %s", project.path)
        return project, before if moves else None

    def discard(self, replaced: Project | None) -> None:
        """Delete the recovery folder that a saved project replaces, unless it has a model that could not be loaded."""
        with suppress(ProjectError):  # links: no session of ours made it
            if replaced is not None and (self._training.model is not None or not replaced.checkpoint.exists()):
                recovery.discard(replaced)

    def _save_in_place(self, project: Project) -> None:
        """Write again what could not be written when it was drawn or set."""
        if self.read_only:
            raise ProjectError(f"{project.path} {self.read_only}; save under another name.")
        failed: list[SparseSegError] = []
        for key, record in self._records(project).items():
            annotations = next(e.annotations for e in self._slides.entries if e.key == key)
            path = project.annotations_path(record)
            try:
                if annotations.path != path.resolve():
                    bind_to(annotations, path)
                elif not annotations.saved:
                    annotations.save(path)
            except SparseSegError as error:
                failed.append(error)
        self.write()
        if failed:
            raise failed[0]

    def _write_new(self, path: Path) -> Project:
        """A new project; it is written beside `path` and renamed, and a project that is there is moved aside."""
        if path.exists() and not (path / "project.json").exists():
            Project.create(path)  # refuses what is not a project, and completes one whose creation was interrupted
        part = path.with_name(f".{path.stem}-{os.getpid()}.partial{SUFFIX}")
        shutil.rmtree(part, ignore_errors=True)
        old = aside(path)
        try:
            project = Project.create(part)
            for key, record in self._records(project).items():
                self._annotations(key).save(project.annotations_path(record))
            project.write(self._state(project, (), self._carried(project)))
            if path.exists():
                for file in (path / "annotations").glob("*.sqlite"):
                    require_unlocked(file)
                path.rename(old)
            part.rename(path)
            sync_folder(path.parent)
            project = Project(path.resolve(), project.state)
            files = [(self._annotations(k), project.annotations_path(r)) for k, r in self._records(project).items()]
            bind_all(files)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            if old.exists():
                shutil.rmtree(path, ignore_errors=True)
                old.rename(path)
            raise
        return project

    def _merge_into(self, path: Path) -> Project:
        """Add our slides and strokes to a project; each slide gets a new file, the old ones stay beside it."""
        project = Project.open(path)
        ours = self._slides.classes if self._slides.labelled else ()
        table, channels = match_classes(project.state.classes, ours)
        ids = {old.id: new.id for old, new in zip(ours, channels, strict=True)}
        made: dict[str, Annotations] = {}
        records = self._records(project)
        before = {r.annotations for r in records.values()}
        stamp = time.strftime("%Y%m%d-%H%M%S")
        try:
            for key, record in records.items():
                old = project.annotations_path(record)
                mine = renumbered(self._annotations(key), ids, table)
                if old.exists():
                    require_unlocked(old)
                    mine = merged(Annotations.load(old), mine)
                    mine.set_classes(table)
                    records[key] = replace(record, annotations=f"{Path(record.annotations).stem}-{stamp}.sqlite")
                mine.attach(project.annotations_path(records[key]))
                made[key] = mine
            others = [r for r in project.state.slides if r.annotations not in before]
            state = ProjectState(
                (*records.values(), *others),
                table,
                project.state.config,
                project.state.closed,
                project.state.unreadable,
            )
            if self._training.model is not None and project.checkpoint.exists():
                shutil.copyfile(project.checkpoint, project.checkpoint.with_name(f"model-{stamp}.safetensors"))
            project.write(state)
        except BaseException:
            for annotations in made.values():
                file = annotations.path
                annotations.close()
                if file is not None:
                    file.unlink(missing_ok=True)
            raise
        self._slides.replace_all(made, table)
        return project

    def _annotations(self, key: str) -> Annotations:
        return next(e.annotations for e in self._slides.entries if e.key == key)

    def _carried(self, project: Project) -> tuple[SlideRecord, ...]:
        """Records of slides that were closed; their strokes are copied into the project."""
        carried: list[SlideRecord] = []
        for entry in self._shelf.values():
            record = project.record_for(entry.slide.path, entry.slide.fingerprint, entry.role, carried)
            entry.annotations.save(project.annotations_path(record))
            carried.append(replace(record, mpp=_mpp_by_user(entry.slide), version=entry.annotations.version))
        before = self.project
        for record in self._closed if before is not None else ():
            source = before.annotations_path(record)  # type: ignore[union-attr]
            target = project.annotations_path(record)
            if source.exists() and not target.exists():
                copy_file(source, target)
                carried.append(record)
        return tuple(carried)

    def write(self) -> None:
        """Write ``project.json``; slides that could not be opened stay listed."""
        with self._lock:
            project = self.project
            if project is None or self.read_only:
                return
            now = self._to_write()
            names = {r.annotations for r in (*self._records(project).values(), *self.left_out)}
            self.left_out += [r for r in project.listed_by_others() if r.annotations not in names]
            state = self._state(project, self.left_out, self._closed)
            if state != project.state or not (project.path / "project.json").exists():
                project.write(state)
            self._written, self._written_at = now, time.monotonic()

    def write_changes(self) -> None:
        """Write ``project.json`` if roles, mpp, classes or settings have changed; stroke counts every few seconds."""
        now = self._to_write()
        if self._written and (now[1:] != self._written[1:] or time.monotonic() > self._written_at + _WRITE_S):
            self.write()

    def _to_write(self) -> tuple[object, ...]:
        entries = self._slides.entries
        slides = tuple((e.key, e.role, e.slide.mpp) for e in entries)
        return tuple(e.annotations.version for e in entries), slides, self._slides.classes, self._training.settings

    def _state(
        self, project: Project, left_out: Collection[SlideRecord], closed: tuple[SlideRecord, ...]
    ) -> ProjectState:
        records = (*self._records(project).values(), *left_out)
        return ProjectState(records, self._slides.classes, self._training.settings, closed, project.state.unreadable)

    def close(self) -> None:
        """Close all slides; a recovery folder without strokes is removed, unless it has the only copy of a model."""
        for entry in self._slides.entries:
            if entry.annotations.path is not None and not entry.annotations.saved:
                try:
                    entry.annotations.save(entry.annotations.path)
                except SparseSegError as error:
                    _log.error("%s", error)
        with suppress(ProjectError):  # the strokes are in their own files
            self.write()
        self._slides.close()
        if self.project is None or self.read_only or self.left_out:
            return
        with suppress(ProjectError):  # it contains links, so no session of ours made it
            if not recovery.strokes_in(self.project) and (self.checkpoint is None or self._training.exported):
                recovery.discard(self.project)

    def _any_project(self) -> Project:
        with self._lock:
            if self.project is None:
                self.project = recovery.new_recovery_project()
                _log.info("unsaved work goes to %s", self.project.path)
            return self.project

    def _records(self, project: Project) -> dict[str, SlideRecord]:
        """The record of each open slide by its key; two copies of one slide have two records."""
        records: dict[str, SlideRecord] = {}
        for e in self._slides.entries:
            drawn = e.annotations
            record = project.record_for(e.slide.path, e.slide.fingerprint, e.role, records.values())
            strokes = len(drawn.strokes) + len(drawn.dense_regions)
            mpp = _mpp_by_user(e.slide)
            record = replace(record, role=e.role, mpp=mpp, strokes=strokes, version=drawn.version)
            records[e.key] = replace(record, image=e.slide.image, crop=e.slide.contents.crop)
        return records


def _mpp_by_user(slide: Slide) -> tuple[float, float] | None:
    return slide.mpp if slide.mpp_source == BY_USER else None
