"""What every backend of `slides` must do, whatever file it reads. Subclass, give the fixtures, get the tests."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

from napari_sparseseg.errors import SlideError
from napari_sparseseg.geometry import Box, Frame

if TYPE_CHECKING:
    from napari_sparseseg.slides import Slide


class SlideContract:
    """Fixtures of a subclass: `slide` (open, fresh for each test) and `reference` (level-0 pixels (h, w, C) by another
    reader than ours; `tolerance` where two codecs may round differently)."""

    tolerance = 0

    @pytest.fixture
    def slide(self) -> Slide:
        raise NotImplementedError

    @pytest.fixture
    def reference(self) -> np.ndarray:
        raise NotImplementedError

    def same(self, got, wanted):
        assert got.shape == wanted.shape
        assert got.dtype == wanted.dtype
        assert np.abs(got.astype(np.float64) - wanted.astype(np.float64)).max() <= self.tolerance

    def test_levels_shrink_and_fit_their_downsamples(self, slide):
        assert slide.downsamples[0] == 1
        assert len(slide.levels) == len(slide.downsamples)
        sizes = [a.shape[0] * a.shape[1] for a in slide.levels]
        assert sizes == sorted(sizes, reverse=True)
        assert len(set(sizes)) == len(sizes)
        for level, down in zip(slide.levels, slide.downsamples, strict=True):
            assert level.shape[2] == len(slide.channels)
            assert abs(level.shape[0] - slide.shape[0] / down) <= 1
            assert abs(level.shape[1] - slide.shape[1] / down) <= 1
        assert max(slide.levels[-1].shape[:2]) <= 1024

    def test_opening_and_building_levels_decodes_nothing(self, slide, monkeypatch):
        decoded = []
        for level in slide.pyramid.levels:
            real = level.decode
            monkeypatch.setattr(level, "decode", lambda *a, real=real: decoded.append(a) or real(*a))
        before = slide.pyramid.cache.bytes
        assert slide.levels[0][:2, :2].shape[:2] == (2, 2)
        assert slide.frame(None) == Frame()
        assert slide.warnings is not None
        assert slide.fingerprint
        assert decoded == []
        assert slide.pyramid.cache.bytes == before
        slide.read((0, 0, 1, 1))
        assert len(decoded) <= len(slide.channels)

    def test_whole_slide_equals_the_other_reader(self, slide, reference):
        assert slide.shape == reference.shape[:2]
        self.same(slide.read((0, 0, *slide.shape)), reference)

    def test_dask_level_equals_read(self, slide, reference):
        h, w = slide.shape
        y, x = h // 3, w // 4
        self.same(slide.levels[0][y : y + 300, x : x + 200].compute(), reference[y : y + 300, x : x + 200])
        self.same(
            slide.channel_levels(0)[0][y : y + 300, x : x + 200].compute(), reference[y : y + 300, x : x + 200, 0]
        )

    def test_last_pixels_and_outside(self, slide, reference):
        h, w = slide.shape
        got = slide.read((h - 7, w - 5, 20, 30))
        self.same(got[:7, :5], reference[h - 7 :, w - 5 :])
        background = np.asarray(slide.background).astype(slide.dtype)
        assert (got[7:] == background).all()
        assert (got[:, 5:] == background).all()
        assert (slide.read((-50, -60, 20, 30)) == background).all()
        corner = slide.read((-3, -2, 10, 9))
        assert (corner[:3] == background).all()
        self.same(corner[3:, 2:], reference[:7, :7])

    def test_reads_at_every_level(self, slide):
        for k, down in enumerate(slide.downsamples):
            got = slide.read((0, 0, *slide.shape), level=k)
            assert abs(got.shape[0] - slide.shape[0] / down) <= 1
            whole = slide.levels[k].compute()
            h, w = min(got.shape[0], whole.shape[0]), min(got.shape[1], whole.shape[1])
            np.testing.assert_array_equal(got[:h, :w], whole[:h, :w])

    @pytest.mark.parametrize("downsample", [(1.0, 1.0), (2.0, 2.0), (2.004, 2.004), (3.7, 5.3), (0.4, 0.4), (9.0, 7.0)])
    def test_overlapping_regions_agree_pixel_for_pixel(self, slide, downsample):
        frame = Frame(downsample)
        h, w = frame.shape(slide.shape)
        region = Box(-3, -4, min(h, 300) + 6, min(w, 300) + 8)
        whole = slide.read_region(region, frame)
        for y, x, height, width in ((0, 0, 20, 30), (11, 7, 33, 21), (h // 3 % 200, w // 3 % 200, 60, 50)):
            part = slide.read_region(Box(region.y + y, region.x + x, height, width), frame)
            rows, columns = whole.shape[0] - y, whole.shape[1] - x
            np.testing.assert_array_equal(part[:rows, :columns], whole[y : y + height, x : x + width])

    def test_eight_threads_read_the_same(self, slide, reference):
        h, w = slide.shape
        rng = np.random.default_rng(0)
        boxes = [Box(int(rng.integers(0, h - 60)), int(rng.integers(0, w - 60)), 60, 60) for _ in range(64)]
        slide.pyramid.cache.forget(slide.pyramid.owner)
        with ThreadPoolExecutor(8) as pool:
            for box, got in zip(boxes, pool.map(slide.read, boxes), strict=True):
                self.same(got, reference[box.slices()])

    def test_after_close_reads_say_so(self, slide):
        lazy = slide.levels[0][:4, :4]
        slide.close()
        slide.close()
        assert slide.closed
        with pytest.raises(SlideError, match="is closed"):
            slide.read((0, 0, 4, 4))
        with pytest.raises(SlideError, match="is closed"):
            lazy.compute()

    def test_closing_while_others_read_is_an_error_for_them_and_no_crash(self, slide):
        unexpected = []

        def read():
            try:
                for k in range(200):
                    slide.read((k % 7, k % 5, 100, 100))
                    slide.pyramid.cache.forget(slide.pyramid.owner)
            except SlideError as error:
                if "closed" not in str(error):
                    unexpected.append(error)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        slide.close()
        for thread in threads:
            thread.join(60)
        assert not unexpected
        assert not any(t.is_alive() for t in threads)

    def test_bad_calls(self, slide):
        with pytest.raises(SlideError, match="negative"):
            slide.read((0, 0, -1, 5))
        with pytest.raises(SlideError, match="no level"):
            slide.read((0, 0, 5, 5), level=99)
        with pytest.raises(SlideError, match="not both"):
            slide.read((0, 0, 5, 5), mpp=1.0, level=0)
        with pytest.raises(SlideError, match="read it in parts"):
            slide.read((0, 0, 10**6, 10**6))
        assert slide.read((0, 0, 0, 5)).shape == (0, 5, len(slide.channels))
