"""Model files from strangers: what they describe is compared with what they hold before anything is allocated."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from napari_sparseseg import Session
from napari_sparseseg.cli import main
from napari_sparseseg.config import TrainConfig, make_classes
from napari_sparseseg.errors import ModelError
from napari_sparseseg.learning.features import InputScale
from napari_sparseseg.learning.model import Model, load_model, read_metadata
from napari_sparseseg.learning.model_file import ModelMetadata
from napari_sparseseg.learning.network import PlainUNet
from tests.helpers.data import ROOT, two_textures, write_slide
from tests.helpers.model_files import model_file, model_parts, write_parts

SCALE = {"low": [0, 0, 0], "high": [255, 255, 255]}


def vit(architecture="vit_tiny_patch16_224", **arguments):
    return {
        "kind": "pretrained", "architecture": architecture, "arguments": arguments, "context": 3, "hidden": 8,
        "decoder": [64], "tuned": True, "share": 0.5,
    }  # fmt: skip


HOSTILE = {
    "wide": {"kind": "scratch", "norm": "channels", "width": 1024, "depth": 8},
    "large": vit(embed_dim=1536, depth=20),
    "26 TB": vit(embed_dim=8192, depth=8192),
    "narrow and deep": vit(embed_dim=3, num_heads=1, depth=8192),
    "many places": vit(img_size=8192, patch_size=1),
    "many windows": vit("swin_tiny_patch4_window7_224", img_size=8192),
    "giant by name": vit("vit_giant_patch14_dinov2"),
    "no heads": vit(num_heads=0),
    "no patch": vit(patch_size=0),
    "heads that do not divide": vit(embed_dim=100),
    "half a block": vit(depth=2.5),
    "decoder": vit() | {"decoder": [1024] * 100_000},
    "argument of another": vit("resnet18", embed_dim=8),
}
MOST_MEMORY, MOST_SECONDS = 300 << 20, 30.0


@pytest.fixture
def hostile(tmp_path):
    """A file for each: less than 1 MB, most less than 1 kB."""
    metadata = ModelMetadata(make_classes(["a", "b"]), 1.0, "x").to_json()
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name, net in HOSTILE.items():
        model_file(folder / f"{name}.safetensors", metadata | {"extra": {"net": net, "input": SCALE}})
    return folder


LOADING = """
    import json, resource, sys, time
    from pathlib import Path
    from napari_sparseseg.errors import ModelError
    from napari_sparseseg.learning.model import load_model
    import timm, torch
    from napari_sparseseg.learning.encoders import Encoder
    Encoder("vit_tiny_patch16_224", load=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in sorted(Path(sys.argv[1]).iterdir()):
        began = time.process_time()
        try:
            load_model(path, device="cpu")
        except ModelError as error:
            said = str(error)
        taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
        print(json.dumps([path.stem, said, time.process_time() - began, taken]), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory in kB, RLIMIT_AS and /proc")
def test_what_a_small_file_describes_is_not_allocated(hostile):
    limited = "from tests.helpers.limits import limit_memory\nlimit_memory(4 << 30)\n"
    ended = subprocess.run(
        [sys.executable, "-c", limited + textwrap.dedent(LOADING), str(hostile)],
        capture_output=True, text=True, timeout=250, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    print(*found, sep="\n")
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert [name for name, *_ in found] == sorted(HOSTILE)
    assert all(taken < MOST_MEMORY for *_, taken in found)
    assert all(seconds < MOST_SECONDS for *_, seconds, _ in found)
    assert all(len(said) < 800 and "\n" not in said for _, said, *_ in found)


@pytest.mark.parametrize("name", ["no heads", "no patch", "heads that do not divide", "wide"])
def test_such_a_model_costs_its_project_the_model_only(hostile, tmp_path, capsys, name):
    slide = write_slide(tmp_path / "a.tif", two_textures(256))
    with Session(["a", "b"]) as session:
        session.open(slide)
        session.annotations.paint([(10, 10), (20, 200)], 5, 1)
        session.save(tmp_path / "p")
    file = hostile / f"{name}.safetensors"
    (tmp_path / "p.sparseseg" / "models" / "model.safetensors").write_bytes(file.read_bytes())
    with Session.load(tmp_path / "p.sparseseg") as session:
        assert "its model is left out" in session.status.message
        assert session.model is None
        assert len(session.annotations.strokes) == 1
    assert main(["predict", str(slide), "--model", str(file), "--output", str(tmp_path / "o.ome.tif")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("napari-sparseseg: ")


@pytest.fixture
def good(tmp_path):
    """A whole model in a few kilobytes."""
    metadata = ModelMetadata(make_classes(["a", "b"]), 1.0, "x", config=TrainConfig(architecture="scratch"))
    Model(metadata, PlainUNet(3, 2, 1, 1), InputScale.for_rgb()).save(tmp_path / "good.safetensors")
    return tmp_path / "good.safetensors"


RECIPES = {
    "mpp NaN": {"mpp": math.nan},
    "mpp infinite": {"mpp": math.inf},
    "mpp huge": {"mpp": 1e308},
    "mpp negative": {"mpp": -1},
    "mpp 0": {"mpp": 0},
    "mpp text": {"mpp": "1"},
    "mpp truth": {"mpp": True},
    "step text": {"step": {"a": 1}},
    "step negative": {"step": -1},
    "step huge": {"step": 10**400},
    "channels of numbers": {"channels": [1, 2, 3]},
    "channel of markup, very long": {"channels": ["<b>" * 10_000, "b", "c"]},
    "encoder a list": {"encoder": ["hf-hub:evil/x"]},
    "dtype a table": {"dtype": {}},
    "metrics a list": {"metrics": [1]},
    "score of text": {"metrics": {"balanced_dice": "x"}},
    "sources of text": {"sources": ["a"]},
    "extra text": {"extra": "x"},
    "versions text": {"extra": {"versions": "x"}},
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_of_wrong_kinds_is_refused_although_its_weights_are_whole(good, capsys, name):
    assert read_metadata(good).step == 0
    assert load_model(good, device="cpu").metadata.mpp == 1.0
    header, data = model_parts(good)
    metadata = json.loads(header["__metadata__"]["recipe"])
    header["__metadata__"]["recipe"] = json.dumps(metadata | RECIPES[name])
    write_parts(good, header, data)
    with pytest.raises(ModelError) as caught:
        load_model(good, device="cpu")
    assert len(str(caught.value)) < 800
    assert main(["info", str(good)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


TENSORS = {
    "shape larger than its bytes": lambda t, _: t.update(shape=[9999, *t["shape"][1:]]),
    "negative shape": lambda t, _: t.update(shape=[-1, *t["shape"][1:]]),
    "shape of text": lambda t, _: t.update(shape="ab"),
    "many dimensions": lambda t, _: t.update(shape=[1] * 5000),
    "long integers": lambda t, _: t.update(shape=[10**4000] * 5),
    "unknown kind": lambda t, _: t.update(dtype="OBJECT"),
    "beside the file": lambda t, n: t.update(data_offsets=[n, n + 4 * math.prod(t["shape"])]),
    "before the file": lambda t, _: t.update(data_offsets=[-8, -8 + 4 * math.prod(t["shape"])]),
    "bytes of another": lambda t, _: t.update(data_offsets=[4, 4 + 4 * math.prod(t["shape"])]),
    "no offsets": lambda t, _: t.pop("data_offsets"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_header_that_lies_about_its_tensors_is_refused_unread(good, name):
    header, data = model_parts(good)
    first = min((k for k in header if k != "__metadata__"), key=lambda k: header[k]["data_offsets"])
    TENSORS[name](header[first], len(data))
    write_parts(good, header, data)
    with pytest.raises(ModelError, match=r"damaged|cut short"):
        read_metadata(good)


@pytest.mark.parametrize("scale", [{"low": [math.nan] * 3, "high": [1] * 3}, {"low": [0] * 3, "high": [10**400] * 3}])
def test_an_input_scale_that_is_no_number_is_refused(good, scale):
    header, data = model_parts(good)
    metadata = json.loads(header["__metadata__"]["recipe"])
    metadata["extra"]["input"] = scale
    header["__metadata__"]["recipe"] = json.dumps(metadata)
    write_parts(good, header, data)
    with pytest.raises(ModelError):
        load_model(good, device="cpu")


def test_a_file_with_weights_that_nobody_asked_for_is_refused(good):
    header, _ = model_parts(good)
    tensors = {k: torch.zeros(v["shape"]) for k, v in header.items() if k != "__metadata__"}
    save_file(tensors | {"more": torch.zeros(3)}, good, metadata=header["__metadata__"])
    with pytest.raises(ModelError, match="more"):
        load_model(good, device="cpu")


def test_loading_is_not_much_slower_for_it(good):
    pixels = np.zeros((16, 16, 3), np.uint8)
    began = time.process_time()
    assert load_model(good, device="cpu").probabilities(pixels).shape == (2, 16, 16)
    assert time.process_time() - began < 5
