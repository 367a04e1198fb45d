"""Keeps the annotation list in step with slide, strokes and model, and does what its buttons ask."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, Qt, Signal
from qtpy.QtWidgets import QDockWidget

from napari_sparseseg.errors import SparseSegError
from napari_sparseseg.gui.context import single_shot
from napari_sparseseg.gui.strokes.view import NO_SCORES, StrokeDock

if TYPE_CHECKING:
    from napari_sparseseg.gui.context import Context
    from napari_sparseseg.gui.sections.classes.view import ClassesPanel
    from napari_sparseseg.gui.view.marking import RegionMarker
    from napari_sparseseg.gui.widgets import Palette
    from napari_sparseseg.session.session import Session
    from napari_sparseseg.session.slides import SlideEntry
    from napari_sparseseg.session.strokes import ListedStroke

TITLE = "Annotation list"
SETTLE_MS = 300
"""Strokes and models come in bursts."""


class StrokeActions(QObject):
    """Opens the list as a dock below the slide and fills it in the background, in two turns: strokes, then losses.

    While training runs, losses are computed only when asked for: they would take its time.

    Attributes
    ----------
    listed
        Signal (): the rows are those of the present annotations and, where there is one and nothing is trained, of the
        present model.
    """

    listed = Signal()
    _advanced = Signal(float)

    def __init__(self, context: Context, classes: ClassesPanel, marker: RegionMarker) -> None:
        super().__init__(context)
        self._context, self._classes, self._marker = context, classes, marker
        self._view: StrokeDock | None = None
        self._colours: Palette | None = None
        self._stop = threading.Event()
        self._running = self._again = self._asked = False
        self._shown_for: tuple[Any, ...] = ()
        self._entry: SlideEntry | None = None
        self._later = single_shot(self, SETTLE_MS, self._refresh)
        self._advanced.connect(self._on_advanced)
        classes.list_requested.connect(self.open)
        for signal in (context.annotated, context.slides_changed, context.status_changed, context.session_replaced):
            signal.connect(self._on_changed)

    @property
    def view(self) -> StrokeDock:
        """The contents of the dock, made when they are first asked for."""
        if self._view is None:
            self._view = StrokeDock()
            self._view.went.connect(self._on_went)
            self._view.change_requested.connect(self._on_change)
            self._view.update_requested.connect(self._on_update)
            self._view.docked.connect(self._on_changed)
            if self._colours is not None:
                self._view.paint(self._colours)
        return self._view

    def open(self) -> None:
        """Show the dock and give the table the focus."""
        view = self.view
        dock = view.parent()
        if not isinstance(dock, QDockWidget):
            dock = self._context.viewer.window.add_dock_widget(view, name=TITLE, area="bottom")
        dock.show()
        dock.raise_()
        view.show()
        view.table.setFocus()
        self._on_changed()

    def paint(self, colours: Palette) -> None:
        """Apply the colours of a theme."""
        self._colours = colours
        if self._view is not None:
            self._view.paint(colours)

    def close(self) -> None:
        """Take the dock out of the window."""
        self._stop.set()
        self._later.stop()
        view, self._view = self._view, None
        if view is None:
            return
        if isinstance(view.parent(), QDockWidget) and not self._context.leaving:
            self._context.viewer.window.remove_dock_widget(view)
        view.docked.disconnect(self._on_changed)
        view.deleteLater()

    def _on_changed(self) -> None:
        """Look again in a moment, where the list can be seen and anything in it may be another."""
        if self._view is None or self._context.closed or not isinstance(self._view.parent(), QDockWidget):
            return
        if self._shown_for != self._present():
            self._later.start()

    def _present(self) -> tuple[Any, ...]:
        session, entry = self._context.session, self._context.entry
        if entry is None:
            return (session,)
        state = session.status
        training = state.state in ("training", "paused", "predicting")
        model = None if training else state.model_version
        return session, entry.key, entry.role, entry.annotations.version, session.classes, model, training

    def _refresh(self) -> None:
        view, session, entry = self._view, self._context.session, self._context.entry
        if view is None or self._context.closed:
            return
        if self._running:
            self._again = True
            self._stop.set()
            return
        if entry is None:
            self._shown_for, self._entry = self._present(), None
            view.show_rows((), session.classes)
            view.status.setText("No slide is open.")
            return
        if entry is not self._entry:
            view.rows.agreed.clear()
            view.matrix.clear.click()
        self._entry, self._running, self._again = entry, True, False
        self._stop = threading.Event()
        state = self._shown_for = self._present()
        scores = session.model is not None and (self._asked or not state[-1])
        self._context.jobs.run(
            lambda: _listed(session, entry), lambda rows: self._on_listed(rows, state, scores=scores), always=self._end
        )

    def _on_listed(self, rows: tuple[ListedStroke, ...] | None, state: tuple[Any, ...], *, scores: bool) -> None:
        self._show(rows, state)
        session, entry, stop = self._context.session, self._entry, self._stop
        if rows is None or entry is None or self._again or not scores:
            self._say(session)
            self._continue()
            return
        self._running = True
        self._context.jobs.run(
            lambda: _scored(session, entry, stop, self._advanced.emit),
            lambda found: self._on_scored(found, state),
            always=self._end,
        )

    def _on_scored(self, rows: tuple[ListedStroke, ...] | None, state: tuple[Any, ...]) -> None:
        self._show(rows, state)
        if not self._stop.is_set():
            self._asked = False
        self._say(self._context.session)
        self._continue()

    def _end(self) -> None:
        self._running = False

    def _continue(self) -> None:
        if self._again or self._shown_for != self._present():
            self._again = False
            self._later.start()
        else:
            self.listed.emit()

    def _show(self, rows: tuple[ListedStroke, ...] | None, state: tuple[Any, ...]) -> None:
        entry = self._context.entry
        if rows is not None and self._view is not None and entry is not None and state[:2] == self._present()[:2]:
            self._view.show_rows(rows, self._context.session.classes)

    def _say(self, session: Session) -> None:
        if self._view is None:
            return
        rows = self._view.rows.rows
        scored, wrong = sum(s.loss is not None for s in rows), sum(map(self._view.rows.contradicts, rows))
        text = f"{len(rows)} annotations"
        if session.model is None:
            text += f". {NO_SCORES}"
        elif scored:
            text += f", {wrong} contradict{'s' * (wrong == 1)} the model"
            text += "" if scored == len(rows) else f", {len(rows) - scored} not scored"
        elif session.status.state in ("training", "paused"):
            text += ". Press Update to score them while training runs."
        self._view.status.setText(text)

    def _on_advanced(self, share: float) -> None:
        if self._view is not None and self._running:
            self._view.status.setText(f"Scoring annotations: {share * 100:.0f} %")

    def _on_update(self) -> None:
        self._asked = True
        self._refresh()

    def _on_went(self, stroke: ListedStroke) -> None:
        self._marker.go_to(stroke.box)

    def _on_change(self, strokes: list[ListedStroke], class_id: int) -> None:
        session, entry = self._context.session, self._entry
        if self._view is None or entry is None or entry not in session.entries:
            return
        names = {c.id: c.name for c in session.classes}
        held = self._classes.table.locked & {class_id, *(s.class_id for s in strokes)}
        if held:
            self._view.status.setText(f"{names.get(min(held))} is locked: unlock it in the class table first.")
            return
        ids, slide = [s.id for s in strokes], entry.slide
        self._view.table.setFocus(Qt.FocusReason.OtherFocusReason)
        # a polygon over the whole slide takes a while
        self._context.in_background(
            lambda: session.strokes.change(ids, class_id, slide), lambda _: None, name="Changing annotations"
        )


def _listed(session: Session, entry: SlideEntry) -> tuple[ListedStroke, ...] | None:
    """The rows without new losses; None where the slide was closed meanwhile."""
    try:
        return session.strokes.list(entry.slide)
    except (SparseSegError, RuntimeError):
        if entry in session.entries:
            raise
        return None


def _scored(
    session: Session, entry: SlideEntry, stop: threading.Event, advanced: Any
) -> tuple[ListedStroke, ...] | None:
    try:
        return session.strokes.score(entry.slide, progress=advanced, stop=stop)
    except (SparseSegError, RuntimeError):
        if entry in session.entries and not stop.is_set():
            raise
        return None
