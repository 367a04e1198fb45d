"""The layers of one open slide: image, scribbles and dense regions, and their connection to the camera."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import psygnal.qt
from napari.layers import Labels, Layer
from qtpy.QtCore import QTimer

from napari_sparseseg.gui.layers.dense_regions import DenseRegionLayer
from napari_sparseseg.gui.layers.napari_compat import hide_cursor_box, insert_unselected, require_editing, show_whole
from napari_sparseseg.gui.layers.other_objects import other_objects_layer
from napari_sparseseg.gui.layers.prediction_colours import class_colours
from napari_sparseseg.gui.layers.scribbles import CLASS_KEYS, ScribbleLayer, Steps
from napari_sparseseg.gui.say import say

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    import napari

    from napari_sparseseg.annotations import Annotations
    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.session.slides import SlideEntry
    from napari_sparseseg.slides import Slide


SIGNAL_INTERVAL_MS = 30
LONGEST_NAME = 16
"""Characters of a slide's name in the names of its layers."""
MODE_KEYS = {"P": "paint", "E": "erase", "F": "fill", "G": "polygon"}
BRUSH_KEYS = {"[": -1, "]": 1}
FIXED = "A slide and its annotations cannot be moved: they would no longer match."


def _key(action: Callable[..., object], *values: object) -> Callable[[Any], object]:
    """A key binding of napari, which needs a function with a name, that ignores the layer."""

    def press(layer: Any) -> None:
        action(*values)

    return press


class _Placement(NamedTuple):
    """Where a layer is in the world, as lists, so that placements can be compared."""

    scale: list[float]
    translate: list[float]
    rotate: list[list[float]]
    shear: list[float]
    affine: list[list[float]]

    @classmethod
    def of(cls, layer: Layer) -> _Placement:
        return cls(*(np.asarray(getattr(layer, name)).tolist() for name in cls._fields))

    def apply(self, layer: Layer) -> None:
        for name, value in zip(self._fields, self, strict=True):
            setattr(layer, name, value)


def slide_name(slide: Slide) -> str:
    """Name of a slide in lists and layers: its file name."""
    name = Path(slide.path).name or str(slide.path)
    return f"{name}, image {slide.image}" if slide.image else name


def short(name: str) -> str:
    """A name for the layer list, whose column every layer's name makes wider."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 2 + 1 :]}"


def add_images(viewer: napari.Viewer, slide: Slide) -> list[Layer]:
    """Add a slide at the bottom of the viewer, as our reader does."""
    from napari_sparseseg.gui.reader import layer_data

    layers = [Layer.create(*data) for data in layer_data(slide)]
    for i, layer in enumerate(layers):
        viewer.layers.insert(i, layer)
    return layers


class SlideBinding:
    """The layers of a slide.

    Parameters
    ----------
    viewer
        The viewer they are in.
    entry
        The slide in the session.
    images
        Existing image layers of the slide; None adds them.
    history
        What undo and redo walk; None: that of the annotations alone.

    Attributes
    ----------
    scribbles
        The annotations as layers; `add_annotations` adds them to the viewer.
    """

    def __init__(
        self,
        viewer: napari.Viewer,
        entry: SlideEntry,
        images: Sequence[Layer] | None = None,
        history: Steps | None = None,
    ) -> None:
        self.viewer, self.entry, self._history = viewer, entry, history
        self._shown, self._seen = False, self._camera if images else None
        self._guests: dict[Layer, _Placement] = {}
        self._copies: list[Layer] = []
        self._restoring = False
        self._hidden: frozenset[int] = frozenset()
        self.images = list(images) if images else add_images(viewer, entry.slide)
        for layer in self.images:
            self.attach(layer)
        self.others: Layer | None = None
        """Outlines of objects that label nothing."""
        self._others_of: Sequence[Any] = ()
        self.scribbles = self._make_scribbles()
        viewer.layers.events.inserted.connect(self._on_inserted)
        self.opened_version = entry.annotations.version
        """Version of the annotations when the slide was opened."""

    def add_annotations(self) -> Iterator[None]:
        """Add the layers of the annotations, one per step: napari takes a tenth of a second for each."""
        yield from self.scribbles.add()
        for layer in (self.scribbles.layer, self.scribbles.dense_layer):
            self.attach(layer)
        self.show_others()

    @property
    def layers(self) -> list[Any]:
        """All layers, bottom first."""
        others = [self.others] if self.others is not None and self.others in self.viewer.layers else []
        return [*self.images, *others, self.scribbles.dense_layer, self.scribbles.layer]

    @property
    def below_scribbles(self) -> int:
        """Index in the layer list just below the scribbles."""
        drawn = {self.scribbles.dense_layer, self.scribbles.layer}
        return min((i for i, layer in enumerate(self.viewer.layers) if layer in drawn), default=len(self.viewer.layers))

    def attach(self, layer: Layer) -> None:
        """Make the drawing keys work while `layer` is active, and prevent it from being moved.

        The layer's own mode keys are replaced: napari's key 2 would let the next drag move a slide under its scribbles.
        """
        for key, action in self._keys_for(layer).items():
            layer.bind_key(key, action, overwrite=True)
        self._guests[layer] = _Placement.of(layer)
        layer.events.mode.connect(self._on_mode)
        for name in _Placement._fields:
            getattr(layer.events, name).connect(self._on_moved)

    def _keys_for(self, layer: Layer) -> dict[str, Callable[[Any], object]]:
        if isinstance(layer, ScribbleLayer):
            return {}
        draws = isinstance(layer, DenseRegionLayer)
        choose = self._choose_class if draws else self._draw_class
        keys = {str(n): _key(choose, n) for n in CLASS_KEYS}
        if not draws:
            keys |= {key: _key(self._draw_with, mode) for key, mode in MODE_KEYS.items()}
            keys |= {key: _key(self._change_brush, by) for key, by in BRUSH_KEYS.items()}
            keys |= {"Control-Z": _key(self._undo), "Control-Shift-Z": _key(self._redo)}
        return keys

    def detach(self, layer: Layer) -> None:
        """Undo `attach`."""
        if self._guests.pop(layer, None) is not None:
            layer.keymap.clear()
            layer.events.mode.disconnect(self._on_mode)
            for name in _Placement._fields:
                getattr(layer.events, name).disconnect(self._on_moved)

    def _choose_class(self, class_id: int) -> None:
        self.scribbles.layer.select_class(class_id)

    def _draw_class(self, class_id: int) -> None:
        if self.scribbles.layer.select_class(class_id):
            self._draw_with("paint")

    def _undo(self) -> None:
        self.scribbles.layer.undo()

    def _redo(self) -> None:
        self.scribbles.layer.redo()

    def _change_brush(self, by: int) -> None:
        self.scribbles.layer.brush_size = max(1, self.scribbles.layer.brush_size + by)

    def _draw_with(self, mode: str) -> None:
        self.scribbles.layer.mode = mode
        self.viewer.layers.selection.active = self.scribbles.layer

    def _on_inserted(self, event: Any) -> None:
        """A duplicate of the scribbles shows what is drawn, but only the layer itself is drawn on: keys lead there."""
        layer = event.value
        parent = layer.source.parent  # a weak reference
        if isinstance(layer, Labels) and parent is not None and parent() is self.scribbles.layer:
            self._copies.append(layer)
            self.attach(layer)

    def _on_mode(self, event: Any) -> None:
        if str(event.source.mode) == "transform":
            event.source.mode = "pan_zoom"
            say(FIXED)

    def _on_moved(self, event: Any) -> None:
        layer = event.source
        placement = self._guests.get(layer)
        if placement is not None and not self._restoring and placement != _Placement.of(layer):
            self._restoring = True
            try:
                placement.apply(layer)
            finally:
                self._restoring = False
            say(FIXED)

    def _make_scribbles(self) -> Scribbles:
        name = f"scribbles, {short(slide_name(self.entry.slide))}"
        scribbles = Scribbles(self.viewer, self.entry.annotations, name=name, add=False)
        scribbles.layer.metadata["slide"] = self.entry.slide
        scribbles.layer.history = self._history or self.entry.annotations
        return scribbles

    def follow_annotations(self) -> bool:
        """Show the current annotations if they were replaced, or if their layer was deleted; return whether."""
        self.show_others()
        if self.scribbles.annotations is self.entry.annotations and not self.scribbles.closed:
            return False
        visible = self.scribbles.layer.visible
        for layer in (self.scribbles.layer, self.scribbles.dense_layer):
            self.detach(layer)
        self.scribbles.close()
        self.scribbles = self._make_scribbles()
        for _ in self.add_annotations():
            pass  # both in one turn, see D73
        self.scribbles.layer.visible = visible
        return True

    def show_others(self) -> None:
        """Show the objects that label nothing, if they have changed."""
        found = self.entry.annotations.others
        if found is self._others_of or found == self._others_of:
            return
        self._others_of = found
        self._take_others_out()
        name = f"other objects, {short(slide_name(self.entry.slide))}"
        self.others = other_objects_layer(found, name)
        if self.others is not None:
            insert_unselected(self.viewer, self.below_scribbles, self.others)
            self.others.editable = False  # napari makes every layer that is added editable
            self.attach(self.others)

    def _take_others_out(self) -> None:
        if self.others is not None:
            self.detach(self.others)
            if self.others in self.viewer.layers:
                self.viewer.layers.remove(self.others)

    @property
    def _camera(self) -> tuple[Any, float]:
        camera = self.viewer.scene.camera
        return camera.center, camera.zoom

    def set_visible(self, visible: bool) -> None:
        """Show or hide all layers; the view is restored, the first time it shows the whole slide."""
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
        """Hide the scribbles of the classes in `hidden`."""
        if self._hidden or hidden:
            self.scribbles.layer.colormap = class_colours(list(classes), hidden)
        self._hidden = frozenset(hidden)

    def close(self, *, take_out: bool = True) -> None:
        """Disconnect; with `take_out`, remove all layers from the viewer."""
        for _ in self.closing(take_out=take_out):
            pass

    def closing(self, *, take_out: bool = True) -> Iterator[None]:
        """`close` in steps: napari takes a tenth of a second to remove a layer."""
        self.viewer.layers.events.inserted.disconnect(self._on_inserted)
        if take_out:
            self._take_others_out()
            for layer in self._copies:
                if layer in self.viewer.layers:
                    self.viewer.layers.remove(layer)
        for layer in list(self._guests):
            self.detach(layer)
        self.scribbles.close(take_out=take_out)
        for layer in self.images:
            if take_out and layer in self.viewer.layers:
                yield
                self.viewer.layers.remove(layer)


class Scribbles:
    """Annotations shown and edited in a viewer.

    Parameters
    ----------
    viewer
        Two layers are added on top: dense regions, and scribbles, which become active.
    annotations
        Of the slide, which is shown at scale 1: world coordinates are its level-0 pixels.
    name
        Of the scribble layer; the dense regions have "dense" for "scribbles".
    add
        Add the layers now; False leaves it to `add`.

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
        add: bool = True,
    ) -> None:
        self.viewer, self.annotations, self.closed = viewer, annotations, False
        require_editing()
        psygnal.qt.start_emitting_from_queue(SIGNAL_INTERVAL_MS)
        self.layer = layer = ScribbleLayer(annotations, name=name)
        self.dense_layer = DenseRegionLayer(
            annotations, name=name.replace("scribbles", "dense", 1), rest_class=lambda: int(layer.selected_label)
        )
        self._camera = viewer.scene.camera
        self._view = tuple(self._camera.center), self._camera.zoom
        self._camera.events.zoom.connect(self._on_camera)
        self._camera.events.center.connect(self._on_camera)
        viewer.dims.events.ndisplay.connect(self._on_dims)
        viewer.dims.events.order.connect(self._on_dims)
        viewer.layers.events.removed.connect(self._on_removed)
        self._on_camera()
        self._on_dims()
        if add:
            for _ in self.add():
                pass

    def add(self) -> Iterator[None]:
        """Add the layers to the viewer, one per step."""
        self.viewer.add_layer(self.dense_layer)
        yield
        if not self.closed:
            self.viewer.add_layer(self.layer)
            self.viewer.layers.selection.active = self.layer
            hide_cursor_box(self.viewer)

    def _on_camera(self, event: Any = None) -> None:
        if self.viewer.dims.ndisplay != 2:
            return
        self._view = tuple(self._camera.center), self._camera.zoom
        self.layer.zoom = self._camera.zoom
        self.dense_layer.zoom = self._camera.zoom

    def _on_dims(self, event: Any = None) -> None:
        """Return to two dimensions, rows down and columns to the right."""
        dims = self.viewer.dims
        if dims.ndisplay != 2:
            say("Slides cannot be annotated in 3-D; the view was switched back to 2-D.")
            view = self._view
            dims.ndisplay = 2
            QTimer.singleShot(0, lambda: self._look(view))  # napari resets the camera after this event
        if tuple(dims.order[-2:]) != (dims.ndim - 2, dims.ndim - 1):
            say("Slides cannot be annotated with transposed axes; the order was restored.")
            dims.order = tuple(range(dims.ndim))

    def _look(self, view: tuple[tuple[float, ...], float]) -> None:
        self._camera.center, self._camera.zoom = view

    def _on_removed(self, event: Any) -> None:
        pair = {self.layer, self.dense_layer}
        if event.value in pair:
            # napari may be removing all selected layers one by one, the other of the pair among them
            self.close(take_out=not pair & set(self.viewer.layers.selection) - {event.value})

    def _take_out(self) -> None:
        for layer in (self.layer, self.dense_layer):
            if layer in self.viewer.layers:
                self.viewer.layers.remove(layer)

    def close(self, *, take_out: bool = True) -> None:
        """Disconnect; with `take_out`, remove both layers. Safe to call twice."""
        if self.closed:
            return
        self.closed = True
        self._camera.events.zoom.disconnect(self._on_camera)
        self._camera.events.center.disconnect(self._on_camera)
        self.viewer.dims.events.ndisplay.disconnect(self._on_dims)
        self.viewer.dims.events.order.disconnect(self._on_dims)
        self.viewer.layers.events.removed.disconnect(self._on_removed)
        # drawing napari's brush circle after its layer was removed ends in a segmentation fault on software GL
        self.layer.mode = "pan_zoom"
        for layer in (self.layer, self.dense_layer):
            layer.detach()
        if take_out:
            self._take_out()
