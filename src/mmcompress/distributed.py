"""Several processes, one result: with torchrun's variables set, every rank sees its share of each batch.

The losses compare every image with every text of the whole batch, so embeddings are gathered across ranks, and each
rank computes the same loss of all of them. After the backward pass one all-reduce takes the mean of the gradients,
which is what one process with the whole batch would have. DistributedDataParallel was left out: it would hide that
all-reduce behind the backward pass, but a student's gradients are small, and every loop would need a wrapped twin of
its model.

Ran on two CPU processes (gloo); never on several GPUs (nccl). The training loop takes several processes, the command
line does not start them yet: a stage's artifact is written by one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

# Before there is a group: the default arguments of its functions keep the group of the moment alive for good, and a
# gloo thread that is left at the end can abort the process. Optimizers import it too.
import torch.distributed.nn.functional
from torch import Tensor, nn

from mmcompress.errors import MissingRequirementError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device


@contextmanager
def world(device: str) -> Iterator[World]:
    """Join the process group that torchrun announces, if any. `auto` takes a GPU where there is one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    if device == "auto":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    elif device.startswith("cuda") and not torch.cuda.is_available():
        raise MissingRequirementError(f"device = {device!r}, and torch finds no GPU here", "give cpu, or auto")
    if size > 1:
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield World(rank, size, torch.device(device))
    finally:
        if size > 1:
            dist.destroy_process_group()


def gathered(local: tuple[Tensor, Tensor], here: World) -> tuple[Tensor, Tensor]:
    """Two (B, D) of each rank -> two (size * B, D); gradients reach the rank's own part.

    They are scaled by the number of ranks, as `average_gradients` divides by it.
    """
    if here.size == 1:
        return local
    first, second = (_gathered(tensor, here) for tensor in local)
    return first, second


def _gathered(local: Tensor, here: World) -> Tensor:
    fixed = local.detach()
    parts = _all_parts(fixed, here.size)
    parts[here.rank] = fixed + here.size * (local - fixed)
    return torch.cat(parts)


def gathered_ids(local: Tensor, here: World) -> Tensor:
    """(B,) integers of each rank -> (size * B,)"""
    return local if here.size == 1 else torch.cat(_all_parts(local, here.size))


def _all_parts(local: Tensor, size: int) -> list[Tensor]:
    parts = [torch.empty_like(local) for _ in range(size)]
    dist.all_gather(parts, local.contiguous())
    return parts


def average_gradients(parameters: Iterable[nn.Parameter], here: World) -> None:
    """Replace every gradient by its mean over the ranks, in one all-reduce."""
    if here.size == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= here.size
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def mean_over_ranks(figures: Tensor, here: World) -> Tensor:
    """(N,) of each rank -> (N,), the same on every rank: not finite where one rank's is not."""
    if here.size == 1:
        return figures
    dist.all_reduce(figures)
    return figures / here.size


@torch.no_grad()
def of_first_rank(tensors: Iterable[Tensor], here: World) -> None:
    """Overwrite every tensor by what rank 0 has there."""
    if here.size > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def told_by_first_rank(value: T, here: World) -> T:
    """What rank 0 has, on every rank; small things only."""
    if here.size == 1:
        return value
    told = [value]
    dist.broadcast_object_list(told, 0, device=here.device)
    return told[0]


def of_all_ranks(values: Iterable[T], here: World) -> list[T]:
    """The values of all ranks, in their order; small things only."""
    own = list(values)
    if here.size == 1:
        return own
    parts: list[list[T]] = [[] for _ in range(here.size)]
    dist.all_gather_object(parts, own)
    return [value for part in parts for value in part]
