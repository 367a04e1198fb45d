"""A session without a learner: slides, their annotations, one class table, and where all that is kept."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast, get_args

from napari_sparseseg.config import ClassDef, TrainConfig
from napari_sparseseg.errors import ProjectError, SlideError, SparseSegError
from napari_sparseseg.session.persistence import ProjectKeeper
from napari_sparseseg.session.project import Project, Role, is_remote
from napari_sparseseg.session.slides import SlideSet
from napari_sparseseg.slides import open_slide

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from napari_sparseseg.annotations import Annotations
    from napari_sparseseg.session.project import SlideRecord
    from napari_sparseseg.session.slides import SlideEntry
    from napari_sparseseg.slides import Slide


class SlideSession:
    """Slides and annotations; `Session` adds training and prediction. See there for the parameters."""

    def __init__(
        self, classes: Iterable[ClassDef | tuple[str, str] | str], *, config: TrainConfig | None, autosave: bool
    ) -> None:
        self._config = config or TrainConfig()
        self._named = {self._config.encoder}
        self.set = SlideSet(classes)
        self._keeper = ProjectKeeper(self.set, lambda: self.config, autosave=autosave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files; a recovery folder in which nothing was kept goes."""
        with contextlib.suppress(ProjectError):  # the strokes are in their own files
            self._keeper.write()
        empty = not any(any(e.annotations.counts().values()) for e in self.set.entries)
        self.set.close()
        self._keeper.discard_if_empty(empty=empty)

    def open(self, path: str | os.PathLike[str], *, role: Role | None = None) -> Slide:
        """Open a slide and make it the active one.

        A slide of the project that was moved is known by its fingerprint: it gets its strokes, role and mpp back.

        Parameters
        ----------
        path
            File, folder of an OME-Zarr, or address.
        role
            None: what it is in the project, else ``train``.

        Raises
        ------
        SlideOpenError
            When it is not a slide that can be opened.
        """
        known = tuple(self.set.entries)
        entry = self.set.open(path, _checked(role or "train"))
        if entry in known:
            return entry.slide
        missed = [r for r in self._keeper.left_out if r.fingerprint == entry.slide.fingerprint]
        if missed:
            entry.role = role or missed[0].role
            if missed[0].mpp is not None:
                entry.slide.mpp = missed[0].mpp
        self._keep(entry)
        if missed:
            self.set.changed.emit()
        return entry.slide

    def remove(self, slide: Slide | None = None) -> None:
        """Close a slide, by default the active one, and take it off the project; its strokes stay in the folder.

        Opening it again brings them back.
        """
        self.set.remove(self._entry(slide))
        self._keeper.write()

    def set_role(self, role: Role, slide: Slide | None = None) -> None:
        """Say what a slide, by default the active one, is for: ``train``, ``held-out`` or ``predict`` (only)."""
        self._entry(slide).role = _checked(role)
        self.set.changed.emit()
        self._keeper.write()

    def add(self, slide: Slide, *, role: Role = "train") -> Slide:
        """Take over a slide that is open already (an `ArraySlide` for images in memory) and make it the active one.

        From then on the session closes it.
        """
        self._keep(self.set.add(slide, role))
        return slide

    @property
    def slide(self) -> Slide:
        """The active slide."""
        return self.set.active.slide

    @property
    def slides(self) -> tuple[Slide, ...]:
        """All open slides."""
        return tuple(e.slide for e in self.set.entries)

    @property
    def annotations(self) -> Annotations:
        """What is drawn on the active slide; assign another `Annotations` of the same shape to replace it."""
        return self.set.active.annotations

    @annotations.setter
    def annotations(self, annotations: Annotations) -> None:
        self.set.replace_annotations(self.set.active, annotations)
        self._keeper.on_replaced(self.set.active)

    @property
    def classes(self) -> tuple[ClassDef, ...]:
        """The class table of all slides; assign to change it."""
        return self.set.classes

    @classes.setter
    def classes(self, classes: Sequence[ClassDef]) -> None:
        self.set.set_classes(classes)

    def import_annotations(self, path: str | os.PathLike[str]) -> None:
        """Replace the active slide's annotations by a file's (GeoJSON, ASAP XML, .sparseseg, label image).

        Classes are matched by name; names that are new join the table.
        """
        from napari_sparseseg.io import load_annotations

        entry = self.set.active
        others = [e for e in self.set.entries if e is not entry]
        fresh = not others and not any(entry.annotations.counts().values())
        self.annotations = load_annotations(path, entry.slide.shape, classes=() if fresh else self.classes)

    @property
    def config(self) -> TrainConfig:
        """The settings of the next run; assign others to change them.

        An encoder named here, or to `Session.train`, was asked for; one that only a project names was not.
        """
        return self._config

    @config.setter
    def config(self, config: TrainConfig) -> None:
        if config.encoder != self._config.encoder:
            self._named.add(config.encoder)
        self._config = config

    @property
    def project(self) -> Path | None:
        """The project folder, or None for a session that keeps nothing on disk yet."""
        return None if self._keeper.project is None else self._keeper.project.path

    @property
    def checkpoint(self) -> Path | None:
        """The model file that the last run wrote, or None; `ProjectError` where it is a link to elsewhere."""
        return self._keeper.checkpoint

    def open_recorded(self, path: str | os.PathLike[str], *, read_only: bool = False) -> list[str]:
        """Open a project's slides, classes and settings; what the user must know of it, one clause each.

        With `read_only` the project is neither locked nor changed.

        Raises
        ------
        ProjectError
            When it is no project or damaged.
        """
        project = Project.open(path)
        self._config, self.classes = project.state.config, project.state.classes
        self._keeper.begin(project)
        if read_only:
            self._keeper.read_only = "is only read here"
        notes = [note for note in (self._open_record(project, r) for r in project.state.slides) if note]
        if self._keeper.read_only and not read_only:
            notes.append(f"the project {self._keeper.read_only}: changes here are not kept; save under another name")
        return notes

    def _open_record(self, project: Project, record: SlideRecord) -> str:
        """Open a slide of a project; what is wrong with it, or nothing. It stays listed in any case."""
        name = Path(record.path).name
        if is_remote(record.path):
            return f"{name} is left out: its address {record.path} is not asked for unasked; open it to go on with it"
        found = project.locate(record)
        if found is None:
            return f"{name} was not found and is left out; open it to relink"
        try:
            slide = open_slide(found)
        except SlideError as error:
            return f"{name} is left out: {error}"
        if slide.fingerprint != record.fingerprint:
            slide.close()
            return (
                f"{found} is another slide than the one that was annotated and is left out; its strokes stay in "
                f"{project.annotations_path(record)}. Put the slide back, or open it from where it is now"
            )
        if record.mpp is not None:
            slide.mpp = record.mpp
        try:
            self.add(slide, role=record.role)
        except SparseSegError as error:
            return f"{name} is left out: {error}"
        return ""

    def _entry(self, slide: Slide | None) -> SlideEntry:
        entries = [self.set.active] if slide is None else [e for e in self.set.entries if e.slide is slide]
        if not entries:
            raise SlideError("that slide is not open in this session; open it first.")
        return entries[0]

    def _keep(self, entry: SlideEntry) -> None:
        """Keep a slide that was just opened; one that cannot be kept is closed, lest strokes on it get lost."""
        try:
            self._keeper.on_open(entry)
        except SparseSegError:
            self.set.remove(entry)
            raise


def _checked(role: str) -> Role:
    if role not in get_args(Role):
        raise SlideError(f"role {role!r} is none of {', '.join(get_args(Role))}; choose one of these.")
    return cast("Role", role)
