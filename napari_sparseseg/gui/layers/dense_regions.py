"""Dense regions, shown apart from the scribbles and drawn with napari's rectangle and polygon tools.

A region that the user draws here becomes `Annotations.fill_polygon(..., dense=True)`; one that is selected and deleted,
moved or reshaped with napari's own tools is removed or changed there. The layer itself always shows what the
annotations hold, so undo, import and other windows need no care.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Shapes
from napari.utils.notifications import show_info, show_warning
from qtpy.QtCore import QTimer

from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.gui.layers.lazy_labels import PIXEL_CENTRE, UNKNOWN_COLOUR

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from napari_sparseseg.annotations import Annotations, DenseRegion

EDGE_SCREEN_PX = 3.0
FILL_ALPHA = 0.15
MOST_FILLED = 100
"""An outline with more corners is drawn as a line without a fill: napari's triangulation took 33 ms of CPU time for 100
corners, 0.16 s for 400 and 5 s for 4,000; lines of 4,000 take 11 ms."""
MOST_CORNERS = 4000
"""Of a line with more, every so manieth is drawn; what is kept is not changed by that."""
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
        self._ids: list[int | None] = []  # of the region behind each shape; None: just drawn
        self._moved: set[int] = set()
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
        if self._showing:
            return
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
            self._ids, self._moved = [region.id for region in regions], set()
            if regions:
                self.add(
                    [_outline(region) - PIXEL_CENTRE for region in regions],
                    shape_type=["path" if _is_line(region) else "polygon" for region in regions],
                    edge_width=EDGE_SCREEN_PX / self._drawn_zoom,
                    edge_color=edges,
                    face_color=[f"{edge}{round(255 * FILL_ALPHA):02x}" for edge in edges],
                )
        finally:
            self._showing = False

    def _on_data(self, event: Any) -> None:
        action = str(getattr(event, "action", "")).lower()
        if self._showing or not action.endswith(("added", "changed", "removed")):
            return
        indices = [int(k) % max(1, len(self._ids)) for k in getattr(event, "data_indices", ())]
        if action.endswith("removed"):
            self._ids = [number for k, number in enumerate(self._ids) if k not in indices]
        elif action.endswith("changed"):
            self._moved.update(number for k in indices if k < len(self._ids) and (number := self._ids[k]) is not None)
        # napari is still in the middle of its own bookkeeping here
        QTimer.singleShot(0, self._take_over)

    def _take_over(self) -> None:
        """Turn what the user drew, moved or deleted into changes of the annotations, and undo what cannot be kept."""
        if self._showing:
            return
        shapes = list(zip(self.data, self.shape_type, strict=True))
        kept, drawn, moved = list(self._ids[: len(shapes)]), shapes[len(self._ids) :], set(self._moved)
        regions = {region.id: region for region in self._annotations.dense_regions}
        self._showing = True  # shown once, when all is done
        try:
            gone = [number for number in regions if number not in kept]
            if gone:
                self._annotations.remove_dense_region(*gone)
            for number, (points, _) in zip(kept, shapes, strict=False):
                if number in moved and number in regions:
                    self._reshape(regions[number], points[:, -2:] + PIXEL_CENTRE)
            for points, kind in drawn:
                self._declare(points[:, -2:] + PIXEL_CENTRE, kind)
        except AnnotationError as error:
            show_warning(str(error))
        finally:
            self._showing = False
            self._shown = None
            self.show_regions()

    def _reshape(self, region: DenseRegion, points: NDArray[Any]) -> None:
        if region.rings or _is_line(region):
            show_info("A dense region with holes or many corners keeps its shape; delete it and draw it anew.")
        else:
            self._annotations.reshape_dense_region(region.id, points)

    def _declare(self, points: NDArray[Any], kind: str) -> None:
        if kind in ("rectangle", "polygon"):
            self._annotations.fill_polygon(points, self._rest_class(), dense=True)
        else:
            show_info("A dense region is drawn as a rectangle or a polygon.")


def _is_line(region: DenseRegion) -> bool:
    return _corners(region) > MOST_FILLED


def _corners(region: DenseRegion) -> int:
    """Of the outer ring."""
    return region.rings[0] if region.rings else len(region.points)


def _outline(region: DenseRegion) -> NDArray[Any]:
    """The outer ring to draw."""
    ring = region.points[: _corners(region)].astype(float)
    if not _is_line(region):
        return ring
    drawn = ring[:: -(-len(ring) // MOST_CORNERS)]
    return np.concatenate([drawn, drawn[:1]])
