"""Undo and redo: edits as what they changed, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from napari_sparseseg.config import ClassDef

if TYPE_CHECKING:
    from napari_sparseseg.annotations.quadtree import Change
    from napari_sparseseg.annotations.strokes import Stroke
    from napari_sparseseg.geometry import Box

UNDO_STEPS = 500
UNDO_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Edit:
    """One step of the history.

    Attributes
    ----------
    box
        What may look different, level 0.
    scribbles, dense
        What the two quadtrees changed; None: nothing.
    added, removed
        Strokes and dense regions that came and went.
    dropped
        (position in the table, class) of classes that were removed with their labels.
    nbytes
        Memory it keeps; counted once, as the history asks every edit at every stroke.
    """

    box: Box
    scribbles: Change | None = None
    dense: Change | None = None
    added: tuple[Stroke, ...] = ()
    removed: tuple[Stroke, ...] = ()
    dropped: tuple[tuple[int, ClassDef], ...] = ()
    nbytes: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        chunks = sum(c.nbytes for c in (self.scribbles, self.dense) if c is not None)
        strokes = sum(300 + s.points.nbytes for s in (*self.added, *self.removed))
        object.__setattr__(self, "nbytes", chunks + strokes)


class History:
    """Two stacks of edits; at most `UNDO_STEPS` edits in about `UNDO_BYTES` are kept, the newest in any case."""

    def __init__(self) -> None:
        self.done: list[Edit] = []
        self.undone: list[Edit] = []

    def push(self, edit: Edit) -> None:
        """A new edit; what was undone is gone."""
        self.undone.clear()
        self.done.append(edit)
        sizes = [e.nbytes for e in self.done] if len(self.done) > 1 else []
        excess = sum(sizes) - UNDO_BYTES
        drop = max(0, len(self.done) - UNDO_STEPS)
        for i, size in enumerate(sizes[:-1]):
            if excess <= 0:
                break
            excess -= size
            drop = max(drop, i + 1)
        del self.done[:drop]

    @property
    def nbytes(self) -> int:
        """Memory of all edits."""
        return sum(e.nbytes for e in (*self.done, *self.undone))


def without_classes(
    classes: tuple[ClassDef, ...], dropped: tuple[tuple[int, ClassDef], ...], *, revert: bool
) -> tuple[ClassDef, ...]:
    """The class table without the dropped classes, or with them again where they were."""
    if not revert:
        gone = {c.id for _, c in dropped}
        return tuple(c for c in classes if c.id not in gone)
    table = list(classes)
    for position, lost in sorted(dropped, key=lambda pair: pair[0]):
        if lost.id in {c.id for c in table}:  # another slide of the session has brought it back already
            continue
        name, n = lost.name, 2
        while name in {c.name for c in table}:
            name, n = f"{lost.name} ({n})", n + 1
        table.insert(position, ClassDef(lost.id, name, lost.colour))
    return tuple(table)
