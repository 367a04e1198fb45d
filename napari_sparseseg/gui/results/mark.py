"""The outline of one object on the slide, as a layer of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Shapes

from napari_sparseseg.gui.context import single_shot
from napari_sparseseg.gui.layers.lazy_labels import PIXEL_CENTRE
from napari_sparseseg.gui.layers.napari_compat import insert_unselected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.gui.context import Context
    from napari_sparseseg.gui.layers.slide_layers import SlideBinding

NAME, COLOUR = "object", "#ffff00"
LINE_PX = 3.0
"""Width of the outline on the screen."""
MOST_CORNERS, MOST_RINGS = 2000, 200
"""napari builds every path on the GUI thread."""
CAMERA_MS = 100


class ObjectMark:
    """Shows one outline at a time; the layer is made with the first.

    Parameters
    ----------
    context
        Session and viewer.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._layer: Shapes | None = None
        self._binding: SlideBinding | None = None
        self._timer = single_shot(context, CAMERA_MS, self._follow)
        self._camera: Any = context.viewer.scene.camera
        self._camera.events.zoom.connect(self._on_zoom)

    def show(self, binding: SlideBinding, rings: Sequence[NDArray[np.float64]]) -> None:
        """Mark an object of a slide.

        Parameters
        ----------
        binding
            The slide's layers.
        rings
            Outer ring and holes: (N, 2) of level-0 (y, x), not closed.
        """
        paths = []
        for ring in rings[:MOST_RINGS]:
            corners = ring[:: -(-len(ring) // MOST_CORNERS)]
            paths.append(np.vstack([corners, corners[:1]]) - PIXEL_CENTRE)
        viewer, layer = self._context.viewer, self._layer
        if layer is not None and layer in viewer.layers and binding is self._binding:
            # a tenth of what it takes to remove one layer and add another
            layer.data = [(path, "path") for path in paths]
            layer.edge_width, layer.edge_color = [self._width] * len(paths), [COLOUR] * len(paths)
            return
        self.clear()
        layer = Shapes(
            paths, shape_type="path", edge_color=COLOUR, edge_width=self._width, face_color="transparent", name=NAME
        )
        insert_unselected(viewer, len(viewer.layers), layer)
        binding.attach(layer)
        self._layer, self._binding = layer, binding

    def clear(self) -> None:
        """Remove the mark."""
        layer, self._layer = self._layer, None
        if layer is None:
            return
        if self._binding is not None:
            self._binding.detach(layer)
        if layer in self._context.viewer.layers and not self._context.leaving:
            self._context.viewer.layers.remove(layer)

    def close(self) -> None:
        """Remove the mark and leave the camera."""
        self._timer.stop()
        self._camera.events.zoom.disconnect(self._on_zoom)
        self.clear()

    @property
    def _width(self) -> float:
        return LINE_PX / float(self._camera.zoom)

    def _on_zoom(self, event: Any = None) -> None:
        if self._layer is not None and not self._timer.isActive():
            self._timer.start()

    def _follow(self) -> None:
        if self._layer is not None and self._layer in self._context.viewer.layers:
            self._layer.edge_width = [self._width] * len(self._layer.data)
