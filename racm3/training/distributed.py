"""The processes of one run: who is who, sums over all, and a model sharded over them and gathered again.

``torchrun`` starts the processes and tells each its place in the environment; without it there is one, which makes no
process group at all. A model is sharded by FSDP2, block by block. There is no tensor parallelism: weights, gradients
and optimiser state of the paper's 2.7B are 43 GB in all, which FSDP alone divides among the devices.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from racm3.errors import RACM3Error

PATIENCE = timedelta(days=1)
"""How long processes wait for the first one, which may prepare data for hours; torchrun ends all if one dies."""

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Processes:
    """This process, ``rank`` of ``size``, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    def total(self, values: Sequence[float]) -> list[float]:
        """Each value's sum over all processes."""
        if self.size == 1:
            return list(values)
        table = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(table)
        return table.tolist()

    def from_main(self, make: Callable[[], T]) -> T:
        """What ``make`` gives on the first process, on all of them; the RACM3Error that it raises there as well."""
        answer: list[T | RACM3Error | None] = [None]
        if self.main:
            try:
                answer = [make()]
            except RACM3Error as error:
                answer = [error]
        if self.size > 1:
            dist.broadcast_object_list(answer)
        if isinstance(answer[0], RACM3Error):
            raise answer[0]
        return answer[0]  # type: ignore[return-value]

    def gathered(self, values: Sequence[T]) -> list[T]:
        """The values of all processes in a row."""
        if self.size == 1:
            return list(values)
        table: list[Sequence[T]] = [()] * self.size
        dist.all_gather_object(table, values)
        return [value for row in table for value in row]


def connect() -> Processes:
    """This process among those that torchrun started, connected to the others on the first call; alone without it."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)
    return Processes(rank, size, device)


def shard(model: nn.Module, processes: Processes, bfloat16: bool) -> None:
    """Bring ``model`` to the device; among several processes each then holds its share of every parameter.

    A block of a ModuleList is gathered when it is computed and freed behind it. ``bfloat16``: computed in it, while the
    parameters that the optimiser sees, and the sums of gradients over processes, stay in float32.
    """
    if processes.size == 1:
        model.to(processes.device)
        return
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    policy = half if bfloat16 else MixedPrecisionPolicy()
    mesh = init_device_mesh(processes.device.type, (processes.size,))
    for module in reversed(list(model.modules())):  # the innermost first
        if isinstance(module, nn.ModuleList):
            for block in module:
                fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def whole(model: M, make: Callable[[], M]) -> M | None:
    """The model in one piece: itself if it is not sharded; else a new one of ``make`` with its weights on the first
    process, and None on the others. To be called on all of them."""
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return model
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank():
        return None
    gathered = make()
    gathered.load_state_dict(weights)
    return gathered.to(next(model.parameters()).device)


def scalar(value: Tensor) -> float:
    """A () tensor, which may be sharded, as a number. To be called on all processes."""
    return float(value.full_tensor() if isinstance(value, DTensor) else value)
