"""Scribble on a whole slide in napari and watch a segmentation network learn it.

Importing this package loads neither torch, nor Qt, nor napari; the public names load what they need on first use.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_sparseseg.annotations import Annotations
    from napari_sparseseg.config import TrainConfig
    from napari_sparseseg.errors import SparseSegError
    from napari_sparseseg.io import load_annotations, save_annotations
    from napari_sparseseg.learning.model import load_model
    from napari_sparseseg.prediction.results.cleanup import CleanUp
    from napari_sparseseg.prediction.slide import PredictOptions
    from napari_sparseseg.prediction.tissue import detect_tissue
    from napari_sparseseg.session import Session
    from napari_sparseseg.slides import Slide, open_slide

__version__ = "0.1.0"
__all__ = [
    "Annotations",
    "CleanUp",
    "PredictOptions",
    "Session",
    "Slide",
    "SparseSegError",
    "TrainConfig",
    "__version__",
    "detect_tissue",
    "load_annotations",
    "load_model",
    "open_slide",
    "save_annotations",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())  # what is logged is shown where somebody asks for it

_HOME = {
    "Annotations": "annotations",
    "CleanUp": "prediction.results.cleanup",
    "PredictOptions": "prediction.slide",
    "Session": "session",
    "Slide": "slides",
    "SparseSegError": "errors",
    "TrainConfig": "config",
    "detect_tissue": "prediction.tissue",
    "load_annotations": "io",
    "load_model": "learning.model",
    "open_slide": "slides",
    "save_annotations": "io",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
