"""Slides: lazily read image pyramids of any file format, in level-0 coordinates."""

from napari_sparseseg.slides.backends.array import ArraySlide
from napari_sparseseg.slides.backends.opening import open_slide
from napari_sparseseg.slides.slide import Slide

__all__ = ["ArraySlide", "Slide", "open_slide"]
