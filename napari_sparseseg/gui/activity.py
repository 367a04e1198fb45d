"""A whole-slide prediction in napari's activity dock, with its cancel button.

Training is not there: napari's activity indicator moves as long as there is a bar, and each of its frames composes the
whole window anew (a quarter of a core with software OpenGL). It has its bar, Pause and Stop in the panel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari.utils.progress import cancelable_progress
from qtpy.QtCore import QObject

if TYPE_CHECKING:
    from napari_sparseseg.gui.context import Context

STEPS = 1000


class _Bar(cancelable_progress):
    """A bar that is moved from outside; napari's own only looks at its cancel button while it iterates."""

    def cancel(self) -> None:
        super().cancel()
        self.cancel_callback()


class Activity(QObject):
    """Follows ``session.status.progress``."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._context = context
        self._bar: _Bar | None = None
        context.status_changed.connect(self._on_status)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _on_status(self) -> None:
        status, context = self._context.session.status, self._context
        if status.state != "predicting" or status.progress is None:
            self.close()
            return
        if self._bar is None:
            self._bar = _Bar(total=STEPS, desc="Predicting the slide", cancel_callback=context.stop_prediction.set)
        done = round(STEPS * status.progress)
        if done > self._bar.n:
            self._bar.update(done - self._bar.n)
