"""A session: slides, annotations, training and prediction behind one class, `Session`."""

from __future__ import annotations

from napari_sparseseg.session.session import Session

__all__ = ["Session"]
