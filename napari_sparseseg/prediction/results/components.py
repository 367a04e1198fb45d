"""Connected regions of a label image that is read block by block, as a graph: holes filled, small regions merged.

Blocks are labelled one by one; regions that continue in the next block are joined where their pixels touch, so the
result does not depend on how the image is cut. What is held of the whole image are its regions (4-connected pixels of
one class) and which of them border on which, some hundred bytes each.

Node 0 stands for what has no class: pixels of 0, and everything beyond the image. It is neither filled nor merged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BlockRuns:
    """Horizontal runs of equal pixels of a block, row by row; together they are all of its pixels."""

    classes: NDArray[np.uint8]
    """(r,) class of each."""
    lengths: Ints
    """(r,) pixels of each."""
    first: NDArray[np.bool_]
    """(r,) whether a row begins with it."""
    regions: Ints
    """(r,) number 1..n of its region, 4-connected pixels of one class; 0 where there is no class."""
    touching: tuple[Ints, Ints, Ints]
    """Pairs of runs one above the other, (s,) each, and along how many pixels they touch."""

    @classmethod
    def of(cls, labels: NDArray[np.uint8]) -> BlockRuns:
        """Of a block of class ids, uint8 (h, w)."""
        width = labels.shape[1]
        begins = np.ones(labels.shape, bool)
        np.not_equal(labels[:, 1:], labels[:, :-1], out=begins[:, 1:])
        starts = np.flatnonzero(begins)
        classes = labels.ravel()[starts]
        # Stretches of a row along which neither the run above nor the run below ends.
        stretch = np.flatnonzero(begins[1:] | begins[:-1])
        flat = begins.ravel()
        above = np.cumsum(flat[stretch]) - 1
        below = np.cumsum(flat[stretch + width]) - 1 + int(begins[0].sum())
        along = np.diff(stretch, append=labels.size - width)
        same = (classes[above] == classes[below]) & (classes[above] > 0)
        number = _components(len(starts), np.stack([above[same], below[same]], axis=1))
        used = np.zeros(len(starts) + 1, np.int64)
        used[number[classes > 0] + 1] = 1
        regions = np.cumsum(used)[number + 1] * (classes > 0)
        return cls(classes, np.diff(starts, append=labels.size), starts % width == 0, regions, (above, below, along))

    def painted(self, classes: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
        """The block, uint8 (h, width), with a class for each region, (n + 1,)."""
        return np.repeat(classes[self.regions], self.lengths).reshape(-1, width)


@dataclass(frozen=True, slots=True)
class BlockGraph:
    """The regions of one block. Regions are numbered from 1; 0 has no class."""

    classes: NDArray[np.uint8]
    """(n + 1,) class of each region; 0 first."""
    areas: Ints
    """(n + 1,) pixels of each region; 0 for node 0."""
    pairs: Ints
    """(m, 2) regions that share pixel sides, the lower number first."""
    lengths: Ints
    """(m,) how many sides."""
    rims: tuple[Ints, Ints, Ints, Ints]
    """Regions along the top, bottom, left and right side."""

    @classmethod
    def of(cls, labels: NDArray[np.uint8]) -> BlockGraph:
        """Of a block of class ids, uint8 (h, w)."""
        return cls.of_runs(BlockRuns.of(labels))

    @classmethod
    def of_runs(cls, runs: BlockRuns) -> BlockGraph:
        """Of the runs of a block."""
        regions, count = runs.regions, int(runs.regions.max(initial=0))
        classes = np.zeros(count + 1, np.uint8)
        classes[regions] = runs.classes
        areas = np.bincount(regions, runs.lengths, count + 1).astype(np.int64)
        classes[0] = areas[0] = 0
        above, below, along = runs.touching
        beside = np.flatnonzero(~runs.first)
        one = np.concatenate([regions[above], regions[beside - 1]])
        other = np.concatenate([regions[below], regions[beside]])
        differ = one != other
        keys = (np.minimum(one, other) * (count + 1) + np.maximum(one, other))[differ]
        found, index = np.unique(keys, return_inverse=True)
        sides = np.concatenate([along, np.ones(len(beside), np.int64)])[differ]
        lengths = np.bincount(index, sides, len(found)).astype(np.int64)
        pairs = np.stack(np.divmod(found, count + 1), axis=1)
        starts = np.flatnonzero(runs.first)
        ends = np.append(starts[1:], len(regions))
        top, bottom = (np.repeat(regions[a:b], runs.lengths[a:b]) for a, b in ((0, ends[0]), (starts[-1], ends[-1])))
        return cls(classes, areas, pairs, lengths, (top, bottom, regions[starts], regions[ends - 1]))

    def save(self, path: Path) -> None:
        """Write an ``.npz`` file."""
        with path.open("wb") as file:
            top, bottom, left, right = self.rims
            np.savez(
                file, classes=self.classes, areas=self.areas, pairs=self.pairs, lengths=self.lengths,
                top=top, bottom=bottom, left=left, right=right,
            )  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> BlockGraph:
        """Read a file written by `save`."""
        with np.load(path) as file:
            rims = file["top"], file["bottom"], file["left"], file["right"]
            return cls(file["classes"], file["areas"], file["pairs"], file["lengths"], rims)


@dataclass(slots=True)
class RegionGraph:
    """The regions of a whole image; node 0 is what has no class."""

    classes: NDArray[np.uint8]
    areas: Ints
    pairs: Ints
    lengths: Ints

    def joined(self, classes: NDArray[np.uint8], same: Ints | None = None) -> tuple[RegionGraph, Ints]:
        """The graph with other classes, in which neighbours of one class are one region; and each node's new number.

        Parameters
        ----------
        classes
            uint8 (n,), 0 for node 0 alone.
        same
            (m, 2) nodes that are one region; None: neighbours of equal class.
        """
        n = len(classes)
        if same is None:
            same = self.pairs[classes[self.pairs[:, 0]] == classes[self.pairs[:, 1]]]
        number = _components(n, same)
        # node 0 stays node 0
        number = np.where(number == number[0], 0, np.where(number < number[0], number + 1, number))
        count = int(number.max()) + 1
        merged = np.zeros(count, np.uint8)
        merged[number] = classes
        areas = np.bincount(number, self.areas, count).astype(np.int64)
        ends = number[self.pairs]
        differ = ends[:, 0] != ends[:, 1]
        keys = ends[differ].min(axis=1) * count + ends[differ].max(axis=1)
        found, index = np.unique(keys, return_inverse=True)
        lengths = np.bincount(index, self.lengths[differ], len(found)).astype(np.int64)
        return RegionGraph(merged, areas, np.stack(np.divmod(found, count), axis=1), lengths), number


def _components(n: int, pairs: Ints) -> Ints:
    graph = csr_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    number: Ints = connected_components(graph, directed=False)[1].astype(np.int64)
    return number


def join_blocks(blocks: Sequence[BlockGraph], columns: int) -> tuple[RegionGraph, list[Ints]]:
    """The graph of a whole image.

    Parameters
    ----------
    blocks
        Of the image row by row, `columns` to a row.

    Returns
    -------
    graph
        Its regions.
    numbers
        For each block the node of each of its regions; that of 0 is 0.
    """
    starts = np.cumsum([0] + [len(b.classes) - 1 for b in blocks])
    local = [np.concatenate([[0], np.arange(1, len(b.classes)) + s]) for b, s in zip(blocks, starts, strict=False)]
    classes = np.concatenate([[np.uint8(0)], *(b.classes[1:] for b in blocks)]).astype(np.uint8)
    areas = np.concatenate([[0], *(b.areas[1:] for b in blocks)])
    pairs = [numbers[b.pairs] for numbers, b in zip(local, blocks, strict=True)]
    lengths = [b.lengths for b in blocks]
    seams = []
    for k, block in enumerate(blocks):
        for side, step, last in ((1, columns, k + columns >= len(blocks)), (3, 1, (k + 1) % columns == 0)):
            here = local[k][block.rims[side]]
            beyond = np.zeros_like(here) if last else local[k + step][blocks[k + step].rims[side - 1]]
            seams.append(np.stack([here, beyond], axis=1))
        for side, first in ((0, k < columns), (2, k % columns == 0)):
            if first:
                here = local[k][block.rims[side]]
                seams.append(np.stack([here, np.zeros_like(here)], axis=1))
    seam = np.concatenate(seams)
    same = classes[seam[:, 0]] == classes[seam[:, 1]]
    graph = RegionGraph(
        classes,
        areas,
        np.concatenate([*pairs, seam[~same]]),
        np.concatenate([*lengths, np.ones(int((~same).sum()), np.int64)]),
    )
    joined, number = graph.joined(classes, seam[same])
    return joined, [number[numbers] for numbers in local]


def without_holes(graph: RegionGraph, most: float) -> NDArray[np.uint8]:
    """Classes of the nodes where holes are filled.

    A hole of a class is a set of connected regions of other classes that only this class surrounds: it touches neither
    the image's edge nor pixels without a class. Of holes in holes the largest is filled.

    Parameters
    ----------
    graph
        Regions.
    most
        Largest hole, in pixels.
    """
    n = len(graph.classes)
    nodes, sizes, fills = [], [], []
    for class_id in np.unique(graph.classes[1:]).tolist():
        other = graph.classes != class_id
        number = _components(n, graph.pairs[other[graph.pairs].all(axis=1)])
        size = np.bincount(number, graph.areas)
        holes = np.flatnonzero(other & (number != number[0]) & (size[number] <= most))
        nodes.append(holes)
        sizes.append(size[number[holes]])
        fills.append(np.full(len(holes), class_id))
    out = graph.classes.copy()
    if nodes:
        node, size, fill = (np.concatenate(part) for part in (nodes, sizes, fills))
        order = np.lexsort((fill, -size, node))
        first = order[np.unique(node[order], return_index=True)[1]]
        out[node[first]] = fill[first]
    return out


def without_small(graph: RegionGraph, least: float) -> NDArray[np.uint8]:
    """Classes of the nodes where small regions take the class with which they share the longest border.

    Small regions that border only on small ones follow when those have a class. One that no larger region can be
    reached from keeps its class. On a tie the lowest id wins.

    Parameters
    ----------
    graph
        Regions.
    least
        Area in pixels; smaller regions are merged.
    """
    out = graph.classes.copy()
    waiting = (graph.areas < least) & (out > 0)
    ends = np.concatenate([graph.pairs, graph.pairs[:, ::-1]])
    lengths = np.concatenate([graph.lengths, graph.lengths])
    keep = waiting[ends[:, 0]] & (out[ends[:, 1]] > 0)
    ends, lengths = ends[keep], lengths[keep]
    while True:
        ready = ~waiting[ends[:, 1]]
        if not ready.any():
            return out
        keys, index = np.unique(ends[ready, 0] * 256 + out[ends[ready, 1]], return_inverse=True)
        votes = np.bincount(index, lengths[ready])
        node, class_id = np.divmod(keys, 256)
        order = np.lexsort((class_id, -votes, node))
        winners = order[np.unique(node[order], return_index=True)[1]]
        out[node[winners]] = class_id[winners]
        waiting[node[winners]] = False
        left = waiting[ends[:, 0]]
        ends, lengths = ends[left], lengths[left]


def cleaned_classes(
    blocks: Sequence[BlockGraph], columns: int, holes: float, smallest: float
) -> list[NDArray[np.uint8]]:
    """For each block the class that each of its regions gets, holes filled before small regions are merged.

    Parameters
    ----------
    blocks
        Of the image row by row, `columns` to a row.
    holes, smallest
        See `without_holes` and `without_small`, in pixels.
    """
    graph, numbers = join_blocks(blocks, columns)
    if holes > 0:
        graph, moved = graph.joined(without_holes(graph, holes))
        numbers = [moved[n] for n in numbers]
    if smallest > 0:
        graph.classes = without_small(graph, smallest)
    return [graph.classes[n] for n in numbers]
