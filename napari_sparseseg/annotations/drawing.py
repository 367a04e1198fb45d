"""The pen: strokes as they are drawn, and polygons."""

from __future__ import annotations

import itertools
import math
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from napari_sparseseg.annotations.history import Edit
from napari_sparseseg.annotations.packing import CHUNK
from napari_sparseseg.annotations.raster import MIN_RADIUS, Polygon, as_points, capsule_mask, write_level
from napari_sparseseg.annotations.state import State
from napari_sparseseg.annotations.strokes import KINDS, Stroke
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    from napari_sparseseg.annotations.packing import Keep
    from napari_sparseseg.annotations.quadtree import LabelQuadtree
    from napari_sparseseg.config import ClassDef


LONGEST_PX = 256
"""Pixels of its level that a brush moves at once."""


@dataclass(slots=True)
class _Pen:
    """The stroke being drawn."""

    kind: str
    class_id: int
    keep: Keep
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


class Shape(NamedTuple):
    """Something to draw: a ``polygon``, a ``dense`` region or a ``brush`` stroke; see `Stroke` for the rest."""

    kind: str
    class_id: int
    rings: Sequence[NDArray[np.float64]]
    radius: float = 0.0


class Drawing(State):
    """Annotations with a pen: one stroke at a time, begun, extended, and committed or aborted."""

    def __init__(self, shape: tuple[int, int], classes: Iterable[ClassDef | tuple[str, str] | str]) -> None:
        super().__init__(shape, classes)
        self._pen: _Pen | None = None

    def begin_stroke(self, class_id: int, kind: str = "brush", keep: Keep = None) -> None:
        """Put the pen down.

        Parameters
        ----------
        class_id
            What to draw; 0 erases.
        kind
            ``brush``, ``erase``, ``polygon`` or ``fill``.
        keep
            Where given, only level-0 pixels with this label (or one of these) are written; 0 spares what is labelled.

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
        return self._extend(as_points([p_yx, q_yx]).tolist(), radius, live=True)

    def _extend(self, ends: list[list[float]], radius: float, *, live: bool) -> Box | None:
        p, q = ends
        if not 0 < radius <= 2 * max(self.shape):
            raise AnnotationError(f"a brush radius must be between 0 and twice the slide's size, not {radius}.")
        with self._lock:
            pen = self._held()
            if not pen.rings or pen.points[-1] != tuple(p):
                pen.points.append((p[0], p[1]))
                pen.rings.append(1)
            if q != p:
                pen.points.append((q[0], q[1]))
                pen.rings[-1] += 1
            pen.radius = max(pen.radius, radius)
            box = stamp(self.quadtree, ends, radius, pen.class_id, pen.keep, live=live)
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
            box = fill_rings(self.quadtree, rings, pen.class_id, pen.keep, live=True)
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
        self._tell(edit)
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

    # ------------------------------------------------------------------ much in one step
    @contextmanager
    def painting(self) -> Iterator[Callable[[int, int, int, NDArray[np.bool_], int], None]]:
        """Paint masks as one step of the history: yields ``paint(level, y0, x0, mask, class_id)``, one stroke each."""
        strokes: list[Stroke] = []

        def paint(level: int, y0: int, x0: int, mask: NDArray[np.bool_], class_id: int) -> None:
            self._require_class(class_id)
            box = self.quadtree.paint_mask(level, y0, x0, mask, class_id, live=False)
            if box is not None:
                pen = _Pen("fill", class_id, None, box=box)
                strokes.append(pen.stroke(self._take_id()))

        with self._lock:
            self.quadtree.begin()
            try:
                yield paint
            except BaseException:
                self.quadtree.abort()
                raise
            change = self.quadtree.commit()
            if change is None:
                return
            edit = Edit(around(stroke.box for stroke in strokes), scribbles=change, added=tuple(strokes))
            self._made(edit)
        self._tell(edit)

    def draw(self, shapes: Sequence[Shape], progress: Callable[[int, int], None] | None = None) -> int:
        """Draw shapes in order as one step of the history.

        Parameters
        ----------
        shapes
            Later ones are drawn over earlier ones.
        progress
            Called now and then with (drawn, all).

        Returns
        -------
        int
            How many of them lie on the slide.
        """
        for class_id in {shape.class_id for shape in shapes}:
            self._require_class(class_id, erase=True)
        with self._lock:
            self.quadtree.begin()
            self.dense_tree.begin()
            try:
                strokes = self._draw_all(shapes, progress)
            except BaseException:
                self.quadtree.abort()
                self.dense_tree.abort()
                raise
            changes = self.quadtree.commit(), self.dense_tree.commit()
            if not strokes:
                return 0
            edit = Edit(around(stroke.box for stroke in strokes), *changes, added=tuple(strokes))
            self._made(edit)
        self._tell(edit)
        return len(strokes)

    def _draw_all(self, shapes: Sequence[Shape], progress: Callable[[int, int], None] | None) -> list[Stroke]:
        strokes = []
        small: list[tuple[int, int, NDArray[np.bool_], int]] = []
        clip = Box(0, 0, *self.shape)
        for n, shape in enumerate(shapes):
            if progress is not None and n % 500 == 0:
                progress(n, len(shapes))
            polygon = None if shape.kind == "brush" else Polygon(shape.rings)
            if polygon is not None and shape.kind == "polygon" and max(polygon.box.height, polygon.box.width) <= CHUNK:
                # Cells by the thousand: gathered, so that each chunk is opened once.
                box = polygon.box.intersection(clip)
                small.append((box.y, box.x, polygon.mask(box), shape.class_id))
            else:
                self.quadtree.paint_many(small)
                small.clear()
                tree = self.dense_tree if shape.kind == "dense" else self.quadtree
                box = _paint(tree, shape, polygon) or Box(0, 0, 0, 0)
            if box.area:
                stroke = Stroke.of_rings(self._take_id(), shape.kind, shape.class_id, shape.rings, box)
                strokes.append(replace(stroke, radius=shape.radius) if shape.radius else stroke)
        self.quadtree.paint_many(small)
        if progress is not None:
            progress(len(shapes), len(shapes))
        return strokes


def _paint(tree: LabelQuadtree, shape: Shape, polygon: Polygon | None) -> Box | None:
    if polygon is None:
        return _brush(tree, shape.rings, shape.radius, shape.class_id)
    return _fill_polygon(tree, polygon, shape.class_id)


def around(boxes: Iterable[Box]) -> Box:
    """The smallest box around one or more boxes."""
    return reduce(Box.union, boxes)


def _brush(tree: LabelQuadtree, runs: Sequence[NDArray[np.float64]], radius: float, label: int) -> Box | None:
    box: Box | None = None
    for points in (run.tolist() for run in runs):
        for ends in zip(points, points[1:] or points, strict=False):
            piece = stamp(tree, ends, radius, label)
            if piece is not None:
                box = piece if box is None else box.union(piece)
    return box


def stamp(
    tree: LabelQuadtree,
    ends: Sequence[Sequence[float]],
    radius: float,
    label: int,
    keep: Keep = None,
    *,
    live: bool = False,
) -> Box | None:
    """Move a round brush from one point to another in the open transaction of `tree`; what may have changed."""
    level = write_level(radius, tree.top_level)
    scale = 1 << level
    p, q = (np.asarray(end, np.float64) / scale for end in ends)
    # A long thin move in pieces: the box around a slanting one is nearly all empty.
    pieces = max(1, math.ceil(float(np.abs(q - p).max()) / LONGEST_PX))
    steps = [p + (q - p) * (n / pieces) for n in range(pieces + 1)]
    boxes = []
    for start, stop in itertools.pairwise(steps):
        area, mask = capsule_mask(
            start.tolist(), stop.tolist(), max(radius / scale, MIN_RADIUS), Box(0, 0, *tree.valid(level))
        )
        boxes.append(tree.paint_mask(level, area.y, area.x, mask, label, keep, live=live))
    touched = [box for box in boxes if box is not None]
    return around(touched) if touched else None


def fill_rings(
    tree: LabelQuadtree,
    rings: Sequence[NDArray[np.float64]],
    label: int,
    keep: Keep = None,
    *,
    live: bool = False,
) -> Box | None:
    """Fill a polygon in the open transaction of `tree`; what may have changed."""
    return _fill_polygon(tree, Polygon(rings), label, keep, live=live)


def _fill_polygon(
    tree: LabelQuadtree, polygon: Polygon, label: int, keep: Keep = None, *, live: bool = False
) -> Box | None:
    box: Box | None = None
    for level, y0, x0, mask in polygon.pieces(Box(0, 0, *tree.shape), tree.top_level):
        piece = tree.paint_mask(level, y0, x0, mask, label, keep, live=live)
        if piece is not None:
            box = piece if box is None else box.union(piece)
    return box
