"""The napari reader: what it takes, what layers it makes, and slides of layers that others opened."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from napari import layers as napari_layers
from npe2 import PluginManifest

from napari_sparseseg.errors import SlideError, SlideOpenError
from napari_sparseseg.files import result_name
from napari_sparseseg.gui.dialogs import SLIDES
from napari_sparseseg.gui.layers.scribbles import SUFFIXES
from napari_sparseseg.gui.reader import layer_data, napari_get_reader, slide_of_layers
from napari_sparseseg.io.files import WRITERS
from napari_sparseseg.slides import open_slide
from napari_sparseseg.slides.pyramid import SlideWarning
from tests.helpers.data import ROOT
from tests.helpers.slide_files import mean2, texture, write_ome, write_reduced_pages, write_svs, write_zarr


def test_takes_slides_and_pyramids_only(tmp_path):
    pixels = texture(200, 300)
    write_svs(tmp_path / "a.svs", pixels)
    write_reduced_pages(tmp_path / "b.tif", pixels)
    write_ome(tmp_path / "c.ome.tif", pixels)
    write_zarr(tmp_path / "d.zarr", pixels)
    for name in ("a.svs", "b.tif", "c.ome.tif", "d.zarr"):
        assert napari_get_reader(str(tmp_path / name)) is not None
        assert napari_get_reader([str(tmp_path / name)]) is not None
    tifffile.imwrite(tmp_path / "small.tif", pixels, photometric="rgb")
    (tmp_path / "text.tif").write_text("no")
    for name in ("small.tif", "text.tif", "gone.tif", "."):
        assert napari_get_reader(str(tmp_path / name)) is None
    assert napari_get_reader([str(tmp_path / "a.svs"), str(tmp_path / "b.tif")]) is None


def test_the_lists_of_suffixes_agree():
    found = PluginManifest.from_file(ROOT / "napari_sparseseg" / "napari.yaml").contributions
    patterns = [pattern for reader in found.readers for pattern in reader.filename_patterns]
    offered = SLIDES.partition("(")[2].partition(")")[0].split()
    assert {p for p in patterns if not p.endswith(".zarr")} <= set(offered)
    assert {result_name(pattern) for pattern in patterns} == {"*"}
    assert [writer.filename_extensions for writer in found.writers] == [list(SUFFIXES)]
    assert set(SUFFIXES) <= set(WRITERS)


def test_a_broken_slide_says_what_is_wrong(tmp_path):
    path = tmp_path / "a.svs"
    path.write_bytes(b"II*\0\x08\0\0\0")
    with pytest.raises(SlideOpenError, match="ends at byte"):
        napari_get_reader(str(path))(str(path))


def test_rgb_layer(cmu_svs):
    [(levels, keywords, kind)] = napari_get_reader(str(cmu_svs))(str(cmu_svs))
    layer = napari_layers.Layer.create(levels, keywords, kind)
    assert layer.rgb
    assert layer.multiscale
    assert layer.name == "CMU-1-Small-Region.svs"
    assert tuple(layer.scale) == (1, 1)
    slide = layer.metadata["slide"]
    assert slide_of_layers([layer]) is slide
    np.testing.assert_array_equal(np.asarray(layer.data[0][:50, :60]), slide.read((0, 0, 50, 60)))
    slide.close()


def test_one_layer_per_channel(tmp_path):
    path = tmp_path / "a.ome.tif"
    pixels = texture(1200, 900, 3, np.uint16)
    channel = {"Name": ["DAPI", "CD3", "CK"], "Color": [65535, -16776961, 16711935]}
    write_ome(path, pixels, rgb=False, levels=2, metadata={"Channel": channel})
    with open_slide(path) as slide:
        layers = [napari_layers.Layer.create(*data) for data in layer_data(slide)]
        assert [v.name for v in layers] == ["a.ome.tif: DAPI", "a.ome.tif: CD3", "a.ome.tif: CK"]
        assert [v.blending for v in layers] == ["additive"] * 3
        np.testing.assert_allclose(layers[1].colormap.map(np.array([1.0]))[0, :3], [1, 0, 0], atol=1e-6)
        for c, layer in enumerate(layers):
            np.testing.assert_array_equal(np.asarray(layer.data[0][:20, :30]), pixels[:20, :30, c])
            low, high = np.percentile(mean2(pixels)[..., c], (0.1, 99.9))
            assert layer.contrast_limits == pytest.approx((low, high))


def test_contrast_limits_of_the_file(tmp_path):
    path = tmp_path / "a.zarr"
    channel = {"label": "a", "color": "00ff00", "window": {"start": 10, "end": 900}}
    write_zarr(path, texture(200, 300, 1, np.uint16), omero={"channels": [channel]})
    with open_slide(path) as slide:
        [(_, keywords, _)] = layer_data(slide)
    assert keywords["contrast_limits"] == (10, 900)
    assert keywords["colormap"] == "#00ff00"


def test_layers_that_others_opened():
    pixels = texture(300, 200)
    layer = napari_layers.Image([pixels, mean2(pixels)], rgb=True, multiscale=True, scale=(0.5, 0.25), units="um")
    with slide_of_layers([layer]) as slide:
        assert slide.is_rgb
        assert slide.downsamples == (1, 2)
        assert slide.mpp == (0.5, 0.25)
        np.testing.assert_array_equal(slide.read((10, 20, 30, 40)), pixels[10:40, 20:60])
    channels = [napari_layers.Image(pixels[..., k], name=f"c{k}") for k in range(2)]
    with slide_of_layers(channels) as slide:
        assert slide.channels == ("c0", "c1")
        assert slide.mpp is None
        np.testing.assert_array_equal(slide.read((0, 0, 300, 200)), pixels[..., :2])
    with pytest.raises(SlideError, match="3 dimensions"):
        slide_of_layers([napari_layers.Image(np.zeros((3, 40, 50)))])


def test_a_layer_of_a_slide_that_cannot_be_read_is_grey_and_says_so(tmp_path):
    """In a viewer every move reads; an exception there would be a traceback at each, over a view that stands still."""
    write_svs(tmp_path / "a.svs", texture(600, 800))
    with open_slide(tmp_path / "a.svs") as slide:
        [(levels, _, _)] = layer_data(slide)
        plain = slide.levels[0]
        before = np.asarray(levels[0][:50, :60])
    np.testing.assert_array_equal(before, texture(600, 800)[:50, :60])
    with pytest.warns(SlideWarning, match="is closed; open it again.*Showing a grey placeholder"):
        found = np.asarray(levels[0][100:150, :60])
    assert found.shape == (50, 60, 3)
    assert found.dtype == np.uint8
    assert np.unique(found).size == 1
    with pytest.raises(SlideError, match="is closed"):
        np.asarray(plain[100:150, :60])  # who computes must not take grey for tissue
