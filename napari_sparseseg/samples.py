"""The bundled slides: one synthetic with its ground truth, one real; both with scribbles.

The synthetic one is made by ``python -m sample_data.make_sample``. The real one is a piece of skin from OpenSlide's
test data, given by Carnegie Mellon University under CC0 (https://openslide.org/demo/); its scribbles are made by
``python -m sample_data.scribble_skin``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg.errors import SparseSegError

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASS_NAMES = ("tumour glands", "stroma", "lymphoid", "necrosis", "background")


def sample_slide() -> Path:
    """Path of an H&E-like OME-TIFF: 4,096 x 4,096 px at 0.5 um per px, five levels."""
    return _find("sample.ome.tif")


def sample_truth() -> Path:
    """Path of a PNG of class ids 1..5, one per 4 x 4 level-0 pixels."""
    return _find("truth.png")


def sample_scribbles() -> Path:
    """Path of a GeoJSON with a few strokes per class, in QuPath's form."""
    return _find("scribbles.geojson")


def skin_slide() -> Path:
    """Path of a real H&E slide, skin: Aperio SVS, 2,967 x 2,220 px at 0.499 um per px, one level."""
    return _find("CMU-1-Small-Region.svs")


def skin_scribbles() -> Path:
    """Path of a GeoJSON with a few strokes on `skin_slide`: epithelium, connective tissue, keratin, background."""
    return _find("CMU-1-Small-Region.geojson")


def score(labels: NDArray[Any], truth: Path) -> dict[str, float]:
    """Dice coefficient of each class of the sample.

    Parameters
    ----------
    labels
        Class ids (h, w) over the whole slide, at any resolution; ids in the order of `CLASS_NAMES`.
    truth
        Path returned by `sample_truth`.
    """
    import imagecodecs

    expected = imagecodecs.png_decode(truth.read_bytes())
    h, w = expected.shape
    # the label pixel that covers the centre of each truth pixel
    rows = np.minimum(((np.arange(h) + 0.5) * labels.shape[0] / h).astype(int), labels.shape[0] - 1)
    columns = np.minimum(((np.arange(w) + 0.5) * labels.shape[1] / w).astype(int), labels.shape[1] - 1)
    found = labels[np.ix_(rows, columns)]
    result = {}
    for class_id, name in enumerate(CLASS_NAMES, 1):
        a, b = found == class_id, expected == class_id
        result[name] = float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))
    return result


def _find(name: str) -> Path:
    """Find a sample file: inside the package (wheel) or beside it (checkout)."""
    package = Path(__file__).resolve().parent
    for folder in (package / "sample_data", package.parent / "sample_data"):
        if (folder / name).exists():
            return folder / name
    raise SparseSegError(f"the sample file {name} is not installed; reinstall napari-sparseseg.")
