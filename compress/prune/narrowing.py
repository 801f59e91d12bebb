"""A convolutional tower under a limit: channels between its blocks and hidden channels, by what harms least together.

Hidden channels alone leave more than half of some towers: those between blocks are read and written by everything, and
none of what costs time beside the products becomes less. So a limit is met at each of a few shares of the channels
between blocks (`streams.py`): the tower is narrowed and fitted, what the limit leaves is shared out over the hidden
channels of its bottlenecks (`hidden.py`), and they are fitted. What is kept is the tower whose embeddings are nearest
to the dense ones, of samples that it was not fitted on: a head that reads more channels than there are samples gives
those that it was fitted on exactly. It is then fitted again on all. Shares fall from the whole width on until one is
worse than the one before it, since taking more of one kind and less of the other has one optimum.

Of a latency the time of every narrower tower is measured, and that of its bottlenecks composed by what a
multiply-accumulate of each stage costs; what is kept is then measured and moved as in `latency_target.py`.

Left out: a share of its own for each stream, which costs add up over no longer: what a stream costs depends on the
hidden channels beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmcompress.architecture import AnyImageConfig, DualEncoderConfig
from mmcompress.compress.prune.allocation import Choice, floor_cost
from mmcompress.compress.prune.bottlenecks import hidden_errors, shrunk_bottlenecks
from mmcompress.compress.prune.hidden import (
    STREAM_MULTIPLE,
    HiddenCost,
    HiddenErrors,
    hidden_choices,
    hidden_cost,
    hidden_of_blocks,
    hidden_within,
    narrower,
    resized_hidden,
    stages_of,
    stream_widths,
    unmeasured,
)
from mmcompress.compress.prune.latency_target import LATENCY, narrow_latencies, search, stage_rates, timing_of
from mmcompress.compress.prune.shrink import Scores
from mmcompress.compress.prune.sizes import below_the_floor
from mmcompress.compress.prune.streams import narrowed_streams
from mmcompress.config import PruneConfig
from mmcompress.convnet import ConvConfig
from mmcompress.errors import finite
from mmcompress.model import DualEncoder
from mmcompress.progress import say

HELD = 4
"""One of so many images of a batch judges, and fits nothing."""


@dataclass(frozen=True)
class Narrowed:
    """A tower with a share of the channels between its blocks, and what it costs, as shares of the whole tower."""

    share: float
    tower: ConvConfig
    multiple: int
    """Of hidden channels."""
    cost: HiddenCost
    """Of a bottleneck."""
    base: float
    """Of all that is none."""

    def choices(self, errors: Mapping[int, HiddenErrors]) -> dict[int, list[Choice[int | None]]]:
        return hidden_choices(self.tower, errors, self.multiple, self.cost)

    def floor(self) -> float:
        """The least that it can cost."""
        return self.base + floor_cost(list(self.choices(unmeasured(self.tower)).values()))


Sizes = tuple[tuple[int, int | None], ...]
"""Index of each bottleneck, and the hidden channels that it keeps."""


@dataclass(frozen=True)
class Fitted:
    """What meets a limit at one share, and how far from the dense embeddings it is."""

    narrow: Narrowed
    errors: Mapping[int, HiddenErrors]
    sizes: Sizes
    harm: float
    """1 - cosine, the mean over the samples that judge."""


def pruned_to_target(
    model: DualEncoder, inputs: Sequence[Tensor], scores: Scores, config: PruneConfig
) -> tuple[DualEncoder, dict[str, Any]]:
    """A model whose convolutional image tower meets the target, and what was measured to find it.

    Raises UsageError, with the floor, where the narrowest tower with the smallest bottlenecks does not.
    """
    assert config.target is not None
    kind, share = config.target
    what = f"the {kind} of the image tower"
    towers = by_latency(model.config, config) if kind == "latency" else by_size(model.config, config, kind)
    if share < (floor := min(narrow.floor() for narrow in towers)):
        raise below_the_floor(what, share, floor)
    tried: list[Fitted] = []
    for one in _fits(model, [narrow for narrow in towers if narrow.floor() <= share], inputs, scores, config):
        tried.append(one)
        say("prune", "channels", f"{one.narrow.share:g}x between blocks: embeddings move by {one.harm:.4f}")
        if one.harm > min(each.harm for each in tried):
            break
    best = min(tried, key=lambda each: each.harm)
    facts: dict[str, Any] = {
        "channels_between_blocks": best.narrow.share,
        "moved": {f"{each.narrow.share:g}": each.harm for each in tried},
    }
    sizes = best.sizes
    if kind == "latency":
        sizes, timed = hidden_at_latency(model.config, best.narrow, best.errors, share, config)
        facts |= timed
    wide = _narrowed(model, best.narrow, inputs, config)
    return shrunk_bottlenecks(wide, dict(sizes), inputs, scores, config.refit), facts


def by_size(model: DualEncoderConfig, config: PruneConfig, kind: str) -> list[Narrowed]:
    """The narrower towers by their MACs or parameters, the widest first."""
    whole = _tower(model)
    full = hidden_cost(model, whole, kind)[2]
    found = []
    for share, tower in narrower(whole).items():
        counted, base, _ = hidden_cost(model, tower, kind)
        found.append(Narrowed(share, tower, config.channel_multiple, _scaled(counted, full), base / full))
    return found


def by_latency(model: DualEncoderConfig, config: PruneConfig) -> list[Narrowed]:
    """The narrower towers by what this machine takes for them, the widest first."""
    whole, timing = _tower(model), timing_of(config)
    rates, towers = stage_rates(model, whole, config.channel_multiple, timing), narrower(whole)
    latencies = [1.0, *narrow_latencies(model, list(towers.values())[1:], timing)] if len(towers) > 1 else [1.0]
    found = []
    for (share, tower), latency in zip(towers.items(), latencies, strict=True):
        cost = _rated(hidden_cost(model, tower, "macs")[0], rates, stages_of(tower))
        base = latency - sum(cost(index, hidden) for index, hidden in hidden_of_blocks(tower).items())
        found.append(Narrowed(share, tower, config.channel_multiple, cost, base))
    return found


def _fits(
    model: DualEncoder, towers: Sequence[Narrowed], inputs: Sequence[Tensor], scores: Scores, config: PruneConfig
) -> Iterator[Fitted]:
    """What meets the target at each share, the widest first."""
    assert config.target is not None
    fitted, judging = apart(inputs)
    wanted = _embedded(model, judging)
    for narrow in towers:
        wide = _narrowed(model, narrow, fitted, config)
        errors = hidden_errors(wide, fitted, scores, narrow.multiple, config.refit)
        sizes = hidden_within(narrow.choices(errors), config.target[1], narrow.base, 1.0, config.target[0])
        pruned = shrunk_bottlenecks(wide, sizes, fitted, scores, config.refit)
        moved = 1 - (_embedded(pruned, judging) * wanted).sum(dim=-1).mean()
        harm = finite(float(moved), "the error of a pruned image tower")
        yield Fitted(narrow, errors, tuple(sizes.items()), harm)


def apart(inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Of each batch the images that fit, and the last quarter, which judges; batches of fewer than four do both."""
    fitted, judging = zip(*((x[: len(x) - len(x) // HELD], x[len(x) - len(x) // HELD :]) for x in inputs), strict=True)
    return list(fitted), [x for x in judging if len(x)] or list(inputs)


def _narrowed(model: DualEncoder, narrow: Narrowed, inputs: Sequence[Tensor], config: PruneConfig) -> DualEncoder:
    """The model with the narrower tower, all hidden channels in it, fitted on the inputs."""
    widths = stream_widths(_tower(model.config), narrow.share, STREAM_MULTIPLE)
    return narrowed_streams(model, widths, inputs, config.refit)


def hidden_at_latency(
    model: DualEncoderConfig,
    narrow: Narrowed,
    errors: Mapping[int, HiddenErrors],
    share: float,
    config: PruneConfig,
) -> tuple[Sizes, dict[str, Any]]:
    """As `sizes_at_latency`, of the bottlenecks of one narrower tower."""
    blocks = narrow.choices(errors)

    def solve(limit: float) -> Sizes:
        return tuple(hidden_within(blocks, limit, narrow.base, 1.0, LATENCY).items())

    def sized(sizes: Sizes) -> AnyImageConfig:
        return resized_hidden(narrow.tower, dict(sizes))

    return search(model, share, config, narrow.floor(), solve, sized)


@torch.no_grad()
def _embedded(model: DualEncoder, inputs: Sequence[Tensor]) -> Tensor:
    """(samples, D)"""
    return torch.cat([model.encode_image(x) for x in inputs])


def _scaled(cost: HiddenCost, full: float) -> HiddenCost:
    return lambda index, hidden: cost(index, hidden) / full


def _rated(macs: HiddenCost, rates: Sequence[float], stages: Sequence[int]) -> HiddenCost:
    return lambda index, hidden: rates[stages[index]] * macs(index, hidden)


def _tower(model: DualEncoderConfig) -> ConvConfig:
    assert isinstance(model.image, ConvConfig)
    return model.image
