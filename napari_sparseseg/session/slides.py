"""The slides of a session with their annotations: open, switch, share one class table, freeze for training."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from psygnal import Signal

from napari_sparseseg.annotations import Annotations
from napari_sparseseg.config import ClassDef, TrainConfig, make_classes
from napari_sparseseg.errors import AnnotationError, SessionClosedError, SlideError, TrainingError
from napari_sparseseg.session.class_tables import joined, meant, translated, used_in
from napari_sparseseg.session.project import Role
from napari_sparseseg.slides import Slide, open_slide

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from napari_sparseseg.learning.sources import Source
    from napari_sparseseg.session.class_tables import Table

_keys = itertools.count(1)
DEFAULT_MPP = 1.0
Versions = tuple[tuple[str, int], ...]
"""Annotation version by slide key; hashes of the slides and of the class table come last."""


@dataclass(slots=True)
class SlideEntry:
    """One open slide, what was drawn on it, and what it is for."""

    slide: Slide
    annotations: Annotations
    role: Role = "train"
    key: str = field(default_factory=lambda: f"slide-{next(_keys)}")


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Frozen annotations of every slide that takes part in training."""

    sources: tuple[Source, ...]
    versions: Versions
    classes: tuple[ClassDef, ...]
    mpp: float | None


class SlideCollection:
    """Open slides; one of them is active. All annotations have the same class table.

    Attributes
    ----------
    entries
        Replaced, never changed in place: the engine thread may be reading it.
    changed
        Signal (): a slide was added, removed or activated, or its role or mpp was set.
    annotated
        Signal (): a stroke was committed, undone or redone on any slide, or the classes changed.
    reclassed
        Signal (before, after): the class table was edited; ids kept their meaning.
    """

    changed = Signal()
    annotated = Signal()
    reclassed = Signal(tuple, tuple)

    def __init__(self, classes: Iterable[ClassDef | tuple[str, str] | str]) -> None:
        self._classes = make_classes(classes)
        self.unopened = Annotations((1, 1), classes=self._classes)
        """Of no slide: its history has the changes of the class table for when none is open."""
        self.entries: tuple[SlideEntry, ...] = ()
        self.closed = False
        """Set once, when the session begins to close: no act on it is accepted from then on."""
        self._active = -1
        self._following = False
        self._watched: Versions = ()

    def require_open(self) -> None:
        """Raise `SessionClosedError` where the session was closed."""
        if self.closed:
            raise SessionClosedError

    @property
    def active(self) -> SlideEntry:
        """The active slide.

        Raises
        ------
        SlideError
            When none is open.
        """
        self.require_open()
        entry = self.current
        if entry is None:
            raise SlideError("no slide is open; open one first.")
        return entry

    @property
    def current(self) -> SlideEntry | None:
        """The active slide or None; from any thread, while another opens and closes slides."""
        entries, index = self.entries, self._active
        return entries[index] if 0 <= index < len(entries) else None

    @property
    def has_active(self) -> bool:
        """Whether a slide is open."""
        return self.current is not None

    @property
    def classes(self) -> tuple[ClassDef, ...]:
        """The class table of all slides."""
        return self._classes

    @property
    def labelled(self) -> bool:
        """Whether any slide has a labelled pixel."""
        return any(any(e.annotations.counts().values()) for e in self.entries)

    def entry_of(self, slide: Slide | None) -> SlideEntry:
        """The entry of an open slide; None: of the active one.

        Raises
        ------
        SlideError
            When the slide is not open, or none is active.
        """
        self.require_open()
        entries = [self.active] if slide is None else [e for e in self.entries if e.slide is slide]
        if not entries:
            raise SlideError("that slide is not open in this session; open it first.")
        return entries[0]

    def open(self, path: str | os.PathLike[str], role: Role = "train", image: int | None = None) -> SlideEntry:
        """Open a slide and make it active; one that is open already is only activated.

        Raises
        ------
        SlideOpenError
            When it is not a slide that can be opened.
        SlideChangedError
            When it is open already, and another one lies there by now.
        """
        self.require_open()
        address = str(path) if "://" in str(path) else ""  # which a Path would change
        resolved = Path(path).expanduser()
        for i, entry in enumerate(self.entries):
            same = entry.slide.path == address if address else Path(entry.slide.path).resolve() == resolved.resolve()
            if same and image in (None, entry.slide.image):
                entry.slide.identity.check()
                self._activate(i)
                return entry
        slide = open_slide(address or resolved, image=image)
        try:
            return self.add(slide, role)
        except SessionClosedError:
            slide.close()
            raise

    def add(self, slide: Slide, role: Role = "train") -> SlideEntry:
        """Add an opened slide with empty annotations and make it active."""
        self.require_open()
        _ = slide.fingerprint  # read while the file is there: without it strokes could not be saved later
        entry = SlideEntry(slide, Annotations(slide.shape, classes=self._classes), role)
        self._follow(entry.annotations)
        self.entries = (*self.entries, entry)
        self._activate(len(self.entries) - 1)
        return entry

    def activate(self, entry: SlideEntry) -> None:
        """Make an open slide the active one."""
        self._activate(self.entries.index(entry))

    def remove(self, entry: SlideEntry) -> None:
        """Close a slide and its annotations; the last of the remaining becomes active."""
        self.entries = tuple(e for e in self.entries if e is not entry)
        self._active = len(self.entries) - 1
        self._unfollow(entry.annotations)
        entry.annotations.close()
        entry.slide.close()
        self._activate(len(self.entries) - 1)

    def set_role(self, entry: SlideEntry, role: str) -> None:
        """Set what a slide is used for; `SlideError` for a role that does not exist."""
        entry.role = checked_role(role)
        self.changed.emit()

    def set_mpp(self, entry: SlideEntry, mpp: float | tuple[float, float] | None) -> None:
        """Set the resolution of a slide, um per level-0 pixel."""
        entry.slide.mpp = mpp
        self.changed.emit()

    def replace_annotations(self, entry: SlideEntry, annotations: Annotations, *, reconcile: bool = False) -> None:
        """Give a slide other annotations; their classes join the table of all, see `attach` for `reconcile`.

        Raises
        ------
        AnnotationError
            When they were made for a slide of another size, or a class id means different things.
        """
        if tuple(annotations.shape) != tuple(entry.slide.shape):
            raise AnnotationError(
                f"the annotations were drawn on a slide of {annotations.shape} pixels, but "
                f"{Path(entry.slide.path).name} has {entry.slide.shape}; open the slide they belong to."
            )
        self._exchange(entry, annotations)
        self._join_classes(entry, reconcile=reconcile)

    def replace_all(self, annotations: Mapping[str, Annotations], classes: tuple[ClassDef, ...]) -> None:
        """Give several slides, by their keys, other annotations with another class table."""
        self._classes = classes
        for entry in self.entries:
            if entry.key in annotations:
                self._exchange(entry, annotations[entry.key])
        self.replace_classes(classes)
        self.changed.emit()

    def _exchange(self, entry: SlideEntry, annotations: Annotations) -> None:
        self._unfollow(entry.annotations)
        entry.annotations.close()
        entry.annotations = annotations
        self._follow(annotations)

    def attach(self, entry: SlideEntry, path: Path, *, listed: bool = False) -> None:
        """Bind a slide's annotations to a file; the file's classes join the table of all.

        A class that has another name in the file, because the program was killed while it was renamed, gets ours.

        Parameters
        ----------
        listed
            The table is that of the project which the file belongs to: it is not replaced by the file's.

        Raises
        ------
        AnnotationError
            As `Annotations.attach`.
        """
        with self.holding_still():  # the file's table may lack classes of other slides, so it must not replace theirs
            entry.annotations.attach(path)
        if entry.annotations.classes != self._classes:
            self._join_classes(entry, reconcile=True, listed=listed)

    def agrees(self, stored: Table, names: Table) -> bool:
        """Whether the ids of classes in a file, and the names that these have now, are right here as they are."""
        ids, taken = {c.id: c.name.casefold() for c in self._classes}, {c.name.casefold() for c in self._classes}
        return all(
            ids[now.id] == now.name.casefold() if now.id in ids else was == now and now.name.casefold() not in taken
            for was, now in zip(stored, names, strict=True)
        )

    def translated(self, annotations: Annotations, remembered: Table) -> Annotations:
        """Annotations with the ids that their classes, under the names in a remembered table, have here."""
        table, ids = joined(self._classes, meant(used_in(annotations), remembered))
        return translated(annotations, ids, table)

    def set_classes(
        self, classes: Iterable[ClassDef | tuple[str, str] | str], *, undoable: bool = False, act: str = ""
    ) -> None:
        """Edit the class table of every slide; ids keep their meaning, labels of removed classes are removed.

        `undoable`: one step in the history of each of them, which `act` tells from others.
        """
        before = self._classes
        try:
            self.replace_classes(classes, undoable=undoable, act=act)
        finally:
            self.reclassed.emit(before, self._classes)

    def replace_classes(
        self, classes: Iterable[ClassDef | tuple[str, str] | str], *, undoable: bool = False, act: str = ""
    ) -> None:
        """Use another class table, whose ids mean what they mean in the annotations of the open slides."""
        self.require_open()
        self._classes = make_classes(classes)
        failed: list[AnnotationError] = []
        with self.holding_still():
            for annotations in (self.unopened, *(e.annotations for e in self.entries)):
                try:
                    annotations.set_classes(self._classes, undoable=undoable, act=act)
                except AnnotationError as error:  # of a full disk: all slides have the table all the same
                    failed.append(error)
        self.annotated.emit()
        if failed:
            raise failed[0]

    @contextmanager
    def holding_still(self) -> Iterator[None]:
        """Inside, a class table that changes for one slide does not change for the others."""
        before, self._following = self._following, True
        try:
            yield
        finally:
            self._following = before

    def versions(self) -> Versions:
        """Annotation version of every training slide; then hashes of the slides (key, role, mpp) and the classes."""
        entries = self.entries
        versions = tuple((e.key, e.annotations.version) for e in entries if e.role == "train")
        slides = hash(tuple((e.key, e.role, e.slide.mpp) for e in entries))
        return (*versions, ("slides", slides), ("classes", hash(self._classes)))

    def training_mpp(self, config: TrainConfig) -> float | None:
        """The resolution to train at: the config's, else 1.0 or the coarsest slide's own; None without any mpp."""
        known = [max(e.slide.mpp) for e in self.entries if e.role != "predict" and e.slide.mpp is not None]
        if config.mpp is not None:
            return config.mpp
        return max(DEFAULT_MPP, *known) if known else None

    def snapshot(self, config: TrainConfig) -> TrainingData:
        """Frozen annotations of all slides that take part in training, and the versions they have.

        Raises
        ------
        SlideChangedError
            When the file of one of them is another slide by now.
        """
        from napari_sparseseg.learning.sources import Source

        mpp = self.training_mpp(config)
        versions = self.versions()
        taking_part = self._checked()
        sources = tuple(Source(e.slide, e.annotations.snapshot(), e.slide.frame(mpp), e.role) for e in taking_part)
        return TrainingData(sources, versions, self._classes, mpp)

    def watch(self) -> bool:
        """A worker that checks after each stroke that no slide's file was replaced; it never reports work done.

        On the engine thread: stat() on a network share can block.
        """
        versions = self.versions()
        if versions != self._watched:
            self._watched = versions
            self._checked()
        return False

    def require_two_classes(self) -> None:
        """Check that there is something to train on.

        Raises
        ------
        TrainingError
            When fewer than two classes are labelled over all training slides.
        """
        if not self.entries:
            raise TrainingError("there is nothing to train on: open a slide and scribble two classes.")
        labelled = {c for e in self.entries if e.role == "train" for c, n in e.annotations.counts().items() if n}
        if len(labelled) < 2:
            names = ", ".join(c.name for c in self._classes if c.id in labelled)
            so_far = f"; labelled so far: {names}. Draw a few of another class." if names else ": draw a few of each."
            raise TrainingError(f"training needs strokes of at least two classes{so_far}")

    def close(self) -> None:
        """Close every slide."""
        while self.entries:
            self.remove(self.entries[-1])

    def _checked(self) -> list[SlideEntry]:
        """The slides that take part in training, none of them changed on disk."""
        taking_part = [e for e in self.entries if e.role != "predict"]
        for entry in taking_part:
            entry.slide.identity.check()
        return taking_part

    def _join_classes(self, entry: SlideEntry, *, reconcile: bool, listed: bool = False) -> None:
        drawn, theirs = entry.annotations, entry.annotations.classes
        if listed or any(any(e.annotations.counts().values()) for e in self.entries if e is not entry):
            if reconcile:  # a class that is not in our table was removed; it comes back only where it has labels
                theirs = used_in(drawn)
            theirs = tuple(_joined(self._classes, theirs, reconcile=reconcile))
        self.replace_classes(theirs)

    def _activate(self, index: int) -> None:
        self._active = index
        self.changed.emit()

    def _follow(self, annotations: Annotations) -> None:
        annotations.changed.connect(self._on_stroke)
        annotations.classes_changed.connect(self._on_classes)

    def _unfollow(self, annotations: Annotations) -> None:
        annotations.changed.disconnect(self._on_stroke)
        annotations.classes_changed.disconnect(self._on_classes)

    def _on_stroke(self) -> None:
        self.annotated.emit()

    def _on_classes(self) -> None:
        if self._following:
            return
        changed = [e.annotations.classes for e in self.entries if e.annotations.classes != self._classes]
        if changed:
            self.set_classes(changed[0])


def checked_role(role: str) -> Role:
    """The role of that name, or `SlideError`."""
    if role not in get_args(Role):
        raise SlideError(f"role {role!r} does not exist; choose one of {', '.join(get_args(Role))}.")
    return cast("Role", role)


def _joined(ours: Sequence[ClassDef], theirs: Sequence[ClassDef], *, reconcile: bool) -> list[ClassDef]:
    """Ours and those of theirs that have other ids; a name that differs is an error unless it is to be reconciled."""
    by_id = {c.id: c for c in ours}
    names = {c.name.casefold() for c in ours}
    for c in theirs:
        known = by_id.get(c.id)
        if known is not None and known.name.casefold() != c.name.casefold() and not reconcile:
            raise AnnotationError(
                f"class {c.id} is {known.name!r} here and {c.name!r} in the annotations; rename one of them, or load "
                "the annotations by file, which matches classes by name."
            )
        if known is None:
            new = c if c.name.casefold() not in names else replace(c, name=f"{c.name} ({c.id})")
            by_id[c.id] = new
    return list(by_id.values())
