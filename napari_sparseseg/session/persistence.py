"""Keeps a session on disk: in the user's project, or in a recovery folder until there is one."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from napari_sparseseg.annotations import Annotations, FileInUseError, NotWritableError
from napari_sparseseg.errors import ProjectError
from napari_sparseseg.session import recovery
from napari_sparseseg.session.project import SUFFIX, Project, ProjectState, SlideRecord
from napari_sparseseg.slides.slide import BY_USER

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from napari_sparseseg.config import TrainConfig
    from napari_sparseseg.session.slides import SlideEntry, SlideSet

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
    slides, config
        What to keep.
    autosave
        Keep every stroke from the first on, in a recovery folder while there is no project.
    """

    def __init__(self, slides: SlideSet, config: Callable[[], TrainConfig], *, autosave: bool) -> None:
        self._slides, self._config, self._autosave = slides, config, autosave
        self._lock = threading.RLock()  # the engine thread asks for `checkpoint_path`
        self._binding = threading.RLock()  # never taken by the engine thread: signals are sent while it is held
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

    def begin(self, project: Project) -> None:
        """Go on with a project; its slides count as left out until `on_open` is told of them."""
        self.project, self.left_out = project, list(project.state.slides)

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
    def on_replaced(self, entry: SlideEntry) -> None:
        """Keep annotations that took the place of others."""
        if (self._autosave or self.project is not None) and not self.read_only:
            project = self._any_project()
            self._move(entry, project, self._records(project)[entry.key])
            self.write()

    @_one_at_a_time
    def save_as(self, path: Path) -> Project:
        """Move everything to the project at `path`, made where it does not exist."""
        path = path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)
        before = self.project
        if before is not None and before.path == path.resolve():
            if self.read_only:
                raise ProjectError(f"{path} {self.read_only}; save under another name to keep this work.")
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
            ours = self._records(project).values()
            known = {r.annotations for r in (*ours, *self.left_out)}
            self.left_out += [r for r in project.listed_by_others() if r.annotations not in known]
            records = (*ours, *self.left_out)
            state = ProjectState(records, self._slides.classes, self._config())
            if state != project.state or not (project.path / "project.json").exists():
                project.write(state)

    def discard_if_empty(self, *, empty: bool) -> None:
        """Remove the recovery folder of a session in which nothing was drawn and nothing learned."""
        kept_by_others = self.read_only or self.left_out
        if self.project is None or not empty or kept_by_others:
            return
        with suppress(ProjectError):  # links in it: not made by a session of ours
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
