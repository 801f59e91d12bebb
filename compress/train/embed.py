"""Teacher embeddings, computed once.

A large teacher costs many times its student, so each training pair is embedded once and every later stage reads the
result (`chunks.py`). Augmentation and caching do not exclude each other: a view is a function of (seed, key, view
number), so the student can be shown exactly the pixels that the teacher saw (Wu et al. 2022, TinyViT, section 3.1;
Beyer et al. 2022, "a good teacher is patient and consistent").

Each chunk of a shard is a file that is named by all that it was made from. Those that the artifact before has are
taken over, as further names of the same files, so that a shard more is the work for one.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmcompress import __version__
from mmcompress.artifact import read_manifest
from mmcompress.compress.identity import READ, hashes_of_read, model_fingerprint
from mmcompress.compress.teacher import Teacher, load_teacher
from mmcompress.compress.train.augment import decoded_views, normalized, pixels_of_views
from mmcompress.compress.train.chunks import write_chunk
from mmcompress.compress.train.plan import Plan, fill, missing_chunks, taken_over
from mmcompress.compress.train.sentences import FILE, write_sentences
from mmcompress.config import EmbedConfig, what_counts
from mmcompress.data.batches import Batch
from mmcompress.data.checkpairs import check_images
from mmcompress.data.layout import read_sentences
from mmcompress.data.preprocess import normalize
from mmcompress.data.sections import Section, counts, decoded_chunks, sections
from mmcompress.data.tally import NAMED, Tally
from mmcompress.distributed import world
from mmcompress.errors import UsageError
from mmcompress.manifest import hash_json
from mmcompress.places import MANIFEST
from mmcompress.progress import track
from mmcompress.ranks import wait_until_seen
from mmcompress.stages import Job
from mmcompress.teachers import cached_folder

Speed = dict[str, float]
_CHUNK = 2048
"""Pairs in a file, at most and of whole batches: what a killed process computes again."""


def embed(job: Job[EmbedConfig]) -> None:
    """Stage: embed every training pair with the teacher, a chunk of a shard at a time.

    A killed run goes on with the chunks that are missing. Several processes share these, each takes every Nth.
    """
    config, spec = job.config, job.config.data.train
    if spec is None:
        raise UsageError("embed needs training data", "set data.train, or give --data")
    start = time.monotonic()
    with world(config.device) as here:
        teacher = load_teacher(config.teacher, here.device)
        read = hashes_of_read(teacher.files, config.teacher.source)
        here.agree("teacher", [f"{name} {digest}" for name, digest in read.items()])
        held = sections(spec)
        here.agree("data", hash_json([section.name for section in held]))
        plan = _plan(job, held, _made_of(config, teacher, read)) if here.leads else Plan([], [], [], [])
        known = taken_over(job, plan) if here.leads else {}
        missing, total = here.shared((missing_chunks(job.work, plan), sum(plan.listed)))
        mine = missing[here.rank :: here.size]
        lost = Tally(spec, config.data.max_bad_fraction, announce=False, good=total)
        pairs, image_s = _embed_chunks(job, mine, teacher, held, plan.listed, lost)
        of_all = here.collected((pairs, image_s, lost.first))
    if not here.leads:
        return  # the artifact is written by rank 0
    wait_until_seen(lambda: not missing_chunks(job.work, plan), job.work)
    shards = plan.shards(job.work)
    named = [line for *_, some in of_all for line in some]
    _check_decoded(sum(sum(shard.samples) for shard in shards), total, named, config)
    fill(job, plan, shards, known)
    said = [] if config.sentences is None else read_sentences(config.sentences)
    if said:
        write_sentences(job.draft.path / FILE, said, embedded_texts(teacher, said, 4 * config.batch))
    seconds = time.monotonic() - start
    job.draft.metrics = {
        "embedding": _speed(
            job.standing if known else None, teacher, [(n * config.views, s) for n, s, _ in of_all], seconds
        )
    }
    job.draft.preprocessing = teacher.preprocessing
    job.draft.facts = {
        "dim": teacher.embed_dim,
        "views": config.views,
        "augment": config.augment,
        "seed": config.seed,
        "logit_scale": teacher.logit_scale,
        "logit_bias": teacher.logit_bias,
    }
    if said:
        job.draft.facts["sentences"] = len(said)
    if read:
        job.draft.facts[READ] = read


def _plan(job: Job[EmbedConfig], held: Sequence[Section], made_of: Sequence[object]) -> Plan:
    spec, a_chunk = job.config.data.train or "", batches_a_chunk(job.config.batch) * job.config.batch
    listed = counts(spec, held, job.config.data.max_bad_fraction)
    return Plan.of(spec, held, listed, made_of, a_chunk)


def _made_of(config: EmbedConfig, teacher: Teacher, read: Mapping[str, str]) -> list[object]:
    """What embeddings depend on beside the data."""
    counted = {name: value for name, value in what_counts(config).items() if name not in ("data", "teacher")}
    commit = cached_folder(config.teacher.source)
    identity = [model_fingerprint(config.teacher.source), what_counts(config.teacher), commit and commit.name, read]
    return [__version__, counted, identity, teacher.preprocessing.model_dump(mode="json")]


def batches_a_chunk(batch: int) -> int:
    """How many batches of so many pairs a chunk has."""
    return max(1, _CHUNK // batch)


def _embed_chunks(
    job: Job[EmbedConfig],
    missing: Sequence[tuple[int, int, str]],
    teacher: Teacher,
    held: Sequence[Section],
    listed: Sequence[int],
    lost: Tally,
) -> tuple[int, float]:
    """Embed and write these chunks; the number of pairs in them, and seconds without their captions. `listed` may be
    empty where no bar is shown.

    `lost` has the samples of all data, and hears of those that cannot be decoded: too many here are too many in all.
    """
    config = job.config
    if not missing:
        return 0, 0.0
    a_chunk = batches_a_chunk(config.batch)
    wanted: dict[int, set[int]] = {}
    for at, number, _ in missing:
        wanted.setdefault(at, set()).add(number)
    stream = decoded_chunks(
        held,
        wanted,
        teacher.preprocessing,
        batch=config.batch,
        a_chunk=a_chunk,
        workers=config.data.workers,
        tally=lost,
        shown=decoded_views(config.augment, config.seed, config.views, lambda _: range(config.views)),
    )
    total = sum(min(a_chunk, -(-listed[at] // config.batch) - number * a_chunk) for at, number, _ in missing if listed)
    files, pairs, image_s = {(at, number): job.work / name for at, number, name in missing}, 0, 0.0
    for chunk, some in itertools.groupby(track(stream, "embedding", total), key=lambda one: one[0]):
        began = time.monotonic()
        batches = [_embedded(batch, teacher, config) for _, batch in some if batch is not None]
        image_s += time.monotonic() - began
        pairs += _write_embedded(files[chunk], batches, teacher, config)
    return pairs, image_s


def _speed(before: Path | None, teacher: Teacher, images: Sequence[tuple[int, float]], seconds: float) -> Speed:
    """What later stages expect of this machine: `images_per_s` with all that embedding takes, `image_tower_per_s`
    without captions. `images` are those of each process, and the seconds that it took for them.

    Where all were there already, it is what the artifact before says that had them, or what the drawings that ship
    take.
    """
    if count := sum(some for some, _ in images):
        alone = sum(some / took for some, took in images if some)
        return {"images": count, "seconds": seconds, "images_per_s": count / seconds, "image_tower_per_s": alone}
    rates = ("images_per_s", "image_tower_per_s")
    known = {} if before is None else read_manifest(before / MANIFEST).metrics.get("embedding", {})
    if known.keys() >= {*rates}:
        return {"images": 0, "seconds": seconds, **{rate: known[rate] for rate in rates}}
    pixels = torch.from_numpy(normalize(check_images(teacher.preprocessing), teacher.preprocessing))
    began = time.monotonic()
    teacher.encode_image(pixels)
    tried = len(pixels) / (time.monotonic() - began)
    return {"images": 0, "seconds": seconds, **dict.fromkeys(rates, tried)}


def _check_decoded(embedded: int, listed: int, named: list[str], config: EmbedConfig) -> None:
    """Each process has counted the damaged images of its own chunks only; here they are judged together, and told.

    `named` are those that this run has met, not those of chunks that were there already.
    """
    bad = listed - embedded
    first = named[:NAMED] or ["in chunks that were there already"]
    Tally(config.data.train or "", config.data.max_bad_fraction, good=embedded, bad=bad, first=first).finish()


def _embedded(batch: Batch, teacher: Teacher, config: EmbedConfig) -> tuple[Batch, Tensor]:
    """A batch, no longer with its pixels, and its images (B, V, D) in FP16."""
    views = []
    for view in range(config.views):
        same = np.full(len(batch.keys), view)
        pixels = pixels_of_views(batch, same, config.seed, config.augment, torch.device("cpu"))
        views.append(teacher.encode_image(normalized(pixels, teacher.preprocessing)))
    return replace(batch, pixels=batch.pixels[:0].copy()), torch.stack(views, dim=1).half()


def _write_embedded(path: Path, chunk: Sequence[tuple[Batch, Tensor]], teacher: Teacher, config: EmbedConfig) -> int:
    """Write a chunk with its captions, which are embedded here; the number of its pairs."""
    captions = [own for batch, _ in chunk for own in batch.captions]
    none = torch.empty(0, config.views, teacher.embed_dim, dtype=torch.float16)
    said = [caption for own in captions for caption in own]
    texts = embedded_texts(teacher, said, 4 * config.batch) if said else none[:, 0]
    write_chunk(
        path,
        torch.cat([none, *(embedded for _, embedded in chunk)]),
        texts,
        [len(own) for own in captions],
        [mark for batch, _ in chunk for mark in batch.marks],
        [key for batch, _ in chunk for key in batch.keys],
    )
    return len(captions)


def embedded_texts(teacher: Teacher, captions: Sequence[str], batch: int) -> Tensor:
    """(M, D) in FP16. Equal captions are embedded once, and captions of like length together, as padding costs time."""
    different = sorted(dict.fromkeys(captions), key=len)
    starts = range(0, len(different), batch)
    embeddings = torch.cat(
        [teacher.encode_text(different[i : i + batch]).half() for i in track(starts, "captions", len(starts))]
    )
    row = {caption: i for i, caption in enumerate(different)}
    return embeddings[torch.tensor([row[caption] for caption in captions])]
