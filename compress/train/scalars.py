"""Figures of training for TensorBoard: loss and its terms, learning rate, gradient norm, speed, a point a step.

The package is an extra. Where none is asked for nothing is imported, and where it is absent that is said early.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from mmcompress.errors import UsageError, require


def check_tensorboard(folder: str | None) -> None:
    """Raise MissingRequirementError where figures are asked for and nothing can write them."""
    if folder is not None:
        require("tensorboard", "tensorboard")


@contextmanager
def scalars(folder: str | None, step: int) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Give a function of a step and its figures by name. It does nothing without a folder.

    Points after `step` that an interrupted run has left there are hidden, as they are drawn again. Raises UsageError
    for a folder that cannot be written to.
    """
    if folder is None:
        yield lambda _, __: None
        return
    check_tensorboard(folder)
    from torch.utils.tensorboard import SummaryWriter

    try:
        writer = SummaryWriter(folder, purge_step=step or None)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written to: {error}", "give another optimizer.tensorboard") from error

    def write(at: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, at)

    with writer:
        yield write
