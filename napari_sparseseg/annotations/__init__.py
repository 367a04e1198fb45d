"""Sparse annotations of a slide of any size: strokes, dense regions, classes, history, file. No Qt, no torch."""

from napari_sparseseg.annotations.annotations import Annotations
from napari_sparseseg.annotations.quadtree import LabelQuadtree
from napari_sparseseg.annotations.renumber import renumbered
from napari_sparseseg.annotations.rescue import rescue
from napari_sparseseg.annotations.snapshot import Snapshot
from napari_sparseseg.annotations.sqlite_file import DamagedFileError, FileInUseError, NotWritableError
from napari_sparseseg.annotations.strokes import DenseRegion, Stroke, stroke_mask

__all__ = [
    "Annotations",
    "DamagedFileError",
    "DenseRegion",
    "FileInUseError",
    "LabelQuadtree",
    "NotWritableError",
    "Snapshot",
    "Stroke",
    "renumbered",
    "rescue",
    "stroke_mask",
]
