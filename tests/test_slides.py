"""Slides beyond the contract: cache, resampling against a plain reference, mpp sources, layouts, arrays, info."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import dask.array as da
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from napari_sparseseg import Session
from napari_sparseseg.cli.files import describe
from napari_sparseseg.errors import SlideError, SlideOpenError
from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.slides import ArraySlide, open_slide
from napari_sparseseg.slides.backends.tiff_level import coded_size
from napari_sparseseg.slides.cache import TileCache
from napari_sparseseg.slides.level import halve
from tests.helpers.slide_files import mean2, texture, write_svs, write_zarr
from tests.helpers.waiting import wait_until


def test_cache_is_bounded_and_forgets_the_oldest():
    cache = TileCache(max_bytes=1000)
    tiles = [np.zeros(400, np.uint8) for _ in range(3)]
    cache.put(1, "a", tiles[0])
    cache.put(1, "b", tiles[1])
    assert cache.get(1, "a") is tiles[0]
    cache.put(2, "c", tiles[2])
    assert cache.get(1, "b") is None
    assert cache.get(1, "a") is tiles[0]
    assert cache.bytes == 800
    cache.put(1, "a", np.zeros(100, np.uint8))
    assert cache.bytes == 500
    cache.put(1, "too large", np.zeros(1001, np.uint8))
    assert cache.bytes == 500
    cache.forget(1)
    assert cache.bytes == 400
    cache.max_bytes = 10
    assert cache.bytes == 0


def test_cache_stays_bounded_under_threads():
    cache = TileCache(max_bytes=10_000)

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(500):
            key = int(rng.integers(100))
            tile = cache.get(0, key)
            if tile is None:
                cache.put(0, key, np.full(int(rng.integers(1, 500)), key, np.uint16))
            else:
                assert (tile == key).all()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert 0 < cache.bytes <= 10_000
    left = [tile for key in range(100) if (tile := cache.get(0, key)) is not None]
    assert cache.bytes == sum(tile.nbytes for tile in left)


def area_mean(pixels, region, frame):
    """Mean over the exact area of each frame pixel, by a plain loop; pixels beyond the slide repeat its edge."""
    h, w, c = pixels.shape
    out = np.zeros((region.height, region.width, c))
    for i in range(region.height):
        for j in range(region.width):
            total = np.zeros(c)
            y0, x0 = ((region.y + i) * frame.downsample[0], (region.x + j) * frame.downsample[1])
            y1, x1 = y0 + frame.downsample[0], x0 + frame.downsample[1]
            for y in range(int(np.floor(y0)), int(np.ceil(y1))):
                for x in range(int(np.floor(x0)), int(np.ceil(x1))):
                    part = (min(y1, y + 1) - max(y0, y)) * (min(x1, x + 1) - max(x0, x))
                    total += part * pixels[min(max(y, 0), h - 1), min(max(x, 0), w - 1)]
            out[i, j] = total / (frame.downsample[0] * frame.downsample[1])
    return out


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("downsample", [(1.0, 1.0), (2.0, 3.0), (1.37, 2.0), (3.21, 4.7)])
def test_shrinking_is_the_area_mean(dtype, downsample):
    pixels = texture(60, 80, 2, dtype)
    frame = Frame(downsample)
    region = Box(3, 2, 11, 13)
    with ArraySlide(pixels) as slide:
        got = slide.read_region(region, frame)
    wanted = area_mean(pixels, region, frame)
    assert got.dtype == dtype
    assert np.abs(got - wanted).max() <= (1e-5 if dtype == np.float32 else 0.51)


def test_enlarging_is_linear_interpolation():
    ramp = np.tile(np.arange(0, 200, 10, dtype=np.uint8)[None, :, None], (20, 1, 1))
    with ArraySlide(ramp) as slide:
        got = slide.read_region(Box(8, 8, 4, 8), Frame((0.5, 0.5)))
    assert got[0, :, 0].tolist() == [38, 43, 48, 53, 58, 63, 68, 73]


def test_edge_pixels_are_kept_and_outside_is_background():
    pixels = np.full((50, 50, 3), 100, np.uint8)
    with ArraySlide(pixels) as slide:
        got = slide.read_region(Box(-2, -2, 20, 20), Frame((4.0, 4.0)))
    inside = np.zeros((20, 20), bool)
    inside[2:14, 2:14] = True  # centres at 2, 6, ... 46 lie inside, 50 does not
    assert (got[inside] == 100).all()
    assert (got[~inside] == 255).all()


@settings(max_examples=60, deadline=None)
@given(
    y=st.integers(-150, 200), x=st.integers(-150, 200), h=st.integers(1, 90), w=st.integers(1, 90),
    step=st.sampled_from([(1.0, 1.0), (4.0, 4.0), (2.7, 3.1), (0.5, 0.8)]),
)  # fmt: skip
def test_a_slide_goes_on_mirrored_beyond_its_edges(y, x, h, w, step):
    with ArraySlide(SMALL) as slide:
        got = slide.read_region(Box(y, x, h, w), Frame(step), mirrored=True)
        # Frame pixels with their centre on the slide: read in one piece, then mirrored by numpy.
        n, m = (sum((i + 0.5) * d < size for i in range(2 * size)) for d, size in zip(step, SMALL.shape, strict=False))
        whole = slide.read_region(Box(0, 0, n, m), Frame(step))
    far = 300
    around = np.pad(whole, ((far, far), (far, far), (0, 0)), mode="symmetric")
    np.testing.assert_array_equal(got, around[far + y : far + y + h, far + x : far + x + w])


SMALL = np.random.default_rng(3).integers(0, 250, (37, 50, 3), dtype=np.uint8)


@settings(max_examples=40, deadline=None)
@given(
    y=st.integers(-20, 90), x=st.integers(-20, 90), h=st.integers(1, 40), w=st.integers(1, 40),
    dy=st.floats(0.3, 9), dx=st.floats(0.3, 9),
)  # fmt: skip
def test_any_region_is_a_crop_of_a_larger_one(y, x, h, w, dy, dx):
    with ArraySlide([TEXTURE, mean2(TEXTURE)]) as slide:
        frame = Frame((dy, dx))
        got = slide.read_region(Box(y, x, h, w), frame)
        larger = slide.read_region(Box(y - 5, x - 3, h + 9, w + 11), frame)
    np.testing.assert_array_equal(got, larger[5 : 5 + h, 3 : 3 + w])


TEXTURE = texture(211, 187)


def test_large_regions_are_read_in_blocks_without_seams(monkeypatch):
    from napari_sparseseg.slides import resample

    with ArraySlide(TEXTURE) as slide:
        whole = slide.read_region(Box(-2, -3, 80, 70), Frame((2.7, 3.0)))
        monkeypatch.setattr(resample, "_BLOCK", (32, 32))
        np.testing.assert_array_equal(slide.read_region(Box(-2, -3, 80, 70), Frame((2.7, 3.0))), whole)


def test_best_level_is_the_coarsest_that_is_fine_enough(tmp_path, monkeypatch):
    path = tmp_path / "a.svs"
    write_svs(path, texture(512, 640), levels=3)
    with open_slide(path) as slide:
        used = []
        real = slide.pyramid.read
        monkeypatch.setattr(slide.pyramid, "read", lambda k, *a: used.append(k) or real(k, *a))
        for mpp, level in ((0.1, 0), (0.25, 0), (0.9, 0), (0.97, 1), (1.0, 1), (2.0, 1), (3.9, 2), (40, 2)):
            used.clear()
            slide.read_region(Box(0, 0, 4, 4), slide.frame(mpp))
            assert set(used) == {level}, mpp


def test_thumbnail(tmp_path):
    path = tmp_path / "a.svs"
    write_svs(path, texture(512, 640), levels=2)
    with open_slide(path) as slide:
        small, frame = slide.thumbnail(100)
        assert small.shape == (80, 100, 3)
        assert frame.downsample == (6.4, 6.4)


def test_halve_counts_by_hand():
    pixels = np.array([[1, 2, 9], [3, 5, 11], [7, 7, 100]], np.uint8)[..., None]
    assert halve(pixels)[..., 0].tolist() == [[3, 10], [7, 100]]  # 11 / 4 = 2.75, (9 + 11) / 2 = 10, edges twice
    assert halve(pixels.astype(np.float32))[0, 0, 0] == 2.75


def test_coded_sizes(tmp_path):
    for name, kind in (("a.jpg", "JPEG"), ("a.png", "PNG")):
        Image.fromarray(TEXTURE).save(tmp_path / name, kind)
        assert coded_size((tmp_path / name).read_bytes()) == (211, 187)
    import imagecodecs

    assert coded_size(imagecodecs.jpeg2k_encode(TEXTURE, codecformat="j2k")) == (211, 187)
    assert coded_size(b"\xff\xd8\xff") is None
    assert coded_size(b"") is None


@pytest.mark.parametrize(
    ("options", "mpp", "source"),
    [
        ({"resolution": (20000, 40000), "resolutionunit": "centimeter"}, (0.25, 0.5), "TIFF resolution tags"),
        ({"resolution": (50800, 50800), "resolutionunit": "inch"}, (0.5, 0.5), "TIFF resolution tags"),
        ({"resolution": (72, 72), "resolutionunit": "inch"}, None, ""),
        ({"resolution": (4, 4), "resolutionunit": "none"}, None, ""),
        ({}, None, ""),
        ({"imagej": True, "resolution": (4, 2), "metadata": {"unit": "um"}}, (0.5, 0.25), "ImageJ unit"),
    ],
)
def test_mpp_of_tags(tmp_path, options, mpp, source):
    path = tmp_path / "a.tif"
    options = {"metadata": None, "photometric": "rgb", **options}
    tifffile.imwrite(path, texture(64, 96), **options)
    with open_slide(path) as slide:
        assert slide.mpp == (None if mpp is None else pytest.approx(mpp))
        assert slide.mpp_source == source


def test_mpp_is_asked_for_and_can_be_set(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(TEXTURE).save(path)
    with open_slide(path) as slide:
        assert slide.mpp is None
        assert slide.frame(1.0) == Frame()
        with pytest.raises(SlideError, match=r"set slide\.mpp"):
            slide.read((0, 0, 10, 10), mpp=1.0)
        assert any("mpp" in p for p in describe(slide)["problems"])
        slide.mpp = 0.25
        assert slide.mpp == (0.25, 0.25)
        assert slide.mpp_source == "set by the user"
        assert slide.read((0, 0, 40, 80), mpp=1.0).shape == (10, 20, 3)
        slide.mpp = (0.5, 0.25)
        assert slide.frame(1).downsample == (2, 4)
        for bad in (0, -1, float("nan"), (1, 2, 3)):
            with pytest.raises(SlideError, match="not a resolution"):
                slide.mpp = bad
        with pytest.raises(SlideError, match="not a resolution"):
            slide.frame(-1.0)


def test_fingerprint_survives_a_move_and_sees_a_change(tmp_path):
    path = tmp_path / "a.svs"
    write_svs(path, TEXTURE)
    with open_slide(path) as slide:
        first = slide.fingerprint
    moved = tmp_path / "sub" / "b.svs"
    moved.parent.mkdir()
    path.rename(moved)
    with open_slide(moved) as slide:
        assert slide.fingerprint == first
    with moved.open("r+b") as file:
        file.seek(1000)
        file.write(b"x")
    with open_slide(moved) as slide:
        assert slide.fingerprint != first


def test_levels_that_are_not_marked_as_such(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tif:
        for part in (TEXTURE, mean2(TEXTURE)):
            tif.write(part, tile=(64, 64), photometric="rgb", metadata=None)
    with open_slide(path) as slide:
        assert slide.downsamples == (1, 2)
        np.testing.assert_array_equal(slide.levels[1].compute(), mean2(TEXTURE))


def test_the_first_focal_plane_is_open_and_a_warning_says_so(tmp_path):
    path = tmp_path / "a.ome.tif"
    stack = np.stack([texture(96, 128, 1, seed=k)[..., 0] for k in range(5)])
    tifffile.imwrite(path, stack, tile=(64, 64), photometric="minisblack", metadata={"axes": "ZYX"})
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read((0, 0, 96, 128))[..., 0], stack[0])
        assert slide.warnings == ("it has 5 focal planes; number 0 is open",)


def test_alpha_is_laid_over_white_and_white_is_zero_is_inverted(tmp_path):
    rgba = np.concatenate([TEXTURE, texture(211, 187, 1, seed=5)], axis=2)
    alpha = rgba[..., 3:] / 255
    wanted = rgba[..., :3] * alpha + 255 * (1 - alpha)
    tifffile.imwrite(
        tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["unassalpha"], tile=(64, 64), metadata=None
    )
    Image.fromarray(rgba, "RGBA").save(tmp_path / "a.png")
    for path in (tmp_path / "a.tif", tmp_path / "a.png"):
        with open_slide(path) as slide:
            assert slide.channels == ("R", "G", "B")
            assert np.abs(slide.read((0, 0, 211, 187)) - wanted).max() <= 0.51
    grey = TEXTURE[..., 0]
    tifffile.imwrite(tmp_path / "b.tif", grey, photometric="miniswhite", tile=(64, 64), metadata=None)
    with open_slide(tmp_path / "b.tif") as slide:
        np.testing.assert_array_equal(slide.read((0, 0, 211, 187))[..., 0], 255 - grey)


def test_zarr_opened_by_its_metadata_file_and_alpha(tmp_path):
    path = tmp_path / "a.zarr"
    write_zarr(path, TEXTURE)
    with open_slide(path / "zarr.json") as slide:
        assert slide.path == str(path)
        assert slide.contents.format == "OME-Zarr 0.5"


def test_zarr_over_http(tmp_path):
    pytest.importorskip("aiohttp", reason="addresses need fsspec[http]")
    write_zarr(tmp_path / "a.zarr", TEXTURE, "0.4")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/a.zarr"
        with open_slide(address) as slide:
            np.testing.assert_array_equal(slide.read((0, 0, 211, 187)), TEXTURE)
            assert slide.mpp == (0.5, 0.25)
        with Session() as session:
            slide = session.open(address)
            assert session.open(address) is slide
            np.testing.assert_array_equal(slide.read((0, 0, 40, 50)), TEXTURE[:40, :50])
        with pytest.raises(SlideOpenError, match="cannot be read as OME-Zarr"):
            open_slide(f"http://127.0.0.1:{server.server_port}/b.zarr")
    finally:
        server.shutdown()
        server.server_close()


def test_zarr_in_an_object_store():
    """fsspec's store in memory stands for S3: the same keys, no folders, no files."""
    write_zarr("memory://bucket/a.zarr", TEXTURE, "0.5", shards=True)
    with open_slide("memory://bucket/a.zarr") as slide:
        assert slide.contents.format == "OME-Zarr 0.5"
        np.testing.assert_array_equal(slide.read((0, 0, 211, 187)), TEXTURE)
    with pytest.raises(SlideOpenError, match="cannot be read as OME-Zarr"):
        open_slide("memory://bucket/b.zarr")


def test_nothing_is_asked_of_the_network_unless_an_address_is_given(tmp_path, monkeypatch):
    import socket

    def refuse(*_):
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    write_svs(tmp_path / "a.svs", TEXTURE)
    write_zarr(tmp_path / "a.zarr", TEXTURE)
    for name in ("a.svs", "a.zarr"):
        with open_slide(tmp_path / name) as slide:
            slide.read((0, 0, 50, 50))
            describe(slide)


def test_qptiff(tmp_path):
    """Akoya's layout: full size by channel, thumbnail, then every level by channel; names and colours in XML."""
    pixels, names = texture(600, 900, 2, np.uint16), ["DAPI", "CD8"]
    colours = ["0,0,255", "255,128,0"]
    path = tmp_path / "a.qptiff"

    def xml(kind, k):
        return (
            f'<?xml version="1.0" encoding="utf-16"?><PerkinElmer-QPI-ImageDescription><ImageType>{kind}</ImageType>'
            f"<Name>{names[k]}</Name><Color>{colours[k]}</Color><Objective>20x</Objective>"
            "</PerkinElmer-QPI-ImageDescription>"
        ).encode()

    options = {
        "tile": (128, 128), "photometric": "minisblack", "metadata": None, "software": "PerkinElmer-QPI",
        "resolution": (20000, 20000), "resolutionunit": "centimeter", "compression": "lzw",
    }  # fmt: skip
    with tifffile.TiffWriter(path) as tif:
        for part, kind in ((pixels, "FullResolution"), (mean2(pixels), "ReducedResolution")):
            for k in range(2):
                tif.write(part[..., k], description=xml(kind, k), **options)
            if kind == "FullResolution":
                tif.write(
                    texture(50, 70), photometric="rgb", metadata=None, software="PerkinElmer-QPI",
                    description=xml("Thumbnail", 0),
                )  # fmt: skip
    with open_slide(path) as slide:
        assert slide.contents.format == "PerkinElmer / Akoya QPTIFF"
        assert slide.channels == ("DAPI", "CD8")
        assert slide.contents.colours == ("#0000ff", "#ff8000")
        assert slide.mpp == pytest.approx((0.5, 0.5))
        assert slide.downsamples == (1, 2)
        np.testing.assert_array_equal(slide.read((0, 0, 600, 900)), pixels)
        np.testing.assert_array_equal(slide.levels[1].compute(), mean2(pixels))


def test_philips_missing_tiles_are_background(tmp_path):
    """Philips leaves out tiles without tissue: they are white, and no damage."""
    pixels = texture(512, 512)
    path = tmp_path / "a.tiff"
    spacing = '<Attribute Name="DICOM_PIXEL_SPACING">"0.00025" "0.0005"</Attribute>'
    text = f'<?xml version="1.0"?><DataObject ObjectType="DPUfsImport">{spacing}</DataObject>'
    with tifffile.TiffWriter(path) as tif:
        tif.write(pixels, tile=(256, 256), photometric="rgb", metadata=None, description=text, software="Philips DP v1")
    with tifffile.TiffFile(path) as tif:
        tag = tif.pages[0].tags[325]
    with path.open("r+b") as file:
        file.seek(tag.valueoffset)
        file.write(bytes(tag.valuebytecount // 4))
    with open_slide(path) as slide:
        assert slide.contents.format == "Philips TIFF"
        assert slide.mpp == pytest.approx((0.25, 0.5))
        got = slide.read((0, 0, 512, 512))
        assert (got[:256, :256] == 255).all()
        np.testing.assert_array_equal(got[256:], pixels[256:])
        assert slide.bad_tiles == 0
        assert not any("grey" in w for w in slide.warnings)


def test_gaps_between_levels_are_filled(tmp_path):
    """A file with 1:1 and 1:16: what napari would read of level 0 to show 1:15 is 200 times the screen."""
    pixels = texture(1600, 2400)
    path = tmp_path / "a.tif"
    small = pixels
    with tifffile.TiffWriter(path) as tif:
        tif.write(pixels, tile=(256, 256), photometric="rgb", metadata=None)
        for _ in range(4):
            small = mean2(small)
        tif.write(small, tile=(64, 64), photometric="rgb", subfiletype=1, metadata=None)
    with open_slide(path) as slide:
        assert slide.downsamples == (1, 2, 4, 16)
        assert [level.added for level in slide.pyramid.levels] == [False, True, True, False]
        assert (
            np.abs(slide.levels[2].compute().astype(int) - mean2(mean2(pixels))).max() <= 2
        )  # halves are rounded otherwise
        np.testing.assert_array_equal(slide.levels[3].compute(), small)


def test_zarr_plate_is_refused(tmp_path):
    import zarr

    zarr.open_group(tmp_path / "p.zarr", mode="w", zarr_format=2).attrs["plate"] = {"wells": []}
    with pytest.raises(SlideOpenError, match="plate or well"):
        open_slide(tmp_path / "p.zarr")


def test_info_is_json_and_complete(cmu_svs):
    with open_slide(cmu_svs) as slide:
        facts = json.loads(json.dumps(describe(slide)))
    assert facts["format"] == "Aperio SVS"
    assert facts["backend"] == "tifffile"
    assert facts["bytes"] == 1_938_955
    assert (facts["width"], facts["height"]) == (2220, 2967)
    assert facts["mpp_yx"] == [0.499, 0.499]
    assert facts["mpp_source"] == "Aperio MPP"
    assert facts["levels"][0]["tile"] == [240, 240]
    assert [level["stored"] for level in facts["levels"]] == [True, False, False]
    assert facts["associated"] == ["thumbnail", "label", "macro"]
    assert facts["problems"] == []


def test_arrays_of_wrong_shape_are_refused():
    with pytest.raises(SlideOpenError, match="not an \\(h, w\\)"):
        ArraySlide(np.zeros((3, 4, 5, 6)))
    with pytest.raises(SlideOpenError, match="channel names"):
        ArraySlide(np.zeros((30, 40, 2)), channels=["a"])
    with pytest.raises(SlideError, match="not smaller"):
        ArraySlide([np.zeros((30, 40)), np.zeros((30, 40))])


def test_close_waits_for_active_reads(tmp_path, monkeypatch):
    path = tmp_path / "a.svs"
    write_svs(path, TEXTURE)
    slide = open_slide(path)
    level = slide.pyramid.levels[0]
    started, go_on, real = threading.Event(), threading.Event(), level.decode

    def slow(*args):
        started.set()
        assert go_on.wait(10)
        return real(*args)

    monkeypatch.setattr(level, "decode", slow)
    with ThreadPoolExecutor(2) as pool:
        read = pool.submit(slide.read, (0, 0, 10, 10))
        assert started.wait(10)
        closing = pool.submit(slide.close)
        wait_until(lambda: slide.closed)
        assert not closing.done()
        go_on.set()
        np.testing.assert_array_equal(read.result(10), TEXTURE[:10, :10])
        closing.result(10)


def test_windows_of_levels_are_dask_arrays_and_numpy_reads_them_without_dask(tmp_path):
    path = tmp_path / "slide.svs"
    write_svs(path, TEXTURE, compression="jpeg")
    with open_slide(path) as slide:
        whole = slide.read((0, 0, *slide.shape))
        for level in (slide.levels[0], ArraySlide(list(slide.levels)).levels[0]):  # the second reads slides in slides
            window = level[70:][:-5, 40:300]
            assert isinstance(window, da.Array)
            np.testing.assert_array_equal(np.asarray(window), whole[70:-5, 40:300])
            np.testing.assert_array_equal(window.compute(scheduler="sync"), whole[70:-5, 40:300])
            np.testing.assert_array_equal(np.asarray(window, dtype=np.uint16), whole[70:-5, 40:300])
            np.testing.assert_array_equal(level[90], whole[90])
            np.testing.assert_array_equal(level[5:50:7, ..., 1:], whole[5:50:7, :, 1:])
            np.testing.assert_array_equal(level[10:20, 30:40, 1:2], whole[10:20, 30:40, 1:2])
            assert level[8:8].shape == (0, *level.shape[1:])
            assert float(level[:64, :64].mean()) == pytest.approx(whole[:64, :64].mean())
        channel = slide.channel_levels(1)[0][3:80, 7:90]
        np.testing.assert_array_equal(np.asarray(channel), whole[3:80, 7:90, 1])
