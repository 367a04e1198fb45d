"""`Annotations`: what scripts, the panel and the session draw on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari_sparseseg.annotations.both import read_both
from napari_sparseseg.annotations.drawing import Drawing
from napari_sparseseg.annotations.history import Edit
from napari_sparseseg.annotations.raster import as_points
from napari_sparseseg.annotations.strokes import Stroke
from napari_sparseseg.config import DEFAULT_CLASSES, ClassDef
from napari_sparseseg.errors import AnnotationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike

    from napari_sparseseg.annotations.packing import Labels
    from napari_sparseseg.geometry import Box


class Annotations(Drawing):
    """Sparse labels on a slide of any size, drawn with brush and polygon, with history and a file.

    Coordinates are (y, x) in level-0 pixels; pixel (i, j) covers [i, i + 1) x [j, j + 1), so its centre is
    (i + 0.5, j + 0.5). One thread draws at a time; any thread may take a `snapshot`, `read` or `counts`.

    Parameters
    ----------
    shape
        Slide (H, W) in level-0 pixels.
    classes
        Names, (name, colour) pairs or `ClassDef`s; ids count from 1.

    Attributes
    ----------
    changed
        Signal (version, box) after every commit, undo, redo and import; `box` is what may look different.
    classes_changed
        Signal without arguments.
    quadtree
        The scribbles as levels for display.
    dense_tree
        The rest classes of the dense regions, likewise.
    """

    def __init__(
        self, shape: tuple[int, int], classes: Iterable[ClassDef | tuple[str, str] | str] = DEFAULT_CLASSES
    ) -> None:
        super().__init__(shape, classes)

    # ------------------------------------------------------------------ drawing
    def paint(self, points_yx: ArrayLike, radius: float, class_id: int) -> None:
        """Draw a stroke: a round brush along `points_yx` (N, 2)."""
        self._require_class(class_id)
        self._brush(points_yx, radius, class_id)

    def erase(self, points_yx: ArrayLike, radius: float) -> None:
        """Rub out scribbles along `points_yx` (N, 2); dense regions stay."""
        self._brush(points_yx, radius, 0)

    def _brush(self, points_yx: ArrayLike, radius: float, class_id: int) -> None:
        points = as_points(points_yx).tolist()
        self.begin_stroke(class_id)
        try:
            for p, q in zip(points, points[1:] or points, strict=False):
                self.extend_stroke(p, q, radius)
        except AnnotationError:
            self.abort_stroke()
            raise
        self.commit_stroke()

    def fill_polygon(
        self,
        points_yx: ArrayLike,
        class_id: int,
        dense: bool = False,
        *,
        holes: Sequence[ArrayLike] = (),
    ) -> None:
        """Label every pixel whose centre lies inside a polygon (even-odd rule).

        Parameters
        ----------
        points_yx
            Corners (N, 2), N >= 3, closed or not.
        class_id
            The class; 0 erases. With `dense`, the rest class.
        dense
            Declare the polygon exhaustively labelled: pixels inside without a scribble are of class `class_id`. Kept
            apart from scribbles and listed in `dense_regions`.
        holes
            Rings cut out of it.
        """
        rings = [as_points(ring, least=3) for ring in (points_yx, *holes)]
        if dense:
            self._require_class(class_id)
            self._change_regions([(class_id, rings)], ())
            return
        self.begin_stroke(class_id, kind="polygon")
        try:
            self.extend_polygon(*rings)
        except AnnotationError:
            self.abort_stroke()
            raise
        self.commit_stroke()

    def remove_dense_region(self, region_id: int) -> None:
        """Undeclare the dense region with that `id`; scribbles in it stay."""
        with self._lock:
            region = self._regions.get(region_id)
        if region is None:
            raise AnnotationError(f"there is no dense region {region_id}.")
        self._change_regions([], (region,))

    def _change_regions(self, new: list[tuple[int, list[Any]]], removed: tuple[Stroke, ...]) -> None:
        with self._lock:
            self.dense_tree.begin()
            try:
                edit = self._draw_regions(new, removed)
            except AnnotationError:
                self.dense_tree.abort()
                raise
            if edit is None:
                return
            self._made(edit)
        self.changed.emit(self._version, edit.box)

    def _draw_regions(self, new: list[tuple[int, list[Any]]], removed: tuple[Stroke, ...]) -> Edit | None:
        """Draw regions into the open dense tree and commit it; None where nothing lies on the slide."""
        boxes = [region.box for region in removed]
        for region in removed:
            self._fill(self.dense_tree, region.parts(), 0, None)
        # What lay under a removed region, in the order of drawing.
        for region in self._regions.values():
            if region not in removed and any(region.box.intersection(gone.box).area for gone in removed):
                self._fill(self.dense_tree, region.parts(), region.class_id, None)
        added = []
        for class_id, rings in new:
            region = Stroke.polygon(self._take_id(), "dense", class_id, rings)
            box = self._fill(self.dense_tree, region.parts(), class_id, None)
            if box is not None:
                added.append(region.with_box(box))
                boxes.append(box)
        change = self.dense_tree.commit()
        if not boxes:
            return None
        box = boxes[0]
        for other in boxes[1:]:
            box = box.union(other)
        return Edit(box, dense=change, added=tuple(added), removed=removed)

    # ------------------------------------------------------------------ reading
    def read(self, box: Box | tuple[int, int, int, int], level: int = 0, *, scribbles_only: bool = False) -> Labels:
        """Labels (h, w) uint8 that cover a level-0 box, at `level`, a stroke being drawn included.

        Scribbles where there are any, else the rest class inside dense regions, else 0; 0 outside the slide. See
        `Snapshot.read`.
        """
        if not 0 <= level <= self.quadtree.top_level:
            raise AnnotationError(f"level {level} does not exist; levels are 0 to {self.quadtree.top_level}.")
        with self._lock:
            dense = self.dense_tree if self._regions and not scribbles_only else None
            return read_both(self.quadtree, dense, box, level)

    def counts(self) -> dict[int, int]:
        """Labelled level-0 pixels of every class, zeros too; as `read` shows them, committed strokes only."""
        return self.snapshot().counts()
