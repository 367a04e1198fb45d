"""The HTML report of a project: what it says, that hostile names stay text, that nothing is loaded from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import tifffile

from napari_sparseseg import CleanUp, Session
from napari_sparseseg.cli import main
from napari_sparseseg.config import make_classes
from napari_sparseseg.geometry import Box, Frame, Placement
from napari_sparseseg.io.ome_zarr import PredictionStore, StoreLayout, create_store

EVIL = '<img src="http://x.test/a" onerror=alert(1)>'
CLASSES = tuple(make_classes([(EVIL, "#e6194b"), ("stroma & <b>", "#3cb44b")]))


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def project(tmp_path):
    """A project of one slide with two strokes and one prediction, half of each class."""
    slide = tmp_path / "case <i>7.tif"
    tifffile.imwrite(
        slide,
        np.full((300, 400, 3), 200, np.uint8),
        photometric="rgb",
        resolution=(20000, 20000),
        resolutionunit="CENTIMETER",
    )
    with Session(CLASSES) as session:
        opened = session.open(slide)
        session.annotations.paint([(100, 50), (100, 300)], 8, 1)
        session.annotations.paint([(200, 50), (200, 300)], 8, 2)
        session.save(tmp_path / "study.sparseseg")
        fingerprint, mpp = opened.fingerprint, opened.mpp
    labels = np.ones((150, 200), np.uint8)
    labels[:, 100:] = 2
    folder = tmp_path / "study.sparseseg" / "predictions"
    placement = Placement(Frame((2.0, 2.0)), mpp)
    record = {"slide": fingerprint, "downsample": [2.0, 2.0], "mpp": list(mpp)}
    create_store(folder / "case.ome.zarr", StoreLayout(labels.shape, placement, CLASSES), record)
    store = PredictionStore(folder / "case.ome.zarr")
    store.write(Box(0, 0, 2048, 2048), labels, None)
    store.build_pyramid()
    return tmp_path / "study.sparseseg"


def test_the_page_has_the_project_and_escapes_every_name(project, capsys):
    assert main(["report", str(project)]) == 0
    out = project.with_suffix(".html")
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    shown = " ".join(page.text)
    assert EVIL in shown
    assert "stroma & <b>" in shown
    assert "case <i>7.tif" in shown
    assert shown.count("50.0") == 2
    assert f"{150 * 100 * 1e-6:,.4f}" in shown  # mm2 at 1 um per label pixel
    assert "no model yet" in shown
    assert set(page.tags).isdisjoint({"script", "b", "i", "link", "iframe"})
    sources = [value for tag, name, value in page.attributes if name in ("src", "href")]
    assert len(sources) == 2
    assert all(value.startswith("data:image/jpeg;base64,") for value in sources)
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert "http:" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", text).replace("http://x.test/a", "")


def test_a_cleaned_image_is_shown_beside_what_was_predicted(project):
    result = project / "predictions" / "case.ome.zarr"
    with Session(()) as session:
        session.results.clean_up(result, CleanUp(smooth_um=3))
    assert main(["report", str(project)]) == 0
    shown = Page(project.with_suffix(".html").read_text(encoding="utf-8")).text
    assert [text for text in shown if text.startswith("Areas in")] == [
        "Areas in case.ome.zarr", "Areas in case.ome.zarr, cleaned"
    ]  # fmt: skip
    assert "Predicted: case.ome.zarr, cleaned" in shown
    assert "300 × 400 px" not in shown
    assert any(text.startswith("400 × 300 px, 0.5 µm per pixel") for text in shown)


def test_the_report_leaves_the_project_alone_and_says_what_is_missing(project, tmp_path, capsys):
    before = {p: p.read_bytes() for p in project.rglob("*") if p.is_file()}
    (tmp_path / "case <i>7.tif").rename(tmp_path / "gone.tif")
    assert main(["report", str(project), "--output", str(tmp_path / "r.html")]) == 0
    assert "was not found" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "was not found" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in project.rglob("*") if p.is_file()} == before


def test_mistakes_end_with_2_and_one_line(project, tmp_path, capsys):
    (tmp_path / "there.html").write_text("mine")
    mistakes = [
        ([project, "--output", tmp_path / "there.html"], "exists"),
        ([tmp_path / "none.sparseseg", "--output", tmp_path / "r.html"], "not a project"),
        ([project, "--output", tmp_path / "r.pdf"], "endings"),
        ([project, "--output", tmp_path / "r.html", "--results", tmp_path / "none"], "there is no result"),
    ]
    for arguments, text in mistakes:
        assert main(["report", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert text in error
        assert error.count("\n") == 1
    assert (tmp_path / "there.html").read_text() == "mine"
    assert not (tmp_path / "r.html").exists()
