"""The training loop: parts add up to the batch, NaN and lack of memory are survived, a seed gives one result."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from napari_sparseseg.balancing import balanced_cross_entropy
from napari_sparseseg.errors import TrainingError
from napari_sparseseg.learning.augment import Augmentation, augment
from napari_sparseseg.learning.encoders import Encoder
from napari_sparseseg.learning.features import FeatureMaps
from napari_sparseseg.learning.network import Decoder, PlainUNet
from napari_sparseseg.learning.torch_runtime import out_of_memory
from napari_sparseseg.learning.trainer import DecoderTask, ScratchTask
from tests.helpers.trainer_tasks import batch, finish, gradients, plain_task, trainer_of


def frozen_decoder():
    """The decoder on frozen maps, without the dropout of channels that differs from part to part."""
    torch.manual_seed(0)
    maps = FeatureMaps(Encoder(), 3).requires_grad_(False).eval()
    task = DecoderTask(maps, Decoder(maps.channels, maps.strides, (8, 8, 8, 8), 2), 1e-3, channel_dropout=0.0)
    task.weights.mean += 0.5
    return task


TASKS = {"plain": plain_task, "decoder": frozen_decoder}


@pytest.mark.parametrize("balancing", ["none", "instance", "mini-batch"])
@pytest.mark.parametrize("kind", TASKS)
def test_parts_add_up_to_the_loss_of_the_batch(kind, balancing):
    losses, found = [], []
    for part in (4, 3, 1):
        trainer = trainer_of(TASKS[kind](), balancing=balancing, part=part)
        losses.append(finish(trainer, lambda n: batch(n=n)))
        found.append(gradients(trainer))
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-4)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-3, atol=1e-5)


def test_the_plain_unet_says_of_a_patch_what_it_says_of_it_alone_in_training_and_after():
    net = plain_task().weights
    image = torch.rand(3, 3, 64, 64)
    assert net.training
    together = net.logits(image)
    for k in range(3):
        torch.testing.assert_close(net.logits(image[k : k + 1])[0], together[k], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.eval().logits(image), together)


def test_the_rate_warms_up_and_the_averaged_weights_follow_by_hand():
    trainer = trainer_of(plain_task())
    mean = [p.detach().clone() for p in trainer.averaged.parameters()]
    for step in range(1, 24):
        finish(trainer, lambda n: batch(n=n))
        assert trainer.learning_rate == pytest.approx(1e-3 * min(1.0, step / 20))
        decay = min(0.98, (1 + step) / (10 + step))
        mean = [decay * m + (1 - decay) * p for m, p in zip(mean, trainer.task.weights.parameters(), strict=True)]
    for ours, theirs in zip(trainer.averaged.parameters(), mean, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-6)
    assert (1 + 500) / (10 + 500) > 0.98  # the bound is reached


def balanced_loss(trainer, one, balancing="instance"):
    """Of a batch as it is, by the loss that users can call."""
    channels = np.where(one.labels == 5, 1, np.where(one.labels == 2, 2, 0)).astype(np.uint8)
    with torch.no_grad():
        logits = trainer.task.weights.logits(torch.from_numpy(one.pixels).permute(0, 3, 1, 2) / 255)
    return float(balanced_cross_entropy(logits, channels, balancing))


@pytest.mark.parametrize("balancing", ["instance", "mini-batch"])
def test_labels_that_augmentation_turns_out_of_the_patch_have_no_weight(balancing):
    settings = Augmentation(rotation=1.0, scale=0.9)
    drawn = batch()
    after = augment(drawn, np.random.default_rng(3), settings, size=64)
    assert ((after.labels > 0).sum((1, 2)) < (drawn.labels > 0).sum((1, 2))).any()
    trainer = trainer_of(plain_task(), balancing=balancing, augmentation=settings, seed=3)
    expected = balanced_loss(trainer, after, balancing)
    assert finish(trainer, lambda _n: drawn) == pytest.approx(expected, rel=1e-4)


def test_without_augmentation_the_loss_is_the_balanced_loss_of_the_batch():
    trainer = trainer_of(plain_task(), augmentation=Augmentation.none())
    expected = balanced_loss(trainer, batch())
    assert finish(trainer, lambda _n: batch()) == pytest.approx(expected, rel=1e-4)


def test_loss_falls_on_a_learnable_batch():
    one = batch()
    pixels = one.pixels.copy()
    pixels[one.labels == 5] = (200, 40, 90)
    pixels[one.labels == 2] = (40, 60, 200)
    one = dataclasses.replace(one, pixels=pixels)
    torch.manual_seed(0)
    # Normalised over four channels a place can say little; the real one has sixteen at least.
    trainer = trainer_of(ScratchTask(PlainUNet(3, 2, width=8, depth=2), 3e-3))
    losses = [finish(trainer, lambda _n: one) for _ in range(40)]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_same_seed_same_weights():
    runs = []
    for _ in range(2):
        trainer = trainer_of(plain_task(), seed=4)
        for k in range(3):
            finish(trainer, lambda n, k=k: batch(k, n))
        runs.append(torch.cat([p.flatten() for p in trainer.averaged.parameters()]))
    assert torch.equal(*runs)


def test_not_a_number_goes_back_to_the_last_good_weights():
    trainer = trainer_of(plain_task())
    finish(trainer, lambda n: batch(n=n))
    good = [p.clone() for p in trainer.averaged.parameters()]
    with torch.no_grad():
        next(trainer.task.weights.parameters()).fill_(float("nan"))
    assert np.isnan(finish(trainer, lambda n: batch(n=n)))
    assert "learning rate 0.0005" in trainer.message
    assert all(torch.equal(p, q) for p, q in zip(good, trainer.task.weights.parameters(), strict=True))
    assert np.isfinite(finish(trainer, lambda n: batch(n=n)))
    assert trainer.steps == 2


def test_lasting_nan_ends_with_an_error():
    trainer = trainer_of(plain_task())
    with torch.no_grad():
        next(trainer.averaged.parameters()).fill_(float("nan"))
        next(trainer.task.weights.parameters()).fill_(float("nan"))
    for _ in range(5):
        finish(trainer, lambda n: batch(n=n))
    with pytest.raises(TrainingError, match="NaN"):
        finish(trainer, lambda n: batch(n=n))


OUT_OF_MEMORY = {
    "card": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "Linux": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "Windows": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 68719476736 bytes."),
    "MPS": RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB)"),
    "numpy": MemoryError("Unable to allocate 8.00 GiB"),
}
"""As each of them says it."""


class Greedy(ScratchTask):
    """Runs out of memory for more than `fits` patches at a time."""

    def __init__(self, fits, error=OUT_OF_MEMORY["card"]):
        super().__init__(plain_task().weights, 1e-3)
        self.fits, self.error = fits, error

    def logits(self, image, labels, generator):
        if len(image) > self.fits:
            raise self.error
        return super().logits(image, labels, generator)


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
def test_out_of_memory_means_smaller_parts_and_the_same_step(error):
    plain, greedy = trainer_of(plain_task()), trainer_of(Greedy(1, error))
    expected = finish(plain, lambda n: batch(n=n))
    messages = []
    loss = None
    while loss is None:
        loss = greedy.work(lambda n: batch(n=n))
        messages.append(greedy.message)
    assert loss == pytest.approx(expected, rel=1e-4)
    assert "1 of 4 patches at a time" in " ".join(messages)
    finish(greedy, lambda n: batch(n=n))
    assert greedy.message == ""  # the next batch begins with what fits


def test_memory_that_really_cannot_be_had_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as had:
        torch.empty(2**62, dtype=torch.uint8)
    assert out_of_memory(had.value)
    with pytest.raises(RuntimeError) as other:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not out_of_memory(other.value)
    broken = Greedy(0, other.value)
    with pytest.raises(RuntimeError, match="shapes"):
        finish(trainer_of(broken), lambda n: batch(n=n))


def test_one_patch_that_does_not_fit_is_an_error():
    trainer = trainer_of(Greedy(0))
    with pytest.raises(TrainingError, match="smaller patches"):
        finish(trainer, lambda n: batch(n=n))
