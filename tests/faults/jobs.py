"""What the children do until they are killed. Each job tells what is done, line by line, in a file that a kill leaves.

A line is written after the call that promises durability has returned, with one write to the kernel: what is told and
not found afterwards was lost.
"""

from __future__ import annotations

import itertools
import os
import shutil
from typing import TYPE_CHECKING

import numpy as np

from napari_sparseseg.annotations import Annotations

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = (1500, 1300)
CLASSES = ["stripes", "dots"]
LABELS = "progress"


class Teller:
    """Appends lines to the job's progress file."""

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / LABELS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def __call__(self, *words: object) -> None:
        os.write(self._descriptor, (" ".join(map(str, words)) + "\n").encode())


def told(folder: Path) -> list[list[str]]:
    """The whole lines that a job has told."""
    path = folder / LABELS
    return [line.split() for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def edit(annotations: Annotations, rng: np.random.Generator) -> None:
    """One step of drawing, chosen by `rng`: the same steps come from the same seed. Always a new version."""
    h, w = annotations.shape
    y, x = rng.uniform(0, h), rng.uniform(0, w)
    label = int(rng.integers(1, 3))
    kind = rng.choice(["brush", "brush", "erase", "polygon", "dense", "undo"])
    radius = float(2 ** rng.uniform(1, 6))
    if kind == "undo" and annotations.undo() is not None:
        return
    if kind == "erase":
        annotations.erase([(y, x), (h / 2, w / 2)], radius)
    elif kind in ("polygon", "dense"):
        ring = [(y, x), (y + 90, x + 30), (y + 40, x + 120)]
        annotations.fill_polygon(ring, label, dense=kind == "dense")
    else:
        annotations.paint([(y, x), (y + rng.uniform(-200, 200), x + 50)], radius, label)


def replay(seed: int, steps: int) -> Annotations:
    """What is drawn after `steps` steps."""
    annotations, rng = Annotations(SHAPE, CLASSES), np.random.default_rng(seed)
    for _ in range(steps):
        edit(annotations, rng)
    return annotations


def paint(folder: Path, seed: int) -> None:
    """Draw for ever into one annotation file."""
    tell, rng = Teller(folder), np.random.default_rng(seed)
    annotations = Annotations(SHAPE, CLASSES)
    annotations.attach(folder / "a.sqlite")
    tell("ready")
    for k in itertools.count(1):
        edit(annotations, rng)
        tell(k)


def export(folder: Path, seed: int) -> None:
    """Draw and export as GeoJSON, for ever over the same file."""
    tell, rng = Teller(folder), np.random.default_rng(seed)
    annotations = Annotations(SHAPE, CLASSES)
    tell("ready")
    for k in itertools.count(1):
        edit(annotations, rng)
        annotations.to_geojson(folder / "a.geojson")
        tell(k)


def save(folder: Path, seed: int) -> None:
    """Draw on two slides and save the project, over itself or under a new name, for ever."""
    from napari_sparseseg import Session

    tell, rng = Teller(folder), np.random.default_rng(seed)
    with Session(CLASSES, autosave=True) as session:
        for name in ("a.tif", "b.tif"):
            session.open(folder.parent / name)
        tell("ready")
        for k in itertools.count(1):
            session.open(folder.parent / ("a.tif", "b.tif")[k % 2])
            session.annotations.paint([rng.uniform(0, 256, 2), rng.uniform(0, 256, 2)], 5, 1 + k % 2)
            tell("stroke", k % 2, session.annotations.version)
            if k % 3 == 1:
                session.save(folder / f"p{k}.sparseseg")
                tell("saved", f"p{k}.sparseseg")
            elif k % 3 == 2:
                session.entries[0].slide.mpp = 0.25 + k / 1000
                session.save(session.project)


def predict(folder: Path, seed: int) -> None:
    """Predict a slide, or go on with it."""
    from napari_sparseseg.prediction.slide import run_prediction
    from napari_sparseseg.slides import open_slide
    from tests.helpers.smooth_model import SmoothModel

    tell = Teller(folder)
    out = folder / ("a.ome.zarr" if seed % 2 else "a.ome.tif")
    with open_slide(folder.parent / "tall.tif") as slide:
        tell("ready")
        result = run_prediction(
            slide, SmoothModel(), out, geojson=folder / "a.geojson", csv=folder / "a.csv", tile=256, workers=2,
            resume=True,
        )  # fmt: skip
    tell("done", result.shards_resumed)


def train(folder: Path, seed: int, architecture: str = "pretrained") -> None:
    """Train in short runs, each of which ends with a checkpoint; the first opens or makes the project."""
    from napari_sparseseg import Session
    from napari_sparseseg.config import TrainConfig

    tell = Teller(folder)
    project = folder / "p.sparseseg"
    config = TrainConfig(patch_px=64, batch_size=2, seed=seed, device="cpu", architecture=architecture)
    with Session.load(project) if (project / "project.json").exists() else Session(CLASSES, config=config) as session:
        if session.status.message:
            raise AssertionError(session.status.message)
        session.open(folder.parent / "a.tif")
        if not session.annotations.strokes:
            for y in (40, 120, 200):
                session.annotations.paint([(y, 20), (y, 100)], 6, 1)
                session.annotations.paint([(y, 150), (y, 240)], 6, 2)
        session.save(project)
        had = session.checkpoint is not None
        if had != (session.model is not None):
            raise AssertionError("the checkpoint was not taken up")
        tell("ready", int(had))
        for _ in range(4):
            session.train(steps=2, wait=True)
            tell("checkpoint", session.status.step)
            if folder.name.startswith("whole"):
                shutil.copy(session.checkpoint, folder / f"{session.status.step}.safetensors")
    tell("done")


def train_plain(folder: Path, seed: int) -> None:
    """The same with the plain U-Net, in which nothing depends on the clock."""
    train(folder, seed, "scratch")


def export_others(folder: Path, seed: int) -> None:
    """Draw and export: ASAP XML over the same file, label images each under a name of its own."""
    from napari_sparseseg.io import save_annotations
    from napari_sparseseg.io.labels import write_labels

    tell, rng = Teller(folder), np.random.default_rng(seed)
    annotations = Annotations(SHAPE, CLASSES)
    tell("ready")
    for k in itertools.count(1):
        edit(annotations, rng)
        save_annotations(annotations, folder / "a.xml", overwrite=True)
        tell("a.xml", k)
        name = f"{k}.ome.tif" if k % 2 else f"{k}.ome.zarr"
        write_labels(annotations, folder / name)
        tell(name, k)


def export_model(folder: Path, seed: int) -> None:
    """Export a model for other programs, over the same two files for ever."""
    from napari_sparseseg.learning.export import export_model
    from napari_sparseseg.learning.model import load_model

    tell = Teller(folder)
    model = load_model(folder.parent / "model.safetensors", device="cpu")
    tell("ready")
    for name in itertools.cycle(("a.onnx", "a.zip")):
        export_model(model, folder / name)
        tell(name)


JOBS = {
    job.__name__: job for job in (paint, export, export_others, export_model, save, predict, train, train_plain)
}  # fmt: skip
