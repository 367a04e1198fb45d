"""Decompression of Zarr chunks that stops at the size which the chunk's array declares.

The codecs of numcodecs, which zarr uses, allocate whatever the compressed bytes say or hold: 16 kB of zstd become
512 MB, several times over, before anyone asks whether the chunk has that many pixels.
"""

from __future__ import annotations

import bz2
import lzma
import math
import struct
import zlib
from typing import TYPE_CHECKING, Any

import imagecodecs
from numcodecs.abc import Codec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_SLACK = 65536
"""Checksums, and the index of a shard."""
_INNER = ("_zstd_codec", "_blosc_codec", "_gzip_codec", "_codec")
"""Where zarr's codecs keep the codec of numcodecs that does the work."""
_STREAMS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(31),
    "zlib": zlib.decompressobj,
    "bz2": bz2.BZ2Decompressor,
    "lzma": lzma.LZMADecompressor,
}


class BoundedCodec(Codec):  # type: ignore[misc]  # numcodecs has no types
    """A codec of numcodecs that raises ValueError instead of decoding to more than `limit` bytes."""

    def __init__(self, inner: Any, limit: int) -> None:
        self.inner, self.limit, self.codec_id = inner, limit, inner.codec_id

    def encode(self, buf: Any) -> Any:
        """As the codec does."""
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
        if self.codec_id in ("blosc", "lz4") and len(data) >= 8:  # both write the size before the data, and obey it
            self._check(struct.unpack_from("<I", data, 4 if self.codec_id == "blosc" else 0)[0])
        return self.inner.decode(buf, out)

    def _check(self, size: int) -> None:
        if size > self.limit:
            raise ValueError(f"a chunk decompresses to more than the {self.limit} bytes that its array declares")


def bound_chunks(array: Any) -> None:
    """Make an opened zarr array refuse chunks that decompress to more than their share of pixels."""
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
