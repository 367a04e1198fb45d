"""Draws the scribbles of the real sample slide, a piece of skin: ``python -m sample_data.scribble_skin``.

The slide, ``CMU-1-Small-Region.svs``, is from OpenSlide's test data, given by Carnegie Mellon University under CC0
(https://openslide.org/demo/). The strokes are ours, drawn by eye, under the licence of this package.
"""

from __future__ import annotations

from pathlib import Path

from napari_sparseseg import Annotations, open_slide

HERE = Path(__file__).parent
RADIUS = 12
CLASSES = [
    ("epithelium", "#e69f00"),
    ("connective tissue", "#56b4e9"),
    ("keratin", "#cc79a7"),
    ("background", "#999999"),
]
STROKES: dict[int, list[list[tuple[int, int]]]] = {
    1: [
        [(900, 1180), (980, 1200), (1080, 1190)],
        [(1700, 1130), (1850, 1150), (1960, 1170)],
        [(2200, 1180), (2250, 1270), (2210, 1330)],
        [(2640, 730), (2720, 690), (2830, 630)],
        [(2400, 1715), (2500, 1680), (2580, 1640)],
    ],
    2: [
        [(1250, 960), (1400, 930), (1550, 925)],
        [(2280, 970), (2480, 940), (2650, 930)],
        [(2120, 1570), (2300, 1590), (2420, 1590)],
        [(2480, 1290), (2560, 1330), (2760, 1300)],
    ],
    3: [
        [(950, 1555), (1030, 1480), (1110, 1390)],
        [(1420, 1720), (1480, 1670), (1540, 1620)],
        [(1745, 1260), (1800, 1310)],
    ],
    4: [
        [(400, 300), (650, 420), (800, 600)],
        [(300, 1750), (350, 2050)],
        [(1600, 300), (1800, 480), (2000, 400)],
        [(2700, 2000), (2450, 2020)],
        [(450, 1240), (520, 1310)],
    ],
}
"""By class id: polylines of level-0 (y, x)."""


def main() -> None:
    with open_slide(HERE / "CMU-1-Small-Region.svs") as slide:
        annotations = Annotations(slide.shape, classes=CLASSES)
        for class_id, strokes in STROKES.items():
            for points in strokes:
                annotations.paint(points, RADIUS, class_id)
        out = HERE / "CMU-1-Small-Region.geojson"
        out.unlink(missing_ok=True)
        annotations.to_geojson(out)


if __name__ == "__main__":
    main()
