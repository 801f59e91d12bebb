"""`mmcompress index`: embed the images that an index does not have yet, and link them into its graph.

A part is written as soon as it is full, into a work folder beside the index. A killed run goes on with the images that
are in no part, so at most one part is computed again. While images are embedded, what is held is one batch of pixels,
one part, the graph that there is already, and 48 bytes of every image that is known.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmcompress import __version__
from mmcompress.artifact import Artifact, Draft, read_manifest
from mmcompress.data.images import named_images, passed_over
from mmcompress.data.sample import image_of
from mmcompress.data.spec import bare, expand, is_stream, said_keys
from mmcompress.data.tally import Tally
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.home import expanded
from mmcompress.lock import locked
from mmcompress.manifest import Kind, hash_json
from mmcompress.places import MANIFEST, check_place, inside_folders, writing
from mmcompress.progress import say, track
from mmcompress.publish import link, tidy, work_of, working
from mmcompress.runtime.encoder import Encoder
from mmcompress.runtime.growth import Growth
from mmcompress.runtime.imageindex import (
    BACKEND,
    CANDIDATES,
    GONE,
    GRAPH,
    KEYS,
    MODEL,
    NODES,
    PARTS,
    PRECISION,
    RECALL,
    SOURCE,
    WIDTH,
    ImageIndex,
    digest_of_model,
    hash_of,
    known_file,
    names_file,
    vectors_of,
    written_parts,
)
from mmcompress.runtime.neighbours import Graph, faiss_module
from mmcompress.runtime.recall import Walk, walk_for

STAGE = "index"


@dataclass
class Indexed:
    """An index, and what became of the images that were given."""

    artifact: Artifact
    embedded: int = 0
    """By this run; a killed one before it may have embedded others."""
    moved: int = 0
    """Embedded before, and no longer where they were."""
    copies: int = 0
    """Of images that the index has, under the same name or another one."""
    damaged: int = 0


def check_index(images: str, out: Path, model: Path) -> None:
    """Raise what would be in the way of `index`, before anything is embedded or a teacher is converted for it."""
    faiss_module()
    expand(images)
    given = expanded(bare(images))
    check_place(out, [model, *([given] if not is_stream(images) and given.exists() else [])], STAGE)


def index(encoder: Encoder, images: str, out: Path, source: str) -> Indexed:
    """Make the index at `out` of the images that a data specification names, or add those that are new to it.

    `source` is where the encoder's model is. Raises CorruptInputError for an index that another model has made.
    """
    check_index(images, out, encoder.artifact.path)
    with inside_folders(out), locked(out, reading=[encoder.artifact.path]):
        tidy(out)
        standing = ImageIndex.open(out) if (out / MANIFEST).is_file() else None
        if standing is not None:
            _check_same_model(standing, encoder)
        before = standing.artifact.digest if standing is not None else None
        key = hash_json([STAGE, digest_of_model(encoder.artifact), encoder.precisions["image"], __version__, before])
        work = work_of(out)
        with writing(out), working(work, key):
            made = _grown(encoder, images, out, source, standing, work, key)
    return made


def _check_same_model(standing: ImageIndex, encoder: Encoder) -> None:
    facts = standing.artifact.manifest.facts
    if standing.model_digest != (digest := digest_of_model(encoder.artifact)):
        raise CorruptInputError(
            f"{standing.artifact.path} was made by the model {standing.model_digest[:12]}, and"
            f" {encoder.artifact.path} is {digest[:12]}",
            "vectors of two models cannot be mixed: give another --out, or the model that made the index",
        )
    if facts[PRECISION] != (precision := encoder.precisions["image"]):
        raise UsageError(
            f"{standing.artifact.path} was embedded in {facts[PRECISION]}, and {encoder.backend} runs {precision}",
            f"give --backend {facts[BACKEND]}, or another --out",
        )


def _grown(
    encoder: Encoder, images: str, out: Path, source: str, standing: ImageIndex | None, work: Path, key: str
) -> Indexed:
    start = time.monotonic()
    growth, tally = Growth(encoder, work, standing), Tally(images, max_bad_fraction=1.0)
    for name, item in track(named_images(images, tally), "embedding", None):
        if (reason := growth.take(name, item)) is not None:
            tally.good -= 1
            tally.add_bad(name, reason)
    growth.close()
    tally.finish()
    _, kinds = passed_over(Path(bare(images)))
    if kinds:
        say("", "index", f"warning: {images} has images that are not read: {kinds}; JPEG, PNG and WebP are")
    if lost := growth.lost():
        _take_again(growth, images, lost)
    seconds = time.monotonic() - start
    speed = {"embedding_s": seconds, "embedding_ips": growth.embedded / seconds}
    gone = growth.gone()
    if (added := written_parts(work, growth.first)) or standing is None or len(gone) > len(standing.gone):
        parents = {"model": encoder.artifact.digest}
        with Artifact.create(out, kind=Kind.INDEX, stage=STAGE, key=key, parents=parents) as draft:
            walk = _fill(draft, encoder, standing, work, added, gone)
            draft.metrics = {SOURCE: source, RECALL: walk.recall_at_10, **speed, **_keys(standing, images)}
        Artifact(out, read_manifest(out / MANIFEST)).remember()
    artifact = Artifact.open(out, Kind.INDEX)
    return Indexed(artifact, growth.embedded, growth.moved, growth.copies, tally.bad)


def _keys(standing: ImageIndex | None, images: str) -> dict[str, list[str]]:
    """The keys of all sets of an index, where others than the known ones were said."""
    before = standing.artifact.manifest.metrics.get(KEYS, []) if standing is not None else []
    said = list(dict.fromkeys(filter(None, [*before, said_keys(images)])))
    return {KEYS: said} if said else {}


def _take_again(growth: Growth, images: str, lost: set[int]) -> None:
    """Take images that passed for copies once more. What is read as a stream is read once: a warning says so."""
    if is_stream(images):
        say("", "index", f"warning: {len(lost)} images have changed places and are left out: run the command again")
        return
    for name, item in track(named_images(images, Tally(images, 1.0, announce=False)), "looking again", None):
        if hash_of(image_of(item.mark)) in lost:
            growth.take(name, item)
            growth.copies -= 1
    growth.close()


def _fill(
    draft: Draft,
    encoder: Encoder,
    standing: ImageIndex | None,
    work: Path,
    added: Sequence[int],
    gone: NDArray[np.int64],
) -> Walk:
    """The parts of an index before, those that are added, and the graph of all but what is gone; how to search it."""
    sizes = list(standing.parts) if standing is not None else []
    for part in range(len(sizes)):
        for name in (names_file(part), known_file(part)):
            assert standing is not None
            link(standing.artifact.file(name), draft.path / name)
            draft.known[name] = standing.artifact.manifest.files[name].sha256
    graph = standing.graph if standing is not None else None
    for part in track(added, "linking", len(added)):
        vectors = vectors_of(work, part)
        graph = graph or Graph.empty(vectors.shape[1])
        graph.add(vectors)
        sizes.append(len(vectors))
        for name in (names_file(part), known_file(part)):
            link(work / name, draft.path / name)
    assert graph is not None
    graph.write(draft.path / GRAPH, draft.path / NODES)
    np.save(draft.path / GONE, gone, allow_pickle=False)
    walk = walk_for(graph, gone)
    draft.facts = {
        MODEL: digest_of_model(encoder.artifact),
        PRECISION: encoder.precisions["image"],
        BACKEND: encoder.backend,
        WIDTH: graph.width,
        PARTS: sizes,
        CANDIDATES: walk.candidates,
        "images": sum(sizes) - len(gone),
    }
    return walk
