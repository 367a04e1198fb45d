"""Sessions: slides, annotations, training and prediction behind `Session`, and functions that need no session.

The window and the shell import from here, and from nothing below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_sparseseg.session.session import Session

if TYPE_CHECKING:
    import os
    from contextlib import AbstractContextManager

    import numpy as np
    from numpy.typing import NDArray

    from napari_sparseseg.annotations import Snapshot
    from napari_sparseseg.learning.distributed import Ranks
    from napari_sparseseg.learning.encoder_info import EncoderInfo
    from napari_sparseseg.learning.model_file import ModelMetadata

__all__ = ["Session", "encoder_info", "join_ranks", "label_outlines", "model_info", "tune_process"]


def model_info(path: str | os.PathLike[str]) -> ModelMetadata:
    """What a model file states about itself; `ModelError` where it cannot be read.

    A ``.safetensors`` file is read without torch. Of a network of another program much is known only once it was tried.
    """
    from napari_sparseseg.learning.model import load_model, read_metadata

    if str(path).lower().endswith((".onnx", ".zip")):
        return load_model(path, "cpu").metadata
    return read_metadata(path)


def label_outlines(labels: Snapshot) -> list[tuple[int, NDArray[np.float64]]]:
    """Class id and exact outline of each connected region of the scribbles, level-0 (y, x) float64 (n, 2).

    Holes are joined to their outline by a seam.
    """
    from napari_sparseseg.io.asap import one_ring
    from napari_sparseseg.io.trace import trace

    return [(o.class_id, one_ring([o.shell, *o.holes])) for o in trace(labels.scribbles)]


def encoder_info(name: str) -> EncoderInfo:
    """Size, source and licence of an encoder, before its weights are downloaded."""
    from napari_sparseseg.learning.encoder_info import encoder_info as about

    return about(name)


def join_ranks(device: str) -> AbstractContextManager[tuple[Ranks, str]]:
    """Join the processes that torchrun started; gives this one's rank and device. Alone, it changes nothing."""
    from napari_sparseseg.learning.distributed import join

    return join(device)


def tune_process(*, predicting: bool = False) -> None:
    """Tune memory allocator and imports for torch, before it is imported; only in a process of our own."""
    from napari_sparseseg.learning.torch_runtime import tune_process as tune

    tune(predicting=predicting)
