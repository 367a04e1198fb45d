"""Makes the sample slide: a synthetic H&E-like pyramid whose tissue classes differ in architecture, not in colour.

    python sample_data/make_sample.py [--size 4096] [--seed 7]

writes, into this folder,

* ``sample.ome.tif``: the slide, 0.5 um per px, JPEG tiles, five levels;
* ``truth.png``: class ids at 2 um per px (every fourth pixel), in the slide's frame;
* ``scribbles.geojson``: a few strokes per class as QuPath would export them.

Every tissue class is made of the same three things in similar amounts: violet nuclei, pink ground and pale gaps.
What differs is how they lie: nuclei in rings around a lumen (glands), stretched along a flow (stroma), whole, round and
packed (lymphoid), broken into dust (necrosis).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from scipy import ndimage
from shapely.geometry import LineString

CLASSES = (
    ("tumour glands", "#e69f00"),
    ("stroma", "#56b4e9"),
    ("lymphoid", "#009e73"),
    ("necrosis", "#cc79a7"),
    ("background", "#f0e442"),
)
MPP = 0.5
TRUTH_STEP = 4
BACKGROUND = 5
# Optical densities per unit of haematoxylin and eosin (Ruifrok & Johnston, 2001), shared by every class.
HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
EOSIN = np.array([0.07, 0.99, 0.11])


@dataclass(frozen=True)
class Texture:
    """How one class is laid out; lengths in px at 0.5 um."""

    nucleus: tuple[float, float]
    """Half axes, along and across."""
    jitter: float
    """Spread of the nuclear size, log scale."""
    distance: float
    """Between nuclei."""
    gap: tuple[float, float]
    """Half axes of clefts."""
    aligned: bool = False


TEXTURES = {
    1: Texture((8.0, 5.5), 0.15, 84.0, (17.0, 15.0)),
    2: Texture((13.0, 3.4), 0.2, 23.0, (20.0, 4.0), aligned=True),
    3: Texture((5.6, 5.2), 0.1, 15.2, (9.0, 7.0)),
    4: Texture((2.6, 2.1), 0.45, 6.6, (13.0, 5.0)),
}
Ellipse = tuple[float, float, float, float, float, float]
"""y, x, half axis along, half axis across, angle, density."""


def smooth_noise(shape: tuple[int, int], scale: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of unit variance with structures of about `scale` px, float32."""
    step = max(1, int(scale // 4))
    coarse = ndimage.gaussian_filter(rng.normal(size=(shape[0] // step + 8, shape[1] // step + 8)), scale / step)
    zoomed = ndimage.zoom(coarse, step, order=1)[4 * step : 4 * step + shape[0], 4 * step : 4 * step + shape[1]]
    return ((zoomed - zoomed.mean()) / zoomed.std()).astype(np.float32)


def class_map(size: int, rng: np.random.Generator, shares: tuple[float, ...] = (0.34, 0.4, 0.1, 0.16)) -> np.ndarray:
    """uint8 (size, size): tissue classes 1..4 in about these shares of the tissue, 5 around it."""
    fields = np.stack([smooth_noise((size, size), size / 16, rng) for _ in shares])
    bias = np.zeros(len(shares), np.float32)
    sample = fields[:, ::16, ::16].reshape(len(shares), -1)
    for _ in range(300):  # shift the fields until each wins its share
        won = np.bincount((sample + bias[:, None]).argmax(axis=0), minlength=len(shares)) / sample.shape[1]
        bias += 0.5 * (np.asarray(shares, np.float32) - won)
    labels = (fields + bias[:, None, None]).argmax(axis=0).astype(np.uint8) + 1
    y, x = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
    edge = np.hypot(y / 0.46, x / 0.47) + 0.07 * smooth_noise((size, size), size / 14, rng)
    labels[edge > 1] = BACKGROUND
    return labels


def orientation(size: int, rng: np.random.Generator) -> np.ndarray:
    """Angle of the fibres at each pixel, radians."""
    return smooth_noise((size, size), size / 12, rng) * 1.1


def layout(labels: np.ndarray, angle: np.ndarray, rng: np.random.Generator) -> tuple[list[Ellipse], list[Ellipse]]:
    """Nuclei, and pale gaps (lumina, clefts)."""
    found, gaps = glands(labels, rng)
    for class_id in (2, 3, 4):
        t, mask = TEXTURES[class_id], labels == class_id

        def turn(y: float, x: float, t: Texture = t) -> float:
            return float(angle[int(y), int(x)] + rng.normal(0, 0.12)) if t.aligned else float(rng.uniform(0, np.pi))

        n = int(mask.sum() / t.distance**2)
        for y, x in scattered(mask, n, t.distance * 0.62, rng):
            grow = float(np.exp(rng.normal(0, t.jitter)))
            found.append((y, x, t.nucleus[0] * grow, t.nucleus[1] * grow, turn(y, x), float(rng.uniform(0.75, 1.1))))
        for y, x in scattered(mask, int(mask.sum() / 58**2), 30.0, rng):
            grow = float(np.exp(rng.normal(0, 0.3)))
            gaps.append((y, x, t.gap[0] * grow, t.gap[1] * grow, turn(y, x), 1.0))
    return found, gaps


def glands(labels: np.ndarray, rng: np.random.Generator) -> tuple[list[Ellipse], list[Ellipse]]:
    """Rings of nuclei around lumina, in class 1, and single nuclei between them."""
    t, size = TEXTURES[1], len(labels)
    found: list[Ellipse] = []
    gaps: list[Ellipse] = []

    def add(y: float, x: float, turn: float) -> None:
        if 0 <= y < size and 0 <= x < size and labels[int(y), int(x)] == 1:
            grow = float(np.exp(rng.normal(0, t.jitter)))
            found.append((y, x, t.nucleus[0] * grow, t.nucleus[1] * grow, turn, float(rng.uniform(0.75, 1.1))))

    for y, x in scattered(labels == 1, int((labels == 1).sum() / 80**2), 76.0, rng):
        radius, squeeze, turn = rng.uniform(25, 37), rng.uniform(0.75, 1.0), rng.uniform(0, np.pi)
        gaps.append((y, x, radius * 0.5, radius * 0.5 * squeeze, turn, 1.0))
        for ring, step in ((radius, 11.0), (radius + 12, 13.0)):
            for a in np.arange(0, 2 * np.pi, step / ring) + rng.normal(0, 0.05):
                dy, dx = ring * squeeze * np.sin(a) + rng.normal(0, 1.5), ring * np.cos(a) + rng.normal(0, 1.5)
                dy, dx = dy * np.cos(turn) + dx * np.sin(turn), dx * np.cos(turn) - dy * np.sin(turn)
                add(y + dy, x + dx, float(np.arctan2(dy, dx)))
    for y, x in scattered(labels == 1, int((labels == 1).sum() / 60**2), 40.0, rng):
        add(y, x, float(rng.uniform(0, np.pi)))
    return found, gaps


def scattered(mask: np.ndarray, n: int, distance: float, rng: np.random.Generator) -> list[tuple[float, float]]:
    """About `n` points in `mask`, none nearer than `distance` to another."""
    cell = distance / np.sqrt(2)
    taken: dict[tuple[int, int], tuple[float, float]] = {}
    ys, xs = np.nonzero(mask)
    if not len(ys):
        return []
    for i in rng.integers(0, len(ys), 4 * n):
        y, x = ys[i] + rng.random(), xs[i] + rng.random()
        key = (int(y / cell), int(x / cell))
        near = (taken.get((key[0] + a, key[1] + b)) for a in (-2, -1, 0, 1, 2) for b in (-2, -1, 0, 1, 2))
        if all(p is None or (p[0] - y) ** 2 + (p[1] - x) ** 2 >= distance**2 for p in near):
            taken[key] = (float(y), float(x))
            if len(taken) >= n:
                break
    return list(taken.values())


def stamp(shape: tuple[int, int], ellipses: list[Ellipse], soft: float) -> np.ndarray:
    """Soft-edged ellipses on an empty float32 canvas, the larger value winning."""
    canvas = np.zeros(shape, np.float32)
    for y, x, along, across, turn, value in ellipses:
        reach = int(max(along, across) + 3)
        rows = slice(max(0, int(y) - reach), int(y) + reach + 1)
        columns = slice(max(0, int(x) - reach), int(x) + reach + 1)
        part = canvas[rows, columns]
        dy = np.arange(part.shape[0], dtype=np.float32)[:, None] + (rows.start - y)
        dx = np.arange(part.shape[1], dtype=np.float32)[None] + (columns.start - x)
        c, s = np.cos(turn), np.sin(turn)
        r = np.hypot((dx * c + dy * s) / along, (dy * c - dx * s) / across)
        np.maximum(part, np.clip((1 - r) * min(along, across) / soft + 0.5, 0, 1) * value, out=part)
    return canvas


def render(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 (size, size, 3): the slide of a class map."""
    shape, size = labels.shape, len(labels)
    found, holes = layout(labels, orientation(size, rng), rng)
    nuclei, gap = stamp(shape, found, 1.2), stamp(shape, holes, 2.5)
    chromatin = 1 + 0.16 * smooth_noise(shape, 2.5, rng)
    h = 0.06 + 0.95 * nuclei * chromatin * (1 + 0.08 * smooth_noise(shape, size / 8, rng))
    e = 0.34 + 0.05 * smooth_noise(shape, 3, rng) + 0.03 * smooth_noise(shape, size / 10, rng)
    e = e * np.clip(1 - gap, 0.05, 1) * (1 - 0.55 * np.clip(h, 0, 1))
    h = np.where(h < 0.3, h * (1 - gap), h)
    density = h[..., None] * HAEMATOXYLIN + e[..., None] * EOSIN
    density *= ndimage.gaussian_filter((labels != BACKGROUND).astype(np.float32), 2)[..., None]
    light = 242 * np.exp(-density) + rng.normal(0, 1.0, (*shape, 1))
    blurred = np.stack([ndimage.gaussian_filter(light[..., k], 0.8) for k in range(3)], axis=-1)
    return np.clip(np.rint(blurred), 0, 255).astype(np.uint8)


def stroke(
    labels: np.ndarray, class_id: int, start: tuple[float, float], length: int, rng: np.random.Generator
) -> list:
    """A wandering line of (x, y) points that stays inside a class, bending away from its border."""
    y, x = start
    points, heading = [(x, y)], rng.uniform(0, 2 * np.pi)
    for _ in range(14):
        for _ in range(8):
            bent = heading + rng.normal(0, 0.35)
            ahead = (points[-1][0] + 34 * np.cos(bent), points[-1][1] + 34 * np.sin(bent))
            inside = 0 <= ahead[1] < len(labels) and 0 <= ahead[0] < len(labels)
            if inside and labels[int(ahead[1]), int(ahead[0])] == class_id:
                points.append((points[-1][0] + 20 * np.cos(bent), points[-1][1] + 20 * np.sin(bent)))
                heading = bent
                break
            heading += np.pi / 4
    return points


def scribbles(labels: np.ndarray, rng: np.random.Generator, per_class: int = 6, width: int = 14) -> list[dict]:
    """A few strokes per class as GeoJSON polygons, (x, y) in level-0 pixels."""
    features = []
    for class_id, (name, colour) in enumerate(CLASSES, 1):
        depth = ndimage.distance_transform_edt(np.pad(labels[::4, ::4] == class_id, 1))[1:-1, 1:-1] * 4
        starts = scattered(depth > min(50, 0.5 * depth.max()), 60, 60.0, rng)
        for y, x in starts[:: max(1, len(starts) // per_class)][:per_class]:
            points = stroke(labels, class_id, (y * 4, x * 4), rng)
            if len(points) < 4:
                continue
            outline = LineString(points).buffer(width / 2, quad_segs=3).simplify(0.5)
            rings = [outline.exterior, *outline.interiors]
            coordinates = [[[round(a, 1), round(b, 1)] for a, b in ring.coords] for ring in rings]
            rgb = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
            properties = {"objectType": "annotation", "classification": {"name": name, "color": rgb}}
            geometry = {"type": "Polygon", "coordinates": coordinates}
            features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return features


def write_slide(path: Path, image: np.ndarray, quality: int = 72) -> None:
    """OME-TIFF with SubIFDs, 256 px JPEG tiles, down to 256 px."""
    levels = [image]
    while max(levels[-1].shape) > 300:
        a = levels[-1].astype(np.uint16)
        levels.append(((a[::2, ::2] + a[1::2, ::2] + a[::2, 1::2] + a[1::2, 1::2] + 2) // 4).astype(np.uint8))
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": quality}}
    metadata = {"axes": "YXS", "PhysicalSizeX": MPP, "PhysicalSizeY": MPP}
    options |= {"resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path, ome=True) as writer:
        resolution = (1e4 / MPP, 1e4 / MPP)
        writer.write(levels[0], subifds=len(levels) - 1, metadata=metadata, resolution=resolution, **options)
        for k, level in enumerate(levels[1:], 1):
            writer.write(level, subfiletype=1, resolution=(resolution[0] / 2**k, resolution[1] / 2**k), **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    labels = class_map(args.size, rng)
    write_slide(args.output / "sample.ome.tif", render(labels, rng))
    truth = np.ascontiguousarray(labels[TRUTH_STEP // 2 :: TRUTH_STEP, TRUTH_STEP // 2 :: TRUTH_STEP])
    (args.output / "truth.png").write_bytes(imagecodecs.png_encode(truth, level=9))
    collection = {"type": "FeatureCollection", "features": scribbles(labels, rng)}
    (args.output / "scribbles.geojson").write_text(json.dumps(collection))


if __name__ == "__main__":
    main()
