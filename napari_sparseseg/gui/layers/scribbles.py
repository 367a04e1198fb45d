"""The layer that scribbles are drawn on: napari's Labels, multiscale and editable, over `Annotations`.

All tools of napari (buttons, shortcuts, cursors, right-click encircling) end in the methods overridden here, which
write to `Annotations`; there, a drag is one stroke: one undo step, one row in the file.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from napari.layers import Labels
from napari.layers.labels._labels_mouse_bindings import draw, mouse_event_to_labels_coordinate

from napari_sparseseg import save_annotations as save_file
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.geometry import Box
from napari_sparseseg.gui.layers.lazy_labels import PIXEL_CENTRE, LazyLabels
from napari_sparseseg.gui.layers.outlines import Preview
from napari_sparseseg.gui.say import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from os import PathLike

    from numpy.typing import NDArray

    from napari_sparseseg.annotations import Annotations
    from napari_sparseseg.annotations.packing import Keep
    from napari_sparseseg.gui.layers.tools import Tool
    from napari_sparseseg.session.snapping import Grown


class Steps(Protocol):
    """Something with undo and redo."""

    def undo(self) -> object:
        """Take the last step back."""

    def redo(self) -> object:
        """Make the step again that was undone last."""


DEFAULT_BRUSH_PX = 20
CLASS_KEYS = range(1, 10)


def pick(layer: ScribbleLayer, event: Any) -> None:
    """Pick the label under the cursor; napari's own picker cannot read pyramids."""
    layer.selected_label = layer.label_at(layer.world_to_data(event.position)) or 0


def paint(layer: ScribbleLayer, event: Any) -> Iterator[None]:
    """Draw as napari does; with a tool, Shift takes away."""
    layer.takes_away = layer.tool is not None and "Shift" in event.modifiers
    yield from draw_to_release(layer, event)


def draw_to_release(layer: ScribbleLayer, event: Any) -> Iterator[None]:
    """Napari's `draw`, up to where the mouse is released.

    napari holds a mouse move back that comes within 5 ms of another. Where a busy window gets a stroke's events all at
    once, the release overtakes the last move, and the end of the stroke would be missing, or all of it.
    """
    label = 0 if str(layer.mode) == "erase" else layer.selected_label
    last = mouse_event_to_labels_coordinate(layer, event)
    for _ in draw(layer, event):
        yield
        at = mouse_event_to_labels_coordinate(layer, event)
        if event.type == "mouse_release" and at is not None and last is not None and not np.array_equal(at, last):
            layer._draw(label, last, at)
        last = at


class ScreenBrushSize(type(Labels.brush_size_on_mouse_move)):  # type: ignore[misc]
    """Alt + mouse move changes the brush size in screen pixels; napari divides by the zoom."""

    def __call__(self, layer: Labels, event: Any) -> None:
        super().__call__(layer, SimpleNamespace(pos=event.pos, modifiers=event.modifiers, camera_zoom=1.0))


class ScribbleLayer(LazyLabels):
    """Scribbles of one slide, drawn at any zoom.

    ``brush_size`` (slider, ``[`` and ``]``, Alt + mouse) is in **screen pixels** at every zoom; `zoom` must follow the
    camera, which `Scribbles` does. Fill is limited to the visible part. Keys 1-9 select the class with that id instead
    of napari's second set of mode keys (the letters still work); G is the polygon tool.

    Parameters
    ----------
    annotations
        Shown and edited; other changes of them are shown at once.
    name, opacity
        As in napari.
    """

    _drag_modes: ClassVar[dict[Any, Any]] = {
        mode: {"pick": pick, "paint": paint, "erase": draw_to_release}.get(str(mode), action)
        for mode, action in Labels._drag_modes.items()
    }
    _move_modes: ClassVar[dict[Any, Any]] = {
        mode: ScreenBrushSize() if str(mode) in ("paint", "erase") else action
        for mode, action in Labels._move_modes.items()
    }

    def __init__(self, annotations: Annotations, *, name: str = "scribbles", opacity: float = 0.7) -> None:
        self._annotations = annotations
        self.history: Steps = annotations
        """What `undo` and `redo` walk; that of a session has the changes of the class table in all slides too."""
        self.locked_classes: frozenset[int] = frozenset()  # class ids that no tool draws over or erases
        self._zoom = 1.0
        self._depth = 0  # of nested groups of edits; the stroke ends with the outermost
        self._stroke = False  # a stroke is open in the annotations
        self._refused = False  # this stroke was refused; no more messages until it ends
        self._growing = False  # the pen is lifted, and the stroke waits for its region
        self.tool: Tool | None = None  # where it is set, the brush takes more than it covers
        self.takes_away = False  # this drag erases what the tool takes
        self._label = 0  # of this drag
        super().__init__(annotations.levels(), annotations.classes, name=name, opacity=opacity)
        self.brush_size = DEFAULT_BRUSH_PX
        self.preview = Preview(self)
        for number in CLASS_KEYS:
            self.bind_key(str(number), lambda layer, n=number: layer.select_class(n), overwrite=True)
        self.bind_key("G", lambda layer: setattr(layer, "mode", "polygon"), overwrite=True)
        # napari's next unused label, which it cannot find in a pyramid
        self.bind_key("M", lambda _: say("Classes are added in the class table."), overwrite=True)
        annotations.changed.connect(self._on_changed, thread="main")
        annotations.classes_changed.connect(self._on_classes_changed, thread="main")

    @property
    def annotations(self) -> Annotations:
        """The annotations shown and edited."""
        return self._annotations

    def detach(self) -> None:
        """Disconnect from the annotations; an open stroke is committed."""
        self._close_stroke()
        self.finish_stroke()
        self._annotations.changed.disconnect(self._on_changed, missing_ok=True)
        self._annotations.classes_changed.disconnect(self._on_classes_changed, missing_ok=True)

    def _on_changed(self, version: int, box: Box) -> None:
        self.update_box(Box(*box))

    def _on_classes_changed(self) -> None:
        self.show_classes(self._annotations.classes)

    def _reset_editable(self) -> None:
        self.editable = True

    def select_class(self, class_id: int) -> bool:
        """Draw with that class; this switches from the eraser to the brush. False when there is no such class."""
        if class_id not in {c.id for c in self._annotations.classes}:
            say(f"There is no class {class_id}.")
            return False
        self.selected_label = class_id
        if str(self.mode) == "erase":  # type: ignore[has-type]  # napari's property has no types
            self.mode = "paint"
        return True

    def as_layer_data_tuple(self) -> tuple[Any, dict[str, Any], str]:
        """For writers and for duplication; the data contain the annotations, for `write_scribbles`."""
        levels, state, kind = super().as_layer_data_tuple()
        levels.annotations = self._annotations
        return levels, state, kind

    def save(self, path: str | PathLike[str], plugin: str | None = None) -> list[str]:
        """Save by suffix: ``.sparseseg`` for everything, ``.geojson`` for QuPath; images by napari's writers.

        Raises
        ------
        AnnotationError
            For an image, when level 0 is too large for one.
        """
        if plugin is None and Path(path).suffix.lower() in SUFFIXES:
            return save_annotations(self._annotations, path, self.metadata)
        written: list[str] = super().save(str(path), plugin)
        return written

    # Brush

    @property
    def zoom(self) -> float:
        """Screen pixels per level-0 pixel."""
        return self._zoom

    @zoom.setter
    def zoom(self, zoom: float) -> None:
        self._zoom = zoom
        self.cursor_size = self._calculate_cursor_size()

    @property
    def brush_diameter(self) -> float:
        """Current brush diameter in level-0 pixels."""
        return float(self.brush_size / self._zoom)

    def _calculate_cursor_size(self) -> float:  # type: ignore[override,unused-ignore]
        # napari multiplies by the zoom and truncates; without the factor, 20 may become 19
        return self.brush_diameter * (1 + 1e-9)

    # Strokes

    def _replaceable(self, label: int) -> Keep:
        """Labels that drawing `label` may replace: all but locked classes; with "preserve labels" only one."""
        if not self.preserve_labels:
            return frozenset(range(256)) - self.locked_classes if self.locked_classes else None
        kept = 0
        if not label:
            kept = self.selected_label if self._prev_selected_label is None else self._prev_selected_label
        return frozenset() if kept in self.locked_classes else int(kept)

    def _open_stroke(self, label: int, kind: str) -> bool:
        if self._stroke or self._refused:
            return self._stroke
        self.finish_stroke()
        try:
            self._annotations.begin_stroke(int(label), kind=kind, keep=self._replaceable(label))
        except AnnotationError as error:
            self._refused = True
            say(str(error))
            return False
        self._stroke = True
        return True

    def _close_stroke(self, *, abort: bool = False) -> None:
        self._depth, self._refused = 0, False
        tool = self.tool
        if not self._stroke and (tool is None or tool.paints):
            return
        drawn, self._stroke = self._stroke, False
        if abort and tool is not None:
            tool.forget()
        if abort and drawn:
            self._annotations.abort_stroke()
            self.refresh(extent=False)
        if abort:
            return
        self._growing = drawn and tool is not None and tool.paints  # before `look`, which may find it at once
        if (tool is None or not tool.look(self._label, self.finish_stroke)) and drawn:
            self._growing = False
            self._commit()

    def _commit(self) -> None:
        self._annotations.commit_stroke()
        self.events.paint(value=[])

    def finish_stroke(self, grown: Grown | None = None) -> None:
        """Commit a stroke that waits for its region, with the region where it was found in time."""
        if not self._growing:
            return
        self._growing = False
        if self.tool is not None:
            self.tool.forget()
        if grown is not None:
            self._queue(self._annotations.paint_mask(*grown))
        self._commit()
        self._partial_labels_refresh()

    @contextmanager
    def block_history(self) -> Iterator[None]:
        """Make all edits inside one stroke; napari wraps each drag in this."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth <= 0:
                self._close_stroke()

    def _begin_stroke(self) -> None:
        self._depth += 1

    def _commit_stroke(self) -> None:
        self._close_stroke()

    def _abort_stroke(self) -> None:
        self._close_stroke(abort=True)

    def undo(self) -> None:
        """Undo the last step; nothing while a stroke is being drawn."""
        self.finish_stroke()
        if not self._stroke:
            _warned(self.history.undo)

    def redo(self) -> None:
        """Redo what was undone last."""
        self.finish_stroke()
        if not self._stroke:
            _warned(self.history.redo)

    # Tools

    def _draw(self, new_label: int, last_cursor_coord: Any, coordinates: Any) -> None:
        if coordinates is None:
            return
        if str(self.mode) == "fill":
            self.fill(coordinates, new_label)
            return
        start = coordinates if last_cursor_coord is None else last_cursor_coord
        self._brush(start, coordinates, new_label)
        self._partial_labels_refresh()

    def pen(self, points: Sequence[Sequence[float]]) -> tuple[NDArray[np.float64], float]:
        """Where the brush is in the annotations at data coordinates: (N, 2) level-0 (y, x), and its radius."""
        radius = self.brush_diameter / 2
        found = np.array([point[-2:] for point in points], dtype=float)
        if radius < 1:  # magnified: paint the pixel under the cursor
            found, radius = np.round(found), max(radius, 0.5)
        return found + PIXEL_CENTRE, radius

    def _brush(self, start: Sequence[float], end: Sequence[float], label: int) -> None:
        """Paint one capsule per mouse move; dabs would be hundreds for a thin brush on a whole slide."""
        self._label = label = 0 if self.takes_away else int(label)
        tool = None if self.tool is not None and self.tool.along and not label else self.tool
        self.preview.outlined = None
        if (tool is None or tool.paints) and not self._open_stroke(
            label, "fill" if tool is not None else "brush" if label else "erase"
        ):
            return
        ends, radius = self.pen([start, end])
        if tool is not None:
            for grown in tool.follow(ends[0], ends[1], radius):
                self._queue(self._annotations.paint_mask(*grown))
        if tool is None or tool.along:
            self._queue(self._annotations.extend_stroke(tuple(ends[0]), tuple(ends[1]), radius))

    def _queue(self, box: Box | None) -> None:
        if box is not None:
            self._pending = Box(*box) if self._pending is None else self._pending.union(Box(*box))

    def paint(self, coord: Sequence[float], new_label: int, refresh: bool = True) -> None:
        """Paint one dab at data coordinate `coord`."""
        with self.block_history():
            self._brush(coord, coord, new_label)
        if refresh:
            self._partial_labels_refresh()

    def fill(self, coord: Sequence[float], new_label: int, refresh: bool = True) -> None:
        """Relabel the region connected to `coord` (or all of its label) within the visible part."""
        from skimage.segmentation import flood

        tile = self.tile
        seed = None if tile is None else tile.pixel(coord[-2:])
        if tile is None or seed is None:
            return
        raw = self._slice.image.raw
        old, keep = int(raw[seed]), self._replaceable(new_label)
        if old == new_label or not (old in keep if isinstance(keep, frozenset) else keep in (None, old)):
            return
        mask = flood(raw, seed, connectivity=1) if self.contiguous else raw == old
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        y, x = int(rows[0]), int(columns[0])
        mask = mask[y : rows[-1] + 1, x : columns[-1] + 1]
        with self.block_history():
            if self._open_stroke(new_label, "fill"):
                self._queue(self._annotations.paint_mask(tile.level, tile.box.y + y, tile.box.x + x, mask))
                height, width = (-(-side >> tile.level) for side in self._annotations.shape)
                on_slide = mask[: max(0, height - tile.box.y - y), : max(0, width - tile.box.x - x)]
                self._say_filled(old, new_label, int(on_slide.sum()) << 2 * tile.level)
        if refresh:
            self._partial_labels_refresh()

    def _say_filled(self, old: int, new: int, pixels: int) -> None:
        """Name what a fill did: one click may label all that is on screen."""
        names = {c.id: c.name for c in self._annotations.classes}
        mpp = getattr(self.metadata.get("slide"), "mpp", None)
        size = f"{pixels:,} px" if mpp is None else f"{pixels * mpp[0] * mpp[1] * 1e-6:.3g} mm²"
        before = f"from {names.get(old, old)}" if old else "that was not labelled"
        after = f"is {names.get(new, new)} now" if new else "is not labelled any more"
        say(f"Fill: {size} {before} {after}. Ctrl+Z undoes it.")

    def paint_polygon(self, points: Any, new_label: int) -> None:
        """Fill a polygon whose corners are the pixels with these (y, x) indices, as napari does."""
        corners = np.asarray(points, dtype=float)[:, -2:].astype(int)
        with self.block_history():
            if self._open_stroke(new_label, "polygon"):
                self._queue(self._annotations.extend_polygon(corners + PIXEL_CENTRE))
        self._partial_labels_refresh()

    def data_setitem(self, indices: Any, value: Any, refresh: bool = True) -> None:
        """Set single level-0 pixels: (rows, columns) to one label or to one each; one stroke per label."""
        rows, columns = (np.asarray(i).ravel() for i in indices)
        labels = np.broadcast_to(np.asarray(value), rows.shape)
        for label in np.unique(labels):
            ys, xs = rows[labels == label], columns[labels == label]
            y, x = int(ys.min()), int(xs.min())
            mask = np.zeros((int(ys.max()) - y + 1, int(xs.max()) - x + 1), dtype=bool)
            mask[ys - y, xs - x] = True
            with self.block_history():
                if self._open_stroke(int(label), "fill"):
                    self._queue(self._annotations.paint_mask(0, y, x, mask))
        if refresh:
            self._partial_labels_refresh()


def _warned(step: Callable[[], object]) -> None:
    """Make a step; one that is refused is explained."""
    try:
        step()
    except AnnotationError as error:
        say(str(error))


SUFFIXES = (".sparseseg", ".geojson", ".xml")
"""Saved by this plugin, as `writers` in napari.yaml says; images are left to napari's writers."""


def save_annotations(annotations: Annotations, path: str | PathLike[str], metadata: Mapping[str, Any]) -> list[str]:
    """Save by suffix and return what was written; an unknown suffix is an `AnnotationError`.

    The slide in the layer's metadata says where the coordinates of other programs begin.
    """
    save_file(annotations, path, slide=metadata.get("slide"), overwrite=True)  # napari's dialog has asked
    return [str(Path(path))]


def write_scribbles(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Writer of the plugin for one labels layer; others than scribbles are left to napari (empty list)."""
    annotations = getattr(data, "annotations", None)
    return [] if annotations is None else save_annotations(annotations, path, meta.get("metadata", {}))
