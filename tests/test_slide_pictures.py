"""Label, macro and thumbnail are read when asked for, as OpenSlide reads them."""

from __future__ import annotations

import numpy as np
import openslide
import pytest

from napari_sparseseg import SparseSegError, open_slide


def test_the_pictures_of_a_slide(cmu_svs):
    with open_slide(cmu_svs) as slide, openslide.OpenSlide(cmu_svs) as other:
        assert set(slide.associated) == {"thumbnail", "label", "macro"}
        label = slide.read_associated("label")
        np.testing.assert_array_equal(label, np.asarray(other.associated_images["label"].convert("RGB")))
        assert label.shape == (463, 387, 3)
        with pytest.raises(SparseSegError, match="has no barcode; it has: thumbnail, label, macro"):
            slide.read_associated("barcode")
