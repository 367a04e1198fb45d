"""Damaged and hostile files: one clear line each, bounded time and memory, never a wrong pixel in silence."""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_sparseseg.cli.files import describe
from napari_sparseseg.errors import SlideChangedError, SlideError, SlideOpenError
from napari_sparseseg.slides import open_slide
from napari_sparseseg.slides.pyramid import SlideWarning
from tests.helpers.slide_files import texture, write_ome, write_svs, write_zarr
from tests.helpers.vendor_files import ndpi, scn, ventana

PIXELS = texture(300, 500)


@pytest.fixture
def svs(tmp_path):
    path = tmp_path / "slide.svs"
    write_svs(path, PIXELS, compression="jpeg")
    return path


def peak_kb():
    """The largest resident memory of this process so far."""
    if os.name == "nt":
        import psutil

        return psutil.Process().memory_info().peak_wset >> 10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> 10 if sys.platform == "darwin" else peak


def tag_position(path, code, page=0):
    """Byte at which the value of a tag of a page is stored, its type's format and count."""
    with tifffile.TiffFile(path) as tif:
        tag = tif.pages[page].tags[code]
        return tag.valueoffset, {3: "H", 4: "I", 16: "Q"}[int(tag.dtype)], tag.count


def patch(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def refused(path, reason):
    with pytest.raises(SlideOpenError, match=reason) as caught:
        describe(open_slide(path))
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    assert str(path) in text
    return text


def test_no_file_folder_empty_text(tmp_path):
    refused(tmp_path / "gone.svs", "no such file")
    refused(tmp_path, "folder without OME-Zarr")
    (tmp_path / "empty.svs").touch()
    refused(tmp_path / "empty.svs", "empty")
    (tmp_path / "text.svs").write_text("not a slide\n" * 100)
    refused(tmp_path / "text.svs", "not supported")
    (tmp_path / "random.tif").write_bytes(np.random.default_rng(0).bytes(5000))
    refused(tmp_path / "random.tif", "not supported")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    refused(tmp_path / "picture.png", "does not recognise|is invalid")


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_permission(svs):
    svs.chmod(0)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        refused(svs, "not permitted")
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("keep", [4, 9, 100, 0.5, 0.95, 0.999])
def test_cut_off(svs, keep):
    data = svs.read_bytes()
    svs.write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
    refused(svs, "ends at byte|beyond the end")


def test_cut_head(svs):
    svs.write_bytes(svs.read_bytes()[8:])
    refused(svs, "not supported")


def test_garbage_and_far_tiles_are_grey_counted_and_told_once_and_tiles_left_out_are_background(svs):
    offsets, kind, _ = tag_position(svs, 324)
    with tifffile.TiffFile(svs) as tif:
        where = tif.pages[0].dataoffsets
        sound = tif.pages[0].asarray()
    patch(svs, where[0], b"garbage" * 10)
    patch(svs, offsets + 1 * struct.calcsize(kind), struct.pack(kind, 0))
    patch(svs, offsets + 2 * struct.calcsize(kind), struct.pack(kind, 2**31))
    with open_slide(svs) as slide:
        assert any("1 tiles lie beyond the end" in w for w in slide.warnings)
        with pytest.warns(SlideWarning, match="shown grey") as told:
            got = slide.read((0, 0, *slide.shape))
        assert len(told) == 1
        assert slide.bad_tiles == 2
        assert (got[:64, :64] == 128).all()
        assert (got[:64, 64:128] == 255).all()
        assert (got[:64, 128:192] == 128).all()
        assert slide.metadata["tiles_left_out"] == 1
        np.testing.assert_array_equal(got[64:], sound[64:])
        np.testing.assert_array_equal(got[:64, 192:], sound[:64, 192:])
        assert any("2 tiles cannot be decoded" in w for w in slide.warnings)


def test_circle_of_directories(svs):
    with tifffile.TiffFile(svs) as tif:
        last, first = tif.pages[-1], tif.pages[0].offset
        end = last.offset + 2 + 12 * len(last.tags)
    patch(svs, end, struct.pack("<I", first))
    refused(svs, "circular")


@pytest.mark.parametrize("side", [10**6, 4 * 10**9])
def test_header_claims_the_impossible(svs, side):
    for code in (256, 257):
        with tifffile.TiffFile(svs) as tif:
            tag = tif.pages[0].tags[code]
        patch(svs, tag.offset + 2, struct.pack("<HII", 4, 1, side))
    refused(svs, "tiles|limit|are invalid")


def test_header_claims_the_impossible_in_strips(tmp_path):
    path = tmp_path / "strips.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb", rowsperstrip=8, metadata=None)
    for code in (256, 257):
        with tifffile.TiffFile(path) as tif:
            tag = tif.pages[0].tags[code]
        patch(path, tag.offset + 2, struct.pack("<HII", 4, 1, 10**6))
    refused(path, "not in tiles|strips")


def test_table_larger_than_the_file(svs):
    with tifffile.TiffFile(svs) as tif:
        tag = tif.pages[0].tags[324]
    patch(svs, tag.offset + 4, struct.pack("<I", 2**31 - 1))
    refused(svs, "tag 324 claims")


def test_bomb_in_a_tile_is_bounded(tmp_path):
    path = tmp_path / "bomb.tif"
    bomb = zlib.compress(bytes(2**28), 1)
    with tifffile.TiffWriter(path) as tif:
        tif.write(iter([bomb] * 4), shape=(500, 500, 3), dtype="u1", tile=(256, 256), compression="zlib",
                  photometric="rgb", metadata=None)  # fmt: skip
    before = peak_kb()
    with open_slide(path) as slide, pytest.warns(SlideWarning, match="cannot be decoded"):
        slide.read((0, 0, 500, 500))
    assert peak_kb() - before < 100_000


def test_huge_tile(tmp_path):
    path = tmp_path / "tile.tif"
    one = zlib.compress(bytes(1000))
    with tifffile.TiffWriter(path) as tif:
        tif.write(iter([one]), shape=(16384, 16384), dtype="u1", tile=(16384, 16384), compression="zlib",
                  photometric="minisblack", metadata=None)  # fmt: skip
    refused(path, "tiles are 16384")


def test_jpeg_of_another_size_in_a_tile(svs):
    with tifffile.TiffFile(svs) as tif:
        page = tif.pages[0]
        where, size = page.dataoffsets[0], page.databytecounts[0]
    data = svs.read_bytes()[where : where + size]
    at = data.index(b"\xff\xc0")
    patch(svs, where + at + 5, struct.pack(">HH", 65000, 65000))
    with open_slide(svs) as slide, pytest.warns(SlideWarning, match="65000 x 65000"):
        assert (slide.read((0, 0, 64, 64)) == 128).all()


def test_image_too_large(tmp_path):
    head = struct.pack(">IIBBBBB", 10**6, 10**6, 8, 2, 0, 0, 0)
    chunks = b""
    for name, body in ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(100)))):
        chunks += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    (tmp_path / "large.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    refused(tmp_path / "large.png", "too large")


def test_damaged_image_is_found_by_info(tmp_path):
    from PIL import Image

    path = tmp_path / "cut.png"
    Image.fromarray(PIXELS).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    refused(path, "cannot be decoded")


def ome_with(tmp_path, old, new):
    path = tmp_path / "slide.ome.tif"
    write_ome(path, PIXELS)
    with tifffile.TiffFile(path) as tif:
        text = tif.ome_metadata
    tifffile.tiffcomment(path, text.replace(old, new).encode())
    return path


def test_ome_that_points_at_another_folder(tmp_path):
    uuid = '<UUID FileName="../secret/s.tif">urn:uuid:11111111-1111-1111-1111-111111111111</UUID></TiffData>'
    path = ome_with(tmp_path, '<TiffData IFD="0" PlaneCount="1"/>', f'<TiffData IFD="0" PlaneCount="1">{uuid}')
    refused(path, "points at another file")


def test_entity_bomb(tmp_path):
    entities = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'
    path = ome_with(tmp_path, '<?xml version="1.0" encoding="UTF-8"?>', f'<?xml version="1.0"?>{entities}')
    refused(path, "entities")


def test_vanished_or_overwritten_while_open(svs):
    slide = open_slide(svs)
    first = slide.read((0, 0, 64, 64))
    svs.unlink()
    np.testing.assert_array_equal(slide.read((0, 0, 64, 64)), first)
    slide.close()


def test_share_gone(svs, monkeypatch):
    with open_slide(svs) as slide:

        def gone(*_):
            raise OSError(116, "Stale file handle")

        monkeypatch.setattr(os, "pread", gone)
        with pytest.raises(SlideError, match=r"cannot be read any more.*Stale"):
            slide.read((0, 0, 64, 64))
        assert slide.bad_tiles == 0


def test_shrunk_while_open(svs):
    with open_slide(svs) as slide:
        os.truncate(svs, 5000)
        with pytest.raises(SlideChangedError, match="open it again"):
            slide.read((0, 0, *slide.shape))
        assert slide.bad_tiles == 0, "no grey tile to be learned from"


def test_zarr_vanished_while_open(tmp_path):
    path = tmp_path / "a.zarr"
    write_zarr(path, PIXELS)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read((0, 0, 30, 30)), PIXELS[:30, :30])
        path.rename(tmp_path / "b.zarr")
        slide.pyramid.cache.forget(slide.pyramid.owner)
        with pytest.raises(SlideError, match=r"cannot be read any more.*is gone"):
            slide.read((0, 0, 30, 30))


def test_bad_zarr(tmp_path):
    path = tmp_path / "a.zarr"
    path.mkdir()
    (path / "zarr.json").write_text("{")
    refused(path, "cannot be read as OME-Zarr")
    (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    refused(path, "no multiscales")
    ome = '{"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"multiscales": [{"datasets": [%s]}]}}}'
    (path / "zarr.json").write_text(ome % "")
    refused(path, "cannot be read as OME-Zarr")
    (path / "zarr.json").write_text(ome % '{"path": "../../etc"}')
    refused(path, "cannot be read as OME-Zarr")


def test_more_channels_than_any_slide_has(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8, 1025), np.uint8), planarconfig="contig", tile=(16, 16))
    refused(tmp_path / "a.tif", "it claims 1,025 channels")


def test_damaged_zarr_chunk_is_grey(tmp_path):
    path = tmp_path / "a.zarr"
    write_zarr(path, PIXELS)
    (path / "0" / "c" / "0" / "0" / "0").write_bytes(b"garbage")
    with open_slide(path) as slide, pytest.warns(SlideWarning, match="shown grey"):
        got = slide.read((0, 0, *slide.shape))
    assert (got[:64, :64] == 128).any()
    np.testing.assert_array_equal(got[512:], PIXELS[512:])


def _readable(path):
    """Open and read all: pixels (perhaps with warnings), or one clear line."""
    refusal = ""
    try:
        with open_slide(path) as slide:
            got = slide.read((0, 0, min(slide.shape[0], 2000), min(slide.shape[1], 2000)))
            assert (got.shape[2], got.dtype) == (len(slide.channels), slide.dtype)
            assert all("\n" not in warning for warning in slide.warnings)
            json.dumps(describe(slide))
    except SlideError as error:
        refusal = str(error)
    assert len(refusal.splitlines()) <= 1
    assert len(refusal) < 600


@pytest.fixture
def bounded_memory():
    """What all examples together add to the largest memory ever held."""
    before = peak_kb()
    yield
    assert peak_kb() - before < 500_000


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    small = texture(70, 90)
    write_svs(folder / "a.svs", small, levels=2, tile=32, compression="jpeg")
    write_ome(folder / "b.ome.tif", small, levels=2, compression="zlib")
    write_ome(folder / "c.ome.tif", texture(70, 90, 2, np.uint16), rgb=False, levels=2)
    tifffile.imwrite(folder / "d.tif", small, photometric="rgb", rowsperstrip=8, compression="lzw")
    return [(p.suffix, p.read_bytes()) for p in sorted(folder.iterdir())], folder


@pytest.mark.timeout(300)  # no file may hang
@pytest.mark.filterwarnings("ignore::napari_sparseseg.slides.pyramid.SlideWarning")
@settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "150")),
    deadline=20_000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_fuzz_tiff(seeds, bounded_memory, data):
    """Bytes of sound files changed at random: directories first, they decide what is allocated."""
    files, folder = seeds
    suffix, original = data.draw(st.sampled_from(files))
    changed = bytearray(original)
    head = data.draw(st.booleans())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, min(1500, len(changed) - 1) if head else len(changed) - 1))
        value = data.draw(st.sampled_from([0, 1, 255, 127, 128]) | st.integers(0, 255))
        width = data.draw(st.sampled_from([1, 1, 2, 4]))
        changed[at : at + width] = bytes([value]) * width
    path = folder / f"fuzz{suffix}"
    path.write_bytes(bytes(changed))
    _readable(path)


def tag_entries(data):
    """Offset of each entry of each directory of a classic TIFF, and the entry (tag, type, count, value)."""
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        pages = [q for page in tif.pages for q in (page, *(page.pages or []))]
        starts = [(page.offset, len(page.tags)) for page in pages]
    places = [start + 2 + 12 * k for start, count in starts for k in range(count)]
    return [(at, struct.unpack_from("<HHII", data, at)) for at in places]


@pytest.fixture(scope="module")
def tagged_seeds(tmp_path_factory):
    """Files of many kinds, with the entries of their directories."""
    folder = tmp_path_factory.mktemp("tags")
    small = texture(70, 90)
    options = {"tile": (32, 32), "metadata": None}
    write_svs(folder / "a.svs", small, levels=2, tile=32, compression="jpeg")
    write_svs(folder / "j2k.svs", small, levels=2, tile=32, compression="jpeg2000")
    write_ome(folder / "b.ome.tif", texture(70, 90, 2, np.uint16), rgb=False, levels=2, compression="zlib")
    scn(folder / "c.scn", ((0, 0, 64, 64), (64, 64, 32, 32)), (128, 128))
    ndpi(folder / "d.ndpi", [(small, 0), (small, 1000)])
    cmyk = np.concatenate([small, small[..., :1]], axis=2)
    tifffile.imwrite(folder / "e.tif", cmyk, photometric="separated", **options)
    table = np.zeros((3, 256), np.uint16)
    tifffile.imwrite(folder / "f.tif", small[..., 0], photometric="palette", colormap=table, **options)
    tifffile.imwrite(folder / "g.tif", small[..., 0] > 99, photometric="miniswhite", metadata=None)
    planar = np.moveaxis(small, -1, 0)
    tifffile.imwrite(
        folder / "h.tif", planar, photometric="rgb", planarconfig="separate", compression="jpeg", **options
    )
    ventana(folder / "i.tif", 4)
    found = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        if content[2] == 42 and path.suffix != ".ndpi":
            found.append((path.suffix, content, tag_entries(content)))
        elif path.suffix == ".ndpi":
            at = struct.unpack_from("<Q", content, 4)[0]
            entries = [(at + 2 + 12 * k, struct.unpack_from("<HHII", content, at + 2 + 12 * k)) for k in range(16)]
            found.append((path.suffix, content, entries))
    return found, folder


@pytest.mark.timeout(300)  # no file may hang
@pytest.mark.filterwarnings("ignore::napari_sparseseg.slides.pyramid.SlideWarning")
@settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "200")),
    deadline=20_000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_fuzz_tiff_tags(tagged_seeds, bounded_memory, data):
    """Tags of sound files with another code, type, count or value: read, read with a warning, or one clear line."""
    files, folder = tagged_seeds
    suffix, original, entries = data.draw(st.sampled_from(files))
    changed = bytearray(original)
    numbers = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 64, 255, 2**16 - 1, 2**16, 2**31, 2**32 - 1])
    for _ in range(data.draw(st.integers(1, 3))):
        at, (tag, kind, count, value) = data.draw(st.sampled_from(entries))
        what = data.draw(st.sampled_from(["value", "value", "count", "type", "tag", "moved"]))
        if what == "value":
            value = data.draw(numbers | st.integers(0, 2**32 - 1))
        elif what == "count":
            count = data.draw(numbers)
        elif what == "type":
            kind = data.draw(st.integers(0, 18))
        elif what == "tag":
            tag = data.draw(st.sampled_from([e[1][0] for e in entries]) | st.sampled_from([3, 262, 274, 320, 330, 700]))
        else:
            value = data.draw(st.sampled_from([e[1][3] for e in entries]))
        struct.pack_into("<HHII", changed, at, tag, kind, count, value)
    path = folder / f"fuzz{suffix}"
    path.write_bytes(bytes(changed))
    _readable(path)


@pytest.fixture(scope="module")
def zarr_seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zarr")
    write_zarr(folder / "4.zarr", texture(70, 90), "0.4")
    write_zarr(folder / "5.zarr", texture(70, 90), "0.5")
    write_zarr(folder / "shards.zarr", texture(70, 90, 2, np.uint16), "0.5", shards=True)
    return sorted(p for p in folder.rglob("*") if p.is_file()), folder


@pytest.mark.timeout(300)  # no file may hang
@pytest.mark.filterwarnings("ignore::napari_sparseseg.slides.pyramid.SlideWarning")
@settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_fuzz_zarr(zarr_seeds, bounded_memory, data):
    """Characters of the metadata, or bytes of a chunk or shard, changed at random."""
    files, folder = zarr_seeds
    target = data.draw(st.sampled_from(files))
    original = target.read_bytes()
    changed = bytearray(original)
    text = target.name.startswith(".z") or target.suffix == ".json"
    value = st.sampled_from(list(b'0129",:{}[]-e')) if text else st.integers(0, 255)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at] = data.draw(value | st.integers(0, 255))
    try:
        target.write_bytes(bytes(changed))
        _readable(folder / target.relative_to(folder).parts[0])
    finally:
        target.write_bytes(original)
