"""The networks: encoder with instant head and U-Net decoder, and the plain U-Net of the paper.

Both give class scores for every pixel of an image whose sides are multiples of `size_divisor`. The halo of tiles
follows from `receptive_field`: how many pixels around a pixel its scores depend on, at most.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from napari_sparseseg.learning.efficientnet_lite import in_bands
from napari_sparseseg.learning.features import WORKING_STRIDE, FeatureMaps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_sparseseg.learning.head import Head

DECODER_WIDTHS = (64, 48, 32, 24)
STATISTICS = 50_000
"""Rows that the spread of the features is measured on, at least."""
_NEW_CLASS = -4.0
"""Initial score of a new class: rarely chosen until it is learned."""


class Decoder(nn.Module):
    """U-Net decoder over feature maps, coarse to fine: one 3 x 3 convolution per scale.

    Features are normalised over channels at each place: group or instance statistics would depend on the tile.

    Parameters
    ----------
    channels, strides
        Of the maps, as from `FeatureMaps`.
    widths
        Channels per scale, coarsest first.
    classes
        Number of classes.

    Attributes
    ----------
    tuned : FeatureMaps or None
        Its own copy of the encoder once that is trained too; None while it shares the frozen one of the head.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.tuned: FeatureMaps | None = None
        self.scales = sorted(set(strides), reverse=True)
        self.inputs = [[i for i, s in enumerate(strides) if s == scale] for scale in self.scales]
        self.stages = nn.ModuleList()
        self.register_buffer("mean", torch.zeros(sum(channels)))
        self.register_buffer("std", torch.ones(sum(channels)))
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.channels, self.widths = list(channels), list(widths)
        before = 0
        for group, width in zip(self.inputs, widths, strict=True):
            self.stages.append(_Stage(before + sum(channels[i] for i in group), width))
            before = width
        self.scores = nn.Conv2d(before, classes, 1)

    def standardise(self, features: torch.Tensor) -> None:
        """Take mean and spread of the maps from sampled features (N, sum of channels)."""
        self.mean.copy_(features.float().mean(0))
        self.std.copy_(features.float().std(0).clamp_min(1e-3))

    @property
    def receptive_field(self) -> int:
        """Pixels that the 3 x 3 convolutions add to the receptive field of the maps."""
        return sum(self.scales) + max(self.scales)

    def forward(self, maps: Sequence[torch.Tensor], keep: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """Scores (B, K, h, w) on the grid of the finest map; `keep`: factors (B, C_i, 1, 1) of a channel dropout."""
        x: torch.Tensor | None = None
        middle, spread = (torch.split(v, self.channels) for v in (self.mean, self.std))
        for group, stage in zip(self.inputs, self.stages, strict=True):
            factors = [(1 if keep is None else keep[i].flatten(1)) / spread[i][None] for i in group]
            x = stage([(maps[i], middle[i], factor) for i, factor in zip(group, factors, strict=True)], x)
        scores: torch.Tensor = self.scores(x)
        return scores


class _Stage(nn.Module):
    """1 x 1 to the stage's width, then a residual 3 x 3."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(before, width, 1)
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Conv2d(width, width, 3, padding=1)

    def forward(
        self, parts: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], coarser: torch.Tensor | None
    ) -> torch.Tensor:
        """Maps of this scale and what came of the coarser ones, to (B, width, h, w).

        Each part is a map (B, C_i, h, w), its shift (C_i), and its factor (1 or B, C_i).
        """
        # Part by part and channels last, the 1 x 1 convolution is a matrix product without a concatenated copy; shift
        # and factor of each part fold into the weights; and as it commutes with upsampling, the coarser part is
        # multiplied at its own low resolution.
        sizes = [x.shape[1] for x, _, _ in parts] + ([] if coarser is None else [coarser.shape[1]])
        weights = torch.split(self.reduce.weight.flatten(1), sizes, dim=1)
        scaled = [factor[:, None] * weight for (_, _, factor), weight in zip(parts, weights, strict=False)]
        shifts = [weight @ shift for (_, shift, _), weight in zip(parts, scaled, strict=True)]
        bias: torch.Tensor = self.reduce.bias  # type: ignore[assignment]
        first = (bias - torch.stack(shifts).sum(0))[:, None, None]
        maps = [x.permute(0, 2, 3, 1) for x, _, _ in parts]
        _, height, width, _ = maps[0].shape
        if coarser is not None:
            small = F.linear(coarser.permute(0, 2, 3, 1), weights[-1]).add_(first).permute(0, 3, 1, 2)
            large = F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)
            first = large.permute(0, 2, 3, 1)

        def rows(start: int, stop: int) -> torch.Tensor:
            above, below = max(0, start - 1), min(height, stop + 1)  # what the 3 x 3 sees
            total = first if coarser is None else first[:, above:below]
            for x, weight in zip(maps, scaled, strict=True):
                part = x[:, above:below]
                total = (part.flatten(1, 2) @ weight.transpose(1, 2)).view(*part.shape[:3], -1).add_(total)
            out = F.relu(self.norm(total), inplace=True).permute(0, 3, 1, 2)
            mixed = F.relu(self.mix(out), inplace=True)
            return (out + mixed)[:, :, start - above : stop - above]

        return in_bands(rows, height, len(maps[0]) * width * self.mix.in_channels)


class TwoSpeedNet(nn.Module):
    """Instant head and, once trained, U-Net decoder: on one pass of the encoder until the decoder has its own.

    Parameters
    ----------
    features
        Encoder and what is derived from it.
    head
        The instant head.
    decoder
        The fine part, or None.
    share
        Share of the decoder in the result, 0..1: probability = (1 - share) * head + share * decoder.
    temperature
        The scores of both are divided by it, see `calibration`.
    """

    def __init__(
        self,
        features: FeatureMaps,
        head: Head,
        decoder: Decoder | None = None,
        share: float = 0.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.features, self.head, self.decoder = features, head, decoder
        self.share = share if decoder is not None else 0.0
        self.temperature = temperature

    @property
    def receptive_field(self) -> int:
        """Pixels around a pixel that its scores depend on, at most."""
        return (
            self.features.receptive_field
            + WORKING_STRIDE
            + (self.decoder.receptive_field if self.decoder is not None and self.share else 0)
        )

    @property
    def size_divisor(self) -> int:
        """Sides and origin of an image are multiples of this."""
        return max(self.features.strides)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Probabilities (B, K, H, W)."""
        maps = self.features(image)
        small = self.head(maps) / self.temperature
        scores = F.interpolate(small, size=image.shape[-2:], mode="bilinear", align_corners=False)
        probabilities = scores.float().softmax(1)
        if self.decoder is None or not self.share:
            return probabilities
        if self.decoder.tuned is not None:
            maps = self.decoder.tuned(image)
        small = self.decoder(maps) / self.temperature
        fine = F.interpolate(small, size=image.shape[-2:], mode="bilinear", align_corners=False)
        return probabilities.lerp(fine.float().softmax(1), self.share)


class PlainUNet(nn.Module):
    """U-Net from random weights (Ronneberger et al., 2015), as the paper trains it, with padding.

    Features are normalised over channels at each place, as in `Decoder`, so that a patch does not depend on the others
    in its batch or on the part that it is processed in. See D3.

    Parameters
    ----------
    channels, classes
        Of the image; of the result.
    width
        Channels at full resolution, doubled at each of `depth` steps down.
    """

    def __init__(self, channels: int, classes: int, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(depth + 1)]
        self.depth, self.channels = depth, channels
        self.down = nn.ModuleList(_double(a, b) for a, b in zip([channels, *widths[:-1]], widths, strict=True))
        self.up = nn.ModuleList(_double(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.scores = nn.Conv2d(width, classes, 1)

    @property
    def receptive_field(self) -> int:
        """Two 3 x 3 convolutions per scale on the way down and up, and one cell for pooling and upsampling each."""
        down = sum((2 + 1) << i for i in range(self.depth)) + (2 << self.depth)
        return down + sum((2 + 2) << i for i in range(self.depth))

    @property
    def size_divisor(self) -> int:
        """See `TwoSpeedNet`."""
        return 1 << self.depth

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """Scores (B, K, H, W)."""
        x = image * 2 - 1
        skips = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False), skip], dim=1))
        scores: torch.Tensor = self.scores(x)
        return scores

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Probabilities (B, K, H, W)."""
        return self.logits(image).float().softmax(1)


def new_unet(seed: int, channels: int, classes: int) -> PlainUNet:
    """The plain U-Net with random weights that depend on the seed only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PlainUNet(channels, classes)


def new_decoder(seed: int, features: FeatureMaps, classes: int, rows: Sequence[torch.Tensor]) -> Decoder:
    """A decoder with random weights that depend on the seed only, standardised by sampled features (N, F)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = Decoder(features.channels, features.strides, DECODER_WIDTHS[: len(set(features.strides))], classes)
    step = 1 + sum(map(len, rows)) // STATISTICS  # of very many, some are as good without a copy of all
    decoder.standardise(torch.cat([r[::step] for r in rows]))
    return decoder


def with_classes(net: Decoder | PlainUNet, old: Sequence[int], new: Sequence[int]) -> Decoder | PlainUNet:
    """A copy of a decoder or U-Net for another class table; classes of the same id keep what they learned.

    Parameters
    ----------
    net
        The network.
    old, new
        Class ids in channel order.
    """
    out = copy.deepcopy(net)
    out.scores = _moved(net.scores, old, new)
    return out


def _moved(scores: nn.Conv2d, old: Sequence[int], new: Sequence[int]) -> nn.Conv2d:
    """The output layer with its channels moved to where their class is now."""
    out = nn.Conv2d(scores.in_channels, len(new), 1).to(scores.weight.device)
    weight, bias = torch.zeros_like(out.weight), torch.full((len(new),), _NEW_CLASS, device=scores.weight.device)
    for k, class_id in enumerate(new):
        if class_id in old and scores.bias is not None:
            weight[k], bias[k] = scores.weight[old.index(class_id)], scores.bias[old.index(class_id)]
    out.load_state_dict({"weight": weight, "bias": bias})
    return out.requires_grad_(scores.weight.requires_grad)


class _ChannelNorm(nn.LayerNorm):
    """Normalises a map (B, C, h, w) over channels at each place: the result depends on neither batch nor tile."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the same shape."""
        out: torch.Tensor = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out


def _double(before: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, width, 3, padding=1, bias=False),
        _ChannelNorm(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        _ChannelNorm(width),
        nn.ReLU(inplace=True),
    )
