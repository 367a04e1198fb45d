"""Saves a session to disk: into the user's project, or into a recovery folder until there is one."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, Literal, ParamSpec, TypeVar

from napari_sparseseg.annotations import Annotations, FileInUseError, NotWritableError
from napari_sparseseg.annotations.file_state import classes_in
from napari_sparseseg.annotations.sqlite_file import require_unlocked
from napari_sparseseg.config import make_classes
from napari_sparseseg.errors import ProjectError, SparseSegError
from napari_sparseseg.session import recovery
from napari_sparseseg.session.absent import AbsentSlides
from napari_sparseseg.session.binding import bind_to, listed_slide, place_of, records_of, what_is_missing
from napari_sparseseg.session.class_tables import meant
from napari_sparseseg.session.project import Project, ProjectState, SlideRecord, free_name
from napari_sparseseg.session.run_files import RunFolder
from napari_sparseseg.session.saving import merge_into, write_new
from napari_sparseseg.session.slides import checked_role
from napari_sparseseg.session.whereabouts import Whereabouts
from napari_sparseseg.slides import open_slide

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator

    from napari_sparseseg.config import ClassDef
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
            self._settle()
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
        self._ended = False
        self._absent = AbsentSlides()
        self._whereabouts = Whereabouts(slides, self._say)
        self._replaced: Project | None = None
        """The folder of unsaved work whose contents were saved as a project, until the model is there too."""
        self.project: Project | None = None
        self.notes: list[str] = []
        """What was missing or incomplete when slides were opened."""
        self._upcoming: tuple[ClassDef, ...] = ()
        """The class table that the annotation files are getting just now."""
        slides.reclassed.connect(self._absent.follow)
        training.write_checkpoint = self.write_checkpoint
        self.read_only = ""
        """Why nothing can be written, or empty: what is drawn here stays in memory until it is saved elsewhere."""

    @property
    def checkpoint(self) -> Path | None:
        """The model file that the last run wrote, or None; `ProjectError` where it is a link to elsewhere."""
        path = None if self.project is None else self.project.checkpoint
        return path if path is not None and path.exists() else None

    def write_checkpoint(self, save: Callable[[Project], None]) -> None:
        """Write the model when a run ends, unless the project is read-only; without a project, to a recovery folder.

        A script may have no home folder, or a full one: its model then stays in memory, and nothing fails.
        """
        if self.read_only:
            return
        try:
            project = self._any_project()
            here = self._whereabouts.of_model(project)
            if here is project:
                self.write()
            save(here)
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
        before = self._absent.waiting(entry.slide)
        if before is not None and not before.crop and entry.slide.canvas != entry.slide.bounds:
            self._slides.remove(entry)  # its strokes are in the frame of the whole canvas
            entry = self._slides.add(open_slide(entry.slide.path, crop=False), entry.role)
        if before is not None:
            entry.role = role or before.role
            entry.slide.mpp = before.mpp or entry.slide.mpp
        if before is not None and (shelved := self._absent.shelved(before)) is not None:
            drawn = self._slides.translated(shelved, before.classes)
            self._slides.replace_annotations(entry, drawn, reconcile=True)
            self._absent.unshelve(before)
        else:
            self._bind(entry)
        if before is not None:
            self._slides.changed.emit()
        return entry

    def set_classes(self, classes: Iterable[ClassDef | tuple[str, str] | str]) -> None:
        """Change the class table of all slides, as one step of their history."""
        self._slides.require_open()
        table = make_classes(classes)
        if table != self._slides.classes:
            with self.announcing(table):
                self._slides.set_classes(table, undoable=True, act=uuid.uuid4().hex)

    @contextmanager
    def announcing(self, table: tuple[ClassDef, ...]) -> Iterator[None]:
        """Around a change of the class table.

        ``project.json`` says so before the first annotation file is written: what a kill leaves undone is done when
        the project is opened.
        """
        if len(self._slides.entries) > 1 and table != self._slides.classes:
            self._upcoming = table
            with suppress(ProjectError):  # a full disk: said below
                self.write()
        try:
            yield
        finally:
            self._upcoming = ()
        self.write_changes()

    @_one_at_a_time
    def remove(self, entry: SlideEntry) -> None:
        """Close a slide; `open` restores its strokes, role and mpp."""
        project, classes = self.project, self._slides.classes
        if project is None or self.read_only:
            nowhere = project or Project(Path(), ProjectState())
            self._absent.shelve(entry.annotations, replace(self._records(nowhere)[entry.key], classes=classes))
        else:
            self._save_entry(project, entry)
            self._absent.closed += (replace(self._records(project)[entry.key], classes=classes),)
        self._slides.remove(entry)
        self.write()

    def add(self, slide: Slide, role: Role) -> None:
        """Add an open slide."""
        self._bind(self._slides.add(slide, role))

    def open_project(self, path: str | os.PathLike[str], *, read_only: bool) -> list[str]:
        """Open a project's slides, classes and settings; returns what the user must know about it, one clause each."""
        project = Project.open(path)
        self._training.recall(project.state.config)
        self._slides.replace_classes(project.state.classes)
        self.project = project
        self._absent.restart(project.state)
        if read_only:
            self.read_only = "is open read-only"
        self.notes = list(project.problems)
        listed, upcoming = project.state.classes, project.state.next_classes
        self._upcoming = upcoming
        for record in project.state.slides:
            note = self._open_record(project, record)
            if note:
                self.notes.append(note)
        self._absent.remember(listed)
        if upcoming:  # killed meanwhile
            self._slides.set_classes(upcoming)
            self._upcoming = ()
            self.write()
        self._written, self._written_at = self._to_write(), time.monotonic()  # also where no slide was opened
        if self.read_only and not read_only:
            self.notes.append(f"the project {self.read_only}: changes here will not be saved; save under another name")
        _log.info("opened project %s: %d slides, %s", project.path, len(self._slides.entries), self.notes or "complete")
        shown = self.notes[:_MOST_NOTES]
        return [*shown, *([f"and {len(self.notes) - len(shown)} more"] if len(shown) < len(self.notes) else [])]

    def _open_record(self, project: Project, record: SlideRecord) -> str:
        """Open a slide of a project; returns what is wrong with it, or nothing. It stays listed in any case."""
        slide, why = listed_slide(project, record)
        if slide is None:
            return why
        if record.mpp is not None:
            slide.mpp = record.mpp
        try:
            self.add(slide, record.role)
        except SparseSegError as error:
            return f"{Path(record.path).name} is left out: {error}"
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
        self._slides.require_open()  # it may have been closed while this waited
        if not self._autosave and self.project is None:
            return
        project = self._any_project()
        record = self._records(project)[entry.key]
        path = project.annotations_path(record)
        waiting = self._absent.listed(record.annotations) or record
        note = what_is_missing(path, waiting, mend=not self.read_only)
        translated = None
        if waiting.classes or waiting in self._absent.closed:
            translated = self._translated(path, waiting)
        used = path
        if not self.read_only:
            try:
                used = self._attach(entry, path, translated, listed=bool(project.state.classes))
            except FileInUseError:
                self.read_only = "is open in another window"
            except NotWritableError:
                self.read_only = "cannot be written to"
        if self.read_only and path.exists() and path.stat().st_size:
            self._slides.replace_annotations(entry, translated or Annotations.load(path), reconcile=True)
        if note:
            self._say(note)
        self._absent.forget(record.annotations)
        self.write()
        if used != path:  # project.json lists the new file now
            path.unlink(missing_ok=True)

    def _attach(self, entry: SlideEntry, path: Path, translated: Annotations | None, *, listed: bool) -> Path:
        """Bind a slide to its file; annotations with other ids go to a new one, which is returned."""
        if translated is None:
            self._slides.attach(entry, path, listed=listed)
            return path
        require_unlocked(path)
        new = path.with_name(free_name(path.name, {p.name for p in path.parent.iterdir()}))
        try:
            translated.save(new)
            self._slides.replace_annotations(entry, translated, reconcile=True)
            self._slides.attach(entry, new, listed=listed)
        except SparseSegError:
            new.unlink(missing_ok=True)
            raise
        return new

    def _translated(self, path: Path, record: SlideRecord) -> Annotations | None:
        """Annotations of a slide that was not open while the classes changed; None where its ids mean the same."""
        if not path.exists() or not path.stat().st_size:
            return None
        used = classes_in(path)
        if self._slides.agrees(used, meant(used, record.classes)):
            return None
        return self._slides.translated(Annotations.load(path), record.classes)

    @_one_at_a_time
    def replace_annotations(self, entry: SlideEntry, annotations: Annotations) -> None:
        """Give a slide other annotations and save them."""
        self._slides.replace_annotations(entry, annotations)
        if (self._autosave or self.project is not None) and not self.read_only:
            project = self._any_project()
            bind_to(annotations, project.annotations_path(self._records(project)[entry.key]))
            self.write()

    @_one_at_a_time
    def save_as(self, path: Path, exists: Exists) -> Project:
        """Save all but the model at `path`, or change nothing; call `discard` when the model is there too."""
        self._slides.require_open()
        path = place_of(path)
        if self._whereabouts.is_at(path) and exists != "replace":
            self._settle()
        before = self.project
        if before is not None and before.path == path.resolve():
            self._save_in_place(before)
            return before
        taken = (path / "project.json").exists()
        if taken and exists == "refuse":
            raise ProjectError(
                f"{path} exists already. Open it to continue it, or choose another name; a script can also save with "
                'exists="merge", which adds to it, or exists="replace", which moves it aside.'
            )
        try:
            contents, made = self._absent.contents(before, self._slides, self._training), None
            if taken and exists == "merge":
                project, made = merge_into(path, contents, self._records)
            else:
                project = write_new(path, contents, self._records)
        except OSError as error:
            raise ProjectError(
                f"cannot save project {path}: {error.strerror or error}. Nothing was changed."
            ) from error
        if before is not None and not self.read_only and recovery.is_all_listed(before):
            self._replaced = before
        self.project, self.read_only = project, ""
        self._whereabouts.forget()
        self._absent.restart(project.state)
        if made is not None:
            self._adopt(project, made)
        for record in self._records(project).values():
            self._absent.forget(record.annotations)
        self._absent.remember(project.state.classes)
        self.write()
        _log.info("saved project %s", project.path)
        return project

    def _adopt(self, project: Project, made: dict[str, Annotations]) -> None:
        """Go on with what a merge made of the open slides: roles and resolutions are the project's."""
        records = {r.annotations: r for r in project.state.slides}
        for entry in self._slides.entries:
            path = made[entry.key].path if entry.key in made else None
            if path is not None and (record := records.get(path.name)) is not None:
                entry.role = record.role
                entry.slide.restore_mpp()
                if record.mpp is not None:
                    entry.slide.mpp = record.mpp
        self._slides.replace_all(made, project.state.classes)

    def discard(self) -> None:
        """Delete the recovery folder that a saved project replaces, unless it has a model that could not be loaded."""
        replaced, self._replaced = self._replaced, None
        with suppress(ProjectError, OSError):  # links: no session of ours made it; or the disk is full
            if replaced is not None and (self._training.model is not None or not replaced.checkpoint.exists()):
                if self.project is not None:  # a run that ended meanwhile
                    RunFolder(replaced.path).copy_to(RunFolder(self.project.path), [])
                recovery.discard(replaced)

    def _save_entry(self, project: Project, entry: SlideEntry) -> None:
        """Write again what could not be written of a slide when it was drawn."""
        path = project.annotations_path(self._records(project)[entry.key])
        if entry.annotations.path != path.resolve():
            bind_to(entry.annotations, path)
        elif not entry.annotations.saved:
            entry.annotations.save(path)

    def _save_in_place(self, project: Project) -> None:
        """Write again what could not be written when it was drawn or set."""
        if self.read_only:
            raise ProjectError(f"{project.path} {self.read_only}; save under another name.")
        failed: list[SparseSegError] = []
        for entry in self._slides.entries:
            try:
                self._save_entry(project, entry)
            except SparseSegError as error:
                failed.append(error)
        self.write()
        if failed:
            raise failed[0]

    def write(self) -> None:
        """Write ``project.json``; slides that could not be opened stay listed."""
        with self._lock:
            project = self.project
            if project is None or self.read_only or self._ended:  # ended: no slide is open, and all stay listed
                return
            self._whereabouts.see(project)
            now = self._to_write()
            others, opened = project.listed_by_others(), tuple(self._records(project).values())
            self._absent.add(others, opened)
            known = project.state
            state = ProjectState(
                (*opened, *self._absent.left_out),
                known.classes if self._upcoming else self._slides.classes,
                self._training.settings,
                self._absent.closed,
                (*known.unreadable, *others.unreadable),
                (*known.unreadable_closed, *others.unreadable_closed),
                self._upcoming,
            )
            if state != known or not (project.path / "project.json").exists():
                project.write(state)
            self._written, self._written_at = now, time.monotonic()

    def write_changes(self) -> None:
        """Write ``project.json`` if roles, mpp, classes or settings have changed; stroke counts every few seconds."""
        self._settle()
        now = self._to_write()
        if (
            self._written
            and not self._upcoming
            and (now[1:] != self._written[1:] or time.monotonic() > self._written_at + _WRITE_S)
        ):
            self.write()

    def _settle(self) -> None:
        """Go on in another folder where the project is not in its own any more."""
        before = self.project
        if before is None or self.read_only or self._ended or self._whereabouts.is_settled(before):
            return
        with self._binding:
            self.project = project = self._whereabouts.settle(before)
        if project is not before:
            self.write()
            self._slides.changed.emit()

    def _say(self, line: str) -> None:
        _log.warning(line)
        self.notes.append(line)
        self._training.note(line)

    def _to_write(self) -> tuple[object, ...]:
        entries = self._slides.entries
        slides = tuple((e.key, e.role, e.slide.mpp) for e in entries)
        return tuple(e.annotations.version for e in entries), slides, self._slides.classes, self._training.settings

    @_one_at_a_time
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
        self._ended = True
        self._slides.close()
        if self.project is None or self.read_only or self._absent.left_out:
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
        return records_of(project, self._slides.entries)
