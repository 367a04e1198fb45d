"""Annotations of a file into those of a slide: over what is there, under it, or in its place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from napari_sparseseg.config import DEFAULT_CLASSES
from napari_sparseseg.session.binding import still_open

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from napari_sparseseg.annotations import Annotations
    from napari_sparseseg.annotations.merging import Conflict
    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.session.slides import SlideCollection, SlideEntry
    from napari_sparseseg.session.training import Training
    from napari_sparseseg.slides import Slide

MOST_CONFLICTS = 200
_SIDE = 256


@dataclass(frozen=True, slots=True)
class PendingImport:
    """A file that was read and not drawn yet.

    Attributes
    ----------
    name
        Of the file.
    objects
        Strokes and regions in it.
    conflicts
        How many of them lie where something else is labelled on the slide, counted up to `MOST_CONFLICTS`.
    """

    name: str
    objects: int
    conflicts: int
    entry: SlideEntry
    loaded: Annotations
    fresh: bool


class Imports:
    """Imports annotations in two steps, so that one can be asked in between; `Session.imports`.

    Parameters
    ----------
    slides, training
        Of the session.
    assign_classes
        Replaces the class table of all slides.

    Examples
    --------
    >>> from napari_sparseseg import Session
    >>> from napari_sparseseg.samples import sample_scribbles, sample_slide
    >>> with Session() as session:
    ...     slide = session.open(sample_slide())
    ...     pending = session.imports.read(sample_scribbles())
    ...     pending.objects, pending.conflicts, session.imports.draw(pending, "under")
    (30, 0, 30)
    """

    def __init__(
        self, slides: SlideCollection, training: Training, assign_classes: Callable[[Sequence[ClassDef]], object]
    ) -> None:
        self._slides, self._training, self._assign_classes = slides, training, assign_classes

    def read(self, path: str | os.PathLike[str] | None = None) -> PendingImport:
        """Read a file for the active slide; see `Session.import_annotations`. Nothing is changed."""
        from napari_sparseseg.io import find_annotations, load_annotations

        entry = self._slides.active
        slide, source = entry.slide, path or find_annotations(entry.slide.path, entry.slide.image)
        fresh = len(self._slides.entries) == 1 and not self._slides.labelled and self._training.model is None
        names = [c.name for c in self._slides.classes]
        fresh &= names in ([], [c.name for c in DEFAULT_CLASSES])  # a table that somebody chose stays
        table = () if fresh else self._slides.classes
        loaded = load_annotations(source, slide.shape, classes=table, slide=slide)
        objects = len(loaded.strokes) + len(loaded.dense_regions)
        conflicts = 0 if fresh else count_conflicts(entry.annotations, loaded)
        return PendingImport(Path(source).name, objects, conflicts, entry, loaded, fresh)

    def draw(self, pending: PendingImport, conflict: Conflict = "over") -> int:
        """Draw what was read, as one step of the history; returns how many objects.

        Parameters
        ----------
        pending
            From `read`.
        conflict
            ``over``: its labels cover those of the slide; ``under``: they fill only what is unlabelled, but for
            scribbles, which lie above a dense region whoever drew it; ``replace``: all that was drawn here goes.
        """
        from napari_sparseseg.io.trace import shapes_of

        mine, loaded = pending.entry.annotations, pending.loaded
        counts, known = loaded.counts(), {c.id for c in self._slides.classes}
        new = tuple(c for c in loaded.classes if c.id not in known and counts.get(c.id))
        with still_open(self._slides, pending.entry), mine.history.one_step(f"import of {pending.name}"):
            if loaded.others:
                mine.set_others(loaded.others if conflict == "replace" else (*mine.others, *loaded.others))
            if not any(counts.values()):
                return 0
            self._assign_classes(loaded.classes if pending.fresh else (*self._slides.classes, *new))
            labelled = mine.strokes or mine.dense_regions or any(mine.counts().values())
            if labelled and conflict == "over":
                return mine.draw(shapes_of(loaded.snapshot()))
            mine.take_over(loaded, conflict)
            return pending.objects


def merge_file(target: Path, source: Path, conflict: Conflict, slide: Slide | None) -> int:
    """Add annotations of a file to an annotation file of ours, which is written as a whole; returns how many objects.

    Raises
    ------
    AnnotationError
        Where `target` is no ``.sparseseg`` file, one of the two cannot be read, or they are of different slides.
    """
    from napari_sparseseg.annotations import Annotations
    from napari_sparseseg.io import load_annotations

    mine = Annotations.load(target)
    loaded = load_annotations(source, mine.shape, classes=mine.classes, slide=slide)
    counts, known = loaded.counts(), {c.id for c in mine.classes}
    mine.set_classes((*mine.classes, *(c for c in loaded.classes if c.id not in known and counts.get(c.id))))
    if loaded.others:
        mine.set_others(loaded.others if conflict == "replace" else (*mine.others, *loaded.others))
    mine.take_over(loaded, conflict)
    mine.save(target)
    return len(loaded.strokes) + len(loaded.dense_regions)


def count_conflicts(mine: Annotations, loaded: Annotations) -> int:
    """How many strokes and regions of `loaded` lie where `mine` has another class, up to `MOST_CONFLICTS`.

    Large ones are compared at a coarser level.
    """
    theirs, ours = loaded.snapshot(), mine.snapshot()
    found = 0
    for stroke in (*theirs.strokes, *theirs.dense_regions) if any(ours.counts().values()) else ():
        level = 0
        while max(stroke.box[2:]) >> level > _SIDE and level < mine.top_level:
            level += 1
        here = ours.read(stroke.box, level)
        if here.any():
            there = theirs.read(stroke.box, level)
            found += bool(((here > 0) & (there > 0) & (here != there)).any())
        if found == MOST_CONFLICTS:
            break
    return found
