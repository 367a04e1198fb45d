"""Where labels differ between two snapshots of a slide: what has to be looked at again after a stroke."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from napari_sparseseg.annotations.packing import CHUNK
from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Iterator

    from napari_sparseseg.annotations.pyramid import PackedPyramid
    from napari_sparseseg.annotations.snapshot import Snapshot
    from napari_sparseseg.geometry import Frame

MOST_CELLS = 1024
"""Of more cells than this it is not worth saying which."""


def changed_cells(before: Snapshot, after: Snapshot, frame: Frame, size: int) -> set[Box] | None:
    """Cells of the frame's absolute grid of `size` pixels in which labels may differ; None where all have to be seen.

    The time follows from what was drawn; only a pass over the keys of the stored chunks grows with all there is.
    """
    if before.shape != after.shape or bool(before.dense_regions) != bool(after.dense_regions):
        return None
    height, width = frame.shape(after.shape)
    cells: set[Box] = set()
    for old, new in ((before.scribbles, after.scribbles), (before.dense, after.dense)):
        for box in _changed_boxes(old, new):
            (i0, i1), (j0, j1) = (
                (math.floor(start / step - 1e-6), math.ceil(stop / step + 1e-6))
                for start, stop, step in (
                    (box.y, box.y1, size * frame.downsample[0]),
                    (box.x, box.x1, size * frame.downsample[1]),
                )
            )
            if (i1 - i0) * (j1 - j0) > MOST_CELLS:
                return None
            cells |= {Box(i * size, j * size, size, size) for i in range(max(i0, 0), i1) for j in range(max(j0, 0), j1)}
            if len(cells) > MOST_CELLS:
                return None
    return {cell for cell in cells if cell.y < height and cell.x < width}


def _changed_boxes(before: PackedPyramid, after: PackedPyramid) -> Iterator[Box]:
    """Level-0 boxes outside of which both read the same.

    A pixel has the label of the finest chunk over it. Where that is another one, or another label, one of the two
    chunks is not in both pyramids as it is; and read at its level, both pyramids give the labels that level 0 shows.
    """
    for level, (old, new) in enumerate(zip(before.levels, after.levels, strict=True)):
        changed = [key for key, packed in new.items() if old.get(key) is not packed and old.get(key) != packed]
        for i, j in (*changed, *(key for key in old if key not in new)):
            y, x = i * CHUNK, j * CHUNK
            area = (level, y, y + CHUNK, x, x + CHUNK)
            differs = before.read(*area) != after.read(*area)
            rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
            if len(rows):
                top, left = y + int(rows[0]), x + int(columns[0])
                size = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
                yield Box(top << level, left << level, size[0] << level, size[1] << level)
