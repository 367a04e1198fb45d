"""Damaged and hostile slides, each written by a function of the folder it goes to."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import struct
import zlib
from typing import TYPE_CHECKING

import google_crc32c
import imagecodecs
import numcodecs
import numpy as np
import tifffile
import zarr

from tests.helpers.slide_files import texture, write_ome, write_svs, write_zarr

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PIXELS = texture(300, 500)
TILE = np.zeros((64, 64, 3), np.uint8)


def svs(folder: Path) -> Path:
    path = folder / "slide.svs"
    write_svs(path, PIXELS, compression="jpeg")
    return path


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def written(name: str, data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def cut(start: int, part: float) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = svs(folder)
        data = path.read_bytes()
        path.write_bytes(data[start : int(part * len(data))])
        return path

    return make


def circle(folder: Path) -> Path:
    path = svs(folder)
    with tifffile.TiffFile(path) as tif:
        last, first = tif.pages[-1], tif.pages[0].offset
        end = last.offset + 2 + 12 * len(last.tags)
    patch(path, end, struct.pack("<I", first))
    return path


def claims(side: int, *, tiled: bool) -> Callable[[Path], Path]:
    """A header of `side` x `side` px over the tables of a small image."""

    def make(folder: Path) -> Path:
        path = folder / "slide.tif"
        layout = {"tile": (64, 64)} if tiled else {"rowsperstrip": 8}
        tifffile.imwrite(path, PIXELS, photometric="rgb", metadata=None, **layout)
        for code in (256, 257):
            with tifffile.TiffFile(path) as tif:
                tag = tif.pages[0].tags[code]
            patch(path, tag.offset + 2, struct.pack("<HII", 4, 1, side))
        return path

    return make


def sparse(side: int, tile: int = 256) -> Callable[[Path], Path]:
    """A BigTIFF of `side` x `side` px with whole tables, in a file with a hole: no tile is there."""

    def make(folder: Path) -> Path:
        n = (-(-side // tile)) ** 2
        entries = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 3, 0x0000000800080008), (259, 3, 1, 1),
                   (262, 3, 1, 2), (277, 3, 1, 3), (322, 4, 1, tile), (323, 4, 1, tile),
                   (324, 16, n, 4096), (325, 4, n, 4096 + 8 * n)]  # fmt: skip
        path = folder / "sparse.tif"
        table = b"".join(struct.pack("<HHQQ", *e) for e in entries)
        head = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, len(entries)) + table + bytes(8)
        path.write_bytes(head)
        os.truncate(path, 4096 + 12 * n)
        return path

    return make


def tile_bomb(compression: str, coded: Callable[[], bytes]) -> Callable[[Path], Path]:
    """One tile of 64 x 64 px whose own header says more."""

    def make(folder: Path) -> Path:
        path = folder / "bomb.tif"
        with tifffile.TiffWriter(path) as tif:
            tif.write(iter([coded()]), shape=(64, 64, 3), dtype="u1", tile=(64, 64), photometric="rgb",
                      compression=compression, metadata=None)  # fmt: skip
        return path

    return make


def resized(data: bytes, marker: bytes, at: int, kind: str) -> bytes:
    """`data` with 60000 x 60000 written `at` bytes after `marker`."""
    where = data.index(marker) + at
    new = struct.pack(kind, 60000, 60000)
    return data[:where] + new + data[where + len(new) :]


def jpegxl_head(side: int) -> bytes:
    """A JPEG XL codestream's signature and size header of `side` x `side` px."""
    bits = 0 | 3 << 1 | (side - 1) << 3 | 1 << 33  # not small, 30 bits follow, square
    return b"\xff\x0a" + bits.to_bytes(8, "little") + bytes(200)


def webp_head(side: int) -> bytes:
    bits = (side - 1) | (side - 1) << 14
    body = b"VP8L" + struct.pack("<I", 200) + b"\x2f" + bits.to_bytes(4, "little") + bytes(195)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def huge_tile(folder: Path) -> Path:
    path = folder / "tile.tif"
    with tifffile.TiffWriter(path) as tif:
        tif.write(iter([zlib.compress(bytes(1000))]), shape=(16384, 16384), dtype="u1", tile=(16384, 16384),
                  compression="zlib", photometric="minisblack", metadata=None)  # fmt: skip
    return path


def table_beyond_the_file(folder: Path) -> Path:
    path = svs(folder)
    with tifffile.TiffFile(path) as tif:
        tag = tif.pages[0].tags[324]
    patch(path, tag.offset + 4, struct.pack("<I", 2**31 - 1))
    return path


def png(side: int) -> Callable[[Path], Path]:
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = b""
    for name, body in ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(10**6)))):
        chunks += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return written("large.png", b"\x89PNG\r\n\x1a\n" + chunks)


def ome_with(old: str, new: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "slide.ome.tif"
        write_ome(path, PIXELS)
        with tifffile.TiffFile(path) as tif:
            text = tif.ome_metadata
        tifffile.tiffcomment(path, text.replace(old, new).encode())
        return path

    return make


def zarr_with(old: str, new: str, name: str = "0/zarr.json") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "slide.zarr"
        write_zarr(path, PIXELS)
        text = json.dumps(json.loads((path / name).read_text()))
        if old not in text:
            raise AssertionError(f"{old} is not in {text}")
        (path / name).write_text(text.replace(old, new))
        return path

    return make


def zarr_bomb(
    codec: str, zarr_format: int, coded: Callable[[], bytes], *, shards: bool = False
) -> Callable[[Path], Path]:
    """One chunk of 64 x 64 bytes that decompresses to 512 MB; with `shards`, the chunk inside of one."""

    def make(folder: Path) -> Path:
        path = folder / "bomb.zarr"
        group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
        compressor = numcodecs.get_codec({"id": codec}) if zarr_format == 2 else {"name": codec, "configuration": {}}
        layout = {"shards": (1, 64, 64)} if shards else {}
        array = group.create_array("0", shape=(1, 64, 64), chunks=(1, 64, 64), dtype="u1", compressors=compressor,
                                   **layout)  # fmt: skip
        array[:] = 7
        axes = [{"name": n, "type": "space"} for n in "cyx"]
        datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1]}]}]
        multiscales = [{"version": "0.4", "axes": axes, "datasets": datasets}]
        if zarr_format == 2:
            group.attrs["multiscales"] = multiscales
        else:
            group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
        data = coded()
        if shards:
            index = struct.pack("<QQ", 0, len(data))
            data += index + struct.pack("<I", google_crc32c.value(index))
        (path / "0" / ("0.0.0" if zarr_format == 2 else "c/0/0/0")).write_bytes(data)
        return path

    return make


def unreadable(folder: Path) -> Path:
    path = svs(folder)
    path.chmod(0)
    return path


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "slide.svs")
    return folder / "slide.svs"


_UUID = '<UUID FileName="../secret/s.tif">urn:uuid:11111111-1111-1111-1111-111111111111</UUID></TiffData>'
_ENTITIES = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'
REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "gone.svs", "no such file"),
    "empty": (written("empty.svs", b""), "it is empty"),
    "text": (written("text.svs", b"not a slide\n" * 100), "not supported"),
    "random": (written("random.tif", np.random.default_rng(0).bytes(5000)), "not supported"),
    "directory": (lambda folder: folder, "folder without OME-Zarr"),
    "permission": (unreadable, "not permitted"),
    "pipe": (pipe, "not a regular file"),
    "head cut off": (cut(8, 1), "not supported"),
    "tail cut off": (cut(0, 0.9), "ends at byte|beyond the end"),
    "only the head": (cut(0, 0.01), "ends at byte|beyond the end"),
    "circle": (circle, "circular"),
    "10^6 px in tiles": (claims(10**6, tiled=True), "tiles"),
    "10^6 px in strips": (claims(10**6, tiled=False), "not in tiles|strips"),
    "4 10^9 px": (claims(4 * 10**9, tiled=True), "is the limit"),
    "10^6 px with whole tables": (sparse(10**6), "claims 15264649 tiles"),
    "2^31 tags": (table_beyond_the_file, "tag 324 claims"),
    "tile of 16384 px": (huge_tile, "tiles are 16384"),
    "PNG of 10^6 px": (png(10**6), "too large"),
    "PNG of 30000 px": (png(30_000), "too large"),
    "OME points elsewhere": (
        ome_with('<TiffData IFD="0" PlaneCount="1"/>', f'<TiffData IFD="0" PlaneCount="1">{_UUID}'),
        "points at another file",
    ),
    "OME with entities": (
        ome_with('<?xml version="1.0" encoding="UTF-8"?>', f'<?xml version="1.0"?>{_ENTITIES}'),
        "entities",
    ),
    "Zarr without JSON": (zarr_with('"shape"', "shape"), "cannot be read as OME-Zarr"),
    "Zarr chunk of 10^12 px": (zarr_with("[1, 64, 64]", "[1, 1000000, 1000000]"), "takes more than 256 MB"),
    "Zarr outside": (zarr_with('"path": "0"', '"path": "../../etc"', "zarr.json"), "cannot be read as OME-Zarr"),
    "Zarr of 10^9 px": (zarr_with("[3, 300, 500]", "[3, 1000000000, 500]"), "is the limit"),
}
"""What makes the file, and what is said of it; exit code 2."""

GREY: dict[str, tuple[Callable[[Path], Path], str]] = {
    "JPEG": (
        tile_bomb("jpeg", lambda: resized(imagecodecs.jpeg8_encode(TILE), b"\xff\xc0", 5, ">HH")),
        "claims 60000 x 60000",
    ),
    "JPEG 2000": (
        tile_bomb(
            "jpeg2000",
            lambda: resized(imagecodecs.jpeg2k_encode(TILE, codecformat="j2k"), b"\xff\x4f\xff\x51", 8, ">II"),
        ),
        "claims 60000 x 60000",
    ),
    "PNG": (tile_bomb("png", lambda: resized(imagecodecs.png_encode(TILE), b"IHDR", 4, ">II")), "claims 60000 x 60000"),
    "WebP": (tile_bomb("webp", lambda: webp_head(16383)), "claims 16383 x 16383"),
    "JPEG XL": (tile_bomb("jpegxl", lambda: jpegxl_head(60000)), "claims 60000 x 60000"),
    "deflate": (tile_bomb("zlib", lambda: zlib.compress(bytes(2**29), 1)), "rror"),
    "zstd": (tile_bomb("zstd", lambda: imagecodecs.zstd_encode(bytes(2**29))), "rror"),
    "LZMA": (tile_bomb("lzma", lambda: imagecodecs.lzma_encode(bytes(2**26), level=0)), ""),
    "LZW": (tile_bomb("lzw", lambda: imagecodecs.lzw_encode(bytes(2**26))), ""),
    "PackBits": (tile_bomb("packbits", lambda: b"\x81\0" * 2**22), ""),
    **{
        f"Zarr {version}, {codec}": (zarr_bomb(codec, version, coded), "shown grey")
        for codec, coded, versions in (
            ("zstd", lambda: imagecodecs.zstd_encode(bytes(2**29)), (2, 3)),
            ("blosc", lambda: numcodecs.Blosc("zstd").encode(np.zeros(2**29, np.uint8)), (2, 3)),
            ("gzip", lambda: gzip.compress(bytes(2**29), 1), (2, 3)),
            ("lz4", lambda: numcodecs.LZ4().encode(np.zeros(2**29, np.uint8)), (2,)),
            ("bz2", lambda: bz2.compress(bytes(2**27)), (2,)),
        )
        for version in versions
    },
    "Zarr 3, shard": (zarr_bomb("zstd", 3, lambda: imagecodecs.zstd_encode(bytes(2**29)), shards=True), "shown grey"),
    "no image at all": (tile_bomb("jpeg", lambda: b"garbage" * 100), "does not state its size"),
}
"""Files of one tile that cannot be decoded: shown grey, told with this reason; exit code 0. Without a reason the codec
stops where the tile is full."""
