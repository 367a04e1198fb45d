"""The state of annotations in memory: label trees, strokes, classes, versions and history."""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from napari_sparseseg.annotations.quadtree import LabelQuadtree
from napari_sparseseg.annotations.snapshot import Snapshot
from napari_sparseseg.annotations.stored import StoredAnnotations
from napari_sparseseg.config import ClassDef, make_classes
from napari_sparseseg.errors import AnnotationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from napari_sparseseg.annotations.quadtree import Change
    from napari_sparseseg.annotations.strokes import Stroke
    from napari_sparseseg.geometry import Box

UNDO_STEPS = 500
UNDO_BYTES = 32 << 20

Dropped = tuple[tuple[int, ClassDef], ...]


@dataclass(frozen=True, slots=True)
class Edit:
    """One step of the history.

    Attributes
    ----------
    box
        Level-0 pixels that may look different.
    scribbles, dense
        Changes of the two label trees; None where there is none.
    added, removed
        Strokes and dense regions.
    dropped, restored
        (position in the table, class) of classes that went or came back with their labels.
    nbytes
        Memory of the edit.
    """

    box: Box
    scribbles: Change | None = None
    dense: Change | None = None
    added: tuple[Stroke, ...] = ()
    removed: tuple[Stroke, ...] = ()
    dropped: Dropped = ()
    restored: Dropped = ()
    nbytes: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        # Computed once, because the history asks every edit at every stroke.
        chunks = sum(c.nbytes for c in (self.scribbles, self.dense) if c is not None)
        strokes = sum(300 + s.points.nbytes for s in (*self.added, *self.removed))
        object.__setattr__(self, "nbytes", chunks + strokes)

    def inverse(self) -> Edit:
        """The edit that takes this one back."""
        scribbles, dense = (c and c.inverse() for c in (self.scribbles, self.dense))
        return Edit(self.box, scribbles, dense, self.removed, self.added, self.restored, self.dropped)


class History:
    """Undo and redo stacks.

    Parameters
    ----------
    steps
        Edits that can be undone.
    nbytes
        Memory of the edits that can be undone; the newest edit is retained whatever its size.
    """

    def __init__(self, steps: int = UNDO_STEPS, nbytes: int = UNDO_BYTES) -> None:
        self.steps, self.nbytes = steps, nbytes
        self._done: list[Edit] = []
        self._undone: list[Edit] = []

    def push(self, edit: Edit) -> None:
        """Append a new edit; what was undone can no longer be redone."""
        self._undone.clear()
        self._done.append(edit)
        total, kept = 0, 0
        for one in reversed(self._done):
            total += one.nbytes
            if kept == self.steps or (kept and total > self.nbytes):
                break
            kept += 1
        del self._done[: len(self._done) - kept]

    def undo(self) -> Edit | None:
        """The inverse of the newest edit, which can then be redone; None where there is none."""
        if not self._done:
            return None
        self._undone.append(self._done.pop())
        return self._undone[-1].inverse()

    def redo(self) -> Edit | None:
        """The edit that was undone last, which can then be undone again; None where there is none."""
        if not self._undone:
            return None
        self._done.append(self._undone.pop())
        return self._done[-1]


class AnnotationDocument:
    """Two label trees, the strokes and dense regions drawn into them, the class table, version and history.

    Parameters
    ----------
    shape
        Slide (H, W) in level-0 pixels.
    classes
        Names, (name, colour) pairs or `ClassDef`s; ids count from 1.

    Attributes
    ----------
    lock
        Held by whoever changes the document or needs a consistent view of it; reentrant.
    scribbles, dense
        Label trees of the strokes and of the dense regions.
    strokes, regions
        By id, ascending; without what was undone.
    others
        Objects that label nothing, as GeoJSON features.
    version
        +1 per edit, undo and redo.
    token
        Names this state; a file with the same token holds the same annotations.
    """

    def __init__(self, shape: tuple[int, int], classes: Iterable[ClassDef | tuple[str, str] | str]) -> None:
        self.lock = threading.RLock()
        self.classes = make_classes(classes)
        self.scribbles, self.dense = LabelQuadtree(shape), LabelQuadtree(shape)
        self.shape = self.scribbles.shape
        self.strokes: dict[int, Stroke] = {}
        self.regions: dict[int, Stroke] = {}
        self.others: tuple[dict[str, Any], ...] = ()
        self.version = 0
        self.token = uuid.uuid4().hex
        self._next_id = 1
        self._history = History()
        self._snapshot: Snapshot | None = None

    def take_id(self) -> int:
        """A new stroke id."""
        self._next_id += 1
        return self._next_id - 1

    def require_class(self, class_id: int, *, erase: bool = False) -> None:
        """Raise AnnotationError where there is no such class; with `erase`, 0 is allowed too."""
        if class_id not in {c.id for c in self.classes} and not (erase and class_id == 0):
            known = ", ".join(f"{c.id} {c.name}" for c in self.classes) or "none"
            raise AnnotationError(f"there is no class {class_id}; the classes are: {known}.")

    def snapshot(self) -> Snapshot:
        """The committed annotations, frozen; the same object until something changes."""
        with self.lock:
            if self._snapshot is None:
                self._snapshot = Snapshot(
                    self.version,
                    self.classes,
                    (self.scribbles.freeze(), self.dense.freeze()),
                    tuple(self.strokes.values()),
                    tuple(self.regions.values()),
                    self.scribbles.counts(),
                )
            return self._snapshot

    # ------------------------------------------------------------------ changes
    def record(self, edit: Edit) -> Edit:
        """Add an edit that the label trees have already committed; returns it."""
        with self.lock:
            self._history.push(edit)
            self._take_note(edit)
        return edit

    def undo(self) -> Edit | None:
        """Take the newest edit back; the edit that did so, None where there is nothing to undo."""
        return self._step(self._history.undo)

    def redo(self) -> Edit | None:
        """Make the edit again that was undone last; as `undo`."""
        return self._step(self._history.redo)

    def forget_history(self) -> None:
        """Free the memory of the history; nothing drawn so far can be undone."""
        with self.lock:
            self._history = History()

    def set_class_table(self, classes: tuple[ClassDef, ...]) -> None:
        """Replace the class table; labels, version and history stay."""
        with self.lock:
            self.classes, self._snapshot = classes, None

    def _step(self, move: Callable[[], Edit | None]) -> Edit | None:
        with self.lock:
            if self.scribbles.is_open:
                raise AnnotationError("a stroke is open; commit or abort it before undo or redo.")
            edit = move()
            if edit is None:
                return None
            for tree, change in ((self.scribbles, edit.scribbles), (self.dense, edit.dense)):
                if change is not None:
                    tree.apply(change)
            self._take_note(edit)
        return edit

    def _take_note(self, edit: Edit) -> None:
        for stroke in edit.removed:
            self._collection_for(stroke).pop(stroke.id, None)
        newest = max(next(reversed(self.strokes), 0), next(reversed(self.regions), 0))
        for stroke in edit.added:
            self._collection_for(stroke)[stroke.id] = stroke
        if min((stroke.id for stroke in edit.added), default=newest) < newest:
            self.strokes, self.regions = dict(sorted(self.strokes.items())), dict(sorted(self.regions.items()))
        if edit.dropped or edit.restored:
            self.classes = _changed_table(self.classes, edit)
        self.version += 1
        self.token = uuid.uuid4().hex
        self._snapshot = None

    def _collection_for(self, stroke: Stroke) -> dict[int, Stroke]:
        return self.regions if stroke.kind == "dense" else self.strokes

    # ------------------------------------------------------------------ files
    def stored(self, *, labels: bool = True) -> StoredAnnotations:
        """What a file has to hold; strokes and label chunks only with `labels`."""
        with self.lock:
            out = StoredAnnotations(self.shape, self.classes, self.version, self.token, self._next_id)
            out.counts = self.scribbles.nonzero_counts(), self.dense.nonzero_counts()
            if labels:
                out.others = list(self.others)
                out.strokes = sorted((*self.strokes.values(), *self.regions.values()), key=lambda stroke: stroke.id)
                out.chunks = self.scribbles.packed(), self.dense.packed()
            return out

    def restore(self, stored: StoredAnnotations) -> None:
        """Take over what a file holds; nothing may have been drawn yet."""
        with self.lock:
            self.classes, self.version, self.token = stored.classes, stored.version, stored.token
            self._next_id, self.others = stored.next_id, tuple(stored.others or ())
            for stroke in stored.strokes:
                self._collection_for(stroke)[stroke.id] = stroke
            counts = stored.counts or (None, None)
            for tree, chunks, n in zip((self.scribbles, self.dense), stored.chunks, counts, strict=True):
                tree.restore(chunks, n)
            self._snapshot = None


def _changed_table(classes: tuple[ClassDef, ...], edit: Edit) -> tuple[ClassDef, ...]:
    """The class table without the dropped classes, and with the restored ones where they were."""
    gone = {c.id for _, c in edit.dropped}
    table = [c for c in classes if c.id not in gone]
    for position, lost in sorted(edit.restored, key=lambda pair: pair[0]):
        if lost.id in {c.id for c in table}:  # the undo on another slide of the session has restored it already
            continue
        name, n = lost.name, 2
        while name in {c.name for c in table}:
            name, n = f"{lost.name} ({n})", n + 1
        table.insert(position, ClassDef(lost.id, name, lost.colour))
    return tuple(table)
