"""Structural checks of a TIFF file before tifffile parses it, so that no file can hang it or exhaust the memory.

Walking the chain of image directories takes 0.05-0.3 ms. It finds truncated files, circular chains (on which tifffile
loops forever), tables larger than the file, and XML that declares entities.
"""

from __future__ import annotations

import os
import re
import struct
import threading
from typing import TYPE_CHECKING, NamedTuple

from napari_sparseseg.errors import SlideOpenError

if TYPE_CHECKING:
    from pathlib import Path

MAX_DIRECTORIES = 20_000
MAX_TILES = 2**21
"""Tiles of one image: 370,000 px a side in tiles of 256 px. tifffile needs 300 MB for that many."""
MAX_DESCRIPTION = 64 * 2**20
_TYPE_SIZE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TILE_TABLES = (273, 279, 324, 325)
_SUBIFDS, _DESCRIPTION, _NDPI = 330, 270, 65420
_TABLES = {256, 257, 258, 259, 262, 270, 273, 277, 279, 322, 323, 324, 325, 330, 347}
"""Tags that are required to read pixels; a damaged tag of another kind does no harm."""
CUT_OFF = "Copy or export the file again: this copy is incomplete."
DAMAGED = "The file is damaged; copy or export it again."


class PositionedFile:
    """A file for reads at absolute positions. Threads share no offset and need no lock (except on Windows)."""

    def __init__(self, path: str | Path) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  (closed by close())
        self._lock = threading.Lock()

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes; fewer at the end of the file."""
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), size, offset)
        with self._lock:
            self._file.seek(offset)
            return self._file.read(size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Layout(NamedTuple):
    order: str
    big: bool
    ndpi: bool

    @property
    def entry(self) -> str:
        return self.order + ("HHQ" if self.big else "HHI")

    @property
    def pointer(self) -> str:
        return self.order + ("Q" if self.big else "I")

    @property
    def next_pointer(self) -> str:
        return self.order + ("Q" if self.big or self.ndpi else "I")


class Walker:
    """Walks the directories of one TIFF file.

    Parameters
    ----------
    path
        For messages.
    file, size
        The open file and its length in bytes.
    """

    def __init__(self, path: str, file: PositionedFile, size: int) -> None:
        self._path, self._file, self._size = path, file, size
        self._seen: set[int] = set()
        self._layout = _Layout("<", False, False)

    def check(self) -> int:
        """Number of directories, including sub-directories.

        Raises
        ------
        SlideOpenError
            If the chain is truncated or circular, or a table extends past the end of the file.
        """
        head = self._read(0, 16, "its header")
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        magic = struct.unpack(order + "H", head[2:4])[0] if order else 0
        if order is None or magic not in (42, 43):
            raise SlideOpenError(self._path, "it has no TIFF header", "Is it a slide?")
        big = magic == 43
        first = struct.unpack(order + ("Q" if big else "I"), head[8:16] if big else head[4:8])[0]
        self._layout = _Layout(order, big, False)
        if not big:
            self._layout = _Layout(order, False, self._is_ndpi(first))
        self._chain(first)
        return len(self._seen)

    def _is_ndpi(self, offset: int) -> bool:
        (count,) = self._unpack("H", offset, "the first image directory")
        table = self._read(offset + 2, count * 12, "the first image directory")
        return any(struct.unpack_from(self._layout.order + "H", table, 12 * i)[0] == _NDPI for i in range(count))

    def _chain(self, offset: int) -> None:
        layout, chain = self._layout, set[int]()
        while offset and (offset in chain or offset not in self._seen):
            if offset in chain:
                raise SlideOpenError(self._path, f"its chain of image directories is circular (byte {offset})", DAMAGED)
            if len(self._seen) >= MAX_DIRECTORIES:
                raise SlideOpenError(self._path, f"it has more than {MAX_DIRECTORIES} image directories", DAMAGED)
            chain.add(offset)
            self._seen.add(offset)
            what = f"image directory {len(self._seen)}"
            (count,) = self._unpack("Q" if layout.big else "H", offset, what)
            start = offset + (8 if layout.big else 2)
            width = 20 if layout.big else 12
            if count > 4096:
                raise SlideOpenError(self._path, f"{what} claims {count} tags", DAMAGED)
            table = self._read(start, count * width, what)
            for i in range(count):
                self._tag(table, i * width)
            (offset,) = self._unpack(layout.next_pointer[-1], start + count * width, what)

    def _tag(self, table: bytes, at: int) -> None:
        layout = self._layout
        tag, kind, count = struct.unpack_from(layout.entry, table, at)
        size = _TYPE_SIZE.get(kind, 1) * count
        inline = 8 if layout.big else 4
        at += struct.calcsize(layout.entry)
        if tag not in _TABLES or layout.ndpi:
            return
        offset = 0
        if size > inline:
            (offset,) = struct.unpack_from(layout.pointer, table, at)
            if offset + size > self._size:
                raise SlideOpenError(
                    self._path,
                    f"tag {tag} claims {size} bytes at byte {offset}, and the file ends at byte {self._size}",
                    CUT_OFF,
                )
        if tag in _TILE_TABLES and count > MAX_TILES:
            raise SlideOpenError(self._path, f"it claims {count} tiles, and {MAX_TILES} are the limit", DAMAGED)
        if tag == _DESCRIPTION and offset:
            self._description(offset, size)
        if tag == _SUBIFDS and kind in (4, 13, 16, 18):
            raw = self._read(offset, size, "the sub-directories") if offset else table[at : at + size]
            code = layout.order + str(count) + ("Q" if kind in (16, 18) else "I")
            for child in struct.unpack(code, raw):
                self._chain(child)

    def _description(self, offset: int, size: int) -> None:
        if size > MAX_DESCRIPTION:
            raise SlideOpenError(self._path, f"its description takes {size / 2**20:.0f} MB", DAMAGED)
        if b"<" not in self._read(offset, min(size, 64), "the description"):
            return
        text = self._read(offset, size, "the description")
        if re.search(rb"<!(ENTITY|DOCTYPE)", text):
            raise SlideOpenError(
                self._path,
                "its XML declares entities, which slides never do; the file may be malicious",
                "Ask its source.",
            )

    def _unpack(self, code: str, offset: int, what: str) -> tuple[int, ...]:
        code = self._layout.order + code
        return struct.unpack(code, self._read(offset, struct.calcsize(code), what))

    def _read(self, offset: int, size: int, what: str) -> bytes:
        data = self._file.read(offset, size) if offset + size <= self._size else b""
        if len(data) < size:
            raise SlideOpenError(
                self._path, f"{what} lies at byte {offset}, and the file ends at byte {self._size}", CUT_OFF
            )
        return data
