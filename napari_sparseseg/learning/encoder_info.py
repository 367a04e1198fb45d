"""What an encoder is, where it comes from, and what it costs, told before weights are fetched or used."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import torch

from napari_sparseseg.config import DEFAULT_ENCODER
from napari_sparseseg.errors import ModelError
from napari_sparseseg.learning.efficientnet_lite import LiteTrunk
from napari_sparseseg.learning.encoder_registry import known
from napari_sparseseg.learning.encoders import Encoder, is_transformer, plan
from napari_sparseseg.learning.hub import one_line, refused, stated_licence
from napari_sparseseg.learning.torch_runtime import choose_device
from napari_sparseseg.learning.vit import CONTEXT, VitMaps, windows

_HUB = ("hf-hub:", "hf_hub:")
_TILE = 512
"""Of a whole slide, for the count of overlaps."""
_BESIDE = 64
"""Pixels that head and decoder see beside a tile, both sides together."""
_EFFICIENCY = 0.6
"""Of a network, less than of a matrix product alone; measured for lunit-s16."""
_SLOW = 10.0
"""Seconds per megapixel on a processor from which on there is a warning."""


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """Shown to the user before weights are downloaded."""

    name: str
    licence: str
    megabytes: float
    source: str
    """Where the weights come from: ``bundled``, a file, or an address."""
    link: str = ""
    """Where the licence can be read; empty for weights that are not on the hub."""
    gated: bool = False
    """Whether its conditions have to be accepted on the hub first."""
    mpp: tuple[float, ...] = ()
    """um per pixel that it was trained at; empty where that is not known."""
    gflop: float = 0.0
    """Floating-point operations per megapixel of a slide, in 1e9, with halos and overlaps of tiles of 512 px."""

    @property
    def summary(self) -> str:
        """Size, source, licence and gate, in one line."""
        text = f"encoder {self.name}: {self.megabytes:,.0f} MB from {self.source}, licence: {self.licence}"
        text += f", see {self.link}" if self.link else ""
        return text + ("; its conditions have to be accepted there first" if self.gated and self.link else "")

    def cost(self, device: str = "auto") -> str:
        """What it costs per megapixel, in one line; on a processor with the seconds, measured for a moment."""
        text = f"{self.gflop:,.0f} GFLOP per megapixel"
        if choose_device(device).type != "cpu":
            return text
        seconds = self.gflop / (_EFFICIENCY * processor_gflops())
        text += f", about {seconds:,.{0 if seconds >= _SLOW else 1}f} s on this computer's processor"
        if seconds < _SLOW:
            return text
        return text + ": too slow to work with; use a graphics card, or a smaller network such as lunit-s16"


def encoder_info(name: str) -> EncoderInfo:
    """Licence, size of the download, source and cost of an encoder, without downloading weights.

    From the hub only the description of the repository is read; for the default encoder, and for local weights of
    networks that are known by name, nothing.

    Raises
    ------
    ModelError
        When timm does not know the name, or the hub does not answer.
    """
    base, _, file = name.partition("@")
    entry, on_hub = known(base), base.startswith(_HUB)
    try:
        net = plan(base, {}, classifier=entry is None or not entry.patch)
        if entry is None and base != DEFAULT_ENCODER and is_transformer(net):
            net = plan(base, {}, classifier=False)
    except ModelError as error:
        if on_hub and isinstance(error.__cause__, (OSError, ValueError)):
            raise refused(base.partition(":")[2], error.__cause__) from error
        raise ModelError(
            f"encoder {base!r} is not known to timm: {one_line(str(error.__cause__ or error), 300)}. See "
            "timm.list_models(), or docs/how-to/encoder.md."
        ) from error
    size = sum(p.numel() for p in net.parameters()) * 4 / 1e6
    gflop = _gflop(base, net)
    config: dict[str, Any] = getattr(net, "pretrained_cfg", None) or {}
    if base == DEFAULT_ENCODER and not file:
        return EncoderInfo(name, "apache-2.0", size, "bundled", gflop=gflop)
    if entry is not None:
        licence, link = (entry.licence, "") if file else stated_licence(entry.repository)
        return EncoderInfo(name, licence, size, file or entry.repository, link, entry.gated, entry.mpp, gflop)
    repository = str(config.get("hf_hub_id") or "")
    address = repository or str(config.get("url") or "unknown")
    stated, link = stated_licence(repository) if repository and (on_hub or not file) else ("not stated", "")
    licence = stated if on_hub else str(config.get("license") or stated)
    return EncoderInfo(name, licence, size, file or address, link, gflop=gflop)


def _gflop(base: str, whole: Any) -> float:
    """Counted on torch's meta device, where nothing is computed."""
    logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)  # it warns of kernels that are not used here
    from torch.utils.flop_counter import FlopCounterMode

    side, count = _TILE + 2 * CONTEXT + _BESIDE, 1
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        if base != DEFAULT_ENCODER and is_transformer(whole):
            net = VitMaps(whole, LiteTrunk())
            pixels, zeros = net.window * net.cell, torch.zeros(1, 3, 1, 1)
            count = len(windows(side // net.cell, net.window)) ** 2
            net(torch.zeros(1, 3, pixels, pixels), zeros, zeros)
        else:
            Encoder(base, load=False)(torch.zeros(1, 3, side, side))
    return float(count * counter.get_total_flops() / 1e9 / (_TILE / 1000) ** 2)


def processor_gflops() -> float:
    """What the processor does with torch's threads, in 1e9 operations a second; takes a tenth of a second."""
    a, b = torch.ones(512, 1024), torch.ones(1024, 1024)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - started)
    return 2 * 512 * 1024 * 1024 / best / 1e9
