"""Synthetic haematoxylin and eosin tissue: four classes that share their colours and differ in how they are built.

Every class is painted with the same two stains, the same nuclei and the same pale gaps; what differs is the
arrangement: glands (nuclei in rings round a lumen), stroma (wavy fibres with spindle nuclei), lymphoid tissue (packed
small round nuclei) and necrosis (smudged granules with fragments of nuclei). All lengths are pixels of 0.5 um.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Field = NDArray[np.float32]
    Mask = NDArray[np.bool_]

GLANDS, STROMA, LYMPHOID, NECROSIS, GLASS = 1, 2, 3, 4, 5
# Optical density of one unit of stain per channel (R, G, B), read off nuclei and collagen of an Aperio H&E slide.
HAEMATOXYLIN = (1.18, 1.42, 0.72)
EOSIN = (0.10, 0.86, 0.46)
GLASS_LEVEL = 244.0


def smooth_noise(shape: tuple[int, int], scale: float, rng: np.random.Generator) -> Field:
    """Gaussian noise (h, w) with features of about `scale` pixels, mean 0, variance 1."""
    step = max(1, int(scale / 4))
    coarse = tuple(-(-n // step) + 2 for n in shape)
    noise = ndimage.gaussian_filter(rng.standard_normal(coarse).astype(np.float32), scale / step / 2, mode="wrap")
    return resized((noise - noise.mean()) / noise.std(), shape, step)


def resized(coarse: Field, shape: tuple[int, int], step: int) -> Field:
    """A coarse map enlarged `step` times (linear) and cut to `shape`."""
    if step == 1:
        return coarse[: shape[0], : shape[1]]
    matrix = np.full(2, 1 / step)
    offset = (1 / step - 1) / 2
    return ndimage.affine_transform(coarse, matrix, (offset, offset), output_shape=shape, order=1, mode="nearest")


def layout(
    shape: tuple[int, int], shares: Sequence[float], glass: float, rng: np.random.Generator, scale: float
) -> NDArray[np.uint8]:
    """Class ids (h, w): tissue islands on glass, each class with its share of the tissue, in blobs of about `scale`."""
    step = 8
    small = tuple(-(-n // step) for n in shape)
    y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in small), indexing="ij")
    island = 0.3 * smooth_noise(small, scale / step, rng) - (np.abs(y) ** 3 + np.abs(x) ** 3)
    island += 0.02 * smooth_noise(small, 6, rng)
    edge = resized(island - np.quantile(island, glass), shape, step)
    labels = np.where(edge > 0, 0, GLASS).astype(np.uint8)
    small_labels = np.where(island > np.quantile(island, glass), 0, GLASS)
    order = np.argsort(np.asarray(shares, float), kind="stable")
    left = float(np.sum(shares))
    for index in order[:-1]:
        class_id, share = int(index) + 1, float(shares[index])
        field = smooth_noise(small, scale / step, rng) + 0.12 * smooth_noise(small, scale / step / 6, rng)
        cut = np.quantile(field[small_labels == 0], 1 - share / left)
        small_labels[(small_labels == 0) & (field > cut)] = class_id
        labels[(labels == 0) & (resized(field - cut, shape, step) > 0)] = class_id
        left -= share
    labels[labels == 0] = int(order[-1]) + 1
    return labels


def fibres(shape: tuple[int, int], rng: np.random.Generator) -> tuple[Field, Field]:
    """Wavy fibre texture (h, w), uniform in 0..1, and the direction of the fibres in radians."""
    y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij")
    bend = 90 * smooth_noise(shape, 420, rng) + 7 * smooth_noise(shape, 60, rng)
    tilt = rng.uniform(-0.5, 0.5)
    across, along = y * np.cos(tilt) - x * np.sin(tilt) + bend, y * np.sin(tilt) + x * np.cos(tilt)
    side = 512
    sheet = ndimage.gaussian_filter(rng.standard_normal((2 * side, side)).astype(np.float32), (1.6, 10), mode="wrap")
    sheet += 2.2 * ndimage.gaussian_filter(
        rng.standard_normal((2 * side, side)).astype(np.float32), (6, 24), mode="wrap"
    )
    wave = ndimage.map_coordinates(sheet, [across, along / 3], order=1, mode="grid-wrap")
    gy, gx = np.gradient(ndimage.uniform_filter(across[::8, ::8], 3))
    angle = np.arctan2(gy, gx) + np.pi / 2
    return ranked(wave), resized(angle.astype(np.float32), shape, 8)


def ranked(field: Field) -> Field:
    """The field mapped to a uniform distribution in 0..1."""
    levels = np.quantile(field.ravel()[:: max(1, field.size // 200_000)], np.linspace(0, 1, 257))
    return np.interp(field, levels, np.linspace(0, 1, 257)).astype(np.float32)


def gland_depth(shape: tuple[int, int], rng: np.random.Generator, spacing: float = 150) -> tuple[Field, Field]:
    """Distance in pixels from the outline of the nearest gland (negative between glands), and its epithelium's height.

    Glands are rounded Voronoi cells of a jittered hexagonal grid, bent by noise, some of them missing.
    """
    step = 4
    small = tuple(-(-n // step) for n in shape)
    rows = np.arange(-2, shape[0] / (spacing * 0.87) + 3)
    cols = np.arange(-2, shape[1] / spacing + 3)
    grid = np.array([((r) * spacing * 0.87, (c + 0.5 * (r % 2)) * spacing) for r in rows for c in cols])
    grid += rng.uniform(-0.3, 0.3, grid.shape) * spacing
    y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) * step for n in small), indexing="ij")
    y = y + 22 * smooth_noise(small, 110 / step, rng) + 5 * smooth_noise(small, 36 / step, rng)
    x = x + 22 * smooth_noise(small, 110 / step, rng) + 5 * smooth_noise(small, 36 / step, rng)
    near, index = cKDTree(grid).query(np.stack([y, x], -1).reshape(-1, 2), k=5)
    apart = np.linalg.norm(grid[index[:, 1:]] - grid[index[:, :1]], axis=-1)
    border = (near[:, 1:] ** 2 - near[:, :1] ** 2) / (2 * apart)
    softness = 6.0
    depth = -softness * np.log(np.exp(-border / softness).sum(-1))
    gap = rng.uniform(3, 15, len(grid))
    gap[rng.random(len(grid)) < 0.1] = 1e3
    height = rng.uniform(24, 40, len(grid))
    own = index[:, 0]
    depth = np.maximum(depth - gap[own], -40).reshape(small).astype(np.float32)
    return resized(depth, shape, step), resized(height[own].reshape(small).astype(np.float32), shape, step)


def scatter(chance: Field, spacing: float, rng: np.random.Generator) -> NDArray[np.intp]:
    """Points (n, 2), no two closer than `spacing`, where `chance` (0..1 per pixel) allows them."""
    count = int(chance.size / spacing**2 * 5)
    points = np.stack([rng.integers(0, n, count) for n in chance.shape], -1)
    points = points[rng.random(count) < chance[tuple(points.T)]]
    if not len(points):
        return points
    kept = np.ones(len(points), bool)
    pairs = cKDTree(points).query_pairs(spacing, output_type="ndarray")
    for first, second in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]:
        if kept[first]:
            kept[second] = False
    return points[kept]


def stamp_nuclei(
    haematoxylin: Field,
    eosin: Field,
    points: NDArray[np.intp],
    axes: NDArray[np.float64],
    angles: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    """Draw one nucleus per point into both stain maps: a soft, slightly bumpy ellipse with a darker rim.

    `axes` is (n, 2) half lengths in pixels (along, across), `angles` (n,) radians of the long axis against x.
    """
    height, width = haematoxylin.shape
    bumps = rng.uniform(0, 2 * np.pi, (len(points), 2))
    strength = rng.uniform(0.72, 1.12, len(points))
    for (py, px), (a, b), angle, (p2, p3), depth in zip(points, axes, angles, bumps, strength, strict=True):
        r = int(np.ceil(max(a, b) * 1.25 + 1))
        y0, y1, x0, x1 = max(0, py - r), min(height, py + r + 1), max(0, px - r), min(width, px + r + 1)
        dy, dx = np.ogrid[y0 - py : y1 - py, x0 - px : x1 - px]
        u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        around = np.arctan2(v / b, u / a)
        q = np.hypot(u / a, v / b) / (1 + 0.10 * np.cos(2 * around + p2) + 0.08 * np.cos(3 * around + p3))
        cover = np.clip((1 - q) * min(a, b) / 1.5 + 0.5, 0, 1).astype(np.float32)
        body = cover * np.float32(depth) * (0.72 + 0.28 * np.clip(q, 0, 1) ** 3).astype(np.float32)
        part = haematoxylin[y0:y1, x0:x1]
        np.maximum(part, body, out=part)
        eosin[y0:y1, x0:x1] *= 1 - 0.55 * cover


def render(
    shape: tuple[int, int] = (4096, 4096),
    *,
    seed: int = 0,
    shares: Sequence[float] = (0.40, 0.40, 0.06, 0.14),
    glass: float = 0.2,
    scale: float = 700,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A field of synthetic tissue.

    Parameters
    ----------
    shape
        (height, width) in pixels of 0.5 um.
    seed
        The same seed and settings give the same picture.
    shares
        Area of glands, stroma, lymphoid tissue and necrosis, relative to each other.
    glass
        Share of the picture that is bare glass.
    scale
        Size of the blobs that the classes form, pixels.

    Returns
    -------
    tuple
        Picture (h, w, 3) uint8 and class ids (h, w) uint8: 1 glands, 2 stroma, 3 lymphoid, 4 necrosis, 5 glass.
    """
    rng = np.random.default_rng(seed)
    labels = layout(shape, shares, glass, rng, scale)
    haematoxylin, eosin = _stains(labels, rng)
    picture = np.empty((*shape, 3), np.uint8)
    tissue = ndimage.gaussian_filter((labels != GLASS).astype(np.float32), 2.0)
    haematoxylin *= tissue * (1 + 0.10 * smooth_noise(shape, 900, rng))
    eosin *= tissue * (1 + 0.16 * smooth_noise(shape, 900, rng))
    for channel in range(3):
        density = HAEMATOXYLIN[channel] * haematoxylin + EOSIN[channel] * eosin
        light = ndimage.gaussian_filter(GLASS_LEVEL * np.exp(-density), 0.9)  # blur of the optics, on light
        picture[..., channel] = np.clip(light + 0.5, 0, 255)
    return picture, labels


def _stains(labels: NDArray[np.uint8], rng: np.random.Generator) -> tuple[Field, Field]:
    """Haematoxylin and eosin (h, w) of every class, before thickness and staining vary over the slide."""
    shape = labels.shape
    fibre, direction = fibres(shape, rng)
    fine, granule = smooth_noise(shape, 3, rng), ranked(smooth_noise(shape, 9, rng))
    depth, height = gland_depth(shape, rng)
    collagen = 0.85 * np.clip((fibre - 0.10) / 0.34, 0, 1) * (0.62 + 0.38 * fibre)
    eosin = collagen + 0.04 * fine
    haematoxylin = 0.05 * ranked(fine)

    glands = labels == GLANDS
    cells, lumen = glands & (depth > 0) & (depth < height), glands & (depth >= height)
    cytoplasm = 0.62 - 0.30 * np.clip(depth / height, 0, 1) ** 2 + 0.16 * (granule - 0.5) + 0.05 * fine
    eosin[cells], haematoxylin[cells] = cytoplasm[cells], haematoxylin[cells] + 0.08
    secretion = 0.9 * np.clip(granule - 0.72, 0.02, 1) * np.clip((depth - height) / 6, 0, 1)
    eosin[lumen] = secretion[lumen]
    haematoxylin[lumen] *= 0.3
    _necrosis(labels == NECROSIS, haematoxylin, eosin, rng)
    lymphoid = labels == LYMPHOID
    eosin[lymphoid] = (0.55 * collagen + 0.18 * granule)[lymphoid]
    _nuclei(labels, depth, direction, haematoxylin, eosin, rng)
    chromatin = 1 + 0.16 * smooth_noise(shape, 3, rng) + 0.10 * smooth_noise(shape, 5, rng)
    return haematoxylin * np.clip(chromatin, 0.4, 1.5), np.clip(eosin, 0, 1.3)


def _necrosis(here: Mask, haematoxylin: Field, eosin: Field, rng: np.random.Generator) -> None:
    """Smudged granular ground with holes."""
    shape = here.shape
    coarse, middle = ranked(smooth_noise(shape, 26, rng)), ranked(smooth_noise(shape, 8, rng))
    ground = 0.85 * np.clip((0.55 * coarse + 0.45 * middle - 0.22) / 0.4, 0, 1) * (0.55 + 0.45 * middle)
    eosin[here] = ground[here]
    haematoxylin[here] += 0.06 * coarse[here]


def _nuclei(
    labels: NDArray[np.uint8],
    depth: Field,
    direction: Field,
    haematoxylin: Field,
    eosin: Field,
    rng: np.random.Generator,
) -> None:
    """All nuclei: palisades in glands, spindles in stroma, packed lymphocytes, fragments in necrosis."""

    def draw(
        chance: Field, spacing: float, long: tuple[float, float], wide: tuple[float, float], turn: Field | None
    ) -> None:
        points = scatter(chance, spacing, rng)
        axes = np.stack([rng.uniform(*long, len(points)), rng.uniform(*wide, len(points))], -1)
        angles = rng.uniform(0, np.pi, len(points))
        if turn is not None and len(points):
            angles = turn[tuple(points.T)] + rng.normal(0, 0.22, len(points))
        stamp_nuclei(haematoxylin, eosin, points, axes, angles, rng)

    gy, gx = np.gradient(ndimage.uniform_filter(depth[::4, ::4], 3))
    inward = resized(np.arctan2(gy, gx).astype(np.float32), depth.shape, 4)
    crowd = smooth_noise(labels.shape, 120, rng)
    glands = labels == GLANDS
    between = (labels == STROMA) | (glands & (depth < -3))
    basal = (np.exp(-(((depth - 11) / 5.5) ** 2)) * (glands & (depth > 3))).astype(np.float32)
    draw(between * np.clip(0.10 + 0.05 * crowd, 0.02, 0.3), 15, (8.5, 13), (2.2, 3.6), direction)
    draw(between * np.clip(0.02 + 0.03 * crowd, 0.0, 0.2), 12, (4.6, 5.8), (4.2, 5.2), None)
    draw(basal, 8.5, (6.5, 9.5), (3.4, 4.6), inward)
    draw((labels == LYMPHOID) * np.clip(0.75 + 0.2 * crowd, 0.25, 1), 9.5, (4.6, 6.2), (4.2, 5.4), None)
    rot = (labels == NECROSIS).astype(np.float32)
    draw(rot * np.clip(0.20 + 0.16 * crowd, 0.03, 1), 7, (1.4, 3.6), (1.2, 2.6), None)
    draw(rot * np.clip(0.10 + 0.06 * crowd, 0.02, 1), 16, (4.5, 8.5), (3.5, 5.5), None)
