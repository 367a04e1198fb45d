"""Model files: one ``.safetensors`` with weights, and the recipe as JSON in its header. No torch, no pickle.

A header is read only up to `MAX_HEADER` bytes, and every number in it is checked against the size of the file before
anything is built from it: model files are passed between people.
"""

from __future__ import annotations

import json
import math
import struct
from itertools import pairwise
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
MAX_TEXT = 1000
_MOST_DIMENSIONS, _MOST_SIDE, _MOST_STEPS = 8, 1 << 40, 1 << 53
_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2} | {
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
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
    wrong = [name for name, fits in _kinds(recipe) if not fits]
    if wrong:
        value = repr(getattr(recipe, wrong[0]))[:100]
        raise ModelError(f"the recipe in {path} has {wrong[0]} {value}; the file is damaged, use another copy.")
    return recipe


def read_shapes(path: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a model file, each of which has its bytes in it; what `read_header` raises."""
    header = read_header(path)
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


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


def _kinds(recipe: Recipe) -> list[tuple[str, bool]]:
    """Each field that other code takes as it is, and whether it is of its kind."""
    mpp, step, extra = recipe.mpp, recipe.step, recipe.extra
    score = recipe.metrics.get("balanced_dice") if isinstance(recipe.metrics, dict) else ""
    return [
        ("mpp", mpp is None or (_is_number(mpp) and 0.01 <= mpp <= 1000)),
        ("step", type(step) is int and 0 <= step < _MOST_STEPS),
        ("encoder", _is_text(recipe.encoder)),
        ("channels", all(map(_is_text, recipe.channels))),
        ("dtype", _is_text(recipe.dtype)),
        ("metrics", score is None or _is_number(score)),
        ("sources", all(isinstance(s, dict) for s in recipe.sources)),
        ("extra", isinstance(extra, dict) and isinstance(extra.get("versions", {}), dict)),
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def _found(start: bytes, size: int) -> str:
    return f"{size} bytes, beginning with {start!r}" if size else "it is empty"


def _check_extent(path: Path, header: dict[str, Any], data: int) -> None:
    """The tensors must fill the file, one after another, each in as many bytes as its shape takes."""
    try:
        places = sorted(_place(entry) for name, entry in header.items() if name != "__metadata__")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        reason = str(error)[:100]
        raise ModelError(f"the header of {path} describes no tensors: {reason}. The file is damaged.") from error
    end = places[-1][1] if places else 0
    if end != data:
        raise ModelError(f"{path} holds {data} bytes of weights, its header says {end}; it is cut short.")
    if places and (places[0][0] != 0 or any(a[1] != b[0] for a, b in pairwise(places))):
        raise ModelError(f"the tensors in {path} lie over each other or leave gaps. The file is damaged.")


def _place(entry: dict[str, Any]) -> tuple[int, int]:
    """Where a tensor begins and ends, as its shape has it too."""
    shape, (begin, end) = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS:
        raise ValueError("a shape is no shape")
    if not all(type(n) is int and 0 <= n <= _MOST_SIDE for n in (*shape, begin, end)):
        raise ValueError("a shape or place is not in whole numbers")
    if end - begin != math.prod(shape) * _BYTES[entry["dtype"]]:
        raise ValueError(f"a tensor of shape {shape} is not in {end - begin} bytes")
    return begin, end
