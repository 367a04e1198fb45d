"""The whole slide at its coarsest level, which every viewer reads first: what that costs, and reading it beforehand.

A file whose smallest level is large has to be decoded from end to end for it. Up to a limit that is done on all cores
and off the viewer's thread; above it the file is refused for viewing, instead of freezing the viewer for minutes.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from napari_sparseseg.errors import SlideOpenError
from napari_sparseseg.geometry import Box, tiles

if TYPE_CHECKING:
    from napari_sparseseg.slides.slide import Slide

MAX_OVERVIEW = 2**29
"""Pixels that may have to be decoded to show the whole slide: 23,000 x 23,000, some 5 s of one core."""
_PART = 512


def overview_cost(slide: Slide) -> int:
    """Pixels to decode before the whole slide can be shown: those of the coarsest level that the file stores."""
    stored = next(level for level in reversed(slide.pyramid.levels) if not level.added)
    return stored.shape[0] * stored.shape[1]


def check_overview(slide: Slide) -> None:
    """Refuse to show what would keep the viewer busy for minutes.

    Raises
    ------
    SlideOpenError
        Where the smallest level of the file is larger than `MAX_OVERVIEW`.
    """
    cost = overview_cost(slide)
    if cost > MAX_OVERVIEW:
        raise SlideOpenError(
            slide.path,
            f"its smallest level has {cost / 1e9:.1f} billion px, all to be decoded before the whole slide is seen",
            "Convert it to a pyramid, for instance: vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg",
        )


def read_overview(slide: Slide) -> None:
    """Decode the coarsest level on all cores, so that a viewer finds it in the cache."""
    pyramid = slide.pyramid
    levels, last = pyramid.levels, len(pyramid.levels) - 1
    k = last - 1 if last and levels[last - 1].added else last
    if levels[k].cached:
        with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="slide-overview") as pool:
            list(pool.map(lambda box: pyramid.read(k, box), tiles(Box(0, 0, *levels[k].shape[:2]), _PART)))
    pyramid.read(last, Box(0, 0, *levels[last].shape[:2]))
