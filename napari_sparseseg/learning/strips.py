"""Whole slides in strips: the default network row by row, every feature row computed once.

A tile with a halo computes the halo again for each of its neighbours: of an input of 1,008 px, 688 are kept. Here a
strip of a slide is followed downwards, as a scanner would see it. Each map holds the few rows that the maps above it
still need, and has just the columns that the answer depends on: a coarse map has a wide margin, the finest ones hardly
any. Nothing is padded, so every value is that of one pass over the whole slide. Rows are computed in steps that begin
at absolute multiples of `STEP`: the same bits wherever a strip begins. Steps are small enough for the processor's
cache, and memory depends on the width only. See D104.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeGuard, cast

import torch
import torch.nn.functional as F

from napari_sparseseg.learning.efficientnet_lite import LiteTrunk
from napari_sparseseg.learning.features import WORKING_STRIDE
from napari_sparseseg.learning.network import TwoSpeedNet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from napari_sparseseg.learning.efficientnet_lite import _Layer
    from napari_sparseseg.learning.features import FeatureMaps, InputScale
    from napari_sparseseg.learning.head import Head
    from napari_sparseseg.learning.network import Decoder, _Stage

    Interval = tuple[int, int]
    Reach = Callable[[int, int], Interval]
    """Which rows, or columns, of an input the half-open interval of a result depends on."""

STEP = 32
"""Rows of the image per step: a multiple of the coarsest stride."""
_CACHED = 1 << 18
"""Numbers that a step of the widest layers may fill: they stay in the processor's cache until they are read."""


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
        self._buffer = torch.empty(0, 0, 0)
        self._row = self._first = self._stop = 0
        self._users: dict[object, int] = {}

    def cover(self, start: int, stop: int) -> None:
        """Have at least these columns."""
        if self.columns is not None:
            start, stop = min(start, self.columns[0]), max(stop, self.columns[1])
        if (start, stop) != self.columns:
            self.columns = start, stop
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

    def seek(self, row: int, least: int, user: object) -> None:
        """Be ready to give right rows from `row` on, and any values from `least` on."""
        first = row // self._step * self._step
        begun = bool(self._users)
        self._users[user] = min(least, self._users.get(user, least))
        self._row, self._stop = (min(row, self._row), min(first, self._stop)) if begun else (row, first)
        self._first = min(self._stop, *self._users.values())
        self._buffer = torch.zeros(0, 0, 0)
        for k, (source, reach) in enumerate(self._inputs):
            source.seek(reach(self._row, self._row + 1)[0], reach(self._stop, self._stop + 1)[0], (self, k))

    def rows(self, start: int, stop: int, columns: Interval, user: object) -> torch.Tensor:
        """A view of rows, valid until the next call for a map above this one."""
        assert self.columns is not None
        if not len(self._buffer):
            self._buffer = torch.zeros(self._shape(self._stop - self._first))
        self._users[user] = start
        while self._stop < stop:
            self._go_on()
        return self._buffer[start - self._first : stop - self._first, columns[0] - self.columns[0] :][
            :, : columns[1] - columns[0]
        ]

    def _go_on(self) -> None:
        assert self.columns is not None
        at, (left, right) = self._stop, self.columns
        views = []
        for k, (source, reach) in enumerate(self._inputs):
            views.append(source.rows(*reach(at, at + self._step), reach(left, right), (self, k)))
        if at + self._step - self._first > len(self._buffer):
            self._make_room()
        self._compute(self._buffer[at - self._first :][: self._step], (at, left), *views)
        self._stop = at + self._step

    def _make_room(self) -> None:
        """Drop the rows that no user needs any more."""
        low = min(self._stop, *self._users.values())
        held = self._buffer[low - self._first : self._stop - self._first]
        size = len(held) + self._step
        buffer = self._buffer
        if size > len(buffer):
            buffer = torch.empty(self._shape(len(held)))
        elif low - self._first < len(held):
            held = held.clone()
        buffer[: len(held)] = held
        self._buffer, self._first = buffer, low

    def _shape(self, held: int) -> tuple[int, int, int]:
        """Of a buffer with room for so many rows and a step, and so much more that they are rarely moved."""
        assert self.columns is not None
        return 2 * held + self._step, self.columns[1] - self.columns[0], self.channels


def _flat(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


def _image(x: torch.Tensor) -> torch.Tensor:
    """(h, w, C) as (1, C, h, w), channels last."""
    return x[None].permute(0, 3, 1, 2)


def _stretched(x: torch.Tensor, at: Interval, shape: Sequence[int], factor: int) -> torch.Tensor:
    """Bilinear upsampling of the view that `_between` asks for; rows and columns from `at`, of this shape."""
    half = factor // 2
    position = torch.arange(at[0] - half, at[0] - half + shape[0])
    cell = position.div(factor, rounding_mode="floor")
    weight = ((position - cell * factor) * 2 + 1).float().div_(2 * factor)[:, None, None]
    cell -= int(cell[0])
    tall = torch.lerp(x[cell], x[cell + 1], weight)
    first = (at[1] - half) // factor
    wide = F.interpolate(_image(tall), size=(shape[0], x.shape[1] * factor), mode="bilinear", align_corners=False)
    start = at[1] - first * factor
    return wide[0].permute(1, 2, 0)[:, start : start + shape[1]]


def _projection(
    weight: torch.Tensor, bias: torch.Tensor | None = None, *, top: float | None = None
) -> Callable[..., None]:
    """A 1 x 1 convolution that fills a map; `top` 6: cut to 0..6."""
    matrix = weight.flatten(1).t().contiguous()
    shift = torch.zeros(matrix.shape[1]) if bias is None else bias

    def fill(out: torch.Tensor, _at: Interval, x: torch.Tensor) -> None:
        torch.addmm(shift, _flat(x), matrix, out=_flat(out))
        if top is not None:
            out.clamp_(0, top)

    return fill


def _layer(source: _Map, layer: _Layer, stride: int) -> _Map:
    """One layer of the encoder over a map of this stride."""
    wide = source
    if layer.expands:
        expand = layer.conv_pw
        wide = _Map(stride, expand.out_channels, _projection(expand.weight, expand.bias, top=6), [(source, _same)])
    depthwise, last = layer.conv_dw, layer.conv_pwl if layer.expands else layer.conv_pw
    step, kernel = layer.stride, layer.kernel
    project = _projection(last.weight, last.bias)

    def fill(out: torch.Tensor, at: Interval, x: torch.Tensor, *shortcut: torch.Tensor) -> None:
        middle = F.conv2d(_image(x), depthwise.weight, depthwise.bias, step, groups=depthwise.groups).clamp_(0, 6)
        project(out, at, middle[0].permute(1, 2, 0))
        for given in shortcut:
            out += given

    inputs = [(wide, _window(kernel, step, (kernel - step) // 2))]
    if layer.shortcut:
        inputs.append((source, _same))
    return _Map(stride * step, last.out_channels, fill, inputs, depthwise.out_channels)


def _maps(pixels: _Map, features: FeatureMaps) -> list[_Map]:
    """The maps of `FeatureMaps`."""
    encoder, net = features.encoder, features.encoder.net
    assert isinstance(net, LiteTrunk)
    # The normalisation of the image is part of the first convolution: nothing is padded.
    weight = net.conv_stem.weight.double() / encoder.std.double()
    bias = cast("torch.Tensor", net.conv_stem.bias).double() - (weight * encoder.mean.double()).sum((1, 2, 3))
    kernel, shift = weight.float().contiguous(memory_format=torch.channels_last), bias.float()

    def stem(out: torch.Tensor, _at: Interval, x: torch.Tensor) -> None:
        out.copy_(F.conv2d(_image(x), kernel, shift, 2)[0].permute(1, 2, 0)).clamp_(0, 6)

    def colour(out: torch.Tensor, _at: Interval, x: torch.Tensor) -> None:
        out.copy_(F.avg_pool2d(_image(x), WORKING_STRIDE)[0].permute(1, 2, 0)).mul_(2).sub_(1)

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


def _sum(parts: Sequence[tuple[_Map, torch.Tensor]], bias: torch.Tensor, stride: int) -> _Map:
    """Maps of one stride, each times its matrix (out, C_i), and a bias."""
    matrices = [weight.t().contiguous() for _, weight in parts]

    def fill(out: torch.Tensor, _at: Interval, *views: torch.Tensor) -> None:
        flat = _flat(out)
        torch.addmm(bias, _flat(views[0]), matrices[0], out=flat)
        for view, matrix in zip(views[1:], matrices[1:], strict=True):
            flat.addmm_(_flat(view), matrix)

    return _Map(stride, len(bias), fill, [(source, _same) for source, _ in parts])


def _deepest_first(maps: Sequence[_Map], strides: Sequence[int]) -> dict[int, list[int]]:
    """The numbers of the maps of each stride, coarsest stride and last map first."""
    found: dict[int, list[int]] = {}
    for i in sorted(range(len(maps)), key=lambda i: (-strides[i], -i)):
        found.setdefault(strides[i], []).append(i)
    return found


def _head(maps: Sequence[_Map], head: Head, strides: Sequence[int]) -> _Map:
    """Scores of the head, on the grid of the finest map."""
    weights = [p.flatten(1) for p in head.projections.parameters()]
    groups = _deepest_first(maps, strides)
    finest = groups.pop(WORKING_STRIDE)
    none = torch.zeros_like(head.bias)
    coarse = [
        (_sum([(maps[i], weights[i]) for i in group], none, stride), _between(stride // WORKING_STRIDE))
        for stride, group in groups.items()
    ]
    factors = [stride // WORKING_STRIDE for stride in groups]
    matrices = [weights[i].t().contiguous() for i in finest]
    project = _projection(head.scores.weight, head.scores.bias)

    def fill(out: torch.Tensor, at: Interval, *views: torch.Tensor) -> None:
        hidden: torch.Tensor = head.bias
        for view, matrix in zip(views[len(factors) :], matrices, strict=True):
            hidden = torch.addmm(hidden, _flat(view), matrix)
        total = hidden.view(*out.shape[:2], -1)
        for view, factor in zip(views, factors, strict=False):
            total += _stretched(view, at, out.shape, factor)
        project(out, at, total.relu_())

    return _Map(WORKING_STRIDE, head.scores.out_channels, fill, [*coarse, *((maps[i], _same) for i in finest)])


def _decoder(maps: Sequence[_Map], decoder: Decoder, strides: Sequence[int]) -> _Map:
    """Scores of the decoder, on the grid of the finest map."""
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
    project = _projection(decoder.scores.weight, decoder.scores.bias)
    return _Map(strides[0], decoder.scores.out_channels, project, [(coarser, _same)])


def _stage(
    stage: _Stage,
    parts: Sequence[tuple[_Map, torch.Tensor]],
    bias: torch.Tensor,
    coarser: tuple[_Map, int] | None,
    stride: int,
) -> _Map:
    """One scale of the decoder: 1 x 1 convolutions with centred weights, normalisation, residual 3 x 3."""
    matrices = [weight.t().contiguous() for _, weight in parts]
    mean = torch.full((len(bias), 1), 1 / len(bias))
    norm, mix = stage.norm, stage.mix
    kernel = mix.weight.contiguous(memory_format=torch.channels_last)

    def reduce(out: torch.Tensor, at: Interval, *views: torch.Tensor) -> None:
        flat = _flat(out)
        torch.addmm(bias, _flat(views[-1]), matrices[-1], out=flat)
        for view, matrix in zip(views[-len(matrices) :], matrices[:-1], strict=False):
            flat.addmm_(_flat(view), matrix)
        if coarser is not None:
            out += _stretched(views[0], at, out.shape, coarser[1])
        flat *= (flat.square() @ mean).add_(norm.eps).rsqrt_()
        torch.addcmul(norm.bias, flat, norm.weight, out=flat).relu_()

    def residual(out: torch.Tensor, _at: Interval, x: torch.Tensor) -> None:
        mixed = F.conv2d(_image(x), kernel, mix.bias).relu_()
        torch.add(x[1:-1, 1:-1], mixed[0].permute(1, 2, 0), out=out)

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
        self._share, self._temperature = net.share, net.temperature
        with torch.inference_mode():
            pixels = _Map(1, net.features.image_channels, self._pixels, ())
            maps = _maps(pixels, net.features)
            scores = [(_head(maps, net.head, net.features.strides), _same)]
            if net.decoder is not None and net.share:
                maps = maps if net.decoder.tuned is None else _maps(pixels, net.decoder.tuned)
                scores.insert(0, (_decoder(maps, net.decoder, net.features.strides), _same))
            self._scores = _Map(WORKING_STRIDE, self._classes * len(scores), _side_by_side, scores)
            self._scores.cover(*_between(WORKING_STRIDE)(*columns))
        self._read, self._scale = read, scale
        assert pixels.columns is not None
        self.columns, self.source_columns = columns, pixels.columns
        self._next: int | None = None

    @torch.inference_mode()
    def probabilities(self, start: int, stop: int) -> np.ndarray:
        """float32 (K, stop - start, columns); fastest where the last call stopped, or a little above."""
        rows, columns = (_between(WORKING_STRIDE)(*side) for side in ((start, stop), self.columns))
        if self._next is None or not self._next - STEP <= start <= self._next:
            self._scores.reset()
            self._scores.seek(rows[0], rows[0], self)
        self._next = stop
        small = self._scores.rows(*rows, columns, self).permute(2, 0, 1)[None] / self._temperature
        size = (2 * small.shape[2], 2 * small.shape[3])
        large = F.interpolate(small.contiguous(), size=size, mode="bilinear", align_corners=False)[0]
        result = large.view(-1, self._classes, *large.shape[1:]).softmax(1)
        y, x = start - WORKING_STRIDE * rows[0], self.columns[0] - WORKING_STRIDE * columns[0]
        result = result[:, :, y : y + stop - start, x : x + self.columns[1] - self.columns[0]]
        mixed = result[0] if len(result) == 1 else result[1].lerp_(result[0], self._share)
        found: np.ndarray = mixed.numpy()
        return found

    def source_rows(self, start: int, stop: int) -> Interval:
        """Rows of pixels that rows of the result depend on."""
        return self._scores.source_rows(*_between(WORKING_STRIDE)(start, stop))

    def _pixels(self, out: torch.Tensor, at: Interval) -> None:
        rows = self._read((at[0], at[0] + len(out)), self.source_columns)
        out.copy_(self._scale.unit(rows[None])[0].permute(1, 2, 0))
