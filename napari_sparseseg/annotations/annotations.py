"""`Annotations`: sparse labels of a slide, with history and a file."""

from __future__ import annotations

from collections.abc import Sized
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from psygnal import Signal

from napari_sparseseg.annotations.autosave import Autosave, uninterrupted
from napari_sparseseg.annotations.changes import change_strokes
from napari_sparseseg.annotations.document import AnnotationDocument
from napari_sparseseg.annotations.editing import Editor, MaskPiece, Shape
from napari_sparseseg.annotations.merging import take_over
from napari_sparseseg.annotations.raster import Polygon, as_points
from napari_sparseseg.annotations.snapshot import read_labels
from napari_sparseseg.annotations.sqlite_file import DamagedFileError, read_stored, write_stored
from napari_sparseseg.config import DEFAULT_CLASSES, ClassDef, make_classes
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.files import OwnFiles
from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Self

    from numpy.typing import ArrayLike, NDArray

    from napari_sparseseg.annotations.document import Edit, History
    from napari_sparseseg.annotations.merging import Conflict
    from napari_sparseseg.annotations.packing import Keep, Labels
    from napari_sparseseg.annotations.snapshot import Snapshot
    from napari_sparseseg.annotations.stored import StoredAnnotations
    from napari_sparseseg.annotations.strokes import DenseRegion, Stroke

    Progress = Callable[[int, int], None]


class Annotations:
    """Sparse labels of a slide of any size, drawn with brush and polygon.

    Coordinates are (y, x) in level-0 pixels; pixel (i, j) covers [i, i + 1) x [j, j + 1), so its centre is
    (i + 0.5, j + 0.5). One thread draws at a time; any thread may call `snapshot`, `read` and `counts`.

    Drawing methods raise AnnotationError for invalid points, classes, ids and radii, for a stroke that is already or
    not yet begun, and, after the signals, where a bound file could not be written; the edit is then in memory only.

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
    saved_changed
        Signal (saved) when `saved` changes.

    Examples
    --------
    >>> a = Annotations((1000, 2000), classes=[("tumour", "#e6194b"), ("stroma", "#3cb44b")])
    >>> a.fill_polygon([(10, 10), (10, 30), (20, 30), (20, 10)], 1)
    >>> a.counts()
    {1: 200, 2: 0}
    >>> a.undo()
    Box(y=10, x=10, height=10, width=20)
    >>> a.version
    2
    """

    changed = Signal(int, Box)
    classes_changed = Signal()
    saved_changed = Signal(bool)

    def __init__(
        self, shape: tuple[int, int], classes: Iterable[ClassDef | tuple[str, str] | str] = DEFAULT_CLASSES
    ) -> None:
        self._document = AnnotationDocument(shape, classes)
        self._editor = Editor(self._document)
        self._file: Autosave | None = None
        self._saved_token = ""  # the state that was last saved or loaded
        self._tokens: set[str] = set()  # of all states that were saved or loaded
        self._exports = OwnFiles()
        self._reported_saved = False

    # ------------------------------------------------------------------ what there is
    @property
    def shape(self) -> tuple[int, int]:
        """Slide (H, W) in level-0 pixels."""
        return self._document.shape

    @property
    def version(self) -> int:
        """+1 per stroke, undo, redo and import."""
        return self._document.version

    @property
    def classes(self) -> tuple[ClassDef, ...]:
        """The class table, in the order in which it is shown."""
        return self._document.classes

    @property
    def strokes(self) -> tuple[Stroke, ...]:
        """Strokes in the order of drawing, without what was undone."""
        return self.snapshot().strokes

    @property
    def dense_regions(self) -> tuple[DenseRegion, ...]:
        """Regions declared exhaustively labelled, in the order of drawing."""
        return self.snapshot().dense_regions

    @property
    def others(self) -> tuple[dict[str, Any], ...]:
        """Objects that label nothing (no class, or QuPath's ``Region*``): GeoJSON features, level-0 (x, y)."""
        return self._document.others

    def set_others(self, features: Iterable[dict[str, Any]]) -> None:
        """Replace `others`, as one step of the history."""
        self._finish(lambda: self._editor.change_others(features))

    def snapshot(self) -> Snapshot:
        """The committed annotations, frozen, without a stroke being drawn. One object per version."""
        return self._document.snapshot()

    def read(self, box: Box | tuple[int, int, int, int], level: int = 0, *, scribbles_only: bool = False) -> Labels:
        """Labels (h, w) uint8 that cover a level-0 box, at `level`, a stroke being drawn included.

        Scribbles where there are any, else the class of a dense region, else 0; 0 outside the slide. See
        `Snapshot.read`.
        """
        document = self._document
        if not 0 <= level <= self.top_level:
            raise AnnotationError(f"level {level} does not exist; levels are 0 to {self.top_level}.")
        with document.lock:
            dense = document.dense if document.regions and not scribbles_only else None
            return read_labels(document.scribbles, dense, box, level)

    def counts(self) -> dict[int, int]:
        """Labelled level-0 pixels of every class, zeros too; as `read` shows them, committed strokes only."""
        return self.snapshot().counts()

    @property
    def top_level(self) -> int:
        """Index of the coarsest level."""
        return self._document.scribbles.top_level

    def levels(self) -> list[Any]:
        """The scribbles as array-likes (h, w) for a multiscale layer, finest first, a stroke being drawn included.

        Level k has pixels of 2**k level-0 pixels and is padded so that shapes shrink by exactly two. The coarsest is
        one ndarray that is written in place.
        """
        return self._document.scribbles.levels()

    # ------------------------------------------------------------------ whole strokes and polygons
    def paint(self, points_yx: ArrayLike, radius: float, class_id: int) -> None:
        """Draw a stroke: a round brush along `points_yx` (N, 2)."""
        self._document.require_class(class_id)
        self._brush(points_yx, radius, class_id)

    def erase(self, points_yx: ArrayLike, radius: float) -> None:
        """Erase scribbles along `points_yx` (N, 2); dense regions stay."""
        self._brush(points_yx, radius, 0)

    @uninterrupted()
    def _brush(self, points_yx: ArrayLike, radius: float, class_id: int) -> None:
        points = as_points(points_yx).tolist()
        with self._stroke(class_id, "brush"):
            for p, q in zip(points, points[1:] or points, strict=False):
                self._editor.move(p, q, radius, live=False)

    @contextmanager
    def _stroke(self, class_id: int, kind: str) -> Iterator[None]:
        self.begin_stroke(class_id, kind)
        try:
            yield
        except AnnotationError:
            self.abort_stroke()
            raise
        self.commit_stroke()

    @uninterrupted()
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
            The class; 0 erases. With `dense`, the class of all pixels inside that have no scribble.
        dense
            Declare the polygon exhaustively labelled. Stored apart from scribbles and listed in `dense_regions`.
        holes
            Rings cut out of it.
        """
        rings = [as_points(ring, least=3) for ring in (points_yx, *holes)]
        if dense:
            self._document.require_class(class_id)
            self._finish(lambda: self._editor.change_regions([(class_id, rings)]))
            return
        with self._stroke(class_id, "polygon"):
            self._editor.add_polygon(rings)

    def remove_dense_region(self, *region_ids: int) -> None:
        """Remove the dense regions with those ids, as one step of the history; scribbles in them stay."""
        removed = [self._editor.region(region_id) for region_id in dict.fromkeys(region_ids)]
        self._finish(lambda: self._editor.change_regions((), removed))

    def reshape_dense_region(self, region_id: int, points_yx: ArrayLike) -> None:
        """Give a dense region other corners (N, 2), level 0, on the slide; its class stays, holes are lost."""
        region, ring = self._editor.region(region_id), as_points(points_yx, least=3)
        if Polygon([ring]).box.intersection(Box(0, 0, *self.shape)).area == 0:
            raise AnnotationError("the dense region would lie outside the slide.")
        self._finish(lambda: self._editor.change_regions([(region.class_id, [ring])], [region]))

    def change_strokes(self, ids: Iterable[int], class_id: int) -> None:
        """Give strokes and regions another class, 0 removes them, as one step; see `changes.change_strokes`."""
        self._finish(lambda: change_strokes(self._document, ids, class_id))

    def draw(self, shapes: Iterable[Shape], progress: Progress | None = None, *, of: int | None = None) -> int:
        """Draw shapes in order, later ones over earlier ones, as one step of the history.

        Parameters
        ----------
        shapes, of
            What to draw, and how many where `shapes` does not know.
        progress
            Called now and then with (drawn, all).

        Returns
        -------
        int
            How many of them overlap the slide.
        """
        number = len(shapes) if of is None and isinstance(shapes, Sized) else of or 0
        edit = self._finish(lambda: self._editor.draw_shapes(shapes, progress, number))
        return len(edit.added) if edit is not None else 0

    def take_over(self, other: Annotations, conflict: Conflict = "over") -> None:
        """Add all that other annotations of the same slide and classes hold, as one step; see `merging.take_over`."""
        self._finish(lambda: take_over(self._document, other._document, conflict))

    def draw_masks(self, pieces: Iterable[MaskPiece]) -> None:
        """Draw masks, one stroke each, as one step of the history; nothing is drawn where `pieces` raises."""
        self._finish(lambda: self._editor.draw_masks(pieces))

    # ------------------------------------------------------------------ a stroke as it is drawn
    def begin_stroke(self, class_id: int, kind: str = "brush", keep: Keep = None) -> None:
        """Begin a stroke.

        Parameters
        ----------
        class_id
            What to draw; 0 erases.
        kind
            ``brush``, ``erase``, ``polygon`` or ``fill``.
        keep
            Where given, only level-0 pixels with this label (or one of these) are written; 0 preserves all labels.
        """
        self._editor.begin(class_id, kind, keep)

    def extend_stroke(self, p_yx: Sequence[float], q_yx: Sequence[float], radius: float) -> Box | None:
        """Move a round brush of `radius` level-0 pixels from `p_yx` to `q_yx`; written at the level that suits it.

        Returns
        -------
        Box
            What may have changed, level 0; None where the brush missed the slide.
        """
        p, q = as_points([p_yx, q_yx]).tolist()
        return self._editor.move(p, q, radius, live=True)

    def extend_polygon(self, *rings_yx: ArrayLike) -> Box | None:
        """Fill a polygon, even-odd over its rings (N, 2), in the open stroke; returns as `extend_stroke`."""
        return self._editor.add_polygon([as_points(ring, least=3) for ring in rings_yx])

    def paint_mask(self, level: int, y0: int, x0: int, mask: NDArray[np.bool_]) -> Box | None:
        """Draw where `mask` (h, w) is true in the open stroke; `y0`, `x0` and the mask in pixels of `level`."""
        return self._editor.add_mask(level, y0, x0, np.asarray(mask, bool))

    def commit_stroke(self) -> Stroke | None:
        """Finish the stroke, one step of the history, durable on return with a bound file; None: nothing changed."""
        edit = self._finish(self._editor.commit)
        return edit.added[0] if edit is not None else None

    def abort_stroke(self) -> None:
        """Discard the stroke."""
        self._editor.abort()

    # ------------------------------------------------------------------ history and classes
    @property
    def history(self) -> History:
        """What can be undone and redone."""
        return self._document.history

    def undo(self) -> Box | None:
        """Take the newest step back; the box that may look different, None where there is nothing to undo."""
        return edit.box if (edit := self._finish(self._document.undo)) is not None else None

    def redo(self) -> Box | None:
        """Make the step again that was undone last; as `undo`."""
        return edit.box if (edit := self._finish(self._document.redo)) is not None else None

    def forget_history(self) -> None:
        """Make everything drawn so far permanent and free the memory of its history."""
        self._document.forget_history()

    @uninterrupted()
    def set_classes(
        self, classes: Iterable[ClassDef | tuple[str, str] | str], *, undoable: bool = True, act: str = ""
    ) -> None:
        """Replace the class table, as one step of the history; ids keep their meaning.

        Classes that are not in it are removed with their labels, strokes and dense regions. Not `undoable`: no step,
        unless something is removed; `act` is that of `Edit`.
        """
        table = make_classes(classes)
        if table != self.classes:
            self._finish(lambda: self._editor.change_classes(table, act, undoable=undoable))

    @uninterrupted()
    def _finish(self, make: Callable[[], Edit | None]) -> Edit | None:
        """Make an edit, write it to the bound file, then emit the signals."""
        with self._document.lock:
            edit = make()
            if edit is None:
                return None
            self._write(edit)
        if edit.table is not None:
            self.classes_changed.emit()
        if edit.draws or edit.others is not None:
            self.changed.emit(self.version, edit.box)
        self._report()
        return edit

    # ------------------------------------------------------------------ file
    @property
    def path(self) -> Path | None:
        """The file these annotations are bound to, or None."""
        return None if self._file is None else self._file.path

    def is_bound_to(self, path: Path) -> bool:
        """Whether the bound file is the one at `path` now; `Annotations.path` has the name that it was opened with."""
        return self._file is not None and self._file.is_at(path)

    @property
    def saved(self) -> bool:
        """Whether everything committed is on disk: in the bound file, or where it was last saved or loaded."""
        return self._file.saved if self._file is not None else self._saved_token == self._document.token

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Annotations from a file, not bound to it: changes are not saved until `attach` or `save`.

        Raises
        ------
        AnnotationError
            Where it is not an annotation file, or was written by a newer version.
        DamagedFileError
            Where it is damaged; says how much `rescue` could recover.
        """
        stored = read_stored(Path(path))
        try:
            return cls.from_stored(stored)
        except AnnotationError as error:
            raise DamagedFileError(Path(path), str(error).rstrip(".")) from error

    @classmethod
    def from_stored(cls, stored: StoredAnnotations) -> Self:
        """Annotations that hold what a file does.

        Raises
        ------
        AnnotationError
            Where a label chunk lies outside the slide.
        """
        out = cls(stored.shape, stored.classes)
        out._document.restore(stored)
        out._saved_token = stored.token
        out._tokens.add(stored.token)
        return out

    @uninterrupted()
    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write everything to one file, as a whole; a binding to another file stays.

        A file that these annotations were loaded from or saved to is replaced, any other only with `overwrite`.
        FileInUseError where another program writes to it, AnnotationError where it is another or cannot be written.
        """
        target, document = Path(path), self._document
        with document.lock:
            if self._file is not None and self._file.path == target.resolve():
                self._file.write_all(document)
                self._file.raise_last_error()
            else:
                write_stored(target, document.stored(), replaceable=None if overwrite else self._tokens)
                self._saved_token = document.token
                self._tokens.add(document.token)
        self._emit_saved()

    def attach(self, path: str | os.PathLike[str]) -> None:
        """Bind to a file: from now on every commit, undo and redo is durable before it returns.

        A new file receives what is drawn. An existing file is loaded if nothing was drawn here yet; otherwise it must
        hold the same annotations as these, as after `save`. A binding to another file ends.

        Raises
        ------
        FileInUseError
            Where another program writes to it; `load` can still read it.
        AnnotationError
            Where it holds other annotations, was made for another slide, or cannot be written.
        """
        target = Path(path)
        if self.path == target.resolve():
            return
        with self._document.lock:
            file, adopted = Autosave.bind(target, self._document)
            self._release()
            self._file = file
        self._emit_saved()
        if adopted:
            self.classes_changed.emit()
            self.changed.emit(self.version, Box(0, 0, *self.shape))

    def close(self) -> None:
        """End the binding to a file; the annotations stay usable."""
        with self._document.lock:
            self._release()

    def _release(self) -> None:
        if self._file is not None:
            self._saved_token = self._document.token if self.saved else ""
            self._tokens |= self._file.tokens
            self._file.close()
            self._file = None

    def _write(self, edit: Edit | None) -> None:
        if self._file is not None and edit is not None and edit.others is not None:
            self._file.write_all(self._document)
        elif self._file is not None:
            self._file.write(self._document, edit if edit is not None and edit.draws else None)

    def _report(self) -> None:
        self._emit_saved()
        if self._file is not None:
            self._file.raise_last_error()

    def _emit_saved(self) -> None:
        if self.saved != self._reported_saved:
            self._reported_saved = self.saved
            self.saved_changed.emit(self._reported_saved)

    def to_geojson(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the labels as polygons for QuPath, see `io.write_geojson`; `overwrite` as in `save`."""
        from napari_sparseseg.io import write_geojson

        self._exports.require(Path(path), AnnotationError, overwrite=overwrite)
        write_geojson(self, path)
        self._exports.add(Path(path))

    @classmethod
    def from_geojson(
        cls,
        path: str | os.PathLike[str],
        shape: tuple[int, int],
        classes: Iterable[ClassDef | tuple[str, str] | str] | None = None,
        *,
        progress: Progress | None = None,
    ) -> Annotations:
        """Annotations from a GeoJSON file as QuPath writes it; see `io.read_geojson`."""
        from napari_sparseseg.io import read_geojson

        return read_geojson(path, shape, classes, progress=progress)
