"""Sparse annotations of a slide of any size: strokes, dense regions, classes, history and file."""

from napari_sparseseg.annotations.annotations import Annotations
from napari_sparseseg.annotations.editing import MaskPiece, Shape
from napari_sparseseg.annotations.quadtree import LabelQuadtree
from napari_sparseseg.annotations.rescue import merged, renumbered, rescue
from napari_sparseseg.annotations.snapshot import Snapshot
from napari_sparseseg.annotations.sqlite_file import DamagedFileError, FileInUseError, NotWritableError
from napari_sparseseg.annotations.strokes import DenseRegion, Stroke, stroke_mask

__all__ = [
    "Annotations",
    "DamagedFileError",
    "DenseRegion",
    "FileInUseError",
    "LabelQuadtree",
    "MaskPiece",
    "NotWritableError",
    "Shape",
    "Snapshot",
    "Stroke",
    "merged",
    "renumbered",
    "rescue",
    "stroke_mask",
]
