"""The default encoder's network: stem and first four blocks of EfficientNet-Lite0, in plain torch.

Not timm's own, so that a process that only predicts need not import timm: see D12. Names and values are timm's.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_STEM = 32
_SPECS = (
    ((16, 1, 3, 1),),
    ((24, 6, 3, 2), (24, 6, 3, 1)),
    ((40, 6, 5, 2), (40, 6, 5, 1)),
    ((80, 6, 3, 2), (80, 6, 3, 1), (80, 6, 3, 1)),
)
"""Per block and layer: channels, expansion of the middle, kernel, stride (Tan and Le, 2019; the Lite variant)."""
_EPSILON = 1e-3
_BAND_VALUES = 1 << 19
"""Values of a band's intermediate map: 2 MB stay in the processor's cache."""
NORM = ("weight", "bias", "running_mean", "running_var")


class LiteTrunk(nn.Module):
    """Maps of stride 2, 4, 8 and 16.

    Batch normalisation is folded into the convolutions: a quarter less time, and no statistics left to drift.

    Parameters
    ----------
    channels
        Of the image.
    """

    CHANNELS = (16, 24, 40, 80)
    STRIDES = (2, 4, 8, 16)
    RECEPTIVE_FIELD = 88
    """To the right and below, where TensorFlow's padding puts the larger part; 58 to the left and above."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(channels, _STEM, 3, stride=2)
        before = (_STEM, *self.CHANNELS)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(
                    _Layer(a if i == 0 else width, width, expansion, kernel, stride)
                    for i, (width, expansion, kernel, stride) in enumerate(block)
                )
            )
            for (a, _), block in zip(pairwise(before), _SPECS, strict=True)
        )

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Maps of a normalised image."""
        maps = []
        top, left = (_same(int(side), 3, 2) for side in image.shape[-2:])
        x = F.relu6(self.conv_stem(F.pad(image, (*left, *top))), inplace=True)
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps

    @staticmethod
    def entries() -> Iterator[tuple[str, str, str]]:
        """Each convolution here; its weight and the prefix of its normalisation in timm's network, in timm's order."""
        yield "conv_stem", "conv_stem.weight", "bn1."
        for b, block in enumerate(_SPECS):
            for i, (_, expansion, _, _) in enumerate(block):
                at = f"blocks.{b}.{i}."
                names = ("conv_dw", "conv_pw") if expansion == 1 else ("conv_pw", "conv_dw", "conv_pwl")
                for n, name in enumerate(names, 1):
                    yield at + name, f"{at}{name}.weight", f"{at}bn{n}."

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights that `fold` needs."""
        found: dict[str, tuple[int, ...]] = {}
        for name, weight, norm in self.entries():
            shape = tuple(self.get_parameter(f"{name}.weight").shape)
            found |= {weight: shape} | {norm + part: shape[:1] for part in NORM}
        return found

    @torch.no_grad()
    def fold(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Load convolutions and normalisations under timm's names, in the shapes of `shapes`."""
        for name, weight, norm in self.entries():
            scale, shift, mean, variance = (weights[norm + part] for part in NORM)
            factor = scale / (variance + _EPSILON).sqrt()
            self.get_parameter(f"{name}.weight").copy_(weights[weight] * factor.view(-1, 1, 1, 1))
            self.get_parameter(f"{name}.bias").copy_(shift - mean * factor)


class _Layer(nn.Module):
    """1 x 1 to a wide middle (but for an expansion of 1), depthwise, 1 x 1 to `width`; a shortcut where it fits."""

    def __init__(self, before: int, width: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        middle = before * expansion
        self.stride, self.kernel = stride, kernel
        self.shortcut = stride == 1 and before == width
        if expansion > 1:
            self.conv_pw = nn.Conv2d(before, middle, 1)
        self.conv_dw = nn.Conv2d(middle, middle, kernel, stride, groups=middle)
        last = nn.Conv2d(middle, width, 1)
        self.expands = expansion > 1
        if self.expands:
            self.conv_pwl = last
        else:
            self.conv_pw = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, before, h, w) to (B, width, h / stride, w / stride).

        Without gradients the rows are processed in bands: the intermediate map is up to nine times as large as the
        input, and as a whole the largest tensor in memory, too large for the cache. The values are the same.
        """
        rows, columns = -(-int(x.shape[2]) // self.stride), int(x.shape[3])
        middle = len(x) * columns * self.stride * self.conv_dw.in_channels
        return in_bands(lambda start, stop: self._band(x, start, stop), rows, middle)

    def _band(self, x: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` of the result."""
        height, width = (int(side) for side in x.shape[-2:])
        whole = start == 0 and stop * self.stride >= height
        above, _ = _same(height, self.kernel, self.stride)
        top, bottom = start * self.stride - above, (stop - 1) * self.stride - above + self.kernel
        part = x if whole else x[:, :, max(0, top) : bottom]
        if self.expands:
            part = F.relu6(_pointwise(self.conv_pw, part), inplace=True)
        left, right = _same(width, self.kernel, self.stride)
        part = F.pad(part, (left, right, max(0, -top), max(0, bottom - height)))
        part = F.relu6(self.conv_dw(part), inplace=True)
        out = _pointwise(self.conv_pwl if self.expands else self.conv_pw, part)
        return out + (x if whole else x[:, :, start:stop]) if self.shortcut else out


def _pointwise(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """A 1 x 1 convolution as a matrix product, which channels last need no copy for."""
    return F.linear(x.permute(0, 2, 3, 1), conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)


def _same(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's padding before and after."""
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


def in_bands(work: Callable[[int, int], torch.Tensor], rows: int, values: int) -> torch.Tensor:
    """All rows of a layer's result, computed in bands of rows where no gradient is wanted.

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
    # With gradients every map is kept in memory in any case, and an exported network takes images of any size.
    if torch.is_grad_enabled() or torch.onnx.is_in_onnx_export():
        return work(0, rows)
    step = max(8, _BAND_VALUES // values)
    if step >= rows:
        return work(0, rows)
    first = work(0, step)
    shape = (*first.shape[:2], rows, first.shape[3])
    out = torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=torch.channels_last)
    out[:, :, :step] = first
    for start in range(step, rows, step):
        out[:, :, start : start + step] = work(start, min(rows, start + step))
    return out
