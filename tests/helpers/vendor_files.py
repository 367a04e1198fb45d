"""Small slides in the layouts of scanner vendors, built from the published descriptions of their formats.

Real ones are too large to ship. Each layout is accepted by OpenSlide, which the tests compare with.
"""

from __future__ import annotations

import base64
import io
import struct
from typing import TYPE_CHECKING

import numpy as np
import tifffile
from PIL import Image

from tests.helpers.slide_files import texture

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

YCC_422 = base64.b64decode(
    "/0//UQAvAAAAAABAAAAAQAAAAAAAAAAAAAAAQAAAAEAAAAAAAAAAAAADBwEBBwIBBwIB/1IADAAAAAEABQQEAAH/XAATQEBISFBISFBISFBI"
    "SFBISFD/ZAAlAAFDcmVhdGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAADbAAH/k8fUCgI5ID1/w+cGAnN/w+cEAa/D6gUA"
    "DefHXjfB84MAAkV/wfOCAAiPw+oIABfYdYDNs7zvwPkCgBFCl1ufwPkCgBPyV6Sfw+oNACIaDmRW1Wp7JKBZab/A+QQAFyx/BMV2DH/A+QUA"
    "F9iBBNs11d8lg8PqEAA2nkHi0jsNXwhIPXBw/CtzwPkGgCFuEU39Rag5QAUoJD/B84cAIhoS7oCWf8PqDwBfpsc//wH1wAwj+QhEhL/A+QMA"
    "NfI/4sW/wPkFADaeQeLHsC1wDCP/2Q=="
)
"""JPEG 2000 codestream of 64 x 64 px, YCbCr with chroma at half width, reversible, made with OpenJPEG: (200, 120, 170)
in the left half and (90, 60, 140) in the right."""


def jpeg(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=92)
    return out.getvalue()


def mrxs(path: Path, cells: Sequence[tuple[int, int]], side: int = 6, tile: int = 64) -> np.ndarray:
    """3DHISTECH MRXS of `side` x `side` tiles of which only `cells` (row, column) are scanned, two levels.

    Returns the canvas, white where nothing is scanned.
    """
    folder = path.with_suffix("")
    folder.mkdir()
    path.write_bytes(jpeg(texture(32, 32)))
    full = texture(side * tile, side * tile)
    slide_id = b"A0B1C2D3" * 4
    data = bytearray(b"01.02" + slide_id + bytes(3))
    tables: list[list[tuple[int, int, int, int]]] = []
    for step in (1, 2):
        table = []
        for row, column in sorted({(r // step * step, c // step * step) for r, c in cells}):
            part = full[row * tile : (row + step) * tile : step, column * tile : (column + step) * tile : step]
            coded = jpeg(part)
            table.append((row * side + column, len(data), len(coded), 0))
            data += coded
        tables.append(table)
    (folder / "Data0000.dat").write_bytes(data)
    index = bytearray(b"01.02" + slide_id)
    root = len(index)
    index += bytes(8)
    heads = []
    for table in tables:
        page = len(index)
        index += struct.pack("<2i", len(table), 0)
        for entry in table:
            index += struct.pack("<4i", *entry)
        heads.append(len(index))
        index += struct.pack("<2i", 0, page)
    levels = len(index)
    index += struct.pack("<2i", *heads)
    index[root : root + 8] = struct.pack("<2i", levels, levels)
    (folder / "Index.dat").write_bytes(index)
    lines = [
        "[GENERAL]", "SLIDE_VERSION=01.02", f"SLIDE_ID={slide_id.decode()}", f"IMAGENUMBER_X={side}",
        f"IMAGENUMBER_Y={side}", "OBJECTIVE_MAGNIFICATION=20", "CameraImageDivisionsPerSide=1",
        "[HIERARCHICAL]", "HIER_COUNT=1", "NONHIER_COUNT=0", "INDEXFILE=Index.dat", "HIER_0_NAME=Slide zoom level",
        "HIER_0_COUNT=2", "HIER_0_VAL_0_SECTION=LEVEL_0", "HIER_0_VAL_1_SECTION=LEVEL_1",
        "[DATAFILE]", "FILE_COUNT=1", "FILE_0=Data0000.dat",
    ]  # fmt: skip
    for k in range(2):
        lines += [
            f"[LEVEL_{k}]", "OVERLAP_X=0", "OVERLAP_Y=0", f"MICROMETER_PER_PIXEL_X={0.25 * 2**k}",
            f"MICROMETER_PER_PIXEL_Y={0.25 * 2**k}", "IMAGE_FORMAT=JPEG", "IMAGE_FILL_COLOR_BGR=16777215",
            f"DIGITIZER_WIDTH={tile}", f"DIGITIZER_HEIGHT={tile}", f"IMAGE_CONCAT_FACTOR={k}",
        ]  # fmt: skip
    (folder / "Slidedat.ini").write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    canvas = np.full_like(full, 255)
    for row, column in cells:
        area = slice(row * tile, (row + 1) * tile), slice(column * tile, (column + 1) * tile)
        canvas[area] = np.asarray(Image.open(io.BytesIO(jpeg(full[area]))))
    return canvas


def scn(path: Path, regions: Sequence[tuple[int, int, int, int]], shape: tuple[int, int] = (600, 800)) -> np.ndarray:
    """Leica SCN with a macro image and scanned regions (y, x, height, width) of two levels, 0.5 um per px.

    Returns the pixels of the whole glass.
    """
    nm = 500
    full = texture(*shape)
    pages = [full[::16, ::16]]
    images = [_scn_image("macro", [(0, pages[0])], (0, 0, *shape), nm, 1.25)]
    for k, (y, x, h, w) in enumerate(regions):
        first = len(pages)
        pages += [full[y : y + h, x : x + w], full[y : y + h : 4, x : x + w : 4]]
        images.append(_scn_image(f"region {k}", list(enumerate(pages[first:], first)), (y, x, h, w), nm, 20))
    text = (
        '<?xml version="1.0" encoding="utf-8"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection name="c" uuid="urn:uuid:1" sizeX="{shape[1] * nm}" sizeY="{shape[0] * nm}">'
        f"<barcode>1</barcode>{''.join(images)}</collection></scn>"
    )
    with tifffile.TiffWriter(path) as tif:
        for k, page in enumerate(pages):
            tif.write(np.ascontiguousarray(page), tile=(64, 64), compression="jpeg", photometric="rgb", metadata=None,
                      description=text if not k else None, software="Leica",
                      resolution=(20000, 20000), resolutionunit="centimeter")  # fmt: skip
    return full


def _scn_image(name: str, pages: Sequence[tuple[int, np.ndarray]], box: tuple[int, ...], nm: int, power: float) -> str:
    y, x, h, w = (v * nm for v in box)
    sizes = "".join(
        f'<dimension sizeX="{page.shape[1]}" sizeY="{page.shape[0]}" r="{r}" ifd="{ifd}"/>'
        for r, (ifd, page) in enumerate(pages)
    )
    full = pages[0][1]
    return (
        f'<image name="{name}" uuid="urn:uuid:{name}"><creationDate>2020-01-01T00:00:00Z</creationDate>'
        '<device model="Leica SCN400;Leica SCN" version="1.5"/>'
        f'<pixels sizeX="{full.shape[1]}" sizeY="{full.shape[0]}">{sizes}</pixels>'
        f'<view sizeX="{w}" sizeY="{h}" offsetX="{x}" offsetY="{y}" spacingZ="0"/>'
        f"<scanSettings><objectiveSettings><objective>{power}</objective></objectiveSettings><illuminationSettings>"
        "<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource>"
        "</illuminationSettings></scanSettings></image>"
    )


def ndpi(path: Path, planes: Sequence[tuple[np.ndarray, int]], mpp: float = 0.5) -> None:
    """Hamamatsu NDPI of one level with focal planes (pixels, offset in nm), each one JPEG."""
    data = bytearray(struct.pack("<2sHQ", b"II", 42, 0))
    links = [4]
    for pixels, offset in planes:
        h, w, _ = pixels.shape
        coded = jpeg(pixels)
        at = len(data)
        data += coded + bytes(len(coded) % 2)
        extra = len(data)
        per_cm = round(1e4 / mpp)
        data += struct.pack("<3H", 8, 8, 8) + b"Hamamatsu\0" + struct.pack("<2I", per_cm, 1)
        tags = [
            (256, 4, 1, w), (257, 4, 1, h), (258, 3, 3, extra), (259, 3, 1, 7), (262, 3, 1, 6),
            (271, 2, 10, extra + 6), (273, 4, 1, at), (277, 3, 1, 3), (278, 4, 1, h), (279, 4, 1, len(coded)),
            (282, 5, 1, extra + 16), (283, 5, 1, extra + 16), (296, 3, 1, 3), (65420, 4, 1, 1),
            (65421, 11, 1, struct.unpack("<I", struct.pack("<f", 20.0))[0]), (65424, 9, 1, offset & 0xFFFFFFFF),
        ]  # fmt: skip
        data += bytes(-len(data) % 8)
        struct.pack_into("<Q", data, links[-1], len(data))
        data += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        links.append(len(data))
        data += bytes(8 + 4 * len(tags))
    path.write_bytes(data)


def ventana(path: Path, overlap: int, rows: int = 2, columns: int = 3, tile: int = 64) -> None:
    """Ventana slide whose neighbouring tiles in a row overlap by `overlap` px."""
    full = texture(rows * tile, columns * tile)
    stored = np.empty_like(full)
    for j in range(columns):
        x = j * (tile - overlap)
        stored[:, j * tile : (j + 1) * tile] = full[:, x : x + tile]

    def number(row: int, column: int) -> int:  # counted from the lower left, in a snake
        up = rows - 1 - row
        return up * columns + (column if up % 2 == 0 else columns - 1 - column) + 1

    joints = "".join(
        f'<TileJointInfo Confidence="100" Direction="RIGHT" Tile1="{number(r, c)}" Tile2="{number(r, c + 1)}" '
        f'OverlapX="{overlap}" OverlapY="0"/>'
        for r in range(rows)
        for c in range(columns - 1)
    ) + "".join(
        f'<TileJointInfo Confidence="100" Direction="UP" Tile1="{number(r + 1, c)}" Tile2="{number(r, c)}" '
        'OverlapX="0" OverlapY="0"/>'
        for r in range(rows - 1)
        for c in range(columns)
    )
    scan = '<?xml version="1.0"?><Metadata><iScan Magnification="40" ScanRes="0.2325"/></Metadata>'
    stitch = (
        f'<?xml version="1.0"?><EncodeInfo Ver="2"><SlideStitchInfo><ImageInfo AOIScanned="1" AOIIndex="0" '
        f'NumRows="{rows}" NumCols="{columns}" Width="{tile}" Height="{tile}" Pos-X="0" Pos-Y="0">{joints}</ImageInfo>'
        '</SlideStitchInfo><AoiOrigin><AOI0 OriginX="0" OriginY="0"/></AoiOrigin></EncodeInfo>'
    )
    with tifffile.TiffWriter(path) as tif:
        tif.write(texture(60, 45), photometric="rgb", metadata=None, description="Label_Image",
                  extratags=[(700, 1, len(scan), scan.encode(), True)])  # fmt: skip
        tif.write(stored, tile=(tile, tile), compression="jpeg", photometric="rgb", metadata=None,
                  description="level=0 mag=40 quality=90",
                  extratags=[(700, 1, len(stitch), stitch.encode(), True)])  # fmt: skip
        tif.write(np.ascontiguousarray(stored[::2, ::2]), tile=(tile, tile), compression="jpeg", photometric="rgb",
                  metadata=None, description="level=1 mag=20 quality=90", subfiletype=1)  # fmt: skip


def jpeg2000(path: Path, shape: tuple[int, int], tiles: Callable[[int, int], bytes], code: int, **options) -> None:
    """TIFF of JPEG 2000 tiles of 64 x 64 px, with the compression tag `code`."""
    h, w = shape
    coded = (tiles(y, x) for y in range(0, h, 64) for x in range(0, w, 64))
    tifffile.imwrite(path, coded, shape=(h, w, 3), dtype=np.uint8, tile=(64, 64), compression=34712, photometric="rgb",
                     **options)  # fmt: skip
    set_short(path, 259, code)


def set_short(path: Path, tag: int, *values: int) -> None:
    """Overwrite the values of a SHORT tag of the first page."""
    with tifffile.TiffFile(path) as tif:
        at, order = tif.pages[0].tags[tag].valueoffset, tif.byteorder
    with path.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack(f"{order}{len(values)}H", *values))


def leave_out_tiles(path: Path, numbers: Sequence[int], page: int = 0) -> None:
    """Set offset and size of tiles (or strips) to 0, as scanners do for empty glass."""
    with tifffile.TiffFile(path) as tif:
        tags = tif.pages[page].tags
        found = [tags.get(324) or tags[273], tags.get(325) or tags[279]]
        spots = [(tag.valueoffset, {3: 2, 4: 4, 16: 8}[int(tag.dtype)]) for tag in found]
    with path.open("r+b") as file:
        for at, size in spots:
            for k in numbers:
                file.seek(at + k * size)
                file.write(bytes(size))
