"""Balanced losses for sparse labels: how much each labelled pixel counts. Pure functions on torch tensors.

After Bokhorst et al., "Learning from sparsely annotated data for semantic segmentation in histopathology images",
PMLR 102:84-91 (MIDL 2019), which rebalances the loss so that unlabelled pixels count nothing and labelled ones by
instance-based or mini-batch-based balancing. An instance there is a training example: one patch. The formulas are our
reading of the abstract; we know of no public implementation by the authors.

Patch b has n_bc labelled pixels of class c (n_c in the batch), K_b classes occur in it (K in the batch), and P patches
have any label. The weight of pixel i, which is of class c in patch b, is

===============  =====================  ==========================================================
``none``         1 / sum_c n_c          every labelled pixel counts the same
``instance``     1 / (P * K_b * n_bc)   every patch counts the same, and every class within it
``mini-batch``   1 / (K * n_c)          every class counts the same over the whole batch
===============  =====================  ==========================================================

and 0 where the label is 0. The weights of a batch sum to 1 (0 without labels), so the learning rate keeps its meaning
however sparse the labels are. `min_pixels` replaces n_bc and n_c by at least that number, so that a stray dab cannot
take the share of a whole class; the weights then sum to less than 1, on purpose.

When a batch is worked off in parts (gradient accumulation, several ranks), give each part the `BatchTotals` of the
whole batch: the losses of the parts then *sum* to the loss of the joint batch, and so do the gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
import torch.nn.functional as F

from napari_sparseseg.config import MAX_CLASS_ID, Balancing
from napari_sparseseg.errors import TrainingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Labels = torch.Tensor | NDArray[np.integer[Any]]

_TORCH_INTEGERS = (
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)


class BalancingError(TrainingError, ValueError):
    """Labels, logits or a balancing that the loss cannot be computed from."""


@dataclass(frozen=True, slots=True)
class BatchTotals:
    """Counts of a whole effective batch; `+` joins the totals of its parts.

    Attributes
    ----------
    n_c
        int64 (256,): labelled pixels per class id; entry 0 is 0.
    patches
        int64 (): patches with at least one labelled pixel.
    pixels
        int64 (): labelled pixels.
    """

    n_c: torch.Tensor
    patches: torch.Tensor
    pixels: torch.Tensor

    @classmethod
    def of(cls, counts: torch.Tensor) -> BatchTotals:
        """Totals of the patches counted by `count_labels`."""
        n_c = _labelled(counts).sum(0)
        return cls(n_c, (counts[:, 1:] > 0).any(1).sum(), n_c.sum())

    def __add__(self, other: BatchTotals) -> BatchTotals:
        return BatchTotals(self.n_c + other.n_c, self.patches + other.patches, self.pixels + other.pixels)

    def pack(self) -> torch.Tensor:
        """One int64 vector to sum over ranks (``torch.distributed.all_reduce``); `unpack` reads it."""
        return torch.cat([self.n_c, self.patches.view(1), self.pixels.view(1)])

    @classmethod
    def unpack(cls, vector: torch.Tensor) -> BatchTotals:
        """Totals from what `pack` made."""
        return cls(vector[:-2], vector[-2], vector[-1])


def count_labels(labels: Labels, classes: int = MAX_CLASS_ID + 1) -> torch.Tensor:
    """Pixels per patch and label.

    Parameters
    ----------
    labels
        Integers (B, H, W), torch or numpy; 0 = unlabelled, class ids 1..255.
    classes
        Number of label values to count, 0 included; every label must be below.

    Returns
    -------
    torch.Tensor
        int64 (B, classes) on the device of `labels`.

    Raises
    ------
    BalancingError
        For labels that are not integers (B, H, W) in 0..classes - 1.
    """
    return _count(_as_labels(labels, classes - 1), classes)


def weight_table(
    counts: torch.Tensor, balancing: Balancing = "instance", *, min_pixels: int = 1, totals: BatchTotals | None = None
) -> torch.Tensor:
    """Weight of one pixel of each class in each patch, by the formulas at the top of this module.

    Parameters
    ----------
    counts
        int (B, C) as from `count_labels`: column c counts the pixels of class c, column 0 (unlabelled) is ignored.
    balancing
        ``none``, ``instance`` or ``mini-batch``.
    min_pixels
        Floor under n_bc and n_c.
    totals
        Totals of the whole effective batch where `counts` is only a part of it.

    Returns
    -------
    torch.Tensor
        float32 (B, C) on the device of `counts`; 0 where the class does not occur.

    Raises
    ------
    BalancingError
        For an unknown balancing or a floor below 1.
    """
    if balancing not in get_args(Balancing):
        raise BalancingError(f"balancing {balancing!r} is not one of {', '.join(get_args(Balancing))}.")
    if min_pixels < 1:
        raise BalancingError(f"min_pixels is {min_pixels}; it must be at least 1.")
    n_bc = _labelled(counts)
    if totals is None:
        totals = BatchTotals.of(counts)
    present = n_bc > 0
    if balancing == "none":
        divisor = totals.pixels.to(torch.float32).expand(n_bc.shape)
    elif balancing == "instance":
        classes = present.sum(1, keepdim=True)
        divisor = totals.patches.to(torch.float32) * classes * n_bc.clamp(min=min_pixels)
    else:
        n_c = totals.n_c[: n_bc.shape[1]]
        divisor = ((totals.n_c > 0).sum().to(torch.float32) * n_c.clamp(min=min_pixels)).expand(n_bc.shape)
    # The clamp only touches entries that `where` drops: without it they would be 1 / 0.
    return torch.where(present, 1.0 / divisor.clamp(min=1.0), 0.0)


def pixel_weights(
    labels: Labels, balancing: Balancing = "instance", *, min_pixels: int = 1, totals: BatchTotals | None = None
) -> torch.Tensor:
    """Weight of every pixel of a batch, by the formulas at the top of this module.

    Parameters
    ----------
    labels
        Integers (B, H, W), torch or numpy; 0 = unlabelled, class ids 1..255, gaps allowed.
    balancing
        ``none``, ``instance`` or ``mini-batch``.
    min_pixels
        Floor under the pixel count of a class (in its patch for ``instance``, in the batch for ``mini-batch``).
    totals
        Totals of the whole effective batch where `labels` is only a part of it.

    Returns
    -------
    torch.Tensor
        float32 (B, H, W) on the device of `labels`; sums to 1, or to 0 for a batch without labels.

    Raises
    ------
    BalancingError
        For labels that are not integers (B, H, W) in 0..255, an unknown balancing, or a floor below 1.
    """
    ids = _as_labels(labels)
    return _spread(weight_table(_count(ids), balancing, min_pixels=min_pixels, totals=totals), ids)


def balanced_cross_entropy(
    logits: torch.Tensor,
    labels: Labels,
    balancing: Balancing = "instance",
    *,
    min_pixels: int = 1,
    totals: BatchTotals | None = None,
) -> torch.Tensor:
    """Cross-entropy of the labelled pixels, weighted by `pixel_weights`: sum_i w_i * CE_i.

    Computed in float32 (float64 for float64 logits), also under autocast. On a GPU it waits once for the device, to
    refuse a class id without a channel: on CUDA such a label would otherwise make the process unusable.

    Parameters
    ----------
    logits
        Floating (B, C, H, W); channel k - 1 is class k.
    labels
        Integers (B, H, W), torch or numpy; 0 = unlabelled, class ids 1..C.
    balancing, min_pixels, totals
        As in `pixel_weights`.

    Returns
    -------
    torch.Tensor
        Scalar; 0 with zero gradients for a batch without labels.

    Raises
    ------
    BalancingError
        For shapes that do not fit, a class id above C, and whatever `pixel_weights` refuses.
    """
    ids = _as_labels(labels)
    if logits.ndim != 4 or logits.shape[1] < 1 or not logits.is_floating_point():
        raise BalancingError(
            f"logits are {logits.dtype} {tuple(logits.shape)}; give floating (B, C, H, W) with C >= 1."
        )
    if ids.shape != (logits.shape[0], *logits.shape[2:]):
        raise BalancingError(
            f"labels are {tuple(ids.shape)} but logits {tuple(logits.shape)}; give (B, H, W) and (B, C, H, W) alike."
        )
    ids = ids.to(logits.device)
    counts = _count(ids)
    if bool((counts[:, logits.shape[1] + 1 :] > 0).any()):
        raise BalancingError(
            f"labels go up to class {int(ids.max())} but logits have {logits.shape[1]} channels; "
            "channel k - 1 is class k, so give as many channels as the largest class id."
        )
    weights = _spread(weight_table(counts, balancing, min_pixels=min_pixels, totals=totals), ids)
    with torch.autocast(logits.device.type, enabled=False):
        exact = logits if logits.dtype == torch.float64 else logits.float()
        losses = F.cross_entropy(exact, ids.long() - 1, ignore_index=-1, reduction="none")
        return (weights * losses).sum()


def _as_labels(labels: Labels, largest: int = MAX_CLASS_ID) -> torch.Tensor:
    """Labels as a torch tensor (B, H, W), uint8 or int64, checked to lie in 0..largest."""
    if isinstance(labels, np.ndarray):
        if not np.issubdtype(labels.dtype, np.integer):
            raise BalancingError(f"labels are {labels.dtype}; give integers: 0 = unlabelled, class ids 1..255.")
        # A copy: torch warns about read-only arrays and refuses negative strides and foreign byte orders.
        ids = torch.from_numpy(np.array(labels, dtype=np.uint8 if labels.dtype == np.uint8 else np.int64, order="C"))
    elif isinstance(labels, torch.Tensor):
        if labels.dtype not in _TORCH_INTEGERS:
            raise BalancingError(f"labels are {labels.dtype}; give integers: 0 = unlabelled, class ids 1..255.")
        ids = labels.detach() if labels.dtype == torch.uint8 else labels.detach().to(torch.int64)
    else:
        raise BalancingError(f"labels are a {type(labels).__name__}; give a torch tensor or a numpy array.")
    if ids.ndim != 3:
        raise BalancingError(f"labels have shape {tuple(ids.shape)}; give (B, H, W), for one patch (1, H, W).")
    always_fits = ids.dtype == torch.uint8 and largest >= MAX_CLASS_ID
    if not always_fits and ids.numel() and bool(((ids < 0) | (ids > largest)).any()):
        raise BalancingError(
            f"labels range from {int(ids.min())} to {int(ids.max())}; 0 is unlabelled and class ids are 1..{largest}."
        )
    return ids


def _count(ids: torch.Tensor, classes: int = MAX_CLASS_ID + 1) -> torch.Tensor:
    """Pixels per patch and label; unlike ``bincount`` this does not wait for a GPU."""
    flat = ids.reshape(ids.shape[0], ids.shape[1] * ids.shape[2]).long()
    counts = torch.zeros(ids.shape[0], classes, dtype=torch.int64, device=ids.device)
    return counts.scatter_add_(1, flat, torch.ones_like(flat))


def _labelled(counts: torch.Tensor) -> torch.Tensor:
    """The counts with the column of unlabelled pixels set to 0."""
    return torch.cat([torch.zeros_like(counts[:, :1]), counts[:, 1:]], dim=1)


def _spread(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The table entry of every pixel."""
    return table.gather(1, ids.reshape(ids.shape[0], ids.shape[1] * ids.shape[2]).long()).view(ids.shape)
