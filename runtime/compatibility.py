"""An index of one model, asked by another: what is lost, measured before the first answer.

Models whose spaces are close, INT8 and its own FP32, say, may share an index. Whether they are is seen on images of the
index itself: each is embedded by the new model and looked for, and what is found is held against what the old model's
own vector of that image finds, which is in the index. Texts are not at hand, so they are not measured: a text tower
that has moved further than the image tower is not seen here.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from mmcompress.data.images import images_of_places, place_of
from mmcompress.data.sample import image_of
from mmcompress.data.spec import is_stream
from mmcompress.data.tally import Tally
from mmcompress.errors import CorruptInputError, GateFailedError, UsageError
from mmcompress.runtime.encoder import Encoder
from mmcompress.runtime.imageindex import ImageIndex, hash_of

NEIGHBOURS = 10
SAMPLE = 200
"""Images that are embedded again."""
FEWEST = 100
"""Images that an index needs: among fewer, ten neighbours are found by chance."""
_AGAIN = "make an index with this model: mmcompress index"


@dataclass(frozen=True)
class Agreement:
    """How much of what the old model finds the new one finds in its index."""

    recall_at_10: float
    """Mean share of the ten images that the old model finds."""
    images: int
    """That were looked for."""


def check_same_width(index: ImageIndex, encoder: Encoder) -> None:
    """Raise CorruptInputError for a model whose embeddings cannot be compared with those of an index at all."""
    width = encoder.width
    if width != index.width:
        raise CorruptInputError(
            f"{index.artifact.path} holds vectors of width {index.width}, and {encoder.artifact.path} makes {width}",
            _AGAIN,
        )


def agreement(index: ImageIndex, encoder: Encoder) -> Agreement:
    """Embed some images of an index with another model, and look for them."""
    check_same_width(index, encoder)
    if len(index) < FEWEST:
        raise UsageError(
            f"{index.artifact.path} has {len(index)} images, too few to measure what is lost; at least {FEWEST} tell",
            _AGAIN,
        )
    live = index.live()
    rows = live[np.linspace(0, len(live) - 1, min(SAMPLE, len(live))).round().astype(int)]
    wanted = {index.name(int(row)): int(row) for row in rows}
    tally = Tally(str(index.artifact.path), max_bad_fraction=1.0, announce=False)
    fresh, found = [], []
    places = [place for place in dict.fromkeys(map(place_of, wanted)) if not is_stream(place)]  # names run nothing
    for name, item in itertools.chain.from_iterable(images_of_places(places, tally, keys) for keys in index.keys):
        if name not in wanted or hash_of(image_of(item.mark)) != index.content(wanted[name]):
            continue  # another one lies there now, or is there under other keys
        try:
            pixels = encoder.read_stored(item.stored(), name)
        except (CorruptInputError, UsageError, OSError):
            continue
        fresh.append(encoder.as_read([pixels], [name])[0])
        found.append(wanted.pop(name))
    if 2 * len(found) < len(rows):
        raise UsageError(
            f"of {len(rows)} images of {index.artifact.path} only {len(found)} can be read where they were",
            f"bring them back, or {_AGAIN}",
        )
    new, _ = index.nearest(np.stack(fresh), NEIGHBOURS)
    old, _ = index.nearest(index.graph.vectors(found), NEIGHBOURS)
    shares = [len(set(a) & set(b)) / NEIGHBOURS for a, b in zip(new.tolist(), old.tolist(), strict=True)]
    return Agreement(float(np.mean(shares)), len(found))


def enforce(found: Agreement, accepted: float) -> None:
    """Raise GateFailedError where more is lost than was accepted."""
    lost = 1 - found.recall_at_10
    if lost > accepted:
        raise GateFailedError(
            f"this model loses {lost:.1%} of what the index's own model finds (recall@10 of {found.images} images), and"
            f" {accepted:.1%} was accepted",
            f"accept more, or {_AGAIN}",
        )
