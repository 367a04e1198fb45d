"""Weights of encoders in files: read without running code, names brought to timm's, every entry used or named.

Three layouts of names are understood: timm's, that of DINOv2's authors (timm's but for registers and a mask token), and
that of transformers (``Dinov2Model``, ``Dinov2WithRegistersModel``, ``DINOv3ViTModel``).
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import torch

from napari_sparseseg.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

Weights = dict[str, torch.Tensor]

SPARE = ("mask_token",)
"""Entries that training needed and features do not."""
_WRAPPERS = ("module.", "backbone.", "teacher.", "model.")
_TABLES = ("state_dict", "model", "teacher")
_PICKLED = (".pth", ".pt", ".bin", ".ckpt")
_RENAMED = (
    (r"^embeddings\.patch_embeddings\.(projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^(register_tokens|storage_tokens)$", "reg_token"),
    (r"^(encoder\.)?layer\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.mlp\.(weights_in|w12)\.", ".mlp.fc1."),
    (r"\.mlp\.(weights_out|w3)\.", ".mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
)
_THREE = re.compile(r"(.*\.attn)\.(query|key|value|[qkv])\.(weight|bias)")


def read_weights(path: Path) -> Weights:
    """The table of tensors in a ``.safetensors`` file, or in one of torch's that holds nothing else.

    Raises
    ------
    ModelError
        When the file cannot be read, or holds anything but tensors.
    """
    from safetensors.torch import load_file

    try:
        if path.suffix not in _PICKLED:
            return _unwrapped(load_file(path))
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file makes torch.load raise anything
        reason = str(error).split("\n")[0][:200]
        raise ModelError(f"encoder weights {path} cannot be read: {reason}. Give a .safetensors file.") from error
    for key in _TABLES:
        found = found.get(key, found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not found or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise ModelError(f"encoder weights {path} hold no table of tensors. Give a .safetensors file.")
    return _unwrapped({str(k): v for k, v in found.items()})


def _unwrapped(weights: Weights) -> Weights:
    """Without the prefixes that all names have."""
    for prefix in _WRAPPERS * 2:
        if weights and all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def timm_layout(weights: Mapping[str, torch.Tensor]) -> Weights:
    """The weights of a vision transformer under timm's names; those that are timm's already stay as they are.

    Queries, keys and values become one entry.
    """
    out: Weights = {}
    for key, value in weights.items():
        name = key
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        out[name] = value
    if "layer.0.mlp.up_proj.weight" in weights and "layer.0.mlp.gate_proj.weight" not in weights:  # DINOv3
        out = {
            k.replace(".mlp.up_proj.", ".mlp.fc1.").replace(".mlp.down_proj.", ".mlp.fc2."): v for k, v in out.items()
        }
    return _joined(out)


def _joined(weights: Weights) -> Weights:
    parts: dict[tuple[str, str], Weights] = {}
    for key in list(weights):
        if match := _THREE.fullmatch(key):
            parts.setdefault((match[1], match[3]), {})[match[2][0]] = weights.pop(key)
    for (at, kind), found in parts.items():
        if kind == "bias" and set(found) == {"q", "v"}:  # DINOv3: keys have no bias
            weights |= {f"{at}.q_bias": found["q"], f"{at}.v_bias": found["v"]}
        elif set(found) == {"q", "k", "v"}:
            weights[f"{at}.qkv.{kind}"] = torch.cat([found["q"], found["k"], found["v"]])
        else:  # named as it was, so that the message about it can be understood
            weights |= {f"{at}.{part}.{kind}": value for part, value in found.items()}
    return weights


def with_layer_scales(weights: Weights, wanted: Collection[str]) -> Weights:
    """LayerScale under the names of the network: ``ls1.gamma``, or ``gamma_1`` in timm's DINOv3."""
    if "blocks.0.gamma_1" not in wanted:
        return weights
    return {re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", key): value for key, value in weights.items()}


def grid_side(positions: int, prefix: int) -> tuple[int, int]:
    """Tokens per side that a table of positions is for, and how many leading ones it has beside `prefix`.

    Raises
    ------
    ModelError
        When no square remains.

    Examples
    --------
    >>> grid_side(257, 1), grid_side(257, 0)
    ((16, 0), (16, 1))
    """
    for extra in (0, 1):
        side = math.isqrt(positions - prefix - extra)
        if side * side == positions - prefix - extra:
            return side, extra
    raise ModelError(f"a table of {positions} positions fits no square of tokens; is it a file for another network?")


def class_folded(weights: Weights, extra: int) -> Weights:
    """With the position of the class token added to the token, for networks that know positions of patches only."""
    if not extra:
        return weights
    positions, token = weights["pos_embed"], weights["cls_token"]
    return {**weights, "pos_embed": positions[:, extra:], "cls_token": token + positions[:, :extra]}


def taken(
    shapes: Mapping[str, tuple[int, ...]],
    weights: Mapping[str, torch.Tensor],
    name: str,
    channels: int,
    whole: Collection[str] | None = None,
) -> Weights:
    """The entries that a network has, by its names; the stem is adapted to the channels.

    Parameters
    ----------
    shapes
        Of the network's entries; every one must be there and fit.
    weights
        Of the file, under timm's names.
    name
        Of the encoder, for messages.
    channels
        Of the image.
    whole
        Names of all entries of which the network uses a part; what is in the file beyond them is an error. None: what
        is in the file beyond `shapes` is not looked at.

    Raises
    ------
    ModelError
        Where an entry is missing, does not fit, or has no place in the network.
    """
    out: Weights = {}
    # As a network of features timm calls them otherwise: stages_0.x or model.blocks.0 for stages.0.x, blocks.0.
    found = {_plain(key): key for key in weights}
    wrong: list[str] = []
    for key, shape in shapes.items():
        value = weights.get(found.get(_plain(key), ""))
        if value is not None and value.ndim == 4 and value.shape[1] == 3 != channels == shape[1]:
            from timm.models import adapt_input_conv

            value = adapt_input_conv(channels, value)
        if value is None or tuple(value.shape) != shape:
            wrong.append(f"entry {key} is {'missing' if value is None else tuple(value.shape)}, expected {shape}")
        else:
            out[key] = value.float() if value.is_floating_point() else value
    if wrong:
        more = f", and {len(wrong) - 1:,} more entries do not fit" if len(wrong) > 1 else ""
        raise ModelError(f"weights of encoder {name!r} do not fit: {wrong[0]}{more}. Is the file of another network?")
    if whole is not None:
        places = {_plain(key) for key in (*whole, *SPARE)}
        spare = [key for key in weights if _plain(key) not in places]
        if spare:
            raise ModelError(
                f"weights of encoder {name!r} do not fit: the network has no place for {len(spare):,} entries of the "
                f"file, the first is {spare[0]}. Without them its features would be wrong; name the network that the "
                "file was made for."
            )
    return out


def _plain(key: str) -> str:
    return key.removeprefix("model.").replace(".", "_")
