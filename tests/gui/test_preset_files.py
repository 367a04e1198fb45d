"""Presets of the panel's menu as a user reaches them: saved on one computer, loaded on another."""

from __future__ import annotations

import json

import pytest

from napari_sparseseg import Session, TrainConfig
from napari_sparseseg.config import make_classes
from tests.helpers.answers import answer_file, choose_entry
from tests.helpers.panel import names, open_slide, scribble
from tests.helpers.waiting import wait_until


def test_classes_and_settings_go_to_a_file_and_come_back(panel, tmp_path):
    panel.session.classes = make_classes([("tumour", "#e6194b"), ("stroma", "#3cb44b")])
    panel.train.settings.mpp.setValue(2.0)
    panel.train.balancing.setCurrentIndex(panel.train.balancing.findData("none"))
    asked = answer_file(tmp_path / "mine.json")
    choose_entry(panel.classes.presets, "Save preset…")
    assert asked == ["Save preset"]
    data = json.loads((tmp_path / "mine.json").read_text())
    assert [c["name"] for c in data["classes"]] == ["tumour", "stroma"]
    assert (data["training"]["balancing"], data["training"]["mpp"]) == ("none", 2.0)
    data["classes"].append({"id": 9, "name": "fat", "colour": "#ffe119"})
    data["training"]["seed"] = 11
    (tmp_path / "theirs.json").write_text(json.dumps(data))
    answer_file(tmp_path / "theirs.json")
    choose_entry(panel.classes.presets, "Load preset…")
    assert names(panel) == ["tumour", "stroma", "fat"]
    wait_until(lambda: panel.classes.table.rowCount() == 3, 10)
    assert panel.train.settings.seed.value() == 11
    panel.classes.undo.click()
    assert names(panel) == ["tumour", "stroma"]


def test_a_preset_that_cannot_be_used_says_so_in_the_panel(panel, tmp_path):
    (tmp_path / "bad.json").write_text('{"format": "napari-sparseseg preset", "version": 99}')
    before = names(panel)
    answer_file(tmp_path / "bad.json")
    choose_entry(panel.classes.presets, "Load preset…")
    assert "newer version" in panel.header.error.text.text()
    assert names(panel) == before


@pytest.fixture
def model(tmp_path, tiny_slide):
    with Session(["stripes", "dots"], config=TrainConfig(seed=4)) as session:
        session.open(tiny_slide)
        session.annotations.paint([(100, 50), (100, 300)], 10, 1)
        session.annotations.paint([(100, 700), (100, 950)], 10, 2)
        session.train(steps=1, wait=True)
        session.save_model(tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_the_classes_of_a_model_are_added_to_those_that_are_drawn(panel, model, tiny_slide):
    open_slide(panel, tiny_slide)
    scribble(panel)
    answer_file(model)
    choose_entry(panel.classes.presets, "Add the classes of a model…")
    assert names(panel) == ["tissue", "background", "stripes", "dots"]
    assert panel.session.model is None
    assert panel.session.config.seed == 0
