"""Dense regions, shown apart from the scribbles and drawn with napari's rectangle and polygon tools.

A region that the user draws here becomes `Annotations.fill_polygon(..., dense=True)`; the layer itself always shows
what the annotations hold, so undo, import and other windows need no care.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Shapes
from napari.utils.notifications import show_info, show_warning
from qtpy.QtCore import QTimer

from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.gui.scribble_display import PIXEL_CENTRE, UNKNOWN_COLOUR

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari_sparseseg.annotations import Annotations

EDGE_SCREEN_PX = 3.0
FILL_ALPHA = 0.15
EDGE_RATIO = 2.0
"""Redraw the outlines when the zoom has changed by more than this: each redraw rebuilds every shape."""


class DenseRegionLayer(Shapes):
    """Outlines of the dense regions with a light fill of their rest class.

    Parameters
    ----------
    annotations
        Where regions come from and go to.
    rest_class
        Called for the class id that the unlabelled pixels of a newly drawn region take.
    name
        Of the layer.
    """

    def __init__(
        self, annotations: Annotations, *, rest_class: Callable[[], int], name: str = "scribbles (dense)"
    ) -> None:
        self._annotations, self._rest_class = annotations, rest_class
        self._zoom, self._drawn_zoom = 1.0, 1.0
        self._shown: tuple[Any, ...] | None = None  # what the shapes were made from
        self._showing = False
        super().__init__(ndim=2, name=name, opacity=1.0, edge_width=EDGE_SCREEN_PX)
        self.bind_key("Control-Z", lambda layer: layer.undo(), overwrite=True)
        self.bind_key("Control-Shift-Z", lambda layer: layer.redo(), overwrite=True)
        self.events.data.connect(self._on_data)
        annotations.changed.connect(self.show_regions, thread="main")
        annotations.classes_changed.connect(self.show_regions, thread="main")
        self.show_regions()

    @property
    def _type_string(self) -> str:
        return "shapes"

    @property
    def annotations(self) -> Annotations:
        """Where regions come from and go to."""
        return self._annotations

    @property
    def zoom(self) -> float:
        """Screen pixels per level-0 pixel; keeps the outlines about as wide on the screen at every zoom."""
        return self._zoom

    @zoom.setter
    def zoom(self, zoom: float) -> None:
        self._zoom = zoom
        if not 1 / EDGE_RATIO <= zoom / self._drawn_zoom <= EDGE_RATIO:
            self._drawn_zoom = zoom
            width = EDGE_SCREEN_PX / zoom
            self.current_edge_width = width
            if self.nshapes:
                self.edge_width = width

    def detach(self) -> None:
        """Stop following the annotations."""
        self._annotations.changed.disconnect(self.show_regions, missing_ok=True)
        self._annotations.classes_changed.disconnect(self.show_regions, missing_ok=True)

    def undo(self) -> None:
        """Take back the last stroke or region."""
        self._annotations.undo()

    def redo(self) -> None:
        """Draw again what was taken back last."""
        self._annotations.redo()

    def show_regions(self) -> None:
        """Show what the annotations hold now."""
        state = (self._annotations.dense_regions, self._annotations.classes)
        if state != self._shown:
            self._shown = state
            self._rebuild()

    def _rebuild(self) -> None:
        regions, classes = self._annotations.dense_regions, self._annotations.classes
        colours = {c.id: c.colour for c in classes}
        edges = [colours.get(region.class_id, UNKNOWN_COLOUR) for region in regions]
        self._showing = True
        try:
            self.selected_data: set[int] = set()
            self.data: list[Any] = []
            if regions:
                self.add(
                    [np.asarray(region.points, dtype=float) - PIXEL_CENTRE for region in regions],
                    shape_type="polygon",
                    edge_width=EDGE_SCREEN_PX / self._drawn_zoom,
                    edge_color=edges,
                    face_color=[f"{edge}{round(255 * FILL_ALPHA):02x}" for edge in edges],
                )
        finally:
            self._showing = False

    def _on_data(self, event: Any) -> None:
        # napari is still in the middle of its own bookkeeping here
        done = str(getattr(event, "action", "")).lower().endswith(("added", "changed", "removed"))
        if done and not self._showing:
            QTimer.singleShot(0, self._take_over)

    def _take_over(self) -> None:
        """Turn what the user drew into regions, and undo what cannot be kept."""
        if self._showing:
            return
        known = len(self._annotations.dense_regions)
        drawn = list(zip(self.data, self.shape_type, strict=True))[known:]
        if not drawn:
            self._rebuild()
            return
        for points, kind in drawn:
            if kind not in ("rectangle", "polygon"):
                show_info("A dense region is drawn as a rectangle or a polygon.")
                continue
            try:
                self._annotations.fill_polygon(points[:, -2:] + PIXEL_CENTRE, self._rest_class(), dense=True)
            except AnnotationError as error:
                show_warning(str(error))
        self._rebuild()
