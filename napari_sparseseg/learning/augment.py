"""Random changes that a slide could have come with: rotated, scaled, stained, lit, focused or compressed differently.

The pixels of a batch are moved and recoloured as one tensor. Labels follow the move by nearest neighbour and are never
invented: what comes from outside the patch is unlabelled. Balanced weights are computed afterwards.

Stains are changed in the optical density space of Ruifrok & Johnston, "Quantification of histochemical staining by
color deconvolution" (2001), as in Tellez et al., "Whole-Slide Mitosis Detection in H&E Breast Histology" (2018): each
of hematoxylin, eosin and residual is scaled and shifted independently. Only brightfield colour is treated so. In
fluorescence every channel is scaled and shifted independently, and channels are never mixed. See D7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from napari_sparseseg.errors import TrainingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_sparseseg.learning.sampling import Batch

# Rows: the optical density (R, G, B) of pure hematoxylin, eosin and DAB; values of Ruifrok & Johnston (2001).
HED = torch.tensor([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
_UNIT_HED = HED / HED.norm(dim=1, keepdim=True)
_TO_HED = torch.linalg.inv(_UNIT_HED)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Limits of the random changes; every number is a bound or a probability, and 0 switches that change off."""

    flips: bool = True
    """Mirror, and rotate by quarter turns."""
    rotation: float = 0.5
    """Chance of a rotation by any angle."""
    scale: float = 0.2
    """Zoom between 1 / (1 + scale) and 1 + scale."""
    stain: float = 0.1
    """Standard deviation of the factor on each stain's density, and half of it of the shift (brightfield)."""
    brightness: float = 0.1
    """Standard deviation of the factor on the light (all channels together; each on its own in fluorescence)."""
    blur: float = 0.15
    """Chance of a Gaussian blur of 0.3 to 1.2 px."""
    noise: float = 0.15
    """Chance of sensor noise of up to 2 % of the range."""
    jpeg: float = 0.15
    """Chance of compression at quality 30 to 90 (8-bit colour only)."""

    @classmethod
    def none(cls) -> Augmentation:
        """Patches as they were drawn."""
        return cls(flips=False, rotation=0, scale=0, stain=0, brightness=0, blur=0, noise=0, jpeg=0)


def augment(
    batch: Batch, rng: np.random.Generator, settings: Augmentation | None = None, *, size: int | None = None
) -> Batch:
    """A changed copy of a batch.

    Parameters
    ----------
    batch
        Patches (B, h, w, C) with labels (B, h, w).
    rng
        Source of all randomness: the same state gives the same result.
    settings
        How much may change.
    size
        Side of the patches returned, in pixels, cut from the middle after turning: patches drawn with a margin keep
        their corners filled. None: as large as they are.

    Returns
    -------
    Batch
        Of the same dtype, patches (B, size, size, C).

    Raises
    ------
    TrainingError
        When `size` is larger than the patches.
    """
    settings = settings or Augmentation()
    _, h, w, _ = batch.pixels.shape
    if size is not None and not 0 < size <= min(h, w):
        raise TrainingError(f"patches of {h} x {w} px cannot give {size} px; draw them with a margin.")
    out_shape = (h, w) if size is None else (size, size)
    top = float(np.iinfo(batch.pixels.dtype).max) if batch.pixels.dtype.kind in "ui" else None
    # Through numpy first: torch knows neither foreign byte orders nor all unsigned types.
    channels_first = np.ascontiguousarray(batch.pixels.transpose(0, 3, 1, 2))
    x = torch.from_numpy(channels_first.astype(np.float32))
    layers = [batch.labels] if batch.pseudo is None else [batch.labels, batch.pseudo]
    labels = torch.from_numpy(np.stack(layers, axis=1))
    x, labels = _move(x, labels, rng, settings, out_shape)
    x = _stain(x, rng, settings) if batch.brightfield else _gain(x, rng, settings)
    for k in np.flatnonzero(rng.random(len(x)) < settings.blur):
        x[k] = _blur(x[k], float(rng.uniform(0.3, 1.2)))
    for k in np.flatnonzero(rng.random(len(x)) < settings.noise):
        x[k] += _noise(x[k], rng, top)
    pixels = _as_dtype(x, batch.pixels.dtype, top)
    if batch.pixels.dtype == np.uint8 and pixels.shape[-1] == 3:
        for k in np.flatnonzero(rng.random(len(x)) < settings.jpeg):
            pixels[k] = _recompress(pixels[k], int(rng.integers(30, 91)))
    moved = labels.numpy()
    return replace(batch, pixels=pixels, labels=moved[:, 0], pseudo=None if batch.pseudo is None else moved[:, 1])


def hed_from_rgb(rgb: torch.Tensor) -> torch.Tensor:
    """Stain densities (B, 3, h, w) of colour 0..255 (B, 3, h, w): hematoxylin, eosin, residual."""
    return _mix(_density(rgb), _TO_HED)


def rgb_from_hed(hed: torch.Tensor) -> torch.Tensor:
    """Colour 0..255 of stain densities; the inverse of `hed_from_rgb`."""
    return _light(_mix(hed, _UNIT_HED))


def _density(rgb: torch.Tensor) -> torch.Tensor:
    # + 1 keeps black finite; 256 makes white have no density.
    return ((rgb + 1.0) * (1 / 256.0)).log_().neg_()


def _light(density: torch.Tensor) -> torch.Tensor:
    return density.neg().exp_().mul_(256.0).sub_(1.0)


def _mix(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Row vectors along axis 1 times `matrix`: one for all (3, 3), or one per patch (B, 3, 3)."""
    b, c, h, w = x.shape
    return torch.matmul(matrix.transpose(-1, -2), x.reshape(b, c, h * w)).view(b, c, h, w)


def _stain(x: torch.Tensor, rng: np.random.Generator, settings: Augmentation) -> torch.Tensor:
    """Scale and shift each stain, and the light. All of it is one affine map of the optical density."""
    if not (settings.stain or settings.brightness):
        return x
    b = len(x)
    factors = torch.from_numpy(rng.normal(1.0, settings.stain, (b, 3)).clip(0.3, 3.0)).float()
    shifts = torch.from_numpy(rng.normal(0.0, settings.stain / 2, (b, 3))).float()
    light = torch.from_numpy(rng.normal(0.0, settings.brightness, (b, 1, 1, 1))).float()
    matrix = _TO_HED @ torch.diag_embed(factors) @ _UNIT_HED
    # A shift adds stain where there is tissue: glass without density stays glass.
    density = _density(x)
    tissue = (density.mean(1, keepdim=True) / 0.15).clamp(0.0, 1.0)
    shift = (shifts @ _UNIT_HED)[:, :, None, None]
    return _light(_mix(density, matrix).addcmul_(shift, tissue).sub_(light)).clamp_(0.0, 255.0)


def _gain(x: torch.Tensor, rng: np.random.Generator, settings: Augmentation) -> torch.Tensor:
    """Scale each channel, and shift it by a part of its own spread; channels stay apart."""
    if not settings.brightness:
        return x
    shape = (*x.shape[:2], 1, 1)
    factor = torch.from_numpy(np.exp(rng.normal(0.0, 2 * settings.brightness, shape))).float()
    shift = torch.from_numpy(rng.normal(0.0, settings.brightness, shape)).float()
    return x * factor + shift * x.std(dim=(2, 3), keepdim=True)


def _blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of one patch (C, h, w), edges repeated."""
    radius = max(1, math.ceil(2.5 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    taps = taps / taps.sum()
    padded = F.pad(image[:, None], (radius, radius, radius, radius), mode="replicate")
    across = F.conv2d(padded, taps.view(1, 1, 1, -1))
    return F.conv2d(across, taps.view(1, 1, -1, 1))[:, 0]


def _noise(image: torch.Tensor, rng: np.random.Generator, top: float | None) -> torch.Tensor:
    scale = 255.0 if top == 255.0 else float(image.max() - image.min())
    amount = float(rng.uniform(0.002, 0.02)) * scale
    return torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32)) * amount


def _recompress(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """One uint8 colour patch (h, w, 3) after a JPEG at `quality`."""
    import imagecodecs

    out: NDArray[np.uint8] = imagecodecs.jpeg8_decode(imagecodecs.jpeg8_encode(image, level=quality))
    return out


def _as_dtype(x: torch.Tensor, dtype: np.dtype[Any], top: float | None) -> NDArray[Any]:
    """(B, C, h, w) floats as (B, h, w, C) of the slide's dtype, rounded and clipped."""
    if top is not None:
        x = x.round_().clamp_(0.0, top)
    return np.ascontiguousarray(x.numpy().astype(dtype).transpose(0, 2, 3, 1))


def _move(
    x: torch.Tensor, labels: torch.Tensor, rng: np.random.Generator, settings: Augmentation, out_shape: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (bilinear, edges mirrored) and labels (nearest, 0 outside) after the same random move of each patch.

    Labels are (B, n, h, w); the first of the n is the one that must not be lost.
    """
    matrices = _random_matrices(len(x), rng, settings)
    h, w = x.shape[2:]
    grid = _grid(matrices, (h, w), out_shape)
    moved_labels = _sample_labels(labels, grid)
    # A turn can move the only labelled pixels out of a corner: such a patch stays as it was drawn.
    drawn, kept = ((values[:, 0] != 0).flatten(1).any(1) for values in (labels, moved_labels))
    lost = (drawn & ~kept).numpy()
    if lost.any():
        straight = _random_matrices(int(lost.sum()), rng, Augmentation(rotation=0.0, scale=0.0))
        grid[lost] = _grid(straight, (h, w), out_shape)
        moved_labels[lost] = _sample_labels(labels[lost], grid[lost])
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False), moved_labels


def _random_matrices(n: int, rng: np.random.Generator, settings: Augmentation) -> torch.Tensor:
    """Matrices (n, 2, 2) from output to input offsets (x, y) from the middle of the patch."""
    quarter = rng.integers(0, 4, n) if settings.flips else np.zeros(n, int)
    mirror = np.where(rng.random(n) < 0.5, -1.0, 1.0) if settings.flips else np.ones(n)
    free = np.where(rng.random(n) < settings.rotation, rng.uniform(0.0, np.pi / 2, n), 0.0)
    zoom = np.exp(rng.uniform(-1.0, 1.0, n) * np.log1p(settings.scale))
    # Whole quarters by table: cos(pi / 2) is not quite 0, and pixels would not fall onto pixels.
    table = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    cos_q, sin_q = table[quarter].T
    cos_f, sin_f = np.cos(free), np.sin(free)
    cos, sin = cos_q * cos_f - sin_q * sin_f, sin_q * cos_f + cos_q * sin_f
    matrix = np.stack([np.stack([mirror * cos, -sin], -1), np.stack([mirror * sin, cos], -1)], -2) / zoom[:, None, None]
    return torch.from_numpy(matrix).float()


def _grid(matrices: torch.Tensor, in_shape: tuple[int, int], out_shape: tuple[int, int]) -> torch.Tensor:
    """Sampling grid (n, h, w, 2) for `grid_sample`: input (x, y) in -1..1 for each output pixel, around the middle."""
    (h, w), (oh, ow) = in_shape, out_shape
    ys = torch.arange(oh) - (oh - 1) / 2
    xs = torch.arange(ow) - (ow - 1) / 2
    # Offsets from the middle in pixels -> input offsets in pixels -> -1..1, where 2 / size is one pixel.
    from_x = matrices[:, :, 0, None] * xs
    from_y = matrices[:, :, 1, None] * ys
    offsets = from_x[:, :, None, :] + from_y[:, :, :, None]
    return torch.stack([offsets[:, 0] * (2 / w), offsets[:, 1] * (2 / h)], dim=-1)


def _sample_labels(labels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Labels of the input pixel that each grid point falls into; 0 outside. Ids up to 255 are exact in float32."""
    moved = F.grid_sample(labels.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return moved.to(labels.dtype)
