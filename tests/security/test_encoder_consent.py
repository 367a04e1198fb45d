"""Encoders are fetched for whoever asks for them by name, never because a project or a model file names one."""

from __future__ import annotations

import json
import socket

import pytest

from napari_sparseseg import Session
from napari_sparseseg.config import TrainConfig
from napari_sparseseg.errors import ModelError, TrainingError
from tests.helpers.data import two_textures, write_slide
from tests.helpers.model_files import model_parts, write_parts

FOREIGN = "hf-hub:somebody/network"


@pytest.fixture
def asked(monkeypatch):
    """Which encoders are made; nothing can be downloaded meanwhile."""
    from napari_sparseseg.learning import features

    names, real = [], features.Encoder

    def make(name, *args, **kwargs):
        names.append(name)
        if name != TrainConfig().encoder:
            raise ModelError("not in a test")
        return real(name, *args, **kwargs)

    def no_network(*args, **kwargs):
        raise AssertionError("somebody was called")

    monkeypatch.setattr(features, "Encoder", make)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    return names


def scribbled(folder, config):
    session = Session(["a", "b"], config=config)
    session.open(write_slide(folder / "a.tif", two_textures(256)))
    session.annotations.paint([(40, 20), (200, 90)], 6, 1)
    session.annotations.paint([(40, 160), (200, 240)], 6, 2)
    return session


def change(project, **settings):
    """What a stranger writes into the project file."""
    file = project / "project.json"
    data = json.loads(file.read_text())
    data["config"] |= settings
    file.write_text(json.dumps(data))


@pytest.fixture
def project(tmp_path):
    with scribbled(tmp_path, TrainConfig(patch_px=64, batch_size=1, device="cpu")) as session:
        session.save(tmp_path / "p")
    return tmp_path / "p.sparseseg"


@pytest.mark.parametrize("name", [FOREIGN, "resnet18", "resnet18@/etc/hostname", f"{FOREIGN}@/etc/hostname"])
def test_what_only_a_project_names_is_not_fetched(project, asked, name):
    change(project, encoder=name)
    with Session.load(project) as session:
        assert session.config.encoder == name
        for settings in ({}, {"seed": 3}):
            with pytest.raises(TrainingError, match="ask for them by name"):
                session.train(steps=1, wait=True, **settings)
            session.config = session.config.updated({"patch_px": 64, **settings})
        assert session.status.state == "idle"
        assert asked == []
        with pytest.raises(ModelError, match="not in a test"):
            session.train(steps=1, wait=True, encoder=name)
        assert asked == [name]
        session.train(steps=1, wait=True, encoder=TrainConfig().encoder)
        assert session.model is not None


def test_who_names_it_to_the_session_has_asked(tmp_path, project, asked):
    change(project, encoder=FOREIGN)
    (tmp_path / "new").mkdir()
    config = TrainConfig(encoder=FOREIGN)
    with scribbled(tmp_path / "new", config) as session, pytest.raises(ModelError, match="not in a test"):
        session.train(steps=1, wait=True)
    with Session.load(project) as session:
        session.config = session.config.updated({"encoder": "resnet18"})
        with pytest.raises(ModelError, match="not in a test"):
            session.train(steps=1, wait=True)
    assert asked == [FOREIGN, "resnet18"]


def test_a_model_in_the_project_brings_its_encoder(project, asked):
    with Session.load(project) as session:
        session.train(steps=1, wait=True)
    change(project, encoder=FOREIGN)
    asked.clear()
    with Session.load(project) as session:
        assert session.status.message == ""
        session.train(steps=1, wait=True)
        assert session.status.step >= 1
    assert asked == []


def test_a_model_without_an_encoder_brings_none(project, asked):
    with Session.load(project) as session:
        session.train(steps=1, wait=True, architecture="scratch")
    change(project, encoder=FOREIGN, architecture="pretrained")
    with Session.load(project) as session:
        assert session.model is not None
        with pytest.raises(TrainingError, match="ask for them by name"):
            session.train(steps=1, wait=True)
    assert asked == []


def test_going_on_from_a_model_file_does_not_begin_the_network_its_settings_name(project, asked):
    from napari_sparseseg.learning.learner import Learner
    from napari_sparseseg.learning.model import load_model

    with Session.load(project) as session:
        session.train(steps=1, wait=True, architecture="scratch")
        file = session.checkpoint
    header, data = model_parts(file)
    metadata = json.loads(header["__metadata__"]["recipe"])
    metadata["config"] |= {"architecture": "pretrained", "encoder": FOREIGN}
    write_parts(file, header | {"__metadata__": header["__metadata__"] | {"recipe": json.dumps(metadata)}}, data)
    model = load_model(file, device="cpu")
    learner = Learner(model.metadata.config, model.metadata.classes, model=model)
    assert learner.config.architecture == "scratch"
    assert learner.model is not None
    assert asked == []


@pytest.mark.parametrize(
    ("encoder", "downloads"),
    [
        ("tf_efficientnet_lite0", False), ("resnet18", True), ("resnet18@a.safetensors", False), (FOREIGN, True),
        (f"{FOREIGN}@a.safetensors", True), ("hf_hub:a/b@c", True), ("local-dir:/tmp@c", True),
        ("resnet18@//server/share/a", True), ("resnet18@\\\\server\\share\\a", True),
    ],
)  # fmt: skip
def test_which_encoders_the_user_is_asked_about(encoder, downloads):
    assert TrainConfig(encoder=encoder).downloads is downloads
    assert not TrainConfig(encoder=encoder, architecture="scratch").downloads
