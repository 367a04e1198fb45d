"""Keeps a session on disk: in the user's project, or in a recovery folder until there is one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from napari_sparseseg import recovery
from napari_sparseseg.annotations import Annotations, FileInUseError
from napari_sparseseg.errors import ProjectError
from napari_sparseseg.project import SUFFIX, Project, ProjectState

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari_sparseseg.config import TrainConfig
    from napari_sparseseg.slide_set import SlideEntry, SlideSet


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
        self.project: Project | None = None
        self.read_only = False
        """Somebody else has the project open: what is drawn here stays in memory until it is saved elsewhere."""

    @property
    def checkpoint(self) -> Path | None:
        """The model file that the last run wrote, or None."""
        path = None if self.project is None else self.project.checkpoint
        return path if path is not None and path.exists() else None

    def checkpoint_path(self) -> Path:
        """Where a run writes its model; makes a recovery folder where there is no project."""
        project = self._any_project()
        self.write()
        return project.checkpoint

    def on_open(self, entry: SlideEntry) -> None:
        """Keep a slide that was just opened or whose annotations were replaced, if this session keeps any."""
        if not self._autosave and self.project is None:
            return
        project = self._any_project()
        try:
            self._attach(entry, project, move=False)
        except FileInUseError:
            self.read_only = True
            record = project.record_for(Path(entry.slide.path), entry.slide.fingerprint, entry.role)
            self._slides.replace_annotations(entry, Annotations.load(project.annotations_path(record)))
        self.write()

    def on_replaced(self, entry: SlideEntry) -> None:
        """Keep annotations that took the place of others."""
        if (self._autosave or self.project is not None) and not self.read_only:
            self._attach(entry, self._any_project(), move=True)
            self.write()

    def save_as(self, path: Path) -> Project:
        """Move everything to the project at `path`, made where it does not exist."""
        path = path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)
        before = self.project
        if before is not None and before.path == path.resolve():
            if self.read_only:
                raise ProjectError(f"{path} is open in another window; save under another name to keep this work.")
            self.write()
            return before
        project = Project.open(path) if (path / "project.json").exists() else Project.create(path)
        for entry in self._slides.entries:
            self._attach(entry, project, move=True)
        self.project, self.read_only = project, False
        self.write()
        if before is not None:
            recovery.discard(before)
        return project

    def write(self) -> None:
        """Write ``project.json`` as things are now; slides that could not be found stay listed."""
        project = self.project
        if project is None or self.read_only:
            return
        records = tuple(
            replace(project.record_for(Path(e.slide.path), e.slide.fingerprint, e.role), role=e.role, mpp=e.slide.mpp)
            for e in self._slides.entries
        )
        present = {r.fingerprint for r in records}
        missing = [r for r in project.state.slides if r.fingerprint not in present and project.locate(r) is None]
        project.write(ProjectState((*records, *missing), self._slides.classes, self._config()))

    def discard_if_empty(self, *, empty: bool) -> None:
        """Remove the recovery folder of a session in which nothing was drawn and nothing learned."""
        if self.project is not None and empty and self.checkpoint is None:
            recovery.discard(self.project)

    def _any_project(self) -> Project:
        if self.project is None:
            self.project = recovery.new_recovery_project()
        return self.project

    @staticmethod
    def _attach(entry: SlideEntry, project: Project, *, move: bool) -> None:
        record = project.record_for(Path(entry.slide.path), entry.slide.fingerprint, entry.role)
        path = project.annotations_path(record)
        if move:
            entry.annotations.save(path)
        entry.annotations.attach(path)
