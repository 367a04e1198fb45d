"""Real data beside the checkout, and small slides made here."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"


def real_data(name: str) -> Path:
    """A file of the shared real data; absence skips. In CI it fails, but where a workflow says that it has none."""
    path = DATA / name
    if not path.exists():
        if os.environ.get("SPARSESEG_NO_REAL_DATA") == "1":
            pytest.skip(f"real data {name} is not where this runs: SPARSESEG_NO_REAL_DATA=1")
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is missing beside the checkout, and CI must have it")
        pytest.skip(f"real data {name} is not beside this checkout")
    return path


def two_textures(side: int = 1024, seed: int = 0) -> np.ndarray:
    """uint8 (side, side, 3): the left half coarse pink stripes, the right half fine violet dots on the same ground."""
    rng = np.random.default_rng(seed)
    image = np.full((side, side, 3), (225, 170, 200), np.float32)
    y, x = np.mgrid[:side, :side]
    stripes = (np.sin(y / 9) > 0) & (x < side // 2)
    dots = (np.hypot(y % 16 - 8, x % 16 - 8) < 4) & (x >= side // 2)
    image[stripes] = (190, 110, 160)
    image[dots] = (110, 70, 150)
    return np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


def write_slide(path: Path, image: np.ndarray, mpp: float | None = 1.0) -> Path:
    """A tiled pyramidal TIFF with resolution tags, as a generic scanner writes it."""
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "metadata": None}
    if mpp is not None:
        options |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, **options)
        for step in (2, 4):
            options |= {"subfiletype": 1}
            if mpp is not None:
                options |= {"resolution": (1e4 / mpp / step, 1e4 / mpp / step)}
            writer.write(np.ascontiguousarray(image[::step, ::step]), **options)
    return path


def labelled_polygon(coordinates, name: str = "tumour") -> dict[str, object]:
    """A GeoJSON polygon of a class, as QuPath writes it."""
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": coordinates},
        "properties": {"objectType": "annotation", "classification": {"name": name}},
    }
