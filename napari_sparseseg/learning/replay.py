"""Rehearsal samples: features of some labelled pixels of the slides a model was trained on, stored with the model.

With them training continues on another slide without forgetting the first ones. They are outputs of the encoder, not
pixels. Those of a slide that is open again are not used: its annotations may have been corrected since.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from napari_sparseseg.errors import ModelError
from napari_sparseseg.learning.feature_cache import LabelledFeatures

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

MOST_PATCHES = 128
MOST_ROWS = 48
"""Per patch and class."""
PREFIX = "memory."


def chosen(rows: Sequence[LabelledFeatures], seed: int = 0) -> tuple[LabelledFeatures, ...]:
    """A sample of patches, every slide in turn, and of the pixels of each class in them."""
    rng = np.random.default_rng(seed)
    by_slide: dict[str, list[LabelledFeatures]] = {}
    for k in rng.permutation(len(rows)):
        by_slide.setdefault(rows[k].slide, []).append(rows[k])
    picked: list[LabelledFeatures] = []
    while by_slide and len(picked) < MOST_PATCHES:
        for slide in list(by_slide):
            picked.append(by_slide[slide].pop())
            if not by_slide[slide]:
                del by_slide[slide]
    return tuple(r.thinned(MOST_ROWS, rng).without_places() for r in picked[:MOST_PATCHES])


def without_slides(rows: Sequence[LabelledFeatures], fingerprints: Collection[str]) -> tuple[LabelledFeatures, ...]:
    """Those of other slides than these."""
    return tuple(r for r in rows if r.slide not in fingerprints)


def to_tensors(rows: Sequence[LabelledFeatures]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """As tensors for a model file, and the slide of each patch."""
    if not rows:
        return {}, []
    patch = np.repeat(np.arange(len(rows)), [len(r.labels) for r in rows])
    tensors = {
        "features": torch.cat([r.features for r in rows]).contiguous(),
        "labels": torch.from_numpy(np.concatenate([r.labels for r in rows])),
        "patch": torch.from_numpy(patch.astype(np.int32)),
        "counts": torch.from_numpy(np.stack([r.counts for r in rows]).astype(np.int32)),
    }
    return {PREFIX + name: value for name, value in tensors.items()}, [r.slide for r in rows]


def from_tensors(tensors: dict[str, torch.Tensor], slides: Sequence[Any], columns: int) -> tuple[LabelledFeatures, ...]:
    """Take the remembered rows out of the tensors of a model file.

    Parameters
    ----------
    tensors
        Of the file; the entries used are removed.
    slides
        Of each patch, from the metadata.
    columns
        Features per row that the network has.

    Raises
    ------
    ModelError
        When they do not fit each other or the network.
    """
    found = {k[len(PREFIX) :]: tensors.pop(k) for k in list(tensors) if k.startswith(PREFIX)}
    if not found:
        return ()
    try:
        features, labels = found["features"].half(), found["labels"].numpy().astype(np.uint8)
        patch, counts = found["patch"].numpy(), found["counts"].numpy().astype(np.int64)
    except KeyError as error:
        raise ModelError(f"the model remembers slides, but {error} of them is missing; the file is damaged.") from error
    if features.shape != (len(labels), columns) or len(patch) != len(labels) or counts.shape != (len(slides), 256):
        raise ModelError("what the model remembers of its slides does not fit the network; the file is damaged.")
    nowhere = np.empty(0, np.int64)
    picks = [np.flatnonzero(patch == k) for k in range(len(slides))]
    return tuple(
        LabelledFeatures(features[torch.from_numpy(at)], labels[at], nowhere, nowhere, counts[k], str(slides[k]))
        for k, at in enumerate(picks)
        if len(at)
    )
