"""Which Linears lose the most as integers, and the fewest that must stay in float for the accuracy that was asked.

One Linear at a time is quantized, the rest of its tower is not, and the distance that the tower's embeddings move says
how sensitive it is. The worst go back to float, one by one, until INT8 in both towers loses no more than the budget;
then those are given up again without which the budget holds as well, since a ranking of single Linears says little of
how their errors add up.

There are two budgets, of what a user sees, on calibration pairs. One is of R@10: the share of queries, images and texts
alike, whose match was among the ten best and is not any more; what INT8 gains elsewhere by chance does not offset it.
The other is of flips: the share of images whose best caption is another one than before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from mmcompress.compress.int8.simulate import TOWERS, Feeds, distance, embedded, quantizing
from mmcompress.int8 import Linears, Range, Signedness
from mmcompress.measure import agreement
from mmcompress.model import DualEncoder
from mmcompress.progress import track

ALIKE = 1e-6
"""Cosines that differ by less are the same answer: the same caption twice, say."""


def sensitivities(
    model: DualEncoder, judging: Feeds, linears: Linears, ranges: Mapping[str, Range], kind: Signedness
) -> dict[str, float]:
    """Distance of the embeddings with one Linear quantized, by module, the worst first."""
    found: dict[str, float] = {}
    for tower in TOWERS:
        reference = embedded(model, tower, judging.of(tower))
        own = [name for name in linears if name.startswith(f"{tower}.")]
        for name in track(own, f"sensitivity of the {tower} tower", len(own)):
            with quantizing(model, {name: linears[name]}, ranges, kind):
                found[name] = distance(reference, embedded(model, tower, judging.of(tower)))
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def fewest_kept(ranking: Sequence[str], holds: Callable[[frozenset[str]], bool]) -> frozenset[str]:
    """The modules to keep in float: the worst first until `holds`, less those that turn out not to be needed."""
    kept: list[str] = []
    remaining = iter(ranking)
    while not holds(frozenset(kept)):
        following = next(remaining, None)
        if following is None:
            break
        kept.append(following)
    for name in reversed(kept[:-1]):
        fewer = [other for other in kept if other != name]
        if holds(frozenset(fewer)):
            kept = fewer
    return frozenset(kept)


def lost_matches(reference: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor]) -> float:
    """Images (N, D) and texts (M, D), the first N of them row by row the images', before and after -> share of queries
    that lost their R@10 hit among the N.
    """
    own = np.arange(len(reference[0]))
    before, after = (tuple(side[: len(own)].cpu().numpy() for side in pair) for pair in (reference, found))
    return agreement.lost_matches((before[0], before[1]), (after[0], after[1]), own, own)


def flips(reference: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor]) -> float:
    """Images (N, D) and texts (M, D), before and after -> share of the images whose best text is another one after."""
    before, after = (images @ texts.T for images, texts in (reference, found))
    answers = before.gather(1, after.argmax(dim=1, keepdim=True)).squeeze(1)
    return float((answers < before.amax(dim=1) - ALIKE).double().mean())
