"""Encoders from a hub: a server on this machine speaks its protocol, and a fresh process downloads from it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import safetensors.torch
import timm

NAME = "pathology/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHILD = """
import json, sys, torch
from napari_sparseseg.errors import ModelError
from napari_sparseseg.learning.encoders import Encoder, encoder_info
info = encoder_info("hf-hub:pathology/tiny")
print(json.dumps({"licence": info.licence, "megabytes": info.megabytes, "source": info.source}), flush=True)
try:
    encoder = Encoder("hf-hub:pathology/tiny", 3)
except ModelError as error:
    sys.exit(str(error))
print(json.dumps([float(m.sum()) for m in encoder(torch.ones(1, 3, 64, 64) / 2)]))
"""


class Hub(ThreadingHTTPServer):
    """Serves one repository; remembers what was asked for."""

    def __init__(self, files: dict[str, bytes], stated: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.files, self.stated, self.asked = files, stated, []


class _Answers(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        hub.asked.append((self.command, path))
        about = {"id": NAME, "sha": COMMIT, "tags": [], "siblings": [], "cardData": {
            "license": "other", "license_name": "tissue-licence", "license_link": "LICENSE.md"}}  # fmt: skip
        name = path.rsplit("/", 1)[-1]
        content = json.dumps(about).encode() if path == f"/api/models/{NAME}" else hub.files.get(name)
        self.send_response(404 if content is None else 200)
        content = content or b""
        self.send_header("Content-Length", str(len(content)))
        if name in hub.stated:
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hub.stated[name]}"')
            self.send_header("X-Linked-Etag", f'"{hub.stated[name]}"')
            self.send_header("X-Linked-Size", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing on the test's output."""


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
    hub = Hub(files, stated)
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path)}
    environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, timeout=120
        )
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
    return done, hub


def test_licence_and_size_are_told_before_weights_are_fetched_and_checked(network, tmp_path):
    done, hub = serve(network, tmp_path, honest=True)
    assert done.returncode == 0, done.stderr
    about, sums = map(json.loads, done.stdout.splitlines())
    assert about["licence"] == "tissue-licence, LICENSE.md"
    assert about["megabytes"] == pytest.approx(sum(p.numel() for p in network.parameters()) * 4e-6)
    assert len(sums) >= 3
    asked = [path for _, path in hub.asked]
    assert asked.index(f"/api/models/{NAME}") < min(k for k, p in enumerate(asked) if p.endswith(".safetensors"))


def test_weights_that_are_not_what_the_hub_states_are_removed(network, tmp_path):
    done, _ = serve(network, tmp_path, honest=False)
    assert done.returncode == 1
    assert "is not what the hub says it is" in done.stderr
    assert not list(tmp_path.rglob("*.safetensors"))
