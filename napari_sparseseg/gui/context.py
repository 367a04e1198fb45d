"""What all sections of the panel share: viewer, session, background jobs, and the session's signals on the GUI thread.

The session emits from its own thread, sometimes hundreds of times a second. `Context` collects the signals and passes
them on, on the GUI thread, at most every `INTERVAL_MS`.
"""

from __future__ import annotations

import logging
import threading
import traceback
from typing import TYPE_CHECKING, Any

import psygnal.qt
from qtpy.QtCore import QObject, QTimer, Signal

from napari_sparseseg.errors import PredictionStopped, SparseSegError

if TYPE_CHECKING:
    from collections.abc import Callable

    import napari

    from napari_sparseseg.session.session import Session
    from napari_sparseseg.session.slides import SlideEntry

INTERVAL_MS = 80
QUEUE_MS = 30
_log = logging.getLogger(__name__)


class Context(QObject):
    """The session behind one panel, and how buttons use it.

    Parameters
    ----------
    viewer
        The viewer with the layers.
    session
        The first session; `replace_session` changes it.

    Attributes
    ----------
    status_changed, slides_changed, annotated, live_changed
        Signals () on the GUI thread: the session's own, collected.
    session_replaced
        Signal (): `session` is another object.
    problem
        Signal (message, details): one line for the user, and the traceback for a bug report.
    succeeded
        Signal (): an action that the user asked for went well, so that an earlier problem is no longer shown.
    """

    status_changed = Signal()
    slides_changed = Signal()
    annotated = Signal()
    live_changed = Signal()
    session_replaced = Signal()
    problem = Signal(str, str)
    succeeded = Signal()

    def __init__(self, viewer: napari.Viewer, session: Session, parent: QObject) -> None:
        super().__init__(parent)
        self.viewer, self.session = viewer, session
        self.jobs = Jobs(self)
        self.jobs.failed.connect(self.report)
        self.closed = False
        self.leaving = False
        """The window is closing: napari removes all layers itself, which is faster than one by one."""
        self.stop_prediction = threading.Event()
        """Set it to end the current whole-slide prediction; every run gets a new one."""
        self._due: set[str] = set()
        self._timer = single_shot(self, INTERVAL_MS, self._emit_due)
        psygnal.qt.start_emitting_from_queue(QUEUE_MS)
        self._connect()

    @property
    def entry(self) -> SlideEntry | None:
        """The active slide with its annotations, or None."""
        return self.session.entry

    def attempt(self, action: Callable[[], Any]) -> bool:
        """Call a quick action and show its error, if any, to the user; return whether it succeeded."""
        try:
            action()
        except SparseSegError as error:
            self.report(error)
            return False
        self.succeeded.emit()
        return True

    def in_background(self, work: Callable[[], Any], then: Callable[[Any], object] | None = None, *, name: str) -> None:
        """Run a slow action as a job; `name` is shown meanwhile ("Opening slide.svs")."""
        self.jobs.run(work, then, name=name)

    def report(self, error: Exception) -> None:
        """Show an error: the message of our own, any other with its type; a cancelled prediction is not an error."""
        if isinstance(error, PredictionStopped):
            return
        details = "".join(traceback.format_exception(error))
        _log.warning("%s: %s", type(error).__name__, error, exc_info=error)
        text = str(error)
        if not isinstance(error, (SparseSegError, OSError)):
            text = f"{type(error).__name__}: {error}"
        self.problem.emit(text, details)

    def replace_session(self, session: Session) -> None:
        """Switch to another session; the previous one is closed in the background."""
        before = self.session
        self._disconnect()
        self.session = session
        self._connect()
        self.session_replaced.emit()
        self.jobs.run(before.close)
        for name in ("slides_changed", "annotated", "status_changed", "live_changed"):
            self._mark(name)

    def close(self) -> None:
        """Disconnect from the session and close it: training ends with a checkpoint. Safe to call twice."""
        if self.closed:
            return
        self.closed = True
        self._timer.stop()
        self._disconnect()
        self.stop_prediction.set()
        self.session.close()

    def _connect(self) -> None:
        session = self.session
        session.status_changed.connect(self._on_status, thread="main")
        session.live_changed.connect(self._on_live, thread="main")
        session.slides_changed.connect(self._on_slides, thread="main")
        session.annotated.connect(self._on_annotated, thread="main")

    def _disconnect(self) -> None:
        session = self.session
        session.status_changed.disconnect(self._on_status, missing_ok=True)
        session.live_changed.disconnect(self._on_live, missing_ok=True)
        session.slides_changed.disconnect(self._on_slides, missing_ok=True)
        session.annotated.disconnect(self._on_annotated, missing_ok=True)

    def _on_status(self) -> None:
        self._mark("status_changed")

    def _on_live(self) -> None:
        self._mark("live_changed")

    def _on_slides(self) -> None:
        self._mark("slides_changed")

    def _on_annotated(self) -> None:
        self._mark("annotated")

    def _mark(self, signal: str) -> None:
        if self.closed:
            return
        self._due.add(signal)
        if not self._timer.isActive():
            self._timer.start()

    def _emit_due(self) -> None:
        due, self._due = self._due, set()
        for signal in ("slides_changed", "annotated", "live_changed", "status_changed"):
            if signal in due:
                getattr(self, signal).emit()


def single_shot(parent: QObject, interval_ms: int, call: Callable[[], object]) -> QTimer:
    """A timer that calls once per start."""
    timer = QTimer(parent)
    timer.setSingleShot(True)
    timer.setInterval(interval_ms)
    timer.timeout.connect(call)
    return timer


class Job(QObject):
    """One call on a thread of its own.

    A plain thread: the generator workers of napari and superqt lose a RuntimeError, which is what torch and Qt raise.

    Attributes
    ----------
    done
        Signal (job, result), on the thread that made the job.
    failed
        Signal (job, exception), likewise.
    """

    done = Signal(object, object)
    failed = Signal(object, object)

    def __init__(self, work: Callable[[], Any], parent: QObject) -> None:
        super().__init__(parent)
        self._work = work
        self._thread = threading.Thread(target=self._run, name="sparseseg-job", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Block until the call has ended; False when it has not after `seconds`."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            result = self._work()
        except Exception as error:  # noqa: BLE001 - shown by the GUI thread
            self._emit("failed", error)
        else:
            self._emit("done", result)

    def _emit(self, signal: str, value: object) -> None:
        try:
            getattr(self, signal).emit(self, value)
        except RuntimeError:  # the panel was closed meanwhile and Qt has deleted this object
            _log.info("a background call ended after its panel was closed")


class Jobs(QObject):
    """Runs jobs and passes each result to its own callback on the GUI thread.

    Attributes
    ----------
    failed
        Signal (exception).
    changed
        Signal (): a job started or ended.
    """

    failed = Signal(object)
    changed = Signal()

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._running: dict[Job, tuple[str, Callable[[Any], object] | None, Callable[[], object] | None]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the running jobs, oldest first; jobs without a name are left out."""
        return tuple(name for name, _, _ in self._running.values() if name)

    def run(
        self,
        work: Callable[[], Any],
        then: Callable[[Any], object] | None = None,
        *,
        name: str = "",
        always: Callable[[], object] | None = None,
    ) -> None:
        """Call `work` on a thread, then on this one `always()` and, if it succeeded, `then(result)`.

        `name` tells the user what is running.
        """
        job = Job(work, self)
        self._running[job] = (name, then, always)
        job.done.connect(self._on_done)
        job.failed.connect(self._on_failed)
        job.start()
        self.changed.emit()

    def _on_done(self, job: Job, result: object) -> None:
        then = self._end(job)
        if then is not None:
            then(result)

    def _on_failed(self, job: Job, error: Exception) -> None:
        self._end(job)
        self.failed.emit(error)

    def _end(self, job: Job) -> Callable[[Any], object] | None:
        _, then, always = self._running.pop(job)
        self.changed.emit()
        job.wait(1.0)  # microseconds: the job may still be inside `emit`, and Qt must not delete the sender
        job.deleteLater()
        if always is not None:
            always()
        return then
