"""Encoders from a hub: a server on this machine speaks its protocol, and a fresh process downloads from it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pytest
import safetensors.torch
import timm

from tests.helpers.hub_server import OTHER, Hub, serving, surroundings

NAME = "pathology/tiny"
LICENCE = b"For tissue only.\n"
CHILD = """
import json, sys, torch
from napari_sparseseg.errors import ModelError
from napari_sparseseg.learning.encoders import Encoder, encoder_info
info = encoder_info("hf-hub:pathology/tiny")
about = {"licence": info.licence, "megabytes": info.megabytes, "source": info.source, "text": info.licence_text}
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
    files["LICENSE.md"] = LICENCE
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
    assert about["licence"] == "tissue-licence, LICENSE.md"
    assert about["text"] == "For tissue only."
    assert about["megabytes"] == pytest.approx(sum(p.numel() for p in network.parameters()) * 4e-6)
    assert len(sums) >= 3
    asked = [path for _, path in hub.asked]
    weights = min(k for k, p in enumerate(asked) if p.endswith(".safetensors"))
    assert asked.index(f"/api/models/{NAME}") < asked.index(f"/{NAME}/resolve/main/LICENSE.md") < weights


def test_weights_that_are_not_what_the_hub_states_are_removed(network, tmp_path):
    done, _ = serve(network, tmp_path, honest=False)
    assert done.returncode == 1
    assert "is not what the hub says it is" in done.stderr
    assert not list(tmp_path.rglob("*.safetensors"))
