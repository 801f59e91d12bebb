"""What heads, MLP units and hidden channels are worth, by scores that are read off the dense model.

- Taylor (Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", equation 8; Michel et al. 2019 for
  heads): put a gate of 1 on each unit; the change of the loss when the gate closes is, to first order, |sum over
  tokens or places of activation * gradient|, averaged over samples. The loss is the distillation loss against the
  cached teacher, so no label is needed.
- Magnitude: norms of the weights into and out of the unit, which needs no data.

The third way, by activations, has no score of a unit by itself: see `reconstruct.removal_order`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmcompress.compress.products import fast_products
from mmcompress.compress.prune.bottlenecks import bottlenecks
from mmcompress.compress.train.objective import distillation_loss
from mmcompress.compress.train.pairs import TrainingBatch
from mmcompress.compress.train.student import head_norms, unit_norms
from mmcompress.convtower import Bottleneck, Convolution
from mmcompress.model import DualEncoder
from mmcompress.towerparts import Group
from mmcompress.transformer import Block


def magnitudes(model: DualEncoder) -> dict[str, Tensor]:
    """Weight norms of the units of every group (`towerparts.Group`), by the name of the product that reads them."""
    norms: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, Block):
            norms |= {f"{name}.out": head_norms(module).detach(), f"{name}.fc2": unit_norms(module).detach()}
    return norms | {name: hidden_norms(block).detach() for name, block in bottlenecks(model)}


def taylor(model: DualEncoder, batches: Iterable[TrainingBatch], anchors: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """First-order importance of the units of every group, by the name of the product that reads them."""
    totals: dict[str, Tensor] = {}
    for pairs in batches:
        with reader_inputs(model) as inputs:
            assert pairs.teacher is not None
            with fast_products():
                distillation_loss(model(pairs.pixels, pairs.tokens), pairs.teacher, anchors).backward()
            for name, summed in summed_by_unit(model, inputs).items():
                totals[name] = totals[name] + summed if name in totals else summed
        model.zero_grad(set_to_none=True)
    return totals


def summed_by_unit(model: DualEncoder, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|activation * gradient|, tokens or places summed inside and samples outside, of the inputs with a gradient."""
    units, sums = units_by_reader(model), {}
    for name, activation in inputs.items():
        assert activation.grad is not None
        products = activation.detach() * activation.grad
        products = products.sum(dim=1) if products.ndim == 3 else products.sum(dim=(2, 3))  # (B, features)
        sums[name] = products.unflatten(1, (units[name], -1)).sum(dim=2).abs().sum(dim=0).cpu()
    return sums


def units_by_reader(model: DualEncoder) -> dict[str, int]:
    """How many units there are in every group, by the name of the product that reads them: `image.blocks.0.fc2`."""
    found: dict[str, int] = {}
    for tower in model.config.compressed:
        groups: Sequence[Group] = getattr(model.config, tower).groups()
        found |= {f"{tower}.{group.reader}": group.units for group in groups}
    return found


@contextmanager
def reader_inputs(model: DualEncoder) -> Iterator[dict[str, Tensor]]:
    """Catch, with gradient, what goes into each product that reads a group of units."""
    inputs: dict[str, Tensor] = {}

    def catch(name: str) -> object:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            (activation,) = arguments
            activation.retain_grad()
            inputs[name] = activation

        return hook

    handles = [
        model.get_submodule(name).register_forward_pre_hook(catch(name))  # type: ignore[arg-type]
        for name in units_by_reader(model)
    ]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def hidden_norms(block: Bottleneck) -> Tensor:
    """(hidden,) norm of the incoming times the outgoing weights of each hidden channel, BatchNorms folded in."""
    incoming = _folded(block.expand).flatten(1).norm(dim=1)
    if "middle" in block._modules:
        incoming = incoming * _folded(block.middle).flatten(1).norm(dim=1)
    return torch.mul(incoming, _folded(block.project).flatten(1).norm(dim=0))


def _folded(convolution: Convolution) -> Tensor:
    norm = convolution.norm
    assert norm is not None
    return convolution.weight * (norm.weight * torch.rsqrt(norm.variance + norm.eps))[:, None, None, None]
