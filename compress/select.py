"""`mmcompress data filter`: pairs that fit by the teacher's own score, and no near duplicates, as new shards.

A pair's score is the cosine of the teacher's embeddings of image and caption, as CLIP filtering does it (Schuhmann et
al. 2022, LAION-5B, section 3.1). A caption below the limit is dropped, and an image with none left. New shards were
chosen over a list that every reader would have to know: any command reads them, and so do other programs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from mmcompress.artifact import Artifact
from mmcompress.compress.dedupe import one_teachers
from mmcompress.compress.train.chunks import Store
from mmcompress.data.batches import MAX_BAD_FRACTION, listing
from mmcompress.data.excluded import Excluded
from mmcompress.data.packing import written
from mmcompress.data.reading import Listed, samples
from mmcompress.data.spec import expand, is_stream
from mmcompress.data.stats import PERCENTILES, percentile
from mmcompress.data.tally import Tally
from mmcompress.data.writing import A_SHARD
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import hash_file
from mmcompress.progress import track

_BATCH = 256


@dataclass(frozen=True)
class Wanted:
    """Which pairs to keep; what is None does not count."""

    min_similarity: float | None = None
    embeddings: Path | None = None
    exclude: Path | None = None


def select(spec: str, wanted: Wanted, out: Path, a_shard: int = A_SHARD) -> Artifact:
    """Write the wanted pairs of a data set into new shards, in order.

    Raises CorruptInputError where the embeddings are not of this data, UsageError where nothing is left.
    """
    store = _store(wanted)
    excluded, tally = Excluded(wanted.exclude), Tally(spec, MAX_BAD_FRACTION)
    scores: Counter[float] = Counter()
    counts = {"excluded": 0, "below": 0, "below_captions": 0, "not_embedded": 0}
    stream = track(listing(spec), "filtering", None)
    with written(out, "filter", _local(spec, wanted), a_shard, _said(wanted)) as now:
        while group := list(islice(stream, _BATCH)):
            kept = [item for item in group if not excluded.has(item.key)]
            counts["excluded"] += len(group) - len(kept)
            for item, captions in zip(kept, _captions(kept, store, wanted, scores, counts), strict=True):
                for sample in samples([item], tally) if captions else ():
                    now.shards.add(replace(sample, captions=captions), sample.key)
        if not scores and counts["not_embedded"]:
            raise CorruptInputError(
                f"none of the {counts['not_embedded']} samples of {spec} that are looked at is in {wanted.embeddings}",
                "give the embeddings of this data: mmcompress embed",
            )
        if not now.shards.samples:
            raise UsageError(f"no pair of {spec} is left{_told(scores)}", "give a lower --min-similarity")
        if excluded.found < len(excluded):
            raise CorruptInputError(
                f"{wanted.exclude} names {len(excluded)} samples, and {excluded.found} of them are in {spec}",
                "give the list that was made of this data",
            )
        now.facts |= {**counts, "similarity": _percentiles(scores)}
    return Artifact.open(out)


def _store(wanted: Wanted) -> Store | None:
    if wanted.min_similarity is None and wanted.exclude is None:
        raise UsageError("there is nothing to filter by", "give --min-similarity 0.2, or --exclude LIST")
    if (wanted.min_similarity is None) != (wanted.embeddings is None):
        raise UsageError(
            "--min-similarity is of --embeddings, and one is given", "give both: `mmcompress embed` makes embeddings"
        )
    return one_teachers(wanted.embeddings)[1] if wanted.embeddings is not None else None


def _said(wanted: Wanted) -> dict[str, object]:
    return {
        "min_similarity": wanted.min_similarity,
        "embeddings": one_teachers(wanted.embeddings)[0].digest if wanted.embeddings is not None else None,
        "exclude": hash_file(wanted.exclude) if wanted.exclude is not None else None,
    }


def _local(spec: str, wanted: Wanted) -> list[Path]:
    places = [] if is_stream(spec) else [Path(place) for place in expand(spec)]
    return [*places, *(path for path in (wanted.embeddings, wanted.exclude) if path is not None)]


def _captions(
    items: Sequence[Listed], store: Store | None, wanted: Wanted, scores: Counter[float], counts: dict[str, int]
) -> list[tuple[str, ...]]:
    """The captions of each sample that stay."""
    if store is None or wanted.min_similarity is None:
        return [item.captions for item in items]
    here = [item for item in items if store.has(item.key)]
    counts["not_embedded"] += len(items) - len(here)
    pairs = [(item, number) for item in here for number in range(len(item.captions))]
    if pairs:
        marks = {item.key: item.mark for item in here}
        keys = [item.key for item, _ in pairs]
        images, texts = store.lookup(
            keys, [marks[key] for key in keys], np.zeros(len(pairs), np.int64), [number for _, number in pairs]
        )
        found = ((images * texts).sum(dim=1) / (images.norm(dim=1) * texts.norm(dim=1))).tolist()
    kept: dict[str, list[str]] = {item.key: [] for item in here}
    for (item, number), score in zip(pairs, found if pairs else (), strict=True):
        scores[round(score, 3)] += 1
        if score >= wanted.min_similarity:
            kept[item.key].append(item.captions[number])
        else:
            counts["below_captions"] += 1
    counts["below"] += sum(not captions for captions in kept.values())
    return [tuple(kept.get(item.key, ())) for item in items]


def _percentiles(scores: Counter[float]) -> dict[str, float]:
    return {f"p{at}": percentile(scores, at) for at in PERCENTILES} if scores else {}


def _told(scores: Counter[float]) -> str:
    if not scores:
        return ""
    return "; similarities are " + ", ".join(f"{name} {value:.3f}" for name, value in _percentiles(scores).items())
