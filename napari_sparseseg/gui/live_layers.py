"""The live prediction as one napari layer: class map, probability of a class, uncertainty, or what changed.

All four are bytes in the same tiles, so one Labels layer with a table of 256 colours shows any of them; a pyramid of
float images would cost a full redraw for every tile. The layer reads `TileStore` and never computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from napari.utils import DirectLabelColormap
from napari.utils.colormaps import ensure_colormap

from napari_sparseseg.gui.scribble_display import LazyLabels
from napari_sparseseg.live_tiles import CHANGED, LABELS, MARGIN, PROBABILITY, UNCERTAINTY, live_levels

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.geometry import Frame
    from napari_sparseseg.live_tiles import TileStore

Kind = Literal["classes", "probability", "uncertainty", "margin", "changed"]
RAMP = "viridis"
"""Uncertainty: perceptually even and readable with every colour blindness."""
CLEAR = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Shown:
    """What the layer shows; `class_id` is for the probability of one class."""

    kind: Kind = "classes"
    class_id: int = 0


def class_colours(classes: Sequence[ClassDef], hidden: Collection[int] = ()) -> DirectLabelColormap:
    """Colours of the classes with those in `hidden` transparent; 0 and unknown ids are transparent too."""
    table: dict[int | None, Any] = {None: CLEAR, 0: CLEAR}
    for c in classes:
        table[c.id] = CLEAR if c.id in hidden else c.colour
    return DirectLabelColormap(color_dict=table)


def ramp_colours(rgb: np.ndarray) -> DirectLabelColormap:
    """One colour per byte, the more opaque the higher.

    Parameters
    ----------
    rgb
        float (256, 3), 0..1.
    """
    table: dict[int | None, Any] = {None: CLEAR, 0: CLEAR}
    for value in range(1, 256):
        table[value] = (*(float(c) for c in rgb[value]), value / 255)
    return DirectLabelColormap(color_dict=table)


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
        super().__init__(live_levels(store, LABELS), classes, name=name, opacity=opacity)
        down = np.array(frame.downsample)
        # napari puts the centre of a pixel at its integer coordinate, in every layer
        self.scale, self.translate = down, (down - 1) / 2
        self.editable = False

    @property
    def _type_string(self) -> str:
        return "labels"

    @property
    def store(self) -> TileStore:
        """Where the tiles come from."""
        return self._store

    def _reset_editable(self) -> None:
        self.editable = False

    def show(self, what: Shown, classes: Sequence[ClassDef], hidden: Collection[int] = ()) -> None:
        """Show `what` with the colours of `classes`, those with an id in `hidden` left out of the class map."""
        channel = self._channel(what)
        if channel is None:
            what, channel = Shown(), LABELS
        if self._channel(self.shown) != channel:
            self._levels = live_levels(self._store, channel)
            self.data = self._levels
        self.shown = what
        self.colormap = self._colours(what, classes, hidden)
        self.features = _features(what, classes)

    def label_at_world(self, yx: tuple[float, float]) -> int | None:
        """Byte shown at a level-0 (y, x) of the slide; None outside what is on screen."""
        return self.label_at(self.world_to_data(yx))

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
        return ramp_colours(ensure_colormap(RAMP).map(np.linspace(0, 1, 256))[:, :3])


def _features(what: Shown, classes: Sequence[ClassDef]) -> dict[str, Any]:
    """What the status bar says of a value under the cursor."""
    if what.kind == "classes":
        return {"index": [c.id for c in classes], "class": [c.name for c in classes]}
    if what.kind == "changed":
        return {"index": [255], "class": ["changed since the last model"]}
    word = "probability" if what.kind == "probability" else "uncertainty"
    return {"index": list(range(256)), word: [f"{round(v / 2.55)} %" for v in range(256)]}
