"""The live prediction as one napari layer: class map, probability of a class, uncertainty, or changes.

All four are bytes in the same tiles, so one Labels layer with a table of 256 colours shows any of them; a pyramid of
float images would be redrawn completely for every tile. The layer reads `TileStore` and never computes.

Predictions of an outdated model are dimmed in the texture only, with a second code for every colour, half as opaque and
half grey; values under the cursor and areas are not affected. Codes are bytes: the class map uses unused class ids, and
a ramp its lowest bit.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from qtpy.QtCore import QObject, Signal

from napari_sparseseg.geometry import Box
from napari_sparseseg.gui.context import single_shot
from napari_sparseseg.gui.layers.lazy_labels import LazyLabels
from napari_sparseseg.gui.layers.napari_compat import insert_unselected, view_box
from napari_sparseseg.gui.layers.prediction_colours import class_colours, dim_codes, ramp_colours, ramp_rgb
from napari_sparseseg.prediction.tile_store import (
    CHANGED,
    LABELS,
    MARGIN,
    NOTHING,
    PROBABILITY,
    TILE,
    UNCERTAINTY,
    CleanedTiles,
    live_levels,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from napari.utils import DirectLabelColormap

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.geometry import Frame
    from napari_sparseseg.gui.context import Context
    from napari_sparseseg.gui.layers.slide_layers import SlideBinding
    from napari_sparseseg.prediction.live_view import LiveView
    from napari_sparseseg.prediction.results.preview import CleanedView
    from napari_sparseseg.prediction.tile_store import TileStore

Kind = Literal["classes", "probability", "uncertainty", "margin", "changed"]


@dataclass(frozen=True, slots=True)
class Shown:
    """What the layer shows; `class_id` is for the probability of one class."""

    kind: Kind = "classes"
    class_id: int = 0


class LiveLayer(LazyLabels):
    """One channel of a live prediction over the slide, in the slide's level-0 world.

    Parameters
    ----------
    store
        Tiles to show.
    frame
        Of the store's finest level.
    classes
        The model's, in channel order; colours are set by `show`.
    name, opacity
        As in napari.
    """

    def __init__(
        self,
        store: TileStore,
        frame: Frame,
        classes: Sequence[ClassDef],
        *,
        name: str = "prediction",
        opacity: float = 0.5,
    ) -> None:
        self._store, self._model_classes = store, tuple(classes)
        self.shown = Shown()
        self._instead: CleanedTiles | None = None
        self._outdated_below = 0
        self._dim_codes = dim_codes(classes)
        super().__init__(live_levels(store, LABELS), classes, name=name, opacity=opacity)
        down = np.array(frame.downsample)
        # napari puts the centre of a pixel at its integer coordinate, in every layer
        self.scale, self.translate = down, (down - 1) / 2
        self.editable = False
        for name in ("polygon", "brush_stroke"):  # building them takes half of the time of adding a layer
            self._overlays[name].visible = False

    @property
    def _type_string(self) -> str:
        return "labels"

    @property
    def store(self) -> TileStore:
        """The tiles that are shown."""
        return self._store

    def _reset_editable(self) -> None:
        self.editable = False

    def show(self, what: Shown, classes: Sequence[ClassDef], hidden: Collection[int] = ()) -> None:
        """Show `what` with the colours of `classes`, those with an id in `hidden` left out of the class map."""
        channel = self._channel(what)
        if channel is None:
            what, channel = Shown(), LABELS
        if self._channel(self.shown) != channel or self._instead is not None:
            self._instead = None
            self._levels = live_levels(self._store, channel)
            self.data = self._levels
        self._look(what, classes, hidden)

    def show_instead(self, tiles: CleanedTiles, classes: Sequence[ClassDef], hidden: Collection[int] = ()) -> None:
        """Show other tiles in place of the prediction's, until `show` is called."""
        if self._instead is not tiles:
            self._instead = tiles
            self._levels = live_levels(tiles, LABELS)
            self.data = self._levels
        self._look(Shown(), classes, hidden)

    def _look(self, what: Shown, classes: Sequence[ClassDef], hidden: Collection[int]) -> None:
        self.shown = what
        self._dim_codes = dim_codes(classes)
        self.colormap = self._colours(what, classes, hidden)
        self.features = _features(what, classes)

    def follow(self, store: TileStore, classes: Sequence[ClassDef]) -> None:
        """Show the tiles of another model of the same slide, in the same frame; `show` gives it its colours."""
        self._store, self._model_classes, self._outdated_below = store, tuple(classes), 0
        self._instead = None
        if self._channel(self.shown) is None:
            self.shown = Shown()
        self._levels = live_levels(store, self._channel(self.shown) or LABELS)
        self.data = self._levels

    def label_at_world(self, yx: tuple[float, float]) -> int | None:
        """Byte shown at level-0 (y, x) of the slide; None outside the visible part."""
        return self.label_at(self.world_to_data(yx))

    def outdate(self, version: int) -> None:
        """Dim predictions of models before `version`; redrawn only when some are visible."""
        tile = self.tile
        dim = None if tile is None else self._outdated(tile.level, tile.box)[0]
        self._outdated_below = max(self._outdated_below, version)
        if tile is None or (dim is not None and np.array_equal(dim, self._outdated(tile.level, tile.box)[0])):
            return
        f = tile.factor
        self.update_box(Box(tile.box.y * f, tile.box.x * f, tile.box.height * f, tile.box.width * f))

    def _outdated(self, level: int, box: Box) -> tuple[np.ndarray, Box]:
        """Which level-0 tiles under a box of a level are outdated, and the box of these tiles, in tiles."""
        y, x = (box.y << level) // TILE, (box.x << level) // TILE
        cells = Box(y, x, (((box.y1 << level) - 1) // TILE) + 1 - y, (((box.x1 << level) - 1) // TILE) + 1 - x)
        versions = self._store.shown_versions(level, cells.slices())
        return (versions > NOTHING) & (versions < self._outdated_below), cells

    def set_view_slice(self) -> None:
        """Slice the visible part, with outdated tiles dimmed."""
        super().set_view_slice()
        tile = self.tile
        if tile is not None:
            self._dim(self._slice.image.view, tile.level, tile.box)

    def _raw_to_displayed(self, raw: np.ndarray, data_slice: tuple[slice, ...] | None = None) -> np.ndarray:
        shown: np.ndarray = super()._raw_to_displayed(raw, data_slice)
        if self.shown.kind != "classes":  # 0 stays clear
            shown = np.where(shown > 0, shown | 1, 0).astype(np.uint8)
        shown = shown.copy()  # napari may return the labels themselves, and dimmed codes are written into it
        tile = self.tile
        if (
            data_slice is not None and tile is not None
        ):  # otherwise a new slice is arriving, and `tile` is still the previous one
            (y0, y1, _), (x0, x1, _) = (s.indices(n) for s, n in zip(data_slice, raw.shape, strict=True))
            self._dim(shown, tile.level, Box(tile.box.y + y0, tile.box.x + x0, y1 - y0, x1 - x0))
        return shown

    def _dim(self, shown: np.ndarray, level: int, box: Box) -> None:
        """Dim outdated tiles in the codes of a box of a level, in place."""
        if not self._outdated_below:
            return
        dim, cells = self._outdated(level, box)
        for i, j in np.argwhere(dim):
            y, x = max(box.y, (cells.y + i) * TILE >> level), max(box.x, (cells.x + j) * TILE >> level)
            y1, x1 = ((cells.y + i + 1) * TILE >> level), ((cells.x + j + 1) * TILE >> level)
            part = shown[y - box.y : y1 - box.y, x - box.x : x1 - box.x]
            part[:] = self._dim_codes[part] if self.shown.kind == "classes" else part & 254

    def _channel(self, what: Shown) -> int | None:
        ids = [c.id for c in self._model_classes]
        if what.kind == "probability":
            return PROBABILITY + ids.index(what.class_id) if what.class_id in ids else None
        return {"classes": LABELS, "uncertainty": UNCERTAINTY, "margin": MARGIN, "changed": CHANGED}[what.kind]

    def _colours(self, what: Shown, classes: Sequence[ClassDef], hidden: Collection[int]) -> DirectLabelColormap:
        if what.kind == "classes":
            return class_colours(classes, hidden)
        if what.kind == "probability":
            rgb = next((c.rgb for c in (*classes, *self._model_classes) if c.id == what.class_id), (255, 255, 255))
            return ramp_colours(np.tile(np.array(rgb) / 255, (256, 1)))
        return ramp_colours(ramp_rgb(256))


def _features(what: Shown, classes: Sequence[ClassDef]) -> dict[str, Any]:
    """What the status bar shows for the value under the cursor."""
    if what.kind == "classes":
        return {"index": [c.id for c in classes], "class": [c.name for c in classes]}
    if what.kind == "changed":
        return {"index": [255], "class": ["changed since the last model"]}
    word = "probability" if what.kind == "probability" else "uncertainty"
    return {"index": list(range(256)), word: [f"{round(v / 2.55)} %" for v in range(256)]}


REFRESH_MS = 40
"""Tiles that arrive within this time are drawn together."""
LOOK_MS = 60
"""The view is reported after the camera has not moved for this long."""
OUTDATED_MS = 5000
"""Tiles of a model are dimmed this long after a newer model arrived. During training the whole screen is predicted
again within that time, so nothing blinks."""
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
        Signal (): the visible tiles or the view changed.
    shown_changed
        Signal (): the layer was recreated, or shows something else.
    removed
        Signal (): the user removed the layer from the viewer.
    """

    refreshed = Signal()
    shown_changed = Signal()
    removed = Signal()

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._context = context
        self._binding: SlideBinding | None = None
        self._attached_to: SlideBinding | None = None
        self._live: LiveView | None = None
        self.layer: LiveLayer | None = None
        self.shown = Shown()
        self.hidden: frozenset[int] = frozenset()
        self._instead: tuple[CleanedTiles, Sequence[ClassDef]] | None = None
        self._opacity, self._contour, self._visible = DEFAULT_OPACITY, 0, True
        self._pending: Box | None = None
        self._refresh = single_shot(self, REFRESH_MS, self._draw)
        self._look = single_shot(self, LOOK_MS, self.look)
        self._camera = context.viewer.scene.camera
        self._camera.events.zoom.connect(self._on_camera)
        self._camera.events.center.connect(self._on_camera)
        context.viewer.layers.events.removed.connect(self._on_removed)
        context.live_changed.connect(self.renew)
        self._version = 0
        self._newer: deque[tuple[float, LiveView | None, int]] = deque()
        self._outdate = single_shot(self, OUTDATED_MS, self._dim)
        context.status_changed.connect(self._on_status)

    @property
    def opacity(self) -> float:
        """Opacity of the prediction, 0..1."""
        return self._opacity

    @opacity.setter
    def opacity(self, opacity: float) -> None:
        self._opacity = opacity
        if self.layer is not None:
            self.layer.opacity = opacity

    @property
    def visible(self) -> bool:
        """Whether the prediction is shown; it is computed in any case."""
        return self._visible

    @visible.setter
    def visible(self, visible: bool) -> None:
        self._visible = visible
        if self.layer is not None:
            self.layer.visible = visible

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
        """Show the class map, a probability, the uncertainty or changes."""
        self.shown = what
        self._apply()

    def show_instead(self, view: CleanedView | None) -> None:
        """Show a part of the slide after a clean-up in place of the prediction; None shows the prediction again."""
        if view is None or self._live is None:
            if self._instead is not None:
                self._instead = None
                self._apply()
            return
        before = self._instead
        tiles = CleanedTiles(self._live.store) if before is None else before[0]
        changed = tiles.put(view.labels, view.level, view.box)
        if before is None or before[1] != view.classes:
            self._instead = tiles, view.classes
            self._apply()
        if self.layer is not None:
            self.layer.update_box(changed)

    def hide_classes(self, hidden: frozenset[int]) -> None:
        """Hide these classes in the class map."""
        self.hidden = hidden
        self._apply()

    def follow(self, binding: SlideBinding | None) -> None:
        """Show the prediction of another slide."""
        self._binding = binding
        self.renew()
        self.look()

    def look(self) -> None:
        """Report the visible region to the session."""
        if self._binding is None or self._context.closed:
            return
        box, pixel = view_box(self._context.viewer)
        self._context.session.look_at(box, pixel)
        self.refreshed.emit()

    def renew(self) -> None:
        """Recreate the layer if the session has a new live view."""
        binding, live = self._binding, self._context.session.live
        if live is None or binding is None or live.slide is not binding.entry.slide:
            live = None
        if live is self._live:
            return
        model = self._context.session.model
        classes = self._context.session.classes if model is None else model.metadata.classes
        if live is not None and binding is self._attached_to and self._is_like(live):
            self._leave()
            self._join(live)
            if self.layer is not None:
                self.layer.follow(live.store, classes)
            self._apply()
            self._dim_later()
            return
        self._drop()
        if live is None or binding is None:
            return
        self._join(live)
        self.layer = LiveLayer(live.store, live.frame, classes, opacity=self._opacity)
        self.layer.visible = self._visible
        insert_unselected(self._context.viewer, binding.below_scribbles, self.layer)
        self.layer.events.opacity.connect(self._on_layer_look)
        self.layer.events.visible.connect(self._on_layer_look)
        binding.attach(self.layer)
        self._attached_to = binding
        self._apply()
        self._dim_later()  # tiles from the last time the slide was active

    def close(self) -> None:
        """Remove the layer and disconnect from camera and session."""
        self._binding = None
        self._drop()
        for timer in (self._refresh, self._look, self._outdate):
            timer.stop()
        self._camera.events.zoom.disconnect(self._on_camera)
        self._camera.events.center.disconnect(self._on_camera)
        self._context.viewer.layers.events.removed.disconnect(self._on_removed)

    def _on_removed(self, event: Any) -> None:
        """The user has removed the layer; `renew` adds it again."""
        if event.value is self.layer and not self._context.leaving:
            self._drop()
            self.removed.emit()

    def _is_like(self, live: LiveView) -> bool:
        """Whether the layer can show it: napari needs a third of a second for another layer."""
        before = self._live
        if before is None or self.layer is None:
            return False
        return before.slide is live.slide and before.frame == live.frame

    def _join(self, live: LiveView) -> None:
        self._live = live
        live.updated.connect(self._on_tile, thread="main")

    def _leave(self) -> None:
        if self._live is not None:
            self._live.updated.disconnect(self._on_tile, missing_ok=True)
        self._live = self._pending = None

    def _drop(self) -> None:
        self._leave()
        self._instead = None  # of the grid of the layer
        layer, self.layer = self.layer, None
        if layer is not None:
            layer.events.opacity.disconnect(self._on_layer_look)
            layer.events.visible.disconnect(self._on_layer_look)
            if self._attached_to is not None:
                self._attached_to.detach(layer)
            if layer in self._context.viewer.layers and not self._context.leaving:
                self._context.viewer.layers.remove(layer)

    def _apply(self) -> None:
        if self.layer is not None:
            if self._instead is not None:
                self.layer.show_instead(*self._instead, self.hidden)
            else:
                self.layer.show(self.shown, self._context.session.classes, self.hidden)
            self.layer.contour = self._contour if self.layer.shown.kind == "classes" else 0
        self.shown_changed.emit()

    def _on_layer_look(self) -> None:
        layer = self.layer
        if layer is not None and (layer.opacity, layer.visible) != (self._opacity, self._visible):
            self._opacity, self._visible = layer.opacity, layer.visible
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
            if self.layer is not None and self._live is live:  # versions start again in another session
                self.layer.outdate(version)
        if self._newer:
            self._outdate.start(max(1, round((self._newer[0][0] - time.monotonic()) * 1e3)))

    def _on_camera(self) -> None:
        self._look.start()

    def _on_tile(self, box: Box) -> None:
        if self._live is None:  # still in the queue when the layer was removed
            return
        self._pending = box if self._pending is None else self._pending.union(box)
        if not self._refresh.isActive():
            self._refresh.start()

    def _draw(self) -> None:
        box, self._pending = self._pending, None
        if self.layer is not None and box is not None:
            self.layer.update_box(box)
            self.refreshed.emit()
