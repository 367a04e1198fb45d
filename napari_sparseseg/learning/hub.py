"""Licence and network arguments that a repository on the Hugging Face hub states; asked only for names the user typed.

The texts are written by strangers: they are cut to one printable line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari_sparseseg.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

WEIGHTS = "model.safetensors"
_SECONDS = 10.0
_UNAUTHORIZED, _FORBIDDEN = 401, 403
_MOST = {
    "embed_dim": 8192, "img_size": 2048, "patch_size": 64, "depth": 128, "num_heads": 256, "mlp_ratio": 16,
    "init_values": 10, "reg_tokens": 64,
}  # fmt: skip
"""Arguments that shape a network, with their largest values: each block and each head takes time to build."""
_SWITCHES = frozenset(("no_embed_class", "class_token", "qkv_bias", "pre_norm", "final_norm", "fc_norm"))


def stated_licence(repository: str) -> tuple[str, str]:
    """The licence named on the card of a repository, ``OWNER/NAME`` or ``OWNER/NAME@REVISION``, and where to read it.

    Raises
    ------
    ModelError
        When the hub does not answer for it, and its weights are not on this computer already.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    name, _, revision = repository.partition("@")
    try:
        stated: Any = HfApi().model_info(name, revision=revision or None, timeout=_SECONDS).card_data or {}
    except Exception as error:  # of the connection, of the hub, or of a constructor that gets what it does not expect
        if isinstance(try_to_load_from_cache(name, WEIGHTS, revision=revision or None), str):
            return "could not be looked up", _page(name)
        raise refused(repository, error) from error
    link = str(stated.get("license_link") or "")
    link = one_line(link) if link.startswith("https://") else _page(name)
    return one_line(str(stated.get("license_name") or stated.get("license") or "not stated")), link


def refused(repository: str, error: BaseException) -> ModelError:
    """The error for the user where a repository cannot be read."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    for cause in (error, error.__cause__):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, GatedRepoError) or status == _FORBIDDEN:
            return ModelError(
                f"{repository} is gated, or otherwise closed to you ({status}). Ask for access and accept its "
                f"conditions on {_page(repository)}, then {log_in}."
            )
        if isinstance(cause, RepositoryNotFoundError) or status == _UNAUTHORIZED:
            return ModelError(
                f"{repository} is not on the hub, or not for everyone ({status}). Check the name, or {log_in}."
            )
    reason = one_line(str(error) or type(error).__name__)
    return ModelError(f"{repository} cannot be looked up on the hub: {reason}. Check name and network.")


def one_line(text: str, most: int = 200) -> str:
    """A text as one printable line: no terminal escapes, no change of the writing direction."""
    printable = "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text[: 4 * most])
    return " ".join(printable.split())[:most]


def stated_arguments(base: str) -> dict[str, Any]:
    """Arguments that a repository on the hub states for its network, beside the network's name."""
    if not base.startswith("hf-hub:"):
        return {}
    from timm.models import load_model_config_from_hf

    try:
        _, _, found = load_model_config_from_hf(base.removeprefix("hf-hub:"))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise refused(base.removeprefix("hf-hub:"), error) from error
    return permitted(dict(found or {}))


def permitted(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those that shape a network, with sane values: others could make timm download or read what a file names."""
    return {
        name: value for name, value in arguments.items()
        if (isinstance(value, bool) and name in _SWITCHES)
        or (type(value) in (int, float) and 0 <= value <= _MOST.get(name, -1))
    }  # fmt: skip


def _page(repository: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repository.partition('@')[0]}"
