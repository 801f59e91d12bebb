"""What the training loop averages over the processes, step by step: gradients, their norm, the loss by term."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from mmcompress.compress.train import optimize
from mmcompress.distributed import World


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """Write the mean figures and the mean gradients of every step into `folder/NN.safetensors`, on rank 0."""
    gradients: dict[str, Tensor] = {}
    average, mean, steps = optimize.average_gradients, optimize.mean_over_ranks, iter(range(100))

    def averaged(parameters: Iterable[nn.Parameter], here: World) -> None:
        trained = list(parameters)
        average(trained, here)
        gradients.update({str(i): p.grad.clone() for i, p in enumerate(trained) if p.grad is not None})

    def reduced(figures: Tensor, here: World) -> Tensor:
        found = mean(figures, here)
        if here.leads:
            folder.mkdir(exist_ok=True)
            save_file({"figures": found, **gradients}, folder / f"{next(steps):02d}.safetensors")
        gradients.clear()
        return found

    optimize.average_gradients, optimize.mean_over_ranks = averaged, reduced
    try:
        yield
    finally:
        optimize.average_gradients, optimize.mean_over_ranks = average, mean
