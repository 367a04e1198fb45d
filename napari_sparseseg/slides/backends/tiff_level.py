"""One resolution of a TIFF file: its tile tables, and the decoding of a tile after checking its header."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

import numpy as np
import tifffile

from napari_sparseseg.slides.backends.tiff_colours import JPEG, chroma_is_subsampled, ycc_to_rgb
from napari_sparseseg.slides.level import Level, Pixels, TileError, TileLeftOutError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from napari_sparseseg.slides.backends.tiff_guard import PositionedFile

IMAGE_CODECS = (33003, 33004, 33005, 34712, 34933, 50001, 50002, 52546)
"""JPEG 2000, PNG, WebP, JPEG XL: a tile states its own size, which is checked before it is decoded."""
BYTE_CODECS = (1, 5, 8, 32773, 32946, 34925, 34926, 50000, 50013)
"""None, LZW, deflate, PackBits, LZMA, zstd: decoded into a buffer of the tile's size, so no tile can exceed it."""
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
"""Raised by tifffile and its codecs on damaged data; they have no common base."""
_NO_LENGTH = {0x01, 0xD8, *range(0xD0, 0xD8)}
_MAX_PLANES = 64
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class TiffLevel(Level):
    """Tiles of the pages of one resolution.

    Parameters
    ----------
    file
        The file that stores the tiles.
    pages
        One per channel, or a single one for all channels.
    shape, dtype, samples
        Of the converted pixels.
    convert
        Converts a decoded tile (h, w, stored samples) to pixels of the level; None if they are the same.
    background
        Value of tiles that are left out in the file, one per channel.
    is_ycc
        Whether JPEG 2000 tiles hold YCbCr components without a colour transform.
    """

    def __init__(
        self,
        file: PositionedFile,
        pages: Sequence[Any],
        shape: tuple[int, int, int],
        dtype: np.dtype[Any],
        samples: int,
        convert: Callable[[Pixels], Pixels] | None,
        background: tuple[float, ...],
        *,
        is_ycc: bool,
    ) -> None:
        page = pages[0].keyframe
        super().__init__(shape, dtype, (page.tilelength, page.tilewidth), samples)
        self._file, self._convert, self._background, self._is_ycc = file, convert, background, is_ycc
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
        self._filled: np.ndarray[Any, np.dtype[np.bool_]] | None = None

    def table_problem(self) -> str:
        """Why the tile tables do not match the size of the image; empty if they do."""
        expected = self._grid[0] * self._grid[1] * self._planes
        for offsets, counts in zip(self._offsets, self._counts, strict=True):
            if len(offsets) != expected or len(counts) != expected:
                return (
                    f"an image of {self.shape[1]} x {self.shape[0]} px needs {expected} tiles, "
                    f"and its tables list {len(offsets)} and {len(counts)}"
                )
        return ""

    def beyond(self, size: int) -> tuple[int, int]:
        """Number of tiles that extend past the end of a file of `size` bytes, and number of all tiles."""
        end, bad, total = np.uint64(size), 0, 0
        for offsets, counts in zip(self._offsets, self._counts, strict=True):
            room = np.where(offsets < end, end - np.minimum(offsets, end), np.uint64(0))
            bad += int((counts > room).sum())
            total += len(offsets)
        return bad, total

    def left_out(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which tiles have zero bytes: (pages, planes, rows, columns). Scanners leave out empty background."""
        grid = (len(self._offsets), self._planes, *self._grid)
        empty: np.ndarray[Any, np.dtype[np.bool_]] = (np.stack(self._offsets) == 0) | (np.stack(self._counts) == 0)
        return empty.reshape(grid)

    def fill_from(self, finer: TiffLevel) -> None:
        """Read tiles that are left out here, but not in the next finer level, from that level (see D46)."""
        here, there = self.left_out(), finer.left_out()
        if not here.any() or here.shape[:2] != there.shape[:2]:
            return
        stored = np.pad(np.cumsum(np.cumsum(~there, axis=2), axis=3), [(0, 0), (0, 0), (1, 0), (1, 0)])
        edges = []
        for n, tile, size, finer_tile, finer_size in zip(
            self._grid, self.tile, self.shape, finer.tile, finer.shape, strict=False
        ):
            ratio = finer_size / size / finer_tile
            start = np.floor(np.arange(n) * tile * ratio).astype(int)
            stop = np.ceil(np.minimum((np.arange(n) + 1) * tile, size) * ratio - 1e-9).astype(int)
            edges.append((start, np.minimum(stop, -(-finer_size // finer_tile))))
        (y0, y1), (x0, x1) = edges
        beneath = stored[:, :, y1][..., x1] - stored[:, :, y0][..., x1] - stored[:, :, y1][..., x0]
        self._filled = here & (beneath + stored[:, :, y0][..., x0] > 0)

    def decode(self, plane: int, row: int, column: int) -> Pixels:
        page, part = divmod(plane, self._planes)
        index = (part * self._grid[0] + row) * self._grid[1] + column
        offset, count = int(self._offsets[page][index]), int(self._counts[page][index])
        if not offset or not count:
            if self._filled is not None and self._filled[page, part, row, column]:
                raise TileLeftOutError
            return self._empty(plane, row, column)
        if count > MAX_TILE_BYTES or offset >= 2**62:
            raise TileError(f"it claims {count} bytes at byte {offset}")
        data = self._file.read(offset, count)
        if len(data) < count:
            raise TileError(f"it extends past the end of the file, {count - len(data)} bytes are missing")
        claimed = coded_size(data) if self._sized else self.tile
        if claimed is None and not self._headless:
            raise TileError("it does not state its size")
        if claimed and (claimed[0] > 2 * self.tile[0] or claimed[1] > 2 * self.tile[1]):
            raise TileError(f"it claims {claimed[1]} x {claimed[0]} px in a tile of {self.tile[1]} x {self.tile[0]}")
        try:
            tile = self._decode(data, index, **self._extra[page])[0]
            if tile is None or tile.ndim != 4:
                raise TileError("it decodes to nothing")
            pixels: Pixels = tile[0]
            if self._is_ycc and not chroma_is_subsampled(data):
                pixels = ycc_to_rgb(pixels)
            return self._convert(pixels) if self._convert else pixels
        except DECODE_ERRORS as error:
            raise TileError(f"{type(error).__name__}: {error}") from error

    def _empty(self, plane: int, row: int, column: int) -> Pixels:
        _, _, h, w = self.extent(row, column)
        fill = np.asarray(self._background[plane * self.samples : (plane + 1) * self.samples]).astype(self.dtype)
        return np.broadcast_to(fill, (h, w, self.samples)).copy()


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG stream; None for other data."""
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF or marker in _NO_LENGTH:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return height, width
        at += 2 + int(struct.unpack_from(">H", data, at + 2)[0])
    return None


def jpeg2000_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG 2000 codestream, bare or in a box; None for other data and for too many planes."""
    at = data.find(b"\xff\x4f\xff\x51", 0, 4096)
    if at < 0 or len(data) < at + 42:
        return None
    x1, y1, x0, y0 = struct.unpack_from(">4I", data, at + 8)
    (planes,) = struct.unpack_from(">H", data, at + 40)
    return (y1 - y0, x1 - x0) if planes <= _MAX_PLANES else None


def png_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a PNG; None for other data."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
        return None
    width, height = struct.unpack_from(">2I", data, 16)
    return height, width


def webp_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a WebP image; None for other data."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[27:30], "little"), 1 + int.from_bytes(data[24:27], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    width, height = struct.unpack_from("<2H", data, 26)
    return (height & 0x3FFF, width & 0x3FFF) if kind == b"VP8 " else None


def jpegxl_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG XL codestream, bare or in a box (ISO/IEC 18181-1, SizeHeader); None for other data."""
    at = 0
    if data[4:8] == b"JXL ":
        box = max(data.find(b"jxlc", 0, 4096), data.find(b"jxlp", 0, 4096))
        at = data.find(b"\xff\x0a", box, box + 10) if box >= 0 else -1
    if at < 0 or data[at : at + 2] != b"\xff\x0a":
        return None
    bits, used = int.from_bytes(data[at + 2 : at + 14], "little"), 0

    def take(n: int) -> int:
        nonlocal used
        used += n
        return bits >> (used - n) & ((1 << n) - 1)

    small = take(1)

    def side() -> int:
        return 8 * (1 + take(5)) if small else 1 + take((9, 13, 18, 30)[take(2)])

    height = side()
    ratio = take(3)
    if ratio:
        top, bottom = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
        return height, height * top // bottom
    return height, side()


def coded_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) in the header of a JPEG, JPEG 2000, PNG, WebP or JPEG XL stream; None for other data."""
    return jpeg_size(data) or png_size(data) or webp_size(data) or jpegxl_size(data) or jpeg2000_size(data)
