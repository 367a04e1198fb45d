"""Drawing through the window: a plain Labels layer as large as the view, for where the pyramid layer cannot work.

Only public parts of napari are used. The canvas holds what the view shows at the level nearest to the screen; each
stroke is compared with what was there before and written to the annotations at that level. Its price: strokes outside
the view appear when the view has come to rest, and pixels are as coarse as the screen's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels
from napari.utils.notifications import show_warning
from qtpy.QtCore import QTimer

from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.gui.layers.lazy_labels import class_colormap

if TYPE_CHECKING:
    from napari_sparseseg.annotations import Annotations
    from napari_sparseseg.geometry import Box

CANVAS_PX = 2048
"""Side of the canvas in its own pixels: a large screen with some margin to pan in."""
SETTLE_MS = 60


class CanvasLayer(Labels):
    """Scribbles of the part of a slide that is looked at.

    Parameters
    ----------
    annotations
        Shown and edited.
    name, opacity
        As in napari.
    """

    def __init__(self, annotations: Annotations, *, name: str = "scribbles", opacity: float = 0.7) -> None:
        self._annotations = annotations
        self.locked_classes: frozenset[int] = frozenset()
        """Ids of classes that no tool draws over or erases."""
        self._view_zoom, self._centre, self._level = 1.0, (0.0, 0.0), 0
        self._origin = (0, 0)
        self._before = np.zeros((CANVAS_PX, CANVAS_PX), dtype=np.uint8)
        super().__init__(self._before.copy(), name=name, opacity=opacity, colormap=class_colormap(annotations.classes))
        self._settle = QTimer()
        self._settle.setSingleShot(True)
        self._settle.setInterval(SETTLE_MS)
        self._settle.timeout.connect(self.show_annotations)
        self.events.paint.connect(self._on_paint)
        annotations.changed.connect(self._on_changed, thread="main")
        annotations.classes_changed.connect(self._on_classes_changed, thread="main")
        self.show_annotations()

    @property
    def _type_string(self) -> str:
        return "labels"

    @property
    def annotations(self) -> Annotations:
        """What is drawn on."""
        return self._annotations

    @property
    def zoom(self) -> float:
        """Screen pixels per level-0 pixel."""
        return self._view_zoom

    @zoom.setter
    def zoom(self, zoom: float) -> None:
        self._view_zoom = zoom

    def look(self, centre_yx: tuple[float, float]) -> None:
        """The view is centred there now; the canvas follows when it has rested."""
        self._centre = centre_yx
        self._settle.start()

    def show_annotations(self) -> None:
        """Put the canvas where the view is and fill it with what the annotations hold."""
        levels = self._annotations.quadtree.levels()
        self._level = int(np.clip(np.floor(np.log2(max(1.0, 1 / self._view_zoom))), 0, len(levels) - 1))
        factor, shape = 1 << self._level, levels[self._level].shape
        corner = [int(c / factor) - CANVAS_PX // 2 for c in self._centre]
        y, x = (int(np.clip(c, 0, max(0, n - CANVAS_PX))) for c, n in zip(corner, shape, strict=True))
        self._origin = (y, x)
        self._before = np.array(levels[self._level][y : y + CANVAS_PX, x : x + CANVAS_PX])
        self.data = self._before.copy()
        self.scale = (factor, factor)
        # napari puts the middle of the first pixel at the translation
        self.translate = tuple((c + 0.5) * factor - 0.5 for c in self._origin)

    def _on_changed(self, version: int, box: Box) -> None:
        self.show_annotations()

    def _on_classes_changed(self) -> None:
        self.colormap = class_colormap(self._annotations.classes)

    def _on_paint(self, event: Any = None) -> None:
        """Write what one stroke has changed; a stroke has one label, but a mixed edit is split."""
        now = np.asarray(self.data)
        changed = now != self._before
        try:
            for label in np.unique(now[changed]):
                mask = changed & (now == label)
                rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
                y, x = int(rows[0]), int(columns[0])
                keep = frozenset(range(256)) - self.locked_classes if self.locked_classes else None
                self._annotations.begin_stroke(int(label), kind="fill", keep=keep)
                self._annotations.paint_mask(
                    self._level,
                    self._origin[0] + y,
                    self._origin[1] + x,
                    mask[y : rows[-1] + 1, x : columns[-1] + 1],
                )
                self._annotations.commit_stroke()
        except AnnotationError as error:
            show_warning(str(error))
            self.show_annotations()

    def undo(self) -> None:
        """Take back the last stroke."""
        self._annotations.undo()

    def redo(self) -> None:
        """Draw again what was taken back last."""
        self._annotations.redo()

    def detach(self) -> None:
        """Stop following the annotations and the view."""
        self._settle.stop()
        self._annotations.changed.disconnect(self._on_changed, missing_ok=True)
        self._annotations.classes_changed.disconnect(self._on_classes_changed, missing_ok=True)
