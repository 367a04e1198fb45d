"""Pixels to feature maps, and feature maps to rows of features at labelled pixels.

Labelled pixels are few, so features are sampled (bilinearly, from the low-resolution maps) only there: five times
faster than upsampling whole maps, and hardly any memory.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from napari_sparseseg.errors import ModelError
from napari_sparseseg.geometry import Box
from napari_sparseseg.learning.encoders import Encoder
from napari_sparseseg.learning.sources import occupied_cells
from napari_sparseseg.learning.stains import StainMap

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.learning.sources import Source

WORKING_STRIDE = 2
"""The head works on a grid of this many pixels; its class scores are then upsampled."""
CONTEXT = 7
"""Cells of the coarsest map that are averaged as its context. See D4 and D122."""
_LOOK, _LOOKS = 256, 16
"""Side and number of the patches that the range of values is measured on."""


@dataclass(frozen=True, slots=True)
class InputScale:
    """Per channel, the pixel values that become 0 and 1."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    stain: StainMap | None = None
    """How colours are matched first, on a slide that is stained unlike those the model was trained on."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> InputScale:
        """Read what `to_json` wrote."""
        stain = StainMap.from_json(data["stain"]) if data.get("stain") else None
        if stain is not None and len(data["low"]) != 3:
            raise ValueError("only colours can be matched, which have three channels")
        return cls(tuple(float(v) for v in data["low"]), tuple(float(v) for v in data["high"]), stain)

    @classmethod
    def for_rgb(cls) -> InputScale:
        """0..255: brightfield colour is never stretched, the encoder knows it as it is."""
        return cls((0.0,) * 3, (255.0,) * 3)

    @classmethod
    def of(cls, sources: Sequence[Source]) -> InputScale:
        """For slides of one kind: 0..255 for 8-bit colour, else measured on what is labelled."""
        if all(s.slide.is_rgb and s.slide.dtype == np.uint8 for s in sources):
            return cls.for_rgb()
        # Only what lies on the slide: what is read beside it would count as dark pixels.
        cells = [(s, c.intersection(Box(0, 0, *s.shape))) for s in sources for c in occupied_cells(s, _LOOK)]
        return cls.measured(s.read_pixels(region) for s, region in cells[:: max(1, len(cells) // _LOOKS)][:_LOOKS])

    @classmethod
    def measured(cls, patches: Iterable[NDArray[Any]]) -> InputScale:
        """From the 0.5 and 99.5 percentile of each channel over patches (..., C): fluorescence, 16 bits, float."""
        pixels = np.concatenate([p.reshape(-1, p.shape[-1])[::7].astype(np.float64) for p in patches])
        low, high = np.nanpercentile(pixels, (0.5, 99.5), axis=0)
        high = np.where(high > low, high, low + 1)
        return cls(tuple(low.tolist()), tuple(high.tolist()))

    def unit(self, pixels: NDArray[Any]) -> torch.Tensor:
        """(B, h, w, C) of any dtype to float32 (B, C, h, w), 0..1 where within the scale, cut at -0.5 and 1.5.

        Raises
        ------
        ModelError
            When the number of channels is another than the scale's.
        """
        if pixels.ndim != 4 or pixels.shape[-1] != len(self.low):
            raise ModelError(
                f"the model was made for {len(self.low)} channels but the image has shape {pixels.shape[1:]} (h, w, "
                "channels); use a slide with the same channels."
            )
        values = np.array(pixels if self.stain is None else self.stain.apply(pixels), np.float32, order="C")
        if pixels.dtype.kind == "f":
            np.nan_to_num(values, copy=False)
        low = torch.tensor(self.low, dtype=torch.float32)
        span = torch.tensor(self.high, dtype=torch.float32) - low
        if len({*zip(self.low, self.high, strict=True)}) == 1:  # one number for all channels takes a fifth of the time
            low, span = low[0], span[0]
        return torch.from_numpy(values).sub_(low).div_(span).clamp_(-0.5, 1.5).permute(0, 3, 1, 2)


class FeatureMaps(nn.Module):
    """The input of the head: colour, the encoder's maps, and the coarsest map averaged around each place.

    Parameters
    ----------
    encoder
        Its parameters belong to this module then.
    context
        Side of the window, in cells of the coarsest map, for the averaged copy; 1 for none.

    Attributes
    ----------
    channels, strides : tuple of int
        Per map; the first is colour.
    receptive_field : int
        Pixels around a place that a bilinear sample of any map there depends on, at most.
    """

    def __init__(self, encoder: Encoder, context: int = 1) -> None:
        super().__init__()
        self.encoder, self.context = encoder, context
        self.image_channels = int(encoder.mean.shape[1])
        extra = (encoder.channels[-1],) if context > 1 else ()
        coarsest = encoder.strides[-1]
        self.channels: tuple[int, ...] = (self.image_channels, *encoder.channels, *extra)
        self.strides: tuple[int, ...] = (WORKING_STRIDE, *encoder.strides, *((coarsest,) if extra else ()))
        # A sample between two cells reaches half a cell further than the cell it lies in.
        self.receptive_field = encoder.receptive_field + coarsest // 2 + (context // 2) * coarsest

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Maps of an image, float (B, C, H, W) in 0..1, H and W multiples of the largest stride."""
        maps: list[torch.Tensor] = self.encoder(image)
        colour = F.avg_pool2d(image, WORKING_STRIDE) * 2 - 1
        if self.context > 1:
            around = F.avg_pool2d(maps[-1], self.context, 1, self.context // 2, count_include_pad=False)
            return [colour, *maps, around]
        return [colour, *maps]


def new_features(encoder: str, channels: int, device: torch.device) -> FeatureMaps:
    """Frozen maps of the encoder of this name."""
    features = FeatureMaps(Encoder(encoder, channels), CONTEXT).requires_grad_(False).eval()
    return features.to(memory_format=torch.channels_last).to(device)


def sample(
    maps: Sequence[torch.Tensor], strides: Sequence[int], ys: torch.Tensor, xs: torch.Tensor, patch: int = 0
) -> torch.Tensor:
    """Features at pixels of one patch.

    Parameters
    ----------
    maps
        As from `FeatureMaps`, (B, C_i, h_i, w_i).
    strides
        Of the maps.
    ys, xs
        Pixel indices (N,) in the image that the maps were made from.
    patch
        Which image of the batch.

    Returns
    -------
    float32 (N, sum of C_i), bilinear at the pixel centres.
    """
    rows = []
    for values, stride in zip(maps, strides, strict=True):
        _, _, h, w = values.shape
        gy = (ys.float() + 0.5) * (2 / (h * stride)) - 1
        gx = (xs.float() + 0.5) * (2 / (w * stride)) - 1
        grid = torch.stack([gx, gy], dim=-1)[None, None].to(values.device)
        one = values[patch : patch + 1].float()
        rows.append(F.grid_sample(one, grid, padding_mode="border", align_corners=False)[0, :, 0].T)
    return torch.cat(rows, dim=1)
