"""Smooth borders: each pixel takes the class that most pixels within a radius have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK = 256
"""Side of the blocks that are smoothed at a time: their arrays stay in the processor's cache, and few classes meet."""


def half_widths(radius: float, spacing: tuple[float, float]) -> NDArray[np.intp]:
    """The disc of a radius as rows: how many pixels each reaches left and right of its middle.

    Parameters
    ----------
    radius
        In the unit of `spacing`.
    spacing
        Size of a pixel (y, x).
    """
    reach = int(radius / spacing[0] + 1e-9)
    y = np.arange(-reach, reach + 1) * spacing[0]
    widths: NDArray[np.intp] = (np.sqrt(np.maximum(radius**2 - y**2, 0)) / spacing[1] + 1e-9).astype(np.intp)
    return widths


def majority_within(window: NDArray[np.uint8], widths: NDArray[np.intp]) -> NDArray[np.uint8]:
    """The most frequent class of each pixel's surroundings, itself included.

    Pixels of 0 stay 0 and are not counted. On a tie a pixel keeps its class where that is among the first, else the
    lowest id wins.

    Parameters
    ----------
    window
        uint8 (h + 2 * rows, w + 2 * columns) class ids: the pixels that are wanted with what the disc reaches around
        them, 0 beyond the image.
    widths
        The disc, from `half_widths`.

    Returns
    -------
    uint8 (h, w).
    """
    rows, columns = len(widths) // 2, int(widths.max())
    h, w = window.shape[0] - 2 * rows, window.shape[1] - 2 * columns
    out = np.empty((h, w), np.uint8)
    for y in range(0, h, _BLOCK):
        for x in range(0, w, _BLOCK):
            bh, bw = min(_BLOCK, h - y), min(_BLOCK, w - x)
            part = window[y : y + bh + 2 * rows, x : x + bw + 2 * columns]
            out[y : y + bh, x : x + bw] = _block(part, widths, rows, columns)
    return out


def _block(window: NDArray[np.uint8], widths: NDArray[np.intp], rows: int, columns: int) -> NDArray[np.uint8]:
    h, w = window.shape[0] - 2 * rows, window.shape[1] - 2 * columns
    own = window[rows : rows + h, columns : columns + w]
    highest = int(window.max())
    if highest == window.min():
        return own
    kind = np.min_scalar_type(int((2 * widths + 1).sum()))  # holds every count
    best, of_own = np.zeros((h, w), kind), np.zeros((h, w), kind)
    found = np.zeros((h, w), np.uint8)
    for class_id in range(1, highest + 1):
        mask = window == class_id
        if not mask.any():
            continue
        count = _within(mask.astype(kind), widths, h, w)
        more = count > best
        np.copyto(found, np.uint8(class_id), where=more)
        np.maximum(best, count, out=best)
        np.copyto(of_own, count, where=own == class_id)
    np.copyto(found, own, where=(of_own == best) | (own == 0))
    return found


def _within(mask: NDArray[Any], widths: NDArray[np.intp], h: int, w: int) -> NDArray[Any]:
    """How many pixels of a mask lie in the disc around each pixel: sums of rows that grow by a pixel on both sides."""
    columns = int(widths.max())
    count = np.zeros((h, w), mask.dtype)
    sums = mask[:, columns : columns + w].copy()
    for reach in range(columns + 1):
        if reach:
            sums += mask[:, columns - reach : columns - reach + w]
            sums += mask[:, columns + reach : columns + reach + w]
        for row in np.flatnonzero(widths == reach).tolist():
            count += sums[row : row + h]
    return count
