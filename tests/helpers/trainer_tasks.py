"""A small network, batches and trainers for the tests of the training loop."""

from __future__ import annotations

import numpy as np
import torch

from napari_sparseseg.config import TrainConfig
from napari_sparseseg.learning.features import InputScale
from napari_sparseseg.learning.network import PlainUNet
from napari_sparseseg.learning.sampling import Batch
from napari_sparseseg.learning.trainer import ScratchTask, Trainer

IDS = (5, 2)


def plain_task(seed=0):
    """The plain U-Net as it is trained, but small."""
    torch.manual_seed(seed)
    return ScratchTask(PlainUNet(3, 2, width=4, depth=2), 1e-3)


def batch(seed=0, n=4):
    """Unequal numbers of labelled pixels per patch and class; class 9 is in no table."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((n, 64, 64), np.uint8)
    for k in range(n):
        labels[k, 10 : 12 + 4 * k, 20:40] = 5
        labels[k, 50:52, 20 : 24 + 3 * k] = 2 if k % 2 else 9
    pixels = rng.integers(0, 256, (n, 64, 64, 3), dtype=np.uint8)
    return Batch(pixels, labels, np.zeros(n, bool), np.zeros((n, 3), np.int64), True)


def trainer_of(task, *, augmentation=None, part=None, **config):
    config = TrainConfig(patch_px=64, **config)
    return Trainer(task, IDS, config, InputScale.for_rgb(), augmentation=augmentation, part=part)


def gradients(trainer):
    """Those of the last step."""
    return torch.cat([p.grad.flatten() for p in trainer.task.weights.parameters()])


def finish(trainer, draw):
    while (loss := trainer.work(draw)) is None:
        pass
    return loss
