"""2:4 sparsity: of every four neighbouring inputs of a Linear, each output reads two.

NVIDIA GPUs since Ampere multiply such weights in half the products (Mishra et al. 2021, "Accelerating Sparse Deep
Neural Networks"). Which two go, and what the others weigh then, is SparseGPT's (Frantar & Alistarh 2023, section 3.3):
inputs are visited in order, at every fourth the two weights with the smallest w^2 / U_ii^2 are chosen, with U^T U the
inverse of the inputs' second moment, and their error is taken over by the inputs that are still to come. Linears are
visited in the order of execution, on the inputs that the sparse ones before them make.

This changes weights and no sizes: MACs and parameters stay, every backend computes the same function, and only one with
sparse kernels can be faster. Nothing here says that it is. Recovery keeps the zeros by keeping their gradients zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn

from mmcompress.compress.prune.reconstruct import RIDGE
from mmcompress.compress.prune.shrink import TowerName, counted
from mmcompress.errors import UsageError
from mmcompress.export import sparsity
from mmcompress.export.sparsity import GROUP, KEPT
from mmcompress.model import DualEncoder, ImageTower, TextTower
from mmcompress.transformer import Block

SPARSE = "two_four"
"""The fact of a checkpoint that lists its sparse Linears."""


def two_four(weight: Tensor, moment: Tensor, ridge: float = RIDGE) -> Tensor:
    """(out, in), (in, in) second moment of the inputs -> (out, in) with two of every four inputs at zero."""
    inputs = weight.shape[1]
    if inputs % GROUP:
        raise ValueError(f"2:4 needs a multiple of {GROUP} inputs, got {inputs}")
    moment = moment.double()
    damping = ridge * moment.diagonal().mean().clamp_min(torch.finfo(moment.dtype).tiny)
    inverse = torch.linalg.inv(moment + damping * torch.eye(inputs).to(moment))
    upper = torch.linalg.cholesky(inverse, upper=True)
    pruned = weight.double().clone()
    for start in range(0, inputs, GROUP):
        group = slice(start, start + GROUP)
        saliency = pruned[:, group].square() / upper.diagonal()[group].square()
        gone = torch.zeros_like(saliency, dtype=torch.bool)
        gone.scatter_(1, saliency.argsort(dim=1, stable=True)[:, : GROUP - KEPT], True)
        for offset, i in enumerate(range(start, start + GROUP)):
            error = torch.where(gone[:, offset], pruned[:, i], 0) / upper[i, i]
            pruned[:, i + 1 :] -= error[:, None] * upper[i, i + 1 :]
            pruned[:, i] = torch.where(gone[:, offset], 0, pruned[:, i])
    return pruned.to(weight.dtype)


@torch.no_grad()
def sparsified(model: DualEncoder, name: TowerName, inputs: Sequence[Tensor]) -> DualEncoder:
    """A copy with every Linear of one tower that has a multiple of four inputs in 2:4; `inputs` are its batches."""
    model = deepcopy(model)
    tower: ImageTower | TextTower = getattr(model, name)
    counts = [counted(tower, x) for x in inputs]
    streams = [tower.enter(x) for x in inputs]
    for module in tower.blocks:
        block = cast(Block, module)
        for linear, entering in _in_order(block, tower.causal):
            if linear.in_features % GROUP == 0:
                moment = _second_moment(entering, streams, counts)
                linear.weight.copy_(two_four(linear.weight, moment))
        streams = [block(x, tower.causal) for x in streams]
    return model.eval()


def _in_order(block: Block, causal: bool) -> list[tuple[nn.Linear, Callable[[Tensor], Tensor]]]:
    """The block's Linears, each with what it reads of the stream; computed when it is asked for."""

    def middle(x: Tensor) -> Tensor:
        added: Tensor = x + block.out(block.attended(x, causal))
        return added

    return [
        (block.qkv, block.norm1),
        (block.out, lambda x: block.attended(x, causal)),
        (block.fc1, lambda x: block.norm2(middle(x))),
        (block.fc2, lambda x: block.hidden(middle(x))),
    ]


def _second_moment(entering: Callable[[Tensor], Tensor], streams: Sequence[Tensor], counts: Sequence[Tensor]) -> Tensor:
    """(in, in): mean of x x^T over all tokens that count."""
    total, weight = torch.zeros(()).double(), 0.0
    for stream, count in zip(streams, counts, strict=True):
        x, each = entering(stream).flatten(0, 1), count.flatten()
        total = total.to(x.device) + ((x * each[:, None]).T @ x).double()
        weight += float(each.sum())
    return total / weight


def is_two_four(weight: Tensor) -> bool:
    """Whether of every four neighbouring inputs of (out, in) two are zero."""
    return sparsity.is_two_four(weight.detach().cpu().numpy().T)


def keep_zeros(model: DualEncoder, modules: Iterable[str]) -> None:
    """From now on training leaves the zeros of these Linears zero: their gradient is, and decay of zero is too."""
    linears = dict(model.linears())
    for name in modules:
        weight = linears[name].weight
        if not is_two_four(weight):
            raise UsageError(f"{name} is said to be 2:4 sparse and is not", "make the checkpoint again")
        mask = (weight.detach() != 0).to(weight.dtype)
        weight.register_hook(mask.mul)
