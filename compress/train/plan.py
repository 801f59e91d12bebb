"""Which files an embeddings artifact will have, which of them are there already, and how they get into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import Self

from mmcompress.artifact import read_manifest
from mmcompress.compress.train.chunks import CONTENTS, FOLDER, Contents, Shard, chunk_file, sizes_of_chunk
from mmcompress.data.sections import Section, digest_of
from mmcompress.digests import sha256_of
from mmcompress.errors import CorruptInputError
from mmcompress.manifest import hash_json
from mmcompress.places import MANIFEST
from mmcompress.progress import say
from mmcompress.publish import link
from mmcompress.stages import Job
from mmcompress.strictjson import write_json

_KEY_LETTERS = 32


@dataclass(frozen=True)
class Plan:
    """What an artifact will hold, of each section of the data."""

    sections: list[str]
    """Their names."""
    keys: list[str]
    listed: list[int]
    """Samples, also those that cannot be decoded."""
    files: list[list[str]]

    @classmethod
    def of(cls, spec: str, held: Sequence[Section], listed: list[int], made_of: Sequence[object], a_chunk: int) -> Self:
        """`made_of` is what the files depend on beside the data; a chunk has so many samples at most."""
        keys = [hash_json([*made_of, digest_of(section, spec)])[:_KEY_LETTERS] for section in held]
        files = [[chunk_file(key, n) for n in range(-(-of // a_chunk))] for key, of in zip(keys, listed, strict=True)]
        return cls([section.name for section in held], keys, listed, files)

    @property
    def names(self) -> list[str]:
        """Of all files."""
        return [name for some in self.files for name in some]

    def shards(self, work: Path) -> list[Shard]:
        """As their files are, each of which is there."""
        found = []
        for name, key, files in zip(self.sections, self.keys, self.files, strict=True):
            sizes = [sizes_of_chunk(work / file) or (0, 0) for file in files]
            found.append(
                Shard(name=name, key=key, samples=tuple(n for n, _ in sizes), captions=tuple(m for _, m in sizes))
            )
        return found


def taken_over(job: Job[Any], plan: Plan) -> dict[str, str]:
    """Give the work folder what the earlier artifact has of these files, if it is undamaged; their SHA-256 by name."""
    (job.work / FOLDER).mkdir(exist_ok=True)
    if job.standing is None:
        return {}
    try:
        there = read_manifest(job.standing / MANIFEST).files
    except CorruptInputError:
        return {}
    known: dict[str, str] = {}
    for name in plan.names:
        source, place = job.standing / name, job.work / name
        if name not in there or not source.is_file() or sha256_of(source) != there[name].sha256:
            continue
        if not place.exists():
            link(source, place)
        if place.samefile(source):
            known[name] = there[name].sha256
    if known:
        say("", job.name, f"{len(known)} of {len(plan.names)} chunks are there already")
    return known


def missing_chunks(work: Path, plan: Plan) -> list[tuple[int, int, str]]:
    """(section, chunk, file) of what is not there or not whole, in order."""
    numbered = [(at, number, name) for at, some in enumerate(plan.files) for number, name in enumerate(some)]
    return [one for one in numbered if sizes_of_chunk(work / one[2]) is None]


def fill(job: Job[Any], plan: Plan, shards: Sequence[Shard], known: Mapping[str, str]) -> None:
    """Give the draft the files of the work folder, and the list of them."""
    (job.draft.path / FOLDER).mkdir()
    for name in plan.names:
        link(job.work / name, job.draft.path / name)
    write_json(job.draft.path / CONTENTS, Contents(shards=tuple(shards)).model_dump(mode="json"))
    job.draft.known = dict(known)
