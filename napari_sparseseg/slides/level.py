"""One resolution of a slide: a grid of tiles that are decoded one at a time."""

from __future__ import annotations

import re
import threading
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Pixels = np.ndarray[Any, np.dtype[Any]]
RGB = ("R", "G", "B")
RGB_COLOURS = ("#ff0000", "#00ff00", "#0000ff")
WHITE = (255.0, 255.0, 255.0)
_COLOUR_NAME = re.compile(r"(red|green|blue|[rgb]|rgb|((channel|ch|c)?[ _:-]*[0-9]+([:_ -]+[0-9]+)*))?", re.IGNORECASE)


class TileError(Exception):
    """A single tile cannot be decoded; other tiles of the slide are unaffected."""


class TileLeftOutError(TileError):
    """The file leaves out a tile of this level, but a finer level shows what is in it."""


class Level(ABC):
    """A grid of tiles.

    Parameters
    ----------
    shape
        (h, w, C) in pixels of this level.
    dtype
        Of the decoded pixels, native byte order.
    tile
        (height, width) of a tile in pixels; tiles at the lower and right edge may be smaller.
    samples
        Channels per decoded tile: C if they are interleaved (RGB), 1 if each channel has its own tiles. Divides C.

    Attributes
    ----------
    cached : bool
        Whether to cache decoded tiles; False for arrays that are already in memory.
    added : bool
        Whether the level is computed from a finer one instead of read from the file.
    """

    cached = True
    added = False

    def __init__(self, shape: tuple[int, int, int], dtype: Any, tile: tuple[int, int], samples: int) -> None:
        self.shape, self.dtype, self.tile, self.samples = shape, np.dtype(dtype), tile, samples

    @abstractmethod
    def decode(self, plane: int, row: int, column: int) -> Pixels:
        """Tile of channels [plane * samples, (plane + 1) * samples): (<= height, <= width, samples).

        Raises
        ------
        TileError
            If the tile is damaged or missing.
        OSError
            If the file can no longer be read.
        """

    def extent(self, row: int, column: int) -> Box:
        """Box of a tile in pixels of this level, clipped to the level."""
        (height, width), (h, w, _) = self.tile, self.shape
        y, x = row * height, column * width
        return Box(y, x, min(height, h - y), min(width, w - x))


class ArrayLevel(Level):
    """A level over an (h, w, C) array: numpy, or a lazy array that reads when it is sliced."""

    def __init__(self, array: Any, tile: tuple[int, int] = (512, 512)) -> None:
        h, w, c = (int(n) for n in array.shape)
        super().__init__((h, w, c), np.dtype(array.dtype).newbyteorder("="), tile, c)
        self._array = array
        self.cached = not isinstance(array, np.ndarray)

    def decode(self, plane: int, row: int, column: int) -> Pixels:
        del plane
        return np.ascontiguousarray(np.asarray(self._array[self.extent(row, column).slices()]), dtype=self.dtype)


class _PromisedLevel(Level):
    """A level in memory that `load` decodes or computes when it is first read."""

    cached = False

    def __init__(self, shape: tuple[int, int, int], dtype: Any, load: Callable[[], Pixels]) -> None:
        super().__init__(shape, dtype, (512, 512), shape[2])
        self._load = load

    def decode(self, plane: int, row: int, column: int) -> Pixels:
        del plane
        return self._load()[self.extent(row, column).slices()]


class ReducedLevel(Level):
    """A level that the file does not store: 2 x 2 means of the finer level, computed tile by tile on demand.

    Parameters
    ----------
    finer
        The next finer level.
    read
        Reads that level through the cache: (box in its pixels, first channel, channel count) -> (h, w, channels).
    """

    added = True

    def __init__(self, finer: Level, read: Callable[[Box, int, int], Pixels]) -> None:
        h, w, c = finer.shape
        super().__init__(((h + 1) // 2, (w + 1) // 2, c), finer.dtype, (512, 512), finer.samples)
        self._finer, self._read = finer, read

    def decode(self, plane: int, row: int, column: int) -> Pixels:
        y, x, height, width = self.extent(row, column)
        h, w, _ = self._finer.shape
        box = Box(2 * y, 2 * x, min(2 * height, h - 2 * y), min(2 * width, w - 2 * x))
        return halve(self._read(box, plane * self.samples, self.samples))


_SUM: dict[str, Any] = {"u1": np.uint16, "u2": np.uint32}
"""The narrowest type that can represent the sum of four pixels."""


def halve(pixels: Pixels) -> Pixels:
    """Mean of each 2 x 2 block of (h, w, C), rounded half up for integers; an odd last row or column counts twice."""
    h, w, _ = pixels.shape
    if h % 2 or w % 2:
        pixels = np.pad(pixels, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    wide: Any = _SUM.get(pixels.dtype.str[1:], np.float64)
    total: Any = pixels[0::2].astype(wide)
    total += pixels[1::2]
    total = total[:, 0::2] + total[:, 1::2]
    if wide is not np.float64:
        total += wide(2)
        mean = total >> wide(2)
    else:
        mean = np.floor(total / 4 + 0.5) if pixels.dtype.kind in "iu" else total / 4
    out: Pixels = mean.astype(pixels.dtype)
    return out


class LazyPyramid:
    """Levels of an image that is decoded into memory at the first read. Thread-safe.

    Parameters
    ----------
    shape, dtype
        Of the full image (h, w, C), from its header.
    load
        Decodes the full image.
    smallest
        Levels are added until the longer side is at most this.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: Any, load: Callable[[], Pixels], smallest: int) -> None:
        self._load, self._lock = load, threading.Lock()
        self._pixels: list[Pixels] = []
        shapes = [shape]
        while max(shapes[-1][:2]) > smallest:
            h, w, c = shapes[-1]
            shapes.append(((h + 1) // 2, (w + 1) // 2, c))
        self.levels: Sequence[Level] = [_PromisedLevel(s, dtype, partial(self._level, k)) for k, s in enumerate(shapes)]
        for level in self.levels[1:]:
            level.added = True

    def _level(self, k: int) -> Pixels:
        with self._lock:
            if not self._pixels:
                self._pixels.append(self._load())
            while len(self._pixels) <= k:
                self._pixels.append(halve(self._pixels[-1]))
            return self._pixels[k]

    def drop(self) -> None:
        """Free the memory."""
        with self._lock:
            self._pixels.clear()


def over(rgba: Pixels, background: tuple[float, ...], *, premultiplied: bool = False) -> Pixels:
    """Composite uint8 (h, w, 4) over a background colour: uint8 (h, w, 3).

    `premultiplied` colours (associated alpha) are multiplied by alpha already.
    """
    wide: Any = np.uint32 if premultiplied else np.uint16
    alpha: Any = rgba[..., 3:].astype(wide)
    if (alpha == 255).all():
        return np.ascontiguousarray(rgba[..., :3])
    under = np.asarray(background[:3], wide)
    own = rgba[..., :3] * (wide(255) if premultiplied else alpha)
    out: Pixels = np.minimum((own + under * (255 - alpha) + 127) // 255, 255).astype(np.uint8)
    return out


def are_colour_names(names: Sequence[str]) -> bool:
    """Whether names can be those of red, green and blue: R, G, B, or numbered channels, but not stains or markers."""
    return all(_COLOUR_NAME.fullmatch(name.strip()) for name in names)


def hex_colour(red: int, green: int, blue: int) -> str:
    """Format three values 0..255 as ``#rrggbb``."""
    return f"#{red & 255:02x}{green & 255:02x}{blue & 255:02x}"
