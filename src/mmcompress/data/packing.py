"""`mmcompress data pack`: pairs that lie loosely become shards, which every command reads fast and in any order.

The shards are an artifact: whole or not at all, and verified when they are opened as one. To other commands they are a
folder of shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmcompress import __version__
from mmcompress.artifact import Artifact, Draft, read_manifest
from mmcompress.data.batches import MAX_BAD_FRACTION
from mmcompress.data.loose import loose_samples
from mmcompress.data.tally import Tally
from mmcompress.data.writing import A_SHARD, ShardWriter
from mmcompress.datakeys import KNOWN, keys_of
from mmcompress.home import expanded
from mmcompress.lock import locked
from mmcompress.manifest import Kind, hash_json
from mmcompress.places import MANIFEST, check_place, inside_folders, writing
from mmcompress.progress import track


@dataclass
class Writing:
    """Shards that are being written: where samples go, and what is to be said of them."""

    shards: ShardWriter
    facts: dict[str, Any] = field(default_factory=dict)


def pack(source: str | Path, out: Path, a_shard: int = A_SHARD, max_bad_fraction: float = MAX_BAD_FRACTION) -> Artifact:
    """Write the pairs of a folder or of a table into shards, in their order; `keys:IMAGE/CAPTION:` may stand before it.

    Raises CorruptInputError where more than the fraction is damaged or nothing is good, and what `loose_samples` does.
    """
    keys, plain = keys_of(str(source))
    source = expanded(plain)
    read = source if source.is_dir() else source.parent / source.name
    tally = Tally(str(source), max_bad_fraction, option="--max-bad-fraction")
    config = {"source": source.name} if keys == KNOWN else {"source": source.name, "keys": asdict(keys)}
    with written(out, "pack", [read], a_shard, config) as writing_now:
        for sample in track(loose_samples(source, tally, keys), "packing", None):
            writing_now.shards.add(sample, sample.key)
        tally.finish()
        writing_now.facts["damaged"] = tally.bad
    return Artifact.open(out)


@contextmanager
def written(out: Path, stage: str, read: list[Path], a_shard: int, config: dict[str, Any]) -> Iterator[Writing]:
    """Shards at `out`, published whole when nothing was raised."""
    check_place(out, read, stage)
    said = {**config, "samples_a_shard": a_shard}
    key = hash_json([stage, said, __version__])
    made = Artifact.create(out, kind=Kind.SHARDS, stage=stage, key=key, config=said)
    with inside_folders(out), locked(out), writing(out), made as draft:
        with ShardWriter(draft.path, a_shard) as shards:
            yield (now := Writing(shards))
        _state(draft, now)
    Artifact(out, read_manifest(out / MANIFEST)).remember()


def _state(draft: Draft, now: Writing) -> None:
    counts = {"samples": now.shards.samples, "captions": now.shards.captions, "shards": now.shards.shards}
    draft.facts = {**counts, **now.facts}
