"""What the commands that make or look at data print."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Group, RenderableType
from rich.text import Text

from mmcompress.artifact import Artifact
from mmcompress.cli.console import Summary, artifact_summary, empty_table
from mmcompress.data.indexing import DataFacts
from mmcompress.data.stats import DataStats
from mmcompress.data.tally import printable
from mmcompress.formats import count, megabytes

if TYPE_CHECKING:
    from mmcompress.compress.dedupe import Duplicates  # imports torch


def data_summary(facts: DataFacts) -> Summary:
    """What the indices of a data set say, with the shards in which something is damaged."""
    shards = facts.shards
    samples, damaged = sum(shard.samples for shard in shards), sum(shard.damaged for shard in shards)
    made = [shard for shard in shards if shard.made]
    lines = [
        f"{count(samples)} samples in {count(len(shards))} shards, {megabytes(sum(shard.bytes for shard in shards))}; "
        f"{count(damaged)} items cannot be read",
        f"{count(len(made))} shards read now, in {facts.seconds:.1f} s",
    ]
    if packed := sum(not shard.seekable for shard in shards):
        lines.append(f"{count(packed)} are compressed, so a run that goes on in the middle reads them from their begin")
    lines += [f"{shard.shard}: {count(shard.damaged)}, {shard.first_damage}" for shard in shards if shard.damaged]
    document = {"samples": samples, "damaged": damaged, "made": len(made), "shards": [asdict(one) for one in shards]}
    return document, Text("\n".join(printable(line) for line in lines))


def shards_summary(shards: Artifact) -> Summary:
    """Shards that were written, and what was left out."""
    document, view = artifact_summary(shards)
    facts = shards.manifest.facts
    numbers = [f"{count(number)} {name.replace('_', ' ')}" for name, number in facts.items() if isinstance(number, int)]
    lines = [f"{view}", ", ".join(numbers)]
    if facts.get("similarity"):
        lines.append(f"similarity of all pairs: {_percentiles(facts['similarity'])}")
    return document, Text("\n".join(lines))


def stats_summary(stats: DataStats) -> Summary:
    """What a data set is like."""
    parts: list[RenderableType] = [
        Text(
            f"{count(stats.samples)} samples with {count(stats.captions)} captions, {count(stats.labelled)} of a class;"
            f" {count(stats.damaged)} items cannot be read"
        )
    ]
    table = empty_table("", *(f">{name}" for name in ("least", "5%", "median", "95%", "most")))
    for name, values in stats.percentiles.items():
        table.add_row(name.replace("_", " "), *(f"{value:,g}" for value in values.values()))
    parts.append(table)
    kinds = {"format": stats.formats, "script": stats.scripts, "language": stats.languages, "damage": stats.damage}
    for title, counts in kinds.items():
        if counts:
            shares = empty_table(title, ">items")
            for name, number in sorted(counts.items(), key=lambda one: -one[1]):
                shares.add_row(printable(name), count(number))
            parts.append(shares)
    if stats.languages is None:
        parts.append(Text("languages: pip install 'mmcompress[languages]' tells them"))
    names = ("samples", "captions", "labelled", "damaged", "damage", "formats", "scripts", "languages", "percentiles")
    return {name: getattr(stats, name) for name in names}, Group(*parts)


def duplicates_summary(found: Duplicates, out: Path) -> Summary:
    """How many images are nearly the same as others, and the largest clusters of them."""
    lines = [
        f"{out}  {count(found.duplicates)} of {count(found.images)} images are nearly the same as one before them, "
        f"in {count(found.clusters)} clusters (cosine {found.threshold:g})"
    ]
    lines += [f"{count(size)} like {printable(name)}" for name, size in found.largest]
    return {"path": str(out), **cast(dict[str, object], asdict(found))}, Text("\n".join(lines))


def _percentiles(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())
