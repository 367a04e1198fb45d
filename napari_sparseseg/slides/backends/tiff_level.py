"""One resolution of a TIFF file: its tables of tiles, and the decoding of one tile with every claim checked first."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

import numpy as np
import tifffile

from napari_sparseseg.slides.backends.headers import coded_size
from napari_sparseseg.slides.level import Level, Pixels, TileError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from napari_sparseseg.slides.files import PositionedFile

JPEG = (6, 7, 34892, 33007)
"""Compressions whose tiles share tables."""
IMAGE_CODECS = (33003, 33004, 33005, 34712, 34933, 50001, 50002, 52546)
"""JPEG 2000, PNG, WebP, JPEG XL: a tile says its own size, which is checked before it is decoded."""
BYTE_CODECS = (1, 5, 8, 32773, 32946, 34925, 34926, 50000, 50013)
"""None, LZW, deflate, PackBits, LZMA, zstd: decoded into a buffer of the tile's size, whatever they hold."""
MAX_TILE_BYTES = 256 * 2**20
DECODE_ERRORS = (
    tifffile.TiffFileError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    struct.error,
)
"""What tifffile and its codecs raise on damaged data; they have no common base."""


class TiffLevel(Level):
    """Tiles of the pages of one resolution.

    Parameters
    ----------
    file
        Where the tiles are read.
    pages
        One per channel, or one that holds all channels.
    finish
        Turns a decoded tile (h, w, samples) into the pixels of the level: alpha, inverted grey.
    shape, dtype, samples
        Of the finished pixels.
    sparse
        Whether tiles may be missing on purpose; they are then background instead of an error.
    """

    def __init__(
        self,
        file: PositionedFile,
        pages: Sequence[Any],
        shape: tuple[int, int, int],
        samples: int,
        finish: Callable[[Pixels], Pixels] | None,
        sparse: tuple[float, ...] | None,
    ) -> None:
        page = pages[0].keyframe
        super().__init__(shape, page.dtype.newbyteorder("="), (page.tilelength, page.tilewidth), samples)
        self._file, self._finish, self._sparse = file, finish, sparse
        self._grid = (math.ceil(page.imagelength / page.tilelength), math.ceil(page.imagewidth / page.tilewidth))
        self._planes = page.samplesperpixel if page.planarconfig == 2 else 1
        self._decode = page.decode
        self._sized, self._headless = page.compression in (*JPEG, *IMAGE_CODECS), page.jpegheader is not None
        self._extra = [
            {"jpegtables": p.jpegtables, "jpegheader": page.jpegheader} if page.compression in JPEG else {}
            for p in pages
        ]
        self._offsets = [np.asarray(p.dataoffsets, np.uint64) for p in pages]
        self._counts = [np.asarray(p.databytecounts, np.uint64) for p in pages]

    def table_problem(self) -> str:
        """Why the tables of tiles do not fit the size of the image; empty where they do."""
        expected = self._grid[0] * self._grid[1] * self._planes
        for offsets, counts in zip(self._offsets, self._counts, strict=True):
            if len(offsets) != expected or len(counts) != expected:
                return (
                    f"an image of {self.shape[1]} x {self.shape[0]} px needs {expected} tiles, "
                    f"and its tables list {len(offsets)} and {len(counts)}"
                )
        return ""

    def beyond(self, size: int) -> tuple[int, int]:
        """Tiles that cannot lie in a file of `size` bytes, and tiles in all."""
        end, bad, total = np.uint64(size), 0, 0
        for offsets, counts in zip(self._offsets, self._counts, strict=True):
            room = np.where(offsets < end, end - np.minimum(offsets, end), np.uint64(0))
            bad += int((counts > room).sum())
            total += len(offsets)
        return bad, total

    def decode(self, plane: int, row: int, column: int) -> Pixels:
        page, part = divmod(plane, self._planes)
        index = (part * self._grid[0] + row) * self._grid[1] + column
        offset, count = int(self._offsets[page][index]), int(self._counts[page][index])
        if not offset or not count:
            return self._missing(row, column)
        if count > MAX_TILE_BYTES or offset >= 2**62:
            raise TileError(f"it claims {count} bytes at byte {offset}")
        data = self._file.read(offset, count)
        if len(data) < count:
            raise TileError(f"it ends behind the end of the file, {count - len(data)} bytes are missing")
        claimed = coded_size(data) if self._sized else self.tile
        if claimed is None and not self._headless:
            raise TileError("it does not say its size")
        if claimed and (claimed[0] > 2 * self.tile[0] or claimed[1] > 2 * self.tile[1]):
            raise TileError(f"it claims {claimed[1]} x {claimed[0]} px in a tile of {self.tile[1]} x {self.tile[0]}")
        try:
            tile = self._decode(data, index, **self._extra[page])[0]
        except DECODE_ERRORS as error:
            raise TileError(f"{type(error).__name__}: {error}") from error
        if tile is None or tile.ndim != 4:
            raise TileError("it decodes to nothing")
        pixels: Pixels = tile[0]
        return self._finish(pixels) if self._finish else pixels

    def _missing(self, row: int, column: int) -> Pixels:
        if self._sparse is None:
            raise TileError("it is missing in the file")
        _, _, h, w = self.extent(row, column)
        return np.broadcast_to(np.asarray(self._sparse[: self.samples]).astype(self.dtype), (h, w, self.samples)).copy()
