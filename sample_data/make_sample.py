"""Makes the sample slide: a synthetic H&E-like pyramid whose tissue classes differ in architecture, not in colour.

    python -m sample_data.make_sample [--size 4096] [--seed 11]

writes, into this folder,

* ``sample.ome.tif``: the slide, 0.5 um per px, JPEG tiles, five levels;
* ``truth.png``: class ids at 2 um per px (every fourth pixel), in the slide's frame;
* ``scribbles.geojson``: a few strokes per class as QuPath would export them.

How the tissue is drawn: `sample_data.tissue`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import tifffile
from scipy import ndimage
from shapely.geometry import LineString

from sample_data.tissue import render

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASSES = (
    ("tumour glands", "#e69f00"),
    ("stroma", "#56b4e9"),
    ("lymphoid", "#009e73"),
    ("necrosis", "#f0e442"),
    ("background", "#999999"),
)
MPP = 0.5
TRUTH_STEP = 4


def stroke(inside: NDArray[np.bool_], start: NDArray[Any], rng: np.random.Generator) -> list[tuple[float, float]]:
    """A wandering line of (x, y) points that stays inside a class, bending away from its border."""
    x, y = float(start[1]), float(start[0])
    points, heading = [(x, y)], rng.uniform(0, 2 * np.pi)
    for _ in range(14):
        for _ in range(8):
            bent = heading + rng.normal(0, 0.35)
            ahead_x, ahead_y = points[-1][0] + 34 * np.cos(bent), points[-1][1] + 34 * np.sin(bent)
            within = 0 <= ahead_y < inside.shape[0] and 0 <= ahead_x < inside.shape[1]
            if within and inside[int(ahead_y), int(ahead_x)]:
                points.append((points[-1][0] + 20 * np.cos(bent), points[-1][1] + 20 * np.sin(bent)))
                heading = bent
                break
            heading += np.pi / 4
    return points


def starts(inside: NDArray[np.bool_], count: int, rng: np.random.Generator) -> NDArray[Any]:
    """Up to `count` places (y, x) well inside a class, each as far from those before it as the class allows."""
    depth = ndimage.distance_transform_edt(np.pad(inside[::4, ::4], 1))[1:-1, 1:-1] * 4
    places = np.argwhere(depth > min(50, 0.5 * depth.max())) * 4
    chosen = [places[rng.integers(len(places))]]
    while len(chosen) < count:
        apart = np.min([np.hypot(*(places - c).T) for c in chosen], axis=0)
        far = np.flatnonzero(apart > 0.7 * apart.max())
        chosen.append(places[rng.choice(far)])
    return np.array(chosen)


def scribbles(
    labels: NDArray[np.uint8], rng: np.random.Generator, per_class: int = 6, width: int = 14
) -> list[dict[str, Any]]:
    """A few strokes per class as GeoJSON polygons, (x, y) in level-0 pixels."""
    features = []
    for class_id, (name, colour) in enumerate(CLASSES, 1):
        inside = labels == class_id
        for place in starts(inside, per_class, rng):
            points = stroke(inside, place, rng)
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


def write_slide(path: Path, image: NDArray[np.uint8], quality: int = 72) -> None:
    """OME-TIFF with SubIFDs, 256 px JPEG tiles, down to 256 px."""
    levels = [image]
    while max(levels[-1].shape) > 300:
        a = levels[-1].astype(np.uint16)
        levels.append(((a[::2, ::2] + a[1::2, ::2] + a[::2, 1::2] + a[1::2, 1::2] + 2) // 4).astype(np.uint8))
    options: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "resolutionunit": "CENTIMETER"}
    options |= {"compression": "jpeg", "compressionargs": {"level": quality}}
    metadata = {"axes": "YXS", "PhysicalSizeX": MPP, "PhysicalSizeY": MPP}
    with tifffile.TiffWriter(path, ome=True) as writer:
        resolution = (1e4 / MPP, 1e4 / MPP)
        writer.write(levels[0], subifds=len(levels) - 1, metadata=metadata, resolution=resolution, **options)
        for k, level in enumerate(levels[1:], 1):
            writer.write(level, subfiletype=1, resolution=(resolution[0] / 2**k, resolution[1] / 2**k), **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    image, labels = render((args.size, args.size), seed=args.seed)
    write_slide(args.output / "sample.ome.tif", image)
    truth = np.ascontiguousarray(labels[TRUTH_STEP // 2 :: TRUTH_STEP, TRUTH_STEP // 2 :: TRUTH_STEP])
    (args.output / "truth.png").write_bytes(imagecodecs.png_encode(truth, level=9))
    collection = {"type": "FeatureCollection", "features": scribbles(labels, np.random.default_rng(args.seed))}
    (args.output / "scribbles.geojson").write_text(json.dumps(collection))


if __name__ == "__main__":
    main()
