"""The sample slide that ships with the package, its truth and its scribbles (``python -m sample_data.make_sample``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg.errors import SparseSegError

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASS_NAMES = ("tumour glands", "stroma", "lymphoid", "necrosis", "background")


def sample_slide() -> Path:
    """4,096 x 4,096 px OME-TIFF at 0.5 um per px, H&E-like, five levels."""
    return _find("sample.ome.tif")


def sample_truth() -> Path:
    """PNG of class ids 1..5 at every fourth pixel, in the slide's frame."""
    return _find("truth.png")


def sample_scribbles() -> Path:
    """A few strokes per class, as QuPath exports them."""
    return _find("scribbles.geojson")


def score(labels: NDArray[Any], truth: Path) -> dict[str, float]:
    """Dice of each class of the sample.

    Parameters
    ----------
    labels
        Class ids (h, w) over the whole slide, at any resolution; ids in the order of `CLASS_NAMES`.
    truth
        What `sample_truth` names.
    """
    import imagecodecs

    expected = imagecodecs.png_decode(truth.read_bytes())
    h, w = expected.shape
    # The label whose pixel covers the centre of each truth pixel.
    rows = np.minimum(((np.arange(h) + 0.5) * labels.shape[0] / h).astype(int), labels.shape[0] - 1)
    columns = np.minimum(((np.arange(w) + 0.5) * labels.shape[1] / w).astype(int), labels.shape[1] - 1)
    found = labels[np.ix_(rows, columns)]
    result = {}
    for class_id, name in enumerate(CLASS_NAMES, 1):
        a, b = found == class_id, expected == class_id
        result[name] = float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))
    return result


def _find(name: str) -> Path:
    """In a wheel the samples lie inside the package, in a checkout beside it."""
    package = Path(__file__).resolve().parent
    for folder in (package / "sample_data", package.parent / "sample_data"):
        if (folder / name).exists():
            return folder / name
    raise SparseSegError(f"the sample file {name} is not installed; reinstall napari-sparseseg.")
