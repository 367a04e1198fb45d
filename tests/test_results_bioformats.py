"""The OME-TIFF as Bio-Formats (and so QuPath, Fiji, OMERO) reads it."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tifffile

from napari_sparseseg.prediction.slide import run_prediction
from tests.helpers.bioformats import bioformats, needs_bioformats
from tests.helpers.smooth_model import SmoothModel, patches_slide

pytestmark = needs_bioformats


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("bioformats") / "a.ome.tif"
    slide = patches_slide((2100, 1500))
    run_prediction(slide, SmoothModel(mpp=0.5, radius=0), path, uncertainty=True)
    return path, slide


def test_both_images_with_every_resolution_tiles_and_pixel_size(made):
    found = bioformats("ImageInfo", "-nopix", "-noflat", made[0])
    assert "Checking file format [OME-TIFF]" in found
    assert re.search(r"Series count = 2\b", found)
    widths = [int(w) for w in re.findall(r"sizeX\[\d\] = (\d+)", found)]
    assert widths == [1500, 750, 375, 188, 94] * 2
    assert found.count("Tile size = 512 x 512") >= 2
    xml = bioformats("ImageInfo", "-nopix", "-noflat", "-omexml-only", made[0])
    assert 'Name="classes"' in xml
    assert 'Name="uncertainty"' in xml
    assert xml.count('PhysicalSizeX="0.5" PhysicalSizeXUnit="µm"') == 2
    assert "stroma #3cb44b" in xml


@pytest.mark.parametrize("resolution", [0, 2])
def test_pixels_and_landmarks_are_where_they_were_drawn(made, resolution, tmp_path):
    """Blocks of 100 px: their borders lie where the slide's do, to half a pixel of the resolution read."""
    path, slide = made
    out = tmp_path / "plain.ome.tif"
    # the tool counts each resolution as a series of its own
    bioformats("ImageConverter", "-series", resolution, path, out)
    read = tifffile.imread(out)
    np.testing.assert_array_equal(read, tifffile.imread(path, series=0, level=resolution))
    step = 2**resolution
    assert read.shape == (-(-2100 // step), -(-1500 // step))
    rows, columns = (np.arange(50, n, 100) for n in slide.shape)
    at = read[np.ix_(rows // step, columns // step)]
    np.testing.assert_array_equal(at, slide.truth[np.ix_(rows, columns)])
    for row in (150, 750):
        border = np.flatnonzero(np.diff(slide.truth[row].astype(int)))[0] + 1
        found = np.flatnonzero(np.diff(read[row // step].astype(int)))[0] + 1
        assert abs(found * step - border) <= step / 2
