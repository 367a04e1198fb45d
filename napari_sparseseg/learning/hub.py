"""What a repository on the Hugging Face hub states, and its weights; asked only for names the user typed.

The texts are written by strangers: they are cut to one printable line.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_sparseseg.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WEIGHTS = "model.safetensors"
_SECONDS = 10.0
_UNAUTHORIZED, _FORBIDDEN = 401, 403
_SHA256 = re.compile("[0-9a-f]{64}")
_MOST = {
    "embed_dim": 8192, "img_size": 2048, "patch_size": 64, "depth": 128, "num_heads": 256, "mlp_ratio": 16,
    "init_values": 10, "reg_tokens": 64, "blocks": 16,
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


def downloaded(repository: str, files: Sequence[str], name: str) -> Path:
    """The first of these files that a repository has, checked against the SHA-256 that the hub states for it.

    Parameters
    ----------
    repository
        ``OWNER/NAME`` or ``OWNER/NAME@REVISION``.
    files
        Names; weights are published under one or the other.
    name
        Of the encoder, for messages.

    Raises
    ------
    ModelError
        When the hub does not give it, or gives another file than it states.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    owned, _, revision = repository.partition("@")
    found = Path()
    for number, file in enumerate(files, 1):
        try:
            found = Path(hf_hub_download(owned, file, revision=revision or None))
            break
        except LocalEntryNotFoundError as error:
            raise refused(repository, error) from error
        except EntryNotFoundError as error:
            if number == len(files):
                raise ModelError(
                    f"{repository} has no file {' or '.join(files)}; give your own file as {name}@FILE."
                ) from error
        except Exception as error:  # of the connection, of the hub, or of a file system that is full
            raise refused(repository, error) from error
    stated = found.resolve().name  # where the cache can make links it names files by what the hub states
    if not _SHA256.fullmatch(stated):
        stated = str(get_hf_file_metadata(hf_hub_url(owned, found.name, revision=revision or None)).etag)
    with found.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != stated:
        found.resolve().unlink()
        found.unlink(missing_ok=True)  # the cache's link to it
        raise ModelError(
            f"{found.name} of {repository} differs from what the hub states (sha256 {digest[:12]}..., expected "
            f"{stated[:12]}...). It was removed; try again, or give your own file as {name}@FILE."
        )
    return found


def _page(repository: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repository.partition('@')[0]}"
