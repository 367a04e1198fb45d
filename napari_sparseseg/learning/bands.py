"""Layers in bands of rows: what is large in the middle of a layer is then held for some rows at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

_VALUES = 1 << 19
"""Values held at a time: 2 MB stay in the cache."""


def in_bands(work: Callable[[int, int], torch.Tensor], rows: int, values: int) -> torch.Tensor:
    """All rows of a layer's result, computed in bands where no gradient is wanted.

    Parameters
    ----------
    work
        Gives the rows from start to stop, (B, C, stop - start, w), channels last; the same values however it is cut.
    rows
        Of the result.
    values
        Numbers that one row needs in the middle of the layer.

    Returns
    -------
    (B, C, rows, w), channels last.
    """
    # With gradients all is kept in any case; what is exported is for images of any size.
    if torch.is_grad_enabled() or torch.onnx.is_in_onnx_export():
        return work(0, rows)
    step = max(8, _VALUES // values)
    if step >= rows:
        return work(0, rows)
    first = work(0, step)
    shape = (*first.shape[:2], rows, first.shape[3])
    out = torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=torch.channels_last)
    out[:, :, :step] = first
    for start in range(step, rows, step):
        out[:, :, start : start + step] = work(start, min(rows, start + step))
    return out
