"""What models look at: the commands `explain` and `pointing`, which make no artifact.

A float checkpoint of a vision transformer is asked as it is; anything else, and all beside it, as the graphs that it is
or becomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from mmcompress.architecture import ImageConfig
from mmcompress.artifact import Artifact
from mmcompress.config import Backend
from mmcompress.errors import UsageError, of_choices
from mmcompress.manifest import Kind
from mmcompress.measure.explain import pointing as game
from mmcompress.measure.explain.explain import METHODS, Explanation, Method, check_asked, explained
from mmcompress.measure.explain.picture import check_picture, row, save
from mmcompress.pipeline.converted import (
    anything_to_use,
    artifact_at,
    becomes_checkpoint,
    check_named,
    graphs_to_use,
    names_of,
    natural_precisions,
    teacher_named,
)


def explain(
    sources: Sequence[str | Path], image: Path, text: str, out: Path, method: str | None, backend: str | None
) -> tuple[Method, list[Explanation]]:
    """A picture of what models look at, written to `out`: the way it was found, and the maps."""
    check_asked(image, text)
    check_picture(out, image)
    way, models = _asked(sources, method, backend)
    found = explained(models, image, text, way, cast(Backend | None, backend))
    save(row(found, text), text, out)
    return way, found


def pointing(
    sources: Sequence[str | Path], boxes: Path, method: str | None, backend: str | None
) -> tuple[Method, list[game.Pointing]]:
    """The pointing game with each model."""
    table = game.read_boxes(boxes)
    way, models = _asked(sources, method, backend)
    return way, game.pointing(models, table, way, cast(Backend | None, backend))


def _asked(
    sources: Sequence[str | Path], method: str | None, backend: str | None
) -> tuple[Method, dict[str, Artifact]]:
    """What the models can be asked by, `method` or what works for all, and the models: checkpoints, or graphs."""
    if method is not None and method not in METHODS:
        raise UsageError(f"there is no method {method!r}", of_choices(method, METHODS))
    for source in sources:
        check_named(source)
    named = dict(zip(names_of(sources), sources, strict=True))
    others = [source for source in sources if not _has_gradients(source)]
    if method == "relevance" and (others or backend):
        what = f"{others[0]} is no float checkpoint of a vision transformer" if others else f"{backend} runs graphs"
        raise UsageError(f"{what}, and relevance is of the attention of one, in torch", "say --method occlusion")
    if method == "occlusion" or others or backend:
        return "occlusion", {name: graphs_to_use(source, backend) for name, source in named.items()}
    return "relevance", {name: anything_to_use(source) for name, source in named.items()}


def _has_gradients(source: str | Path) -> bool:
    artifact = artifact_at(source, Kind.CHECKPOINT, Kind.ONNX, Kind.ENGINE)
    if artifact is None:
        return becomes_checkpoint(teacher_named(str(source)))
    if artifact.manifest.kind is not Kind.CHECKPOINT or "fp32" not in natural_precisions(artifact):
        return False
    return isinstance(artifact.model.image, ImageConfig)
