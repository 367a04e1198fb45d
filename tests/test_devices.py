"""Code for graphics cards without one: tensors that only have a device show where two devices meet by mistake.

`FakeTensorMode` computes shapes, dtypes and devices of every operation as CUDA would have them, and raises where
operands lie on different devices. Values, and so speed and precision, need a card; reduced precision is run on the CPU.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from napari_sparseseg.config import make_classes
from napari_sparseseg.errors import TrainingError
from napari_sparseseg.learning.encoders import Encoder
from napari_sparseseg.learning.features import FeatureMaps, InputScale
from napari_sparseseg.learning.head import Head
from napari_sparseseg.learning.model import Model
from napari_sparseseg.learning.model_file import ModelMetadata
from napari_sparseseg.learning.network import Decoder, PlainUNet, TwoSpeedNet
from napari_sparseseg.learning.torch_runtime import autocast_dtype, choose_device, threads_for
from napari_sparseseg.learning.trainer import DecoderTask, ScratchTask
from tests.helpers.trainer_tasks import batch, finish, plain_task, trainer_of

LABELS = np.kron(np.array([[1, 0], [2, 3]], np.uint8), np.ones((32, 32), np.uint8))


def network(*, tuned, load=True):
    maps = FeatureMaps(Encoder("tf_efficientnet_lite0", 3, load=load), 3).requires_grad_(False).eval()
    decoder = Decoder(maps.channels, maps.strides, (16, 12, 8, 8), 3)
    if tuned:
        decoder.tuned = FeatureMaps(Encoder("tf_efficientnet_lite0", 3, load=load), 3)
    return TwoSpeedNet(maps, Head(maps.channels, 8, 3), decoder, 0.5)


@pytest.mark.parametrize("tuned", [False, True], ids=["frozen", "own encoder"])
def test_prediction_and_the_pass_of_a_training_step_stay_on_one_device(tuned):
    with FakeTensorMode():
        with torch.device("cuda"):
            net = network(tuned=tuned, load=False)
            plain = PlainUNet(3, 3)
            image = torch.rand(2, 3, 64, 64)
        assert net(image).device.type == "cuda"
        task = DecoderTask(net.features, net.decoder, 1e-3)
        # Nothing is labelled: features of labelled pixels are values, which these tensors do not have.
        scores = task.logits(image, np.zeros((2, *LABELS.shape), np.uint8), torch.Generator())
        assert scores.device.type == "cuda"
        assert ScratchTask(plain, 1e-3).logits(image, LABELS, torch.Generator()).shape[1] == 3
        with pytest.raises(RuntimeError, match="device"):
            net(torch.rand(2, 3, 64, 64, device="cpu"))


def test_reduced_precision_trains_to_nearly_the_same_loss(monkeypatch):
    full = finish(trainer_of(plain_task()), lambda n: batch(n=n))
    monkeypatch.setattr("napari_sparseseg.learning.trainer.autocast_dtype", lambda _device, **_: torch.bfloat16)
    kinds = []
    task = plain_task()
    inner = task.logits
    task.logits = lambda *args: kinds.append((out := inner(*args)).dtype) or out
    half = finish(trainer_of(task), lambda n: batch(n=n))
    assert set(kinds) == {torch.bfloat16}
    assert half == pytest.approx(full, rel=0.02)


def test_reduced_precision_predicts_probabilities(monkeypatch):
    monkeypatch.setattr("napari_sparseseg.learning.model.autocast_dtype", lambda _device: torch.bfloat16)
    model = Model(
        ModelMetadata(make_classes("abc"), 1.0, "tf_efficientnet_lite0"), network(tuned=False), InputScale.for_rgb()
    )
    found = model.probabilities(np.full((64, 64, 3), 180, np.uint8))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-3)


@pytest.mark.parametrize(
    ("bf16", "predicting", "training"), [(True, torch.bfloat16, torch.bfloat16), (False, torch.float16, None)]
)
def test_precision_follows_the_card(bf16, predicting, training, monkeypatch):
    # an older card emulates bfloat16, slower than float32: torch says that it is supported unless asked like this
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    assert autocast_dtype(torch.device("cuda")) is predicting
    assert autocast_dtype(torch.device("cuda"), training=True) is training
    assert autocast_dtype(torch.device("mps")) is autocast_dtype(torch.device("cpu")) is None


def test_the_device_is_chosen_by_what_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(TrainingError, match="2 CUDA devices"):
        choose_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("mps")
    with pytest.raises(TrainingError, match="found: cpu, mps"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("setting", "before", "expected"),
    [(None, "", None), ("2", "", 2), (None, "import torch; torch.set_num_threads(3); ", 3), ("", "", None)],
)
def test_torch_has_few_threads_unless_the_user_has_chosen(setting, before, expected):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    code = (
        f"{before}from napari_sparseseg.learning import network; "  # imports torch by itself, as most modules there do
        "from napari_sparseseg.learning.torch_runtime import import_torch as t; t(); print(t().get_num_threads())"
    )
    asked = kept if setting is None else kept | {"OMP_NUM_THREADS": setting}
    done = subprocess.run([sys.executable, "-c", code], env=asked, capture_output=True, text=True, check=True)
    if expected is None:
        own = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
        expected = threads_for(int(subprocess.run(own, env=kept, capture_output=True, text=True, check=True).stdout))
    assert int(done.stdout) == expected


def test_a_quarter_of_the_cores_work_inside_operators():
    assert [threads_for(cores) for cores in (1, 2, 4, 7, 8, 16, 64)] == [1, 1, 1, 1, 2, 4, 16]


@pytest.mark.skipif(sys.platform != "linux", reason="another OpenMP library than the one that is asked here")
@pytest.mark.parametrize(("own", "spins"), [(None, "0"), ("77", "77")])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(own, spins):
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    asked = {"OMP_DISPLAY_ENV": "verbose"} | ({} if own is None else {"GOMP_SPINCOUNT": own})
    code = (
        "from napari_sparseseg.learning.torch_runtime import import_torch, tune_process; tune_process(); import_torch()"
    )
    done = subprocess.run([sys.executable, "-c", code], env=kept | asked, capture_output=True, text=True, check=True)
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
