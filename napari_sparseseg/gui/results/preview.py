"""What a clean-up would make of the prediction on screen, as a layer, before the slide is predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Labels
from qtpy.QtCore import QObject

from napari_sparseseg.gui.context import single_shot
from napari_sparseseg.gui.layers.napari_compat import insert_unselected, view_box
from napari_sparseseg.gui.layers.prediction import class_colours

if TYPE_CHECKING:
    from napari_sparseseg import CleanUp
    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.gui.context import Context
    from napari_sparseseg.gui.layers.prediction import LiveDisplay
    from napari_sparseseg.gui.layers.slide_layers import SlideBinding
    from napari_sparseseg.gui.sections.slide.controller import SlideActions
    from napari_sparseseg.prediction.results.preview import CleanedView

NAME = "clean-up preview"
AGAIN_MS = 250
"""The preview is made anew after the view, the tiles or the settings have not changed for this long."""


class CleanPreview(QObject):
    """Shows the cleaned prediction instead of the prediction, as long as it has settings.

    Parameters
    ----------
    context
        Session and viewer.
    slides
        Which slide is active.
    display
        The prediction, hidden meanwhile.
    """

    def __init__(self, context: Context, slides: SlideActions, display: LiveDisplay) -> None:
        super().__init__(context)
        self._context, self._slides, self._display = context, slides, display
        self._settings: CleanUp | None = None
        self._layer: Labels | None = None
        self._binding: SlideBinding | None = None
        self._classes: tuple[ClassDef, ...] = ()
        self._asked = 0
        self._timer = single_shot(self, AGAIN_MS, self._make)
        display.refreshed.connect(self._later)
        slides.binding_changed.connect(self._on_binding)

    def show(self, settings: CleanUp | None) -> None:
        """Preview these settings; None shows the prediction again."""
        if settings is None and self._settings is None:
            return
        if self._settings is None:
            self._display.visible = False
        self._settings = settings
        if settings is None:
            self._timer.stop()
            self._drop()
            self._display.visible = True
        else:
            self._timer.start()

    def close(self) -> None:
        """Remove the layer."""
        self._settings = None
        self._timer.stop()
        self._drop()

    def _later(self) -> None:
        if self._settings is not None:
            self._timer.start()

    def _on_binding(self) -> None:
        self._drop()
        self._later()

    def _make(self) -> None:
        session, settings, binding = self._context.session, self._settings, self._slides.binding
        live, model = session.live, session.model
        if settings is None or binding is None or live is None or model is None:
            return
        if live.slide is not binding.entry.slide:
            return
        self._asked += 1
        asked, box, known = self._asked, view_box(self._context.viewer)[0], {c.id: c for c in session.classes}
        classes = tuple(known.get(c.id, c) for c in model.metadata.classes)

        def show(made: CleanedView | None) -> None:
            if asked == self._asked and self._settings is not None and binding is self._slides.binding:
                self._show(made, binding)

        self._context.jobs.run(lambda: session.results.preview_clean_up(live, box, settings, classes), show)

    def _show(self, made: CleanedView | None, binding: SlideBinding) -> None:
        if made is None:
            self._drop()
            return
        pixel = np.array(made.pixel)
        corner = np.array(made.origin) + (pixel - 1) / 2  # napari has the centre of a pixel at its integer coordinate
        layer = self._layer
        if layer is None or layer not in self._context.viewer.layers or self._classes != made.classes:
            self._drop()
            self._classes = made.classes
            self._add(self._new(made, pixel, corner), binding)
            return
        binding.detach(layer)  # which lets nobody move it
        layer.scale, layer.translate = pixel, corner
        layer.data = made.labels
        binding.attach(layer)

    def _new(self, made: CleanedView, pixel: np.ndarray, corner: np.ndarray) -> Labels:
        features = {"index": [c.id for c in made.classes], "class": [c.name for c in made.classes]}
        layer = Labels(
            made.labels, name=NAME, colormap=class_colours(made.classes), opacity=self._display.opacity,
            scale=pixel, translate=corner, features=features,
        )  # fmt: skip
        layer.editable = False
        return layer

    def _add(self, layer: Labels, binding: SlideBinding) -> None:
        insert_unselected(self._context.viewer, binding.below_scribbles, layer)
        binding.attach(layer)
        self._layer, self._binding = layer, binding

    def _drop(self) -> None:
        layer, self._layer = self._layer, None
        if layer is None:
            return
        if self._binding is not None:
            self._binding.detach(layer)
        if layer in self._context.viewer.layers and not self._context.leaving:
            self._context.viewer.layers.remove(layer)
