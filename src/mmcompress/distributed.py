"""Several processes, one result: every rank sees its share of each batch, and all have the same weights.

The losses compare every image with every text of the whole batch, so embeddings are gathered across ranks, and each
rank computes the same loss of all of them. After the backward pass one all-reduce takes the mean of the gradients,
which is what one process with the whole batch would have. DistributedDataParallel was left out: it would
hide that all-reduce behind the backward pass, but a student's gradients are small, and every loop would need a wrapped
twin of its model.

Ran on CPU processes (gloo); never on several GPUs (nccl). `ranks.py` is how the processes find each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmcompress import ranks
from mmcompress.errors import CorruptInputError, MissingRequirementError, UsageError
from mmcompress.ranks import Ranks, announced, joined

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes that share a stage, and the device of this one."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def shared(self, value: T) -> T:
        """Rank 0's value, which JSON can write, on every rank; waits for it as long as it takes."""
        return value if self.size == 1 else _ranks().shared(value)

    def collected(self, value: T) -> list[T]:
        """On rank 0 the value of every rank, by rank; on the others nothing."""
        return [value] if self.size == 1 else _ranks().collected(value)

    def of_all(self, values: Iterable[T]) -> list[T]:
        """The values of all ranks, by rank, on every rank."""
        return self.shared([value for part in self.collected(list(values)) for value in part])

    def agree(self, what: str, value: str | int | list[str]) -> None:
        """Raise CorruptInputError on a rank whose value is not rank 0's: their results must not be mixed."""
        if self.shared(value) != value:
            raise CorruptInputError(
                f"rank {self.rank} of {self.size} does not have rank 0's {what}",
                "every node needs the same mmcompress, data, teacher and --out, under the same paths",
            )


def _ranks() -> Ranks:
    here = ranks.here()
    assert here is not None
    return here


@contextmanager
def world(device: str) -> Iterator[World]:
    """The processes that share the stage that runs now, or this one alone. `auto` takes a GPU where there is one.

    A function that is called by no stage joins those that torchrun announces, for as long as it runs.
    """
    here = ranks.here()
    if here is None and (found := announced(os.environ)) is not None:
        with joined(found) as here:
            here.together = True
            yield _world(here, device)
    else:
        yield _world(here, device)


def _world(here: Ranks | None, name: str) -> World:
    if here is None or not here.together:
        return World(0, 1, _device(name, 0 if here is None else here.local_rank))
    if ":" in name or name == "mps":
        raise UsageError(
            f"device = {name!r} is one device, and {here.size} processes share this stage", "give cpu, cuda or auto"
        )
    found = World(here.rank, here.size, _device(name, here.local_rank))
    found.agree("kind of device", found.device.type)
    if found.device.type == "cuda":
        torch.cuda.set_device(found.device)
    return found


def check_device(name: str) -> None:
    """Raise MissingRequirementError for a device that is not here; for before a stage's first long step."""
    here = ranks.here()
    _device(name, 0 if here is None else here.local_rank)


def _device(name: str, local_rank: int) -> torch.device:
    """A GPU of its own for each process of a node."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    if name.startswith("cuda") and not gpus:
        raise MissingRequirementError(f"device = {name!r}, and torch finds no GPU here", "give cpu, or auto")
    if name == "mps" and not torch.backends.mps.is_available():
        raise MissingRequirementError("device = 'mps', and torch finds none here", "give cpu, or auto")
    if name.startswith("cuda:") and int(name.removeprefix("cuda:")) >= gpus:
        raise MissingRequirementError(f"device = {name!r}, and torch finds {gpus} GPUs here", "give cpu, or auto")
    if name != "cuda":
        return torch.device(name)
    if local_rank >= gpus:
        raise MissingRequirementError(
            f"process {local_rank} of this node wants a GPU of its own, and there are {gpus}",
            f"torchrun --nproc_per_node {gpus}",
        )
    return torch.device("cuda", local_rank)


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
    with _heard():
        dist.all_gather(parts, local.contiguous())
    return parts


def average_gradients(parameters: Iterable[nn.Parameter], here: World) -> None:
    """Replace every gradient by its mean over the ranks, in one all-reduce.

    A parameter that other ranks have a gradient of, and this one has not, gets the mean too; what no rank has a
    gradient of is left without.
    """
    if here.size == 1:
        return
    trained = list(parameters)
    own = torch.tensor([float(p.grad is not None) for p in trained], device=here.device)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    *means, anywhere = mean_over_ranks(torch.cat([*(gradient.flatten() for gradient in gradients), own]), here).split(
        [*(p.numel() for p in trained), len(trained)]
    )
    for index, (parameter, mean) in enumerate(zip(trained, means, strict=True)):
        if parameter.grad is not None:
            parameter.grad.copy_(mean.view_as(parameter))
        elif anywhere[index] > 0:
            parameter.grad = mean.view_as(parameter).clone()


def mean_over_ranks(figures: Tensor, here: World) -> Tensor:
    """(N,) of each rank -> (N,), the same on every rank: not finite where one rank's is not. Overwrites its input."""
    if here.size == 1:
        return figures
    with _heard():
        dist.all_reduce(figures)
    figures /= here.size
    return figures


@torch.no_grad()
def of_first_rank(tensors: Iterable[Tensor], here: World) -> None:
    """Overwrite every tensor by what rank 0 has there."""
    for tensor in tensors if here.size > 1 else ():
        whole = tensor.detach().contiguous()
        with _heard():
            dist.broadcast(whole, 0)
        tensor.copy_(whole)


@contextmanager
def _heard() -> Iterator[None]:
    """Says what is behind a collective that broke: the error of the rank that left it."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise _ranks().why_lost(error) from error
