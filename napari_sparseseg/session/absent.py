"""Slides that belong to a session and are not open: closed by the user, or not found when the project was opened."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from napari_sparseseg.errors import ProjectError
from napari_sparseseg.session.class_tables import renamed
from napari_sparseseg.session.project import Project, ProjectState, SlideRecord, full_path
from napari_sparseseg.session.saving import Carried, Contents

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from napari_sparseseg.annotations import Annotations
    from napari_sparseseg.session.class_tables import Table
    from napari_sparseseg.session.slides import SlideCollection
    from napari_sparseseg.session.training import Training
    from napari_sparseseg.slides import Slide


class AbsentSlides:
    """Records of slides that are not open; each remembers what its class ids mean.

    Attributes
    ----------
    left_out
        Slides of the project that could not be opened; they stay listed.
    closed
        Slides that were closed and have a file in the project.
    """

    def __init__(self) -> None:
        self.left_out: tuple[SlideRecord, ...] = ()
        self.closed: tuple[SlideRecord, ...] = ()
        self._shelf: list[tuple[Annotations, SlideRecord]] = []
        """Slides that were closed while nothing was saved on disk."""

    def waiting(self, slide: Slide) -> SlideRecord | None:
        """The record of an absent slide: of two copies, that of the same file."""
        records = (*(record for _, record in self._shelf), *self.left_out, *self.closed)
        same = [r for r in records if r.fingerprint == slide.fingerprint]
        return next((r for r in same if r.path == full_path(slide.path)), same[0] if same else None)

    def listed(self, name: str) -> SlideRecord | None:
        """The record of an absent slide, by the name of its annotation file."""
        return next((r for r in (*self.left_out, *self.closed) if r.annotations == name), None)

    def shelve(self, annotations: Annotations, record: SlideRecord) -> None:
        """Keep a closed slide in memory."""
        self._shelf.append((annotations, record))

    def shelved(self, record: SlideRecord | None) -> Annotations | None:
        """What was drawn on a slide that is kept in memory."""
        return next((drawn for drawn, kept in self._shelf if kept is record), None)

    def unshelve(self, record: SlideRecord | None) -> None:
        """Forget a slide that is open again."""
        self._shelf = [(drawn, kept) for drawn, kept in self._shelf if kept is not record]

    def forget(self, name: str) -> None:
        """Remove the record of a slide that is open again, by the name of its annotation file."""
        self.left_out = tuple(r for r in self.left_out if r.annotations != name)
        self.closed = tuple(r for r in self.closed if r.annotations != name)

    def restart(self, state: ProjectState) -> None:
        """Take over the records of a project; none of its slides is open yet."""
        self._shelf, self.left_out, self.closed = [], state.slides, state.closed

    def remember(self, table: Table) -> None:
        """Slides that were left out now have ids of this class table."""
        self.left_out = tuple(replace(r, classes=r.classes or table) for r in self.left_out)

    def follow(self, before: Table, after: Table) -> None:
        """The class table was edited: classes that were renamed are renamed here too."""

        def new(record: SlideRecord) -> SlideRecord:
            return replace(record, classes=renamed(record.classes, before, after))

        self.left_out, self.closed = tuple(map(new, self.left_out)), tuple(map(new, self.closed))
        self._shelf = [(drawn, new(record)) for drawn, record in self._shelf]

    def add(self, others: ProjectState, opened: Iterable[SlideRecord]) -> None:
        """Add the slides that another program has listed."""
        names = {r.annotations for r in (*opened, *self.left_out, *self.closed)}
        self.left_out += tuple(r for r in others.slides if r.annotations not in names)
        self.closed += tuple(r for r in others.closed if r.annotations not in names)

    def contents(self, home: Project | None, slides: SlideCollection, training: Training) -> Contents:
        """What a save has to write: the open slides and these, of which those on disk are in the project `home`."""
        unreadable = () if home is None else (*home.state.unreadable, *home.state.unreadable_closed)
        files = [_file_in(home, item.get("annotations")) for item in unreadable if home and isinstance(item, dict)]
        return Contents(
            {e.key: e.annotations for e in slides.entries},
            self._carried(home),
            slides.classes,
            training.settings,
            unreadable,
            tuple(file for file in files if file is not None),
            None if home is None else home.path,
            training.model is not None,
        )

    def _carried(self, home: Project | None) -> tuple[Carried, ...]:
        carried = []
        for drawn, record in self._shelf:
            strokes = len(drawn.strokes) + len(drawn.dense_regions)
            carried.append(Carried(replace(record, strokes=strokes, version=drawn.version), True, drawn))
        for closed, records in ((True, self.closed), (False, self.left_out)):
            for record in records:
                file = None if home is None else _file_in(home, record.annotations)
                carried.append(Carried(record, closed, file=file))
        return tuple(carried)


def _file_in(project: Project, name: object) -> Path | None:
    """An annotation file that is there; None where it is not, or its name leads out of the project."""
    with suppress(ProjectError, OSError, ValueError):
        file = project.annotations_path(SlideRecord("", "", name)) if isinstance(name, str) else None
        return file if file is not None and file.exists() else None
    return None
