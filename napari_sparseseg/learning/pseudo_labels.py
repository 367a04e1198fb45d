"""Pseudo-labels: what the averaged decoder is sure of, on the unlabelled pixels around strokes.

Labelled pixels are few, and training soon knows them by heart. The averaged decoder predicts each labelled cell as it
is on the slide; the decoder under training has to say the same of that tissue turned, recoloured and with channels
blanked (the mean teacher of Tarvainen & Valpola, 2017, with the confident labels of FixMatch, Sohn et al., 2020). They
never replace a label, count in a term of their own, and never come from the instant head, which knows the strokes that
are held out.

EBHI-Seg, gland against background, mean Dice of the decoder alone on other cases, 2026-11-26 (seeds 3 to 5, not those
of ``bench_learner``; in steps, and in the 60 CPU seconds in which they cost a fifth of the steps):

=================================================  ========  =====================
pseudo-labels                                      steps     seed 3 / 4 / 5
=================================================  ========  =====================
none                                               450       .867 / .858 / .854
weight 0.5, surer than 0.9, every patch anew       450            / .863 / .875
weight 1, surer than 0.9, every patch anew         450            / .866 /
weight 2, surer than 0.8, every patch anew         450            / .869 / .877
weight 1, surer than 0.9, from the augmented view  450            / .861 / .869
weight 2, surer than 0.8, by cells (as here)       380, 60 s .877 / .860 / .880
=================================================  ========  =====================
"""

from __future__ import annotations

from dataclasses import replace
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

RELIABLE = 0.9
"""Least `Comparison.reliable` for which there are pseudo-labels: on seven classes of lesions, where it was 0.1 to 0.3,
the decoder without this had 0.42 mean Dice instead of 0.48 to 0.50 (seeds 3 and 4), for it believed its mistakes."""
SETTLE = 40
"""Steps after a change of labels without any: what was believed before may be what was corrected."""
KEEP = 20
"""Steps that a cell's pseudo-labels are used at least; at most one cell is predicted a step."""
MOST_CELLS = 1024
"""Cells to keep, 64 kB each; the oldest give way."""


class PseudoLabels:
    """Gives batches their pseudo-labels.

    Parameters
    ----------
    bank
        Of the labelled cells, with their maps.
    ids
        Class ids in the decoder's channel order.

    Attributes
    ----------
    trusted : bool
        Whether held-out strokes bear out what the decoder is sure of; no pseudo-labels else.
    """

    def __init__(self, bank: FeatureCache, ids: Sequence[int]) -> None:
        self._bank = bank
        self._ids = np.array([0, *ids], np.uint8)
        self._cells: dict[CellKey, tuple[int, NDArray[np.uint8]]] = {}
        self._steps = 0
        self.trusted = False

    def forget(self) -> None:
        """The labels have changed."""
        self._cells.clear()
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
        if self._steps <= SETTLE or not self.trusted:
            return batch
        side = batch.labels.shape[1:]
        places = [(sources[k], Box(y, x, *side)) for k, y, x in batch.origins.tolist()]
        self._predict_stalest(places, decoder)
        pseudo = np.stack([self._read(source, region) for source, region in places])
        pseudo[batch.labels > 0] = 0
        return replace(batch, pseudo=pseudo)

    def _predict_stalest(self, places: Sequence[tuple[Source, Box]], decoder: Decoder) -> None:
        """Predict the labelled cell that the batch needs most, where one is older than `KEEP`."""
        wanted = {
            self._bank.key(source, cell): (source, cell)
            for source, region in places
            for cell in tiles(region, CELL)
            if self._bank.knows(source, cell)
        }
        made = {key: self._cells[key][0] if key in self._cells else -KEEP for key in wanted}
        key = min(made, key=made.__getitem__, default=None)
        if key is not None and made[key] <= self._steps - KEEP:
            self._cells.pop(key, None)  # so that the order is that of age
            self._cells[key] = self._steps, self._predict(*wanted[key], decoder)
            if len(self._cells) > MOST_CELLS:
                del self._cells[next(iter(self._cells))]

    @torch.inference_mode()
    def _predict(self, source: Source, cell: Box, decoder: Decoder) -> NDArray[np.uint8]:
        """Class ids uint8 (CELL, CELL), 0 where the decoder is not sure or beside the slide."""
        if decoder.tuned is None:
            maps = [m.float() for m in self._bank.maps_for(source, cell)]
        else:
            maps = self._bank.maps_by(decoder.tuned, source, cell)
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
            known = self._cells.get(self._bank.key(source, cell))
            if known is not None:
                part = region.intersection(cell)
                within = Box(part.y - cell.y, part.x - cell.x, part.height, part.width)
                target = Box(part.y - region.y, part.x - region.x, part.height, part.width)
                out[target.slices()] = known[1][within.slices()]
        return out
