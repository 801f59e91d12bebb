"""Convolutional towers made smaller: hidden channels of bottlenecks are taken out, and whole bottlenecks, no mask.

A hidden channel goes out of the expansion, the depthwise convolution behind it and the projection at once, so what is
left is a smaller number in the config. The walk is that of `shrink.py`, on maps instead of tokens: the projection is
refitted so that the pruned map behind it is as near as possible to the dense one (Zhang et al. 2016, section 3.3),
every place of the map counting the same, and where whole bottlenecks go, what is in front of them aims behind them.

What is fitted is the projection with its BatchNorm and layer scale folded in (`folded.py`). Channels between blocks go
before, where that is asked for (`streams.py`). Left out: channels of the head, and heads of mobile attention.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from mmcompress.compress.prune.folded import Folded, copy_rows
from mmcompress.compress.prune.harm import PROBED, first_batches
from mmcompress.compress.prune.hidden import HiddenErrors, HiddenSizes, hidden_blocks, resized_hidden
from mmcompress.compress.prune.reconstruct import Gram, removal_order
from mmcompress.compress.prune.sizes import levels
from mmcompress.convnet import ConvConfig
from mmcompress.convtower import Bottleneck, ConvTower
from mmcompress.errors import finite
from mmcompress.model import DualEncoder
from mmcompress.progress import track

Maps = list[Tensor]
"""What is between two blocks, (B, C, H, W), of each batch."""


@dataclass(frozen=True)
class Projection:
    """A 1x1 convolution with everything behind it folded in, that reads some hidden channels only."""

    kept: list[int]
    """The hidden channels that it reads."""
    weight: Tensor
    """(channels, kept)"""
    bias: Tensor
    """(channels,)"""


@dataclass(frozen=True)
class Hidden:
    """The hidden channels of one bottleneck."""

    name: str
    """Of the convolution that reads them: `image.blocks.3.project`."""
    block: Bottleneck

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, H', W', hidden): what the projection reads."""
        for part in ("start", "expand", "middle"):
            x = getattr(self.block, part)(x) if part in self.block._modules else x
        return x.permute(0, 2, 3, 1)

    def folded(self) -> Folded:
        """The projection with all behind it."""
        return Folded.of(self.block.project, scale=self.block.scale)

    def projection(self, kept: Sequence[int], gram: Gram | None) -> Projection:
        """The projection from some of the channels, refitted where a Gram matrix is given."""
        index = torch.tensor(kept, device=self.block.project.weight.device)
        folded = self.folded()
        return Projection(list(kept), *(folded.linear(index) if gram is None else folded.fitted(gram, index, index)))

    def behind(self, maps: Maps, projection: Projection | None = None) -> Maps:
        """The maps behind this bottleneck, by another projection where one is given."""
        if projection is None:
            return [self.block(x) for x in maps]
        found = []
        for x in maps:
            y = F.linear(self.features(x)[..., projection.kept], projection.weight, projection.bias)
            y = y.permute(0, 3, 1, 2)
            found.append(x + y if self.block.residual else y)
        return found

    def gram(self, wanted: Maps, maps: Maps) -> Gram:
        """Features of `maps` against what is missing to the wanted maps behind the block."""
        sizes = self.block.project
        gram = Gram(sizes.in_channels, sizes.out_channels, sizes.weight.device)
        for goal, x in zip(wanted, maps, strict=True):
            gram.add(self.features(x), (goal - x if self.block.residual else goal).permute(0, 2, 3, 1))
        return gram

    def order(self, gram: Gram | None, scores: Mapping[str, Tensor], kept: int = 0) -> list[int]:
        """Hidden channels, the most dispensable first; the last `kept` may be in no order."""
        if self.name in scores:
            return torch.argsort(scores[self.name], stable=True).tolist()
        assert gram is not None
        return removal_order(gram, 1, kept=kept)

    def copy_to(self, target: Bottleneck, projection: Projection, gram: Gram | None) -> None:
        """Fill a smaller bottleneck; with the Gram matrix that the projection was fitted on, if it was."""
        kept = torch.tensor(projection.kept)
        for part in ("start", "expand", "middle"):
            if part in self.block._modules:
                copy_rows(getattr(target, part), getattr(self.block, part), None if part == "start" else kept)
        if self.block.scale is not None:
            cast(Tensor, target.scale).copy_(self.block.scale)
        fitted = None if gram is None else (projection.weight, projection.bias)
        self.folded().write(target.project, kept, fitted, gram, kept)


def hidden_of(model: DualEncoder) -> dict[int, Hidden]:
    """The bottlenecks of the image tower that have hidden channels, by their index."""
    tower = cast(ConvTower, model.image)
    found = {}
    for index in hidden_blocks(cast(ConvConfig, model.config.image)):
        found[index] = Hidden(f"image.blocks.{index}.project", cast(Bottleneck, tower.blocks[index]))
    return found


def bottlenecks(model: DualEncoder) -> Iterator[tuple[str, Bottleneck]]:
    """The name of each projection from hidden channels, and its block; none in a transformer."""
    if isinstance(model.config.image, ConvConfig):
        for hidden in hidden_of(model).values():
            yield hidden.name, hidden.block


@torch.no_grad()
def hidden_errors(
    model: DualEncoder, inputs: Sequence[Tensor], scores: Mapping[str, Tensor], multiple: int, refitted: bool
) -> dict[int, HiddenErrors]:
    """For each bottleneck the errors of fewer hidden channels and of its removal, one at a time (see `harm.py`)."""
    tower, config = cast(ConvTower, model.image), cast(ConvConfig, model.config.image)
    probed = len(first_batches(inputs, PROBED))
    before = [entered(tower, x) for x in inputs]
    wanted = _embeddings(tower, through(tower, range(config.depth), before[:probed]))
    found, blocks = {}, hidden_of(model)
    for index in track(range(config.depth), "measuring image blocks", config.depth):
        after = through(tower, [index], before)

        def error(maps: Maps, rest: range = range(index + 1, config.depth)) -> float:
            ours = _embeddings(tower, through(tower, rest, maps))
            return finite(float(1 - (ours * wanted).sum(dim=-1).mean()), "the error of a cut in the image tower")

        if (hidden := blocks.get(index)) is not None:
            gram = hidden.gram(after, before)
            order = hidden.order(gram, scores)
            errors = {len(order): 0.0}
            for size in levels(len(order), multiple):
                projection = hidden.projection(sorted(order[-size:]), gram if refitted else None)
                errors[size] = error(hidden.behind(before[:probed], projection))
            removed = None
            if hidden_blocks(config)[index]:
                pairs = zip(before, after, strict=True)
                shift = torch.stack([(b - a).mean(dim=(0, 2, 3)) for a, b in pairs]).mean(dim=0)
                removed = error([x + shift[:, None, None] for x in before[:probed]])
            found[index] = HiddenErrors(errors, removed)
        before = after
    return found


@torch.no_grad()
def shrunk_bottlenecks(
    model: DualEncoder, sizes: HiddenSizes, inputs: Sequence[Tensor], scores: Mapping[str, Tensor], refitted: bool
) -> DualEncoder:
    """`model` with hidden channels of these sizes; `inputs` are batches of pixels.

    What goes is what `scores` rates lowest, or without scores what the outputs miss least.
    """
    config, tower = cast(ConvConfig, model.config.image), cast(ConvTower, model.image)
    smaller_config = resized_hidden(config, sizes)
    if smaller_config == config:
        return model
    smaller = DualEncoder(model.config.model_copy(update={"image": smaller_config})).to(model.logit_scale.device)
    state = model.state_dict()
    smaller.load_state_dict(
        {k: v if k.startswith("image.blocks.") else state[k] for k, v in smaller.state_dict().items()}
    )
    dense = [entered(tower, x) for x in inputs]
    ours = list(dense)
    blocks, kept = hidden_of(model), [index for index in range(config.depth) if sizes.get(index, 0) is not None]
    targets = cast(ConvTower, smaller.image).blocks
    every = zip(targets, kept, [*kept[1:], config.depth], strict=True)
    for target, index, following in track(every, "fitting image blocks", len(kept)):
        dense = through(tower, range(index, following), dense)
        if (hidden := blocks.get(index)) is None:
            target.load_state_dict(tower.blocks[index].state_dict())
            ours = through(tower, [index], ours)
            continue
        block, count = cast(Bottleneck, target), cast(Bottleneck, target).project.in_channels
        gram = hidden.gram(dense, ours) if refitted or not scores else None
        units = list(range(hidden.block.project.in_channels))
        if count < len(units):
            units = sorted(hidden.order(gram, scores, count)[-count:])
        projection = hidden.projection(units, gram if refitted else None)
        ours = hidden.behind(ours, projection)
        hidden.copy_to(block, projection, gram if refitted else None)
    return smaller.eval()


def entered(tower: ConvTower, pixels: Tensor) -> Tensor:
    return cast(Tensor, tower.stem(pixels.contiguous(memory_format=torch.channels_last)))


def through(tower: ConvTower, indices: Iterable[int], maps: Maps) -> Maps:
    for index in indices:
        maps = [tower.blocks[index](x) for x in maps]
    return maps


def _embeddings(tower: ConvTower, maps: Maps) -> Tensor:
    return F.normalize(torch.cat([tower.leave(x) for x in maps]), dim=-1)
