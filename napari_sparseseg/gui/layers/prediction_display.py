"""Keeps the prediction layer of the active slide in the viewer and in step with tiles, camera and choices."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, QTimer, Signal

from napari_sparseseg.gui.layers.prediction import LiveLayer, Shown
from napari_sparseseg.gui.layers.scribbles import camera_of
from napari_sparseseg.gui.layers.view_box import view_box

if TYPE_CHECKING:
    from napari_sparseseg.geometry import Box
    from napari_sparseseg.gui.context import Context
    from napari_sparseseg.gui.layers.slide_layers import SlideBinding
    from napari_sparseseg.prediction.live_view import LiveView

REFRESH_MS = 40
"""Tiles that arrive within this time are drawn together."""
LOOK_MS = 60
"""The camera must rest this long before its view is asked for."""
OUTDATED_MS = 5000
"""What a model said is dimmed this long after there is a newer one. While training goes on, a new model has the whole
screen predicted again within that time, so nothing blinks; what stays behind is said by a model that is gone."""
DEFAULT_OPACITY = 0.45


class LiveDisplay(QObject):
    """The prediction layer.

    Parameters
    ----------
    context
        Session and viewer.

    Attributes
    ----------
    refreshed
        Signal (): other tiles are shown, or another part of the slide.
    shown_changed
        Signal (): the layer is another object, or shows something else.
    """

    refreshed = Signal()
    shown_changed = Signal()

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._context = context
        self._binding: SlideBinding | None = None
        self._live: LiveView | None = None
        self.layer: LiveLayer | None = None
        self.shown = Shown()
        self.hidden: frozenset[int] = frozenset()
        self._opacity, self._contour, self._visible = DEFAULT_OPACITY, 0, True
        self._pending: Box | None = None
        self._refresh = self._single_shot(REFRESH_MS, self._draw)
        self._look = self._single_shot(LOOK_MS, self.look)
        self._camera = camera_of(context.viewer)
        self._camera.events.zoom.connect(self._on_camera)
        self._camera.events.center.connect(self._on_camera)
        context.live_changed.connect(self.renew)
        self._version = 0
        self._newer: deque[tuple[float, LiveView | None, int]] = deque()
        self._outdate = self._single_shot(OUTDATED_MS, self._dim)
        context.status_changed.connect(self._on_status)

    def _single_shot(self, interval: int, call: Any) -> QTimer:
        timer = QTimer(self)
        timer.setSingleShot(True)
        timer.setInterval(interval)
        timer.timeout.connect(call)
        return timer

    @property
    def opacity(self) -> float:
        """Of the prediction, 0..1."""
        return self._opacity

    @opacity.setter
    def opacity(self, opacity: float) -> None:
        self._opacity = opacity
        if self.layer is not None:
            self.layer.opacity = opacity

    @property
    def contour(self) -> int:
        """Width of outlines in prediction pixels; 0 fills the regions."""
        return self._contour

    @contour.setter
    def contour(self, width: int) -> None:
        self._contour = width
        if self.layer is not None:
            self.layer.contour = width if self.shown.kind == "classes" else 0

    def show(self, what: Shown) -> None:
        """Show the class map, a probability, the uncertainty or what changed."""
        self.shown = what
        self._apply()

    def hide_classes(self, hidden: frozenset[int]) -> None:
        """Leave these classes out of the class map."""
        self.hidden = hidden
        self._apply()

    def follow(self, binding: SlideBinding | None) -> None:
        """Show the prediction of another slide."""
        self._binding = binding
        self.renew()
        self.look()

    def look(self) -> None:
        """Tell the session what is on screen."""
        if self._binding is None or self._context.closed:
            return
        box, pixel = view_box(self._context.viewer)
        self._context.session.look_at(box, pixel)
        self.refreshed.emit()

    def renew(self) -> None:
        """Make the layer anew where the session's live view is another object."""
        binding, live = self._binding, self._context.session.live
        if live is None or binding is None or live.slide is not binding.entry.slide:
            live = None
        if live is self._live:
            return
        self._drop()
        self._live = live
        if live is None or binding is None:
            return
        live.updated.connect(self._on_tile, thread="main")
        model = self._context.session.model
        classes = self._context.session.classes if model is None else model.recipe.classes
        self.layer = LiveLayer(live.store, live.frame, classes, opacity=self._opacity)
        self.layer.visible = self._visible
        viewer = self._context.viewer
        selected = set(viewer.layers.selection)
        viewer.layers.insert(binding.below_scribbles, self.layer)
        # a new layer is selected by napari, which would take the brush out of the user's hand
        viewer.layers.selection.clear()
        viewer.layers.selection.update(selected)
        self.layer.events.opacity.connect(self._on_layer_opacity)
        self._apply()
        self._dim_later()  # tiles from when the slide was active before

    def close(self) -> None:
        """Take the layer away and let go of camera and session."""
        self._binding = None
        self._drop()
        for timer in (self._refresh, self._look, self._outdate):
            timer.stop()
        self._camera.events.zoom.disconnect(self._on_camera)
        self._camera.events.center.disconnect(self._on_camera)

    def _drop(self) -> None:
        if self._live is not None:
            self._live.updated.disconnect(self._on_tile, missing_ok=True)
        layer, self.layer, self._live, self._pending = self.layer, None, None, None
        if layer is not None:
            self._visible = layer.visible
            layer.events.opacity.disconnect(self._on_layer_opacity)
            if layer in self._context.viewer.layers and not self._context.leaving:
                self._context.viewer.layers.remove(layer)

    def _apply(self) -> None:
        if self.layer is not None:
            self.layer.show(self.shown, self._context.session.classes, self.hidden)
            self.layer.contour = self._contour if self.shown.kind == "classes" else 0
        self.shown_changed.emit()

    def _on_layer_opacity(self) -> None:
        if self.layer is not None and self.layer.opacity != self._opacity:
            self._opacity = self.layer.opacity
            self.shown_changed.emit()

    def _on_status(self) -> None:
        version = self._context.session.status.model_version
        if version == self._version or self._context.closed:
            return
        self._version = version
        self._dim_later()

    def _dim_later(self) -> None:
        self._newer.append((time.monotonic() + OUTDATED_MS / 1e3, self._live, self._version))
        if not self._outdate.isActive():
            self._outdate.start(OUTDATED_MS)

    def _dim(self) -> None:
        while self._newer and self._newer[0][0] <= time.monotonic():
            _, live, version = self._newer.popleft()
            if self.layer is not None and self._live is live:  # versions of another session begin anew
                self.layer.outdate(version)
        if self._newer:
            self._outdate.start(max(1, round((self._newer[0][0] - time.monotonic()) * 1e3)))

    def _on_camera(self) -> None:
        self._look.start()

    def _on_tile(self, box: Box) -> None:
        if self._live is None:  # it was still in the queue when the layer was taken away
            return
        self._pending = box if self._pending is None else self._pending.union(box)
        if not self._refresh.isActive():
            self._refresh.start()

    def _draw(self) -> None:
        box, self._pending = self._pending, None
        if self.layer is not None and box is not None:
            self.layer.update_box(box)
            self.refreshed.emit()
