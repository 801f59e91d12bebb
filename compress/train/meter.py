"""What training shows of itself while it runs: speed, the share of time without data, the loss by term, memory.

On a GPU the next batch is made ready while the device computes, so there the share is what waiting could have been at
most.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psutil
import torch

from mmcompress.formats import compact, megabytes, percent


class Meter:
    """Times a loop of batches. One step is one batch of `batch` pairs over all ranks."""

    def __init__(self, batch: int, device: torch.device) -> None:
        self._batch, self._device = batch, device
        self._began = time.monotonic()
        self._waited = 0.0
        self.steps = 0
        """That were timed."""

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block as time in which data were waited for."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def images_per_s(self) -> float:
        return self.steps * self._batch / seconds if (seconds := self.seconds) > 0 else 0.0

    @property
    def waiting_share(self) -> float:
        return self._waited / seconds if (seconds := self.seconds) > 0 else 0.0

    @property
    def peak_bytes(self) -> int:
        """Of the device's memory where that is a GPU, else what the process holds now."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return int(psutil.Process().memory_info().rss)

    def told(self, loss: float | None, terms: Mapping[str, float], skipped: int) -> str:
        """`812 images/s, 3% waiting for data, loss 0.41 (cosine 0.3, relational 0.11), 1,900.0 MB`"""
        parts = ", ".join(f"{name} {compact(value, 3)}" for name, value in terms.items()) if len(terms) > 1 else ""
        said = [
            f"{compact(self.images_per_s, 3)} images/s",
            f"{percent(self.waiting_share, 0)} waiting for data",
            f"loss {compact(loss, 3)}{f' ({parts})' if parts else ''}",
            megabytes(self.peak_bytes),
        ]
        return ", ".join(said + ([f"{skipped} skipped"] if skipped else []))
