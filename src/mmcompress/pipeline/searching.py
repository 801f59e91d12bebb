"""Indices of images, and searches: in an index with the model that made it, or in a folder with any model.

An index knows the digest of its model, and where that was. A model of another digest is refused unless its loss is
accepted, and that is measured first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from mmcompress.artifact import read_manifest
from mmcompress.config import Backend
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.home import expanded
from mmcompress.manifest import Kind
from mmcompress.pipeline.converted import check_named, graphs_to_use, is_artifact
from mmcompress.places import MANIFEST
from mmcompress.runtime import answers, compatibility, indexing
from mmcompress.runtime.compatibility import Agreement
from mmcompress.runtime.encoder import Encoder
from mmcompress.runtime.imageindex import SOURCE, ImageIndex, digest_of_model
from mmcompress.runtime.indexing import Indexed
from mmcompress.runtime.session import Tower

BOTH: tuple[Tower, ...] = ("image", "text")


@dataclass(frozen=True)
class Found:
    """Images by their names with cosines, the best first."""

    matches: Sequence[tuple[str, float]]
    agreement: Agreement | None = None
    """Where another model made the index."""


@dataclass(frozen=True)
class Asked:
    """What is looked for, and how many answers are wanted; one of text and image is given."""

    text: str | None
    image: Path | None
    top: int


def index(source: str, images: str, out: Path, backend: str | None = None) -> Indexed:
    """Make an index of images with an artifact or a teacher, or add to the one at `out`."""
    check_named(source)
    indexing.check_index(images, out, Path(source))
    with Encoder.open(graphs_to_use(source, backend), cast(Backend, backend), towers=("image",)) as encoder:
        return indexing.index(encoder, images, out, _lasting(source))


def search(
    source: str,
    asked: Asked,
    images: Path | None = None,
    model: str | None = None,
    backend: str | None = None,
    accept_loss: float | None = None,
) -> Found:
    """Look in an index, or with a model in a folder of images."""
    answers.check_query(asked.text, asked.image, asked.top)
    if _is_index(source):
        if images is not None:
            raise UsageError(f"{source} is an index, and --images are other images", "leave --images out")
        return _search_index(source, asked, model, backend, accept_loss)
    if model is not None or accept_loss is not None:
        raise UsageError(f"{source} is no index, and --model and --accept-loss are of one", "leave them out")
    check_named(source)
    if images is None:
        raise UsageError(f"{source} is a model, and no images are given", "give --images FOLDER, or an index of them")
    if _is_index(images):
        raise UsageError(
            f"--images {images} is an index, and no folder of images", f"leave the model out: search {images}"
        )
    answers.check_folder(images)
    with Encoder.open(graphs_to_use(source, backend), cast(Backend, backend), towers=BOTH) as encoder:
        found = answers.search(encoder, images, asked.text, asked.top, asked.image)
        return Found([(str(path), cosine) for path, cosine in found])


def _is_index(place: str | Path) -> bool:
    return is_artifact(place) and read_manifest(Path(place) / MANIFEST).kind is Kind.INDEX


def _search_index(source: str, asked: Asked, model: str | None, backend: str | None, accepted: float | None) -> Found:
    opened = ImageIndex.open(source)
    graphs = graphs_to_use(model if model is not None else _model_of(opened), backend)
    is_other = digest_of_model(graphs) != opened.model_digest
    if is_other and accepted is None:
        raise CorruptInputError(
            f"{source} was made by another model than {graphs.path}: by {opened.model_digest[:12]}, and this one is"
            f" {digest_of_model(graphs)[:12]}",
            "give --model with the one that made it, or --accept-loss 0.05 to measure what this one loses, and to"
            " search where it is no more",
        )
    needed: tuple[Tower, ...] = BOTH if is_other else ("text",) if asked.image is None else ("image",)
    with Encoder.open(graphs, cast(Backend, backend), towers=needed) as encoder:
        agreement = None
        if is_other and accepted is not None:
            agreement = compatibility.agreement(opened, encoder)
            compatibility.enforce(agreement, accepted)
        return Found(opened.search(answers.query(encoder, asked.text, asked.image), asked.top), agreement)


def _model_of(opened: ImageIndex) -> str:
    """Where its model was, if that is a folder here: what a manifest says runs no code and fetches nothing."""
    source = str(opened.artifact.manifest.metrics.get(SOURCE))
    if not (Path(source).is_dir() or source.startswith("demo:")):
        raise UsageError(
            f"{opened.artifact.path} was made by {source!r}, which is no folder here",
            "say which it is: --model ARTIFACT, or a teacher's name; an index makes no command fetch or run one",
        )
    return source


def _lasting(source: str) -> str:
    """A source as it is found from any folder."""
    path = expanded(source)
    return str(path.absolute()) if path.exists() else source
