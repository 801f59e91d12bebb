"""BatchNorm's statistics: of the whole batch while a tower trains, and of the weights that are used afterwards.

A running average lags behind the weights, and is of none of those that are averaged (Izmailov et al. 2018, "Averaging
Weights Leads to Wider Optima and Better Generalization", section 3.2). So none is kept. Before weights are used, to
measure R@10 or to be saved, they are run over the first batches of the training data, and the mean and the variance of
what reaches each BatchNorm are taken of all these images together (Wu & Johnson 2021, "Rethinking 'Batch' in
BatchNorm", section 3, which finds a thousand enough). The batches are the same every time, so the statistics are a
function of the weights, and no part of the state of a training.

Several processes normalize by the batch of all, forwards and backwards, which is what one process does with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmcompress.compress.train.pairs import TrainingBatch
from mmcompress.convtower import BatchNorm
from mmcompress.distributed import World, mean_over_ranks
from mmcompress.model import DualEncoder

IMAGES = 2048
"""That statistics are made of, in whole batches; all of the data where there are fewer."""
Settle = Callable[[], None]
"""Makes everything that follows from the weights fit them; called on every rank."""


class _Summed(torch.autograd.Function):
    """The sum over processes; its gradient is the sum of theirs, as each of their losses depends on it."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        whole = own.clone()
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        whole = gradient.contiguous().clone()
        dist.all_reduce(whole)
        return whole


def synchronize(model: nn.Module, here: World) -> None:
    """Have every BatchNorm normalize by the batch of all processes."""
    for norm in batch_norms(model):
        norm.summed = None if here.size == 1 else _Summed.apply


def batch_norms(model: nn.Module) -> list[BatchNorm]:
    return [module for module in model.modules() if isinstance(module, BatchNorm)]


def settling(
    model: DualEncoder, stream: Callable[[int, int], Iterator[TrainingBatch]], batch: int, here: World
) -> Settle:
    """What measures the statistics of a model's BatchNorms on the first batches of a stream of training pairs.

    `batch` is the size of one, over all processes. Nothing is done for a model without BatchNorms.
    """
    norms = batch_norms(model)

    def settle() -> None:
        first = (pairs.pixels for pairs in islice(stream(0, 0), -(-IMAGES // batch)))
        set_statistics(model.image, first, here)

    return settle if norms else lambda: None


@torch.no_grad()
def set_statistics(tower: nn.Module, batches: Iterator[Tensor], here: World) -> None:
    """Set mean and variance of each BatchNorm to those of its inputs over all batches (B, 3, H, W) of all processes."""
    norms = batch_norms(tower)
    sums = [torch.zeros(1 + 2 * len(norm.mean), dtype=torch.float64) for norm in norms]
    was = tower.training
    tower.train()
    with ExitStack() as hooks:
        for norm, total in zip(norms, sums, strict=True):
            hooks.enter_context(norm.register_forward_pre_hook(partial(_add, total)))
        for pixels in batches:
            tower.forward(pixels)  # of a tower that is compiled, the plain code, which has the hooks
    tower.train(was)
    own = torch.cat(sums).float() if here.device.type == "mps" else torch.cat(sums)
    of_all = mean_over_ranks(own.to(here.device), here).cpu().double()
    for norm, total in zip(norms, of_all.split([len(total) for total in sums]), strict=True):
        mean, square = (total[1:] / total[0]).chunk(2)
        norm.mean.copy_(mean)
        norm.variance.copy_(square - mean**2)


def _add(total: Tensor, _: nn.Module, inputs: tuple[Tensor]) -> None:
    """Add the number of values a channel, their sum and their sum of squares."""
    values = inputs[0].float()
    number = values.numel() // values.shape[1]
    variance, mean = (x.double().cpu() for x in torch.var_mean(values, (0, 2, 3), correction=0))
    total += number * torch.cat([torch.ones(1, dtype=torch.float64), mean, variance + mean**2])
