"""Pseudo-labels: confident predictions of the averaged decoder on the unlabelled pixels around strokes.

Labelled pixels are few, and training soon knows them by heart. The averaged decoder predicts each labelled cell as it
is on the slide; the decoder in training has to predict the same from that tissue rotated, recoloured and with channels
blanked (the mean teacher of Tarvainen & Valpola, 2017, with the confident labels of FixMatch, Sohn et al., 2020). They
never replace a label, count in a term of their own, and never come from the instant head, which knows the strokes that
are held out. See D6.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from napari_sparseseg.geometry import Box, tiles
from napari_sparseseg.learning.feature_cache import CELL, MARGIN
from napari_sparseseg.learning.trainer import upsample
from napari_sparseseg.learning.validation import SURE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.learning.feature_cache import CellKey, FeatureCache
    from napari_sparseseg.learning.network import Decoder
    from napari_sparseseg.learning.sampling import Batch
    from napari_sparseseg.learning.sources import Source


@dataclass(frozen=True, slots=True)
class PseudoLabelSettings:
    """When there are pseudo-labels, and how long one set of them is used."""

    reliable: float = 0.9
    """Least accuracy of confident predictions on held-out strokes (`Comparison.reliable`). See D6."""
    settle: int = 40
    """Steps without any after a change of labels: an earlier belief may be what was corrected."""
    reuse: int = 20
    """Steps that a cell's pseudo-labels are used at least; at most one cell is predicted per step."""
    most_cells: int = 1024
    """Cells to retain, 64 kB each; the oldest give way."""


class PseudoLabels:
    """Gives batches their pseudo-labels.

    Parameters
    ----------
    cache
        Of the labelled cells, with their maps.
    ids
        Class ids in the decoder's channel order.
    settings
        When, and how often.

    Attributes
    ----------
    trusted : bool
        Whether confident predictions are accurate on held-out strokes; without that there are no pseudo-labels.
    cells : dict
        Per cell, the step at which it was predicted and its pseudo-labels uint8 (`CELL`, `CELL`); oldest first.
    """

    def __init__(self, cache: FeatureCache, ids: Sequence[int], settings: PseudoLabelSettings | None = None) -> None:
        self._cache, self._settings = cache, settings or PseudoLabelSettings()
        self._ids = np.array([0, *ids], np.uint8)
        self.cells: dict[CellKey, tuple[int, NDArray[np.uint8]]] = {}
        self._steps = 0
        self.trusted = False

    def forget(self) -> None:
        """Discard all of them: the labels have changed."""
        self.cells.clear()
        self._steps = 0

    def fill(self, batch: Batch, sources: Sequence[Source], decoder: Decoder) -> Batch:
        """The batch with `Batch.pseudo` set, where labelled cells lie in its patches and once training has settled.

        Parameters
        ----------
        batch
            As drawn from `sources`, before augmentation.
        sources
            Slides with labels.
        decoder
            Averaged weights, in eval mode.
        """
        self._steps += 1
        if self._steps <= self._settings.settle or not self.trusted:
            return batch
        side = batch.labels.shape[1:]
        places = [(sources[k], Box(y, x, *side)) for k, y, x in batch.origins.tolist()]
        self._predict_stalest(places, decoder)
        pseudo = np.stack([self._read(source, region) for source, region in places])
        pseudo[batch.labels > 0] = 0
        return replace(batch, pseudo=pseudo)

    def _predict_stalest(self, places: Sequence[tuple[Source, Box]], decoder: Decoder) -> None:
        """Predict the labelled cell that the batch needs most, where it is older than `reuse` steps."""
        wanted = {
            self._cache.key(source, cell): (source, cell)
            for source, region in places
            for cell in tiles(region, CELL)
            if self._cache.knows(source, cell)
        }
        made = {key: self.cells[key][0] if key in self.cells else -self._settings.reuse for key in wanted}
        key = min(made, key=made.__getitem__, default=None)
        if key is not None and made[key] <= self._steps - self._settings.reuse:
            self.cells.pop(key, None)  # so that the oldest comes first
            self.cells[key] = self._steps, self._predict(*wanted[key], decoder)
            if len(self.cells) > self._settings.most_cells:
                del self.cells[next(iter(self.cells))]

    @torch.inference_mode()
    def _predict(self, source: Source, cell: Box, decoder: Decoder) -> NDArray[np.uint8]:
        """Class ids uint8 (CELL, CELL), 0 where the decoder is not sure or beside the slide."""
        if decoder.tuned is None:
            maps = [m.float() for m in self._cache.maps_for(source, cell)]
        else:
            maps = self._cache.maps_by(decoder.tuned, source, cell)
        size = CELL + 2 * MARGIN
        scores = upsample(decoder(maps), torch.empty(1, 1, size, size, device="meta"))[0]
        surest, channel = scores[:, MARGIN : MARGIN + CELL, MARGIN : MARGIN + CELL].softmax(0).max(0)
        found: NDArray[np.uint8] = self._ids[torch.where(surest > SURE, channel + 1, 0).cpu().numpy()]
        inside = cell.intersection(Box(0, 0, *source.shape))
        found[inside.height :], found[:, inside.width :] = 0, 0
        return found

    def _read(self, source: Source, region: Box) -> NDArray[np.uint8]:
        out = np.zeros((region.height, region.width), np.uint8)
        for cell in tiles(region, CELL):
            known = self.cells.get(self._cache.key(source, cell))
            if known is not None:
                part = region.intersection(cell)
                within = Box(part.y - cell.y, part.x - cell.x, part.height, part.width)
                target = Box(part.y - region.y, part.x - region.x, part.height, part.width)
                out[target.slices()] = known[1][within.slices()]
        return out
