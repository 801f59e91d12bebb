"""Which Linears lose the most as integers, and the fewest that must stay in float for the accuracy that was asked.

One Linear at a time is quantized, the rest of its tower is not, and the distance that the tower's embeddings move says
how sensitive it is. The worst go back to float, one by one, until INT8 in both towers loses no more than the budget;
then those are given up again without which the budget holds as well, since a ranking of single Linears says little of
how their errors add up.

The budget (`budget.py`) is of what a user sees: R@10 hits that are lost and images that flip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from mmcompress.budget import Cost
from mmcompress.compress.int8.simulate import TOWERS, Feeds, distance, embedded, quantizing
from mmcompress.int8 import Linears, Range, Signedness
from mmcompress.measure import agreement
from mmcompress.model import DualEncoder
from mmcompress.progress import track


def sensitivities(
    model: DualEncoder, judging: Feeds, linears: Linears, ranges: Mapping[str, Range], kind: Signedness
) -> dict[str, float]:
    """Distance of the embeddings with one Linear quantized, by module, the worst first."""
    drifts: dict[str, float] = {}
    for tower in TOWERS:
        reference = embedded(model, tower, judging.of(tower))
        own = [name for name in linears if name.startswith(f"{tower}.")]
        for name in track(own, f"sensitivity of the {tower} tower", len(own)):
            with quantizing(model, {name: linears[name]}, ranges, kind):
                drifts[name] = distance(reference, embedded(model, tower, judging.of(tower)))
    return dict(sorted(drifts.items(), key=lambda item: (-item[1], item[0])))


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
