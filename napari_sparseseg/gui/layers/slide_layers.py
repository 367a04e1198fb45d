"""The layers of one open slide: its image, the scribbles on it, the dense regions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Layer

from napari_sparseseg.gui.layers.prediction import class_colours
from napari_sparseseg.gui.layers.scribbles import Scribbles, camera_of
from napari_sparseseg.gui.layers.view_box import show_whole

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    import napari

    from napari_sparseseg.annotations import Annotations
    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.session.slides import SlideEntry
    from napari_sparseseg.slides import Slide


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
        camera = camera_of(self.viewer)
        return camera.center, camera.zoom

    def set_visible(self, visible: bool) -> None:
        """Show or hide all layers of the slide; shown again it is seen as it was left, the first time as a whole."""
        if self._shown and not visible:
            self._seen = self._camera
        for layer in self.layers:
            layer.visible = visible
        if visible and self._seen is not None:
            camera = camera_of(self.viewer)
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
