"""Dense regions and the class table: edits that touch more than one stroke."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from napari_sparseseg.annotations.drawing import Drawing, around, fill_rings
from napari_sparseseg.annotations.history import Edit
from napari_sparseseg.annotations.raster import Polygon, as_points
from napari_sparseseg.annotations.strokes import Stroke
from napari_sparseseg.config import MAX_CLASS_ID, PALETTE, ClassDef, make_classes
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from napari_sparseseg.annotations.quadtree import Change

    Rings = list[NDArray]  # type: ignore[type-arg]  # float64, (N, 2) each


class RegionEditing(Drawing):
    """Adding and removing dense regions."""

    def remove_dense_region(self, *region_ids: int) -> None:
        """Undeclare the dense regions with those `id`s, as one step of the history; scribbles in them stay.

        Raises
        ------
        AnnotationError
            Where there is none.
        """
        self._change_regions([], tuple(self._region(region_id) for region_id in dict.fromkeys(region_ids)))

    def reshape_dense_region(self, region_id: int, points_yx: ArrayLike) -> None:
        """Give a dense region other corners (N, 2), level 0; its rest class stays. Holes are lost.

        Raises
        ------
        AnnotationError
            Where there is none, or the new outline lies outside the slide.
        """
        region, ring = self._region(region_id), as_points(points_yx, least=3)
        if Polygon([ring]).box.intersection(Box(0, 0, *self.shape)).area == 0:
            raise AnnotationError("the dense region would lie outside the slide.")
        self._change_regions([(region.class_id, [ring])], (region,))

    def _region(self, region_id: int) -> Stroke:
        region = self._regions.get(region_id)
        if region is None:
            raise AnnotationError(f"there is no dense region {region_id}.")
        return region

    def _change_regions(self, new: list[tuple[int, Rings]], removed: tuple[Stroke, ...]) -> None:
        with self._lock:
            added, change = self._draw_regions(new, removed)
            if not added and not removed:
                return
            edit = Edit(around([r.box for r in (*added, *removed)]), dense=change, added=added, removed=removed)
            self._made(edit)
        self._tell(edit)

    def _draw_regions(
        self, new: list[tuple[int, Rings]], removed: tuple[Stroke, ...]
    ) -> tuple[tuple[Stroke, ...], Change | None]:
        """Draw regions into the dense tree and commit it; the regions that lie on the slide, and the change."""
        self.dense_tree.begin()
        try:
            for gone in removed:
                fill_rings(self.dense_tree, gone.parts(), 0)
            # What lay under a removed region shows again, in the order of drawing.
            ids = {gone.id for gone in removed}
            for region in self._regions.values():
                if region.id not in ids and any(region.box.intersection(gone.box).area for gone in removed):
                    fill_rings(self.dense_tree, region.parts(), region.class_id)
            added = []
            for class_id, exact in new:
                # Drawn as it is kept, which is in single precision: else a pixel by its side would stay behind when the
                # region is removed, and change where it is written and read back.
                rings = [ring.astype(np.float32).astype(np.float64) for ring in exact]
                box = fill_rings(self.dense_tree, rings, class_id)
                if box is not None:
                    added.append(Stroke.of_rings(self._take_id(), "dense", class_id, rings, box))
        except AnnotationError:
            self.dense_tree.abort()
            raise
        return tuple(added), self.dense_tree.commit()


class ClassEditing(RegionEditing):
    """Changing the class table. Ids keep their meaning and are not used again after a class was removed."""

    def add_class(self, name: str, colour: str | None = None) -> ClassDef:
        """Append a class; its colour is the palette's next unless given.

        Raises
        ------
        AnnotationError
            When all 255 ids are used.
        SparseSegError
            For an empty or used name or a bad colour.
        """
        used = {c.id for c in self._classes} | self._spent_class_ids
        free = [i for i in range(1, MAX_CLASS_ID + 1) if i not in used] or [
            i for i in range(1, MAX_CLASS_ID + 1) if i not in {c.id for c in self._classes}
        ]
        if not free:
            raise AnnotationError(f"there are {MAX_CLASS_ID} classes already, as many as a label image can hold.")
        new = ClassDef(free[0], name.strip(), colour or PALETTE[(free[0] - 1) % len(PALETTE)])
        self._set_table((*self._classes, new))
        return new

    def rename_class(self, class_id: int, name: str) -> None:
        """Give a class another name."""
        self._require_class(class_id)
        self._set_table(ClassDef(c.id, name.strip(), c.colour) if c.id == class_id else c for c in self._classes)

    def recolour_class(self, class_id: int, colour: str) -> None:
        """Give a class another colour, ``#rrggbb``."""
        self._require_class(class_id)
        self._set_table(ClassDef(c.id, c.name, colour) if c.id == class_id else c for c in self._classes)

    def reorder_classes(self, class_ids: Sequence[int]) -> None:
        """Show the classes in another order; `class_ids` are all ids."""
        table = {c.id: c for c in self._classes}
        if sorted(class_ids) != sorted(table):
            raise AnnotationError(f"the new order must hold every class id once: {sorted(table)}, not {class_ids}.")
        self._set_table(table[i] for i in class_ids)

    def remove_class(self, class_id: int) -> None:
        """Remove a class with its labels, strokes and dense regions; `undo` brings them back."""
        self._require_class(class_id)
        self._drop({class_id})

    def set_classes(self, classes: Iterable[ClassDef | tuple[str, str] | str]) -> None:
        """Replace the class table; ids keep their meaning, and classes that are not in it go with their labels."""
        table = make_classes(classes)
        gone = {c.id for c in self._classes} - {c.id for c in table}
        if gone:
            self._drop(gone)
        if table != self._classes:
            self._set_table(table)

    def _set_table(self, classes: Iterable[ClassDef]) -> None:
        with self._lock:
            self._classes = make_classes(classes)
            self._snapshot = None
            self._keep_classes()
        self.classes_changed.emit()
        self._complain()

    def _drop(self, gone: set[int]) -> None:
        with self._lock:
            self.quadtree.begin()
            for class_id in sorted(gone):
                self.quadtree.replace_label(class_id, 0)
            scribbles = self.quadtree.commit()
            strokes = tuple(s for s in self._strokes.values() if s.class_id in gone)
            regions = tuple(r for r in self._regions.values() if r.class_id in gone)
            dense = self._draw_regions([], regions)[1] if regions else None
            dropped = tuple((i, c) for i, c in enumerate(self._classes) if c.id in gone)
            self._spent_class_ids |= gone
            edit = Edit(Box(0, 0, *self.shape), scribbles, dense, (), (*strokes, *regions), dropped)
            self._made(edit)
        self._tell(edit)
