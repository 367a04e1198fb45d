"""Model files taken apart, changed and made up."""

from __future__ import annotations

import json
import struct

from napari_sparseseg.learning.model_file import FORMAT


def model_parts(path):
    """Header and bytes of the tensors."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_parts(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def rewrite(path, change):
    """Change the metadata of a model file."""
    table, weights = model_parts(path)
    metadata = json.loads(table["__metadata__"]["recipe"])
    change(metadata)
    table["__metadata__"]["recipe"] = json.dumps(metadata)
    text = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + weights)


def model_file(path, metadata, tensors=None, data=b"", length=None):
    """A .safetensors file with any header."""
    metadata = {
        "format": FORMAT,
        "version": "1",
        "recipe": metadata if isinstance(metadata, str) else json.dumps(metadata),
    }
    header = json.dumps({"__metadata__": metadata, **(tensors or {})}).encode()
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path
