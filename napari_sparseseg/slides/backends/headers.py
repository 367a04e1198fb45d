"""Sizes out of the first bytes of compressed images, so that nothing is decoded before its size is known."""

from __future__ import annotations

import struct

_NO_LENGTH = {0x01, 0xD8, *range(0xD0, 0xD8)}
_MAX_PLANES = 64
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
    """(height, width) of a JPEG 2000 codestream, bare or in a box; None where there is none or it has many planes."""
    at = data.find(b"\xff\x4f\xff\x51", 0, 4096)
    if at < 0 or len(data) < at + 42:
        return None
    x1, y1, x0, y0 = struct.unpack_from(">4I", data, at + 8)
    (planes,) = struct.unpack_from(">H", data, at + 40)
    return (y1 - y0, x1 - x0) if planes <= _MAX_PLANES else None


def png_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a PNG, or None where it is none."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
        return None
    width, height = struct.unpack_from(">2I", data, 16)
    return height, width


def webp_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a WebP image, or None where it is none."""
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
    """(height, width) that a JPEG, JPEG 2000, PNG, WebP or JPEG XL stream claims, or None for other data."""
    return jpeg_size(data) or png_size(data) or webp_size(data) or jpegxl_size(data) or jpeg2000_size(data)
