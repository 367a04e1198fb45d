"""Predictions as pyramidal OME-BigTIFF: SubIFD levels, 512-px zlib tiles, which Bio-Formats and QuPath show."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from napari_sparseseg.config import ClassDef
from napari_sparseseg.geometry import Box, tiles
from napari_sparseseg.io.ome_zarr import CHUNK, PredictionStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from napari_sparseseg.geometry import Placement

_LEGEND, _RECORD = "napari-sparseseg/classes", "napari-sparseseg/record"
_BUFFER = 16 << 20
"""Bytes of tiles that are compressed at a time; bounds the memory."""


def write_ome_tiff(
    path: Path,
    store: PredictionStore,
    placement: Placement,
    classes: Sequence[ClassDef],
    on_tile: Callable[[int, int], None] | None = None,
) -> None:
    """Copy a complete prediction store, tile by tile, into one OME-TIFF.

    The first image contains class ids, further ones uncertainty and probabilities where the store has them. The pixel
    size is that of the label image; class names, colours and the store's record are OME map annotations.
    `on_tile(done, total)` is called before each tile and at the end.
    """
    images = [("classes", store.labels), ("uncertainty", store.uncertainty), ("probabilities", store.probabilities)]
    images = [(name, levels) for name, levels in images if levels]
    total = sum(len(list(_planes(level))) for _, levels in images for level in levels)
    done = 0

    def tile_stream(level: Any) -> Iterator[np.ndarray]:
        nonlocal done
        for index in _planes(level):
            if on_tile is not None:
                on_tile(done, total)
            done += 1
            yield level[index]

    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as tiff:
        for name, levels in images:
            metadata = _metadata(name, placement, classes, store.record)
            for k, level in enumerate(levels):
                top = {"subifds": len(levels) - 1, "metadata": metadata} if k == 0 else {"subfiletype": 1}
                tiff.write(
                    tile_stream(level),
                    shape=level.shape,
                    dtype=level.dtype,
                    tile=(CHUNK, CHUNK),
                    compression="zlib",
                    photometric="minisblack",
                    buffersize=_BUFFER,
                    maxworkers=1,
                    **_resolution(placement, k),
                    **top,
                )
    if on_tile is not None:
        on_tile(total, total)


def read_record(path: Path) -> dict[str, Any]:
    """The parameters of a prediction, from an OME-TIFF of this program; empty for any other file."""
    record: dict[str, Any] = json.loads(_notes(path, _RECORD).get("record", "{}"))
    return record


def read_legend(path: Path) -> list[ClassDef]:
    """The class table of a prediction, from an OME-TIFF of this program; empty for any other file."""
    legend = [(int(key), *value.rpartition(" ")[::2]) for key, value in _notes(path, _LEGEND).items() if key.isdigit()]
    return [ClassDef(class_id, name, colour) for class_id, name, colour in sorted(legend)]


def _notes(path: Path, namespace: str) -> dict[str, str]:
    """Keys and values of the map annotation of that name."""
    try:
        with tifffile.TiffFile(path, _multifile=False) as tiff:
            description = tiff.pages[0].description
        annotations = tifffile.xml2dict(description)["OME"]["StructuredAnnotations"]["MapAnnotation"]
    except (OSError, tifffile.TiffFileError, struct.error, LookupError, TypeError, ValueError, SyntaxError):
        return {}
    for annotation in annotations if isinstance(annotations, list) else [annotations]:
        if annotation.get("Namespace") == namespace:
            entries = annotation.get("Value", {}).get("M", [])
            entries = entries if isinstance(entries, list) else [entries]
            return {str(entry["K"]): str(entry.get("value", "")) for entry in entries if "K" in entry}
    return {}


def label_bands(path: Path) -> Iterator[np.ndarray]:
    """The class ids of an OME-TIFF of this program as bands of full-width rows, uint8 (<= 512, w)."""
    with tifffile.TiffFile(path, _multifile=False) as tiff:
        page = tiff.pages[0]
        width = page.shape[1]
        for tile in _grid(page.shape):
            if tile.x == 0:
                band = np.zeros((tile.height, width), np.uint8)
            index = tile.y // CHUNK * -(-width // CHUNK) + tile.x // CHUNK
            tiff.filehandle.seek(page.dataoffsets[index])
            segment, _, _ = page.decode(tiff.filehandle.read(page.databytecounts[index]), index)
            if segment is not None:
                band[:, tile.x : tile.x1] = segment.reshape(CHUNK, CHUNK)[: tile.height, : tile.width]
            if tile.x1 == width:
                yield band


def _planes(level: Any) -> Iterator[tuple[Any, ...]]:
    """Indices of the tiles of a level (h, w) or (K, h, w), channel by channel."""
    for channel in [()] if level.ndim == 2 else [(k,) for k in range(level.shape[0])]:
        for tile in _grid(level.shape[-2:]):
            yield (*channel, *tile.slices())


def _grid(shape: tuple[int, ...]) -> list[Box]:
    whole = Box(0, 0, shape[0], shape[1])
    return [tile.intersection(whole) for tile in tiles(whole, CHUNK)]


def _metadata(name: str, placement: Placement, classes: Sequence[ClassDef], record: dict[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = {"axes": "YX", "Name": name}
    if name == "probabilities":
        metadata |= {"axes": "CYX", "Channel": {"Name": [c.name for c in classes]}}
    if placement.mpp:
        y, x = placement.spacing
        metadata |= {"PhysicalSizeX": x, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": y, "PhysicalSizeYUnit": "µm"}
    if name == "classes":
        legend = {str(c.id): f"{c.name} {c.colour}" for c in classes}
        metadata["MapAnnotation"] = [
            {"Namespace": _LEGEND, **legend},
            {"Namespace": _RECORD, "record": json.dumps(record)},
        ]
    return metadata


def _resolution(placement: Placement, level: int) -> dict[str, Any]:
    """TIFF resolution tags, pixels per centimetre (x, y); nothing where the pixel size is unknown."""
    if not placement.mpp:
        return {}
    y, x = placement.pyramid_spacing(level)
    return {"resolution": (1e4 / x, 1e4 / y), "resolutionunit": "CENTIMETER"}
