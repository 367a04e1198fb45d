"""Makes the golden files of one version, with that version: ``PYTHONPATH=CHECKOUT python tests/golden/make.py FOLDER``.

``0.1.0`` was made so with the code of version 0.1.0 and is never made anew: whatever comes later has to open it.
``expected.npz`` and ``expected.json`` hold what that version said of its own files.
"""

from __future__ import annotations

import dataclasses
import json
import lzma
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import tifffile

SIDE, TALL = 256, (2300, 96)
CLASSES = [("stripes", "#e69f00"), ("dots", "#56b4e9"), ("Faser, quer", "#009e73")]


def textures(height: int, width: int) -> np.ndarray:
    """Stripes on the left, dots on the right, without noise so that the file is small."""
    y, x = np.mgrid[:height, :width]
    image = np.full((height, width, 3), (225, 170, 200), np.uint8)
    image[(np.sin(y / 9) > 0) & (x < width // 2)] = (190, 110, 160)
    image[(np.hypot(y % 16 - 8, x % 16 - 8) < 4) & (x >= width // 2)] = (110, 70, 150)
    return image


def write(path: Path, image: np.ndarray, mpp: float) -> None:
    options = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib", "metadata": None}
    tifffile.imwrite(path, image, resolution=(1e4 / mpp, 1e4 / mpp), resolutionunit="CENTIMETER", **options)


def draw(annotations) -> None:
    """One stroke of every kind."""
    for y in (40, 120, 200):
        annotations.paint([(y, 20), (y + 5, 60), (y, 100)], 5, 1)
        annotations.paint([(y, 150), (y, 230)], 4.5, 2)
    annotations.erase([(38, 60), (48, 60)], 3)
    annotations.fill_polygon(
        [(60, 20), (60, 90), (90, 90), (90, 20)], 3, holes=[[(70, 40), (70, 60), (80, 60), (80, 40)]]
    )
    annotations.begin_stroke(2, kind="fill")
    annotations.paint_mask(0, 220, 200, np.eye(12, dtype=bool))
    annotations.commit_stroke()
    annotations.fill_polygon([(100, 140), (100, 250), (140, 250), (140, 140)], 2, dense=True)


def said(session) -> tuple[dict, dict]:
    """What a session says of its slides: plain values, and label images."""
    slides, images = [], {}
    for entry in session.entries:
        strokes = [
            [s.id, s.kind, s.class_id, s.radius, [float(v) for v in s.points.ravel()], list(s.rings)]
            for s in (*entry.annotations.strokes, *entry.annotations.dense_regions)
        ]
        name = Path(entry.slide.path).stem
        slides.append(
            {"name": name, "role": entry.role, "mpp": list(entry.slide.mpp), "strokes": strokes}
            | {"counts": entry.annotations.counts()}
        )
        h, w = entry.slide.shape
        images[f"{name} labels"] = entry.annotations.read((0, 0, h, w))
        images[f"{name} scribbles"] = entry.annotations.read((0, 0, h, w), scribbles_only=True)
    classes = [[c.id, c.name, c.colour] for c in session.classes]
    return {"slides": slides, "classes": classes}, images


def coarse(tensor):
    """Rounded to 4 bits of mantissa, which packs to a fourth; the network is one as good for comparisons."""
    import torch

    kept = tensor.detach().clone().float()
    kept.view(torch.int32).bitwise_and_(~((1 << 19) - 1))
    return kept


def two_speed(model):
    """The network of a session with a decoder that has a share in the answer."""
    import torch

    from napari_sparseseg.learning.model import Model
    from napari_sparseseg.learning.network import Decoder, TwoSpeedNet

    torch.manual_seed(0)
    maps = model.net.features
    decoder = Decoder(maps.channels, maps.strides, (8, 8, 8, 8), len(model.recipe.classes))
    torch.nn.init.normal_(decoder.scores.weight)
    net = TwoSpeedNet(maps, model.net.head, decoder, 0.25)
    for name, tensor in net.state_dict().items():
        if name.startswith("features.encoder") and tensor.ndim > 1:
            tensor.copy_(coarse(tensor))
    recipe = dataclasses.replace(model.recipe, step=17, metrics={"balanced_dice": 0.5})
    return Model(recipe, net, model.scale, model.memory)


def plain(classes):
    import torch

    from napari_sparseseg.config import Recipe, TrainConfig
    from napari_sparseseg.learning.features import InputScale
    from napari_sparseseg.learning.model import Model
    from napari_sparseseg.learning.network import PlainUNet

    torch.manual_seed(0)
    net = PlainUNet(3, len(classes), width=4, depth=2)
    torch.nn.init.normal_(net.scores.weight, std=20)
    config = TrainConfig(architecture="scratch", patch_px=64, device="cpu")
    return Model(Recipe(classes, 1.0, "", config=config, step=5), net, InputScale.for_rgb())


def project(folder: Path) -> tuple[dict, dict]:
    """A project of two slides: settings, roles, a resolution typed by the user, a trained model."""
    from napari_sparseseg import Session
    from napari_sparseseg.learning.model import load_model

    with Session(CLASSES) as session:
        session.open(folder / "a.tif")
        draw(session.annotations)
        session.open(folder / "b.tif", role="held-out")
        session.annotations.paint([(30, 30), (200, 60)], 7, 3)
        session.annotations.paint([(30, 230), (200, 200)], 7, 1)
        session.slide.mpp = 0.75
        session.activate(session.slides[0])
        session.train(steps=1, wait=True, patch_px=64, batch_size=1, balancing="mini-batch", device="cpu", seed=3)
        session.save(folder / "project")
        checkpoint = session.checkpoint
        two_speed(session.model).save(checkpoint)
        plain(session.classes).save(folder / "plain.safetensors")
    with Session.load(folder / "project.sparseseg") as session:
        values, images = said(session)
        values["config"] = dataclasses.asdict(session.config)
        values["metadata"] = {"step": 17, "mpp": session.model.recipe.mpp, "encoder": session.model.recipe.encoder}
    for name, path in (("two-speed", checkpoint), ("plain", folder / "plain.safetensors")):
        images[name] = load_model(path, device="cpu").probabilities(textures(SIDE, SIDE))[:, 64:192:4, 64:192:4]
    checkpoint.with_suffix(".safetensors.xz").write_bytes(lzma.compress(checkpoint.read_bytes(), preset=9))
    checkpoint.unlink()
    return values, images


UNSAVED = """
import os, sys
from napari_sparseseg import Session
from make import CLASSES, draw
session = Session(CLASSES, autosave=True)
session.open(sys.argv[1])
draw(session.annotations)
session.annotations.undo()
os._exit(9)
"""
UNFINISHED = """
import os, sys
from pathlib import Path
from napari_sparseseg.learning.model import load_model
from napari_sparseseg.slide_prediction import predict_slide
from napari_sparseseg.slides import open_slide
folder = Path(sys.argv[1])
journal = folder / "tall.ome.zarr.partial" / "journal.jsonl"
def look(progress):
    if progress.stage == "predict" and '"shard"' in journal.read_text():
        os._exit(9)
with open_slide(folder / "tall.tif") as slide:
    model = load_model(folder / "plain.safetensors", device="cpu")
    predict_slide(slide, model, folder / "tall.ome.zarr", tile=128, progress=look)
"""


def killed(script: str, *args: Path, **environment: str) -> None:
    """Run a script that ends as by kill -9."""
    path = os.pathsep.join([os.environ["PYTHONPATH"], str(Path(__file__).parent)])
    ended = subprocess.run(
        [sys.executable, "-c", script, *map(str, args)], env={**os.environ, "PYTHONPATH": path, **environment}
    )
    assert ended.returncode == 9


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True)
    os.environ["NAPARI_SPARSESEG_HOME"] = str(folder / "home")
    write(folder / "a.tif", textures(SIDE, SIDE), 1.0)
    write(folder / "b.tif", np.ascontiguousarray(textures(SIDE, SIDE)[::-1]), 0.5)
    write(folder / "tall.tif", textures(*TALL), 1.0)
    values, images = project(folder)
    shutil.rmtree(folder / "home", ignore_errors=True)
    killed(UNSAVED, folder / "a.tif")
    killed(UNFINISHED, folder)
    for place in folder.rglob("project.json"):
        text = place.read_text()
        place.write_text(text.replace(json.dumps(str(folder))[1:-1], "@FOLDER@"))
    whole = folder / "whole"
    whole.mkdir()
    from napari_sparseseg.slide_prediction import predict_slide

    from napari_sparseseg.learning.model import load_model
    from napari_sparseseg.slides import open_slide

    with open_slide(folder / "tall.tif") as slide:
        result = predict_slide(
            slide, load_model(folder / "plain.safetensors", device="cpu"), whole / "tall.ome.zarr", tile=128
        )
    import zarr

    group = zarr.open_group(whole / "tall.ome.zarr", mode="r")
    images["tall prediction"] = group[group.attrs["multiscales"][0]["datasets"][0]["path"]][:]
    values["tall pixels"] = {row.class_id: row.pixels for row in result.table}
    shutil.rmtree(whole)
    np.savez_compressed(folder / "expected.npz", **images)
    (folder / "expected.json").write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
