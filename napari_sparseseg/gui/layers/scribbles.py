"""Scribbles in a viewer: the layer to draw on, the dense regions apart, and what ties both to the camera.

One `Scribbles` per slide and viewer. Where napari has changed so much that the editable pyramid would not work, the
same annotations are drawn through `CanvasLayer`, which uses napari's public parts only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psygnal.qt
from napari.utils.notifications import show_info, show_warning
from qtpy.QtCore import QTimer

from napari_sparseseg.gui.layers import napari_compat as seams
from napari_sparseseg.gui.layers.dense_regions import DenseRegionLayer
from napari_sparseseg.gui.layers.scribble_canvas import CanvasLayer
from napari_sparseseg.gui.layers.scribble_layer import ScribbleLayer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import napari

    from napari_sparseseg.annotations import Annotations

__all__ = ["CanvasLayer", "DenseRegionLayer", "ScribbleLayer", "Scribbles", "camera_of"]
SIGNAL_INTERVAL_MS = 30


def camera_of(viewer: napari.Viewer) -> Any:
    """The viewer's camera; napari moved it in 0.9."""
    return viewer.scene.camera if hasattr(viewer, "scene") else viewer.camera


def without_cursor_box(viewer: napari.Viewer) -> None:
    """Take the background box of the brush circle away.

    napari 0.9 draws it behind the circle and forgets it on the canvas when the brush is put away; drawing it there
    alone (no other layer left) ends in a segmentation fault in Mesa's software renderer.
    """
    overlays = getattr(getattr(viewer, "canvas", None), "overlays", {})
    if "_brush_circle" in overlays:
        overlays["_brush_circle"].box = False


class Scribbles:
    """Annotations shown and edited in a viewer.

    Parameters
    ----------
    viewer
        Gets two layers on top: dense regions, and the scribbles, which become the active layer.
    annotations
        Of the slide shown at scale 1, so that world coordinates are its level-0 pixels.
    name
        Of the scribble layer; the dense regions add " (dense)".
    problems
        What is wrong with napari's private parts; found out by `seams.check` when None. With any, the canvas is used.
    """

    def __init__(
        self,
        viewer: napari.Viewer,
        annotations: Annotations,
        *,
        name: str = "scribbles",
        problems: Sequence[str] | None = None,
    ) -> None:
        self.viewer, self.annotations, self.closed = viewer, annotations, False
        self.problems = tuple(seams.check() if problems is None else problems)
        psygnal.qt.start_emitting_from_queue(SIGNAL_INTERVAL_MS)
        self.layer: ScribbleLayer | CanvasLayer
        if self.problems:
            show_warning(
                "This napari is new to napari-sparseseg: scribbles are drawn on the visible part only and follow the "
                f"view after it rests. ({'; '.join(self.problems)})"
            )
            self.layer = CanvasLayer(annotations, name=name)
        else:
            self.layer = ScribbleLayer(annotations, name=name)
        layer = self.layer
        self.dense_layer = DenseRegionLayer(
            annotations, name=f"{name} (dense)", rest_class=lambda: int(layer.selected_label)
        )
        viewer.add_layer(self.dense_layer)
        viewer.add_layer(self.layer)
        viewer.layers.selection.active = self.layer
        without_cursor_box(viewer)
        self._camera = camera_of(viewer)
        self._view = tuple(self._camera.center), self._camera.zoom
        self._camera.events.zoom.connect(self._on_camera)
        self._camera.events.center.connect(self._on_camera)
        viewer.dims.events.ndisplay.connect(self._on_dims)
        viewer.dims.events.order.connect(self._on_dims)
        viewer.layers.events.removed.connect(self._on_removed)
        self._on_camera()
        self._on_dims()

    def _on_camera(self, event: Any = None) -> None:
        if self.viewer.dims.ndisplay != 2:
            return
        self._view = tuple(self._camera.center), self._camera.zoom
        self.layer.zoom = self._camera.zoom
        self.dense_layer.zoom = self._camera.zoom
        if isinstance(self.layer, CanvasLayer):
            self.layer.look(tuple(self._camera.center)[-2:])

    def _on_dims(self, event: Any = None) -> None:
        """Slides are flat: back to two dimensions, rows down and columns to the right."""
        dims = self.viewer.dims
        if dims.ndisplay != 2:
            show_info("Scribbles are drawn on the flat slide: the 3-D view was switched off again.")
            view = self._view
            dims.ndisplay = 2
            QTimer.singleShot(0, lambda: self._look(view))  # napari resets the camera once this event is through
        if tuple(dims.order[-2:]) != (dims.ndim - 2, dims.ndim - 1):
            show_info("Scribbles cannot be drawn on transposed axes: the order was set back.")
            dims.order = tuple(range(dims.ndim))

    def _look(self, view: tuple[tuple[float, ...], float]) -> None:
        self._camera.center, self._camera.zoom = view

    def _on_removed(self, event: Any) -> None:
        if event.value is self.layer or event.value is self.dense_layer:
            self.close()

    def close(self, *, take_out: bool = True) -> None:
        """Let go of everything; with `take_out` both layers leave the viewer. Again is harmless."""
        if self.closed:
            return
        self.closed = True
        self._camera.events.zoom.disconnect(self._on_camera)
        self._camera.events.center.disconnect(self._on_camera)
        self.viewer.dims.events.ndisplay.disconnect(self._on_dims)
        self.viewer.dims.events.order.disconnect(self._on_dims)
        self.viewer.layers.events.removed.disconnect(self._on_removed)
        # napari's brush circle, drawn once more after its layer went, ends in a segmentation fault on software GL
        self.layer.mode = "pan_zoom"
        for layer in (self.layer, self.dense_layer):
            layer.detach()
            if take_out and layer in self.viewer.layers:
                self.viewer.layers.remove(layer)
