"""The dock panel: four sections in the order of the work, over one `Session`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari.settings import get_settings
from qtpy.QtCore import QEvent, QSize
from qtpy.QtWidgets import QVBoxLayout, QWidget

from napari_sparseseg.gui.commands import register_shortcuts, show_keys
from napari_sparseseg.gui.context import Context
from napari_sparseseg.gui.host import CanvasFocus, CloseGuard, LogTrail
from napari_sparseseg.gui.layers.napari_compat import qt_problem, require_editing
from napari_sparseseg.gui.sections.classes.controller import ClassActions
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
from napari_sparseseg.gui.widgets import Section, SteadyScroll, WheelGuard, palette, plain_tip
from napari_sparseseg.session.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    import napari

    from napari_sparseseg.gui.sections.train.controller import LabelStatistics

HINTED_STROKES = 6
"""The hint about keys is hidden after this many strokes."""
MIN_WIDTH, PREFERRED = 310, QSize(360, 860)


class SparseSegWidget(QWidget):
    """Scribble, train, predict.

    Every button uses `session`, which is also a variable of the viewer's console. Each section has a view (`slide`,
    `classes`, `train`, `predict`) and a controller (`slides`, `class_actions`, `training`, `prediction`).

    Parameters
    ----------
    napari_viewer
        The viewer to annotate in.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        register_shortcuts()
        self.viewer = napari_viewer
        self._context = Context(napari_viewer, Session(autosave=True), self)
        self.header = Header()
        self.slide: SlidePanel = SlidePanel()
        self.classes: ClassesPanel = ClassesPanel()
        self.train: TrainPanel = TrainPanel()
        self.predict: PredictPanel = PredictPanel()
        self.sections = (
            Section("Slide", self.slide, tip="Open and close slides"),
            Section(
                "Classes",
                self.classes,
                tip="The classes that the network learns; the brush draws the selected one",
            ),
            Section(
                "Train",
                self.train,
                tip="Train the network on the annotations; the defaults are fine to start",
            ),
            Section("Predict", self.predict, tip="Check and correct the prediction, then measure and export it"),
        )
        self._lay_out()
        self.slides = SlideActions(self._context, self.slide, self.header)
        self._recent = RecentActions(self._context, self.slide, self.slides, lambda path: self._project.open(path))
        self.class_actions = ClassActions(self._context, self.classes, self.slides)
        self.training = TrainActions(self._context, self.train)
        self.prediction = PredictActions(self._context, self.predict, self.slides, self.class_actions)
        self._guidance = GuidanceActions(self._context, self.predict, self.slides, self.prediction.display)
        self._log = LogTrail()
        self._project = ProjectActions(self._context, self.header, self.train, self._log, self.prediction.predict_all)
        self._closing = CloseGuard(self, self._context, self.shut_down)
        self._focus = CanvasFocus(self)
        self._context.problem.connect(self.header.error.report)
        self._context.succeeded.connect(self.header.error.hide)
        self.training.counted.connect(self._on_counted)
        for signal in (self._context.status_changed, self._context.slides_changed, self._context.jobs.changed):
            signal.connect(self._show_state)
        self._context.session_replaced.connect(self._on_session)
        napari_viewer.events.theme.connect(self._paint)
        get_settings().shortcuts.events.shortcuts.connect(self._show_keys)
        self._paint()
        self._show_keys()
        self._on_session()
        if self._context.attempt(require_editing):
            self.slides.adopt_ours()
        else:
            for section in self.sections:
                section.setEnabled(False)
        broken = qt_problem()
        if broken:
            self.header.error.report(broken, "")

    @property
    def session(self) -> Session:
        """The current session; opening a project replaces it."""
        return self._context.session

    def sizeHint(self) -> QSize:
        return PREFERRED

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
        self._closing.release()
        self._focus.release()
        self.viewer.events.theme.disconnect(self._paint)
        get_settings().shortcuts.events.shortcuts.disconnect(self._show_keys)
        self.training.stop_timers()
        self._guidance.close()
        self.prediction.close()
        self.slides.close()
        self._log.detach()
        self._context.close()

    def event(self, event: QEvent | None) -> bool:
        """Shut down when the dock is closed, which takes the panel out of the window."""
        if event is not None and event.type() == QEvent.Type.ParentChange:
            if self.parent() is None:
                self.shut_down()
            else:
                self._closing.watch()
                self._focus.watch()
        return bool(super().event(event))

    def showEvent(self, event: QEvent | None) -> None:
        super().showEvent(event)
        self._closing.watch()
        self._focus.watch()

    def _lay_out(self) -> None:
        inner = QWidget()
        column = QVBoxLayout(inner)
        column.setContentsMargins(4, 0, 4, 6)
        column.setSpacing(8)
        for section in self.sections:
            column.addWidget(section)
        column.addStretch(1)
        WheelGuard(inner)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.addWidget(self.header)
        layout.addWidget(SteadyScroll(inner), 1)
        self.setMinimumWidth(MIN_WIDTH)
        for control in self.findChildren(QWidget):
            control.setToolTip(plain_tip(control.toolTip()))

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
            self.slide.slides.currentText(), f"{len(self.session.classes)} classes", self.train.numbers.text(),
            f"live prediction {'on' if self.predict.live.isChecked() else 'off'}",
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
        self.header.paint(colours)
        self.train.curves.paint(colours)
        self.classes.table.paint(colours)
        self.setStyleSheet(
            f'QLabel[muted="true"] {{ color: {colours.muted}; }}'
            f"QHeaderView::section {{ background: {colours.background}; color: {colours.muted}; border: none;"
            f" border-bottom: 1px solid {colours.foreground}; padding: 2px 4px; }}"
            f"QTableWidget, QPlainTextEdit {{ border: 1px solid {colours.foreground}; border-radius: 2px; }}"
            "QPushButton { padding: 4px 7px; }"
        )
