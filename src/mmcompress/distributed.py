"""Several processes, one result: with torchrun's variables set, every rank sees its share of each batch.

The losses compare every image with every text of the whole batch, so embeddings are gathered across ranks with their
gradients. `torch.distributed.nn.all_gather` sums the gradients of all ranks; DistributedDataParallel then averages
them, so the update equals that of one process with the whole batch.

Ran on two CPU processes (gloo); never on several GPUs (nccl). The training loop takes several processes, the command
line does not start them yet: a stage's artifact is written by one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


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
    if size > 1:
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield World(rank, size, torch.device(device))
    finally:
        if size > 1:
            dist.destroy_process_group()


def gathered(local: tuple[Tensor, Tensor], size: int) -> tuple[Tensor, Tensor]:
    """Two (B, D) of each rank -> two (size * B, D), differentiable."""
    if size == 1:
        return local
    from torch.distributed.nn.functional import all_gather

    first, second = (torch.cat(list(all_gather(tensor))) for tensor in local)
    return first, second


def gathered_ids(local: Tensor, size: int) -> Tensor:
    """(B,) integers of each rank -> (size * B,)"""
    if size == 1:
        return local
    parts = [torch.empty_like(local) for _ in range(size)]
    dist.all_gather(parts, local)
    return torch.cat(parts)
