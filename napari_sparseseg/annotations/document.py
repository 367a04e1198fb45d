"""The state of annotations in memory: label trees, strokes, classes, versions and history."""

from __future__ import annotations

import threading
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from napari_sparseseg.annotations.quadtree import Change, LabelQuadtree
from napari_sparseseg.annotations.snapshot import Snapshot
from napari_sparseseg.annotations.stored import StoredAnnotations
from napari_sparseseg.config import ClassDef, make_classes
from napari_sparseseg.errors import AnnotationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from napari_sparseseg.annotations.strokes import Stroke
    from napari_sparseseg.geometry import Box

KINDS = {
    "brush": "brush stroke",
    "erase": "eraser stroke",
    "polygon": "polygon",
    "fill": "fill",
    "dense": "dense region",
}
"""What a stroke is called, by its kind."""
UNDO_STEPS = 500
UNDO_BYTES = 32 << 20

_T = TypeVar("_T")
Classes = tuple[ClassDef, ...]
Features = tuple[dict[str, Any], ...]


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
    table
        The class table before and after; None where it stayed.
    others
        `AnnotationDocument.others` before and after; None where they stayed.
    act
        Of edits of several slides that are one step together, the name they share.
    what
        For the user: "import of cells.geojson"; empty: `title` finds words.
    nbytes
        Memory of the edit.
    """

    box: Box
    scribbles: Change | None = None
    dense: Change | None = None
    added: tuple[Stroke, ...] = ()
    removed: tuple[Stroke, ...] = ()
    table: tuple[Classes, Classes] | None = None
    others: tuple[Features, Features] | None = None
    act: str = ""
    what: str = ""
    nbytes: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        # Computed once, because the history asks every edit at every stroke.
        chunks = sum(c.nbytes for c in (self.scribbles, self.dense) if c is not None)
        strokes = sum(300 + s.points.nbytes for s in (*self.added, *self.removed))
        object.__setattr__(self, "nbytes", chunks + strokes)

    @property
    def draws(self) -> bool:
        """Whether it changes labels or strokes."""
        return bool(self.added or self.removed or self.scribbles or self.dense)

    @property
    def title(self) -> str:
        """What it does, for the user: "brush stroke", "remove stroma"."""
        if self.what:
            return self.what
        if self.table is not None:
            return table_change(*self.table)
        strokes = self.added or self.removed
        if len(strokes) != 1:
            return f"{len(strokes)} strokes and regions" if strokes else "objects without a class"
        return KINDS.get(strokes[0].kind, strokes[0].kind)

    def inverse(self) -> Edit:
        """The edit that takes this one back."""
        scribbles, dense = (c and c.inverse() for c in (self.scribbles, self.dense))
        table = self.table and (self.table[1], self.table[0])
        others = self.others and (self.others[1], self.others[0])
        return Edit(self.box, scribbles, dense, self.removed, self.added, table, others, self.act, self.what)

    def then(self, later: Edit, what: str) -> Edit:
        """One edit of this and the next, `later`."""
        gone, made = {s.id for s in later.removed}, {s.id for s in self.added}
        return Edit(
            self.box.union(later.box) if self.box.area and later.box.area else max(self.box, later.box, key=_area),
            _joined(self.scribbles, later.scribbles),
            _joined(self.dense, later.dense),
            (*(s for s in self.added if s.id not in gone), *later.added),
            (*self.removed, *(s for s in later.removed if s.id not in made)),
            _ends(self.table, later.table),
            _ends(self.others, later.others),
            self.act or later.act,
            what,
        )


def _area(box: Box) -> int:
    return box.area


def _joined(first: Change | None, second: Change | None) -> Change | None:
    if first is None or second is None:
        return first or second
    chunks = dict(first.chunks)
    for at, (before, after) in second.chunks.items():
        chunks[at] = (chunks[at][0] if at in chunks else before, after)
    return Change(chunks, first.counts + second.counts)


def _ends(first: tuple[_T, _T] | None, second: tuple[_T, _T] | None) -> tuple[_T, _T] | None:
    return (first[0], second[1]) if first and second else first or second


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

    @property
    def next_undo(self) -> Edit | None:
        """What `undo` takes back."""
        return self._done[-1] if self._done else None

    @property
    def next_redo(self) -> Edit | None:
        """What `redo` makes again."""
        return self._undone[-1] if self._undone else None

    def of_act(self, act: str) -> Edit | None:
        """The edit that belongs to an act of several slides, if it can still be undone."""
        return next((edit for edit in reversed(self._done) if edit.act == act), None) if act else None

    def forget(self, edit: Edit) -> None:
        """Leave out an edit that draws nothing; those before and after it can still be undone."""
        self._done = [one for one in self._done if one is not edit]

    @contextmanager
    def one_step(self, what: str) -> Iterator[None]:
        """Make one step, named `what`, of all that is drawn and changed inside."""
        since = self.next_undo
        try:
            yield
        finally:
            at = next((n for n, edit in enumerate(self._done) if edit is since), -1) + 1
            parts = self._done[at:]
            if parts:
                whole = replace(parts[0], what=what)
                for part in parts[1:]:
                    whole = whole.then(part, what)
                self._done[at:] = [whole]

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
    history
        What can be undone and redone.
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
        self.history = History()
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
    def record(self, edit: Edit, *, undoable: bool = True) -> Edit:
        """Take note of an edit that the label trees have already committed; returns it."""
        with self.lock:
            if undoable:
                self.history.push(edit)
            self._take_note(edit)
        return edit

    def undo(self) -> Edit | None:
        """Take the newest edit back; the edit that did so, None where there is nothing to undo."""
        return self._step(self.history.undo)

    def redo(self) -> Edit | None:
        """Make the edit again that was undone last; as `undo`."""
        return self._step(self.history.redo)

    def forget_history(self) -> None:
        """Free the memory of the history; nothing drawn so far can be undone."""
        with self.lock:
            self.history = History()

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
        if edit.table is not None:
            self.classes = changed_table(self.classes, *edit.table)
        if edit.others is not None:
            self.others = edit.others[1]
        if edit.draws:
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


def changed_table(table: Classes, before: Classes, after: Classes) -> Classes:
    """A class table with what changed between two others: the second of them where it is the first.

    It is another one where classes were added for another slide since.
    """
    if table == before:
        return after
    old, new = {c.id: c for c in before}, {c.id: c for c in after}
    out = [
        new[c.id] if c.id in new and new[c.id] != old.get(c.id) else c for c in table if c.id in new or c.id not in old
    ]
    for position, c in enumerate(after):
        if c.id not in old and c.id not in {k.id for k in out}:
            out.insert(position, c)
    names: set[str] = set()
    for i, c in enumerate(out):
        name, n = c.name, 2
        while name.casefold() in names:
            name, n = f"{c.name} ({n})", n + 1
        names.add(name.casefold())
        out[i] = replace(c, name=name)
    if len(before) == len(after) and {c.id for c in out} == set(new):
        out = [next(c for c in out if c.id == k.id) for k in after]
    return tuple(out)


def table_change(before: Classes, after: Classes) -> str:
    """What was done to a class table, for the user: "remove stroma", "rename a to b"."""
    old, new = {c.id: c for c in before}, {c.id: c for c in after}
    gone, made = [c.name for c in before if c.id not in new], [c.name for c in after if c.id not in old]
    renamed = [(old[i].name, new[i].name) for i in old.keys() & new.keys() if old[i].name != new[i].name]
    if bool(gone) + bool(made) + bool(renamed) > 1 or len(gone) + len(made) + len(renamed) > 1:
        return "change of the class table"
    if renamed:
        return f"rename {renamed[0][0]} to {renamed[0][1]}"
    if gone or made:
        return f"remove {gone[0]}" if gone else f"add {made[0]}"
    same = [c.id for c in before] == [c.id for c in after]
    return "change of a colour" if same else "change of the order of classes"
