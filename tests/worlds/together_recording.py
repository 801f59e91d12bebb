"""What the training loop averages over the processes, recorded step by step."""

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
    """Write the mean loss and the mean gradients of every step into `folder/NN.safetensors`, on rank 0."""
    average, steps = optimize.average_gradients, iter(range(100))

    def recording(parameters: Iterable[nn.Parameter], loss: Tensor, here: World) -> Tensor:
        trained = list(parameters)
        mean = average(trained, loss, here)
        if here.leads:
            folder.mkdir(exist_ok=True)
            gradients = {str(i): p.grad for i, p in enumerate(trained) if p.grad is not None}
            save_file({"loss": mean.reshape(1), **gradients}, folder / f"{next(steps):02d}.safetensors")
        return mean

    optimize.average_gradients = recording
    try:
        yield
    finally:
        optimize.average_gradients = average
