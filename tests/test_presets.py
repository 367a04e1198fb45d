"""Presets: what comes back from a file, what a session makes of it, and files that anybody may have written."""

from __future__ import annotations

import json

import pytest

from napari_sparseseg import Session, TrainConfig
from napari_sparseseg.cli import main
from napari_sparseseg.config import make_classes
from napari_sparseseg.errors import SparseSegError
from napari_sparseseg.session.presets import read_preset
from tests.helpers.smooth_model import patches_slide

CLASSES = make_classes([("tumour", "#e6194b"), ("stroma", "#3cb44b"), ("fat", "#ffe119")])
CONFIG = TrainConfig(balancing="mini-batch", mpp=2.0, encoder="hf-hub:owner/name", seed=7, batch_size=8)


@pytest.fixture
def path(tmp_path):
    with Session(CLASSES, config=CONFIG) as session:
        session.presets.save(tmp_path / "tumour.json")
    return tmp_path / "tumour.json"


def test_everything_but_the_device_comes_back(path, tmp_path):
    preset = read_preset(path)
    assert preset.classes == CLASSES
    assert preset.config == CONFIG
    with Session(config=TrainConfig(device="cpu")) as session:
        session.presets.load(path)
        assert session.classes == CLASSES
        assert session.config == CONFIG.updated({"device": "cpu"})
        session.presets.save(tmp_path / "again.json")
    assert json.loads(path.read_text()) == json.loads((tmp_path / "again.json").read_text())
    assert "device" not in path.read_text()


def test_another_file_is_not_replaced_unless_told(path):
    before = path.read_text()
    with Session() as session:
        with pytest.raises(SparseSegError, match="exists already"):
            session.presets.save(path)
        assert path.read_text() == before
        session.presets.save(path, overwrite=True)
        session.presets.save(path)
        with pytest.raises(SparseSegError, match="cannot write"):
            session.presets.save(path.parent / "none" / "a.json")


def test_labels_keep_their_classes_which_are_matched_by_name(path):
    with Session(["Fat", "lymphocytes"]) as session:
        session.add(patches_slide())
        session.annotations.paint([(50, 50)], 10, 1)
        before = session.classes
        session.presets.load(path, settings=False)
        assert [(c.id, c.name) for c in session.classes] == [
            (1, "Fat"), (2, "lymphocytes"), (3, "tumour"), (4, "stroma"),
        ]  # fmt: skip
        assert session.annotations.counts()[1] > 0
        assert session.config == TrainConfig()
        session.history.undo()
        assert session.classes == before


def test_the_encoder_of_a_file_is_not_fetched_without_being_asked_for(path):
    with Session() as session:
        session.add(patches_slide())
        session.presets.load(path)
        session.annotations.paint([(50, 50)], 10, 1)
        session.annotations.paint([(250, 250)], 10, 2)
        with pytest.raises(SparseSegError, match="hf-hub:owner/name"):
            session.train(steps=1, wait=True)


def test_a_model_file_gives_its_classes_and_settings(tmp_path, tiny_slide):
    with Session(["stripes", "dots"], config=TrainConfig(balancing="none")) as session:
        session.open(tiny_slide)
        session.annotations.paint([(100, 50), (100, 300)], 10, 1)
        session.annotations.paint([(100, 700), (100, 950)], 10, 2)
        session.train(steps=1, wait=True)
        session.save_model(tmp_path / "m.safetensors")
        classes = session.classes
    with Session() as session:
        session.presets.load(tmp_path / "m.safetensors")
        assert session.classes == classes
        assert session.config.balancing == "none"
        assert session.model is None


BAD = {
    "no JSON": "{",
    "a list": "[]",
    "another format": '{"format": "x"}',
    "a newer version": '{"format": "napari-sparseseg preset", "version": 2}',
    "no version": '{"format": "napari-sparseseg preset", "version": true}',
    "deep": "[" * 100_000,
}
CHANGES = {
    "no classes": {"classes": []},
    "a table of classes": {"classes": {"a": 1}},
    "no settings": {"training": []},
    "an id of 0": {"classes": [{"id": 0, "name": "a", "colour": "#000000"}]},
    "an id that is a truth": {"classes": [{"id": True, "name": "a", "colour": "#000000"}]},
    "an id twice": {"classes": [{"id": 1, "name": n, "colour": "#000000"} for n in "ab"]},
    "a name twice": {"classes": [{"id": n, "name": "a", "colour": "#000000"} for n in (1, 2)]},
    "a long name": {"classes": [{"id": 1, "name": "a" * 501, "colour": "#000000"}]},
    "no colour": {"classes": [{"id": 1, "name": "a", "colour": "red"}]},
    "a name that is a number": {"classes": [{"id": 1, "name": 1, "colour": "#000000"}]},
    "more in a class": {"classes": [{"id": 1, "name": "a", "colour": "#000000", "run": "x"}]},
    "an unknown setting": {"training": {"shell": "rm"}},
    "a huge patch": {"training": {"patch_px": 1_000_000}},
    "a rate that is none": {"training": {"learning_rate": float("nan")}},
    "a resolution in words": {"training": {"mpp": "fine"}},
    "a balancing in a list": {"training": {"balancing": ["none"]}},
    "a long encoder": {"training": {"encoder": "a" * 2000}},
    "an encoder with an escape": {"training": {"encoder": "a\x1b[2J"}},
    "an encoder that is nothing": {"training": {"encoder": ""}},
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_what_is_no_preset_is_said_in_one_line(text, tmp_path):
    (tmp_path / "bad.json").write_text(text)
    with Session() as session:
        before = session.classes
        with pytest.raises(SparseSegError, match="no preset") as found:
            session.presets.load(tmp_path / "bad.json")
        assert session.classes == before
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 400


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_value_that_cannot_be_used_changes_nothing(change, path):
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, **change}))
    with Session() as session:
        before = session.classes, session.config
        with pytest.raises(SparseSegError, match="no preset that can be used") as found:
            session.presets.load(path)
        assert (session.classes, session.config) == before
    assert "\n" not in str(found.value)


def test_a_file_that_is_missing_or_huge(tmp_path):
    with pytest.raises(SparseSegError, match="no such file"):
        read_preset(tmp_path / "none.json")
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(SparseSegError, match="bytes"):
        read_preset(tmp_path / "huge.json")


def drawn(tmp_path, tiny_slide):
    """Annotations with a class of the preset and one that it lacks."""
    with Session(["dots", "other"]) as session:
        session.open(tiny_slide)
        session.annotations.paint([(100, 50), (100, 300)], 10, 1)
        session.annotations.paint([(100, 700), (100, 950)], 10, 2)
        session.annotations.to_geojson(tmp_path / "a.geojson")
    return tmp_path / "a.geojson"


def test_the_shell_trains_with_a_preset(tmp_path, tiny_slide, capsys):
    with Session(["fat", "dots"], config=TrainConfig(balancing="none", seed=5, mpp=2.0)) as session:
        session.presets.save(tmp_path / "p.json")
    said = ["train", str(tiny_slide), "--annotations", str(drawn(tmp_path, tiny_slide)), "--steps", "1", "--json"]
    preset = ["--preset", str(tmp_path / "p.json"), "--model", str(tmp_path / "m.safetensors")]
    assert main([*said, *preset, "--seed", "6"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == ["fat", "dots", "other"]
    found = read_preset(tmp_path / "m.safetensors").config
    assert (found.balancing, found.seed, found.mpp) == ("none", 6, 2.0)
    (tmp_path / "p.json").write_text("{}")
    assert main([*said, *preset, "--overwrite"]) == 2
    assert "no preset" in capsys.readouterr().err


def test_the_shell_does_not_ask_the_network_for_the_encoder_of_a_preset(tmp_path, tiny_slide, capsys):
    with Session(config=TrainConfig(encoder="resnet18")) as session:
        session.presets.save(tmp_path / "p.json")
    said = ["train", str(tiny_slide), "--preset", str(tmp_path / "p.json"), "--model", str(tmp_path / "m.safetensors")]
    assert main(said) == 2
    assert "add --encoder resnet18 to agree" in capsys.readouterr().err
