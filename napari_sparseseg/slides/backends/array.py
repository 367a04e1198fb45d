"""A slide over arrays: numpy, dask, zarr, or the layers of another napari reader."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg.errors import SlideOpenError
from napari_sparseseg.slides.level import RGB, WHITE, ArrayLevel, Level, Pixels, over
from napari_sparseseg.slides.slide import Slide, SlideContents

if TYPE_CHECKING:
    from collections.abc import Sequence

_SAMPLE = 256


class _Interleaved:
    """Concatenates (h, w) or (h, w, C) arrays to one (h, w, C); RGBA is composited over white. Lazy."""

    def __init__(self, parts: Sequence[Any], *, alpha: bool) -> None:
        self._parts, self._alpha = parts, alpha
        self._channels = 3 if alpha else sum(p.shape[2] if len(p.shape) == 3 else 1 for p in parts)
        self.shape = (*parts[0].shape[:2], self._channels)
        self.dtype = np.dtype(parts[0].dtype)

    def __getitem__(self, index: tuple[slice, slice]) -> Pixels:
        read = [np.asarray(p[index]) for p in self._parts]
        pixels = np.concatenate([r if r.ndim == 3 else r[..., None] for r in read], axis=2)
        return over(pixels, WHITE) if self._alpha else pixels


class ArraySlide(Slide):
    """A slide over arrays.

    Parameters
    ----------
    levels
        One array, or several, finest first. Each is (h, w), (h, w, C), or a sequence of such arrays to concatenate.
    mpp
        um per level-0 pixel: a number or (y, x).
    name
        Used in place of a path.
    channels
        Names. Default: R, G, B for uint8 arrays of 3 or 4 channels (the 4th is alpha over white), else numbered.

    Raises
    ------
    SlideOpenError
        If an array does not have one of these shapes, or does not hold numbers.
    """

    def __init__(
        self,
        levels: Any,
        mpp: float | Sequence[float] | None = None,
        name: str = "array",
        channels: Sequence[str] = (),
    ) -> None:
        stack = list(levels) if isinstance(levels, (list, tuple)) or not hasattr(levels, "shape") else [levels]
        wrapped = [self._wrap(item, name) for item in stack]
        rgb = wrapped[0].shape[2] == 3 and wrapped[0].dtype == np.uint8 and (not channels or tuple(channels) == RGB)
        count = wrapped[0].shape[2]
        names = RGB if rgb else tuple(channels) or tuple(f"channel {k + 1}" for k in range(count))
        if len(names) != count:
            raise SlideOpenError(name, f"{len(names)} channel names for {count} channels", "Give one name per channel.")
        built: list[Level] = [ArrayLevel(w) for w in wrapped]
        super().__init__(
            SlideContents(
                path=name,
                format="arrays",
                backend="array",
                levels=built,
                channels=names,
                is_rgb=rgb,
                background=WHITE if rgb else (0.0,) * count,
                fingerprint=lambda: _fingerprint(wrapped),
                close=lambda: None,
                bytes=sum(int(np.prod(w.shape)) * w.dtype.itemsize for w in wrapped),
            )
        )
        if mpp is not None:
            self.mpp = mpp

    @staticmethod
    def _wrap(item: Any, name: str) -> Any:
        parts = list(item) if isinstance(item, (list, tuple)) else [item]
        for part in parts:
            if not hasattr(part, "shape") or not 2 <= len(part.shape) <= 3 or part.shape[:2] != parts[0].shape[:2]:
                raise SlideOpenError(
                    name, f"a level of shape {getattr(part, 'shape', None)} is not an (h, w) or (h, w, C) image",
                    "Pass a single 2-D plane per channel.",
                )  # fmt: skip
            if np.dtype(part.dtype).kind not in "uif":
                raise SlideOpenError(name, f"its pixels are {part.dtype}", "Convert them to integers or floats.")
        first = parts[0]
        alpha = len(parts) == 1 and len(first.shape) == 3 and first.shape[2] == 4 and first.dtype == np.uint8
        if isinstance(first, np.ndarray) and len(parts) == 1 and first.ndim == 3 and not alpha:
            return first
        return _Interleaved(parts, alpha=alpha)


def _fingerprint(levels: Sequence[Any]) -> str:
    """SHA-256 over the shapes and the middle of the coarsest level."""
    digest = hashlib.sha256(repr([(tuple(w.shape), str(w.dtype)) for w in levels]).encode())
    h, w = levels[-1].shape[:2]
    y, x = max(0, h // 2 - _SAMPLE), max(0, w // 2 - _SAMPLE)
    digest.update(np.ascontiguousarray(levels[-1][y : y + 2 * _SAMPLE, x : x + 2 * _SAMPLE]).tobytes())
    return digest.hexdigest()
