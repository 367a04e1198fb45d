"""What is in the dock panel: four sections in the order of the work, over one `Session`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from napari.settings import get_settings
from psygnal import emit_queued
from qtpy.QtCore import QObject, QTimer
from qtpy.QtWidgets import QVBoxLayout, QWidget

from napari_sparseseg.gui.commands import register_shortcuts, show_keys
from napari_sparseseg.gui.context import Context
from napari_sparseseg.gui.host import CanvasFocus, CloseGuard, LogTrail, WindowKeys, keep_window_alive
from napari_sparseseg.gui.layers.napari_compat import qt_problem, require_editing
from napari_sparseseg.gui.results.controller import ResultActions
from napari_sparseseg.gui.runs.controller import RunActions
from napari_sparseseg.gui.sections.classes.controller import ClassActions
from napari_sparseseg.gui.sections.classes.tools import ToolActions
from napari_sparseseg.gui.sections.classes.view import ClassesPanel
from napari_sparseseg.gui.sections.header.controller import ProjectActions
from napari_sparseseg.gui.sections.header.view import Header, next_step, state_line
from napari_sparseseg.gui.sections.predict.controller import PredictActions
from napari_sparseseg.gui.sections.predict.guidance import GuidanceActions
from napari_sparseseg.gui.sections.predict.view import PredictPanel
from napari_sparseseg.gui.sections.slide.controller import RecentActions, SlideActions
from napari_sparseseg.gui.sections.slide.view import SlidePanel
from napari_sparseseg.gui.sections.train.charts import import_plots
from napari_sparseseg.gui.sections.train.controller import TrainActions
from napari_sparseseg.gui.sections.train.view import TrainPanel
from napari_sparseseg.gui.strokes.controller import StrokeActions
from napari_sparseseg.gui.view.controller import ViewActions
from napari_sparseseg.gui.view.marking import RegionMarker
from napari_sparseseg.gui.widgets import Section, SteadyScroll, WheelGuard, palette, panel_sheet, plain_tip
from napari_sparseseg.session.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import napari

    from napari_sparseseg.gui.sections.train.controller import LabelStatistics

HINTED_STROKES = 6
"""The hint about keys is hidden after this many strokes."""
STEP_LINES = 2
"""Room for the sentence that says what to do next, also while there is none."""


KEPT_MS = 300
"""How long a panel that was shut down is kept for signals on their way."""


class Panel(QObject):
    """The contents of the dock panel: header and sections, each a view and a controller, and what joins them.

    `assemble` makes them in steps of less than a tenth of a second, so that the window goes on living meanwhile.

    Parameters
    ----------
    napari_viewer
        The viewer to annotate in.
    widget
        The empty dock panel.
    frame
        Its layout.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer, widget: QWidget, frame: QVBoxLayout) -> None:
        super().__init__(widget)
        register_shortcuts()
        keep_window_alive()
        self.viewer, self._widget, self._frame = napari_viewer, widget, frame
        self._context = Context(napari_viewer, Session(autosave=True), self)
        self._ends = ExitStack()
        """How to end what was made so far; the last made ends first."""
        self._ends.callback(self._context.close)

    def assemble(self) -> Iterator[None]:
        """Make the parts; every step ends with a ``yield``."""
        yield from self._make_views()
        yield from self._make_controllers()
        if self._context.attempt(require_editing):
            self.slides.adopt_ours()
        else:
            for part in (*self.sections, self.train.bar):
                part.setEnabled(False)
        broken = qt_problem()
        if broken:
            self.header.error.report(broken, "")

    def _make_views(self) -> Iterator[None]:
        self.header: Header = Header()
        self._column = self._lay_out()
        self._paint_frame()
        yield
        self.slide: SlidePanel = SlidePanel()
        self._add("Slide", self.slide, "Open and close slides")
        yield
        self.classes: ClassesPanel = ClassesPanel()
        self._add("Classes", self.classes, "The classes that the network learns; the brush draws the selected one")
        yield
        self.train: TrainPanel = TrainPanel()
        self._add("Train", self.train, "How the network is trained on the annotations; the defaults are fine to start")
        yield
        self.predict: PredictPanel = PredictPanel()
        self._add("Predict", self.predict, "Check and correct the prediction, then measure and export it")
        yield
        # at the end, and below what scrolls: what appears there moves nothing that is being clicked
        self._add("Progress", self.train.results, "How training goes: loss, scores on held-out strokes, messages")
        for part in (self.header.error, self.header.recovery, self.train.bar):
            self._frame.addWidget(part)
        self._frame.setContentsMargins(0, 0, 0, 4)
        yield

    def _make_controllers(self) -> Iterator[None]:
        context, ends = self._context, self._ends
        self._log = LogTrail()
        ends.callback(self._log.detach)
        self.slides = SlideActions(context, self.slide, self.header)
        ends.callback(self.slides.close)
        self._recent = RecentActions(context, self.slide, self.slides, lambda path: self._project.open(path))
        self.class_actions = ClassActions(context, self.classes, self.slides)
        yield
        self.training = TrainActions(context, self.train)
        self.prediction = PredictActions(context, self.predict, self.slides, self.class_actions)
        ends.callback(self.prediction.close)
        marker = RegionMarker(context, self._widget)
        ends.callback(marker.close)
        self._guidance = GuidanceActions(context, self.predict, self.slides, marker)
        self._tools = ToolActions(context, self.classes, self.predict, self.slides)
        ends.callback(self._tools.close)
        self.strokes: StrokeActions = StrokeActions(context, self.classes, marker)
        ends.callback(self.strokes.close)
        ends.callback(self.training.stop_timers)
        self.runs: RunActions = RunActions(context, self.train, self.slides)
        ends.callback(self.runs.close)
        self._project = ProjectActions(
            context, self.header, self.train, self._log, self.prediction.predict_all, lambda: self.results.show()
        )
        yield
        self.view: ViewActions = ViewActions(context, self._widget, self.slides)
        ends.callback(self.view.close)
        yield
        self.results = ResultActions(context, self.slides, self.view, self.prediction.predicted)
        self.predict.results_requested.connect(self.results.show)
        ends.callback(self.results.close)
        self._closing = CloseGuard(self._widget, context, self.shut_down)
        self._focus = CanvasFocus(self._widget)
        self._keys = WindowKeys(
            self._widget,
            self.viewer.window.file_menu,
            save=self._project.save_again,
            undo=self.slides.undo,
            redo=self.slides.redo,
        )
        for watcher in (self._keys, self._focus, self._closing):
            ends.callback(watcher.release)
        self._connect()
        self._paint()
        show_keys(self)
        self._on_session()
        yield

    def _lay_out(self) -> QVBoxLayout:
        self.sections: tuple[Section, ...] = ()
        inner = QWidget()
        column = QVBoxLayout(inner)
        column.setContentsMargins(4, 0, 4, 6)
        column.setSpacing(8)
        column.addStretch(1)
        step = self.header.next_step
        step.setMinimumHeight(STEP_LINES * step.fontMetrics().lineSpacing() + 4)
        kept = step.sizePolicy()
        kept.setRetainSizeWhenHidden(True)
        step.setSizePolicy(kept)
        self._frame.addWidget(self.header)
        self._frame.addWidget(SteadyScroll(inner), 1)
        return column

    def _add(self, title: str, view: QWidget, tip: str) -> None:
        section = Section(title, view, tip=tip)
        WheelGuard(section)
        for control in section.findChildren(QWidget):
            control.setToolTip(plain_tip(control.toolTip()))
        self.sections = (*self.sections, section)
        self._column.insertWidget(self._column.count() - 1, section)

    def _connect(self) -> None:
        context = self._context
        context.problem.connect(self.header.error.report)
        context.succeeded.connect(self.header.error.hide)
        self.training.counted.connect(self._on_counted)
        self.classes.preset_load_requested.connect(self.training.load_preset)
        self.classes.preset_save_requested.connect(self.training.save_preset)
        for signal in (context.status_changed, context.slides_changed, context.jobs.changed):
            signal.connect(self._show_state)
        context.session_replaced.connect(self._on_session)
        for event, call in (
            (self.viewer.events.theme, self._paint),
            (get_settings().shortcuts.events.shortcuts, self._show_keys),
        ):
            event.connect(call)
            self._ends.callback(event.disconnect, call)

    @property
    def session(self) -> Session:
        """The current session; opening a project replaces it."""
        return self._context.session

    @property
    def busy(self) -> tuple[str, ...]:
        """Names of the running background jobs ("Opening slide.svs")."""
        return self._context.jobs.names

    def start_training(self) -> None:
        """Press Train."""
        self.training.train()

    def attempt(self, action: Callable[[], Any]) -> bool:
        """Call a quick action and show its error, if any, in the panel; return whether it succeeded."""
        return self._context.attempt(action)

    def in_background(self, work: Callable[[], Any], then: Callable[[Any], object] | None = None, *, name: str) -> None:
        """Run a slow action off the GUI thread, then call `then(result)` on it, or show the error in the panel."""
        self._context.in_background(work, then, name=name)

    def shut_down(self) -> None:
        """End training with a checkpoint, remove the layers and close all files. Safe to call twice."""
        if self._context.closed:
            return
        emit_queued()  # a signal that waits must not find its receiver gone
        self._ends.close()
        QTimer.singleShot(KEPT_MS, lambda: self)  # for signals that other threads have queued meanwhile

    def watch(self) -> None:
        """Watch the window that the panel is docked in now."""
        if not self._context.closed:
            for watcher in (self._closing, self._focus, self._keys, self.view):
                watcher.watch()

    def _on_session(self) -> None:
        # torch and pyqtgraph are imported while the user opens a slide and draws the first strokes
        self.session.warm_up()
        self._context.jobs.run(import_plots, lambda _: self.train.curves.prepare())
        self.viewer.update_console({"session": self._context.session})
        self._show_state()

    def _on_counted(self, statistics: LabelStatistics) -> None:
        self.class_actions.show_statistics(statistics)
        self.classes.hint.setVisible(sum(statistics.strokes.values()) < HINTED_STROKES)
        self._show_state()

    def _show_state(self) -> None:
        status, jobs, model = self.session.status, self._context.jobs.names, self.session.model
        has_slide = self.session.entry is not None
        text = state_line(status, jobs, has_slide=has_slide)
        active = bool(jobs) or status.state in ("training", "predicting")
        summaries = (
            self.slide.slides.currentText(), f"{len(self.session.classes)} classes", self.train.balancing.currentText(),
            f"live prediction {'on' if self.predict.live.isChecked() else 'off'}", self.train.scores.text(),
        )  # fmt: skip
        for section, summary in zip(self.sections, summaries, strict=True):
            section.summary.setText(summary)
        self.header.show_state(text, active=active, failed=status.state == "failed")
        self.header.show_next_step(
            next_step(
                status,
                self.session.classes,
                self.training.statistics,
                has_slide=has_slide,
                live=self.predict.live.isChecked(),
                unlearned=self._has_unlearned_strokes(),
                known=() if model is None else model.metadata.classes,
            )
        )

    def _has_unlearned_strokes(self) -> bool:
        """Strokes are learned at once only after training in this session."""
        status, binding = self.session.status, self.slides.binding
        if binding is None or binding.entry.role != "train" or status.state != "idle" or status.live_annotation_version:
            return False
        return binding.entry.annotations.version > binding.opened_version

    def _show_keys(self) -> None:
        show_keys(self)

    def _paint(self) -> None:
        colours = palette(self.viewer)
        self._paint_frame()
        self.header.paint(colours)
        self.train.curves.paint(colours)
        self.classes.table.paint(colours)
        self.results.paint(colours)
        self.strokes.paint(colours)
        self.runs.paint(colours)

    def _paint_frame(self) -> None:
        sheet = panel_sheet(palette(self.viewer))
        if sheet != self._widget.styleSheet():  # Qt styles every widget of the panel anew
            self._widget.setStyleSheet(sheet)
