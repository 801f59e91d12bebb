"""Teacher embeddings, computed once.

A large teacher costs many times its student, so each training pair is embedded once and every later stage reads the
result. Augmentation and caching do not exclude each other: a view is a function of (seed, key, view number), so the
student can be shown exactly the pixels that the teacher saw (Wu et al. 2022, TinyViT, section 3.1; Beyer et al. 2022,
"a good teacher is patient and consistent").

Layout: chunks of `images (n, V, D)` and `texts (m, D)` in FP16, with the keys and the number of captions of each, and
`marks (n, 16)` of the image and the captions that were embedded, since two sets may use the same keys.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmcompress.artifact import Artifact
from mmcompress.compress.identity import READ, hashes_of_read
from mmcompress.compress.teacher import Teacher, load_teacher
from mmcompress.compress.train.augment import normalized, pixels_of_views
from mmcompress.config import EmbedConfig
from mmcompress.data.batches import Batch, batches, count
from mmcompress.data.sample import MARK_BYTES, difference
from mmcompress.distributed import world
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.progress import say, track
from mmcompress.ranks import wait_until_seen
from mmcompress.stages import Job
from mmcompress.strictjson import read_json, write_json

_CHUNK = 1024


@dataclass(frozen=True)
class Embeddings:
    """A teacher's embeddings by sample key."""

    images: Tensor
    """(N, V, D) of unit norm"""
    texts: Tensor
    """(M, D) of unit norm, the captions of each sample in a row"""
    rows: dict[str, tuple[int, int, int]]
    """Key -> (row of its images, first caption, captions)."""
    marks: bytes
    """N marks of what was embedded, see `sample.mark_of`."""
    data: str | None
    """The fingerprint of the data that was embedded."""
    views: int
    augment: str
    seed: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dim(self) -> int:
        return self.images.shape[-1]

    def check(self, key: str, mark: bytes) -> None:
        """Raise CorruptInputError unless the sample is the one that was embedded under its key."""
        if key not in self.rows:
            raise CorruptInputError(
                f"the sample {key!r} has no teacher embedding", "embed the same data that the student learns from"
            )
        at = MARK_BYTES * self.rows[key][0]
        if other := difference(mark, self.marks[at : at + MARK_BYTES]):
            raise CorruptInputError(
                f"the sample {key!r} is not the one whose teacher embedding is cached: it has {other}",
                "sets may use the same keys: embed the same data that the student learns from",
            )

    def lookup(
        self, keys: Sequence[str], marks: Sequence[bytes], views: NDArray[np.int64], captions: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """The images (B, D) in the given views and the texts (B, D) of the given captions, in FP32; see `check`."""
        for key, mark in zip(keys, marks, strict=True):
            self.check(key, mark)
        rows = torch.tensor([self.rows[key][0] for key in keys])
        texts = torch.tensor([self.rows[key][1] + caption for key, caption in zip(keys, captions, strict=True)])
        return self.images[rows, torch.from_numpy(views)].float(), self.texts[texts].float()

    def anchors(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Plain images (K, D) and texts (K', D), up to `count` different ones of each, evenly spaced over the data."""

        def spread(rows: Tensor) -> Tensor:
            chosen = rows[torch.linspace(0, len(rows) - 1, min(len(rows), 2 * count)).round().long()]
            different: Tensor = chosen.float().unique(dim=0)
            return different[:count].to(device)

        return spread(self.images[:, 0]), spread(self.texts)


def embed(job: Job[EmbedConfig]) -> None:
    """Stage: embed every training pair with the teacher, a chunk at a time.

    A killed run goes on with the chunks that are missing. Of several processes each makes whole chunks, every Nth one,
    so that a chunk is the same, whoever makes it.
    """
    config, data = job.config, job.config.data
    if data.train is None:
        raise UsageError("embed needs training data", "set data.train, or give --data")
    a_chunk = max(1, _CHUNK // config.batch)
    start = time.monotonic()
    with world(config.device) as here:
        teacher = load_teacher(config.teacher, here.device)
        read = hashes_of_read(teacher.files, config.teacher.source)
        here.agree("teacher", [f"{name} {digest}" for name, digest in read.items()])
        if here.leads:
            _drop_chunks_of_another(job.work, read)
        done = set(here.shared(_chunks_in(job.work)))

        def is_mine(number: int) -> bool:
            chunk = number // a_chunk
            return chunk not in done and chunk % here.size == here.rank

        stream = batches(
            data.train,
            teacher.preprocessing,
            batch=config.batch,
            workers=data.workers,
            max_bad_fraction=data.max_bad_fraction,
            only=is_mine,
        )
        whole = count(data.train, data.max_bad_fraction) if here.leads else 0
        mine = sum(map(is_mine, range(-(-whole // config.batch))))
        shown = track(stream, "embedding", mine)
        wrote, pairs = [], 0
        for index, of_chunk in itertools.groupby(shown, key=lambda one: one.number // a_chunk):
            chunk = list(_embedded(of_chunk, teacher, config))
            pairs += sum(len(batch.keys) for batch, _ in chunk)
            _write_chunk(job.work, index, chunk, teacher, config)
            wrote.append(index)
        of_all = here.collected((wrote, pairs))
    if not here.leads:
        return  # the artifact is written by rank 0
    chunks = done.union(*(written for written, _ in of_all))
    wait_until_seen(lambda: chunks == set(_chunks_in(job.work)), job.work)
    _check_decoded(job.work, whole, config)
    pairs = sum(own for _, own in of_all)
    for path in sorted(job.work.glob("*-*[0-9].*")):
        shutil.copyfile(path, job.draft.path / path.name)
    seconds = time.monotonic() - start
    speed = {"pairs": pairs, "seconds": seconds, "images_per_s": pairs * config.views / seconds}
    job.draft.metrics = {"embedding": speed}
    job.draft.preprocessing = teacher.preprocessing
    job.draft.facts = {
        "dim": teacher.embed_dim,
        "views": config.views,
        "augment": config.augment,
        "seed": config.seed,
        "logit_scale": teacher.logit_scale,
        "logit_bias": teacher.logit_bias,
    }
    if read:
        job.draft.facts[READ] = read


def _chunks_in(work: Path) -> list[int]:
    """The numbers of the chunks that are whole."""
    return sorted(int(path.stem.removeprefix("keys-")) for path in work.glob("keys-*.json"))


def _check_decoded(work: Path, whole: int, config: EmbedConfig) -> None:
    """Each process has counted the damaged images of its own chunks only; here they are judged together."""
    embedded = sum(len(read_json(path, "embed the data again")) for path in work.glob("keys-*.json"))
    if whole - embedded > config.data.max_bad_fraction * whole:
        raise CorruptInputError(
            f"{config.data.train}: {whole - embedded} of {whole} images cannot be decoded",
            "mend or remove them, or allow more with data.max_bad_fraction",
        )


def _drop_chunks_of_another(work: Path, read: dict[str, str]) -> None:
    """A killed run is gone on with only while the teacher's files are those that it began with."""
    mark = work / "teacher.json"
    if mark.is_file() and read_json(mark, "delete the folder that it lies in") != read:
        say("embed", work.name, "the teacher has changed since this run began, so it begins again")
        for path in work.glob("*-*[0-9].*"):
            path.unlink()
    write_json(mark, read)


def _embedded(stream: Iterator[Batch], teacher: Teacher, config: EmbedConfig) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch with its images (B, V, D) in FP16."""
    for batch in stream:
        views = []
        for view in range(config.views):
            same = np.full(len(batch.keys), view)
            pixels = pixels_of_views(batch, same, config.seed, config.augment, torch.device("cpu"))
            views.append(teacher.encode_image(normalized(pixels, teacher.preprocessing)))
        yield batch, torch.stack(views, dim=1).half()


def _write_chunk(
    folder: Path, index: int, chunk: Sequence[tuple[Batch, Tensor]], teacher: Teacher, config: EmbedConfig
) -> None:
    """The tensors first, then the keys under their final name: where these are, the chunk is whole."""
    captions = [own for batch, _ in chunk for own in batch.captions]
    keys = [key for batch, _ in chunk for key in batch.keys]
    texts = embedded_texts(teacher, [caption for own in captions for caption in own], 4 * config.batch)
    images = torch.cat([embedded for _, embedded in chunk])
    marks = torch.tensor([list(mark) for batch, _ in chunk for mark in batch.marks], dtype=torch.uint8)
    save_file({"images": images, "texts": texts, "marks": marks}, folder / f"embeddings-{index:05d}.safetensors")
    numbers = [[key, len(own)] for key, own in zip(keys, captions, strict=True)]
    partial = folder / f"keys{index:05d}.tmp"
    write_json(partial, numbers, indent=None)
    partial.replace(folder / f"keys-{index:05d}.json")


def embedded_texts(teacher: Teacher, captions: Sequence[str], batch: int) -> Tensor:
    """(M, D) in FP16. Equal captions are embedded once, and captions of like length together, as padding costs time."""
    different = sorted(dict.fromkeys(captions), key=len)
    starts = range(0, len(different), batch)
    embeddings = torch.cat(
        [teacher.encode_text(different[i : i + batch]).half() for i in track(starts, "captions", len(starts))]
    )
    row = {caption: i for i, caption in enumerate(different)}
    return embeddings[torch.tensor([row[caption] for caption in captions])]


def load_embeddings(artifact: Artifact) -> Embeddings:
    """Read an embeddings artifact; the tensors are mapped into memory as FP16.

    Raises CorruptInputError that names the sample for numbers that are not finite.
    """
    images: list[Tensor] = []
    texts: list[Tensor] = []
    marks: list[bytes] = []
    rows: dict[str, tuple[int, int, int]] = {}
    captions = 0
    for name in sorted(n for n in artifact.manifest.files if n.startswith("keys-")):
        tensors = load_file(artifact.file(name.replace("keys-", "embeddings-").replace(".json", ".safetensors")))
        images.append(tensors["images"])
        texts.append(tensors["texts"])
        if "marks" not in tensors:
            raise CorruptInputError(
                f"{artifact.path} does not say which images and captions it is of, as earlier versions did not",
                "embed the data again",
            )
        marks.append(tensors["marks"].numpy().tobytes())
        numbers: list[tuple[str, int]] = read_json(artifact.file(name), "embed the data again")
        _check_finite(artifact, numbers, tensors["images"], tensors["texts"])
        for key, number in numbers:
            rows[key] = (len(rows), captions, number)
            captions += number
    facts = artifact.manifest.facts
    return Embeddings(
        torch.cat(images) if len(images) > 1 else images[0],
        torch.cat(texts) if len(texts) > 1 else texts[0],
        rows,
        b"".join(marks),
        artifact.manifest.parents.get("data.train"),
        facts["views"],
        facts["augment"],
        facts["seed"],
    )


def _check_finite(artifact: Artifact, numbers: Sequence[tuple[str, int]], images: Tensor, texts: Tensor) -> None:
    """Raise for a chunk, images (n, V, D) and texts (m, D), whose largest or smallest number is NaN or infinite."""
    if all(torch.isfinite(torch.stack(side.aminmax())).all() for side in (images, texts)):
        return
    of_caption = [row for row, (_, number) in enumerate(numbers) for _ in range(number)]
    rows = (~torch.isfinite(images.flatten(1)).all(dim=1)).nonzero().flatten().tolist()
    rows += [of_caption[row] for row in (~torch.isfinite(texts).all(dim=1)).nonzero().flatten().tolist()]
    raise CorruptInputError(
        f"{artifact.path}: the teacher's embedding of the sample {numbers[min(rows)][0]!r} is not finite",
        "delete the folder, and embed the data again",
    )
