"""Models saved before `PredictionRules` were recorded: how they read beyond a slide's edges, see D14.

Both kinds of edges were in use then, and the file does not say which. It does contain features of labelled pixels of
its slides (`replay`): near an edge they show what lay beyond it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch

from napari_sparseseg.geometry import Box, tiles
from napari_sparseseg.learning.feature_cache import CELL, MARGIN
from napari_sparseseg.learning.features import sample
from napari_sparseseg.learning.model_file import Edges
from napari_sparseseg.learning.network import TwoSpeedNet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_sparseseg.learning.features import FeatureMaps
    from napari_sparseseg.learning.model import Model
    from napari_sparseseg.slides import Slide

MOST_CELLS = 9
"""Cells of a slide that are searched, about 0.5 s each; of a larger slide the edges are a small part."""
_ROWS = 64
_CLEAR = 0.5
"""One kind must fit so much better than the other: its mean distance is less than this share of the other's."""


def recognised(model: Model, slides: Sequence[Slide]) -> Model:
    """The model with the edges that it was trained with, where its file or one of these slides shows them."""
    if model.metadata.rules.edges is not None:
        return model
    for slide in slides:
        edges = edges_by_features(model, slide)
        if edges is not None:
            return model.with_rules(replace(model.metadata.rules, edges=edges))
    return model


def edges_by_features(model: Model, slide: Slide) -> Edges | None:
    """The kind of edges that explains the features in the model; None where there is no evidence."""
    remembered = [rows.features for rows in model.memory if rows.slide == slide.fingerprint]
    frame = slide.frame(model.metadata.mpp)
    whole = Box(0, 0, *frame.shape(slide.shape))
    cells = [cell.intersection(whole) for cell in tiles(whole, CELL)]
    if not remembered or len(cells) > MOST_CELLS or not isinstance(model.net, TwoSpeedNet):
        return None
    known = torch.cat(remembered).float()
    known = known[:: 1 + len(known) // _ROWS].to(model.device)
    distance: dict[Edges, float] = {}
    for edges in get_args(Edges):
        nearest = torch.full((len(known),), torch.inf, device=model.device)
        for cell in cells:
            grown = Box(cell.y, cell.x, CELL, CELL).grown(MARGIN)
            pixels = slide.read_region(grown, frame, mirrored=edges == "mirrored")
            found = _features(model.net.features, model.scale.unit(pixels[None]).to(model.device), cell)
            nearest = torch.minimum(nearest, torch.cdist(known, found).amin(1))
        distance[edges] = float(nearest.mean())
    best = min(distance, key=distance.__getitem__)
    return best if distance[best] < _CLEAR * max(distance.values()) else None


@torch.inference_mode()
def _features(maps_of: FeatureMaps, image: torch.Tensor, cell: Box) -> torch.Tensor:
    """Features (h * w, F) of every pixel of a cell, from its image with `MARGIN` around it."""
    maps = [m.half() for m in maps_of(image.contiguous(memory_format=torch.channels_last))]
    ys, xs = np.divmod(np.arange(cell.area), cell.width)
    at = torch.from_numpy(ys + MARGIN), torch.from_numpy(xs + MARGIN)
    return sample(maps, maps_of.strides, *at)
