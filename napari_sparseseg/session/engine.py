"""The one background thread of a session: everything that uses torch runs here, one short piece at a time.

Two torch processes or threads on a small machine slow each other several times over, so there is one owner of the
cores. Work is cooperative: *workers* are asked in order of urgency to do one short piece each (refit the head, predict
a tile, take a training step), and calls from other threads run in between. When no worker has anything to do the
thread sleeps until `wake`.
"""

from __future__ import annotations

import logging
import queue
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from napari_sparseseg.errors import SessionClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Engine:
    """A thread that serves calls first and idle-time workers after.

    Parameters
    ----------
    workers
        Functions without arguments, most urgent first. Each does at most a few tenths of a second of work and says
        whether it did any. After any work the most urgent is asked again.
    on_error
        Receives what a worker raised; it must remove the cause (stop that work), or the same error comes again.
    """

    def __init__(self, workers: Sequence[Callable[[], bool]], on_error: Callable[[Exception], None]) -> None:
        self._workers = tuple(workers)
        self._on_error = on_error
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._held = False
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()

    @property
    def running(self) -> bool:
        """Whether the thread exists; it starts with the first call or wake."""
        return self._thread is not None and self._thread.is_alive()

    def on_engine_thread(self) -> bool:
        """Whether the caller runs on the engine's own thread."""
        return threading.current_thread() is self._thread

    def submit(self, fn: Callable[[], _T]) -> Future[_T]:
        """Run `fn` on the engine thread as soon as the current piece of work is done."""
        future: Future[_T] = Future()
        if self._closing.is_set():
            future.set_exception(SessionClosedError())
            return future
        self._calls.put((future, fn))
        self.wake()
        if self._closing.is_set():  # closed meanwhile: nobody may come to serve it any more
            self._fail_waiting_calls()
        return future

    def call(self, fn: Callable[[], _T]) -> _T:
        """`submit` and wait for the result; runs directly when already on the engine thread."""
        return fn() if self.on_engine_thread() else self.submit(fn).result()

    def wake(self) -> None:
        """Tell the thread that there may be work; starts it the first time. Cheap; from any thread."""
        with self._start_lock:
            if self._closing.is_set():
                return
            if self._thread is None:
                # A daemon, so that a script that forgets close() still ends; close() joins in the ordinary case.
                self._thread = threading.Thread(target=self._run, name="sparseseg-engine", daemon=True)
                self._thread.start()
        self._wake.set()

    def hold(self, held: bool) -> None:
        """Ask no worker for more until called with False; calls are served all the same. Any thread."""
        self._held = held
        if not held:
            self._wake.set()

    def close(self, timeout: float = 10.0) -> bool:
        """End the thread after its current piece of work; waiting calls fail. True when it ended in time."""
        with self._start_lock:
            self._closing.set()
        self._wake.set()
        ended = True
        if self._thread is not None and not self.on_engine_thread():
            self._thread.join(timeout)
            ended = not self._thread.is_alive()
        self._fail_waiting_calls()
        return ended

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.clear()
            if not self._serve_call() and not self._serve_workers():
                self._wake.wait()

    def _serve_call(self) -> bool:
        try:
            future, fn = self._calls.get_nowait()
        except queue.Empty:
            return False
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(fn())
            except Exception as error:  # noqa: BLE001 - handed to the caller, who waits for it
                future.set_exception(error)
        return True

    def _serve_workers(self) -> bool:
        for worker in self._workers:
            if self._closing.is_set():
                return True
            if self._held:
                return False
            try:
                if worker():
                    return True
            except Exception as error:  # noqa: BLE001 - top of the thread: reported, never lost
                _log.exception("background work failed")
                self._report(error)
                return True
        return False

    def _report(self, error: Exception) -> None:
        try:
            self._on_error(error)
        except Exception:  # noqa: BLE001 - a listener of ours failed: the thread must outlive it
            _log.exception("an error could not be reported")

    def _fail_waiting_calls(self) -> None:
        while True:
            try:
                future, _ = self._calls.get_nowait()
            except queue.Empty:
                return
            if future.set_running_or_notify_cancel():
                future.set_exception(SessionClosedError())


_meanwhile: list[Callable[[float], object]] = []


def stay_alive(spin: Callable[[float], object]) -> None:
    """Say what the main thread does while it waits in `wait_alive`: `spin` runs a window's event loop that long."""
    _meanwhile[:] = [spin]


def wait_alive(event: threading.Event, seconds: float) -> bool:
    """Wait for an event like `threading.Event.wait`, with windows that go on living."""
    if not _meanwhile or threading.current_thread() is not threading.main_thread():
        return event.wait(seconds)
    _meanwhile[0](min(seconds, 0.05))
    return event.is_set()
