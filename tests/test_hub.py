"""Encoders from a hub: a server on this machine speaks its protocol, and a fresh process downloads from it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
import safetensors.torch
import timm

from napari_sparseseg.errors import ModelError
from napari_sparseseg.learning.encoder_info import encoder_info
from napari_sparseseg.learning.hub import stated_licence
from tests.helpers.hub_server import COMMIT, GATED, OTHER, Hub, at_hub, serving, surroundings

NAME = "pathology/tiny"
TIMM = "timm/test_resnet.r160_in1k"
CHILD = """
import json, sys, torch
from napari_sparseseg.errors import ModelError
from napari_sparseseg.learning.encoder_info import encoder_info
from napari_sparseseg.learning.encoders import Encoder
info = encoder_info("hf-hub:pathology/tiny")
about = {"licence": info.licence, "megabytes": info.megabytes, "source": info.source, "link": info.link}
print(json.dumps(about), flush=True)
try:
    encoder = Encoder("hf-hub:pathology/tiny", 3)
except ModelError as error:
    sys.exit(str(error))
print(json.dumps([float(m.sum()) for m in encoder(torch.ones(1, 3, 64, 64) / 2)]))
"""


@pytest.fixture(scope="module")
def network():
    return timm.create_model("test_resnet", pretrained=False)


def serve(network, tmp_path, *, honest):
    """What a process says that asks a hub for an encoder, and the hub."""
    weights = safetensors.torch.save(network.state_dict())
    config = {
        "architecture": "test_resnet",
        "num_classes": network.num_classes,
        "pretrained_cfg": {"input_size": [3, 160, 160]},
    }
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": weights}
    stated = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    if not honest:
        stated["model.safetensors"] = "0" * 64
    with serving(Hub(NAME, files, stated=stated, card=OTHER)) as hub:
        environment = {**os.environ, **surroundings(hub, tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, timeout=120
        )
    return done, hub


def test_licence_and_size_are_told_before_weights_are_fetched_and_checked(network, tmp_path):
    done, hub = serve(network, tmp_path, honest=True)
    assert done.returncode == 0, done.stderr
    about, sums = map(json.loads, done.stdout.splitlines())
    assert about["licence"] == "tissue-licence"
    assert about["link"] == f"{hub.address}/{NAME}"
    assert about["megabytes"] == pytest.approx(sum(p.numel() for p in network.parameters()) * 4e-6)
    assert len(sums) >= 3
    asked = [path for _, path in hub.asked]
    weights = min(k for k, p in enumerate(asked) if p.endswith(".safetensors"))
    assert asked.index(f"/api/models/{NAME}") < weights


def test_weights_that_are_not_what_the_hub_states_are_removed(network, tmp_path):
    done, _ = serve(network, tmp_path, honest=False)
    assert done.returncode == 1
    assert "differs from what the hub states" in done.stderr
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """The licence and link of a repository with this card; its hub's address is HUB in them."""

    def _ask(card, revision=""):
        with at_hub(Hub(NAME, {}, card=card), tmp_path, monkeypatch) as there:
            _ask.asked = there.asked
            return tuple(text.replace(there.address, "HUB") for text in stated_licence(NAME + revision))

    return _ask


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ({"license": "mit"}, ("mit", "HUB/pathology/tiny")),
        ({"license": "other", "license_name": "tissue-licence"}, ("tissue-licence", "HUB/pathology/tiny")),
        ({"license": "mit", "license_link": "https://example.org/l"}, ("mit", "https://example.org/l")),
        ({"license": "mit", "license_link": "LICENSE.md"}, ("mit", "HUB/pathology/tiny")),
        ({"license": "mit", "license_link": "file:///etc/passwd"}, ("mit", "HUB/pathology/tiny")),
        ({"license": "mit\x1b[2J\n\u202e" + "x" * 500}, ("mit\ufffd[2J \ufffd" + "x" * 191, "HUB/pathology/tiny")),
        ({}, ("not stated", "HUB/pathology/tiny")),
    ],
)
def test_the_card_is_told_as_one_plain_line_with_where_to_read_it(ask, card, expected):
    assert ask(card) == expected


def test_the_revision_asked_for_is_read(ask):
    assert ask({"license": "mit"}, f"@{COMMIT}")[0] == "mit"
    assert f"/api/models/{NAME}/revision/{COMMIT}" in [path for _, path in ask.asked]


@contextmanager
def tiny(tmp_path, monkeypatch, **settings):
    """A hub that has a network, too."""
    config = {"architecture": "test_resnet", "num_classes": 1000, "pretrained_cfg": {"input_size": [3, 160, 160]}}
    files = {"config.json": json.dumps(config).encode()}
    with at_hub(Hub(NAME, files, stated={"config.json": "a" * 64}, **settings), tmp_path, monkeypatch) as there:
        yield there


@pytest.mark.parametrize("scheme", ["hf-hub", "hf_hub"])
def test_a_network_of_the_hub_is_told_with_its_licence(tmp_path, monkeypatch, scheme, network):
    with tiny(tmp_path, monkeypatch, card={"license": "mit"}) as there:
        info = encoder_info(f"{scheme}:{NAME}")
    assert (info.licence, info.link, info.source) == ("mit", f"{there.address}/{NAME}", NAME)
    assert info.megabytes == pytest.approx(sum(p.numel() for p in network.parameters()) * 4e-6)


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_says_how_to_get_in(tmp_path, monkeypatch, status):
    with (
        tiny(tmp_path, monkeypatch, answers={"config.json": (status, GATED)}) as there,
        pytest.raises(ModelError) as told,
    ):
        encoder_info(f"hf-hub:{NAME}")
    assert str(told.value) == (
        f"{NAME} is gated, or otherwise closed to you ({status}). Ask for access and accept its conditions on "
        f"{there.address}/{NAME}, then log in with `hf auth login`, or set HF_TOKEN."
    )


@pytest.mark.parametrize(
    ("status", "headers", "told"),
    [
        (401, {}, "is not on the hub, or not for everyone (401). Check the name, or log in"),
        (403, {}, "is gated, or otherwise closed to you (403)"),
        (404, {"X-Error-Code": "RepoNotFound"}, "is not on the hub, or not for everyone (404)"),
        (500, {"X-Error-Message": "\x1b[2Jno"}, "cannot be looked up on the hub: "),
    ],
)
def test_a_repository_that_is_not_told_of(tmp_path, monkeypatch, status, headers, told):
    with (
        tiny(tmp_path, monkeypatch, answers={"": (status, headers)}),
        pytest.raises(ModelError) as raised,
    ):
        encoder_info(f"hf-hub:{NAME}")
    assert told in str(raised.value)
    assert str(raised.value).isprintable()


def test_a_name_the_hub_does_not_know(tmp_path, monkeypatch):
    refusal = (404, {"X-Error-Code": "RepoNotFound"})
    with (
        tiny(tmp_path, monkeypatch, answers={"config.json": refusal, "": refusal}),
        pytest.raises(ModelError, match=f"^{NAME} is not on the hub, or not for everyone"),
    ):
        encoder_info(f"hf-hub:{NAME}")


@pytest.mark.parametrize("name", ["test_resnet", f"hf-hub:{NAME}"])
def test_without_a_hub_only_what_is_here_already_can_be_used(tmp_path, monkeypatch, name):
    from huggingface_hub import constants

    with tiny(tmp_path, monkeypatch) as there:
        encoder_info(f"hf-hub:{NAME}")  # its description is kept
        gone = there.address.replace("127.0.0.1", "127.0.0.2")  # nobody is there
        monkeypatch.setattr(constants, "ENDPOINT", gone)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", gone + "/{repo_id}/resolve/{revision}/{filename}")
        repository = TIMM if name == "test_resnet" else NAME
        with pytest.raises(ModelError, match=f"{repository} cannot be looked up on the hub: .*Check name and network"):
            encoder_info(name)
        kept = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        (kept / "refs").mkdir(parents=True, exist_ok=True)
        (kept / "refs" / "main").write_text(COMMIT)
        (kept / "snapshots" / COMMIT).mkdir(parents=True, exist_ok=True)
        (kept / "snapshots" / COMMIT / "model.safetensors").write_bytes(b"")
        info = encoder_info(name)
    assert info.link == f"{gone}/{repository}"
    assert info.licence == ("apache-2.0" if name == "test_resnet" else "could not be looked up")
