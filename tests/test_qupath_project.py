"""QuPath projects: slides and classes read, moved ones found, scripts and results written where QuPath has them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_sparseseg import Annotations, Session, save_annotations
from napari_sparseseg.cli import main
from napari_sparseseg.config import make_classes
from napari_sparseseg.geometry import Box, Frame, Placement
from napari_sparseseg.io.ome_zarr import PredictionStore, StoreLayout, create_store
from napari_sparseseg.io.qupath_project import EXPORT, IMPORT, read_project

CLASSES = tuple(make_classes([("Tumor", "#c80000"), ("Stroma", "#96c896")]))


def entry(number, uri, kind="uri", name="case"):
    """An image as QuPath 0.5 lists it."""
    builder = {"builderType": "uri", "providerClassName": "qupath.lib.x", "uri": uri, "args": [], "metadata": {}}
    if kind != "uri":
        builder = {"builderType": kind, "builder": builder}
    return {"serverBuilder": builder, "entryID": number, "randomizedName": "x", "imageName": name, "metadata": {}}


@pytest.fixture
def study(tmp_path):
    """A folder with a slide and a QuPath project of it, and of images that cannot be used."""
    folder = tmp_path / "study"
    (folder / "qupath" / "classifiers").mkdir(parents=True)
    slide = folder / "my case.tif"
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)
    tifffile.imwrite(slide, pixels, photometric="rgb", resolution=(20000, 20000), resolutionunit="CENTIMETER")
    images = [
        entry(1, slide.as_uri(), name="my case.tif"),
        entry(2, slide.as_uri(), "rotated", "turned"),
        entry(3, "https://x.test/omero?id=1", name="remote"),
        entry(5, (folder / "gone.svs").as_uri(), name="gone.svs"),
    ]
    file = folder / "qupath" / "project.qpproj"
    file.write_text(json.dumps({"version": "0.5.1", "uri": file.as_uri(), "lastID": 5, "images": images}))
    names = [{"name": "Tumor", "color": [200, 0, 0]}, {"name": "Stroma", "color": [150, 200, 150]}]
    names.append({"name": "Ignore*", "color": [180, 180, 180]})
    (folder / "qupath" / "classifiers" / "classes.json").write_text(json.dumps({"pathClasses": names}))
    return file


def test_slides_classes_and_what_cannot_be_used(study):
    project = read_project(study)
    assert [c.name for c in project.classes] == ["Tumor", "Stroma", "Ignore*"]
    first, turned, remote, gone = project.images
    assert first.path == study.parent.parent / "my case.tif"
    assert (turned.path, remote.path, gone.path) == (None, None, None)
    assert "turned" in turned.problem
    assert "no local file" in remote.problem
    assert "there is no file" in gone.problem


def test_slides_that_moved_with_the_project_are_found(study, tmp_path):
    shutil.move(study.parent.parent, tmp_path / "elsewhere")
    project = read_project(tmp_path / "elsewhere" / "qupath")
    assert project.images[0].path.resolve() == tmp_path / "elsewhere" / "my case.tif"


def test_a_project_is_made_with_the_exported_annotations(study, tmp_path, capsys):
    assert main(["qupath", str(study), "--scripts"]) == 0
    scripts = sorted(path.name for path in (study.parent / "scripts").iterdir())
    assert scripts == sorted([f"{EXPORT}.groovy", f"{IMPORT}.groovy"])
    drawn = Annotations((300, 400), classes=CLASSES)
    drawn.paint([(50, 50), (50, 200)], 6, 2)
    project = read_project(study)
    save_annotations(drawn, project.annotations_of(project.images[0]))
    assert main(["qupath", str(study), "--save", str(tmp_path / "ours.sparseseg")]) == 0
    assert "turned" in capsys.readouterr().err
    with Session.load(tmp_path / "ours.sparseseg", read_only=True) as session:
        assert [c.name for c in session.classes] == ["Tumor", "Stroma"]
        assert session.annotations.counts() == drawn.counts()
        assert session.slide.path == str(study.parent.parent / "my case.tif")


def prediction(path, slide):
    labels = np.zeros((150, 200), np.uint8)
    labels[20:60, 30:90], labels[80:120, 100:150] = 1, 2
    placement = Placement(Frame((2.0, 2.0)), slide.mpp)
    record = {"slide": slide.fingerprint, "downsample": [2.0, 2.0], "mpp": list(slide.mpp)}
    create_store(path, StoreLayout(labels.shape, placement, CLASSES), record)
    PredictionStore(path).write(Box(0, 0, 2048, 2048), labels, None)
    return path


def test_results_are_sent_with_their_measurements(study, tmp_path, capsys):
    with Session(()) as session:
        path = prediction(tmp_path / "p.ome.zarr", session.open(study.parent.parent / "my case.tif"))
    arguments = ["qupath", str(study), "--results", str(path), "--detections"]
    assert main(arguments) == 0
    project = read_project(study)
    features = json.loads(project.results_of(project.images[0]).read_text())["features"]
    assert [f["properties"]["classification"]["name"] for f in features] == ["Tumor", "Stroma"]
    assert features[0]["properties"]["objectType"] == "detection"
    assert features[0]["properties"]["measurements"]["Area um^2"] == 40 * 60
    assert "Hematoxylin OD mean" in features[0]["properties"]["measurements"]
    capsys.readouterr()
    assert main(arguments) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0


def test_a_changed_script_is_not_replaced(study):
    project = read_project(study)
    export, _ = project.write_scripts()
    project.write_scripts()
    export.write_text("println 'mine'")
    assert main(["qupath", str(study), "--scripts"]) == 2
    assert export.read_text() == "println 'mine'"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{}", "lists no images"),
        ("not json", "not valid JSON"),
        (json.dumps({"images": [entry("../../x", "file:/a")]}), "has the ID"),
        (json.dumps({"images": [entry(1, "file:/a"), entry(1, "file:/b")]}), "same ID"),
        (json.dumps({"images": [entry(1, "file:/nowhere/a.svs")]}), "no slide of"),
    ],
)
def test_bad_projects_end_with_2_and_one_line(tmp_path, text, found, capsys):
    (tmp_path / "project.qpproj").write_text(text)
    before = sorted(tmp_path.iterdir())
    assert main(["qupath", str(tmp_path / "project.qpproj"), "--save", str(tmp_path / "n.sparseseg")]) == 2
    error = capsys.readouterr().err
    assert found in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_result_of_another_slide_is_refused(study, tmp_path, capsys):
    other = tmp_path / "other.tif"
    tifffile.imwrite(other, np.zeros((300, 400, 3), np.uint8), photometric="rgb", resolution=(20000, 20000))
    with Session(()) as session:
        path = prediction(tmp_path / "p.ome.zarr", session.open(other))
    assert main(["qupath", str(study), "--results", str(path)]) == 2
    assert "was made of no slide" in capsys.readouterr().err
    assert not (study.parent / "napari-sparseseg").exists()


GROOVY = shutil.which("groovy")
STAND_INS = Path(__file__).parent / "helpers" / "groovy"


def run_in_project(study, script, *opened):
    """Run a script as QuPath does, with Groovy, over a stand-in for its project; what it printed."""
    java = Path(os.path.realpath(shutil.which("java") or "")).parent.parent
    environment = {"JAVA_HOME": str(java), **os.environ}
    command = [GROOVY, "-cp", STAND_INS, STAND_INS / "RunInProject.groovy", study.parent, script, *opened]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(GROOVY is None, reason="needs the program groovy (apt-get install groovy)")
@pytest.mark.parametrize("opened", [(), ("1",)], ids=["no image open", "image open"])
def test_the_scripts_run_in_groovy_and_add_nothing_twice(study, tmp_path, opened):
    """Over a stand-in for QuPath's project: the language is tested, not QuPath."""
    with Session(()) as session:
        path = prediction(tmp_path / "p.ome.zarr", session.open(study.parent.parent / "my case.tif"))
    assert main(["qupath", str(study), "--results", str(path)]) == 0
    project = read_project(study)
    export, importing = project.write_scripts()
    (study.parent / "data").mkdir()
    drawn = [{"type": "Feature", "properties": {"objectType": kind}} for kind in ("annotation", "cell")]
    (study.parent / "open.json").write_text(json.dumps(drawn))
    if not opened:
        (study.parent / "data" / "1.json").write_text(json.dumps(drawn))
    assert "my case.tif: 2 objects" in run_in_project(study, importing, *opened)
    assert not project.results_of(project.images[0]).exists()
    assert "Results of 0 images" in run_in_project(study, importing, *opened)
    kept = json.loads((study.parent / "data" / "1.json").read_text())
    assert [f["properties"]["objectType"] for f in kept] == ["annotation", "cell", "annotation", "annotation"]
    assert "Annotations of 1 images" in run_in_project(study, export, *opened)
    written = json.loads(project.annotations_of(project.images[0]).read_text())
    assert [f["properties"]["objectType"] for f in written["features"]] == ["annotation"] * 3
    assert [path.name for path in project.annotations_of(project.images[0]).parent.iterdir()] == ["1.geojson"]
