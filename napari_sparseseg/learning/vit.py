"""Maps of a vision transformer that segment: four of its blocks, beside a shallow convolutional stem for edges.

A transformer compares every token of its input with every other, so its features depend on how large the input is. It
sees windows of one size therefore, whether a patch, a tile of the view or a slide is
encoded. Windows overlap, and the features in the overlap are blended. See D120.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_sparseseg.learning.efficientnet_lite import LiteTrunk

BLOCKS = 4
WINDOW = 256
"""Pixels per side of what the transformer sees at once: 224 px for tokens of 14 px, as most were trained."""
OVERLAP = 2
"""Tokens that two windows share, at least."""
CONTEXT = 48
"""Pixels that a tile is read beyond its sides for the transformer."""
STEM_STRIDES = (2, 4, 8)
_CELL = 16
_BATCH = {"cpu": 1}
_MOST_BATCH = 16
_MEAN, _STD = 127 / 255, 128 / 255
"""Of the stem's input."""


def cell_of(patch: int) -> int:
    """Side in pixels of the image of what one token covers: 16 for tokens of 14 px, for which the image is reduced.

    >>> [cell_of(p) for p in (8, 14, 16, 32)]
    [8, 16, 16, 32]
    """
    return patch if patch > _CELL or _CELL % patch == 0 else _CELL


def four_blocks(depth: int) -> tuple[int, ...]:
    """Indices of the blocks whose output is used: a quarter, half, three quarters and all the way.

    >>> four_blocks(12), four_blocks(2)
    ((2, 5, 8, 11), (0, 1))
    """
    return tuple(sorted({max(0, depth * (i + 1) // BLOCKS - 1) for i in range(BLOCKS)}))


def windows(side: int, window: int) -> list[int]:
    """Where windows of this size begin that cover `side` tokens, evenly spread.

    >>> windows(24, 16), windows(42, 16), windows(9, 16)
    ([0, 8], [0, 13, 26], [0])
    """
    if side <= window:
        return [0]
    steps = -(-(side - window) // (window - OVERLAP))
    return [round(i * (side - window) / steps) for i in range(steps + 1)]


class VitMaps(nn.Module):
    """Maps of stride 2, 4, 8 of the stem, and of four blocks of a transformer, each after its last normalisation.

    Parameters
    ----------
    vit
        timm's ``VisionTransformer`` or ``Eva``, without a classifier, for inputs of any size.
    stem
        With its weights; its coarsest block is left out.

    Attributes
    ----------
    CHANNELS, STRIDES
        Per map.
    window : int
        Tokens per side of a window.
    """

    def __init__(self, vit: Any, stem: LiteTrunk) -> None:
        super().__init__()
        self.patch = int(vit.patch_embed.patch_size[0])
        self.cell = cell_of(self.patch)
        self.blocks = four_blocks(len(vit.blocks))
        count = sum(stride < self.cell for stride in STEM_STRIDES)
        del stem.blocks[count:]
        self.stem = stem
        self.vit: Any = vit
        self.window = WINDOW // self.cell
        self.CHANNELS = (*stem.CHANNELS[:count], *(int(vit.embed_dim),) * len(self.blocks))
        self.STRIDES = (*STEM_STRIDES[:count], *(self.cell,) * len(self.blocks))

    def forward(self, image: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> list[torch.Tensor]:
        """Maps of an image in 0..1, (B, C, H, W) with sides that are multiples of the cell.

        `mean` and `std` are the transformer's normalisation, per channel.
        """
        edges = self.stem((image - _MEAN) / _STD)
        return [*edges, *self._tokens((image - mean) / std)]

    def _tokens(self, image: torch.Tensor) -> list[torch.Tensor]:
        count, _, height, width = image.shape
        h, w = int(height) // self.cell, int(width) // self.cell
        rows, columns = windows(h, self.window), windows(w, self.window)
        size = min(h, self.window), min(w, self.window)
        if len(rows) == len(columns) == 1:
            return self._of_windows(image)
        places = [(n, y, x) for n in range(int(count)) for y in rows for x in columns]
        weight = _centre(size[0])[:, None] * _centre(size[1])[None]
        weight = weight.to(image.device)
        total = torch.zeros(h, w, device=image.device)
        for y in rows:
            for x in columns:
                total[y : y + size[0], x : x + size[1]] += weight
        sums = [torch.zeros(int(count), h, w, c, device=image.device) for c in self.CHANNELS[-len(self.blocks) :]]
        at_once = _BATCH.get(image.device.type, _MOST_BATCH)
        for start in range(0, len(places), at_once):
            part = places[start : start + at_once]
            found = self._of_windows(torch.cat([self._cut(image[n : n + 1], y, x, size) for n, y, x in part]))
            for values, out in zip(found, sums, strict=True):
                weighted = values.permute(0, 2, 3, 1).float() * weight[..., None]
                for (n, y, x), one in zip(part, weighted, strict=True):
                    out[n, y : y + size[0], x : x + size[1]] += one
        return [out.div_(total[..., None]).permute(0, 3, 1, 2) for out in sums]

    def _cut(self, image: torch.Tensor, y: int, x: int, size: Sequence[int]) -> torch.Tensor:
        cell = self.cell
        return image[:, :, y * cell : (y + size[0]) * cell, x * cell : (x + size[1]) * cell]

    def _of_windows(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Four maps (B, D, h, w) of images that the transformer sees as a whole."""
        if self.patch != self.cell:
            size = [int(side) // self.cell * self.patch for side in image.shape[-2:]]
            image = F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)
        found: list[torch.Tensor] = self.vit.forward_intermediates(
            image.contiguous(), indices=list(self.blocks), norm=True, intermediates_only=True
        )
        return found


def _centre(tokens: int) -> torch.Tensor:
    """How much a token of a window counts: the more, the further it is from the window's sides."""
    at = torch.arange(tokens) + 0.5
    return torch.minimum(at, tokens - at)
