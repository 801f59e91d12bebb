"""Which Linears lose the most as integers, and the fewest that must stay in float for the accuracy that was asked.

One Linear at a time is quantized, the rest of its tower is not, and the distance that the tower's embeddings move says
how sensitive it is. The worst go back to float, as many as it takes until INT8 in both towers loses no more than the
budget; where they are few, those are given up again without which the budget holds as well, since a ranking of single
Linears says little of how their errors add up.

The budget (`budget.py`) is of what a user sees: R@10 hits that are lost and images that flip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmcompress.budget import Budget, Cost
from mmcompress.compress.int8.samples import ENOUGH_TEXTS
from mmcompress.compress.int8.simulate import TOWERS, Batches, Feeds, distance, quantizing
from mmcompress.compress.products import inferring
from mmcompress.config import FitConfig
from mmcompress.data.spec import is_photos
from mmcompress.errors import finite
from mmcompress.int8 import Linears, Range, Signedness
from mmcompress.measure import agreement
from mmcompress.measure.sanity import above_chance
from mmcompress.model import DualEncoder, Tower
from mmcompress.progress import say, track

RANKED = 8
"""Pairs that Linears are ranked on; what is kept in float is decided on all that judge."""

SPARED = 16
"""Linears that are kept, up to which sets of them are tried to be given up, and as many sets."""

PRECISION = 8
"""Of many Linears, one in so many may be kept without need: another pass costs more than it is worth."""


def sensitivities(
    model: DualEncoder, judging: Feeds, linears: Linears, ranges: Mapping[str, Range], kind: Signedness
) -> dict[str, float]:
    """Distance of the embeddings with one Linear quantized, by module, the worst first.

    What is before the Linear's block is the same with and without it, and is computed once.
    """
    drifts: dict[str, float] = {}
    for name in (name for name in TOWERS if any(module.startswith(f"{name}.") for module in linears)):
        tower: Tower = getattr(model, name)
        fed = [batch.to(model.logit_scale.device) for batch in judging.of(name)]
        with inferring():
            streams = [tower.enter(inputs) for inputs in fed]
            reference = _embeddings(tower, streams, fed, 0)
            depth = len(tower.blocks)
            for index in track(range(depth), f"sensitivity of the {name} tower", depth):
                for module in (own for own in linears if own.startswith(f"{name}.blocks.{index}.")):
                    with quantizing(model, {module: linears[module]}, ranges, kind):
                        moved = distance(reference, _embeddings(tower, streams, fed, index))
                    drifts[module] = finite(moved, f"the sensitivity of {module}")
                if index + 1 < depth:
                    streams = [
                        tower.blocks[index](x, tower.causal, mask=tower.mask(inputs))
                        for x, inputs in zip(streams, fed, strict=True)
                    ]
    return dict(sorted(drifts.items(), key=lambda item: (-item[1], item[0])))


def _embeddings(tower: Tower, streams: Batches, inputs: Batches, start: int) -> Tensor:
    """(N, D) of unit norm, from the streams before block `start`."""
    found = [tower.onward(x, fed, start) for x, fed in zip(streams, inputs, strict=True)]
    return F.normalize(torch.cat(found), dim=-1)


def kept_in_float(
    embeddings: Callable[[str, frozenset[str]], Tensor],
    linears: Iterable[str],
    ranking: Callable[[], Mapping[str, float]],
    config: FitConfig,
) -> tuple[frozenset[str], Cost | None]:
    """The Linears, or other products, that stay in float, and what INT8 costs all the same.

    `embeddings` of a tower with those that are named in float, (N, D) images or (M, D) texts, the first N of them the
    images' own; `ranking` is asked for where something has to stay in float. A model that answers by chance loses
    nothing that could be counted, so of it nothing stays in float but what the config asks for, and the cost is None.
    """
    asked = frozenset(config.keep)
    captioned = not is_photos(config.data.validation or config.data.train or "")

    def of_both(kept: frozenset[str]) -> tuple[Tensor, Tensor]:
        image, text = (frozenset(name for name in kept if name.startswith(f"{tower}.")) for tower in TOWERS)
        return embeddings("image", image), embeddings("text", text)

    reference = of_both(frozenset(linears))
    if captioned and _by_chance(*reference):
        say("", "data", "warning: the model gives these images their own texts no oftener than chance does, so what")
        say("", "", "INT8 costs cannot be told, and nothing is kept in float for it")
        return asked, None

    budget = Budget.of(config, len(reference[0]))

    def cost_of(kept: frozenset[str]) -> Cost:
        return cost(reference, of_both(asked | kept), captioned)

    kept, left = asked, cost_of(frozenset())
    if not budget.holds(left):
        drifts = {name: drift for name, drift in ranking().items() if name not in asked}
        kept = asked | fewest_kept(drifts, lambda kept: budget.used(cost_of(kept)))
        left = cost_of(kept)
    for name in sorted(kept - asked):
        say("", name, "stays in float: INT8 would lose more than the budget")
    for doubt in budget.doubts(left):
        say("", "INT8", f"warning: {doubt}")
    return kept, left


def _by_chance(images: Tensor, texts: Tensor) -> bool:
    """Whether images (N, D) find their own texts, the first N of (M, D), no oftener than chance does; False where so
    few cannot tell, of classes say, whose names come again and again."""
    every = images.cpu().numpy(), texts.cpu().numpy()
    if len(np.unique(every[1][: len(images)], axis=0)) < ENOUGH_TEXTS:
        return False
    right, chance = above_chance(*every, np.arange(len(images)))
    return right <= chance < 1


def fewest_kept(drifts: Mapping[str, float], used: Callable[[frozenset[str]], float]) -> frozenset[str]:
    """The modules to keep in float: the worst first until `used` is 1 at most, less those that are not needed.

    `drifts` are by module, the worst first; `used` is how much of the budget INT8 takes with some modules in float.
    Every answer costs a pass over all that judge. So the next number to try is guessed from the last: errors of
    modules add up in their squares, which a drift is, and what the budget counts grows as their root; where two
    guesses have not halved what is open, the middle is tried. At most `SPARED` sets are tried to be given up, and none
    where more modules are kept than that: such a model gains little from INT8.
    """
    ranking = list(drifts)
    left_over = [sum(drifts.values()) - before for before in accumulate(drifts.values(), initial=0.0)]
    share = used(frozenset())
    if share <= 1:
        return frozenset()
    few, tried, many = 0, 0, len(ranking)
    widths = [many]
    while many - few > max(1, many // PRECISION):
        bearable = left_over[tried] / share**2 if share else -1.0
        guess = next((number for number, rest in enumerate(left_over) if rest <= bearable), few)
        slow = len(widths) > 1 and many - few > widths[-2] / 2
        tried = (few + many) // 2 if slow else min(max(guess, few + 1), many - 1)
        share = used(frozenset(ranking[:tried]))
        few, many = (few, tried) if share <= 1 else (tried, many)
        widths.append(many - few)
    kept, left = frozenset(ranking[:many]), SPARED if many <= SPARED else 0

    def spare(names: Sequence[str]) -> None:
        nonlocal kept, left
        if not left:
            return
        left -= 1
        if used(kept - frozenset(names)) <= 1:
            kept = kept - frozenset(names)
        elif len(names) > 1:
            half = len(names) // 2
            spare(names[half:])
            spare(names[:half])

    if many > 1:
        spare(ranking[: many - 1])
    return kept


def cost(reference: tuple[Tensor, Tensor], quantized: tuple[Tensor, Tensor], captioned: bool = True) -> Cost:
    """Images (N, D) and texts (M, D), the first N of them row by row the images', before and after.

    Hits are counted among the N, flips among all M. Of photos that nobody captioned, the right text is the one that
    the model itself gave before.
    """
    (images, texts), after = ((side[0].cpu().numpy(), side[1].cpu().numpy()) for side in (reference, quantized))
    own = np.arange(len(images))
    captions = texts[: len(own)], after[1][: len(own)]
    right = own if captioned else agreement.best(images, captions[0])
    lost = agreement.lost_matches((images, captions[0]), (after[0], captions[1]), right, own)
    answers = agreement.best(images, texts), agreement.best(*after)
    return Cost(lost, float(agreement.flipped(images, texts, *answers).mean()))
