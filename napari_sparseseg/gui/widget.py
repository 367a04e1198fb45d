"""The dock panel: an empty frame at once, then its sections one by one, so that the window never stands still."""

from __future__ import annotations

import threading
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QEvent, QObject, QSize, Qt, QTimer, Signal
from qtpy.QtWidgets import QDockWidget, QLabel, QMainWindow, QSizePolicy, QVBoxLayout, QWidget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import napari

    from napari_sparseseg.gui.panel import Panel
    from napari_sparseseg.gui.results.controller import ResultActions
    from napari_sparseseg.gui.runs.controller import RunActions
    from napari_sparseseg.gui.sections.classes.controller import ClassActions
    from napari_sparseseg.gui.sections.classes.view import ClassesPanel
    from napari_sparseseg.gui.sections.header.view import Header
    from napari_sparseseg.gui.sections.predict.controller import PredictActions
    from napari_sparseseg.gui.sections.predict.view import PredictPanel
    from napari_sparseseg.gui.sections.slide.controller import SlideActions
    from napari_sparseseg.gui.sections.slide.view import SlidePanel
    from napari_sparseseg.gui.sections.train.controller import TrainActions
    from napari_sparseseg.gui.sections.train.view import TrainPanel
    from napari_sparseseg.gui.strokes.controller import StrokeActions
    from napari_sparseseg.gui.view.controller import ViewActions
    from napari_sparseseg.gui.widgets import Section
    from napari_sparseseg.session.session import Session

PARTS = (
    "header", "slide", "classes", "train", "predict", "slides", "class_actions", "training", "prediction", "sections",
    "view", "results", "strokes", "runs",
)  # fmt: skip
"""What `SparseSegWidget` has of its panel."""
LAYER_DOCKS = ("layer controls", "layer list")
SMALL_SCREEN = 1280
"""Narrower screens (logical pixels) have no room for a column on each side of the slide."""
LEAST_SHARE = 0.38
"""Of a window's width that the slide has at least beside both columns."""
DONE = object()
BREATH_MS = 5
"""Between two parts."""
MIN_WIDTH, PREFERRED = 310, QSize(360, 860)


class SparseSegWidget(QWidget):
    """Scribble, train, predict.

    Every button uses `session`, which is also a variable of the viewer's console. Each section has a view (`slide`,
    `classes`, `train`, `predict`) and a controller (`slides`, `class_actions`, `training`, `prediction`).

    The libraries are imported on a thread and the sections made one by one while the window goes on working; whoever
    asks for one of them earlier waits for all.

    Parameters
    ----------
    napari_viewer
        The viewer to annotate in.

    Attributes
    ----------
    complete
        Whether all sections are there.
    """

    # parts of the panel: see `__getattr__`
    header: Header
    slide: SlidePanel
    classes: ClassesPanel
    train: TrainPanel
    predict: PredictPanel
    slides: SlideActions
    class_actions: ClassActions
    training: TrainActions
    prediction: PredictActions
    view: ViewActions
    results: ResultActions
    strokes: StrokeActions
    runs: RunActions
    sections: tuple[Section, ...]

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self._panel: Panel | None = None
        self._steps: Iterator[None] | None = None
        self.complete = self._closed = False
        self._placed = False
        self._calls: list[Callable[[], object]] = []
        self._frame = layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        self._wait = QLabel("Loading\u2026")
        self._wait.setWordWrap(True)
        self._wait.setAlignment(Qt.AlignmentFlag.AlignHCenter | Qt.AlignmentFlag.AlignTop)
        layout.addWidget(self._wait)
        self.setMinimumWidth(MIN_WIDTH)
        # what is not expanding gets a spacer from napari, wider with every dock, and the sections come below it
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Expanding)
        self._imports = _Imports(self)
        self._imports.done.connect(self._step)
        self._imports.start()

    def __getattr__(self, name: str) -> Any:
        """The parts of the panel, which this class itself has not."""
        if name.startswith("__") or name not in PARTS:
            raise AttributeError(name)
        return getattr(self._completed(), name)

    @property
    def session(self) -> Session:
        """The current session; opening a project replaces it."""
        return self._completed().session

    @property
    def busy(self) -> tuple[str, ...]:
        """Names of the running background jobs ("Opening slide.svs")."""
        return self._completed().busy

    def sizeHint(self) -> QSize:
        return PREFERRED

    def when_complete(self, call: Callable[[], object]) -> None:
        """Call as soon as all sections are there: at once, or in a moment."""
        if self.complete:
            call()
        else:
            self._calls.append(call)

    def start_training(self) -> None:
        """Press Train."""
        self._completed().start_training()

    def attempt(self, action: Callable[[], Any]) -> bool:
        """Call a quick action and show its error, if any, in the panel; return whether it succeeded."""
        return self._completed().attempt(action)

    def in_background(self, work: Callable[[], Any], then: Callable[[Any], object] | None = None, *, name: str) -> None:
        """Run a slow action off the GUI thread, then call `then(result)` on it, or show the error in the panel."""
        self._completed().in_background(work, then, name=name)

    def shut_down(self) -> None:
        """End training with a checkpoint, remove the layers and close all files. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        if self._panel is not None:
            self._panel.shut_down()

    def event(self, event: QEvent | None) -> bool:
        """Shut down when the dock is closed, which takes the panel out of the window."""
        if event is not None and event.type() == QEvent.Type.ParentChange:
            if self.parent() is None:
                self.shut_down()
            else:
                self._watch()
        return bool(super().event(event))

    def showEvent(self, event: QEvent | None) -> None:
        super().showEvent(event)
        self._watch()
        QTimer.singleShot(0, self._make_room)  # when napari has docked it

    def _make_room(self) -> None:
        """Where little would be left for the slide, share the column of napari's layer docks as a tab."""
        window, dock = self.window(), self.parentWidget()
        if self._placed or not isinstance(window, QMainWindow) or not isinstance(dock, QDockWidget):
            return
        self._placed = True
        roomy, centre = self.screen().availableGeometry().width() >= SMALL_SCREEN, window.centralWidget()
        if roomy and centre is not None and centre.width() >= LEAST_SHARE * window.width():
            return
        docks = {d.objectName(): d for d in window.findChildren(QDockWidget)}
        column = [docks[name] for name in LAYER_DOCKS if name in docks and not docks[name].isFloating()]
        for first, second in pairwise([*column, dock]):
            window.tabifyDockWidget(first, second)
        dock.raise_()

    def _watch(self) -> None:
        if self._panel is not None and self.complete:
            self._panel.watch()

    def _step(self) -> None:
        """Make one more part, and let the window live before the next."""
        if not self._closed and not self.complete:
            self._advance()
            QTimer.singleShot(BREATH_MS, self._step)

    def _advance(self) -> None:
        from napari_sparseseg.gui.panel import Panel

        try:
            if self._panel is None or self._steps is None:
                self._panel = Panel(self.viewer, self, self._frame)
                self._steps = self._panel.assemble()
            if next(self._steps, DONE) is DONE:
                self.complete = True
                self._panel.watch()
                for call in self._calls:
                    QTimer.singleShot(0, call)
        except Exception as error:
            self.shut_down()
            self._wait.setText(f"The panel could not be made: {error}")  # napari shows the rest
            self._wait.show()
            self.setEnabled(False)
            raise
        self._wait.hide()

    def _completed(self) -> Panel:
        """The panel with all of its parts."""
        if self._closed and not self.complete:
            raise RuntimeError("this panel was closed before it was complete.")
        self._imports.join()
        while not self.complete:
            self._advance()
        assert self._panel is not None
        return self._panel


class _Imports(QObject):
    """Imports the package, and what napari imports and reads for the first layer, off the GUI thread."""

    done = Signal()

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._thread = threading.Thread(target=self._run, name="sparseseg-imports", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        """Wait until everything is imported."""
        self._thread.join()

    def _run(self) -> None:
        try:
            from napari_sparseseg.gui import panel
            from napari_sparseseg.gui.layers.napari_compat import problems, warm_up

            assert panel
            problems()
            warm_up()
        finally:
            with suppress(RuntimeError):  # the panel was closed meanwhile, and Qt has deleted this object
                self.done.emit()
