"""Dense regions, in a layer of their own, drawn with napari's rectangle and polygon tools.

A region drawn here becomes `Annotations.fill_polygon(..., dense=True)`; one that is deleted, moved or reshaped with
napari's own tools is removed or changed there. The layer always shows the regions of the annotations, so undo and
import need no special handling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Shapes
from qtpy.QtCore import QTimer

from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.gui.layers.lazy_labels import PIXEL_CENTRE, UNKNOWN_COLOUR
from napari_sparseseg.gui.say import say

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from napari_sparseseg.annotations import Annotations, DenseRegion

EDGE_SCREEN_PX = 3.0
FILL_ALPHA = 0.15
MOST_FILLED = 100
"""An outline with more corners is drawn as a line without a fill, see D71."""
MOST_CORNERS = 4000
"""A line with more corners is thinned when drawn; the region itself does not change."""
EDGE_RATIO = 2.0
"""Outlines are redrawn when the zoom changed by more than this factor; each redraw rebuilds every shape."""


class DenseRegionLayer(Shapes):
    """Outlines of the dense regions, lightly filled with the colour of their rest class.

    Parameters
    ----------
    annotations
        Their dense regions are shown and edited.
    rest_class
        Called for the rest class of a newly drawn region: the class of its unlabelled pixels.
    name
        As in napari.
    """

    def __init__(
        self, annotations: Annotations, *, rest_class: Callable[[], int], name: str = "scribbles (dense)"
    ) -> None:
        self._annotations, self._rest_class = annotations, rest_class
        self._zoom, self._drawn_zoom = 1.0, 1.0
        self._shown: tuple[Any, ...] | None = None  # what the shapes were made from
        self._showing = False
        self._ids: list[int | None] = []  # of the region of each shape; None: just drawn
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
        """The annotations shown and edited."""
        return self._annotations

    @property
    def zoom(self) -> float:
        """Screen pixels per level-0 pixel; sets the width of the outlines."""
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
        """Disconnect from the annotations."""
        self._annotations.changed.disconnect(self.show_regions, missing_ok=True)
        self._annotations.classes_changed.disconnect(self.show_regions, missing_ok=True)

    def undo(self) -> None:
        """Undo the last stroke or region."""
        self._annotations.undo()

    def redo(self) -> None:
        """Redo what was undone last."""
        self._annotations.redo()

    def show_regions(self) -> None:
        """Show the current regions of the annotations."""
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
        # napari has not finished its own update yet
        QTimer.singleShot(0, self._apply_shapes)

    def _apply_shapes(self) -> None:
        """Apply shapes that were drawn, moved or deleted to the annotations; others are restored."""
        if self._showing:
            return
        shapes = list(zip(self.data, self.shape_type, strict=True))
        known, drawn, moved = list(self._ids[: len(shapes)]), shapes[len(self._ids) :], set(self._moved)
        regions = {region.id: region for region in self._annotations.dense_regions}
        self._showing = True  # shown once, at the end
        try:
            gone = [number for number in regions if number not in known]
            if gone:
                self._annotations.remove_dense_region(*gone)
            for number, (points, _) in zip(known, shapes, strict=False):
                if number in moved and number in regions:
                    self._reshape(regions[number], points[:, -2:] + PIXEL_CENTRE)
            for points, kind in drawn:
                self._declare(points[:, -2:] + PIXEL_CENTRE, kind)
        except AnnotationError as error:
            say(str(error))
        finally:
            self._showing = False
            self._shown = None
            self.show_regions()

    def _reshape(self, region: DenseRegion, points: NDArray[Any]) -> None:
        if region.rings or _is_line(region):
            say("A dense region with holes or many corners cannot be reshaped; delete it and draw it again.")
        else:
            self._annotations.reshape_dense_region(region.id, points)

    def _declare(self, points: NDArray[Any], kind: str) -> None:
        if kind in ("rectangle", "polygon"):
            self._annotations.fill_polygon(points, self._rest_class(), dense=True)
        else:
            say("Draw a dense region as a rectangle or a polygon.")


def _is_line(region: DenseRegion) -> bool:
    return _corners(region) > MOST_FILLED


def _corners(region: DenseRegion) -> int:
    """Number of corners of the outer ring."""
    return region.rings[0] if region.rings else len(region.points)


def _outline(region: DenseRegion) -> NDArray[Any]:
    """The outer ring as drawn."""
    ring = region.points[: _corners(region)].astype(float)
    if not _is_line(region):
        return ring
    drawn = ring[:: -(-len(ring) // MOST_CORNERS)]
    return np.concatenate([drawn, drawn[:1]])
