"""Whole slides in strips: the default network row by row, every feature row computed once.

A tile with a halo computes the halo again for each of its neighbours: of an input of 1,008 px, 688 are kept. Here a
strip of a slide is followed downwards, as a scanner would see it. Each map holds the few rows that the maps above it
still need, and has just the columns that the answer depends on: a coarse map has a wide margin, the finest ones hardly
any. Nothing is padded, so every value is that of one pass over the whole slide. Rows are computed in steps that begin
at absolute multiples of `STEP`: the same bits wherever a strip begins. Steps are small enough for the processor's
cache, and memory depends on the width only. See D104.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Protocol, TypeGuard, cast

import torch
import torch.nn.functional as F

from napari_sparseseg.learning.efficientnet_lite import LiteTrunk
from napari_sparseseg.learning.features import WORKING_STRIDE
from napari_sparseseg.learning.fused import convolution, product
from napari_sparseseg.learning.network import TwoSpeedNet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from napari_sparseseg.learning.efficientnet_lite import _Layer
    from napari_sparseseg.learning.features import FeatureMaps, InputScale
    from napari_sparseseg.learning.fused import Rows
    from napari_sparseseg.learning.head import Head
    from napari_sparseseg.learning.network import Decoder, _Stage

    Interval = tuple[int, int]
    Reach = Callable[[int, int], Interval]
    """Which rows, or columns, of an input the half-open interval of a result depends on."""

STEP = 32
"""Rows of the image per step: a multiple of the coarsest stride."""
_CACHED = 1 << 19
"""Numbers that a step of the widest layers may fill: they stay in the processor's cache until they are read."""


_CELLS = 16
"""Rows of scores that become probabilities at once."""
_ROOM = 2
"""Steps more than are needed that a map has room for: the fewer, the more often rows lie in two parts."""


class ReadRows(Protocol):
    """Reads pixels: (rows, columns, C) of the half-open intervals of rows and columns, which may lie off the slide."""

    def __call__(self, rows: Interval, columns: Interval, /) -> np.ndarray:
        """The pixels."""


def _same(start: int, stop: int) -> Interval:
    return start, stop


def _window(kernel: int, stride: int, before: int) -> Reach:
    return lambda start, stop: (start * stride - before, (stop - 1) * stride - before + kernel)


def _between(factor: int) -> Reach:
    """Of bilinear upsampling: the two nearest cells of each."""
    half = factor // 2
    return lambda start, stop: ((start - half) // factor, (stop - 1 - half) // factor + 2)


class _Map:
    """Rows (row, column, channel) of one map; a row is computed once and held while another map may need it.

    Parameters
    ----------
    stride
        Image pixels per cell.
    channels
        Of the map.
    compute
        Fills (rows, columns, channels) from the views of the inputs, given the first row and column.
    inputs
        Maps and what of them is needed. Those that depend on others of them come first: asking for rows of a map may
        move the rows of those below it.
    middle
        Channels that a step computes at once, where these are more than those of the map.
    """

    def __init__(
        self,
        stride: int,
        channels: int,
        compute: Callable[..., object],
        inputs: Sequence[tuple[_Map, Reach]],
        middle: int = 0,
    ) -> None:
        self.channels, self._compute, self._inputs = channels, compute, tuple(inputs)
        self._most, self._middle = STEP // stride, max(middle, channels)
        self.columns: Interval | None = None
        self._step = 1
        self._ring = torch.empty(0, 0, 0)
        self._row = self._stop = 0
        self._users: dict[tuple[int, int], int] = {}
        """By the user's id and the number of its input: a reference would keep both in memory for long."""

    def cover(self, start: int, stop: int) -> None:
        """Have at least these columns."""
        if self.columns is not None:
            start, stop = min(start, self.columns[0]), max(stop, self.columns[1])
        if (start, stop) != self.columns:
            self.columns, self._ring = (start, stop), torch.empty(0, 0, 0)
            self._step = self._most
            while self._step > 1 and self._step * (stop - start) * self._middle > _CACHED:
                self._step //= 2
            for source, reach in self._inputs:
                source.cover(*reach(start, stop))

    def source_rows(self, start: int, stop: int) -> Interval:
        """Rows of the lowest map that these depend on."""
        found = [source.source_rows(*reach(start, stop)) for source, reach in self._inputs] or [(start, stop)]
        return min(a for a, _ in found), max(b for _, b in found)

    def reset(self) -> None:
        """Forget all rows."""
        if self._users:
            self._users.clear()
            for source, _ in self._inputs:
                source.reset()

    def seek(self, row: int, least: int, user: tuple[int, int]) -> None:
        """Be ready to give right rows from `row` on, and any values from `least` on."""
        first = row // self._step * self._step
        begun = bool(self._users)
        self._users[user] = min(least, self._users.get(user, least))
        self._row, self._stop = (min(row, self._row), min(first, self._stop)) if begun else (row, first)
        for k, (source, reach) in enumerate(self._inputs):
            source.seek(reach(self._row, self._row + 1)[0], reach(self._stop, self._stop + 1)[0], (id(self), k))

    def rows(self, start: int, stop: int, columns: Interval, user: tuple[int, int]) -> torch.Tensor:
        """Rows to read at once, before the next call for a map above this one."""
        assert self.columns is not None
        self._users[user] = start
        while self._stop < stop:
            self._go_on()
        if not len(self._ring):
            self._make_room(stop)
        first, size = start % len(self._ring), stop - start
        left, right = (column - self.columns[0] for column in columns)
        below = first + size - len(self._ring)
        if below <= 0:
            return self._ring[first : first + size, left:right]
        return torch.cat([self._ring[first:, left:right], self._ring[:below, left:right]])

    def _go_on(self) -> None:
        assert self.columns is not None
        at, (left, right) = self._stop, self.columns
        views = []
        for k, (source, reach) in enumerate(self._inputs):
            views.append(source.rows(*reach(at, at + self._step), reach(left, right), (id(self), k)))
        self._make_room(at + self._step)
        self._compute(self._ring[at % len(self._ring) :][: self._step], (at, left), *views)
        self._stop = at + self._step

    def _make_room(self, stop: int) -> None:
        """Rows from the first that is needed to `stop` fit: row r is in place r modulo the size, and never moved."""
        assert self.columns is not None
        low, old = min(self._stop, *self._users.values()), self._ring
        if stop - low <= len(old):
            return
        size = stop - low + max(_ROOM * self._step, len(old) // 4)
        size += -size % self._step
        self._ring = torch.empty(size, self.columns[1] - self.columns[0], self.channels)
        for row in range(low, self._stop):
            self._ring[row % size] = old[row % len(old)] if len(old) else 0


def _flat(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


def _image(x: torch.Tensor) -> torch.Tensor:
    """(h, w, C) as (1, C, h, w), channels last."""
    return x[None].permute(0, 3, 1, 2)


def _stretched(x: torch.Tensor, at: Interval, out: torch.Tensor, factor: int) -> None:
    """Add the bilinear upsampling of the view that `_between` asks for to rows and columns from `at`."""
    half = factor // 2
    first, left = ((start - half) // factor for start in at)
    wide = F.interpolate(_image(x), size=(len(x), x.shape[1] * factor), mode="bilinear", align_corners=False)
    start = at[1] - left * factor
    wide = wide[0].permute(1, 2, 0)[:, start : start + out.shape[1]]
    weight = (torch.arange(factor) * 2 + 1).float().div_(2 * factor)[:, None, None]
    for k in range(len(x) - 1):
        top = (first + k) * factor + half - at[0]
        above, below = max(0, top), min(len(out), top + factor)
        if above < below:
            out[above:below] += torch.lerp(wide[k], wide[k + 1], weight[above - top : below - top])


def _projection(
    weight: torch.Tensor, bias: torch.Tensor | None = None, *, top: float | None = None
) -> Callable[..., None]:
    """A 1 x 1 convolution that fills a map; `top` 6: cut to 0..6."""
    rows = product(weight, bias, top=top)

    def fill(out: torch.Tensor, _at: Interval, x: torch.Tensor) -> None:
        out.copy_(rows(x).view(out.shape))

    return fill


def _layer(source: _Map, layer: _Layer, stride: int) -> _Map:
    """One layer of the encoder over a map of this stride."""
    wide = source
    if layer.expands:
        expand = layer.conv_pw
        wide = _Map(stride, expand.out_channels, _projection(expand.weight, expand.bias, top=6), [(source, _same)])
    spread, last = layer.conv_dw, layer.conv_pwl if layer.expands else layer.conv_pw
    step, kernel = layer.stride, layer.kernel
    convolved = convolution(spread.weight, cast("torch.Tensor", spread.bias), step, spread.groups, top=6)
    project = product(last.weight, last.bias)

    def fill(out: torch.Tensor, _at: Interval, x: torch.Tensor, *shortcut: torch.Tensor) -> None:
        found = project(convolved(_image(x))[0].permute(1, 2, 0)).view(out.shape)
        if shortcut:
            torch.add(found, shortcut[0], out=out)
        else:
            out.copy_(found)

    inputs = [(wide, _window(kernel, step, (kernel - step) // 2))]
    if layer.shortcut:
        inputs.append((source, _same))
    return _Map(stride * step, last.out_channels, fill, inputs, spread.out_channels)


def _maps(pixels: _Map, features: FeatureMaps) -> list[_Map]:
    """The maps of `FeatureMaps`."""
    encoder, net = features.encoder, features.encoder.net
    assert isinstance(net, LiteTrunk)
    # The normalisation of the image is part of the first convolution: nothing is padded.
    weight = net.conv_stem.weight.double() / encoder.std.double()
    bias = cast("torch.Tensor", net.conv_stem.bias).double() - (weight * encoder.mean.double()).sum((1, 2, 3))
    convolved = convolution(weight.float(), bias.float(), 2, top=6)

    def stem(out: torch.Tensor, _at: Interval, x: torch.Tensor) -> None:
        out.copy_(convolved(_image(x))[0].permute(1, 2, 0))

    def colour(out: torch.Tensor, _at: Interval, x: torch.Tensor) -> None:
        tall = (x[::2] + x[1::2]).view(*out.shape[:2], WORKING_STRIDE, -1)
        torch.add(tall[:, :, 0], tall[:, :, 1], out=out).mul_(0.5).sub_(1)

    def around(out: torch.Tensor, _at: Interval, x: torch.Tensor) -> None:
        out.copy_(F.avg_pool2d(_image(x), features.context, 1)[0].permute(1, 2, 0))

    stride, found = 2, _Map(2, net.conv_stem.out_channels, stem, [(pixels, _window(3, 2, 0))])
    maps = [_Map(WORKING_STRIDE, pixels.channels, colour, [(pixels, _window(2, 2, 0))])]
    for block in net.blocks.children():
        for layer in cast("list[_Layer]", list(block.children())):
            found = _layer(found, layer, stride)
            stride *= layer.stride
        maps.append(found)
    if features.context > 1:
        window = _window(features.context, 1, features.context // 2)
        maps.append(_Map(stride, found.channels, around, [(found, window)]))
    return maps


def _products(weights: Sequence[torch.Tensor], bias: torch.Tensor | None) -> list[Rows]:
    """The products of maps that are added; the first of them has the bias."""
    return [product(weight, None if i else bias) for i, weight in enumerate(weights)]


def _total(products: Sequence[Rows], views: Sequence[torch.Tensor]) -> torch.Tensor:
    """Their sum, (rows * columns, channels)."""
    total = None
    for view, rows in zip(views, products, strict=True):
        total = rows(view, total)
    assert total is not None
    return total


def _sum(parts: Sequence[tuple[_Map, torch.Tensor]], bias: torch.Tensor, stride: int) -> _Map:
    """Maps of one stride, each times its matrix (out, C_i), and a bias."""
    products = _products([weight for _, weight in parts], bias)

    def fill(out: torch.Tensor, _at: Interval, *views: torch.Tensor) -> None:
        out.copy_(_total(products, views).view(out.shape))

    return _Map(stride, len(bias), fill, [(source, _same) for source, _ in parts])


def _deepest_first(maps: Sequence[_Map], strides: Sequence[int]) -> dict[int, list[int]]:
    """The numbers of the maps of each stride, coarsest stride and last map first."""
    found: dict[int, list[int]] = {}
    for i in sorted(range(len(maps)), key=lambda i: (-strides[i], -i)):
        found.setdefault(strides[i], []).append(i)
    return found


def _head(maps: Sequence[_Map], head: Head, strides: Sequence[int], temperature: float) -> _Map:
    """Scores of the head over the temperature, on the grid of the finest map."""
    weights = [p.flatten(1) for p in head.projections.parameters()]
    groups = _deepest_first(maps, strides)
    finest = groups.pop(WORKING_STRIDE)
    none = torch.zeros_like(head.bias)
    coarse = [
        (_sum([(maps[i], weights[i]) for i in group], none, stride), _between(stride // WORKING_STRIDE))
        for stride, group in groups.items()
    ]
    factors = [stride // WORKING_STRIDE for stride in groups]
    products = _products([weights[i] for i in finest], head.bias)
    project = product(head.scores.weight / temperature, cast("torch.Tensor", head.scores.bias) / temperature)

    def fill(out: torch.Tensor, at: Interval, *views: torch.Tensor) -> None:
        total = _total(products, views[len(factors) :]).view(*out.shape[:2], -1)
        for view, factor in zip(views, factors, strict=False):
            _stretched(view, at, total, factor)
        out.copy_(project(total.relu_()).view(out.shape))

    return _Map(WORKING_STRIDE, head.scores.out_channels, fill, [*coarse, *((maps[i], _same) for i in finest)])


def _decoder(maps: Sequence[_Map], decoder: Decoder, strides: Sequence[int], temperature: float) -> _Map:
    """Scores of the decoder over the temperature, on the grid of the finest map."""
    middle, spread = (torch.split(v, decoder.channels) for v in (decoder.mean, decoder.std))
    coarser: _Map | None = None
    before = 0
    for (stride, group), module in zip(_deepest_first(maps, strides).items(), decoder.stages, strict=True):
        stage = cast("_Stage", module)
        order = sorted(group)
        sizes = [maps[i].channels for i in order] + ([] if coarser is None else [coarser.channels])
        weights = torch.split(stage.reduce.weight.flatten(1), sizes, dim=1)
        # Centred over the channels here, so that the normalisation need not subtract their mean.
        centred = [w - w.mean(0) for w in weights]
        scaled = {i: w / spread[i] for i, w in zip(order, centred, strict=False)}
        bias = cast("torch.Tensor", stage.reduce.bias).detach()
        bias = bias - bias.mean() - torch.stack([scaled[i] @ middle[i] for i in group]).sum(0)
        below = None
        if coarser is not None:
            below = _sum([(coarser, centred[-1])], torch.zeros_like(bias), before), before // stride
        coarser, before = _stage(stage, [(maps[i], scaled[i]) for i in group], bias, below, stride), stride
    assert coarser is not None
    scores = decoder.scores
    project = _projection(scores.weight / temperature, cast("torch.Tensor", scores.bias) / temperature)
    return _Map(strides[0], scores.out_channels, project, [(coarser, _same)])


def _stage(
    stage: _Stage,
    parts: Sequence[tuple[_Map, torch.Tensor]],
    bias: torch.Tensor,
    coarser: tuple[_Map, int] | None,
    stride: int,
) -> _Map:
    """One scale of the decoder: 1 x 1 convolutions with centred weights, normalisation, residual 3 x 3."""
    products = _products([weight for _, weight in reversed(parts)], bias)
    mean = torch.full((len(bias), 1), 1 / len(bias))
    norm, mix = stage.norm, stage.mix
    mixed = convolution(mix.weight, cast("torch.Tensor", mix.bias), top=math.inf)

    def reduce(out: torch.Tensor, at: Interval, *views: torch.Tensor) -> None:
        flat = _total(products, views[: -len(products) - 1 : -1])
        if coarser is not None:
            _stretched(views[0], at, flat.view(out.shape), coarser[1])
        flat *= (flat.square() @ mean).add_(norm.eps).rsqrt_()
        torch.addcmul(norm.bias, flat, norm.weight, out=_flat(out)).relu_()

    def residual(out: torch.Tensor, _at: Interval, x: torch.Tensor) -> None:
        torch.add(x[1:-1, 1:-1], mixed(_image(x))[0].permute(1, 2, 0), out=out)

    below = [] if coarser is None else [(coarser[0], _between(coarser[1]))]
    reduced = _Map(stride, len(bias), reduce, [*below, *((source, _same) for source, _ in parts)])
    return _Map(stride, len(bias), residual, [(reduced, _window(3, 1, 1))])


def _side_by_side(out: torch.Tensor, _at: Interval, *views: torch.Tensor) -> None:
    torch.cat(views, dim=2, out=out)


def fits_strips(net: torch.nn.Module) -> TypeGuard[TwoSpeedNet]:
    """Whether a network can be followed in strips: the default encoder, on a CPU."""
    if not isinstance(net, TwoSpeedNet) or next(net.parameters()).device.type != "cpu":
        return False
    tuned = None if net.decoder is None else net.decoder.tuned
    return all(isinstance(f.encoder.net, LiteTrunk) for f in (net.features, tuned) if f is not None)


class Strip:
    """Probabilities of one strip of a slide, from top to bottom.

    Parameters
    ----------
    net
        For which `fits_strips`.
    scale
        Of the pixels.
    columns
        Of the result.
    read
        Reads the pixels.

    Attributes
    ----------
    columns
        Of the result.
    source_columns
        Of the pixels that are read.
    """

    def __init__(self, net: TwoSpeedNet, scale: InputScale, columns: Interval, read: ReadRows) -> None:
        self._classes = net.head.scores.out_channels
        self._share = net.share

        def fill(out: torch.Tensor, at: Interval) -> None:
            rows = read((at[0], at[0] + len(out)), (at[1], at[1] + out.shape[1]))
            out.copy_(scale.unit(rows[None])[0].permute(1, 2, 0))

        with torch.inference_mode():
            pixels = _Map(1, net.features.image_channels, fill, ())
            maps = _maps(pixels, net.features)
            scores = [(_head(maps, net.head, net.features.strides, net.temperature), _same)]
            if net.decoder is not None and net.share:
                maps = maps if net.decoder.tuned is None else _maps(pixels, net.decoder.tuned)
                scores.insert(0, (_decoder(maps, net.decoder, net.features.strides, net.temperature), _same))
            self._scores = _Map(WORKING_STRIDE, self._classes * len(scores), _side_by_side, scores)
            self._scores.cover(*_between(WORKING_STRIDE)(*columns))
        assert pixels.columns is not None
        self.columns, self.source_columns = columns, pixels.columns
        self._next: int | None = None

    @torch.inference_mode()
    def probabilities(self, start: int, stop: int) -> np.ndarray:
        """float32 (K, stop - start, columns); fastest where the last call stopped, or a little above."""
        rows, columns = (_between(WORKING_STRIDE)(*side) for side in ((start, stop), self.columns))
        if self._next is None or not self._next - STEP <= start <= self._next:
            self._scores.reset()
            self._scores.seek(rows[0], rows[0], (0, 0))
        self._next = stop
        small = self._scores.rows(*rows, columns, (0, 0)).permute(2, 0, 1).contiguous()
        large = self._upsampled(small)
        y, x = start - WORKING_STRIDE * rows[0] - 1, self.columns[0] - WORKING_STRIDE * columns[0] - 1
        found: np.ndarray = large[:, y : y + stop - start, x : x + self.columns[1] - self.columns[0]].numpy()
        return found

    def _upsampled(self, small: torch.Tensor) -> torch.Tensor:
        """Probabilities between the centres of the first and the last cell of scores (K or 2 K, h, w).

        Of each cell the pixels at one place of four at once, a few rows at a time: nothing leaves the cache.
        """
        width = small.shape[2] - 1
        out = torch.empty(self._classes, small.shape[1] - 1, 2, width, 2)
        for top in range(0, small.shape[1] - 1, _CELLS):
            part = small[:, top : top + _CELLS + 1]
            for i, j in itertools.product(range(2), range(2)):
                tall = torch.lerp(part[:, :-1], part[:, 1:], 0.25 + i / 2)
                scores = torch.lerp(tall[:, :, :-1], tall[:, :, 1:], 0.25 + j / 2)
                found = scores.view(-1, self._classes, *scores.shape[1:]).softmax(1)
                mixed = found[0] if len(found) == 1 else torch.lerp(found[1], found[0], self._share)
                out[:, top : top + _CELLS, i, :, j] = mixed
        return out.view(self._classes, -1, 2 * width)

    def source_rows(self, start: int, stop: int) -> Interval:
        """Rows of pixels that rows of the result depend on."""
        return self._scores.source_rows(*_between(WORKING_STRIDE)(start, stop))
