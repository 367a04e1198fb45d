"""Two real processes that train together over gloo: the step of one process on the joint batch, and one common end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import get_args

import pytest
import torch
from torch import multiprocessing

from napari_sparseseg.config import Balancing, TrainConfig
from napari_sparseseg.learning.augment import Augmentation
from napari_sparseseg.learning.distributed import join, ranks
from napari_sparseseg.learning.features import InputScale
from napari_sparseseg.learning.model import read_metadata
from napari_sparseseg.learning.sampling import Batch
from napari_sparseseg.learning.trainer import Trainer
from tests.helpers.geojson import qupath
from tests.helpers.trainer_tasks import IDS, batch, plain_task

BALANCINGS = get_args(Balancing)


def first_step(patches, balancing, part):
    """Loss and gradients of one step on these patches of the batch, unaugmented, worked off `part` at a time."""
    whole = batch()
    mine = Batch(whole.pixels[patches], whole.labels[patches], whole.dense[patches], whole.origins[patches], True)
    config = TrainConfig(patch_px=64, balancing=balancing, batch_size=len(patches))
    task = plain_task(seed=ranks().rank)  # other weights at first: the trainer gives all ranks those of the first
    trainer = Trainer(task, IDS, config, InputScale.for_rgb(), augmentation=Augmentation.none(), part=part)
    while (loss := trainer.work(lambda _n: mine)) is None:
        pass
    return loss, [p.grad.clone() for p in task.weights.parameters()]


def rank_of_two(rank, port, folder):
    """One process: patches 0 and 3, or 1 and 2, in unequal parts."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with join("cpu") as (mine, device):
        assert (mine.rank, mine.world, device) == (rank, 2, "cpu")
        results = {b: first_step([[0, 3], [1, 2]][rank], b, part=1 + rank) for b in BALANCINGS}
    torch.save(results, f"{folder}/{rank}.pt")


def test_two_ranks_take_the_step_of_one_process_on_the_joint_batch(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(rank_of_two, (port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    losses = set()
    for balancing in BALANCINGS:
        loss, gradients = first_step([0, 1, 2, 3], balancing, part=4)
        losses.add(round(loss, 6))
        # Not the mean of two losses: what the balancing counts are for.
        for found, theirs in (first[balancing], second[balancing]):
            assert found == pytest.approx(loss, rel=1e-5)
            assert max(float(g.abs().max()) for g in theirs) > 0
            for a, b in zip(theirs, gradients, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert len(losses) == 3


def marks(tmp_path):
    return qupath(tmp_path / "marks.geojson", [("stripes", (50, 50, 200, 60)), ("dots", (700, 500, 200, 60))])


def torchrun(tiny_slide, tmp_path, *options):
    """The command as a user gives it; a deadlock is a test that times out."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "napari_sparseseg", "train", str(tiny_slide), "--annotations", str(marks(tmp_path))),
            *("--model", str(tmp_path / "m.safetensors"), "--device", "cpu", "--json", *options),
        ],
        capture_output=True, text=True, timeout=200, env=environment, cwd=tmp_path,
    )  # fmt: skip


@pytest.mark.parametrize(
    "budget",
    [pytest.param(("--steps", "3"), id="steps"), pytest.param(("--seconds", "3"), id="time", marks=pytest.mark.slow)],
)
def test_torchrun_trains_with_the_same_command_and_writes_once(budget, tiny_slide, tmp_path):
    ended = torchrun(tiny_slide, tmp_path, *budget)
    assert ended.returncode == 0, ended.stderr[-3000:]
    # one object: the second rank printed nothing; before it gloo of torch 2.10 greets on the same stream
    result = json.loads(ended.stdout[ended.stdout.index("{") :])
    metadata = read_metadata(tmp_path / "m.safetensors")
    assert metadata.step == result["steps"]
    if budget[0] == "--steps":
        assert metadata.step == 3
    assert [c.name for c in metadata.classes] == ["stripes", "dots"]


def test_a_mistake_ends_all_ranks(tiny_slide, tmp_path):
    ended = torchrun(tiny_slide, tmp_path, "--encoder", "no_such_encoder")
    assert ended.returncode != 0
    assert "no_such_encoder" in ended.stderr
    assert not (tmp_path / "m.safetensors").exists()


def test_alone_nothing_is_changed():
    with join("cpu") as (mine, device):
        assert (mine.rank, mine.world, mine.first, device) == (0, 1, True, "cpu")
        assert mine.sum_step([], 0.25) == 0.25
