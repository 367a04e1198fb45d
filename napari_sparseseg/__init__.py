"""Scribble on a whole slide in napari and watch a segmentation network learn it.

Importing this package loads neither torch, nor Qt, nor napari; the public names load what they need on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_sparseseg.annotations import Annotations
    from napari_sparseseg.errors import SparseSegError
    from napari_sparseseg.session.session import Session
    from napari_sparseseg.slides import Slide, open_slide

__version__ = "0.1.0"
__all__ = ["Annotations", "Session", "Slide", "SparseSegError", "__version__", "open_slide"]

_HOME = {
    "Annotations": "napari_sparseseg.annotations",
    "Session": "napari_sparseseg.session.session",
    "Slide": "napari_sparseseg.slides",
    "SparseSegError": "napari_sparseseg.errors",
    "open_slide": "napari_sparseseg.slides",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
