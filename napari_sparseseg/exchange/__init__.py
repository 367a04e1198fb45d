"""Annotations from and to the files of other programs."""

from napari_sparseseg.exchange.geojson import read_geojson, write_geojson

__all__ = ["read_geojson", "write_geojson"]
