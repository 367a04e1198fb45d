"""Undo and redo over a session: the steps of the active slide, and those that concern all slides."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from napari_sparseseg.annotations.document import changed_table
from napari_sparseseg.errors import AnnotationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from napari_sparseseg.annotations import Annotations
    from napari_sparseseg.annotations.document import Edit
    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.session.slides import SlideCollection, SlideEntry


class SessionHistory:
    """One history: strokes, imports and accepted regions of the active slide and changes of the class table, in order.

    A change of the class table is a step of every open slide, and is undone and redone for all of them together.

    Parameters
    ----------
    slides
        Of the session.
    announcing
        Makes the context in which a class table is changed to the one it is called with.

    Examples
    --------
    >>> from napari_sparseseg import Session
    >>> with Session(["tumour", "stroma"]) as session:
    ...     session.classes = session.classes[:1]
    ...     session.history.next_undo, session.history.undo(), [c.name for c in session.classes]
    ('remove stroma', 'remove stroma', ['tumour', 'stroma'])
    """

    def __init__(
        self, slides: SlideCollection, announcing: Callable[[tuple[ClassDef, ...]], AbstractContextManager[None]]
    ) -> None:
        self._slides, self._announcing = slides, announcing

    @property
    def next_undo(self) -> str:
        """What `undo` takes back, for the user: "remove stroma"; empty: nothing."""
        step = self._annotations.history.next_undo
        return "" if step is None else step.title

    @property
    def next_redo(self) -> str:
        """What `redo` makes again; empty: nothing."""
        step = self._annotations.history.next_redo
        return "" if step is None else step.title

    def undo(self) -> str:
        """Take back the last step; returns what it was, or an empty text where there is none.

        Raises
        ------
        AnnotationError
            Where it would remove what was drawn on another slide since. Nothing is changed then.
        """
        self._slides.require_open()
        active = self._annotations
        step = active.history.next_undo
        if step is None:
            return ""
        if step.table is None:
            active.undo()
            return step.title
        for entry in self._slides.entries:
            if entry.annotations is not active:
                _require_free(entry, step)
        with self._all_slides(active, step.inverse()) as failed:
            _make(active.undo, failed)
            for other in self._others(active):
                theirs = other.history.of_act(step.act)
                if theirs is not None and theirs is other.history.next_undo:
                    _make(other.undo, failed)
                elif theirs is not None:
                    other.history.forget(theirs)
        return step.title

    def redo(self) -> str:
        """Make the step again that was undone last; as `undo`."""
        self._slides.require_open()
        active = self._annotations
        step = active.history.next_redo
        if step is None:
            return ""
        if step.table is None:
            active.redo()
            return step.title
        with self._all_slides(active, step) as failed:
            _make(active.redo, failed)
            for other in self._others(active):
                theirs = other.history.next_redo
                if theirs is not None and theirs.act and theirs.act == step.act:
                    _make(other.redo, failed)
                _make(partial(other.set_classes, active.classes, act=step.act), failed)
        return step.title

    @property
    def _annotations(self) -> Annotations:
        """Those whose history is walked."""
        entry = self._slides.current
        return self._slides.unopened if entry is None else entry.annotations

    def _others(self, active: Annotations) -> list[Annotations]:
        every = [self._slides.unopened, *(e.annotations for e in self._slides.entries)]
        return [annotations for annotations in every if annotations is not active]

    @contextmanager
    def _all_slides(self, active: Annotations, step: Edit) -> Iterator[list[AnnotationError]]:
        """Inside, each slide makes the step; then all have the table of the active one, and a failure is raised."""
        assert step.table is not None
        failed: list[AnnotationError] = []
        with self._announcing(changed_table(active.classes, *step.table)):
            with self._slides.holding_still():
                yield failed
            _make(lambda: self._slides.set_classes(active.classes), failed)
        if failed:
            raise failed[0]


def _make(step: Callable[[], object], failed: list[AnnotationError]) -> None:
    """Make a step; where its file cannot be written, it is made in memory, and the other slides follow all the same."""
    try:
        step()
    except AnnotationError as error:
        failed.append(error)


def _require_free(entry: SlideEntry, step: Edit) -> None:
    """Refuse to undo a step that all slides have where this one would lose something that came later."""
    assert step.table is not None
    drawn, name = entry.annotations, Path(entry.slide.path).name
    theirs = drawn.history.of_act(step.act)
    if theirs is not None and theirs.draws and theirs is not drawn.history.next_undo:
        raise AnnotationError(f"{step.title} also changed {name}, where more was drawn since: undo that there first.")
    before, after = step.table
    counts, kept = drawn.counts(), {c.id for c in before}
    used = [c.name for c in after if c.id not in kept and counts.get(c.id)]
    if used:
        raise AnnotationError(f"{used[0]} was drawn on {name} since: undo that there first, or remove the class.")
