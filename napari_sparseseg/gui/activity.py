"""A whole-slide prediction in napari's activity dock, with its cancel button."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari.utils import progress
from qtpy.QtCore import QObject

if TYPE_CHECKING:
    from napari_sparseseg.gui.context import Context

STEPS = 1000


class Activity(QObject):
    """Follows ``session.status.progress``."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._context = context
        self._bar: Any = None
        context.status_changed.connect(self._on_status)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _on_status(self) -> None:
        status = self._context.session.status
        if status.state != "predicting" or status.progress is None:
            self.close()
            return
        if self._bar is None:
            self._bar = progress(total=STEPS, desc="Predicting the slide")
        done = round(STEPS * status.progress)
        if done > self._bar.n:
            self._bar.update(done - self._bar.n)
