"""Model files: one ``.safetensors`` with weights, and the recipe as JSON in its header. No torch, no pickle.

A header is read only up to `MAX_HEADER` bytes, and every number in it is checked against the size of the file before
anything is built from it: model files are passed between people.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_sparseseg.config import Recipe
from napari_sparseseg.errors import ModelError, SparseSegError

if TYPE_CHECKING:
    import os

FORMAT = "napari-sparseseg model"
VERSION = 1
MAX_HEADER = 8 * 2**20
MAX_CLASSES = 255
MAX_CHANNELS = 256
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """What a model file says about itself: classes, resolution, encoder, training.

    Raises
    ------
    ModelError
        When the file cannot be read, is no model of ours, is damaged, or is too new.
    """
    metadata = read_header(path).get("__metadata__", {})
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ModelError(f"{path} holds weights but no {FORMAT}; choose a file that this program saved.")
    version = str(metadata.get("version"))
    if not version.isdecimal() or int(version) > VERSION:
        raise ModelError(f"{path} has model version {version}; this program reads up to {VERSION}. Update it.")
    try:
        recipe = Recipe.from_json(json.loads(metadata["recipe"]))
    except (KeyError, ValueError, TypeError, RecursionError, AttributeError, SparseSegError) as error:
        raise ModelError(
            f"the recipe in {path} cannot be read: {error}. The file is damaged; use another copy."
        ) from error
    if not 1 <= len(recipe.classes) <= MAX_CLASSES or not 1 <= len(recipe.channels) <= MAX_CHANNELS:
        raise ModelError(f"the recipe in {path} names {len(recipe.classes)} classes; use another copy of the file.")
    return recipe


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON header of a ``.safetensors`` file, checked against the size of the file.

    Raises
    ------
    ModelError
        When the file cannot be read, is a pickle, or is not a whole ``.safetensors`` file.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # opening a pipe waits for ever
            raise ModelError(f"model {path} is no ordinary file. Choose a model file.")
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if start.startswith(_PICKLES):
                raise ModelError(
                    f"{path} is a pickle or zip archive, as torch.save writes it; such files can run code and are not "
                    "loaded. Save the model as .safetensors."
                )
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise ModelError(f"{path} is not a .safetensors file: {_found(start, size)}. Choose a model file.")
            header = json.loads(file.read(length))
    except OSError as error:
        raise ModelError(f"model {path} cannot be read: {error.strerror or error}. Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"the header of {path} is not JSON: {str(error)[:100]}. The file is damaged.") from error
    if not isinstance(header, dict):
        raise ModelError(f"the header of {path} is a {type(header).__name__}, not a table. The file is damaged.")
    _check_extent(path, header, size - 8 - length)
    return header


def _found(start: bytes, size: int) -> str:
    return f"{size} bytes, beginning with {start!r}" if size else "it is empty"


def _check_extent(path: Path, header: dict[str, Any], data: int) -> None:
    """The tensors must fill the file exactly; a cut download is found here."""
    try:
        ends = [int(v["data_offsets"][1]) for k, v in header.items() if k != "__metadata__"]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ModelError(f"the header of {path} describes no tensors: {error!r}. The file is damaged.") from error
    if max(ends, default=0) != data:
        raise ModelError(
            f"{path} holds {data} bytes of weights, its header says {max(ends, default=0)}; it is cut short."
        )
