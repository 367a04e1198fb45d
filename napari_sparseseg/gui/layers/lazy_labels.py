"""A multiscale Labels layer over a sparse, changing pyramid, updated box by box.

napari assumes that pyramids are constant: it slices them on a shared worker, after slow image tiles, and redraws whole
tiles. `LazyLabels` slices on the GUI thread instead (a sparse pyramid answers in milliseconds) and uploads only the box
that changed. It is not editable; `ScribbleLayer` is. World coordinates are level-0 pixels, and as everywhere in napari
the centre of a pixel has the integer coordinate: pixel i of level k covers [i * 2^k - 0.5, (i + 1) * 2^k - 0.5).

The private parts of napari used here are listed and tested in `napari_sparseseg.gui.layers.napari_compat`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from napari.layers import Labels
from napari.utils import DirectLabelColormap

from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.geometry import Box
from napari_sparseseg.gui.say import say

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.annotations import Annotations
    from napari_sparseseg.config import ClassDef

MAX_LOCKED_PIXELS = 8192 * 8192
"""Largest level that the layer controls may lock: napari loads all of a locked level at once."""
UNKNOWN_COLOUR = "#ffffff"
PIXEL_CENTRE = 0.5
"""Annotations have the corner of a pixel at the integer coordinate, napari its centre."""


class ShownTile(NamedTuple):
    """The part of one pyramid level that napari shows; its box is in pixels of that level."""

    level: int
    box: Box

    @property
    def factor(self) -> int:
        """Level-0 pixels per tile pixel."""
        return 1 << self.level

    def pixel(self, yx: Sequence[float]) -> tuple[int, int] | None:
        """Index in the tile of the pixel under data coordinate `yx`; None outside."""
        y, x = (int(np.floor((c + 0.5) / self.factor)) for c in yx)
        y, x = y - self.box.y, x - self.box.x
        return (y, x) if 0 <= y < self.box.height and 0 <= x < self.box.width else None

    def part(self, level0: Box) -> Box:
        """The part of the tile, in tile pixels from its corner, that a level-0 box touches."""
        f = self.factor
        y, x = level0.y // f, level0.x // f
        touched = Box(y, x, -(-level0.y1 // f) - y, -(-level0.x1 // f) - x).intersection(self.box)
        return touched._replace(y=touched.y - self.box.y, x=touched.x - self.box.x)


def tile_of(response: Any) -> ShownTile:
    """The part of the pyramid that a slice of napari contains."""
    to_data = response.tile_to_data
    level = round(float(np.log2(to_data.scale[-1])))
    y, x = (round(float(t)) >> level for t in to_data.translate[-2:])
    return ShownTile(level, Box(y, x, *response.image.raw.shape))


def class_colormap(classes: Iterable[ClassDef]) -> DirectLabelColormap:
    """Colours of the classes; 0 is transparent and an id without a class is white."""
    colours: dict[int | None, str] = {None: UNKNOWN_COLOUR, 0: "transparent"}
    colours.update({c.id: c.colour for c in classes})
    return DirectLabelColormap(color_dict=colours)


class SavedLevels(list[Any]):
    """The pyramid that napari's writers receive: as an array it is level 0.

    napari's built-in writer would silently save the coarsest level of a pyramid.
    """

    def __init__(self, levels: Iterable[Any], limit: int = MAX_LOCKED_PIXELS) -> None:
        super().__init__(levels)
        self._limit = limit
        self.annotations: Annotations | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the labels."""
        return np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of level 0."""
        return self[0].shape  # type: ignore[no-any-return]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        height, width = self.shape
        if height * width > self._limit:
            raise AnnotationError(
                f"scribbles of {height} x {width} px cannot be written as one image by napari. Save them as "
                f".sparseseg or .geojson instead: layer.save(path), the panel, or Session.save."
            )
        return np.asarray(self[0][0:height, 0:width], dtype=dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> SavedLevels:
        return self  # a duplicated layer shows the same live labels; locks and chunks cannot be copied


class LazyLabels(Labels):
    """Shows a pyramid of integer labels that changes.

    Parameters
    ----------
    levels
        (H, W), (H/2, W/2), ... array-likes of uint8 with exactly halving shapes. Slicing must be fast, as it happens on
        the GUI thread; the last one must be a live ndarray, because napari retains it.
    classes
        Colours, and names for the status bar.
    name, opacity
        As in napari.
    """

    def __init__(self, levels: Sequence[Any], classes: Iterable[ClassDef], *, name: str, opacity: float = 0.7) -> None:
        self._levels = list(levels)
        self._pending: Box | None = None
        super().__init__(self._levels, multiscale=True, name=name, opacity=opacity, cache=False)
        self.show_classes(classes)
        self.events.loaded.connect(self._on_slice_loaded)

    @property
    def _type_string(self) -> str:
        return "labels"

    def show_classes(self, classes: Iterable[ClassDef]) -> None:
        """Apply colours and names."""
        known = list(classes)
        self.colormap = class_colormap(known)
        self.features = {"index": [0, *(c.id for c in known)], "class": ["unlabelled", *(c.name for c in known)]}

    def new_colormap(self, seed: int | None = None) -> None:
        """Refuse napari's shuffle button: colours are those of the classes."""
        say("Colours are set in the class table.")

    @property
    def tile(self) -> ShownTile | None:
        """The visible part; None while there is none or napari is loading it."""
        if self._slice.empty or not self.loaded:
            return None
        return tile_of(self._slice)

    def update_box(self, box: Box | None) -> None:
        """Redraw a level-0 box, later if the layer is not loaded yet."""
        if box is not None:
            self._pending = box if self._pending is None else self._pending.union(box)
        self._partial_labels_refresh()

    def _partial_labels_refresh(self) -> None:
        tile = self.tile
        if tile is None or self._pending is None:
            return
        part, self._pending = tile.part(self._pending), None
        if part.area == 0:
            return
        y, x = tile.box.y + part.y, tile.box.x + part.x
        fresh = self._levels[tile.level][y : y + part.height, x : x + part.width]
        self._slice.image.raw[part.slices()] = fresh
        if self.contour:  # a contour reaches as far as it is thick
            part = part.grown(self.contour + 1).intersection(Box(0, 0, tile.box.height, tile.box.width))
        shown = self._raw_to_displayed(self._slice.image.raw, part.slices())
        self._slice.image.view[part.slices()] = shown
        self.upload(shown, part.y, part.x)

    def upload(self, data: np.ndarray, y: int, x: int) -> None:
        """Write a part of the visible labels into the texture.

        The layer list is not notified: it would redraw its row, and Qt the whole window, for every mouse move.
        """
        with self.events.blocker():
            self.events.labels_update(data=data, offset=[y, x])

    def _on_slice_loaded(self) -> None:
        """Refresh when an asynchronous slice arrives for an older view or without the newest strokes."""
        tile = self.tile
        if tile is None:
            return
        y, x = self.corner_pixels[0]
        if tile.level != self.data_level or (tile.box.y, tile.box.x) != (y, x):
            self.refresh()
        else:
            self._partial_labels_refresh()

    def refresh(
        self,
        event: Any = None,
        *,
        thumbnail: bool = True,
        data_displayed: bool = True,
        highlight: bool = True,
        extent: bool = True,
        force: bool = False,
    ) -> None:
        """Slice at once on the GUI thread, even when napari slices asynchronously."""
        if self._refresh_blocked or not self.visible:
            return
        self.set_view_slice()
        self._refresh_sync(
            thumbnail=thumbnail, data_displayed=data_displayed, highlight=highlight, extent=extent, force=force
        )

    def label_at(self, yx: Sequence[float]) -> int | None:
        """Label shown at data coordinate `yx`; None outside the tile."""
        tile = self.tile
        pixel = None if tile is None else tile.pixel(yx)
        return None if pixel is None else int(self._slice.image.raw[pixel])

    def get_value(
        self,
        position: Any,
        *,
        view_direction: Any = None,
        dims_displayed: Any = None,
        world: bool = False,
    ) -> tuple[int, int | None] | None:
        """(level, label) of the pixel shown at a position."""
        if not self.visible:
            return None
        yx: Sequence[float] = self.world_to_data(position) if world else tuple(position)[-2:]
        return self.data_level, self.label_at(yx)

    @property
    def locked_data_level(self) -> int | None:
        """Level locked by the user; levels that are too large to load are refused with a message."""
        return super().locked_data_level  # type: ignore[no-any-return]

    @locked_data_level.setter
    def locked_data_level(self, level: int | None) -> None:
        if level is not None and int(np.prod(self._levels[level].shape)) > MAX_LOCKED_PIXELS:
            say(f"Level {level} is too large to load; the resolution follows the zoom.")
            level = None
        Labels.locked_data_level.fset(self, level)

    def as_layer_data_tuple(self) -> tuple[Any, dict[str, Any], str]:
        """For writers and for duplication; the data are a `SavedLevels`."""
        _, state, kind = super().as_layer_data_tuple()
        return SavedLevels(self._levels), state, kind
