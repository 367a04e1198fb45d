"""The instant head: features to classes, fitted in about a second.

One hidden layer. It is linear in the features first, and a linear map commutes with bilinear upsampling: each feature
map is multiplied by its own share of the weights at its own low resolution, and only the few hidden channels are
upsampled. Standardisation folds into the same weights. See D9.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from napari_sparseseg.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence

ABSENT = -100.0
"""Score of a class without labels: it is never chosen, and its probability is 0 at any temperature."""

_MASKS = 8192


@dataclass(frozen=True, slots=True)
class HeadSettings:
    """How the head is fitted."""

    hidden: int = 32
    dropout: float = 0.3
    weight_decay: float = 0.01
    learning_rate: float = 5e-3
    steps: int = 300
    rows: int = 512
    """Labelled pixels per step."""


class Table(Protocol):
    """Rows of numbers, a tensor or several (`feature_cache.Parts`)."""

    def __getitem__(self, index: torch.Tensor, /) -> torch.Tensor:
        """The rows of these numbers."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Labelled pixels with their features.

    Attributes
    ----------
    features
        float (N, F); indexed only, and only with what is drawn.
    channel
        int64 (N,), index into the class table.
    weight
        float32 (N,), share of the loss; need not sum to 1.
    """

    features: Table
    channel: torch.Tensor
    weight: torch.Tensor


class Head(nn.Module):
    """Class scores from feature maps.

    Parameters
    ----------
    channels
        Of the maps.
    hidden
        Width of the hidden layer.
    classes
        Number of classes.
    """

    def __init__(self, channels: Sequence[int], hidden: int, classes: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(c, hidden, 1, bias=False) for c in channels)
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.scores = nn.Conv2d(hidden, classes, 1)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Scores (B, K, h, w) on the grid of the first map."""
        size = maps[0].shape[-2:]
        total = self.bias.view(1, -1, 1, 1)  # then in place: these are the largest tensors of a whole-slide run
        for values, project in zip(maps, self.projections, strict=True):
            part = project(values)
            if part.shape[-2:] != size:
                part = F.interpolate(part, size=size, mode="bilinear", align_corners=False)
            total = part.float().add_(total)
        scores: torch.Tensor = self.scores(F.relu(total, inplace=True))
        return scores

    def rows(self, features: torch.Tensor) -> torch.Tensor:
        """Scores (N, K) of sampled features (N, F)."""
        weights = torch.cat([p.flatten(1) for p in self.projections.parameters()], dim=1)
        hidden = F.relu(F.linear(features, weights, self.bias))
        return F.linear(hidden, self.scores.weight.flatten(1), self.scores.bias)


def mean_of(heads: Sequence[Head]) -> Head:
    """One head whose scores are the mean of those of several on the same maps.

    Its hidden layer is as wide as theirs together.
    """
    widths, first = [len(h.bias) for h in heads], heads[0]
    channels = [p.in_channels for p in first.projections.children() if isinstance(p, nn.Conv2d)]
    out = Head(channels, sum(widths), first.scores.out_channels).to(first.bias.device)
    states = [h.state_dict() for h in heads]
    mean = {name: torch.cat([state[name] for state in states]) for name in states[0] if not name.startswith("scores.")}
    mean["scores.weight"] = torch.cat([state["scores.weight"] / len(heads) for state in states], dim=1)
    mean["scores.bias"] = torch.stack([state["scores.bias"] for state in states]).mean(0)
    out.load_state_dict(mean)
    return out.eval()


def fit_head(
    samples: Samples,
    channels: Sequence[int],
    classes: int,
    *,
    settings: HeadSettings | None = None,
    seed: int = 0,
    device: torch.device | None = None,
) -> Head:
    """Fit a head to labelled pixels.

    Pixels are drawn in proportion to their weight, so the mean loss of a draw estimates the balanced loss. The result
    depends on samples and seed only: refitting after an undo gives the same head as before.

    Parameters
    ----------
    samples
        At least one pixel with a weight above 0.
    channels
        Of the feature maps, in the order of the columns of `samples.features`.
    classes
        Number of classes; those that do not occur get the score `ABSENT`.
    device
        Where it is fitted; only the rows drawn are moved there. The result is on the CPU.

    Raises
    ------
    TrainingError
        Where there is nothing to fit.
    """
    settings = settings or HeadSettings()
    weight = samples.weight.double()
    if not weight.numel() or not bool(weight.sum() > 0):
        raise TrainingError("there are no labelled pixels to learn from; scribble some.")
    # Estimates of mean and spread from a draw: as good, and a pass over all rows would take as long as the fit.
    chosen = _draw(weight, (_MASKS,), torch.Generator().manual_seed(seed))
    x = samples.features[chosen].to(device).float()
    mean, std = x.mean(0), x.std(0, correction=0).clamp_min(1e-3)
    net = _train(samples, mean, std, classes, settings, seed)
    return _folded(net, mean, std, channels, _present(samples, classes))


def _draw(weight: torch.Tensor, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Row numbers drawn in proportion to their weight."""
    # Inverse sampling: unlike torch.multinomial it takes any number of rows.
    ends = weight.cumsum(0)
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    return torch.searchsorted(ends, uniform * ends[-1]).clamp_max(len(ends) - 1)


def _train(
    samples: Samples, mean: torch.Tensor, std: torch.Tensor, classes: int, settings: HeadSettings, seed: int
) -> list[torch.Tensor]:
    """Weight and bias of the hidden layer, weight and bias of the output, for standardised features."""
    generator = torch.Generator().manual_seed(seed)
    width, hidden = len(mean), settings.hidden
    shapes = ((hidden, width), (hidden,), (classes, hidden), (classes,))
    fan_in = (width, width, hidden, hidden)
    weights = [
        (torch.rand(shape, generator=generator) * 2 - 1).mul_(n**-0.5).to(mean.device).requires_grad_()
        for shape, n in zip(shapes, fan_in, strict=True)
    ]
    adam = _AdamW(weights, settings)
    draws = _draw(samples.weight.double(), (settings.steps, settings.rows), generator)
    rows, draws = torch.unique(draws, return_inverse=True)  # however many there are, no more than are drawn is copied
    features, channel = samples.features[rows].to(mean.device), samples.channel[rows].to(mean.device)
    masks = [_dropout_masks(n, settings, generator).to(mean.device) for n in (width, hidden)]
    starts = torch.randint(_MASKS - settings.rows, (settings.steps,), generator=generator).tolist()
    for index, start in zip(draws.to(mean.device), starts, strict=True):
        outer, inner = (mask[start : start + settings.rows] for mask in masks)
        x = (features[index].float() - mean) / std
        inside = F.relu(F.linear(x * outer, weights[0], weights[1])) * inner
        loss = F.cross_entropy(F.linear(inside, weights[2], weights[3]), channel[index])
        adam.step(torch.autograd.grad(loss, weights))
    return weights


class _AdamW:
    """AdamW (Loshchilov & Hutter, 2019) with warm-up over 30 % of the steps and cosine decay.

    Not torch's own: importing that takes 1-3 s of the first second that the user waits for, and for these four small
    tensors its bookkeeping takes as long as the step.
    """

    def __init__(self, parameters: list[torch.Tensor], settings: HeadSettings) -> None:
        self.parameters, self._settings = parameters, settings
        self._first = [torch.zeros_like(p) for p in parameters]
        self._second = [torch.zeros_like(p) for p in parameters]
        self._step = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[torch.Tensor]) -> None:
        """Move the parameters."""
        self._step += 1
        done = self._step / self._settings.steps
        rate = self._settings.learning_rate * (
            done / 0.3 if done < 0.3 else 0.5 + 0.5 * math.cos((done - 0.3) / 0.7 * math.pi)
        )
        bias1, bias2 = 1 - 0.9**self._step, 1 - 0.999**self._step
        for p, g, m, v in zip(self.parameters, gradients, self._first, self._second, strict=True):
            m.lerp_(g, 0.1)
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            p.mul_(1 - rate * self._settings.weight_decay)
            p.addcdiv_(m, (v / bias2).sqrt_().add_(1e-8), value=-rate / bias1)


def _dropout_masks(width: int, settings: HeadSettings, generator: torch.Generator) -> torch.Tensor:
    """Masks to take runs of rows from: drawing fresh ones for every step would take as long as the steps."""
    keep = 1 - settings.dropout
    return torch.empty(_MASKS, width).bernoulli_(keep, generator=generator) / keep


def _present(samples: Samples, classes: int) -> torch.Tensor:
    counted = torch.bincount(samples.channel, weights=samples.weight.double(), minlength=classes)
    return counted.cpu() > 0


@torch.no_grad()
def _folded(
    weights: Sequence[torch.Tensor],
    mean: torch.Tensor,
    std: torch.Tensor,
    channels: Sequence[int],
    present: torch.Tensor,
) -> Head:
    """The fitted layers with the standardisation inside, cut into one 1 x 1 convolution per map; on the CPU."""
    inner, inner_bias, outer, outer_bias = (w.cpu() for w in weights)
    folded = inner / std.cpu()
    outer[~present] = 0
    outer_bias[~present] = ABSENT
    head = Head(channels, len(inner), len(outer))
    state = {
        "bias": inner_bias - folded @ mean.cpu(),
        "scores.weight": outer[:, :, None, None],
        "scores.bias": outer_bias,
    }
    for k, part in enumerate(torch.split(folded, list(channels), dim=1)):
        state[f"projections.{k}.weight"] = part[:, :, None, None]
    head.load_state_dict(state)
    return head.eval()
