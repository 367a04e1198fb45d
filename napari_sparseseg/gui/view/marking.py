"""Going to a region of the slide and framing it for some seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, Qt
from qtpy.QtWidgets import QFrame

from napari_sparseseg.gui.context import single_shot
from napari_sparseseg.gui.host import canvas_beside
from napari_sparseseg.gui.layers.lazy_labels import PIXEL_CENTRE

if TYPE_CHECKING:
    from qtpy.QtWidgets import QWidget

    from napari_sparseseg.geometry import Box
    from napari_sparseseg.gui.context import Context

MARGIN = 2.0
"""The view is this many times as wide as the region."""
LEAST_SIDE = 200
"""Level-0 pixels: a mistake may be only a few pixels wide."""
MARK_MS = 4000
FRAME = "SparseSegFrame"


class RegionMarker(QObject):
    """Moves the camera to a region and frames it for some seconds, or until the view moves.

    Parameters
    ----------
    context
        With the viewer.
    beside
        A widget docked in the window whose canvas is meant.
    """

    def __init__(self, context: Context, beside: QWidget) -> None:
        super().__init__(context)
        self._viewer, self._beside = context.viewer, beside
        self._frame: QFrame | None = None
        self._unmark_later = single_shot(self, MARK_MS, self._unmark)
        self._viewer.scene.camera.events.zoom.connect(self._unmark)
        self._viewer.scene.camera.events.center.connect(self._unmark)

    def go_to(self, box: Box, centre: tuple[float, float] | None = None) -> None:
        """Show a level-0 box, in the middle of the view or with `centre` (y, x) there, and frame it."""
        camera = self._viewer.scene.camera
        side = max(box.height, box.width, LEAST_SIDE) * MARGIN
        camera.zoom = min(self._viewer.canvas.size) / side
        camera.center = (0.0, *(centre or (box.y + box.height / 2, box.x + box.width / 2)))
        self._mark(box)

    def close(self) -> None:
        """Disconnect from the viewer."""
        self._unmark_later.stop()
        self._unmark()
        camera = self._viewer.scene.camera
        camera.events.zoom.disconnect(self._unmark)
        camera.events.center.disconnect(self._unmark)

    def _mark(self, box: Box) -> None:
        canvas, camera = canvas_beside(self._beside), self._viewer.scene.camera
        if canvas is None:
            return
        if self._frame is None:
            self._frame = QFrame(canvas)
            self._frame.setObjectName(FRAME)
            self._frame.setStyleSheet(f"#{FRAME} {{ border: 2px solid #ffd400; background: transparent; }}")
            self._frame.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        zoom, centre = camera.zoom, camera.center
        left = canvas.width() / 2 + (box.x - PIXEL_CENTRE - centre[-1]) * zoom
        top = canvas.height() / 2 + (box.y - PIXEL_CENTRE - centre[-2]) * zoom
        self._frame.setGeometry(round(left), round(top), round(box.width * zoom), round(box.height * zoom))
        self._frame.show()
        self._unmark_later.start()

    def _unmark(self, event: Any = None) -> None:
        if self._frame is not None:
            self._frame.hide()
