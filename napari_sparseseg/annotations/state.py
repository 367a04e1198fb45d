"""The state behind `Annotations`: two quadtrees, strokes, classes, versions and history."""

from __future__ import annotations

import threading
import uuid
from typing import TYPE_CHECKING, Protocol

from psygnal import Signal

from napari_sparseseg.annotations.history import Edit, History, without_classes
from napari_sparseseg.annotations.quadtree import LabelQuadtree
from napari_sparseseg.annotations.snapshot import Snapshot
from napari_sparseseg.annotations.sqlite_file import Contents
from napari_sparseseg.config import ClassDef, make_classes
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Iterable

    from napari_sparseseg.annotations.strokes import DenseRegion, Stroke


class Keeper(Protocol):
    """Where edits are kept on disk; the annotations tell it of each before it tells anyone else."""

    def keep(self, state: State, edit: Edit, *, revert: bool) -> None:
        """Write an edit that was made or taken back; durable on return."""

    def keep_classes(self, state: State) -> None:
        """Write the class table."""

    def complain(self) -> None:
        """Raise AnnotationError where the last write failed."""


class State:
    """Base of `Annotations`: what there is, undo and redo."""

    changed = Signal(int, Box)
    classes_changed = Signal()

    def __init__(self, shape: tuple[int, int], classes: Iterable[ClassDef | tuple[str, str] | str]) -> None:
        self._classes = make_classes(classes)
        self.quadtree = LabelQuadtree(shape)
        self.shape = self.quadtree.shape
        self.dense_tree = LabelQuadtree(shape)
        self._strokes: dict[int, Stroke] = {}
        self._regions: dict[int, DenseRegion] = {}
        self._next_id = 1
        self._spent_class_ids: set[int] = set()
        self._version = 0
        self._history = History()
        self._snapshot: Snapshot | None = None
        self._keeper: Keeper | None = None
        self._lock = threading.RLock()
        self._token = uuid.uuid4().hex  # names this state; a file that has it holds the same

    # ------------------------------------------------------------------ state
    @property
    def version(self) -> int:
        """Counts strokes, undos, redos and imports."""
        return self._version

    @property
    def classes(self) -> tuple[ClassDef, ...]:
        """The class table, in the order in which it is shown."""
        return self._classes

    @property
    def strokes(self) -> tuple[Stroke, ...]:
        """What was drawn, in order, without what was undone."""
        return self.snapshot().strokes

    @property
    def dense_regions(self) -> tuple[DenseRegion, ...]:
        """Regions declared exhaustively labelled, in order."""
        return self.snapshot().dense_regions

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to take back."""
        return bool(self._history.done)

    @property
    def can_redo(self) -> bool:
        """Whether there is a step to make again."""
        return bool(self._history.undone)

    def snapshot(self) -> Snapshot:
        """The committed annotations, frozen; without the stroke being drawn. One object per version."""
        with self._lock:
            if self._snapshot is None:
                self._snapshot = Snapshot(
                    self._version,
                    self._classes,
                    (self.quadtree.freeze(), self.dense_tree.freeze()),
                    tuple(self._strokes.values()),
                    tuple(self._regions.values()),
                    self.quadtree.counts(),
                )
            return self._snapshot

    # ------------------------------------------------------------------ history
    def undo(self) -> Box | None:
        """Take the last step back; the box that may look different, None where there is nothing to take back."""
        return self._step(self._history.done, self._history.undone, revert=True)

    def redo(self) -> Box | None:
        """Make the step again that was taken back last; as `undo`."""
        return self._step(self._history.undone, self._history.done, revert=False)

    def forget_history(self) -> None:
        """Make everything drawn so far permanent and free the memory of its history."""
        with self._lock:
            self._history = History()

    def _step(self, source: list[Edit], target: list[Edit], *, revert: bool) -> Box | None:
        with self._lock:
            if self.quadtree.is_open:
                raise AnnotationError("a stroke is open; commit or abort it before undo or redo.")
            if not source:
                return None
            edit = source.pop()
            target.append(edit)
            for tree, change in ((self.quadtree, edit.scribbles), (self.dense_tree, edit.dense)):
                if change is not None:
                    tree.apply(change, revert=revert)
            self._record(edit, revert=revert)
        self._tell(edit)
        return edit.box

    def _tell(self, edit: Edit) -> None:
        if edit.dropped:
            self.classes_changed.emit()
        self.changed.emit(self._version, edit.box)
        self._complain()

    def _made(self, edit: Edit) -> None:
        """Take note of an edit that the quadtrees have committed already."""
        self._history.push(edit)
        self._record(edit, revert=False)

    def _record(self, edit: Edit, *, revert: bool) -> None:
        gone, come = (edit.added, edit.removed) if revert else (edit.removed, edit.added)
        for stroke in gone:
            self._shelf(stroke).pop(stroke.id, None)
        for stroke in come:
            self._shelf(stroke)[stroke.id] = stroke
        if edit.removed and revert:
            self._strokes = dict(sorted(self._strokes.items()))
            self._regions = dict(sorted(self._regions.items()))
        if edit.dropped:
            self._classes = without_classes(self._classes, edit.dropped, revert=revert)
        self._version += 1
        self._token = uuid.uuid4().hex
        self._snapshot = None
        if self._keeper is not None:
            self._keeper.keep(self, edit, revert=revert)

    def _keep_classes(self) -> None:
        if self._keeper is not None:
            self._keeper.keep_classes(self)

    def _complain(self) -> None:
        """Raise what went wrong with the file, after everybody has been told about the edit."""
        if self._keeper is not None:
            self._keeper.complain()

    def _shelf(self, stroke: Stroke) -> dict[int, Stroke]:
        return self._regions if stroke.kind == "dense" else self._strokes

    # ------------------------------------------------------------------ helpers
    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _require_class(self, class_id: int, *, erase: bool = False) -> None:
        if class_id not in {c.id for c in self._classes} and not (erase and class_id == 0):
            known = ", ".join(f"{c.id} {c.name}" for c in self._classes) or "none"
            raise AnnotationError(f"there is no class {class_id}; the classes are: {known}.")

    # ------------------------------------------------------------------ files
    def contents(self, *, bare: bool = False) -> Contents:
        """What a file has to hold; `bare` leaves strokes and labels out."""
        with self._lock:
            out = Contents(
                self.shape,
                self._classes,
                self._version,
                self._token,
                self._next_id,
                tuple(sorted(self._spent_class_ids)),
            )
            out.counts = self.quadtree.nonzero_counts(), self.dense_tree.nonzero_counts()
            if not bare:
                out.strokes = sorted((*self._strokes.values(), *self._regions.values()), key=lambda stroke: stroke.id)
                for chunks, tree in zip(out.chunks, (self.quadtree, self.dense_tree), strict=True):
                    chunks.update(tree.packed())
            return out

    def adopt(self, contents: Contents) -> None:
        """Take over what a file holds; nothing may have been drawn yet."""
        with self._lock:
            self._classes, self._version, self._token = contents.classes, contents.version, contents.token
            self._next_id, self._spent_class_ids = contents.next_id, set(contents.spent)
            for stroke in contents.strokes:
                self._shelf(stroke)[stroke.id] = stroke
            counts = contents.counts or (None, None)
            for tree, chunks, n in zip((self.quadtree, self.dense_tree), contents.chunks, counts, strict=True):
                tree.restore(chunks, n)
            self._snapshot = None
