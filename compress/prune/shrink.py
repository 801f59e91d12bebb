"""A smaller tower from a larger one: blocks, heads and MLP units are taken out, and what reads them is fitted again.

The walk goes from the first block to the last. Each Linear that ends a sub-block (the out-projection after heads, FC2
after MLP units) is refitted so that the pruned residual stream behind it is as near as possible to the dense one: its
inputs are those of the pruned model, with all that went wrong before it, and its target is the dense stream less the
pruned one, so that later blocks mend what earlier ones lost (asymmetric reconstruction, Zhang et al. 2016,
"Accelerating Very Deep Convolutional Networks", section 3.3). Where whole blocks go, the Linear before them aims at the
dense stream behind them.

Two streams (dense and pruned, tokens times width) are held for all samples; everything else is sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmcompress.architecture import TowerConfig
from mmcompress.compress.prune.reconstruct import Gram, refit, removal_order
from mmcompress.compress.train.student import copy_block
from mmcompress.model import DualEncoder, ImageTower, TextTower
from mmcompress.transformer import Block

T = TypeVar("T", bound=TowerConfig)
TowerName = Literal["image", "text"]
Size = tuple[int, int] | None
"""Heads and MLP units that a block keeps; None where the whole block goes."""
Scores = Mapping[str, Tensor]
"""Importance of the heads (`image.blocks.0.out`) and MLP units (`image.blocks.0.fc2`); empty to go by activations."""
Streams = list[Tensor]
"""The residual stream (B, T, width) of each batch."""
POOLED = 0.5
"""Weight of the pooled token in a fit, in tokens of its sequence: only it is read in the end, but one is too few."""
Features = Callable[[Tensor], Tensor]
"""(B, T, width) -> (B, T, features): what a sub-block's last Linear reads."""


def resized(tower: T, sizes: Sequence[Size]) -> T:
    """The tower's config with these sizes, one a block of the original."""
    kept = [size for size in sizes if size is not None]
    return tower.model_copy(update={"heads": tuple(h for h, _ in kept), "mlp": tuple(m for _, m in kept)})


def sizes_of(tower: TowerConfig) -> list[Size]:
    return list(zip(tower.heads, tower.mlp, strict=True))


@torch.no_grad()
def shrunk(
    model: DualEncoder, name: TowerName, sizes: Sequence[Size], inputs: Sequence[Tensor], scores: Scores, refitted: bool
) -> DualEncoder:
    """`model` with one tower at these sizes; `inputs` are its batches of pixels or tokens.

    What goes is what `scores` rates lowest, or without scores what the outputs miss least.
    """
    config: TowerConfig = getattr(model.config, name)
    if list(sizes) == sizes_of(config):
        return model
    tower: ImageTower | TextTower = getattr(model, name)
    smaller = DualEncoder(model.config.model_copy(update={name: resized(config, sizes)})).to(model.logit_scale.device)
    state = model.state_dict()
    own = f"{name}.blocks."
    smaller.load_state_dict({k: v if k.startswith(own) else state[k] for k, v in smaller.state_dict().items()})

    counts = [counted(tower, x) for x in inputs]
    dense = [tower.enter(x) for x in inputs]
    ours = list(dense)
    kept = [index for index, size in enumerate(sizes) if size is not None]
    dense = through(tower, range(kept[0]), dense)
    for target, index, following in zip(getattr(smaller, name).blocks, kept, [*kept[1:], len(sizes)], strict=True):
        attention, mlp = sub_blocks(model, name, index)
        dense = attention.behind(dense)
        out = _fitted(attention, (dense, ours, counts), target.heads, scores, refitted)
        ours = attention.behind(ours, out)
        dense = through(tower, range(index + 1, following), mlp.behind(dense))
        fc2 = _fitted(mlp, (dense, ours, counts), target.fc1.out_features, scores, refitted)
        ours = mlp.behind(ours, fc2)
        copy_block(target, cast(Block, tower.blocks[index]), out.groups, fc2.groups)
        for linear, part in ((target.out, out), (target.fc2, fc2)):
            linear.weight.copy_(part.weight)
            linear.bias.copy_(part.bias)
    return smaller.eval()


@dataclass(frozen=True)
class SubBlock:
    """Attention or MLP of a block: features of the residual stream, and the Linear that leads them back to it."""

    name: str
    """Of the Linear: `image.blocks.0.out`."""
    features: Features
    linear: nn.Linear
    group: int
    """Features of one head, or of one MLP unit: 1."""

    def behind(self, streams: Streams, linear: Callable[[Tensor], Tensor] | None = None) -> Streams:
        """The streams with this sub-block added, by another Linear where one is given."""
        return [x + (linear or self.linear)(self.features(x)) for x in streams]


def sub_blocks(model: DualEncoder, name: TowerName, index: int) -> tuple[SubBlock, SubBlock]:
    """Attention and MLP of one block."""
    tower: ImageTower | TextTower = getattr(model, name)
    config: TowerConfig = getattr(model.config, name)
    block = cast(Block, tower.blocks[index])
    place = f"{name}.blocks.{index}"
    attention = SubBlock(f"{place}.out", lambda x: block.attended(x, tower.causal), block.out, config.head_dim)
    return attention, SubBlock(f"{place}.fc2", block.hidden, block.fc2, 1)


@dataclass(frozen=True)
class Part:
    """A Linear that reads some of the features only."""

    groups: list[int]
    """The heads or units that are kept."""
    columns: Tensor
    """Their features."""
    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """(…, all features) -> (…, width)"""
        return F.linear(features[..., self.columns], self.weight, self.bias)


def part_of(sub: SubBlock, groups: Sequence[int], gram: Gram | None) -> Part:
    """The sub-block's Linear for some of its heads or units, refitted where a Gram matrix is given."""
    linear, device = sub.linear, sub.linear.weight.device
    first = torch.tensor(groups, device=device) * sub.group
    columns = (first[:, None] + torch.arange(sub.group, device=device)).flatten()
    weight, bias = linear.weight[:, columns], linear.bias
    return Part(list(groups), columns, *((weight, bias) if gram is None else refit(gram, columns, weight, bias)))


def _fitted(
    sub: SubBlock, streams: tuple[Streams, Streams, Sequence[Tensor]], count: int, scores: Scores, refitted: bool
) -> Part:
    """Choose `count` heads or units and fit what reads them; `streams`: wanted, pruned, and what counts in them."""
    gram = gram_of(sub, streams) if refitted or not scores else None
    groups = list(range(count))
    if count * sub.group < sub.linear.in_features:
        groups = sorted(order_of_removal(sub, gram, scores, count)[-count:])
    return part_of(sub, groups, gram if refitted else None)


def order_of_removal(sub: SubBlock, gram: Gram | None, scores: Scores, kept: int = 0) -> list[int]:
    """The sub-block's heads or units, the most dispensable first; the last `kept` may be in no order."""
    if sub.name in scores:
        return torch.argsort(scores[sub.name], stable=True).tolist()
    assert gram is not None
    return removal_order(gram, sub.group, kept=kept)


def gram_of(sub: SubBlock, streams: tuple[Streams, Streams, Sequence[Tensor]]) -> Gram:
    """Features of the pruned stream against what is missing to the wanted one."""
    gram = Gram(sub.linear.in_features, sub.linear.out_features, sub.linear.weight.device)
    for wanted, stream, counts in zip(*streams, strict=True):
        gram.add(sub.features(stream), wanted - stream, counts)
    return gram


def counted(tower: ImageTower | TextTower, inputs: Tensor) -> Tensor:
    """(B, T) how much each token counts: the pooled one for half of all, those that reach no embedding for nothing.

    Where attention pools, all of them are read and count the same.
    """
    ends, tokens = tower.ends(inputs), inputs.shape[1] if isinstance(tower, TextTower) else len(tower.positions)
    counts = (torch.arange(tokens, device=inputs.device) <= tower.reach(inputs)[:, None]).float()
    if ends is None:
        return counts
    pooled = (POOLED * counts.sum(dim=1)).clamp_min(1)
    return counts.scatter(1, ends[:, None], pooled[:, None])


def through(tower: ImageTower | TextTower, indices: Iterable[int], streams: Streams) -> Streams:
    """The streams behind some blocks."""
    for index in indices:
        streams = [tower.blocks[index](x, tower.causal) for x in streams]
    return streams
