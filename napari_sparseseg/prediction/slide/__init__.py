"""Whole slides: every pixel predicted, measured and written to files that other tools open."""

from napari_sparseseg.prediction.slide.options import PredictOptions, PredictSettings, Progress, SlideResult
from napari_sparseseg.prediction.slide.runner import run_prediction

__all__ = ["PredictOptions", "PredictSettings", "Progress", "SlideResult", "run_prediction"]
