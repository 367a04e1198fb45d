"""What repositories on the Hugging Face hub say of their encoders; asked only for names that the user typed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari_sparseseg.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST = {
    "embed_dim": 8192, "img_size": 2048, "patch_size": 64, "depth": 128, "num_heads": 256, "mlp_ratio": 16,
    "init_values": 10, "reg_tokens": 64,
}  # fmt: skip
"""What shapes a network, and how large it may be: each block and each head takes time to make, whatever its size."""
_SWITCHES = frozenset(("no_embed_class", "class_token", "qkv_bias", "pre_norm", "final_norm", "fc_norm"))


def stated_licence(repository: str) -> str | None:
    """What the card of a repository on the hub says, with where to read it."""
    from huggingface_hub import HfApi

    try:
        card = HfApi().model_info(repository.partition("@")[0]).card_data
    except (OSError, ValueError) as error:
        raise ModelError(f"{repository} cannot be looked up on the hub: {str(error)[:200]}. Check the name.") from error
    if card is None:
        return None
    found = card.get("license_name") or card.get("license")
    return None if found is None else f"{found}, {card.get('license_link') or 'see its page'}"


def stated_arguments(base: str) -> dict[str, Any]:
    """What a repository on the hub says that its network takes beside its name."""
    if not base.startswith("hf-hub:"):
        return {}
    from timm.models import load_model_config_from_hf

    try:
        _, _, found = load_model_config_from_hf(base.removeprefix("hf-hub:"))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error)[:300]
        raise ModelError(f"encoder {base!r} cannot be looked up: {reason}. Check name and network.") from error
    return permitted(dict(found or {}))


def permitted(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those that shape a network, with sane values: others could make timm download or read what a file names."""
    return {
        name: value for name, value in arguments.items()
        if (isinstance(value, bool) and name in _SWITCHES)
        or (type(value) in (int, float) and 0 <= value <= _MOST.get(name, -1))
    }  # fmt: skip
