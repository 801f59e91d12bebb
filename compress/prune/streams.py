"""Fewer channels between the blocks of a convolutional tower, so that all that reads or writes them becomes smaller.

Channels between two blocks that change them are one stream: what the first gives and what residual blocks add to. Of
each stream the channels stay whose loss would change most of what is read of them: the variance of a channel times the
squared weights that read it, over all readers (a channel's part of the output variance, as Wanda, Sun et al. 2024,
equation 1, for channels). Then, from the first block to the last, each convolution that reads a stream is fitted to
give what the dense one gave, from the channels that are left, and each that writes one to give the channels that are
kept, whatever went wrong before it (`folded.py`).

Left out: streams with mobile attention in them, and the channels of the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from mmcompress.compress.prune.bottlenecks import Maps, entered
from mmcompress.compress.prune.folded import Folded, columns_of, copy_rows, features_of, norm_of
from mmcompress.compress.prune.hidden import streams_of, with_streams
from mmcompress.compress.prune.reconstruct import Gram
from mmcompress.convnet import ConvConfig
from mmcompress.convtower import Bottleneck, Convolution, ConvTower
from mmcompress.model import DualEncoder
from mmcompress.progress import track

READERS = ("conv", "expand")
"""The parts of a block that read a stream, if not through a depthwise convolution in front."""


@torch.no_grad()
def narrowed_streams(
    model: DualEncoder, widths: Sequence[int], inputs: Sequence[Tensor], refitted: bool
) -> DualEncoder:
    """`model` with streams of these channels, the stem's first; `inputs` are batches of pixels."""
    config, tower = cast(ConvConfig, model.config.image), cast(ConvTower, model.image)
    smaller_config = with_streams(config, widths)
    if smaller_config == config:
        return model
    smaller = DualEncoder(model.config.model_copy(update={"image": smaller_config})).to(model.logit_scale.device)
    smaller.eval()  # the narrow blocks are run while they are filled
    target, state = cast(ConvTower, smaller.image), model.state_dict()
    same = {k: state[k] if state[k].shape == v.shape else v for k, v in smaller.state_dict().items()}
    smaller.load_state_dict(same)
    kept = [
        channels[-width:].sort().values for channels, width in zip(orders(tower, config, inputs), widths, strict=True)
    ]

    copy_rows(target.stem, tower.stem, kept[0])
    dense = [entered(tower, x) for x in inputs]
    ours = [x[:, kept[0]] for x in dense]
    places = list(zip(tower.blocks, target.blocks, streams_of(config), strict=True))
    for block, new, (before, behind) in track(places, "narrowing image blocks", len(places)):
        walk = _Walk(cast(Bottleneck, block), cast(Bottleneck, new), kept[before], kept[behind], refitted)
        dense, ours = walk.through(dense, ours)
    pooled, wanted = ([x.mean((2, 3), keepdim=True) for x in maps] for maps in (ours, dense))
    _fit(tower.head, target.head, kept[-1], None, pooled, [_linear(tower.head, x) for x in wanted], refitted)
    return smaller


@dataclass(frozen=True)
class _Walk:
    """One block on its way from the dense tower to the narrow one."""

    block: Bottleneck
    target: Bottleneck
    before: Tensor
    """Channels that are kept of what it reads, by index."""
    behind: Tensor
    """Channels that are kept of what it gives."""
    refitted: bool

    def through(self, dense: Maps, ours: Maps) -> tuple[Maps, Maps]:
        """Both streams behind the block, the narrow one filled in and fitted."""
        after, entry = [self.block(x) for x in dense], ours
        if self.block.scale is not None:
            cast(Tensor, self.target.scale).copy_(self.block.scale[self.behind])
        if "start" in self.block._modules:
            copy_rows(self.target.start, self.block.start, self.before)
            dense, ours = [self.block.start(x) for x in dense], [self.target.start(x) for x in ours]
        if "conv" in self.block._modules:
            wanted = [_linear(self.block.conv, x)[:, self.behind] for x in dense]
            _fit(self.block.conv, self.target.conv, self.before, self.behind, ours, wanted, self.refitted)
            return after, [self.target.conv(x) for x in ours]
        wanted = [_linear(self.block.expand, x) for x in dense]
        _fit(self.block.expand, self.target.expand, self.before, None, ours, wanted, self.refitted)
        ours = [self.target.expand(x) for x in ours]
        if "middle" in self.block._modules:
            ours = [self.target.middle(x) for x in ours]
        goals = [x[:, self.behind] - (y if self.block.residual else 0) for x, y in zip(after, entry, strict=True)]
        own, scale = self.block.project, self.block.scale
        hidden = torch.arange(own.in_channels, device=own.weight.device)
        _fit(own, self.target.project, hidden, self.behind, ours, goals, self.refitted, scale)
        return after, [self.target(x) for x in entry]


def _fit(
    own: Convolution,
    target: Convolution,
    read: Tensor,
    rows: Tensor | None,
    ours: Maps,
    wanted: Maps,
    refitted: bool,
    scale: Tensor | None = None,
) -> None:
    """Fill a convolution that reads some channels, fitted to give the wanted maps where that is asked for."""
    folded, columns = Folded.of(own, rows, scale), columns_of(own, read)
    if not refitted:
        return folded.write(target, columns, None, None, columns)
    gram = Gram(len(columns), len(folded.rows), own.weight.device)
    for x, y in zip(ours, wanted, strict=True):
        gram.add(features_of(target, x), y.permute(0, 2, 3, 1))
    every = torch.arange(len(columns), device=own.weight.device)
    folded.write(target, columns, folded.fitted(gram, every, columns), gram, every)


def _linear(convolution: Convolution, x: Tensor) -> Tensor:
    """What a convolution and its BatchNorm give, before the ReLU."""
    y = F.conv2d(x, convolution.weight, None, convolution.stride, convolution.padding, groups=convolution.groups)
    found: Tensor = norm_of(convolution)(y)
    return found


def orders(tower: ConvTower, config: ConvConfig, inputs: Sequence[Tensor]) -> Iterator[Tensor]:
    """Of each stream its channels, the most dispensable first."""
    streams = streams_of(config)
    scores = [torch.zeros(0)] * (streams[-1][1] + 1)
    maps = [entered(tower, x) for x in inputs]
    for block, (before, _) in zip(tower.blocks, streams, strict=True):
        scores[before] = _added(scores[before], _read(cast(Bottleneck, block), maps))
        maps = [block(x) for x in maps]
    pooled = [x.mean((2, 3), keepdim=True) for x in maps]
    scores[-1] = _added(scores[-1], _variance(pooled) * _squares(tower.head))
    for score in scores:
        yield torch.argsort(score, stable=True)


def _read(block: Bottleneck, maps: Maps) -> Tensor:
    """(channels,) what each channel is of the variance of what the block makes of its input."""
    if "start" in block._modules:
        maps = [block.start(x) for x in maps]
    reader = next(getattr(block, part) for part in READERS if part in block._modules)
    share = _variance(maps) * _squares(reader)
    return share / share.sum().clamp_min(torch.finfo(share.dtype).tiny)


def _variance(maps: Maps) -> Tensor:
    number = sum(x.shape[0] * x.shape[2] * x.shape[3] for x in maps)
    mean = torch.stack([x.sum((0, 2, 3)) for x in maps]).sum(dim=0) / number
    return torch.stack([(x - mean[:, None, None]).square().sum((0, 2, 3)) for x in maps]).sum(dim=0) / number


def _squares(convolution: Convolution) -> Tensor:
    """(inputs,) summed squares of the weights that read each channel, BatchNorm folded in."""
    gain = Folded.of(convolution).gain
    return (convolution.weight * gain[:, None, None, None]).square().sum((0, 2, 3))


def _added(score: Tensor, more: Tensor) -> Tensor:
    return more if not len(score) else score + more
