"""Convolutions with what follows them in one pass, by oneDNN where torch has it.

torch's own matrix product goes to MKL, which takes twice as long for these small matrices on processors that are not
Intel's, and then reads and writes the result again for the activation. See D104.
"""

from __future__ import annotations

import functools
import math
import platform
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

    Product = Callable[..., torch.Tensor]


class Rows(Protocol):
    """`product` of some weights."""

    def __call__(self, x: torch.Tensor, given: torch.Tensor | None = None, /) -> torch.Tensor:
        """Of (..., C): (N, out), plus `given` (N, out)."""


@functools.cache
def _has_onednn() -> bool:
    """Whether torch has oneDNN with these operators: they have no public name, so another version may not."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_convolution_pointwise"))


def product(weight: torch.Tensor, bias: torch.Tensor | None = None, *, top: float | None = None) -> Rows:
    """The product of rows with a matrix, plus a bias, for weight (out, C) or (out, C, 1, 1); `top` 6: cut to 0..6."""
    matrix = weight.flatten(1).contiguous()
    activation, limits = ("none", []) if top is None else ("hardtanh", [0.0, top])

    def fused(x: torch.Tensor, given: torch.Tensor | None = None) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        if given is None:
            out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(flat, matrix, bias, activation, limits, "")
        else:
            out = torch.ops.mkldnn._linear_pointwise.binary(flat, given, matrix, bias, "add")
        return out

    def plain(x: torch.Tensor, given: torch.Tensor | None = None) -> torch.Tensor:
        out = F.linear(x.reshape(-1, x.shape[-1]), matrix, bias)
        if given is not None:
            return out.add_(given)
        return out if top is None else out.clamp_(0, top)

    return fused if _has_onednn() else plain


def convolution(
    weight: torch.Tensor, bias: torch.Tensor, stride: int = 1, groups: int = 1, *, top: float
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A convolution without padding of (B, C, h, w), channels last, cut to 0..top."""
    kernel = weight.contiguous(memory_format=torch.channels_last)
    activation, limits = ("relu", []) if top == math.inf else ("hardtanh", [0.0, top])

    def fused(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, kernel, bias, [0, 0], [stride, stride], [1, 1], groups, activation, limits, ""
        )
        return out

    def plain(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, kernel, bias, stride, groups=groups).clamp_(0, top)

    return fused if _has_onednn() else plain
