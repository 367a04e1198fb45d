"""Opens the list of training runs, keeps it up to date, and does what its buttons ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari.layers import Labels
from qtpy.QtCore import QObject
from qtpy.QtWidgets import QDockWidget

from napari_sparseseg.geometry import Box
from napari_sparseseg.gui import dialogs
from napari_sparseseg.gui.context import single_shot
from napari_sparseseg.gui.layers.napari_compat import insert_unselected, view_box
from napari_sparseseg.gui.layers.prediction_colours import class_colours
from napari_sparseseg.gui.runs.view import RunDock

if TYPE_CHECKING:
    from napari_sparseseg.gui.context import Context
    from napari_sparseseg.gui.layers.slide_layers import SlideBinding
    from napari_sparseseg.gui.sections.slide.controller import SlideActions
    from napari_sparseseg.gui.sections.train.view import TrainPanel
    from napari_sparseseg.gui.widgets import Palette
    from napari_sparseseg.session.run_files import KeptRun
    from napari_sparseseg.session.runs import Difference

DOCK = "Training runs"
SETTLE_MS = 200
MOST_SIDE = 2048
"""Pixels of the coarser model a side, of the part of the view in which two runs are compared."""


class RunActions(QObject):
    """Connects the dock, the buttons below the scores and the session's runs.

    Parameters
    ----------
    context
        Session and viewer.
    panel
        With the buttons *Runs…* and *Undo training*.
    slides
        Which slide is shown.
    """

    def __init__(self, context: Context, panel: TrainPanel, slides: SlideActions) -> None:
        super().__init__(context)
        self._context, self._panel, self._slides = context, panel, slides
        self._view: RunDock | None = None
        self._colours: Palette | None = None
        self._layer: Labels | None = None
        self._shown_for: tuple[Any, ...] = ()
        self._later = single_shot(self, SETTLE_MS, self._refresh)
        panel.runs_requested.connect(self.open)
        panel.undo_requested.connect(self.undo)
        for signal in (context.status_changed, context.session_replaced):
            signal.connect(self._on_changed)
        self._on_changed()

    @property
    def view(self) -> RunDock:
        """The contents of the dock, made when they are first asked for."""
        if self._view is None:
            self._view = view = RunDock()
            view.use_requested.connect(self._on_use)
            view.export_requested.connect(self._on_export)
            view.difference_requested.connect(self._on_difference)
            view.rename_requested.connect(self._on_rename)
            if self._colours is not None:
                view.paint(self._colours)
        return self._view

    def open(self) -> None:
        """Show the dock."""
        view, window = self.view, self._context.viewer.window
        dock = view.parent()
        if not isinstance(dock, QDockWidget):
            dock = window.add_dock_widget(view, name=DOCK, area="bottom")
        dock.show()
        dock.raise_()
        view.show()
        view.table.setFocus()
        self._shown_for = ()
        self._on_changed()

    def undo(self) -> None:
        """Let the model serve again that served before the last run."""
        session = self._context.session
        self._context.in_background(session.runs.undo, self._on_served, name="Going back to the model before")

    def paint(self, colours: Palette) -> None:
        """Apply the colours of a theme."""
        self._colours = colours
        if self._view is not None:
            self._view.paint(colours)

    def close(self) -> None:
        """Take dock and layer out of the window."""
        self._later.stop()
        self._remove_layer()
        view, self._view = self._view, None
        if view is None:
            return
        if isinstance(view.parent(), QDockWidget) and not self._context.leaving:
            self._context.viewer.window.remove_dock_widget(view)
        view.deleteLater()

    def _on_changed(self) -> None:
        session = self._context.session
        if self._context.closed:
            return
        idle = session.status.state not in ("training", "paused", "predicting")
        act = session.runs.next_undo
        self._panel.show_undo(act, enabled=bool(act) and idle)
        if self._view is not None and self._shown_for != self._present():
            self._later.start()

    def _present(self) -> tuple[Any, ...]:
        session = self._context.session
        return session, session.runs.in_use, session.project

    def _refresh(self) -> None:
        view, session = self._view, self._context.session
        if view is None or self._context.closed:
            return
        self._shown_for = self._present()
        self._context.jobs.run(
            lambda: session.runs.list(),
            lambda runs: view.show_runs(runs, session.runs.in_use, session.runs.problems),
        )

    def _on_served(self, act: str | None) -> None:
        if act:
            self._panel.say(f"{act.capitalize()}: done")
        self._refresh()

    def _on_use(self, run: KeptRun) -> None:
        session = self._context.session
        self._context.in_background(
            lambda: session.runs.use(run.id),
            lambda _: self._on_served(f"going to the run {run.title}"),
            name=f"Going to the run {run.title}",
        )

    def _on_rename(self, run: KeptRun, name: str) -> None:
        session = self._context.session
        self._context.jobs.run(lambda: session.runs.rename(run.id, name), always=self._refresh)

    def _on_export(self, run: KeptRun) -> None:
        path = dialogs.ask_save(self.view, "Save the model of a run", "model.safetensors", dialogs.MODELS)
        if path:
            session = self._context.session
            self._context.in_background(
                lambda: session.runs.export(run.id, path, overwrite=True),
                lambda _: self._panel.say(f"Saved {path}"),
                name="Saving the model",
            )

    def _on_difference(self, a: KeptRun, b: KeptRun) -> None:
        binding, session = self._slides.binding, self._context.session
        if binding is None:
            self.view.status.setText("Open a slide to see where the two differ.")
            return
        slide = binding.entry.slide
        coarser = max((r.metadata.mpp for r in (a, b) if r.metadata.mpp is not None), default=None)
        box, whole = _middle(view_box(self._context.viewer)[0], slide.frame(coarser).downsample)
        self._context.in_background(
            lambda: session.runs.difference(a.id, b.id, box, slide=slide),
            lambda found: self._show(binding, found, whole=whole),
            name="Comparing two runs",
        )

    def _show(self, binding: SlideBinding, found: Difference, *, whole: bool) -> None:
        self._remove_layer()
        if binding is not self._slides.binding or self._view is None:
            return
        down = found.frame.downsample
        where = [(corner + 0.5) * d - 0.5 for corner, d in zip(found.box[:2], down, strict=True)]
        self._layer = layer = Labels(
            found.labels,
            name="difference of runs",
            colormap=class_colours(list(found.classes)),
            features={"index": [c.id for c in found.classes], "class": [c.name for c in found.classes]},
            scale=down,
            translate=where,
            opacity=0.9,  # its colours are those of the prediction below
        )
        layer.editable = False
        insert_unselected(self._context.viewer, binding.below_scribbles, layer)
        binding.attach(layer)
        region = next(iter(found.agreement.counts))
        share, kappa = found.agreement.agreement(region), found.agreement.kappa(region)
        part = "the view" if whole else "the middle of the view"
        self._view.status.setText(f"They differ in {100 * (1 - share):.1f} % of {part}, kappa {kappa:.2f}")

    def _remove_layer(self) -> None:
        layer, self._layer = self._layer, None
        if layer is not None and layer in self._context.viewer.layers and not self._context.leaving:
            self._context.viewer.layers.remove(layer)


def _middle(box: Box, downsample: tuple[float, float]) -> tuple[Box, bool]:
    """The middle of a level-0 box, as much as is predicted in some seconds, and whether that is all of it."""
    most = [round(MOST_SIDE * d) for d in downsample]
    sides = [min(side, limit) for side, limit in zip(box[2:], most, strict=True)]
    y, x = (corner + (side - part) // 2 for corner, side, part in zip(box[:2], box[2:], sides, strict=True))
    return Box(y, x, *sides), sides == list(box[2:])
