"""How large a tile the network gets at once: larger wastes less on halos and needs more memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_sparseseg.io.ome_zarr import SHARD

if TYPE_CHECKING:
    from napari_sparseseg.geometry import Frame
    from napari_sparseseg.prediction.tiles import Segmenter

_INPUT_SIDE = 1088
"""Halo included. The default network's tensors are then 140 MB at most, and a run with all that torch needs (0.6 GB)
stays under 1 GB."""
_SMALLEST = 16


def default_tile(model: Segmenter) -> int:
    """Side of a tile: an even part of a shard such that tile and halo stay within what memory allows."""
    for parts in range(1, 8):
        part = -(-SHARD // (parts * model.multiple)) * model.multiple
        if part + 2 * model.halo <= _INPUT_SIDE:
            return part
    return SHARD // 8


def fitting_tile(model: Segmenter, frame: Frame, read_frame: Frame) -> int:
    """The default tile in pixels of the label image, where the model sees the slide in `read_frame`."""
    ratio = max(a / b for a, b in zip(frame.downsample, read_frame.downsample, strict=True))
    tile = default_tile(model)
    return tile if ratio <= 1 else max(_SMALLEST, int(tile / ratio))
