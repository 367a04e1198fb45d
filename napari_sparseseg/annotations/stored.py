"""What an annotation file holds, and its rows."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from napari_sparseseg.annotations.strokes import KINDS, Stroke
from napari_sparseseg.config import MAX_CLASS_ID, ClassDef
from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    from napari_sparseseg.annotations.document import Edit
    from napari_sparseseg.annotations.pyramid import Key


class Tally(NamedTuple):
    """Numbers of strokes and label chunks in a file, and the sum of their CRCs modulo 2**32.

    Every row has a CRC of its own; the tally shows that rows of different times are mixed, as in a copy that was made
    while the file was written.
    """

    strokes: int = 0
    chunks: int = 0
    crc: int = 0

    def after(self, edit: Edit | None) -> Tally:
        """The tally of the file when an edit was written to it."""
        if edit is None:
            return self
        gone, come = ([_points(stroke) for stroke in strokes] for strokes in (edit.removed, edit.added))
        strokes, chunks = self.strokes + len(come) - len(gone), self.chunks
        for change in (edit.scribbles, edit.dense):
            pairs = change.chunks.values() if change else ()
            gone += [data for data, _ in pairs if data is not None]
            come += [data for _, data in pairs if data is not None]
            chunks += sum((after is not None) - (before is not None) for before, after in pairs)
        crc = self.crc + sum(map(zlib.crc32, come)) - sum(map(zlib.crc32, gone))
        return Tally(strokes, chunks, crc % (1 << 32))


@dataclass(slots=True)
class StoredAnnotations:
    """What an annotation file holds.

    Attributes
    ----------
    shape, classes, version, token
        As in `AnnotationDocument`.
    next_id
        The id of the next stroke.
    strokes
        Strokes and dense regions in ascending order of their ids.
    chunks
        Packed chunks of scribbles and dense regions by (level, key).
    counts
        Labelled level-0 pixels per class of scribbles and dense regions, so that they need not be counted again; None:
        not known.
    tally
        Of the rows; None: not known.
    others
        Objects that label nothing, as GeoJSON features; None: not to be written.
    """

    shape: tuple[int, int]
    classes: tuple[ClassDef, ...]
    version: int
    token: str
    next_id: int
    strokes: list[Stroke] = field(default_factory=list)
    chunks: tuple[dict[tuple[int, Key], bytes], dict[tuple[int, Key], bytes]] = field(default_factory=lambda: ({}, {}))
    counts: tuple[dict[int, int], dict[int, int]] | None = None
    tally: Tally | None = None
    others: list[dict[str, Any]] | None = None


def meta_rows(stored: StoredAnnotations) -> list[tuple[str, str]]:
    """Rows of the table ``meta``."""
    values: dict[str, Any] = {
        "shape": list(stored.shape),
        "version": stored.version,
        "token": stored.token,
        "next_id": stored.next_id,
        "spent": [],  # unused, but earlier versions require it
        "counts": stored.counts and [sorted(layer.items()) for layer in stored.counts],
        # With the token, because earlier versions change a file without changing its tally.
        "tally": stored.tally and [stored.token, *stored.tally],
    }
    if stored.others is not None:
        values["others"] = stored.others
    return [(key, json.dumps(value)) for key, value in values.items()]


def chunk_row(layer: int, at: tuple[int, Key], data: bytes) -> tuple[Any, ...]:
    """A row of the table ``chunks``."""
    level, (i, j) = at
    return layer, level, i, j, data, zlib.crc32(data)


def stroke_row(stroke: Stroke) -> tuple[Any, ...]:
    """A row of the table ``strokes``."""
    points = _points(stroke)
    return (
        stroke.id,
        stroke.kind,
        stroke.class_id,
        float(stroke.radius),
        *(int(n) for n in stroke.box),
        json.dumps(list(stroke.rings)),
        points,
        zlib.crc32(points),
    )


def _points(stroke: Stroke) -> bytes:
    return stroke.points.astype("<f4").tobytes()


def read_stroke(row: tuple[Any, ...]) -> Stroke:
    """A stroke from its row; ValueError or TypeError where it is damaged."""
    number, kind, class_id, radius, y, x, height, width, rings, points, crc = row
    if zlib.crc32(points) != crc or kind not in KINDS:
        raise ValueError(f"stroke {number} is damaged")
    ends = np.frombuffer(points, "<f4").reshape(-1, 2).astype(np.float32, copy=False)
    runs = tuple(int(n) for n in json.loads(rings)) if rings != "[]" else ()
    if runs and (sum(runs) != len(ends) or min(runs) < 1):
        raise ValueError(f"stroke {number} has other points than it says")
    if not np.isfinite(ends).all() or not np.isfinite(float(radius)) or not 0 <= int(class_id) <= MAX_CLASS_ID:
        raise ValueError(f"stroke {number} is damaged")
    box = Box(int(y), int(x), int(height), int(width))
    return Stroke(int(number), kind, int(class_id), float(radius), ends, box, runs)


def read_chunk(row: tuple[Any, ...]) -> tuple[int, tuple[int, Key], bytes]:
    """(layer, (level, key), packed) from a row; ValueError or TypeError where it is damaged."""
    layer, level, i, j, data, crc = row
    if zlib.crc32(data) != crc or layer not in (0, 1):
        raise ValueError(f"chunk {(layer, level, i, j)} is damaged")
    return layer, (int(level), (int(i), int(j))), data
