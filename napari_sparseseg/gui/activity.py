"""Long work in napari's activity dock, each with its cancel button."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari.utils.progress import cancelable_progress
from qtpy.QtCore import QObject

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari_sparseseg.gui.context import Context

STEPS = 1000


class _Bar(cancelable_progress):
    """A bar that is moved from outside; napari's own only looks at its cancel button while it iterates."""

    def cancel(self) -> None:
        super().cancel()
        self.cancel_callback()


class Activity(QObject):
    """Follows the session: a whole-slide prediction, and training, whose bar stands still where it has no end."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._context = context
        self._bars: dict[str, _Bar] = {}
        context.status_changed.connect(self._on_status)

    def close(self) -> None:
        """Take the bars away."""
        for name in tuple(self._bars):
            self._remove(name)

    def _on_status(self) -> None:
        status, context = self._context.session.status, self._context
        predicting = status.state == "predicting" and status.progress is not None
        self._show("Predicting the slide", predicting, status.progress or 0.0, context.stop_prediction.set)
        share = min(1.0, status.seconds / status.budget_seconds) if status.budget_seconds else 0.0
        running = status.state in ("training", "paused")
        self._show("Training", running, share, lambda: context.session.stop(wait=False))

    def _show(self, name: str, present: bool, share: float, cancel: Callable[[], None]) -> None:
        if not present:
            self._remove(name)
            return
        if name not in self._bars:
            self._bars[name] = _Bar(total=STEPS, desc=name, cancel_callback=cancel)
        bar, done = self._bars[name], round(STEPS * share)
        if done > bar.n:
            bar.update(done - bar.n)

    def _remove(self, name: str) -> None:
        if name in self._bars:
            self._bars.pop(name).close()
