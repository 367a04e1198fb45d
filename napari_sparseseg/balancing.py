"""Balanced losses for sparse labels: how much each labelled pixel counts. Pure functions, torch only where needed.

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

All of it follows from counts (B, 256) of pixels per patch and class: `weight_table` holds the formulas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, assert_never, get_args

import numpy as np

from napari_sparseseg.config import MAX_CLASS_ID, Balancing
from napari_sparseseg.errors import TrainingError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Labels = torch.Tensor | NDArray[np.integer[Any]]
    Counts = NDArray[np.integer[Any]]


class BalancingError(TrainingError, ValueError):
    """Labels, logits or a balancing that the loss cannot be computed from."""


@dataclass(frozen=True, slots=True, eq=False)
class BatchTotals:
    """Counts of a whole effective batch; `+` joins the totals of its parts.

    Attributes
    ----------
    n_c
        int64 (256,): labelled pixels per class id; entry 0 is 0.
    patches
        Number of patches with at least one labelled pixel.
    """

    n_c: NDArray[np.int64]
    patches: int

    @classmethod
    def of(cls, counts: Counts) -> BatchTotals:
        """Totals of the patches counted by `count_labels`."""
        n_bc = _labelled(counts)
        return cls(n_bc.sum(0), int((n_bc > 0).any(1).sum()))

    @property
    def pixels(self) -> int:
        """Number of labelled pixels."""
        return int(self.n_c.sum())

    def __add__(self, other: BatchTotals) -> BatchTotals:
        return BatchTotals(self.n_c + other.n_c, self.patches + other.patches)

    def pack(self) -> NDArray[np.int64]:
        """One vector to sum over ranks; `unpack` reads it."""
        return np.append(self.n_c, self.patches)

    @classmethod
    def unpack(cls, vector: NDArray[np.int64]) -> BatchTotals:
        """Totals from what `pack` made."""
        return cls(vector[:-1], int(vector[-1]))


def weight_table(
    counts: Counts, balancing: Balancing = "instance", *, min_pixels: int = 1, totals: BatchTotals | None = None
) -> NDArray[np.float32]:
    """Weight of one pixel of each class in each patch, by the formulas at the top of this module.

    Parameters
    ----------
    counts
        int (B, C), as from `count_labels`: column c counts the pixels of class c, column 0 (unlabelled) is ignored.
    balancing
        A rule of the table at the top of this module.
    min_pixels
        Floor under n_bc and n_c.
    totals
        Totals of the whole effective batch where `counts` is only a part of it.

    Returns
    -------
    float32 (B, C); 0 where the class does not occur.

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
    totals = totals or BatchTotals.of(counts)
    present = n_bc > 0
    if balancing == "none":
        divisor = np.full(n_bc.shape, totals.pixels, np.float32)
    elif balancing == "instance":
        share = np.float32(totals.patches) * present.sum(1, keepdims=True, dtype=np.float32)
        divisor = share * n_bc.clip(min_pixels).astype(np.float32)
    elif balancing == "mini-batch":
        n_c = totals.n_c[: n_bc.shape[1]].clip(min_pixels).astype(np.float32)
        divisor = np.broadcast_to(np.float32(np.count_nonzero(totals.n_c)) * n_c, n_bc.shape)
    else:
        assert_never(balancing)  # a name of `Balancing` without a formula
    table: NDArray[np.float32] = np.divide(1, divisor, out=np.zeros(n_bc.shape, np.float32), where=present)
    return table


def class_shares(counts: Counts, balancing: Balancing = "instance", min_pixels: int = 1) -> NDArray[np.float64]:
    """Share of the loss that each class has, with `counts` as one batch.

    Parameters
    ----------
    counts
        int (B, C): labelled pixels of each class in each patch; column 0 (unlabelled) is ignored.
    balancing, min_pixels
        As in `weight_table`.

    Returns
    -------
    float64 (C,); sums to 1, to less with a floor, and to 0 without labels.

    Raises
    ------
    BalancingError
        For an unknown balancing or a floor below 1.

    Examples
    --------
    Two patches: 90 pixels of class 1 and 10 of class 2, then 100 of class 1.

    >>> import numpy as np
    >>> from napari_sparseseg.balancing import class_shares
    >>> class_shares(np.array([[0, 90, 10], [0, 100, 0]]), "none").round(2).tolist()
    [0.0, 0.95, 0.05]
    >>> class_shares(np.array([[0, 90, 10], [0, 100, 0]]), "instance").round(2).tolist()
    [0.0, 0.75, 0.25]
    >>> class_shares(np.array([[0, 90, 10], [0, 100, 0]]), "mini-batch").round(2).tolist()
    [0.0, 0.5, 0.5]
    """
    shares: NDArray[np.float64] = (counts * weight_table(counts, balancing, min_pixels=min_pixels)).sum(0, np.float64)
    return shares


def count_labels(labels: Labels) -> NDArray[np.int64]:
    """Pixels per patch and label.

    Parameters
    ----------
    labels
        Integers (B, H, W), torch or numpy; 0 = unlabelled, class ids 1..255.

    Returns
    -------
    int64 (B, 256); for labels on a GPU this waits for the device.

    Raises
    ------
    BalancingError
        For labels that are not integers (B, H, W) in 0..255.
    """
    return _count(_as_ids(labels))


def pixel_weights(
    labels: Labels, balancing: Balancing = "instance", *, min_pixels: int = 1, totals: BatchTotals | None = None
) -> torch.Tensor:
    """Weight of every pixel of a batch, by the formulas at the top of this module.

    Parameters
    ----------
    labels
        Integers (B, H, W), torch or numpy; 0 = unlabelled, class ids 1..255, gaps allowed.
    balancing
        A rule of the table at the top of this module.
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

    Examples
    --------
    One pixel of class 1 and two of class 3: each class has half of the weight.

    >>> import numpy as np
    >>> from napari_sparseseg.balancing import pixel_weights
    >>> pixel_weights(np.array([[[0, 1], [3, 3]]])).tolist()
    [[[0.0, 0.5], [0.25, 0.25]]]
    """
    ids = _as_ids(labels)
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
    count, and to refuse a class id without a channel: on CUDA such a label would make the process unusable.

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

    Examples
    --------
    Without any preference between three classes the loss is log(3), whatever is labelled.

    >>> import numpy as np
    >>> import torch
    >>> from napari_sparseseg.balancing import balanced_cross_entropy
    >>> loss = balanced_cross_entropy(torch.zeros(1, 3, 2, 2), np.array([[[0, 1], [3, 3]]]))
    >>> round(float(loss), 4)
    1.0986
    """
    import torch
    import torch.nn.functional as F

    ids = _as_ids(labels)
    _check_logits(logits, ids)
    ids = ids.to(logits.device)
    counts = _count(ids)
    if counts[:, logits.shape[1] + 1 :].any():
        raise BalancingError(
            f"labels go up to class {int(ids.max())} but logits have {logits.shape[1]} channels; "
            "channel k - 1 is class k, so give as many channels as the largest class id."
        )
    weights = _spread(weight_table(counts, balancing, min_pixels=min_pixels, totals=totals), ids)
    with torch.autocast(logits.device.type, enabled=False):
        exact = logits if logits.dtype == torch.float64 else logits.float()
        losses = F.cross_entropy(exact, ids.long() - 1, ignore_index=-1, reduction="none")
        return (weights * losses).sum()


def _as_ids(labels: Labels) -> torch.Tensor:
    """Labels as a torch tensor (B, H, W), uint8 or int64, checked to lie in 0..255."""
    import torch

    if not isinstance(labels, (np.ndarray, torch.Tensor)):
        raise BalancingError(f"labels are a {type(labels).__name__}; give a torch tensor or a numpy array.")
    if isinstance(labels, np.ndarray):
        whole = np.issubdtype(labels.dtype, np.integer)
    else:
        whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not whole:
        raise BalancingError(f"labels are {labels.dtype}; give integers: 0 = unlabelled, class ids 1..255.")
    if labels.ndim != 3:
        raise BalancingError(f"labels have shape {tuple(labels.shape)}; give (B, H, W), for one patch (1, H, W).")
    if isinstance(labels, np.ndarray):
        # A copy: torch warns about read-only arrays and refuses negative strides and foreign byte orders.
        ids = torch.from_numpy(np.array(labels, dtype=np.uint8 if labels.dtype == np.uint8 else np.int64, order="C"))
    else:
        ids = labels.detach() if labels.dtype == torch.uint8 else labels.detach().to(torch.int64)
    if ids.dtype != torch.uint8 and ids.numel() and bool(((ids < 0) | (ids > MAX_CLASS_ID)).any()):
        raise BalancingError(
            f"labels range from {int(ids.min())} to {int(ids.max())}; 0 is unlabelled and class ids are "
            f"1..{MAX_CLASS_ID}."
        )
    return ids


def _check_logits(logits: torch.Tensor, ids: torch.Tensor) -> None:
    if logits.ndim != 4 or logits.shape[1] < 1 or not logits.is_floating_point():
        raise BalancingError(
            f"logits are {logits.dtype} {tuple(logits.shape)}; give floating (B, C, H, W) with C >= 1."
        )
    if ids.shape != (logits.shape[0], *logits.shape[2:]):
        raise BalancingError(
            f"labels are {tuple(ids.shape)} but logits {tuple(logits.shape)}; give (B, H, W) and (B, C, H, W) alike."
        )


def _count(ids: torch.Tensor) -> NDArray[np.int64]:
    import torch

    flat = ids.reshape(ids.shape[0], ids.shape[1] * ids.shape[2]).long()
    counts = torch.zeros(ids.shape[0], MAX_CLASS_ID + 1, dtype=torch.int64, device=ids.device)
    counted: NDArray[np.int64] = counts.scatter_add_(1, flat, torch.ones_like(flat)).cpu().numpy()
    return counted


def _labelled(counts: Counts) -> NDArray[np.int64]:
    """The counts with the column of unlabelled pixels set to 0."""
    labelled = np.array(counts, np.int64)
    labelled[:, 0] = 0
    return labelled


def _spread(table: NDArray[np.float32], ids: torch.Tensor) -> torch.Tensor:
    """The table entry of every pixel, on the device of `ids`."""
    import torch

    flat = ids.reshape(ids.shape[0], ids.shape[1] * ids.shape[2]).long()
    return torch.from_numpy(table).to(ids.device).gather(1, flat).view(ids.shape)
