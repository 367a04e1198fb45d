"""A result that was measured: its objects, its areas, and the outline of one object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_sparseseg.files import write_atomic
from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from napari_sparseseg.io.measurements import AreaRow
    from napari_sparseseg.io.objects import ObjectTable
    from napari_sparseseg.prediction.component import Component

FIRST_PX, MOST_PX = 256, 4096
"""Sides of the parts of the label image in which an object is looked for."""


@dataclass(frozen=True)
class MeasuredResult:
    """What `Results.measure` found.

    Attributes
    ----------
    path
        The label image.
    slide
        Fingerprint of the slide that it was made of; None where the image does not say.
    objects
        A row for each object, in numpy arrays.
    areas
        A row for each class of the slide and of each region.
    min_area_um2
        Smaller objects were left out; level-0 px^2 where the mpp is unknown.
    """

    path: Path
    slide: str | None
    objects: ObjectTable
    areas: tuple[AreaRow, ...]
    min_area_um2: float

    def outline(self, row: int) -> Component:
        """The outline of an object, read from the label image; of a very large one the part around its first pixel.

        Parameters
        ----------
        row
            Index into `objects`.

        Raises
        ------
        PredictionError, AnnotationError
            Where the image is gone or cannot be read.
        """
        from napari_sparseseg.io.results import open_result
        from napari_sparseseg.prediction.component import component_at

        with open_result(self.path) as stored:
            y, x = divmod(int(self.objects.first[row]), stored.shape[1])
            whole, frame, side = Box(0, 0, *stored.shape), stored.placement.frame, FIRST_PX
            while True:
                part = Box(y - side // 2, x - side // 2, side, side).intersection(whole)
                found = component_at(stored.read(part), y - part.y, x - part.x, part, frame, stored.shape)
                if not found.cut or side >= MOST_PX:
                    return found
                side *= 4

    def save_objects(self, path: Path, rows: np.ndarray | None = None) -> None:
        """Write the objects, or those of some rows in their order, as ``.csv`` or ``.parquet``; replaces the file.

        Raises
        ------
        PredictionError
            For another ending, or Parquet without pyarrow.
        """
        from napari_sparseseg.session.results import check_targets

        check_targets([path], (".csv", ".parquet"), overwrite=True)
        table = self.objects if rows is None else self.objects.taken(rows)
        write_atomic(path, table.write_parquet if path.suffix.lower() == ".parquet" else table.write_csv)

    def save_areas(self, path: Path) -> None:
        """Write the areas as ``.csv``; replaces the file.

        Raises
        ------
        PredictionError
            For another ending.
        """
        from napari_sparseseg.io.measurements import write_csv
        from napari_sparseseg.session.results import check_targets

        check_targets([path], (".csv",), overwrite=True)
        write_atomic(path, lambda temporary: write_csv(temporary, self.areas))

    def areas_text(self) -> str:
        """The areas with tabs between the cells, to paste into a spreadsheet."""
        from napari_sparseseg.io.measurements import tab_separated

        return tab_separated(self.areas)
