"""What class ids mean in annotations that were closed, or could not be opened, while the session's classes changed.

The ids of an annotation file mean what they meant when it was last open. The project remembers that table with the
slide, follows every renaming in it, and matches it by name when the slide is opened: an id that was removed and used
again for another class never renames a stroke.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_sparseseg.annotations import renumbered
from napari_sparseseg.config import ClassDef, match_classes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from napari_sparseseg.annotations import Annotations

Table = tuple[ClassDef, ...]


def renamed(table: Table, before: Table, after: Table) -> Table:
    """A remembered table after the session's changed: a class that was renamed there is renamed here too."""
    names = {c.id: c.name for c in after}
    new = {c.name.casefold(): names.get(c.id, c.name) for c in before}
    return tuple(ClassDef(c.id, new.get(c.name.casefold(), c.name), c.colour) for c in table)


def used_in(annotations: Annotations) -> Table:
    """The classes that have strokes, dense regions or labels."""
    drawn = {s.class_id for s in (*annotations.strokes, *annotations.dense_regions)}
    counts = annotations.counts()
    return tuple(c for c in annotations.classes if c.id in drawn or counts[c.id])


def meant(classes: Iterable[ClassDef], listed: Table) -> Table:
    """Classes of an annotation file as the project lists them, by id; those that it does not list as they are."""
    by_id = {c.id: c for c in listed}
    return tuple(by_id.get(c.id, c) for c in classes)


def joined(ours: Table, theirs: Table) -> tuple[Table, dict[int, int]]:
    """Our table with the classes of theirs that it lacks by name, and our id for each of theirs."""
    table, matches = match_classes(ours, theirs)
    return table, {c.id: known.id for c, known in zip(theirs, matches, strict=True)}


def translated(annotations: Annotations, ids: dict[int, int], table: Table) -> Annotations:
    """Annotations with our ids and the whole of our table; the same object where no label changes."""
    if all(old == new for old, new in ids.items()):
        annotations.set_classes(table, undoable=False)
        return annotations
    return renumbered(annotations, ids, table)
