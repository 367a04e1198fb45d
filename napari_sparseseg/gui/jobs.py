"""Work off the GUI thread: a plain thread, and the answer back on the GUI thread.

napari's and superqt's generator workers lose a RuntimeError, which is what torch and Qt raise; here no error is lost.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, Signal

if TYPE_CHECKING:
    from collections.abc import Callable

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
