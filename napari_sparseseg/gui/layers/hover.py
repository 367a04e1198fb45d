"""Shows under the pointer what a press of the current tool would take, and lets Shift and the wheel change it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, QTimer, Signal

from napari_sparseseg.errors import SparseSegError

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari_sparseseg.gui.layers.scribbles import ScribbleLayer

REST_MS = 30
"""The pointer must rest that long before a preview is computed."""
STEP = 1.15
"""Factor of one notch of the wheel."""
_log = logging.getLogger(__name__)


class Hover(QObject):
    """The preview of one layer's tool.

    One job at a time, on a thread. What it found is only shown where the tool says that it belongs to what is under the
    pointer by then, at the present zoom and amount; else the next job begins.

    Parameters
    ----------
    layer
        That is drawn on.
    run
        As in `Bench`.

    Attributes
    ----------
    amount_changed
        Signal (float): the wheel changed the tool's amount.
    """

    amount_changed = Signal(float)

    def __init__(
        self,
        parent: QObject,
        layer: ScribbleLayer,
        run: Callable[[Callable[[], Any], Callable[[Any], object]], object],
    ) -> None:
        super().__init__(parent)
        self._layer, self._run = layer, run
        self._point: tuple[float, float] | None = None
        self._busy = False
        self._rest = QTimer(self)
        self._rest.setSingleShot(True)
        self._rest.setInterval(REST_MS)
        self._rest.timeout.connect(self._seek)
        layer.mouse_move_callbacks.append(self._on_move)
        layer.mouse_wheel_callbacks.append(self._on_wheel)
        layer.events.mode.connect(self.forget)

    def close(self) -> None:
        """Disconnect from the layer."""
        self._rest.stop()
        self._layer.mouse_move_callbacks.remove(self._on_move)
        self._layer.mouse_wheel_callbacks.remove(self._on_wheel)
        self._layer.events.mode.disconnect(self.forget)
        self.forget()

    def forget(self, event: Any = None) -> None:
        """Show nothing until the pointer moves."""
        self._point = None
        self._layer.preview.outlined = None

    def _on_move(self, layer: Any, event: Any) -> None:
        if layer.tool is not None:
            self._point = self._under(event)
            self._show()

    def _on_wheel(self, layer: Any, event: Any) -> None:
        tool = layer.tool
        if tool is None or "Shift" not in event.modifiers or not self._drawing:
            return
        turn = event.delta[1] or event.delta[0]  # some systems turn it sideways while Shift is held
        if not turn or tool.amounts[0] == tool.amounts[1]:
            return
        least, most = tool.amounts
        tool.amount = min(max(tool.amount * (STEP if turn > 0 else 1 / STEP), least), most)
        self._point = self._under(event)
        self.amount_changed.emit(tool.amount)
        self._show(at_once=True)

    def _under(self, event: Any) -> tuple[float, float]:
        y, x = self._layer.world_to_data(event.position)[-2:]
        return float(y), float(x)

    @property
    def _drawing(self) -> bool:
        return str(self._layer.mode) in ("paint", "erase")

    @property
    def _asked(self) -> tuple[tuple[float, float], int, float] | None:
        layer = self._layer
        label = 0 if str(layer.mode) == "erase" else int(layer.selected_label)
        if layer.tool is None or self._point is None or not self._drawing or (layer.tool.along and not label):
            return None
        (point,), radius = layer.pen([self._point])
        return (float(point[0]), float(point[1])), label, radius

    def _show(self, *, at_once: bool = False) -> None:
        """Show what is known of the place under the pointer, and find it out if it is not."""
        asked, tool = self._asked, self._layer.tool
        found = None if asked is None or tool is None else tool.under(*asked)
        if found is not self._layer.preview.outlined:
            self._layer.preview.outlined = found
        if asked is not None and found is None and not self._busy:
            if at_once:
                self._seek()
            else:
                self._rest.start()

    def _seek(self) -> None:
        asked, tool = self._asked, self._layer.tool
        if asked is None or tool is None or self._busy:
            return
        work, amount = tool.seek(*asked), tool.amount
        self._busy = True

        def look() -> None:
            try:
                work()
            except SparseSegError as error:  # the press will say it
                _log.info("no preview: %s", error)

        def then(_: None) -> None:
            self._busy = False
            if self._layer.tool is not tool:
                return
            if self._asked == asked and tool.amount == amount:
                self._layer.preview.outlined = tool.under(*asked)
            else:
                self._show(at_once=tool.amount != amount)

        self._run(look, then)
