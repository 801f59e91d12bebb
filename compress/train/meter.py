"""What training shows of itself while it runs: speed, the share of time without data, the loss by term, memory.

A bar on a terminal, a line every half minute in a log, and curves for TensorBoard where they are asked for; of several
processes rank 0 shows it. On a GPU the next batch is made ready while the device computes, so there the share is what
waiting could have been at most.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

from mmcompress.compress.train.scalars import scalars
from mmcompress.config import OptimizerConfig
from mmcompress.distributed import World
from mmcompress.formats import compact, megabytes, percent
from mmcompress.progress import Told, counted


@dataclass(frozen=True)
class Figures:
    """Of one step, the same on all ranks."""

    norm: float
    """Of the gradient, before it was clipped."""
    loss: float
    terms: Mapping[str, float]
    """What the loss is the sum of."""

    @property
    def finite(self) -> bool:
        return math.isfinite(self.norm) and math.isfinite(self.loss)


class Meter:
    """Times a loop of steps, and shows each of them."""

    def __init__(
        self,
        batch: int,
        device: torch.device,
        count: Callable[[Told], None],
        draw: Callable[[int, Mapping[str, float]], None],
    ) -> None:
        self._batch, self._device, self._count, self._draw = batch, device, count, draw
        self._began = time.monotonic()
        self._waited = 0.0
        self._steps = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block as time in which data were waited for."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def tell(self, step: int, skipped: int, figures: Figures, rate: float) -> None:
        """Show one step more: `step` are done, `skipped` of them changed nothing, `rate` is the learning rate."""
        self._steps += 1
        self._draw(
            step,
            {f"loss/{name}": value for name, value in figures.terms.items()}
            | {"gradient norm": figures.norm, "learning rate": rate, "skipped": skipped}
            | {"images per second": self.images_per_s or 0.0, "waiting for data": self.waiting_share},
        )
        self._count(lambda: self.told(skipped, figures))

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def images_per_s(self) -> float | None:
        """None where no step was timed."""
        return self._steps * self._batch / self.seconds if self._steps else None

    @property
    def waiting_share(self) -> float:
        return self._waited / seconds if (seconds := self.seconds) > 0 else 0.0

    @property
    def memory_bytes(self) -> int:
        """The peak of a GPU's memory; on a CPU what the process holds now."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return int(psutil.Process().memory_info().rss)

    def told(self, skipped: int, figures: Figures) -> str:
        """`812 images/s, 3% waiting for data, loss 0.41 (cosine 0.3, relational 0.11), 1,900.0 MB`"""
        parts = ", ".join(f"{name} {compact(value, 3)}" for name, value in figures.terms.items())
        said = [
            f"{compact(self.images_per_s, 3)} images/s",
            f"{percent(self.waiting_share, 0)} waiting for data",
            f"loss {compact(figures.loss, 3)}{f' ({parts})' if len(figures.terms) > 1 else ''}",
            megabytes(self.memory_bytes),
        ]
        return ", ".join(said + ([f"{skipped} skipped"] if skipped else []))


@contextmanager
def metered(what: str, steps: int, start: int, config: OptimizerConfig, here: World) -> Iterator[Meter]:
    """Give a meter for the steps from `start` on, which shows nothing on other ranks than 0."""
    first = here.rank == 0
    with (
        counted(what, steps, start, quiet=not first) as count,
        scalars(config.tensorboard if first else None, start) as draw,
    ):
        yield Meter(config.batch, here.device, count, draw)
