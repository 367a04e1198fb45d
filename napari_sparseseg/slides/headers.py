"""Sizes out of the first bytes of compressed images, so that nothing is decoded before its size is known."""

from __future__ import annotations

import struct

_NO_LENGTH = {0x01, 0xD8, *range(0xD0, 0xD8)}
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG stream, or None where no frame header is found."""
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
    """(height, width) of a JPEG 2000 codestream, or None where it is none."""
    if data[:4] != b"\xff\x4f\xff\x51" or len(data) < 24:
        return None
    x1, y1, x0, y0 = struct.unpack_from(">4I", data, 8)
    return y1 - y0, x1 - x0


def png_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a PNG, or None where it is none."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
        return None
    width, height = struct.unpack_from(">2I", data, 16)
    return height, width


def coded_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) that a JPEG, JPEG 2000 or PNG stream claims, or None for other data."""
    return jpeg_size(data) or jpeg2000_size(data) or png_size(data)
