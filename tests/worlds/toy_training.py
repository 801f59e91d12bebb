"""A network of two layers that learns to be the identity, for tests of the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mmcompress.compress.train.optimize import optimize
from mmcompress.compress.train.watching import Watch
from mmcompress.config import OptimizerConfig
from mmcompress.distributed import World

HERE = World(0, 1, torch.device("cpu"))
BATCHES, BATCH = 5, 8


@dataclass(frozen=True)
class Rows:
    """One batch."""

    step: int
    keys: list[str]
    """`epoch/batch/row`"""
    values: Tensor
    """(8, 4)"""


@dataclass(frozen=True)
class Run:
    weights: dict[str, Tensor]
    metrics: dict[str, float | None]
    steps_run: int


def stream(epoch: int, skip: int) -> Iterator[Rows]:
    values = torch.randn(BATCHES, BATCH, 4, generator=torch.Generator().manual_seed(epoch))
    for index in range(skip, BATCHES):
        keys = [f"{epoch}/{index}/{row}" for row in range(BATCH)]
        yield Rows(BATCHES * epoch + index, keys, values[index])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))


def run(
    work: Path,
    config: OptimizerConfig,
    at_step: Callable[[int], float | None] = lambda _: None,
    also: Callable[[int, nn.Module], float | Tensor] = lambda *_: 0.0,
    watched: Callable[[nn.Module], Watch] | None = None,
) -> Run:
    """Train. `at_step` is called before each step, and what it returns is added to the loss; so is `also`."""
    work.mkdir(exist_ok=True)
    trained, steps_run = network(), 0
    watch = watched(trained) if watched else None

    def loss_of(batch: Rows, _: int) -> Tensor:
        nonlocal steps_run
        added = at_step(batch.step) or 0.0
        steps_run += 1
        return nn.functional.mse_loss(trained(batch.values), batch.values) + added + also(batch.step, trained)

    pairs = BATCHES * BATCH
    found = optimize(
        trained, loss_of, stream, config=config, pairs=pairs, world=HERE, work=work, what="test", watch=watch
    )
    return Run(trained.state_dict(), found, steps_run)
