"""The layers of one open slide: its image, the scribbles on it, the dense regions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import psygnal.qt
from napari.layers import Layer
from napari.utils.notifications import show_info
from qtpy.QtCore import QTimer

from napari_sparseseg.gui.layers.dense_regions import DenseRegionLayer
from napari_sparseseg.gui.layers.napari_compat import hide_cursor_box, require_editing, show_whole
from napari_sparseseg.gui.layers.prediction import class_colours
from napari_sparseseg.gui.layers.scribbles import ScribbleLayer

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    import napari

    from napari_sparseseg.annotations import Annotations
    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.session.slides import SlideEntry
    from napari_sparseseg.slides import Slide


SIGNAL_INTERVAL_MS = 30


def slide_name(slide: Slide) -> str:
    """How a slide is called in lists and layers: its file name."""
    return Path(slide.path).name or str(slide.path)


def add_images(viewer: napari.Viewer, slide: Slide) -> list[Layer]:
    """Show a slide at the bottom of the viewer, as our reader does."""
    from napari_sparseseg.gui.reader import layer_data

    layers = [Layer.create(*data) for data in layer_data(slide)]
    for i, layer in enumerate(layers):
        viewer.layers.insert(i, layer)
    return layers


class SlideBinding:
    """Keeps the layers of a slide together.

    Parameters
    ----------
    viewer
        Where they are.
    entry
        The slide in the session.
    images
        Image layers that show it already; None adds them.
    """

    def __init__(self, viewer: napari.Viewer, entry: SlideEntry, images: Sequence[Layer] | None = None) -> None:
        self.viewer, self.entry = viewer, entry
        self._shown, self._seen = False, self._camera if images else None
        self.images = list(images) if images else add_images(viewer, entry.slide)
        self.scribbles = self._draw_on(entry.annotations)
        self._hidden: frozenset[int] = frozenset()

    @property
    def layers(self) -> list[Any]:
        """All layers, bottom first."""
        return [*self.images, self.scribbles.dense_layer, self.scribbles.layer]

    @property
    def below_scribbles(self) -> int:
        """Index at which a layer lands under the scribbles and over the image."""
        drawn = {self.scribbles.dense_layer, self.scribbles.layer}
        return min((i for i, layer in enumerate(self.viewer.layers) if layer in drawn), default=len(self.viewer.layers))

    def _draw_on(self, annotations: Annotations) -> Scribbles:
        return Scribbles(self.viewer, annotations, name=f"scribbles on {slide_name(self.entry.slide)}")

    def follow_annotations(self) -> bool:
        """Show other annotations where the slide has got some, or the same again where the layer was deleted."""
        if self.scribbles.annotations is self.entry.annotations and not self.scribbles.closed:
            return False
        self.scribbles.close()
        self.scribbles = self._draw_on(self.entry.annotations)
        return True

    @property
    def _camera(self) -> tuple[Any, float]:
        camera = self.viewer.scene.camera
        return camera.center, camera.zoom

    def set_visible(self, visible: bool) -> None:
        """Show or hide all layers of the slide; shown again it is seen as it was left, the first time as a whole."""
        if self._shown and not visible:
            self._seen = self._camera
        for layer in self.layers:
            layer.visible = visible
        if visible and self._seen is not None:
            camera = self.viewer.scene.camera
            camera.center, camera.zoom = self._seen
        elif visible:
            show_whole(self.viewer, self.entry.slide.shape)
        self._shown = visible
        if visible and self.scribbles.layer in self.viewer.layers:
            self.viewer.layers.selection.active = self.scribbles.layer

    def show_classes(self, classes: Iterable[ClassDef], hidden: Collection[int]) -> None:
        """Draw the scribbles of the classes in `hidden` transparent."""
        if self._hidden or hidden:
            self.scribbles.layer.colormap = class_colours(list(classes), hidden)
        self._hidden = frozenset(hidden)

    def close(self, *, take_out: bool = True) -> None:
        """Let go of the annotations; with `take_out` scribbles and images leave the viewer."""
        self.scribbles.close(take_out=take_out)
        for layer in self.images:
            if take_out and layer in self.viewer.layers:
                self.viewer.layers.remove(layer)


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

    Raises
    ------
    SparseSegError
        Where this napari lacks what drawing on a pyramid needs.
    """

    def __init__(
        self,
        viewer: napari.Viewer,
        annotations: Annotations,
        *,
        name: str = "scribbles",
    ) -> None:
        self.viewer, self.annotations, self.closed = viewer, annotations, False
        require_editing()
        psygnal.qt.start_emitting_from_queue(SIGNAL_INTERVAL_MS)
        self.layer = layer = ScribbleLayer(annotations, name=name)
        self.dense_layer = DenseRegionLayer(
            annotations, name=f"{name} (dense)", rest_class=lambda: int(layer.selected_label)
        )
        viewer.add_layer(self.dense_layer)
        viewer.add_layer(self.layer)
        viewer.layers.selection.active = self.layer
        hide_cursor_box(viewer)
        self._camera = viewer.scene.camera
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
