"""napari's way to slides: the npe2 reader, the layers of a slide, and a slide of layers that are open already."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg.errors import SlideError, SlideOpenError
from napari_sparseseg.geometry import Box, tiles
from napari_sparseseg.slides import ArraySlide, Slide, open_slide
from napari_sparseseg.slides.backends.opening import OPENSLIDE_SUFFIXES, ZARR_FILES
from napari_sparseseg.slides.level import RGB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from os import PathLike

    from napari.layers import Image, Layer
    from numpy.typing import NDArray

    from napari_sparseseg.session.session import Session

LayerData = tuple[Any, dict[str, Any], str]
SLIDE_SUFFIXES = (
    ".svs",
    ".ndpi",
    ".scn",
    ".qptiff",
    ".vsi",
    *(s for s in OPENSLIDE_SUFFIXES if s not in (".dcm", ".czi")),
)
"""Names that only slides have: what is wrong with such a file is said, instead of leaving it to another reader."""
LARGE = 2**24
"""Pixels from which a TIFF without levels is better read lazily."""
SHOWN_CHANNELS = 6
MAX_OVERVIEW = 2**29
"""Most pixels to decode before the whole slide can be shown: 23,000 x 23,000, about 5 s on one core."""
_PART = 512
_COLOURS = ("#0000ff", "#00ff00", "#ff0000", "#00ffff", "#ff00ff", "#ffff00", "#ffffff")
_MICROMETRE = ("micrometer", "um", "µm", "micron")


def napari_get_reader(path: str | Sequence[str]) -> Callable[[Any], list[LayerData]] | None:
    """npe2 reader: looks into the file and takes slides and image pyramids, nothing else.

    Parameters
    ----------
    path
        A file or folder; of a list of several, nothing is taken, for slides are no stack.
    """
    if not isinstance(path, str):
        if len(path) != 1:
            return None
        path = path[0]
    return read_slide if _is_ours(path) else None


def _is_ours(path: str) -> bool:
    if path.lower().endswith(SLIDE_SUFFIXES):
        return True
    if os.path.isdir(path) and not any(os.path.exists(os.path.join(path, name)) for name in ZARR_FILES):
        return False
    try:
        with open_slide(path) as slide:
            stored = sum(not level.added for level in slide.pyramid.levels)
            lazy = slide.contents.backend != "image"  # a plain image is decoded whole by any reader
            return lazy and (stored > 1 or slide.shape[0] * slide.shape[1] >= LARGE)
    except SlideOpenError:
        return False


def read_slide(path: str | Sequence[str]) -> list[LayerData]:
    """Open a slide and describe its layers.

    Raises
    ------
    SlideOpenError
        Where it cannot be opened, or not shown without minutes of work; napari shows the text.
    """
    slide = open_slide(path if isinstance(path, str) else path[0])
    try:
        _check_overview(slide)
        _read_overview(slide)
        return layer_data(slide)
    except SlideError:
        slide.close()
        raise


def open_in(session: Session, path: str | PathLike[str]) -> None:
    """Open a slide in a session with what a viewer will read first: seconds for a slide without levels.

    Raises
    ------
    SlideOpenError
        Where it cannot be opened, or not shown without minutes of work.
    """
    with open_slide(path) as slide:
        _check_overview(slide)
    slide = session.open(path)
    _read_overview(slide)
    layer_data(slide)  # imports dask and makes its arrays, which the window would wait for


def layer_data(slide: Slide) -> list[LayerData]:
    """Layers of a slide at scale 1, so that world coordinates are its level-0 pixels.

    One multiscale layer for colour, one per channel otherwise: coloured, added up, with the file's contrast limits or
    those of the smallest level. napari's own cache is off: tiles are cached once, by the slide. The layers' metadata
    hold the `Slide` under ``"slide"``.
    """
    name = os.path.basename(os.path.normpath(slide.path)) or slide.path
    common: dict[str, Any] = {"cache": False, "multiscale": len(slide.levels) > 1, "metadata": {"slide": slide}}
    if slide.is_rgb:
        return [(_data(slide.levels), {**common, "name": name, "rgb": True}, "image")]
    count = len(slide.channels)
    limits = _contrast_limits(slide)
    out: list[LayerData] = []
    for c, channel in enumerate(slide.channels):
        known = slide.contents.colours[c] if c < len(slide.contents.colours) else None
        keywords = {
            **common,
            "name": f"{name}: {channel}" if count > 1 else name,
            "rgb": False,
            "metadata": {"slide": slide, "channel": c},
            "colormap": known or (_COLOURS[c % len(_COLOURS)] if count > 1 else "gray"),
            "blending": "additive" if count > 1 else "translucent",
            "contrast_limits": limits[c],
            "visible": c < SHOWN_CHANNELS,
        }
        out.append((_data(slide.channel_levels(c)), keywords, "image"))
    return out


def _data(levels: Sequence[Any]) -> Any:
    from napari_sparseseg.slides.lazy import shown_levels

    shown = shown_levels(levels)
    return list(shown) if len(shown) > 1 else shown[0]


def _contrast_limits(slide: Slide) -> list[tuple[float, float]]:
    """Per channel: the file's limits, or the 0.1 and 99.9 percentile of the smallest level."""
    said = slide.contents.contrast or (None,) * len(slide.channels)
    out = []
    for c, limits in enumerate(said):
        if limits is None:
            values = np.asarray(slide.channel_levels(c)[-1])
            values = values[np.isfinite(values)]
            low, high = np.percentile(values, (0.1, 99.9)) if values.size else (0.0, 1.0)
            limits = (float(low), float(high if high > low else low + 1))
        out.append(limits)
    return out


def rendered(slide: Slide, max_side: int) -> NDArray[np.uint8]:
    """The whole slide as its layers show it, small: uint8 (h, w, 3) with at most `max_side` pixels on a side.

    Call it off the GUI thread.
    """
    pixels, _ = slide.thumbnail(max_side)
    if slide.is_rgb:
        return np.ascontiguousarray(pixels, np.uint8)
    out = np.zeros((*pixels.shape[:2], 3), np.float32)
    for c, (low, high) in enumerate(_contrast_limits(slide)[:SHOWN_CHANNELS]):
        known = slide.contents.colours[c] if c < len(slide.contents.colours) else None
        colour = known or (_COLOURS[c % len(_COLOURS)] if len(slide.channels) > 1 else "#ffffff")
        value = np.clip((np.nan_to_num(pixels[..., c].astype(np.float32)) - low) / (high - low), 0, 1)
        out += value[..., None] * np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)], np.float32)
    return (np.clip(out, 0, 1) * 255).astype(np.uint8)


def layers_of_one_image(layer: Image, layers: Iterable[Layer]) -> list[Image]:
    """The layers that show the same image as `layer`: those of our slide, or the channels that a reader made of a file.

    Channels are grey layers of the same file, shape and type; so napari-ome-zarr shows even RGB.
    """
    slide, path = layer.metadata.get("slide"), layer.source.path

    def is_one(other: Layer) -> bool:
        if slide is not None or other is layer:
            return other is layer or other.metadata.get("slide") is slide
        if path is None or layer.rgb or not isinstance(other, type(layer)) or other.rgb:
            return False
        return bool(other.source.path == path and other.dtype == layer.dtype and _shape(other) == _shape(layer))

    return [other for other in layers if is_one(other)]


def _shape(layer: Image) -> tuple[int, ...]:
    return tuple((layer.data[0] if layer.multiscale else layer.data).shape)


def show_in_pixels(layers: Iterable[Layer]) -> None:
    """Put layers where a slide's layers are: level-0 pixels are world coordinates, for what is drawn is in pixels."""
    for layer in layers:
        n = layer.ndim
        layer.affine, layer.rotate, layer.shear = np.eye(n + 1), np.eye(n), np.zeros(n * (n - 1) // 2)
        layer.scale, layer.translate, layer.units = np.ones(n), np.zeros(n), "pixel"


def slide_of_layers(layers: Sequence[Image]) -> Slide:
    """The slide that image layers show: ours where we opened it, the file they came from where that is a slide and
    shows the same (it is lazy and knows its resolution), else one over the layers' own arrays.

    Parameters
    ----------
    layers
        One layer (RGB, or grey as one channel), or one per channel of the same size.

    Raises
    ------
    SlideError
        Where the layers are not 2-D or differ in size.
    """
    slide = layers[0].metadata.get("slide")
    if isinstance(slide, Slide) and not slide.closed:
        return slide
    for layer in layers:
        if layer.ndim != 2:
            raise SlideError(f"layer {layer.name!r} has {layer.ndim} dimensions; pass one 2-D plane of it.")
    stacks = [list(layer.data) if layer.multiscale else [layer.data] for layer in layers]
    file = _slide_of_file(layers[0], [levels[0] for levels in stacks])
    if file is not None:
        return file
    if len(layers) == 1:
        levels: list[Any] = stacks[0]
        names: list[str] = []
    else:
        levels = [list(parts) for parts in zip(*stacks, strict=False)]
        names = [layer.name for layer in layers]
        if tuple(layer.colormap.name for layer in layers) == ("red", "green", "blue") and layers[0].dtype == np.uint8:
            names = list(RGB)
    return ArraySlide(levels, mpp=_mpp(layers[0]), name=str(layers[0].source.path or layers[0].name), channels=names)


def _slide_of_file(layer: Image, channels: Sequence[Any]) -> Slide | None:
    """The slide in the file that another reader made layers of, if its pixels are theirs.

    Parameters
    ----------
    layer
        The first of the layers.
    channels
        Level 0 of each: (H, W, 3) of one RGB layer, or (H, W) of each channel.
    """
    path = layer.source.path
    if path is None or napari_get_reader(os.fspath(path)) is None:
        return None
    try:
        slide = open_slide(path)
        try:
            _check_overview(slide)
            if _same_pixels(slide, channels):
                if slide.mpp is None:
                    slide.mpp = _mpp(layer)
                return slide
        except SlideError:
            pass  # the layers have the pixels
        slide.close()
    except SlideOpenError:
        pass  # moved since, or of a kind that only the other reader knows
    return None


def _same_pixels(slide: Slide, channels: Sequence[Any]) -> bool:
    """Whether slide and layers have the same size, and the same values in the middle."""
    height, width = slide.shape
    if any(tuple(channel.shape[:2]) != (height, width) for channel in channels):
        return False
    y, x = max(height // 2 - 32, 0), max(width // 2 - 32, 0)
    seen = [np.asarray(channel[y : y + 64, x : x + 64]) for channel in channels]
    theirs = seen[0] if seen[0].ndim == 3 else np.stack(seen, axis=-1)
    return np.array_equal(theirs, slide.read((y, x, *theirs.shape[:2])))


def _mpp(layer: Image) -> tuple[float, float] | None:
    """The layer's scale where its units are micrometres."""
    if not all(str(unit) in _MICROMETRE for unit in layer.units):
        return None
    y, x = (abs(float(v)) for v in layer.scale)
    return y, x


def _check_overview(slide: Slide) -> None:
    """Refuse a slide that would keep the viewer busy for minutes.

    Raises
    ------
    SlideOpenError
        If the coarsest level that the file stores is larger than `MAX_OVERVIEW`.
    """
    coarsest = next(level for level in reversed(slide.pyramid.levels) if not level.added)
    cost = coarsest.shape[0] * coarsest.shape[1]
    if cost > MAX_OVERVIEW:
        raise SlideOpenError(
            slide.path,
            f"its smallest level has {cost / 1e9:.1f} billion px, all to be decoded before the whole slide is seen",
            "Convert it to a pyramid, for instance: vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg",
        )


def _read_overview(slide: Slide) -> None:
    """Decode the coarsest level on all cores, so that a viewer finds it in the cache."""
    pyramid = slide.pyramid
    levels, last = pyramid.levels, len(pyramid.levels) - 1
    k = last - 1 if last and levels[last - 1].added else last
    if levels[k].cached:
        with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="slide-overview") as pool:
            list(pool.map(lambda box: pyramid.read(k, box), tiles(Box(0, 0, *levels[k].shape[:2]), _PART)))
    pyramid.read(last, Box(0, 0, *levels[last].shape[:2]))
