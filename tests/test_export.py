"""Exported models against torch: onnxruntime as another program runs it, and bioimage.io's own test of its package."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
import tifffile
import torch

from napari_sparseseg.cli import main
from napari_sparseseg.config import ClassDef
from napari_sparseseg.errors import ModelError
from napari_sparseseg.learning.encoders import DEFAULT_ENCODER
from napari_sparseseg.learning.export import export_model
from napari_sparseseg.learning.features import InputScale
from napari_sparseseg.learning.model import Model
from napari_sparseseg.learning.model_file import ModelMetadata
from napari_sparseseg.learning.network import PlainUNet
from tests.helpers.networks import model_of, two_speed


def plain():
    torch.manual_seed(0)
    net = PlainUNet(3, 2, width=4)
    torch.nn.init.normal_(net.scores.weight, std=2)
    return net.eval()


NETWORKS = {"head": lambda: two_speed(share=0.0), "decoder": two_speed, "scratch": plain}


@pytest.fixture(scope="module")
def tissue(cmu_svs):
    return tifffile.imread(cmu_svs)[600:1240, 700:1340]


def run(path, pixels):
    """(h, w, C) to (K, h, w) by onnxruntime alone."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": np.moveaxis(pixels, -1, 0)[None].astype(np.float32)})[0][0]


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_gives_what_the_model_gives_at_any_size(name, tissue, tmp_path):
    model = model_of(NETWORKS[name]())
    path = export_model(model, tmp_path / "m.onnx")
    for h, w in ((640, 640), (192, 336)):
        whole = run(path, tissue[:h, :w])
        assert whole.shape == (2, h, w)
        assert whole[0].std() > 0.01
        # Normalised over four channels, where they hardly differ, rounding shows: 24 of 819,200 values by up to 4e-4.
        atol = 1e-3 if name == "scratch" else 1e-4
        np.testing.assert_allclose(whole, model.probabilities(tissue[:h, :w]), atol=atol)


def test_a_tile_with_its_halo_gives_what_the_whole_gives(tissue, tmp_path):
    path = export_model(model_of(two_speed()), tmp_path / "m.onnx")
    facts = {p.key: json.loads(p.value) for p in onnx.load(path).metadata_props}
    halo = -(-facts["halo"] // facts["multiple"]) * facts["multiple"]
    y = 288 - halo
    tile = run(path, tissue[y : 352 + halo, y : 352 + halo])
    inside = tile[:, halo : halo + 64, halo : halo + 64]
    np.testing.assert_allclose(inside, run(path, tissue)[:, 288:352, 288:352], atol=1e-4)
    assert facts["classes"] == ["gland", "stroma"]
    assert (facts["class_ids"], facts["mpp"], facts["channels"]) == ([3, 200], 1.0, ["R", "G", "B"])


def fluorescence():
    classes = (ClassDef(1, "2nd, <odd> name", "#e69f00"), ClassDef(2, "Zellkörper", "#56b4e9"))
    metadata = ModelMetadata(classes, 0.5, DEFAULT_ENCODER, channels=("DAPI", "Cy-5", "cy 5", "4"), dtype="uint16")
    return Model(metadata, two_speed(channels=4), InputScale((100.0,) * 4, (4000.0,) * 4))


def test_sixteen_bits_and_missing_pixels(tmp_path):
    model = fluorescence()
    pixels = np.random.default_rng(0).integers(0, 5000, (96, 128, 4)).astype(np.float32)
    pixels[3:9, 5:50, 1] = np.nan
    path = export_model(model, tmp_path / "m.onnx")
    np.testing.assert_allclose(run(path, pixels), model.probabilities(pixels), atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: model_of(two_speed()), id="colour"),
        pytest.param(fluorescence, id="fluorescence", marks=pytest.mark.slow),
    ],
)
def test_the_package_passes_the_test_of_bioimageio(make, tmp_path):
    path = export_model(make(), tmp_path / "model.zip")
    assert {"rdf.yaml", "model.onnx", "input.npy", "output.npy", "README.md"} <= {
        name.replace("bioimageio.yaml", "rdf.yaml") for name in zipfile.ZipFile(path).namelist()
    }
    # In a process without a network, as on a workstation in a hospital; the reports go to the folder of the test.
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise OSError('no network here')\n"
        "socket.getaddrinfo = refuse\n"
        "from bioimageio.core import test_model\n"
        "summary = test_model(sys.argv[1])\n"
        "print(summary.status); summary.status == 'passed' or print(summary.display())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=200, cwd=tmp_path
    )
    assert ended.stdout.split()[-1:] == ["passed"], ended.stdout[-4000:] + ended.stderr[-2000:]


def test_the_command(tmp_path, capsys):
    model = tmp_path / "m.safetensors"
    model_of(plain()).save(model)
    assert main(["export", str(model), str(tmp_path / "m.onnx"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == str(tmp_path / "m.onnx")
    assert main(["export", str(model), str(tmp_path / "m.tflite")]) == 2
    assert "neither in .onnx nor in .zip" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.safetensors"]


@pytest.mark.parametrize(("ending", "extra", "module"), [("onnx", "onnx", "onnx"), ("zip", "bioimageio", "bioimageio")])
def test_what_to_install_is_said(ending, extra, module, tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModelError, match=rf"napari-sparseseg\[{extra}\]"):
        export_model(model_of(plain()), tmp_path / f"m.{ending}")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match="cannot be written"):
        export_model(model_of(plain()), tmp_path / "absent" / "m.onnx")
