"""Links in a folder that somebody sent: nothing is written through them, and they cost no more than what they name."""

from __future__ import annotations

import json
import os
import shutil
import threading

import pytest

from napari_sparseseg import Annotations, Session
from napari_sparseseg.cli import main
from napari_sparseseg.config import TrainConfig
from napari_sparseseg.errors import AnnotationError, PredictionError, ProjectError, TrainingError
from napari_sparseseg.io.labels import write_labels
from napari_sparseseg.prediction.slide import run_prediction
from napari_sparseseg.prediction.slide.workspace import Journal
from napari_sparseseg.prediction.tiles import PredictionStopped
from napari_sparseseg.slides import open_slide
from tests.helpers.data import two_textures, write_slide
from tests.helpers.smooth_model import SmoothModel, write_tall_slide

pytestmark = pytest.mark.skipif(os.name == "nt", reason="making a link takes a right that Windows users rarely have")
CONFIG = TrainConfig(architecture="scratch", patch_px=64, batch_size=1, device="cpu")


@pytest.fixture
def slide(tmp_path):
    return write_slide(tmp_path / "a.tif", two_textures(256))


@pytest.fixture
def project(slide, tmp_path):
    with Session(["a", "b"], config=CONFIG) as session:
        session.open(slide)
        session.annotations.paint([(40, 20), (200, 90)], 6, 1)
        session.annotations.paint([(40, 160), (200, 240)], 6, 2)
        session.save(tmp_path / "p")
    return tmp_path / "p.sparseseg"


@pytest.fixture
def elsewhere(tmp_path):
    """A folder of the user's, with a file of every name that this program writes."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in ("model.safetensors", "secret"):
        (folder / name).write_text("mine")
    return folder


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def linked(path, target):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target, target_is_directory=target.is_dir())


@pytest.mark.parametrize("what", ["folder", "file", "dangling file"])
def test_a_model_is_neither_read_nor_written_through_a_link(project, elsewhere, what):
    before = contents(elsewhere)
    if what == "folder":
        linked(project / "models", elsewhere)
    else:
        linked(project / "models" / "model.safetensors", elsewhere / ("new" if "dang" in what else "model.safetensors"))
    with Session.load(project) as session:
        assert "its model is left out" in session.status.message
        assert "link" in session.status.message
        with pytest.raises(TrainingError, match=r"could not be saved.*link"):
            session.train(steps=1, wait=True)
        assert session.model is not None, "it is in memory"
        with pytest.raises(ProjectError, match="link"):
            session.save(project)
        session.save(project.with_name("own"))
    assert contents(elsewhere) == before
    assert (project.with_name("own.sparseseg") / "models" / "model.safetensors").is_file()
    with Session.load(project) as session:
        assert len(session.annotations.strokes) == 2


@pytest.mark.parametrize("tail", ["-wal", "-shm", "-journal", ".lock", ".part"])
def test_no_companion_of_an_annotation_file_is_written_through_a_link(project, elsewhere, tail):
    (kept,) = (project / "annotations").glob("*.sqlite")
    before = contents(elsewhere)
    linked(kept.with_name(kept.name + tail), elsewhere / "secret")
    with Session.load(project) as session:
        if session.entry is not None:
            try:
                session.annotations.paint([(9, 9), (90, 9)], 3, 1)
            except AnnotationError as error:
                assert "in memory only" in str(error)  # noqa: PT017 - refused, or written where it belongs
        else:
            assert "left out" in session.status.message
    assert contents(elsewhere) == before


def test_a_project_file_that_is_a_link_is_no_project(project, elsewhere):
    linked(project / "project.json", elsewhere / "secret")
    with pytest.raises(ProjectError, match="link"):
        Session.load(project)
    assert (elsewhere / "secret").read_text() == "mine"


def test_annotations_are_neither_read_nor_written_through_a_linked_folder(project, elsewhere):
    before = contents(elsewhere)
    linked(project / "annotations", elsewhere)
    with Session.load(project) as session:
        assert "link" in session.status.message
        assert not session.entries
    assert contents(elsewhere) == before


@pytest.mark.parametrize("name", ["a.ome.tif.partial", ".a.csv.partial", "a.ome.tif.partial/prediction.ome.zarr"])
def test_no_prediction_is_written_through_a_link(slide, project, elsewhere, name):
    before = contents(elsewhere)
    folder = project / "predictions"
    (folder / name).parent.mkdir(exist_ok=True)
    linked(folder / name, elsewhere / "secret" if name.endswith("csv.partial") else elsewhere)
    with open_slide(slide) as opened, pytest.raises(PredictionError, match="link"):
        run_prediction(opened, SmoothModel(), folder / "a.ome.tif", csv=folder / "a.csv", tile=128)
    assert contents(elsewhere) == before


def test_no_label_image_is_written_through_a_link(elsewhere, tmp_path):
    before = contents(elsewhere)
    made = Annotations((64, 64), ["a"])
    made.paint([(9, 9)], 5, 1)
    linked(tmp_path / "l.zarr.part.zarr", elsewhere)
    linked(tmp_path / "l.tif.part.tif", elsewhere / "secret")
    write_labels(made, tmp_path / "l.zarr")
    write_labels(made, tmp_path / "l.tif")
    assert contents(elsewhere) == before
    assert not (tmp_path / "l.zarr").is_symlink()


def test_recovered_work_with_links_is_not_followed_when_it_is_thrown_away(slide, elsewhere):
    before = contents(elsewhere)
    session = Session(autosave=True)
    session.open(slide)
    folder = session.project
    linked(folder / "models", elsewhere)
    session.close()
    assert contents(elsewhere) == before


ARRAY = "prediction.ome.zarr/labels/classes/0"


def stopped(slide, out, **options):
    """A prediction that was stopped after its first shards."""
    stop = threading.Event()

    def watch(_):
        if Journal(out.with_name(out.name + ".partial") / "journal.jsonl").done:
            stop.set()

    with open_slide(slide) as opened, pytest.raises(PredictionStopped):
        run_prediction(opened, SmoothModel(delay=0.02), out, tile=256, stop=stop, progress=watch, **options)
    return out.with_name(out.name + ".partial")


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("0.4", ARRAY),
        ("0.4", f"{ARRAY}/3"),
        ("0.4", f"{ARRAY}/0/0"),
        ("0.4", f"{ARRAY}/.zarray"),
        ("0.4", "prediction.ome.zarr/labels"),
        ("0.5", f"{ARRAY}/c"),
        ("0.5", f"{ARRAY}/zarr.json"),
        ("0.5", f"{ARRAY}/not/there/yet"),
    ],
)
def test_no_unfinished_prediction_goes_on_through_a_link_in_it(elsewhere, tmp_path, version, name):
    """A folder or file of the store leads elsewhere: nothing there is written, and the link is named."""
    tall = write_tall_slide(tmp_path / "tall.tif")
    out = tmp_path / "a.ome.zarr"
    link = stopped(tall, out, ome_zarr=version) / name
    before = contents(elsewhere)
    link.parent.mkdir(parents=True, exist_ok=True)
    linked(link, elsewhere / "secret" if link.is_file() else elsewhere)
    for resume in (True, False):
        with open_slide(tall) as opened, pytest.raises(PredictionError, match=rf"{name} is a link to elsewhere"):
            run_prediction(opened, SmoothModel(), out, tile=256, ome_zarr=version, resume=resume)
    assert contents(elsewhere) == before
    link.unlink()
    with open_slide(tall) as opened:
        result = run_prediction(opened, SmoothModel(), out, tile=256, ome_zarr=version)
    assert result.shards_resumed == 0
    assert contents(elsewhere) == before


def test_the_shell_names_the_link_and_ends_with_2(project, elsewhere, tmp_path, capsys):
    with Session.load(project) as session:
        session.train(steps=1, wait=True)
    out = tmp_path / "out"
    inside = out / "a.ome.zarr.partial" / ARRAY
    inside.mkdir(parents=True)
    (inside / "0").symlink_to(elsewhere, target_is_directory=True)
    before = contents(elsewhere)
    assert main(["predict", str(project), "--output", str(out), "--resume"]) == 2
    assert f"{inside / '0'} is a link to elsewhere; remove it" in capsys.readouterr().err
    assert contents(elsewhere) == before


def test_no_unfinished_prediction_names_arrays_outside_of_it(tmp_path):
    """Its metadata say where its arrays lie, and could say ``..``."""
    tall = write_tall_slide(tmp_path / "tall.tif")
    out = tmp_path / "a.ome.zarr"
    folder = stopped(tall, out)
    victim = tmp_path / "victim"
    shutil.copytree(folder / ARRAY, victim)
    before = contents(victim)
    attributes = (folder / ARRAY).parent / ".zattrs"
    said = json.loads(attributes.read_text())
    for path in (os.path.relpath(victim, attributes.parent), str(victim), f"0/../{os.path.relpath(victim, folder)}"):
        said["multiscales"][0]["datasets"][0]["path"] = path
        attributes.write_text(json.dumps(said))
        with open_slide(tall) as opened, pytest.raises(PredictionError, match="not a prediction of this program"):
            run_prediction(opened, SmoothModel(), out, tile=256, resume=True)
    assert contents(victim) == before
