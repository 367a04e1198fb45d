"""The state behind `Annotations`: two quadtrees, strokes, classes, versions, history, and the stroke under the pen."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from psygnal import Signal

from napari_sparseseg.annotations.history import Edit, History, without_classes
from napari_sparseseg.annotations.quadtree import LabelQuadtree
from napari_sparseseg.annotations.raster import MIN_RADIUS, Polygon, as_points, capsule_mask, write_level
from napari_sparseseg.annotations.snapshot import Snapshot
from napari_sparseseg.annotations.strokes import KINDS, DenseRegion, Stroke
from napari_sparseseg.config import ClassDef, make_classes
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from napari_sparseseg.annotations.packing import Labels


class Keeper(Protocol):
    """Where edits are kept on disk; `Drawing` tells it of each before it tells anyone else."""

    def keep(self, drawing: Drawing, edit: Edit, *, revert: bool) -> None:
        """Write an edit that was made or taken back; durable on return."""

    def keep_classes(self, drawing: Drawing) -> None:
        """Write the class table."""


@dataclass(slots=True)
class _Pen:
    """The stroke being drawn."""

    kind: str
    class_id: int
    keep: int | None
    radius: float = 0.0
    points: list[tuple[float, float]] = field(default_factory=list)
    rings: list[int] = field(default_factory=list)
    box: Box | None = None

    def touch(self, box: Box | None) -> None:
        if box is not None:
            self.box = box if self.box is None else self.box.union(box)

    def stroke(self, number: int) -> Stroke:
        box = self.box or Box(0, 0, 0, 0)
        kind, points, rings = self.kind, self.points, self.rings
        if not points:
            kind, rings = "fill", []
            points = [(box.y, box.x), (box.y, box.x1), (box.y1, box.x1), (box.y1, box.x)]
        runs = tuple(rings) if len(rings) > 1 else ()
        return Stroke(number, kind, self.class_id, self.radius, np.array(points, np.float32), box, runs)


class Drawing:
    """Base of `Annotations`: everything but commands in one call, class editing and files."""

    changed = Signal(int, Box)
    classes_changed = Signal()

    def __init__(self, shape: tuple[int, int], classes: Iterable[ClassDef | tuple[str, str] | str]) -> None:
        self._classes = make_classes(classes)
        self.quadtree = LabelQuadtree(shape)
        self.shape = self.quadtree.shape
        self.dense_tree = LabelQuadtree(shape)
        self._strokes: dict[int, Stroke] = {}
        self._regions: dict[int, DenseRegion] = {}
        self._next_id = 1
        self._spent_class_ids: set[int] = set()
        self._version = 0
        self._history = History()
        self._pen: _Pen | None = None
        self._snapshot: Snapshot | None = None
        self._keeper: Keeper | None = None
        self._lock = threading.RLock()

    # ------------------------------------------------------------------ state
    @property
    def version(self) -> int:
        """Counts strokes, undos, redos and imports."""
        return self._version

    @property
    def classes(self) -> tuple[ClassDef, ...]:
        """The class table, in the order in which it is shown."""
        return self._classes

    @property
    def strokes(self) -> tuple[Stroke, ...]:
        """What was drawn, in order, without what was undone."""
        return self.snapshot().strokes

    @property
    def dense_regions(self) -> tuple[DenseRegion, ...]:
        """Regions declared exhaustively labelled, in order."""
        return self.snapshot().dense_regions

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to take back."""
        return bool(self._history.done)

    @property
    def can_redo(self) -> bool:
        """Whether there is a step to make again."""
        return bool(self._history.undone)

    def snapshot(self) -> Snapshot:
        """The committed annotations, frozen; without the stroke being drawn. One object per version."""
        with self._lock:
            if self._snapshot is None:
                self._snapshot = Snapshot(
                    self._version,
                    self._classes,
                    (self.quadtree.freeze(), self.dense_tree.freeze()),
                    tuple(self._strokes.values()),
                    tuple(self._regions.values()),
                    self.quadtree.counts(),
                )
            return self._snapshot

    # ------------------------------------------------------------------ the stroke under the pen
    def begin_stroke(self, class_id: int, kind: str = "brush", keep: int | None = None) -> None:
        """Put the pen down.

        Parameters
        ----------
        class_id
            What to draw; 0 erases.
        kind
            ``brush``, ``erase``, ``polygon`` or ``fill``.
        keep
            Where given, only level-0 pixels with this label are written: 0 preserves what is labelled.

        Raises
        ------
        AnnotationError
            For an unknown class or kind, or when a stroke is open already.
        """
        with self._lock:
            self._require_class(class_id, erase=True)
            if kind not in KINDS[:4]:
                raise AnnotationError(f"a stroke cannot be of kind {kind!r}; use one of {', '.join(KINDS[:4])}.")
            self.quadtree.begin()
            self._pen = _Pen("erase" if class_id == 0 and kind == "brush" else kind, class_id, keep)

    def extend_stroke(self, p_yx: Sequence[float], q_yx: Sequence[float], radius: float) -> Box | None:
        """Move the pen from `p_yx` to `q_yx` with a round brush; written at the level that suits `radius`.

        Points are (y, x) in level-0 pixels, pixel (i, j) covering [i, i + 1) x [j, j + 1); so is `radius`.

        Returns
        -------
        Box
            What may have changed, level 0; None where the brush missed the slide.
        """
        p, q = as_points([p_yx, q_yx]).tolist()
        if not 0 < radius <= 2 * max(self.shape):
            raise AnnotationError(f"a brush radius must be between 0 and twice the slide's size, not {radius}.")
        with self._lock:
            pen = self._held()
            tree = self.quadtree
            level = write_level(radius, tree.top_level)
            if not pen.rings or pen.points[-1] != tuple(p):
                pen.points.append((p[0], p[1]))
                pen.rings.append(1)
            if q != p:
                pen.points.append((q[0], q[1]))
                pen.rings[-1] += 1
            pen.radius = max(pen.radius, radius)
            scale = 1 << level
            reach = max(radius / scale, MIN_RADIUS)
            ends = [[c / scale for c in end] for end in (p, q)]
            area, mask = capsule_mask(ends[0], ends[1], reach, Box(0, 0, *tree.valid(level)))
            box = tree.paint_mask(level, area.y, area.x, mask, pen.class_id, pen.keep)
            pen.touch(box)
            return box

    def extend_polygon(self, *rings_yx: ArrayLike) -> Box | None:
        """Fill a polygon, even-odd over its rings, in the open stroke; exact at level 0.

        Points (N, 2) as in `extend_stroke`. Returns the box that may have changed, or None.
        """
        rings = [as_points(ring, least=3) for ring in rings_yx]
        with self._lock:
            pen = self._held()
            for ring in rings:
                pen.points.extend((y, x) for y, x in ring.tolist())
                pen.rings.append(len(ring))
            box = self._fill(self.quadtree, rings, pen.class_id, pen.keep, live=True)
            pen.touch(box)
            return box

    def paint_mask(self, level: int, y0: int, x0: int, mask: NDArray[np.bool_]) -> Box | None:
        """Draw where `mask` (h, w) is true in the open stroke; `y0`, `x0` and the mask in pixels of `level`."""
        with self._lock:
            pen = self._held()
            box = self.quadtree.paint_mask(level, y0, x0, np.asarray(mask, bool), pen.class_id, pen.keep)
            pen.touch(box)
            return box

    def commit_stroke(self) -> Stroke | None:
        """Lift the pen: the stroke is now one step of the history and, with a file, durable on return.

        Returns
        -------
        Stroke
            None where nothing was changed.
        """
        with self._lock:
            pen = self._held()
            self._pen = None
            change = self.quadtree.commit()
            if change is None or pen.box is None:
                return None
            stroke = pen.stroke(self._take_id())
            edit = Edit(stroke.box, scribbles=change, added=(stroke,))
            self._made(edit)
        self.changed.emit(self._version, edit.box)
        return stroke

    def abort_stroke(self) -> None:
        """Lift the pen and forget the stroke."""
        with self._lock:
            self._held()
            self._pen = None
            self.quadtree.abort()

    @property
    def drawing(self) -> bool:
        """Whether a stroke is open."""
        return self._pen is not None

    def _held(self) -> _Pen:
        if self._pen is None:
            raise AnnotationError("no stroke is open; begin one first.")
        return self._pen

    # ------------------------------------------------------------------ history
    def undo(self) -> Box | None:
        """Take the last step back; the box that may look different, None where there is nothing to take back."""
        return self._step(self._history.done, self._history.undone, revert=True)

    def redo(self) -> Box | None:
        """Make the step again that was taken back last; as `undo`."""
        return self._step(self._history.undone, self._history.done, revert=False)

    def _step(self, source: list[Edit], target: list[Edit], *, revert: bool) -> Box | None:
        with self._lock:
            if self._pen is not None:
                raise AnnotationError("a stroke is open; commit or abort it before undo or redo.")
            if not source:
                return None
            edit = source.pop()
            target.append(edit)
            for tree, change in ((self.quadtree, edit.scribbles), (self.dense_tree, edit.dense)):
                if change is not None:
                    tree.apply(change, revert=revert)
            self._record(edit, revert=revert)
        if edit.dropped:
            self.classes_changed.emit()
        self.changed.emit(self._version, edit.box)
        return edit.box

    def _made(self, edit: Edit) -> None:
        """Take note of an edit that the quadtrees have committed already."""
        self._history.push(edit)
        self._record(edit, revert=False)

    def _record(self, edit: Edit, *, revert: bool) -> None:
        gone, come = (edit.added, edit.removed) if revert else (edit.removed, edit.added)
        for stroke in gone:
            self._shelf(stroke).pop(stroke.id, None)
        for stroke in come:
            self._shelf(stroke)[stroke.id] = stroke
        if edit.removed and revert:
            self._strokes = dict(sorted(self._strokes.items()))
            self._regions = dict(sorted(self._regions.items()))
        if edit.dropped:
            self._classes = without_classes(self._classes, edit.dropped, revert=revert)
        self._version += 1
        self._snapshot = None
        if self._keeper is not None:
            self._keeper.keep(self, edit, revert=revert)

    def _shelf(self, stroke: Stroke) -> dict[int, Stroke]:
        return self._regions if stroke.kind == "dense" else self._strokes

    # ------------------------------------------------------------------ helpers
    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _require_class(self, class_id: int, *, erase: bool = False) -> None:
        if class_id not in {c.id for c in self._classes} and not (erase and class_id == 0):
            known = ", ".join(f"{c.id} {c.name}" for c in self._classes) or "none"
            raise AnnotationError(f"there is no class {class_id}; the classes are: {known}.")

    def _fill(
        self, tree: LabelQuadtree, rings: list[NDArray[np.float64]], label: int, keep: int | None, *, live: bool = False
    ) -> Box | None:
        box: Box | None = None
        clip = Box(0, 0, *self.shape)
        for level, y0, x0, mask in Polygon(rings).pieces(clip, tree.top_level):
            piece = tree.paint_mask(level, y0, x0, mask, label, keep, live=live)
            if piece is not None:
                box = piece if box is None else box.union(piece)
        return box

    def _read_tree(self, box: Box, level: int) -> Labels:
        return self.quadtree.read(level, box.y, box.y1, box.x, box.x1)
