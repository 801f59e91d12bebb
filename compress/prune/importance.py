"""What heads and MLP units are worth, by scores that are read off the dense model.

- Taylor (Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", equation 8; Michel et al. 2019 for
  heads): put a gate of 1 on each unit; the change of the loss when the gate closes is, to first order, |sum over tokens
  of activation * gradient|, averaged over samples. The loss is the distillation loss against the cached teacher, so no
  label is needed.
- Magnitude: norms of the weights into and out of the unit, which needs no data.

The third way, by activations, has no score of a unit by itself: see `reconstruct.removal_order`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from mmcompress.compress.products import fast_products
from mmcompress.compress.train.objective import distillation_loss
from mmcompress.compress.train.pairs import TrainingBatch
from mmcompress.compress.train.student import head_norms, unit_norms
from mmcompress.model import DualEncoder
from mmcompress.transformer import Block


def magnitudes(model: DualEncoder) -> dict[str, Tensor]:
    """Weight norms of every head (`….out`: (heads,)) and MLP unit (`….fc2`: (units,))."""
    norms: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, Block):
            norms |= {f"{name}.out": head_norms(module).detach(), f"{name}.fc2": unit_norms(module).detach()}
    return norms


def taylor(model: DualEncoder, batches: Iterable[TrainingBatch], anchors: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """First-order importance of every head (`….out`: (heads,)) and MLP unit (`….fc2`: (units,))."""
    totals: dict[str, Tensor] = {}
    for pairs in batches:
        with linear_inputs(model) as inputs:
            assert pairs.teacher is not None
            with fast_products():
                distillation_loss(model(pairs.pixels, pairs.tokens), pairs.teacher, anchors).backward()
            for name, summed in summed_by_unit(model, inputs).items():
                totals[name] = totals[name] + summed if name in totals else summed
        model.zero_grad(set_to_none=True)
    return totals


def summed_by_unit(model: DualEncoder, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|activation * gradient|, tokens summed inside and samples outside, for the inputs that have a gradient."""
    sums: dict[str, Tensor] = {}
    for name, activation in inputs.items():
        assert activation.grad is not None
        products = (activation.detach() * activation.grad).sum(dim=1)  # (B, units)
        if name.endswith(".out"):
            products = products.unflatten(1, (_block(model, name).heads, -1)).sum(dim=2)
        sums[name] = products.abs().sum(dim=0).cpu()
    return sums


@contextmanager
def linear_inputs(model: DualEncoder) -> Iterator[dict[str, Tensor]]:
    """Catch, with gradient, what goes into each out-projection and FC2."""
    inputs: dict[str, Tensor] = {}

    def catch(name: str) -> object:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            (activation,) = arguments
            activation.retain_grad()
            inputs[name] = activation

        return hook

    handles = [
        linear.register_forward_pre_hook(catch(name))  # type: ignore[arg-type]
        for name, linear in model.linears()
        if name.endswith((".out", ".fc2"))
    ]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _block(model: DualEncoder, linear: str) -> Block:
    block = model.get_submodule(linear.rpartition(".")[0])
    assert isinstance(block, Block)
    return block
