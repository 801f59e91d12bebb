"""Published reinforced data as cached embeddings: a student learns from teachers that nobody has at hand.

The layout is that of DataCompDR (Vasu et al. 2024, MobileCLIP): beside the image and the caption of a sample lie
`syn.json` with synthetic captions (`syn_text`), `paug.json` with the parameters of each view (`param_aug`, see
`data/given.py`), and `npz` or `pth.gz` with `image_emb` (V, D), a row a view, and `text_emb`, a row for the caption and
one for each synthetic one. The embeddings of several teachers stand side by side in a row, each of unit norm; a row is
brought to unit norm as a whole, so its cosines are the mean of theirs.

The images are not published and come from their URLs, by img2dataset say, into the same tars. A view says which pixels
of an image it is of, so images must have the size that they were embedded at. Nothing is unpickled: of a `pth.gz` torch
reads tensors only, of an `npz` numpy reads arrays only.
"""

from __future__ import annotations

import gzip
import io
import itertools
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmcompress import __version__
from mmcompress.compress.train.augment import GIVEN
from mmcompress.compress.train.chunks import Given, read_chunk, write_chunk
from mmcompress.compress.train.plan import Plan, fill, missing_chunks, taken_over
from mmcompress.config import ImportEmbeddingsConfig
from mmcompress.data.given import A_VIEW, MAGNITUDES, OPERATIONS
from mmcompress.data.parsing import different
from mmcompress.data.reading import Listed
from mmcompress.data.sections import Section, counts, sections
from mmcompress.data.shards import MEMBER_BYTES, members
from mmcompress.data.spec import is_stream
from mmcompress.data.tally import Tally
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import Preprocessing
from mmcompress.progress import track
from mmcompress.stages import Job
from mmcompress.strictjson import json_from_text

_CHUNK = 512
"""Samples in a file, at most."""
_PIXELS = 2**16
"""More than a side has, and than any magnitude."""
_SUFFIXES = ("txt", "syn.json", "paug.json", "npz", "pth.gz")
_UNREADABLE = (ValueError, KeyError, TypeError, OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True)
class _Reinforced:
    """What lies beside an image."""

    images: Tensor
    """(V, D) in FP16, of unit norm"""
    texts: Tensor
    """(captions, D) in FP16, of unit norm"""
    boxes: NDArray[np.int32]
    """(V, 4)"""
    operations: NDArray[np.float32]
    """(V, A_VIEW, 2)"""


def import_embeddings(job: Job[ImportEmbeddingsConfig]) -> None:
    """Stage: what lies beside published images as the cached embeddings of a teacher."""
    config, spec = job.config, job.config.data.train
    if spec is None:
        raise UsageError("import-embeddings needs data", "set data.train, or give --data")
    held = sections(spec)
    if any(not section.name or is_stream(section.places[0][0]) for section in held):
        raise UsageError(f"{spec} is not all tar shards on this machine", "give shards in DataCompDR's layout")
    listed = counts(spec, held, config.data.max_bad_fraction)
    plan = Plan.of(spec, held, listed, ["imported", __version__], _CHUNK)
    known = taken_over(job, plan)
    todo = sorted({at for at, _, _ in missing_chunks(job.work, plan)})
    for at in track(todo, "importing", len(todo)):
        stream = _of_shard(held[at])
        for name in plan.files[at]:
            some = list(itertools.islice(stream, _CHUNK))
            _write(job.work / name, [sample for sample, _ in some], [beside for _, beside in some])
    shards = plan.shards(job.work)
    views, dim = _shape([job.work / name for name in plan.names])
    fill(job, plan, shards, known)
    job.draft.preprocessing = Preprocessing(
        size=config.size, resize=config.size, interpolation=config.interpolation, mean=config.mean, std=config.std
    )
    scale = 1 / config.temperature
    facts = {"dim": dim, "views": views, "augment": GIVEN, "seed": 0, "logit_scale": scale, "logit_bias": None}
    job.draft.facts = facts


def _of_shard(section: Section) -> Iterator[tuple[Listed, _Reinforced]]:
    """Each good sample with what lies beside it. Raises CorruptInputError that names the first one without."""
    place, name = section.places[0]
    groups = itertools.groupby(members(place, _SUFFIXES, section.keys), lambda member: member.key)
    for sample in section.listed(Tally(place, 1.0, announce=False)):
        own = sample.key.removeprefix(f"{name}/")
        group = next((group for key, group in groups if key == own), iter(()))
        files = {member.suffix: member.content for member in group}
        try:
            yield sample, _reinforced(files, sample.captions)
        except _UNREADABLE as error:
            raise CorruptInputError(
                f"the sample {sample.key!r} is not reinforced as DataCompDR is: {error}",
                "leave the shard out, or embed the data with a teacher",
            ) from error


def _reinforced(files: Mapping[str, bytes | None], captions: Sequence[str]) -> _Reinforced:
    """ValueError, or an error of the library that reads, says what is wrong."""
    if not files.get("paug.json"):
        raise ValueError("without paug.json nobody knows which views were embedded")
    images, texts = _embeddings(files)
    views = json_from_text(files["paug.json"] or b"")["param_aug"]
    boxes, operations = _views(json_from_text(views) if isinstance(views, str) else views)
    if len(boxes) != len(images):
        raise ValueError(f"paug.json has {len(boxes)} views, and {len(images)} are embedded")
    synthetic = json_from_text(files.get("syn.json") or b"{}").get("syn_text") or []
    if len(texts) != 1 + len(synthetic):
        raise ValueError(
            f"{len(texts)} texts are embedded, and there are a caption and {len(synthetic)} synthetic ones"
        )
    said = [*different([(files.get("txt") or b"").decode("utf-8-sig")]), *captions][0]
    row: dict[str, int] = {}
    for number, text in enumerate([said, *synthetic]):
        row |= {clean: number for clean in different([text]) if clean not in row}
    if missing := [caption for caption in captions if caption not in row]:
        raise ValueError(f"its caption {missing[0]!r} is not embedded")
    return _Reinforced(images, texts[[row[caption] for caption in captions]], boxes, operations)


def _embeddings(files: Mapping[str, bytes | None]) -> tuple[Tensor, Tensor]:
    """Images (V, D) and texts (M, D) in FP16, of unit norm."""
    if (content := files.get("npz")) is not None:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(info.file_size for info in archive.infolist()) > MEMBER_BYTES:
                raise ValueError(f"the npz unfolds to more than {MEMBER_BYTES // 2**20} MiB")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            found: Mapping[str, Any] = {name: arrays[name] for name in ("image_emb", "text_emb")}
    elif (content := files.get("pth.gz")) is not None:
        with gzip.open(io.BytesIO(content)) as stream:
            unfolded = stream.read(MEMBER_BYTES + 1)
        if len(unfolded) > MEMBER_BYTES:
            raise ValueError(f"the pth.gz unfolds to more than {MEMBER_BYTES // 2**20} MiB")
        try:
            found = torch.load(io.BytesIO(unfolded), map_location="cpu", weights_only=True)
        except Exception as error:  # torch has an error of its own for each way in which a pickle is none of tensors
            raise ValueError("the pth.gz holds more than tensors, or is damaged") from error
    else:
        raise ValueError("it has neither npz nor pth.gz")
    images, texts = (torch.as_tensor(found[name]) for name in ("image_emb", "text_emb"))
    if not (images.is_floating_point() and texts.is_floating_point()):
        raise ValueError(f"embeddings are {images.dtype} and {texts.dtype}, and no floating-point numbers")
    images, texts = images.float(), texts.float()
    for side in (images, texts):
        norms = side.norm(dim=-1, keepdim=True)
        if side.ndim != 2 or side.shape[1] != images.shape[-1]:
            raise ValueError(f"embeddings have the shapes {tuple(images.shape)} and {tuple(texts.shape)}")
        if not (torch.isfinite(norms) & (norms > 0)).all():
            raise ValueError("an embedding is NaN, infinite or zeros only")
        side /= norms
    return images.half(), texts.half()


def _views(stated: Any) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """[[box, operations], …] -> (V, 4) and (V, A_VIEW, 2)"""
    if not isinstance(stated, list):
        raise ValueError(f"param_aug is {stated!r}, and no list of views")
    boxes = np.zeros((len(stated), 4), np.int32)
    operations = np.zeros((len(stated), A_VIEW, 2), np.float32)
    for row, view in enumerate(stated):
        box, operated = view if isinstance(view, list) and len(view) == 2 else (None, None)
        operated = [] if operated is None else operated
        if not _has_numbers(box, 4) or not isinstance(operated, list) or len(operated) > A_VIEW:
            raise ValueError(
                f"its view {row} is {view!r}, and only a crop and up to {A_VIEW} operations are made again"
            )
        if any(number != int(number) or not 0 <= number < _PIXELS for number in box) or min(box[2:]) < 1:
            raise ValueError(f"its view {row} is the crop {box!r}; top, left, height and width are whole pixels")
        boxes[row] = box
        for number, operation in enumerate(operated):
            if not _has_numbers(operation, 2):
                raise ValueError(f"its view {row} has an operation {operation!r}, and no number and magnitude")
            if operation[0] not in range(len(OPERATIONS)):
                raise ValueError(f"its view {row} has an operation {operation[0]!r}; they are numbered 0 to 13")
            least, most = MAGNITUDES.get(OPERATIONS[int(operation[0])], (-_PIXELS, _PIXELS))
            if not least <= operation[1] <= most:
                raise ValueError(f"its view {row} has an operation {operation!r} whose magnitude there is not")
            operations[row, number] = operation
    return boxes, operations


def _has_numbers(found: Any, count: int) -> TypeGuard[list[float]]:
    """Whether it is a list of so many numbers."""
    return isinstance(found, list) and len(found) == count and all(type(number) in (int, float) for number in found)


def _write(path: Path, samples: Sequence[Listed], beside: Sequence[_Reinforced]) -> None:
    for sample, one in zip(samples, beside, strict=True):
        if one.images.shape != beside[0].images.shape:
            raise CorruptInputError(
                f"the sample {sample.key!r} has embeddings of the shape {tuple(one.images.shape)}, and others "
                f"{tuple(beside[0].images.shape)}",
                "import data of one kind at a time",
            )
    write_chunk(
        path,
        torch.stack([one.images for one in beside]),
        torch.cat([one.texts for one in beside]),
        [len(one.texts) for one in beside],
        [sample.mark for sample in samples],
        [sample.key for sample in samples],
        Given(np.stack([one.boxes for one in beside]), np.stack([one.operations for one in beside])),
    )


def _shape(files: Sequence[Path]) -> tuple[int, int]:
    """(V, D) of every file. Raises CorruptInputError where they differ."""
    found = {read_chunk(file).images.shape[1:] for file in files}
    if len(found) != 1:
        raise CorruptInputError(f"shards have embeddings of the shapes {sorted(found)}", "import data of one kind")
    views, dim = found.pop()
    return views, dim
