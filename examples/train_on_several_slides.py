"""Train one model on several slides and score it on another that it never learns from.

Run it in an empty folder: ``python train_on_several_slides.py``. It cuts three slides out of the sample slide; with
your own, start at "Training".
"""

import json
from pathlib import Path

import tifffile

from napari_sparseseg import Session, open_slide
from napari_sparseseg.samples import sample_scribbles, sample_slide


def cut(name: str, box: tuple[int, int, int, int]) -> Path:
    """Write a part of the sample as a slide with its annotations beside it, as QuPath would export them."""
    y, x, height, width = box
    with open_slide(sample_slide()) as slide:
        tifffile.imwrite(f"{name}.tif", slide.read(box), tile=(256, 256), photometric="rgb", compression="zlib",
                         resolution=(1e4 / 0.5, 1e4 / 0.5), resolutionunit="CENTIMETER")  # fmt: skip
    features = []
    for feature in json.loads(sample_scribbles().read_text())["features"]:
        ring = [(px - x, py - y) for px, py in feature["geometry"]["coordinates"][0]]
        if all(0 <= px <= width and 0 <= py <= height for px, py in ring):
            feature["geometry"] = {"type": "Polygon", "coordinates": [ring]}
            features.append(feature)
    Path(f"{name}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return Path(f"{name}.tif")


left = cut("left", (0, 0, 4096, 1400))
middle = cut("middle", (0, 1400, 4096, 1300))
right = cut("right", (0, 2700, 4096, 1396))

# Training

with Session(()) as session:  # no classes yet: those of the files are taken
    for path in (left, middle):
        session.open(path)
        session.import_annotations(path.with_suffix(".geojson"))
    session.open(right, role="held-out")
    session.import_annotations(right.with_suffix(".geojson"))
    print("classes:", ", ".join(c.name for c in session.classes))

    session.train(balancing="instance", steps=12, wait=True)
    scores = session.status.metrics["classes"]
    print("Dice on the held-out slide:", {name: score["dice"] for name, score in scores.items()})

    session.save_model("tissue.safetensors", overwrite=True)
    print("wrote tissue.safetensors")
