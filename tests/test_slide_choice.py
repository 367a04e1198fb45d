"""Which image and which area of a file a session, a project, a worker and the shell open."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile

from napari_sparseseg import Session, load_model
from napari_sparseseg.cli import main
from napari_sparseseg.prediction.slide import run_prediction
from tests.helpers.slide_files import texture, write_svs
from tests.helpers.vendor_files import mrxs, scn

CELLS = [(r, c) for r in (2, 3) for c in (1, 2, 3)]


@pytest.fixture
def two_regions(tmp_path):
    path = tmp_path / "two.scn"
    scn(path, ((64, 64, 256, 320), (384, 512, 128, 192)))
    return path


def draw(session):
    session.annotations.paint([(20, 20), (60, 60)], 5, 1)
    return session.annotations.counts()


def without_crop(project):
    """The record of a slide as the versions wrote it that did not crop."""
    file = project / "project.json"
    state = json.loads(file.read_text())
    for record in state["slides"]:
        record.pop("crop", None)
        record.pop("image", None)
    file.write_text(json.dumps(state))


def test_a_project_remembers_which_image_of_a_file_was_annotated(tmp_path, two_regions):
    with Session(["a", "b"]) as session:
        session.open(two_regions, image=1)
        drawn = draw(session)
        first = session.open(two_regions, image=0)
        assert len(session.slides) == 2
        assert session.open(two_regions, image=0) is first
        session.save(tmp_path / "p.sparseseg")
    with Session.load(tmp_path / "p.sparseseg") as session:
        assert [slide.shape for slide in session.slides] == [(128, 192), (256, 320)]
        assert session.entries[0].annotations.counts() == drawn
        assert not any(session.entries[1].annotations.counts().values())


def test_projects_of_slides_that_were_not_cropped_keep_their_frame(tmp_path):
    path = tmp_path / "a.mrxs"
    canvas = mrxs(path, CELLS)
    project = tmp_path / "p.sparseseg"
    from napari_sparseseg import open_slide

    with Session(["a", "b"]) as session:
        session.add(open_slide(path, crop=False))
        assert session.slide.shape == canvas.shape[:2]
        drawn = draw(session)
        session.save(project)
    without_crop(project)
    with Session.load(project) as session:
        assert session.slide.shape == canvas.shape[:2]
        assert session.annotations.counts() == drawn
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for part in (path, path.with_suffix("")):
        part.rename(moved / part.name)
    without_crop(project)
    with Session.load(project) as session:
        assert session.slides == ()
        session.open(moved / "a.mrxs")  # found again by its fingerprint
        assert session.slide.shape == canvas.shape[:2]
        assert session.annotations.counts() == drawn


def test_new_projects_are_cropped(tmp_path):
    mrxs(tmp_path / "a.mrxs", CELLS)
    with Session(["a", "b"]) as session:
        session.open(tmp_path / "a.mrxs")
        draw(session)
        session.save(tmp_path / "p.sparseseg")
    with Session.load(tmp_path / "p.sparseseg") as session:
        assert session.slide.shape == (128, 192)


def test_a_worker_of_a_cluster_opens_the_same_image(tmp_path, two_regions):
    from distributed import LocalCluster

    from napari_sparseseg import open_slide

    with Session(["a", "b"]) as session:
        session.open(two_regions, image=1)
        draw(session)
        session.annotations.paint([(100, 100), (110, 150)], 5, 2)
        session.train(steps=1, wait=True)
        session.save_model(tmp_path / "m.safetensors")
        model = load_model(tmp_path / "m.safetensors")
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        open_slide(two_regions, image=1) as slide,
    ):
        here = run_prediction(slide, model, tmp_path / "here.ome.tif", tissue_only=False)
        there = run_prediction(
            slide, model, tmp_path / "there.ome.tif", tissue_only=False, scheduler=cluster.scheduler_address
        )
        np.testing.assert_array_equal(tifffile.imread(here.output), tifffile.imread(there.output))
        assert here.shape == (64, 96)


def test_info_of_another_image(two_regions, capsys):
    assert main(["info", str(two_regions), "--image", "1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["width"], facts["height"], facts["image"]) == (192, 128, 1)
    assert facts["images"][0] == {"name": "region 0", "width": 320, "height": 256}
    assert main(["info", str(two_regions), "--image", "7"]) == 2
    assert "no image 7; it has 0 to 1" in capsys.readouterr().err


def test_train_says_that_the_resolution_is_unknown_unless_it_is_given(tmp_path, capsys):
    path = tmp_path / "a.svs"
    write_svs(path, texture(256, 256), levels=1, mpp=0)
    from napari_sparseseg import Annotations

    annotations = Annotations((256, 256), ["a", "b"])
    annotations.paint([(40, 40), (90, 90)], 12, 1)
    annotations.paint([(200, 40), (150, 90)], 12, 2)
    annotations.save(tmp_path / "a.sparseseg")
    command = ["train", str(path), "--model", str(tmp_path / "m.safetensors"), "--steps", "1"]
    assert main(command) == 0
    assert "its um per px are unknown" in capsys.readouterr().out
    assert main([*command, "--mpp-of-slide", "0.5", "--overwrite"]) == 0
    assert "unknown" not in capsys.readouterr().out
