"""Synthetic slides written by tifffile, zarr and Pillow, with known pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import tifffile
import zarr

if TYPE_CHECKING:
    from pathlib import Path

APERIO = "Aperio Image Library v11.2.1 \r\n{w}x{h} ({t}x{t}) JPEG/RGB Q=90|AppMag = 40|MPP = {mpp}"


def texture(h: int, w: int, c: int = 3, dtype=np.uint8, seed: int = 0) -> np.ndarray:
    """Smooth blobs with noise, (h, w, c): every place differs from every other."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w].astype(np.float32)
    out = np.empty((h, w, c), dtype)
    top = 1.0 if np.dtype(dtype).kind == "f" else float(np.iinfo(dtype).max)
    for k in range(c):
        wave = np.sin(x / (17 + 5 * k)) + np.cos(y / (23 + 3 * k)) + np.sin((x + 2 * y) / 211)
        wave = (wave + 3) / 6 * 0.8 + rng.random((h, w), np.float32) * 0.2
        out[..., k] = (wave * top * 0.99).astype(dtype)
    return out


def mean2(pixels: np.ndarray) -> np.ndarray:
    """Half size, odd rows and columns dropped as scanners do."""
    h, w = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
    p = pixels[:h, :w].astype(np.float64)
    return ((p[::2, ::2] + p[1::2, ::2] + p[::2, 1::2] + p[1::2, 1::2]) / 4).round().astype(pixels.dtype)


def write_svs(path: Path, pixels: np.ndarray, levels: int = 3, mpp: float = 0.25, tile: int = 64, **options) -> None:
    """Aperio-like: level 0, thumbnail, then levels halved twice each."""
    h, w, _ = pixels.shape
    options = {"photometric": "rgb", "tile": (tile, tile), "metadata": None, **options}
    text = APERIO.format(w=w, h=h, t=tile, mpp=mpp)
    with tifffile.TiffWriter(path) as tif:
        tif.write(pixels, description=text, **options)
        tif.write(pixels[::16, ::16], photometric="rgb", metadata=None, description="Aperio thumbnail", rowsperstrip=16)
        part = pixels
        for _ in range(levels - 1):
            part = mean2(mean2(part))
            tif.write(part, description=text, **options)


def write_reduced_pages(path: Path, pixels: np.ndarray, levels: int = 3, **options) -> None:
    """Generic pyramid: levels as pages marked as reduced."""
    with tifffile.TiffWriter(path) as tif:
        for k in range(levels):
            tif.write(pixels, tile=(64, 64), photometric="rgb", subfiletype=int(k > 0), metadata=None, **options)
            pixels = mean2(pixels)


def write_ome(path: Path, pixels: np.ndarray, levels: int = 3, rgb: bool = True, metadata=None, **options) -> None:
    """OME-TIFF with SubIFDs; (h, w, 3) as YXS, else channels first."""
    axes = "YXS" if rgb else "CYX"
    options = {"tile": (64, 64), "photometric": "rgb" if rgb else "minisblack", **options}
    with tifffile.TiffWriter(path, ome=True) as tif:
        for k in range(levels):
            data = pixels if rgb else np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
            first = {"subifds": levels - 1, "metadata": {"axes": axes, **(metadata or {})}}
            rest = {"subfiletype": 1, "metadata": None}
            tif.write(data, **options, **(rest if k else first))
            pixels = mean2(pixels)


def write_zarr(path: Path, pixels: np.ndarray, version: str = "0.5", shards: bool = False, omero=None) -> None:
    """OME-Zarr of 3 levels, CYX, scale (0.5, 0.25)."""
    zarr_format = 2 if version == "0.4" else 3
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    data = np.moveaxis(pixels, -1, 0)
    datasets = []
    for k in range(3):
        size = {"shards": (1, 128, 128)} if shards else {}
        array = group.create_array(str(k), shape=data.shape, chunks=(1, 64, 64), dtype=data.dtype, **size)
        array[:] = data
        scale = {"type": "scale", "scale": [1.0, 0.5 * 2**k, 0.25 * 2**k]}
        datasets.append({"path": str(k), "coordinateTransformations": [scale]})
        data = np.moveaxis(mean2(np.moveaxis(data, 0, -1)), -1, 0)
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", "unit": "micrometer"} for n in "yx")]
    multiscales = [{"version": version, "axes": axes, "datasets": datasets, "name": "t"}]
    if version == "0.4":
        group.attrs["multiscales"] = multiscales
        if omero:
            group.attrs["omero"] = omero
    else:
        group.attrs["ome"] = {"version": version, "multiscales": multiscales, **({"omero": omero} if omero else {})}


def write_raw(path, image):
    """All such files have the same size, tables and header, whatever is in them."""
    tifffile.imwrite(path, image, tile=(64, 64), photometric="rgb", metadata=None, resolution=(1e4, 1e4))
    return path


def overwrite(path, content):
    """Write to the same file with the same size, as a program does that exports to the same place again."""
    assert path.stat().st_size == len(content)
    with path.open("r+b") as file:
        file.write(content)
