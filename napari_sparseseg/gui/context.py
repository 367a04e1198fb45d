"""What all sections of the panel share: viewer, session, background calls, and the session's signals as Qt's.

The session emits from its own thread, sometimes hundreds of times a second. `Context` collects that and tells the
sections, on the GUI thread, at most every `INTERVAL_MS`.
"""

from __future__ import annotations

import logging
import threading
import traceback
from typing import TYPE_CHECKING, Any

import psygnal.qt
from qtpy.QtCore import QObject, QTimer, Signal

from napari_sparseseg.errors import SparseSegError
from napari_sparseseg.prediction.tiles import PredictionStopped

if TYPE_CHECKING:
    from collections.abc import Callable

    import napari

    from napari_sparseseg.session.session import Session
    from napari_sparseseg.session.slides import SlideEntry

INTERVAL_MS = 80
QUEUE_MS = 30


class Context(QObject):
    """The session behind one panel, and the way to use it from buttons.

    Parameters
    ----------
    viewer
        Where the layers are.
    session
        To begin with; `replace_session` changes it.

    Attributes
    ----------
    status_changed, slides_changed, annotated, live_changed
        Signals () on the GUI thread: the session's own, collected.
    session_replaced
        Signal (): `session` is another object.
    problem
        Signal (message, details): something failed; one line for the user, and what a bug report needs.
    """

    status_changed = Signal()
    slides_changed = Signal()
    annotated = Signal()
    live_changed = Signal()
    session_replaced = Signal()
    problem = Signal(str, str)

    def __init__(self, viewer: napari.Viewer, session: Session, parent: QObject) -> None:
        super().__init__(parent)
        self.viewer, self.session = viewer, session
        self.jobs = Jobs(self)
        self.jobs.failed.connect(self.report)
        self.closed = self.leaving = False
        """Closed, because the window closes: napari takes its layers with it, one by one it would hold the user up."""
        self.stop_prediction = threading.Event()
        """Set it to end the whole-slide prediction under way; each run has a new one."""
        self._due: set[str] = set()
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(INTERVAL_MS)
        self._timer.timeout.connect(self._tell)
        psygnal.qt.start_emitting_from_queue(QUEUE_MS)
        self._connect()

    @property
    def entry(self) -> SlideEntry | None:
        """The active slide with its annotations, or None."""
        return self.session.set.active if self.session.set.has_active else None

    def attempt(self, action: Callable[[], Any]) -> bool:
        """Call what is quick; an error that the user can mend is shown. Whether it went well."""
        try:
            action()
        except SparseSegError as error:
            self.report(error)
            return False
        return True

    def in_background(self, work: Callable[[], Any], then: Callable[[Any], object] | None = None, *, name: str) -> None:
        """Call what touches disk or waits for the engine; `name` is shown meanwhile ("Opening slide.svs")."""
        self.jobs.run(work, then, name=name)

    def report(self, error: Exception) -> None:
        """Show an error: the message of our own, else a defect with its traceback to copy; a cancel is none."""
        if isinstance(error, PredictionStopped):
            return
        details = "".join(traceback.format_exception(error))
        text = str(error)
        if not isinstance(error, (SparseSegError, OSError)):
            text = f"{type(error).__name__}: {error}"
        self.problem.emit(text, details)

    def replace_session(self, session: Session) -> None:
        """Go on with another session; the one before is closed in the background."""
        before = self.session
        self._disconnect()
        self.session = session
        self._connect()
        self.session_replaced.emit()
        self.jobs.run(before.close)
        for name in ("slides", "annotated", "status", "live"):
            self._mark(name)

    def close(self) -> None:
        """Let go of the session's signals and close it: training ends with a checkpoint. Safe to call twice."""
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
        session.set.changed.connect(self._on_slides, thread="main")
        session.set.annotated.connect(self._on_annotated, thread="main")

    def _disconnect(self) -> None:
        session = self.session
        session.status_changed.disconnect(self._on_status, missing_ok=True)
        session.live_changed.disconnect(self._on_live, missing_ok=True)
        session.set.changed.disconnect(self._on_slides, missing_ok=True)
        session.set.annotated.disconnect(self._on_annotated, missing_ok=True)

    def _on_status(self) -> None:
        self._mark("status")

    def _on_live(self) -> None:
        self._mark("live")

    def _on_slides(self) -> None:
        self._mark("slides")

    def _on_annotated(self) -> None:
        self._mark("annotated")

    def _mark(self, what: str) -> None:
        if self.closed:
            return
        self._due.add(what)
        if not self._timer.isActive():
            self._timer.start()

    def _tell(self) -> None:
        due, self._due = self._due, set()
        signals = {
            "slides": self.slides_changed, "annotated": self.annotated, "live": self.live_changed,
            "status": self.status_changed,
        }  # fmt: skip
        for name, signal in signals.items():
            if name in due:
                signal.emit()


_log = logging.getLogger(__name__)


class Job(QObject):
    """One call on a thread of its own.

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
        """Begin."""
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Block until the call has ended; False when it has not in that time."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            result = self._work()
        except Exception as error:  # noqa: BLE001 - handed to the GUI thread, which shows it
            self._emit("failed", error)
        else:
            self._emit("done", result)

    def _emit(self, signal: str, value: object) -> None:
        try:
            getattr(self, signal).emit(self, value)
        except RuntimeError:  # the panel was closed meanwhile: Qt has deleted this object
            _log.info("a background call ended after its panel was closed")


class Jobs(QObject):
    """Runs jobs and hands each result to its own callback on the GUI thread.

    Attributes
    ----------
    failed
        Signal (exception) of a job whose callback did not ask for the error.
    changed
        Signal (): a job began or ended.
    """

    failed = Signal(object)
    changed = Signal()

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._running: dict[Job, tuple[str, Callable[[Any], object] | None, Callable[[], object] | None]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """What is being done, oldest first; silent jobs have no name and are left out."""
        return tuple(name for name, _, _ in self._running.values() if name)

    def run(
        self,
        work: Callable[[], Any],
        then: Callable[[Any], object] | None = None,
        *,
        name: str = "",
        always: Callable[[], object] | None = None,
    ) -> None:
        """Call `work` on a thread, then on this one `always()` and, where it went well, `then(result)`.

        `name` says to the user what is being done.
        """
        job = Job(work, self)
        self._running[job] = (name, then, always)
        job.done.connect(self._on_done)
        job.failed.connect(self._on_failed)
        job.start()
        self.changed.emit()

    def wait(self, seconds: float) -> bool:
        """Block until the running calls have ended; False when they have not in `seconds` each."""
        ended = [job.wait(seconds) for job in tuple(self._running)]
        return all(ended)

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
        job.wait(1.0)  # microseconds: it may still be within `emit`, and Qt must not delete what emits
        job.deleteLater()
        if always is not None:
            always()
        return then
