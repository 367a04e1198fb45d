"""`Annotations`: what scripts, the panel and the session draw on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_sparseseg.annotations.backed import FileBacked
from napari_sparseseg.annotations.both import read_both
from napari_sparseseg.annotations.raster import as_points
from napari_sparseseg.config import DEFAULT_CLASSES, ClassDef
from napari_sparseseg.errors import AnnotationError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import ArrayLike

    from napari_sparseseg.annotations.packing import Labels
    from napari_sparseseg.geometry import Box


class Annotations(FileBacked):
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
                self._extend([p, q], radius, live=False)
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

    # ------------------------------------------------------------------ exchange
    def to_geojson(self, path: str | os.PathLike[str]) -> None:
        """Write the labels as polygons that QuPath opens, exact to the level-0 pixel; see `exchange.write_geojson`."""
        from napari_sparseseg.io import write_geojson

        write_geojson(self, path)

    @classmethod
    def from_geojson(
        cls,
        path: str | os.PathLike[str],
        shape: tuple[int, int],
        classes: Iterable[ClassDef | tuple[str, str] | str] | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Annotations:
        """Annotations from a GeoJSON file as QuPath writes it; see `exchange.read_geojson`."""
        from napari_sparseseg.io import read_geojson

        return read_geojson(path, shape, classes, progress=progress)
