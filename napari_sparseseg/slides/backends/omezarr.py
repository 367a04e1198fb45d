"""OME-Zarr 0.4 and 0.5, with or without shards, in a folder or at an address."""

from __future__ import annotations

import bz2
import contextlib
import hashlib
import itertools
import lzma
import math
import os
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import imagecodecs
import numpy as np
import zarr
from numcodecs.abc import Codec

from napari_sparseseg.errors import SlideOpenError
from napari_sparseseg.slides.identity import image_fingerprint
from napari_sparseseg.slides.level import RGB, RGB_COLOURS, WHITE, Level, Pixels, TileError, are_colour_names, over
from napari_sparseseg.slides.resolution import Claim, micrometres
from napari_sparseseg.slides.slide import ImageInfo, SlideContents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

MAX_IMAGES = 1000
MAX_CHUNK_BYTES = 256 * 2**20
_TILE = 512
_IN_WORDS = {"z": "focal planes", "t": "time points"}
_READ_ERRORS = (RuntimeError, ValueError, LookupError, TypeError, ArithmeticError, EOFError)
"""Raised by zarr and its codecs on damaged chunks."""
_OPEN_ERRORS = (*_READ_ERRORS, OSError, AttributeError, ImportError, AssertionError)
_EXPORT = "Export it again as OME-Zarr 0.4 or 0.5."
_SLACK = 65536
"""Bytes allowed for checksums and the index of a shard."""
_INNER = ("_zstd_codec", "_blosc_codec", "_gzip_codec", "_codec")
"""Attributes in which zarr's codecs store the numcodecs codec."""
_STREAMS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(31),
    "zlib": zlib.decompressobj,
    "bz2": bz2.BZ2Decompressor,
    "lzma": lzma.LZMADecompressor,
}


@dataclass(frozen=True)
class _Axes:
    """Order of the axes, and the index at which axes other than y, x and c are fixed."""

    names: tuple[str, ...]
    fixed: dict[int, int]
    units: tuple[str, ...]

    def at(self, name: str) -> int:
        return self.names.index(name)


class ZarrLevel(Level):
    """Chunks of one array. A tile is one chunk, or several if they are small."""

    def __init__(self, array: Any, axes: _Axes, folder: str, *, interleaved: bool, alpha: bool) -> None:
        h, w = array.shape[axes.at("y")], array.shape[axes.at("x")]
        stored = array.shape[axes.at("c")] if "c" in axes.names else 1
        count = 3 if alpha else stored
        chunks = array.chunks[axes.at("y")], array.chunks[axes.at("x")]
        tile = tuple(min(n, c * max(1, _TILE // c)) for n, c in zip((h, w), chunks, strict=True))
        super().__init__((h, w, count), array.dtype.newbyteorder("="), (tile[0], tile[1]), count if interleaved else 1)
        self._array, self._axes, self._alpha, self._stored = array, axes, alpha, stored
        self._folder = folder

    def decode(self, plane: int, row: int, column: int) -> Pixels:
        y, x, h, w = self.extent(row, column)
        index: list[Any] = [self._axes.fixed.get(i, 0) for i in range(len(self._axes.names))]
        index[self._axes.at("y")], index[self._axes.at("x")] = slice(y, y + h), slice(x, x + w)
        order = [n for n in self._axes.names if n in "yx"]
        if "c" in self._axes.names:
            count = self._stored if self.samples > 1 else 1
            index[self._axes.at("c")] = slice(plane * count, (plane + 1) * count)
            order = [n for n in self._axes.names if n in "yxc"]
        try:
            read = np.asarray(self._array[tuple(index)])
        except _READ_ERRORS as error:
            raise TileError(f"{type(error).__name__}: {error}") from error
        if self._folder and (read == self._array.fill_value).all() and not os.path.isdir(self._folder):
            raise OSError(f"{self._folder} is gone")  # zarr treats missing chunks as unwritten
        pixels = np.transpose(read if "c" in order else read[..., None], [(*order, "c").index(n) for n in "yxc"])
        if self._alpha:
            return over(pixels, WHITE)
        return np.ascontiguousarray(pixels, dtype=self.dtype)


def open_omezarr(path: str, image: int | None = None) -> SlideContents:
    """Open an image of an OME-Zarr; by default the largest.

    Parameters
    ----------
    path
        Folder or address. The network is used only for an address.

    Raises
    ------
    SlideOpenError
        If it is not an OME-Zarr image, its metadata are invalid, or it cannot be reached.
    """
    try:
        group = zarr.open_group(path, mode="r")
        attributes = dict(group.attrs)
        ome = attributes.get("ome", attributes)
        if "plate" in ome or "well" in ome:
            raise SlideOpenError(path, "it is a plate or well, not an image", "Give the folder of one field inside.")
        images = _images(group, ome)
        if not images:
            raise SlideOpenError(path, "its metadata list no multiscales", _EXPORT)
        areas = [i.info.width * i.info.height for i in images]
        number = areas.index(max(areas)) if image is None else image
        if not 0 <= number < len(images):
            raise SlideOpenError(path, f"it has no image {image}; it has 0 to {len(images) - 1}", "Choose one of them.")
        contents = _contents(path, images[number])
        contents.set_images([i.info for i in images], number, chosen=image is not None)
        if areas[number] != max(areas) or areas.index(areas[number]) != number:
            of_file = contents.fingerprint
            contents.fingerprint = lambda: image_fingerprint(of_file(), number)
        return contents
    except _OPEN_ERRORS as error:
        raise SlideOpenError(path, f"it cannot be read as OME-Zarr ({_short(error)})", _hint(path)) from error


class _Image(NamedTuple):
    """One multiscale image of the hierarchy."""

    info: ImageInfo
    group: Any
    ome: Mapping[str, Any]
    multiscale: Mapping[str, Any]


def _images(group: Any, ome: Mapping[str, Any]) -> list[_Image]:
    """The images of a group, or of its numbered children as bioformats2raw writes them."""
    found = []
    for multiscale in ome.get("multiscales") or ():
        array = group[multiscale["datasets"][0]["path"]]
        axes = _axes(group.name, multiscale, array)
        info = ImageInfo(str(multiscale.get("name") or ""), array.shape[axes.at("x")], array.shape[axes.at("y")])
        found.append(_Image(info, group, ome, multiscale))
    if not found and "bioformats2raw.layout" in ome:
        for k in itertools.takewhile(lambda k: str(k) in group, range(MAX_IMAGES)):
            child = group[str(k)]
            attributes = dict(child.attrs)
            found += _images(child, attributes.get("ome", attributes))
    return found


def _hint(path: str) -> str:
    return "Is the address right and reachable?" if "://" in path else _EXPORT


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _contents(path: str, image: _Image) -> SlideContents:
    _, group, ome, multiscale = image
    arrays = [group[d["path"]] for d in multiscale["datasets"]]
    axes = _axes(path, multiscale, arrays[0])
    _check(path, arrays, axes)
    for array in arrays:
        bound_chunks(array)
    channels = arrays[0].shape[axes.at("c")] if "c" in axes.names else 1
    rgb = channels in (3, 4) and arrays[0].dtype == np.uint8 and _shown_as_rgb(ome, channels)
    alpha = rgb and channels == 4
    names, colours, contrast = _channels(ome, 3 if rgb else channels, rgb=rgb)
    contents = SlideContents(
        path=path,
        format=f"OME-Zarr {multiscale.get('version') or ome.get('version') or ''}".strip(),
        backend="zarr",
        levels=[ZarrLevel(a, axes, "" if "://" in path else path, interleaved=rgb, alpha=alpha) for a in arrays],
        channels=names,
        is_rgb=rgb,
        background=WHITE if rgb else (0.0,) * channels,
        fingerprint=lambda: _fingerprint(ome, arrays),
        close=lambda: None,
        colours=colours,
        contrast=contrast,
        bytes=_stored_bytes(path),
    )
    contents.set_resolution([_scale(multiscale, axes)])
    contents.warnings += [
        f"it has {arrays[0].shape[i]} {_IN_WORDS.get(axes.names[i], 'images of the same size')}; number 0 is open"
        for i in axes.fixed
        if arrays[0].shape[i] > 1
    ]
    if group.metadata.zarr_format == 3 and arrays[0].shards:
        contents.metadata["shards"] = tuple(arrays[0].shards)
    return contents


def _axes(path: str, multiscale: Mapping[str, Any], array: Any) -> _Axes:
    listed = multiscale.get("axes") or ["t", "c", "z", "y", "x"][-array.ndim :]
    names = tuple(a if isinstance(a, str) else a["name"] for a in listed)
    units = tuple("" if isinstance(a, str) else a.get("unit", "") for a in listed)
    if len(names) != array.ndim or "y" not in names or "x" not in names or len(set(names)) != len(names):
        raise SlideOpenError(path, f"its axes {names} do not fit arrays of {array.ndim} axes", _EXPORT)
    return _Axes(names, {i: 0 for i, n in enumerate(names) if n not in ("y", "x", "c")}, units)


def _check(path: str, arrays: Sequence[Any], axes: _Axes) -> None:
    for array in arrays:
        if array.ndim != len(axes.names) or array.dtype != arrays[0].dtype or array.dtype.kind not in "uif":
            raise SlideOpenError(path, f"a level is {array.ndim}-D {array.dtype}", "Pixels must be numbers, all alike.")
        if math.prod(array.chunks) * array.dtype.itemsize > MAX_CHUNK_BYTES:
            raise SlideOpenError(path, f"a chunk of it, {array.chunks}, takes more than 256 MB", _EXPORT)
        if max(array.shape[axes.at("y")], array.shape[axes.at("x")]) > 2**20:
            raise SlideOpenError(path, f"it claims {array.shape} px, and {2**20} a side is the limit", _EXPORT)


def _shown_as_rgb(ome: Mapping[str, Any], channels: int) -> bool:
    """Whether 3 channels of uint8 are a colour image: unless omero names stains, or colours other than R, G and B."""
    listed = ome.get("omero", {}).get("channels") or []
    if not are_colour_names([str(c.get("label") or "") for c in listed]):
        return False
    colours = tuple(str(c.get("color", "")).lower() for c in listed)
    return len(colours) != channels or colours[:3] in {("ff0000", "00ff00", "0000ff"), ("",) * 3, ("ffffff",) * 3}


def _channels(
    ome: Mapping[str, Any], count: int, *, rgb: bool
) -> tuple[tuple[str, ...], tuple[str | None, ...], tuple[tuple[float, float] | None, ...]]:
    if rgb:
        return RGB, RGB_COLOURS, ()
    listed = ome.get("omero", {}).get("channels") or []
    if len(listed) != count:
        return tuple(f"channel {k + 1}" for k in range(count)), (), ()
    names = tuple(str(c.get("label") or f"channel {k + 1}") for k, c in enumerate(listed))
    colours = tuple(f"#{c['color'].lower()}" if len(str(c.get("color", ""))) == 6 else None for c in listed)
    windows = [c.get("window", {}) for c in listed]
    contrast = tuple(
        (float(w["start"]), float(w["end"])) if "start" in w and "end" in w and w["end"] > w["start"] else None
        for w in windows
    )
    return names, colours, contrast


def _scale(multiscale: Mapping[str, Any], axes: _Axes) -> Claim:
    """Scale of level 0 times the scale of the multiscale, in um; missing without a unit of length."""
    scale, found = [1.0] * len(axes.names), False
    for source in (multiscale["datasets"][0], multiscale):
        for transform in source.get("coordinateTransformations") or []:
            if transform.get("type") == "scale":
                scale = [a * float(b) for a, b in zip(scale, transform["scale"], strict=True)]
                found = True
    y, x = (scale[axes.at(n)] * (micrometres(axes.units[axes.at(n)]) or math.nan) if found else None for n in "yx")
    return Claim("OME-Zarr scale", y, x)


def _stored_bytes(path: str) -> int:
    """Bytes of the metadata files; 0 for addresses. Walking a million chunks would take minutes."""
    if "://" in path:
        return 0
    with os.scandir(path) as entries:
        return sum(e.stat().st_size for e in entries if e.is_file())


def _fingerprint(ome: Mapping[str, Any], arrays: Sequence[Any]) -> str:
    """SHA-256 of the shapes and of the middle 512 px of the coarsest level (of the shapes alone if it is damaged)."""
    digest = hashlib.sha256(repr([(a.shape, str(a.dtype)) for a in arrays]).encode())
    last = arrays[-1]
    middle = tuple(slice(max(0, n // 2 - 256), n // 2 + 256) for n in last.shape)
    with contextlib.suppress(*_READ_ERRORS):
        digest.update(np.ascontiguousarray(last[middle]).tobytes())
    return digest.hexdigest()


class BoundedCodec(Codec):  # type: ignore[misc]  # numcodecs has no types
    """A numcodecs codec that raises ValueError instead of decoding to more than `limit` bytes.

    numcodecs allocates whatever size the compressed bytes claim: 16 kB of zstd can become 512 MB.
    """

    def __init__(self, inner: Any, limit: int) -> None:
        self.inner, self.limit, self.codec_id = inner, limit, inner.codec_id

    def encode(self, buf: Any) -> Any:
        """Encode with the wrapped codec."""
        return self.inner.encode(buf)

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Decoded bytes, at most `limit`."""
        data = bytes(buf)
        if self.codec_id in _STREAMS and not getattr(self.inner, "filters", None):
            decoded = _STREAMS[self.codec_id]().decompress(data, self.limit + 1)
            self._check(len(decoded))
            return decoded
        if self.codec_id == "zstd":
            decoded = imagecodecs.zstd_decode(data, out=self.limit + 1)
            self._check(len(decoded))
            return decoded
        if self.codec_id in ("blosc", "lz4") and len(data) >= 8:  # both state the size before the data
            self._check(struct.unpack_from("<I", data, 4 if self.codec_id == "blosc" else 0)[0])
        return self.inner.decode(buf, out)

    def _check(self, size: int) -> None:
        if size > self.limit:
            raise ValueError(f"a chunk decompresses to more than the {self.limit} bytes that its array declares")


def bound_chunks(array: Any) -> None:
    """Make an open zarr array refuse chunks that decompress to more bytes than its metadata declare."""
    itemsize = array.dtype.itemsize
    limit = math.prod(array.shards or array.chunks) * itemsize + _SLACK
    pipeline = array.async_array.codec_pipeline
    first = pipeline.array_bytes_codec
    if array.metadata.zarr_format == 2:
        object.__setattr__(first, "compressor", first.compressor and BoundedCodec(first.compressor, limit))
        object.__setattr__(first, "filters", tuple(BoundedCodec(f, limit) for f in first.filters or ()) or None)
    else:
        _bound(pipeline, limit, itemsize)


def _bound(codecs: Iterable[Any], limit: int, itemsize: int) -> None:
    for codec in codecs:
        inner: Sequence[Any] = getattr(codec, "codecs", ())
        if inner:  # shards
            _bound(inner, math.prod(codec.chunk_shape) * itemsize + _SLACK, itemsize)
            _bound(codec.index_codecs, limit, itemsize)
        for name in _INNER:
            if hasattr(type(codec), name):
                codec.__dict__[name] = BoundedCodec(getattr(codec, name), limit)
