"""Every backend passes the contract; pixels are compared with another reader than ours."""

from __future__ import annotations

import numpy as np
import openslide
import pytest
import tifffile
import zarr
from PIL import Image

from napari_sparseseg.slides import ArraySlide, open_slide
from tests.contracts.slide_contract import SlideContract
from tests.helpers.slide_files import mean2, texture, write_ome, write_reduced_pages, write_svs, write_zarr

H, W = 613, 1030


class TestCmuSvs(SlideContract):
    @pytest.fixture
    def slide(self, cmu_svs):
        with open_slide(cmu_svs) as slide:
            yield slide

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, cmu_svs):
        with openslide.OpenSlide(str(cmu_svs)) as other:
            return np.asarray(other.read_region((0, 0), 0, other.dimensions))[..., :3]


class Written(SlideContract):
    """Writes its own file once per class."""

    @staticmethod
    def write(path, pixels): ...

    pixels = staticmethod(lambda: texture(H, W))
    name = "slide.tif"

    @pytest.fixture(scope="class")
    @classmethod
    def path(cls, tmp_path_factory):
        path = tmp_path_factory.mktemp("slides") / cls.name
        cls.write(path, cls.pixels())
        return path

    @pytest.fixture
    def slide(self, path):
        with open_slide(path) as slide:
            yield slide

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls):
        return cls.pixels()


class TestSvsLzw(Written):
    name = "slide.svs"

    @staticmethod
    def write(path, pixels):
        write_svs(path, pixels, compression="lzw")

    def test_stored_levels_are_used(self, slide, reference):
        assert slide.downsamples == (1, 4, 16)
        assert [level.added for level in slide.pyramid.levels] == [False] * 3
        np.testing.assert_array_equal(slide.levels[1].compute(), mean2(mean2(reference)))
        assert (slide.mpp, slide.mpp_source) == ((0.25, 0.25), "Aperio MPP")
        assert slide.associated == ("thumbnail",)


class TestSvsJpeg(Written):
    name = "slide.svs"

    @staticmethod
    def write(path, pixels):
        write_svs(path, pixels, compression="jpeg", compressionargs={"level": 90}, tile=256)

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, path):
        with openslide.OpenSlide(str(path)) as other:
            return np.asarray(other.read_region((0, 0), 0, other.dimensions))[..., :3]


class TestSvsJpeg2000(Written):
    name = "slide.svs"

    @staticmethod
    def write(path, pixels):
        write_svs(path, pixels, compression="aperio_jp2000_rgb", tile=256, compressionargs={"level": 0})


class TestReducedPages(Written):
    @staticmethod
    def write(path, pixels):
        write_reduced_pages(path, pixels, compression="zlib", predictor=True)

    def test_stored_levels_are_used(self, slide, reference):
        assert slide.downsamples == (1, 2, 4)
        np.testing.assert_array_equal(slide.levels[2].compute(), mean2(mean2(reference)))


class TestOmeRgb(Written):
    name = "slide.ome.tif"

    @staticmethod
    def write(path, pixels):
        write_ome(path, pixels, compression="zstd")

    def test_stored_levels_are_used(self, slide, reference):
        assert slide.downsamples == (1, 2, 4)
        np.testing.assert_array_equal(slide.levels[1].compute(), mean2(reference))


class TestOmeFluorescence(Written):
    name = "slide.ome.tif"
    pixels = staticmethod(lambda: texture(H, W, 4, np.uint16))

    @staticmethod
    def write(path, pixels):
        channel = {"Name": ["DAPI", "CD3", "CD8", "CK"], "Color": [255 << 8, -16776961, 0x00FF00FF, 0x7F7F7FFF]}
        sizes = {"PhysicalSizeY": 0.65, "PhysicalSizeX": 650.0, "PhysicalSizeXUnit": "nm"}
        write_ome(path, pixels, rgb=False, metadata={"Channel": channel, **sizes})

    def test_channels_colours_mpp(self, slide):
        assert slide.channels == ("DAPI", "CD3", "CD8", "CK")
        assert slide.contents.colours == ("#0000ff", "#ff0000", "#00ff00", "#7f7f7f")
        assert not slide.is_rgb
        assert slide.mpp == pytest.approx((0.65, 0.65))
        assert slide.background == (0, 0, 0, 0)

    def test_one_channel_decodes_only_its_own_tiles(self, slide, monkeypatch):
        seen = set()
        level = slide.pyramid.levels[0]
        real = level.decode
        monkeypatch.setattr(level, "decode", lambda plane, *rest: seen.add(plane) or real(plane, *rest))
        slide.channel_levels(2)[0][:100, :100].compute()
        assert seen == {2}


class TestFloatBigEndian(Written):
    pixels = staticmethod(lambda: texture(300, 1100, 2, np.float32))

    @staticmethod
    def write(path, pixels):
        with tifffile.TiffWriter(path, byteorder=">", bigtiff=True) as tif:
            data = np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
            tif.write(data, tile=(128, 128), photometric="minisblack", metadata=None)


class TestPlanarRgb(Written):
    @staticmethod
    def write(path, pixels):
        data = np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
        tifffile.imwrite(path, data, tile=(64, 64), photometric="rgb", planarconfig="separate", metadata=None)

    def test_is_rgb(self, slide):
        assert slide.is_rgb


class TestStrips(Written):
    @staticmethod
    def write(path, pixels):
        tifffile.imwrite(path, pixels, photometric="rgb", rowsperstrip=16, metadata=None, resolution=(20000, 20000),
                         resolutionunit="centimeter")  # fmt: skip

    def test_mpp_from_resolution_tags(self, slide):
        assert slide.mpp == pytest.approx((0.5, 0.5))


class TestOmeZarr04(Written):
    name = "slide.ome.zarr"

    @staticmethod
    def write(path, pixels):
        write_zarr(path, pixels, "0.4")

    def test_stored_levels_and_rectangular_mpp(self, slide, reference):
        assert slide.is_rgb
        assert slide.downsamples == (1, 2, 4)
        assert slide.mpp == (0.5, 0.25)
        np.testing.assert_array_equal(slide.levels[1].compute(), mean2(reference))
        assert slide.frame(1.0).downsample == (2.0, 4.0)
        assert slide.read((0, 0, 400, 400), mpp=1.0).shape == (200, 100, 3)


class TestOmeZarr05Sharded(Written):
    name = "slide.ome.zarr"
    pixels = staticmethod(lambda: texture(H, W, 2, np.uint16))

    @staticmethod
    def write(path, pixels):
        channel = [{"label": "DAPI", "color": "0000FF", "window": {"start": 10, "end": 900}}, {"label": "CK"}]
        write_zarr(path, pixels, "0.5", shards=True, omero={"channels": channel})

    def test_channels(self, slide):
        assert slide.channels == ("DAPI", "CK")
        assert slide.contents.colours == ("#0000ff", None)
        assert slide.contents.contrast == ((10, 900), None)


class TestPng(Written):
    name = "slide.png"

    @staticmethod
    def write(path, pixels):
        Image.fromarray(pixels).save(path)


class TestJpeg(Written):
    name = "slide.jpg"
    tolerance = 3  # two JPEG libraries may use other transforms

    @staticmethod
    def write(path, pixels):
        Image.fromarray(pixels).save(path, quality=90, subsampling=0)

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, path):
        with Image.open(path) as image:
            return np.asarray(image)


class TestOpenSlide(TestCmuSvs):
    """OpenSlide behind our own interface, on the real slide; tifffile is the other reader."""

    @pytest.fixture
    def slide(self, cmu_svs):
        from napari_sparseseg.slides.backends.openslide import open_openslide
        from napari_sparseseg.slides.slide import Slide

        with Slide(open_openslide(str(cmu_svs))) as slide:
            yield slide

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, cmu_svs):
        return tifffile.imread(cmu_svs)

    def test_metadata(self, slide):
        assert slide.mpp == (0.499, 0.499)
        assert set(slide.associated) == {"label", "macro", "thumbnail"}


class TestNumpyArrays(SlideContract):
    @pytest.fixture
    def slide(self, reference):
        with ArraySlide([reference, mean2(reference)], mpp=0.5) as slide:
            yield slide

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls):
        return texture(H, W)


class TestZarrArraysSideBySide(SlideContract):
    @pytest.fixture
    def slide(self, reference):
        parts = [zarr.array(np.ascontiguousarray(reference[..., k]), chunks=(100, 100)) for k in range(2)]
        with ArraySlide([parts], channels=["a", "b"]) as slide:
            yield slide

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls):
        return texture(600, 800, 2, np.uint16)
