"""The sizes of a convolutional tower's bottlenecks under a limit: what each costs, and what it harms.

As `sizes.py` of transformer blocks: a few numbers of hidden channels are measured (`bottlenecks.py`), those between are
interpolated, and costs are taken to add up over bottlenecks. So are the roots of errors: what adds up at worst is how
far embeddings move, of which an error is half the square. A bottleneck that adds to its input may go altogether,
unless it is the first of its stage.

Under a limit the channels between blocks may go too, by one of a few shares in the whole tower (`narrowing.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mmcompress.architecture import DualEncoderConfig
from mmcompress.compress.prune.allocation import Choice, floor_cost
from mmcompress.compress.prune.sizes import Levels, below_the_floor, check_reachable, interpolated, sizes_within
from mmcompress.convblocks import AttentionBlock, FusedBlock, UniversalBlock, outputs_of
from mmcompress.convnet import ConvConfig
from mmcompress.errors import UsageError

STREAM_MULTIPLE = 8
"""Channels between blocks are kept in multiples of this, as published towers have them."""
SHARES = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375)
"""Of the channels between blocks, that a limit may take."""
HiddenSizes = Mapping[int, int | None]
"""Index of a bottleneck -> hidden channels that it keeps; None where it goes. What is not named stays."""
HiddenCost = Callable[[int, int | None], float]
"""Of a bottleneck, by its index and its hidden channels."""


@dataclass(frozen=True)
class HiddenErrors:
    """What harm the cuts of one bottleneck do."""

    by_channels: Levels
    removed: float | None
    """Of the whole bottleneck; None where it cannot go."""


def hidden_blocks(tower: ConvConfig) -> dict[int, bool]:
    """The bottlenecks with hidden channels, and whether they may go altogether."""
    firsts, index = set(), 0
    for stage in tower.stages:
        firsts.add(index)
        index += len(stage)
    return {
        index: index not in firsts and block.residual(inputs)
        for index, (_, block, inputs, _) in enumerate(tower.placed())
        if isinstance(block, (FusedBlock, UniversalBlock))
    }


def stages_of(tower: ConvConfig) -> list[int]:
    """The stage of each block."""
    return [number for number, stage in enumerate(tower.stages) for _ in stage]


def hidden_of_blocks(tower: ConvConfig) -> dict[int, int]:
    """Hidden channels of each bottleneck that has some."""
    blocks = tower.blocks
    found = {}
    for index in hidden_blocks(tower):
        block = blocks[index]
        assert isinstance(block, (FusedBlock, UniversalBlock))
        found[index] = block.hidden
    return found


def resized_hidden(tower: ConvConfig, sizes: HiddenSizes) -> ConvConfig:
    """The tower's config with bottlenecks of these sizes."""
    stages, index = [], 0
    for stage in tower.stages:
        blocks = []
        for block in stage:
            size = sizes.get(index, 0)
            index += 1
            if size:
                blocks.append(block.model_copy(update={"hidden": size}))
            elif size is not None:
                blocks.append(block)
        stages.append(tuple(blocks))
    return tower.model_copy(update={"stages": tuple(stages)})


def streams_of(tower: ConvConfig) -> list[tuple[int, int]]:
    """Of each block the streams that it reads and gives, from the stem's, 0; a residual block stays in its own."""
    found, stream = [], 0
    for _, block, inputs, _ in tower.placed():
        behind = stream if block.residual(inputs) else stream + 1
        found.append((stream, behind))
        stream = behind
    return found


def stream_channels(tower: ConvConfig) -> list[int]:
    """The channels of each stream, the stem's first."""
    places = zip(streams_of(tower), tower.placed(), strict=True)
    channels = {0: tower.stem} | {behind: outputs_of(block, inputs) for (_, behind), (_, block, inputs, _) in places}
    return [*channels.values()]


def stream_widths(tower: ConvConfig, share: float, multiple: int) -> list[int]:
    """The share of each stream's channels, the stem's first, in multiples, one multiple at least.

    Where rounding would make a residual block of one that is none, the channels that it gives stay as they are.
    """
    channels = stream_channels(tower)
    widths = [min(full, max(multiple, round(full * share / multiple) * multiple)) for full in channels]
    places = zip(streams_of(tower), tower.placed(), strict=True)
    for (before, behind), (_, block, _, _) in places:
        if before != behind and block.residual(outputs_of(block, 0)) and widths[before] == widths[behind]:
            widths[behind] = channels[behind]
    return widths


def with_streams(tower: ConvConfig, widths: Sequence[int]) -> ConvConfig:
    """The tower's config with streams of these channels."""
    behind = iter(streams_of(tower))
    stages = []
    for stage in tower.stages:
        blocks = []
        for block in stage:
            width = widths[next(behind)[1]]
            blocks.append(block if isinstance(block, AttentionBlock) else block.model_copy(update={"channels": width}))
        stages.append(tuple(blocks))
    return tower.model_copy(update={"stem": widths[0], "stages": tuple(stages)})


def narrower(tower: ConvConfig) -> dict[float, ConvConfig]:
    """The tower at each of the shares of channels between its blocks that a limit may take, its own first.

    Its own alone where mobile attention reads them.
    """
    if any(isinstance(block, AttentionBlock) for block in tower.blocks):
        return {1.0: tower}
    found: dict[float, ConvConfig] = {}
    for share in SHARES:
        narrow = with_streams(tower, stream_widths(tower, share, STREAM_MULTIPLE))
        if narrow not in found.values():
            found[share] = narrow
    return found


def uniform_hidden(tower: ConvConfig, share: float, multiple: int) -> HiddenSizes:
    """The same share of hidden channels in every bottleneck, in multiples, one multiple at least."""
    if share == 1:
        return {}
    kept = {}
    for index, hidden in hidden_of_blocks(tower).items():
        kept[index] = min(hidden, max(multiple, round(hidden * share / multiple) * multiple))
    return kept


def hidden_cost(config: DualEncoderConfig, tower: ConvConfig, kind: str) -> tuple[HiddenCost, float, float]:
    """The cost of a bottleneck, of all that is none, and of the whole tower; `kind` is macs or params."""
    places = list(tower.placed())

    def cost(index: int, hidden: int | None) -> float:
        if hidden is None:
            return 0.0
        name, block, inputs, side = places[index]
        sized = block.model_copy(update={"hidden": hidden})
        products = sized.products(name, inputs, side)
        if kind == "macs":
            return sum(product.macs for product in products)
        return sum(product.weights for product in products) + 2 * sized.norms(inputs)

    full = tower.macs(config.embed_dim) if kind == "macs" else tower.params(config.embed_dim)
    return cost, full - sum(cost(index, hidden) for index, hidden in hidden_of_blocks(tower).items()), full


def hidden_choices(
    tower: ConvConfig, measured: Mapping[int, HiddenErrors], multiple: int, cost: HiddenCost
) -> dict[int, list[Choice[int | None]]]:
    """All sizes of each bottleneck."""
    found = {}
    for index, hidden in hidden_of_blocks(tower).items():
        errors, sizes = measured[index], channels_of(hidden, multiple)
        harms = zip(sizes, interpolated(errors.by_channels, sizes), strict=True)
        choices: list[Choice[int | None]] = [Choice(size, cost(index, size), _moved(error)) for size, error in harms]
        if errors.removed is not None:
            choices.append(Choice(None, cost(index, None), _moved(errors.removed)))
        found[index] = choices
    return found


def _moved(error: float) -> float:
    return math.sqrt(max(0.0, error))


def hidden_within(
    blocks: Mapping[int, Sequence[Choice[int | None]]], share: float, base: float, full: float, what: str
) -> HiddenSizes:
    """The sizes that harm least at `share` of the full cost. Raises UsageError if none costs so little."""
    return dict(zip(blocks, sizes_within(list(blocks.values()), share, base, full, what), strict=True))


def check_hidden_share(config: DualEncoderConfig, tower: ConvConfig, kind: str, share: float, multiple: int) -> None:
    """Raise UsageError where even the narrowest tower with the smallest bottlenecks costs more than the share."""
    floor = hidden_floor(config, tower, kind, multiple)
    if share < floor:
        raise below_the_floor(f"the {kind} of the image tower", share, floor)


def check_channel_multiple(tower: ConvConfig, multiple: int) -> None:
    """Raise UsageError for a multiple that no bottleneck has, so that nothing would be pruned."""
    most = max(hidden_of_blocks(tower).values(), default=0)
    if multiple > most:
        raise UsageError(
            f"channel_multiple {multiple} is more than the {most} hidden channels of the largest bottleneck",
            "give 8 or 16, which backends like",
        )


def check_hidden_latency(config: DualEncoderConfig, tower: ConvConfig, share: float, multiple: int) -> None:
    """As `check_hidden_share`, of the latency: what is certainly too little, before anything is measured."""
    check_reachable(share, hidden_floor(config, tower, "macs", multiple))


def hidden_floor(config: DualEncoderConfig, tower: ConvConfig, kind: str, multiple: int) -> float:
    """The share of a tower that is left where it is as narrow, and every bottleneck as small, as may be."""
    _, _, full = hidden_cost(config, tower, kind)
    costs = []
    for narrow in narrower(tower).values():
        cost, base, _ = hidden_cost(config, narrow, kind)
        blocks = hidden_choices(narrow, unmeasured(narrow), multiple, cost)
        costs.append(base + floor_cost(list(blocks.values())))
    return min(costs) / full


def unmeasured(tower: ConvConfig) -> dict[int, HiddenErrors]:
    """No harm in any cut: for what is asked of costs alone."""
    hidden = hidden_of_blocks(tower)
    return {i: HiddenErrors({hidden[i]: 0.0}, 0.0 if goes else None) for i, goes in hidden_blocks(tower).items()}


def channels_of(hidden: int, multiple: int) -> list[int]:
    """The hidden channels that a bottleneck may keep: multiples, and all that it has."""
    return [*range(multiple, hidden, multiple), hidden]
