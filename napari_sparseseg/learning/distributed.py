"""Training on several devices or machines: each rank draws patches of its own, and all take the same step.

Started by ``torchrun -m napari_sparseseg train ...``. The balancing counts are summed over the ranks before the loss,
so the losses and gradients of the ranks *sum* to those of one process on the joint batch.

A run ends for all ranks at once: a rank that has used up its budget announces it with the counts of its next batch.
Every rank begins the same batches in the same order, so a rank that ends early cannot leave the others waiting.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_sparseseg.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch
    from torch import nn

    from napari_sparseseg.balancing import BatchTotals


@dataclass(slots=True)
class Ranks:
    """One process among those that train together; alone, every method changes nothing.

    Attributes
    ----------
    rank, world
        Number of this process, and how many there are.
    leaving
        Set by a rank that wants to end.
    ended
        Whether any rank wants to end, known to all since the last batch; no rank takes another step.
    """

    rank: int = 0
    world: int = 1
    leaving: bool = False
    ended: bool = False

    @property
    def first(self) -> bool:
        """Whether this rank compares, prints and writes."""
        return self.rank == 0

    def begin(self, totals: BatchTotals, device: torch.device) -> BatchTotals:
        """Totals of the joint batch; also spreads whether any rank wants to end."""
        if self.world == 1:
            return totals
        import torch
        from torch.distributed import all_reduce

        from napari_sparseseg.balancing import BatchTotals

        vector = torch.tensor([*totals.pack(), int(self.leaving)]).to(_wire(device))
        all_reduce(vector)
        joint = vector.cpu().numpy()
        self.ended = bool(joint[-1])
        return BatchTotals.unpack(joint[:-1])

    def sum_step(self, parameters: Iterable[nn.Parameter], loss: float) -> float:
        """Sum the gradients over the ranks in place; returns the sum of the losses."""
        if self.world == 1:
            return loss
        import torch
        from torch.distributed import all_reduce

        parameters = list(parameters)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([g.reshape(-1).float() for g in gradients] + [gradients[0].new_tensor([loss]).float()])
        flat = flat.to(_wire(flat.device))
        all_reduce(flat)
        sizes = [p.numel() for p in parameters]
        for p, values in zip(parameters, torch.split(flat[:-1], sizes), strict=True):
            p.grad = values.view_as(p).to(p)
        return float(flat[-1])

    def share_weights(self, net: nn.Module) -> None:
        """Give all ranks the weights and buffers of the first."""
        if self.world == 1:
            return
        from torch.distributed import broadcast

        for tensor in net.state_dict().values():
            moved = tensor.to(_wire(tensor.device))
            broadcast(moved, src=0)
            tensor.copy_(moved)


def _wire(device: torch.device) -> str | torch.device:
    """Where tensors are exchanged: on CUDA by NCCL, else in main memory by gloo."""
    return device if device.type == "cuda" else "cpu"


_alone = Ranks()
_joined: list[Ranks] = []


def ranks() -> Ranks:
    """The rank of this process in a joint training; alone where `join` was not called."""
    return _joined[-1] if _joined else _alone


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@contextmanager
def join(device: str = "auto") -> Iterator[tuple[Ranks, str]]:
    """Join the processes that torchrun started, for as long as the context lasts; gives the device of this one too.

    NCCL on CUDA, else gloo. Without torchrun nothing happens.

    Raises
    ------
    TrainingError
        When the others cannot be reached.
    """
    if not launched():
        yield _alone, device
        return
    from napari_sparseseg.learning.torch_runtime import choose_device

    chosen = choose_device(device)
    import torch.distributed as dist

    if str(chosen) == "cuda":
        chosen = choose_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    try:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    except (RuntimeError, ValueError, OSError) as error:
        raise TrainingError(f"the other ranks cannot be reached: {error}. Start all of them with torchrun.") from error
    mine = Ranks(dist.get_rank(), dist.get_world_size())
    _joined.append(mine)
    try:
        yield mine, str(chosen)
    finally:
        _joined.remove(mine)
        dist.destroy_process_group()
