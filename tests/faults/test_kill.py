"""kill -9 at random moments: afterwards every file is whole or absent, and at most the stroke under the pen is gone."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import sqlite3
import zipfile

import numpy as np
import pytest
import tifffile
import zarr

from napari_sparseseg import Session
from napari_sparseseg.annotations import Annotations
from napari_sparseseg.annotations.sqlite_file import BlankFileError
from napari_sparseseg.config import TrainConfig
from napari_sparseseg.io import load_annotations
from napari_sparseseg.learning.model_file import ModelMetadata, read_metadata
from napari_sparseseg.session.project import Project
from tests.faults import report
from tests.faults.jobs import CLASSES, SHAPE, replay, told
from tests.faults.zygote import Zygote, moment
from tests.helpers.data import two_textures, write_slide
from tests.helpers.smooth_model import write_tall_slide

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(os.name == "nt", reason="children are forked and killed by signals"),
]
FEW = {"paint": 4, "save": 3, "export": 2, "export_others": 1, "export_model": 0, "predict": 2, "train": 2} | {
    "train_plain": 0,
}  # fmt: skip
MANY = {"paint": 100, "save": 50, "export": 40, "export_others": 24, "export_model": 8, "predict": 40, "train": 24} | {
    "train_plain": 12,
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    for k, name in enumerate(("a.tif", "b.tif")):
        write_slide(folder / name, two_textures(256, k))
    write_tall_slide(folder / "tall.tif")
    return folder


@pytest.fixture(scope="module")
def zygote(place):
    made = Zygote(place / "home")
    yield made
    made.close()


@pytest.fixture(scope="module")
def torch_zygote(place):
    made = Zygote(place / "home", torch=True)
    yield made
    made.close()


def rounds(job):
    few = [pytest.param(k, id=f"{k}") for k in range(FEW[job])]
    return few + [pytest.param(k, id=f"{k}", marks=pytest.mark.slow) for k in range(FEW[job], MANY[job])]


def new_folder(place, job, seed):
    folder = place / f"{job}-{seed}"
    folder.mkdir()
    return folder


def same(a, b):
    return (
        a.version == b.version
        and a.counts() == b.counts()
        and a.snapshot().scribbles.levels == b.snapshot().scribbles.levels
    )


@pytest.mark.parametrize("seed", rounds("paint"))
def test_painting(place, zygote, seed):
    folder = new_folder(place, "paint", seed)
    assert zygote.run("paint", folder, seed, moment(random.Random(seed), 1.0))
    steps = len(told(folder)) - 1
    if steps < 0:  # killed before the file was made: what is there of it is taken over
        found = Annotations(SHAPE, CLASSES)
        found.attach(folder / "a.sqlite")
        found.close()
    else:
        found = Annotations.load(folder / "a.sqlite")
    steps = max(0, steps)
    expected = replay(seed, steps)
    ahead = replay(seed, steps + 1)
    row = report.row("kill -9 while painting")
    row.rounds, row.promised = row.rounds + 1, row.promised + steps
    row.cut += same(found, expected)
    row.lost += not (same(found, expected) or same(found, ahead))
    assert same(found, expected) or same(found, ahead)
    again = Annotations(SHAPE)
    again.attach(folder / "a.sqlite")
    again.paint([(5, 5)], 3, 1)
    again.close()
    with sqlite3.connect(folder / "a.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


@pytest.mark.parametrize("seed", rounds("export"))
def test_exporting(place, zygote, seed):
    folder = new_folder(place, "export", seed)
    assert zygote.run("export", folder, seed, moment(random.Random(seed), 1.0))
    steps = max(0, len(told(folder)) - 1)
    path = folder / "a.geojson"
    row = report.row("kill -9 while exporting GeoJSON")
    row.rounds, row.promised = row.rounds + 1, row.promised + steps
    if not path.exists():
        row.lost += steps
        assert steps == 0
        return
    json.loads(path.read_text())
    found = Annotations.from_geojson(path, SHAPE, classes=Annotations(SHAPE, CLASSES).classes).counts()
    expected, ahead = replay(seed, steps).counts(), replay(seed, steps + 1).counts()
    row.cut += found == expected
    row.lost += found not in (expected, ahead)
    assert found in (expected, ahead)


def image(annotations):
    return annotations.read((0, 0, *SHAPE))


@pytest.mark.parametrize("seed", rounds("export_others"))
def test_exporting_xml_and_label_images(place, zygote, seed):
    folder = new_folder(place, "export_others", seed)
    assert zygote.run("export_others", folder, seed, 2 * random.Random(seed).random())
    done = {name: int(k) for name, k in told(folder)[1:]}
    row = report.row("kill -9 while exporting ASAP XML and label images")
    row.rounds, row.promised = row.rounds + 1, row.promised + len(done)
    there = {
        p.name for p in folder.iterdir() if p.name.endswith((".xml", ".ome.tif", ".ome.zarr")) and ".part" not in p.name
    }
    wrong = set(done) - there
    for name in there:
        k = done.get(name, 0) if name == "a.xml" else int(name.split(".")[0])
        if name == "a.xml":
            found = image(load_annotations(folder / name, SHAPE, classes=Annotations(SHAPE, CLASSES).classes))
        elif name.endswith(".tif"):
            found = tifffile.imread(folder / name)
        else:
            found = zarr.open_array(folder / name / "labels/annotations/0", mode="r")[:]
        right = np.array_equal(found, image(replay(seed, k)))
        ahead = name == "a.xml" and np.array_equal(found, image(replay(seed, k + 1)))
        row.cut += right and name not in done
        wrong |= set() if right or ahead else {name}
    row.lost += len(wrong)
    assert not wrong


@pytest.mark.parametrize("seed", rounds("export_model"))
def test_exporting_a_model(place, torch_zygote, seed):
    """Whatever is there is a whole file that other programs read."""
    import onnx

    from napari_sparseseg.learning.features import InputScale
    from napari_sparseseg.learning.model import Model
    from napari_sparseseg.learning.network import PlainUNet

    if not (place / "model.safetensors").exists():
        metadata = ModelMetadata(
            Annotations(SHAPE, CLASSES).classes, 1.0, "x", config=TrainConfig(architecture="scratch")
        )
        Model(metadata, PlainUNet(3, 2, 4, 2), InputScale.for_rgb()).save(place / "model.safetensors")
    folder = new_folder(place, "export_model", seed)
    assert torch_zygote.run("export_model", folder, seed, random.Random(seed).uniform(0, 3), 1 + seed % 3)
    done = {name for (name,) in told(folder)[1:]}
    row = report.row("kill -9 while exporting a model")
    row.rounds, row.promised = row.rounds + 1, row.promised + len(done)
    missing = [name for name in done if not (folder / name).exists()]
    row.lost += len(missing)
    assert not missing
    if (folder / "a.onnx").exists():
        onnx.checker.check_model(onnx.load(folder / "a.onnx"), full_check=True)
    if (folder / "a.zip").exists():
        with zipfile.ZipFile(folder / "a.zip") as package:
            assert package.testzip() is None
            assert any(name.endswith(".yaml") for name in package.namelist())


@pytest.mark.parametrize("seed", rounds("save"))
def test_saving_a_project(place, zygote, seed):
    folder = new_folder(place, "save", seed)
    assert zygote.run("save", folder, seed, moment(random.Random(seed), 1.5))
    lines = told(folder)[1:]
    names = [words[1] for words in lines if words[0] == "saved"]
    last = {int(words[1]): int(words[2]) for words in lines if words[0] == "stroke"}
    row = report.row("kill -9 while saving a project")
    row.rounds, row.promised = row.rounds + 1, row.promised + sum(last.values()) + len(names)
    if names:
        with Session.load(folder / names[-1]) as session:
            assert session.status.message == ""
            assert [c.name for c in session.classes] == CLASSES
            versions = [e.annotations.version for e in session.entries]
        missing = sum(max(0, version - versions[k]) for k, version in last.items())
        row.lost += missing
        row.cut += versions == [last.get(0, 0), last.get(1, 0)]
        assert missing == 0
    for path in folder.glob("*.sparseseg"):
        if (path / "project.json").exists():
            Project.open(path)
        else:
            Project.create(path)  # what was only begun does not stand in the way
        for file in path.glob("annotations/*.sqlite"):
            with contextlib.suppress(BlankFileError):
                Annotations.load(file)


def contents(folder):
    """Every file of a result; without the identifiers that tifffile draws anew each time."""
    files = [p for a in folder.glob("a.*") for p in (sorted(a.rglob("*")) if a.is_dir() else [a]) if p.is_file()]
    return {str(p.relative_to(folder)): re.sub(rb"urn:uuid:[0-9a-f-]{36}", b"", p.read_bytes()) for p in files}


@pytest.fixture(scope="module")
def predicted(place, zygote):
    """What uninterrupted runs write, as OME-TIFF and as OME-Zarr."""
    answers = []
    for seed in (0, 1):
        folder = place / f"whole-{seed}"
        folder.mkdir()
        zygote.run("predict", folder, seed)
        answers.append(contents(folder))
    return answers


@pytest.mark.parametrize("seed", rounds("predict"))
def test_predicting_a_slide(place, zygote, predicted, seed):
    folder = new_folder(place, "predict", seed)
    rng = random.Random(seed)
    row = report.row("kill -9 while predicting a slide")
    while zygote.run("predict", folder, seed, rng.uniform(0, 1.2)):
        row.rounds += 1
        row.cut += 1
    row.promised += 1
    right = contents(folder) == predicted[seed % 2]
    row.lost += not right
    assert right
    assert sorted(p.name for p in folder.iterdir() if not p.name.startswith("a.")) == ["progress"]


def step_of(project):
    """The step of a project's model, or 0."""
    model = project / "models" / "model.safetensors"
    return read_metadata(model).step if model.exists() else 0


@pytest.mark.parametrize("seed", rounds("train"))
def test_training(place, torch_zygote, seed):
    folder = place / f"train-{seed // 4}"  # four rounds on one project: each goes on from the one before
    folder.mkdir(exist_ok=True)
    project = folder / "p.sparseseg"
    before = step_of(project)
    rng = random.Random(seed)
    killed = torch_zygote.run("train", folder, seed // 4, rng.uniform(0, 1), rng.randrange(5))
    lines = told(folder)
    model = project / "models" / "model.safetensors"
    saved = [int(words[1]) for words in lines if words[0] == "checkpoint"]
    promised, found = max([before, *saved]), step_of(project)
    row = report.row("kill -9 while training and writing checkpoints")
    row.rounds, row.promised = row.rounds + killed, row.promised + len(saved) + (before > 0)
    row.cut += killed and found == promised
    row.lost += found < promised
    assert saved == [before + 2 * k for k in range(1, len(saved) + 1)], "each run goes on from the one before"
    assert found in (promised, promised + 2), "a checkpoint went back"
    if model.exists():
        assert [c.name for c in read_metadata(model).classes] == CLASSES
    if lines:
        with Session.load(project) as session:
            assert len(session.annotations.strokes) == 6
            assert (session.model.metadata.step if session.model is not None else 0) == found
    if seed % 4 == 1:
        torch_zygote.run("train", folder, seed // 4)
        assert told(folder)[-1] == ["done"]
        assert step_of(project) == found + 8


def tensors(path):
    from safetensors.numpy import load_file

    return {name: value.tobytes() for name, value in load_file(path).items()}


@pytest.fixture(scope="module")
def trained(place, torch_zygote):
    """What an uninterrupted run writes, checkpoint by checkpoint."""
    folder = place / "whole-train"
    folder.mkdir()
    torch_zygote.run("train_plain", folder, 0)
    return {int(p.stem): tensors(p) for p in folder.glob("*.safetensors")}


@pytest.mark.parametrize("seed", rounds("train_plain"))
def test_training_is_the_same_as_without_the_kill(place, torch_zygote, trained, seed):
    """Up to the kill bit by bit; from there two that go on do the same, with the optimizer's moments begun anew."""
    assert sorted(trained) == [2, 4, 6, 8]
    folder = new_folder(place, "train_plain", seed)
    project = folder / "p.sparseseg"
    rng = random.Random(seed)
    torch_zygote.run("train_plain", folder, 0, rng.uniform(0, 0.5), rng.randrange(5))
    row = report.row("kill -9 while training: the weights of an uninterrupted run")
    row.rounds += 1
    step = step_of(project)
    if step:
        right = tensors(project / "models" / "model.safetensors") == trained[step]
        row.promised, row.lost = row.promised + 1, row.lost + (not right)
        assert right
    ends = []
    for k in range(2):
        copy = place / f"train_plain-{seed}-{k}"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("progress"))
        torch_zygote.run("train_plain", copy, 0)
        assert step_of(copy / "p.sparseseg") == step + 8
        ends.append(tensors(copy / "p.sparseseg" / "models" / "model.safetensors"))
        shutil.rmtree(copy)
    row.promised, row.lost = row.promised + 1, row.lost + (ends[0] != ends[1])
    assert ends[0] == ends[1]
    if not step:
        assert ends[0] == trained[8]
