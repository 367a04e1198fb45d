"""Annotations from and to the files of other programs."""

from napari_sparseseg.io.asap import read_asap, write_asap
from napari_sparseseg.io.files import find_annotations, load_annotations, save_annotations
from napari_sparseseg.io.geojson import read_geojson, write_geojson
from napari_sparseseg.io.labels import read_labels, write_labels

__all__ = [
    "find_annotations",
    "load_annotations",
    "read_asap",
    "read_geojson",
    "read_labels",
    "save_annotations",
    "write_asap",
    "write_geojson",
    "write_labels",
]
