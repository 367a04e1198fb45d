"""What repositories on the Hugging Face hub say of their encoders; asked only for names that the user typed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from time import monotonic
from typing import TYPE_CHECKING, Any

from napari_sparseseg.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WEIGHTS = "model.safetensors"
MOST_TEXT = 65536
"""Bytes of a licence file that is shown; the longest usual one, the GPL's, has 35,149."""
_SECONDS = 10.0
_OK, _UNAUTHORIZED, _FORBIDDEN = 200, 401, 403
_LICENCE = re.compile(r"(licen[cs]e|copying)([-_. ][^/]*)?", re.IGNORECASE)
_KINDS = ("", ".md", ".txt", ".rst")
_MOST = {
    "embed_dim": 8192, "img_size": 2048, "patch_size": 64, "depth": 128, "num_heads": 256, "mlp_ratio": 16,
    "init_values": 10, "reg_tokens": 64,
}  # fmt: skip
"""What shapes a network, and how large it may be: each block and each head takes time to make, whatever its size."""
_SWITCHES = frozenset(("no_embed_class", "class_token", "qkv_bias", "pre_norm", "final_norm", "fc_norm"))


@dataclass(frozen=True, slots=True)
class Licence:
    """What a repository on the hub says of its licence; free of control characters, for its owner wrote it."""

    name: str = ""
    """As its card states it, with where to read it; empty where it states none."""
    text: str = ""
    """Of its licence file; empty where that cannot be shown."""
    note: str = ""
    """Where the text is from, or why there is none."""


def stated_licence(repository: str) -> Licence:
    """What the card of a repository on the hub says, and the text of its licence file.

    Parameters
    ----------
    repository
        ``OWNER/NAME``, or ``OWNER/NAME@REVISION``.

    Raises
    ------
    ModelError
        When the hub does not answer for it, and its weights are not on this computer already.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    name, _, revision = repository.partition("@")
    try:
        about = HfApi().model_info(name, revision=revision or None, timeout=_SECONDS)
        card: Any = about.card_data or {}
        stated, link = card.get("license_name") or card.get("license"), str(card.get("license_link") or "")[:1000]
        files = [sibling.rfilename.encode(errors="replace").decode() for sibling in about.siblings or ()]
    except Exception as error:  # of the connection, of the hub, or of a constructor that gets what it does not expect
        refusal = refused(repository, error)
        if not isinstance(try_to_load_from_cache(name, WEIGHTS, revision=revision or None), str):
            raise refusal from error
        return Licence("could not be looked up", "", f"The licence text could not be read: {refusal}")
    text, note = _text_of(name, revision or "main", files, link)
    told = "" if stated is None else f"{one_line(str(stated))}, {one_line(link) or 'see its page'}"
    return Licence(told, text, note)


def refused(repository: str, error: BaseException) -> ModelError:
    """What to tell of a repository that cannot be read."""
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


def plain(text: str) -> str:
    """Nothing that a terminal or a window would take for anything but letters: no escapes, no turns of direction."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").expandtabs(4)
    return "".join(c if c == "\n" or c.isprintable() else " " if c.isspace() else "\ufffd" for c in lines)


def one_line(text: str, most: int = 200) -> str:
    """The same, for a name or the reason of an error."""
    return " ".join(plain(text[: 4 * most]).split())[:most]


def _page(repository: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repository.partition('@')[0]}"


def _text_of(repository: str, revision: str, files: Sequence[str], link: str) -> tuple[str, str]:
    """The text of the licence file, and where it is from or why there is none."""
    from huggingface_hub import hf_hub_url

    names = sorted((f for f in files if _LICENCE.fullmatch(f)), key=_rank)
    # A card may name another file as the licence, by its path or by its page on the hub.
    at_home = re.fullmatch(rf".*/{re.escape(repository)}/(?:blob|resolve|raw)/[^/]+/(.+)", link)
    linked = at_home[1] if at_home else link.removeprefix("./")
    if linked in files:
        names = [linked, *(n for n in names if n != linked)]
    if not names:
        return "", f"The repository has no licence file; see {_page(repository)}"
    name, others = one_line(names[0]), ", ".join(one_line(n) for n in names[1:4])
    url = hf_hub_url(repository, names[0], revision=revision)
    there = url.replace(f"/{repository}/resolve/", f"/{repository}/blob/", 1)
    there += f" (there is also {others})" if others else ""
    try:
        return _read_text(url), f"Licence text: {name}, {there}"
    except ModelError as error:
        return "", f"The licence text could not be read: {name}: {error}; see {there}"


def _rank(name: str) -> tuple[int, int, str]:
    """Text before what may be none, short names before long ones."""
    kind = PurePosixPath(name.lower()).suffix
    return _KINDS.index(kind) if kind in _KINDS else len(_KINDS), len(name), name


def _read_text(url: str) -> str:
    """A small text file of the hub; not a byte more than allowed is taken, whatever the hub says of its size."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, if not in __all__

    taken, until = bytearray(), monotonic() + 3 * _SECONDS
    try:
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        with get_session().stream("GET", url, headers=headers, timeout=_SECONDS) as answer:
            status = answer.status_code
            if status in (_UNAUTHORIZED, _FORBIDDEN):
                raise ModelError(f"it is shown only to who has access to the repository ({status})")
            if status != _OK or answer.headers.get("Content-Encoding", "identity") != "identity":
                raise ModelError(f"the hub does not give it as it is ({status})")
            for part in answer.iter_raw():
                taken += part
                if len(taken) > MOST_TEXT or monotonic() > until:
                    what = f"it has more than {MOST_TEXT:,} bytes" if len(taken) > MOST_TEXT else "it comes too slowly"
                    raise ModelError(what)
    except ModelError:
        raise
    except Exception as error:  # of whatever connects huggingface_hub, which differs between its versions
        raise ModelError(one_line(str(error) or type(error).__name__)) from error
    if b"\0" in taken or taken.startswith(b"%PDF"):
        raise ModelError("it is no plain text")
    text = plain(taken.decode("utf-8-sig", "replace")).strip("\n")
    if not text.strip():
        raise ModelError("it is empty")
    return text


def stated_arguments(base: str) -> dict[str, Any]:
    """What a repository on the hub says that its network takes beside its name."""
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
