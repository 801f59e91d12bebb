"""What can be known before the first step about stages that measure: whether they can run on this machine at all.

Hours of training may stand before a verdict. So these checks run first, as `compress/early.py` says of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from mmcompress.artifact import Artifact
from mmcompress.config import Backend, BenchConfig, BisectConfig, DriftConfig, VerdictConfig
from mmcompress.errors import MissingRequirementError, UsageError, of_choices
from mmcompress.runtime.backends import GPU_BACKENDS, available_backends, default_backend
from mmcompress.runtime.scheduling import check_cores

Sources = Mapping[str, Artifact]


def runnable(asked: str | None) -> Backend:
    """The backend; MissingRequirementError with the reason if it cannot run here, UsageError for a misspelt one."""
    reasons = available_backends()
    if asked is not None and asked not in reasons:
        raise UsageError(f"there is no backend {asked!r}", of_choices(asked, reasons))
    backend = cast(Backend, asked or default_backend())
    reason = reasons[backend]
    if reason is None:
        return backend
    hint = f"pip install 'mmcompress[{backend}]'"
    if backend in GPU_BACKENDS:
        hint = "run this on the machine with the GPU, or judge a CPU runtime: --backend openvino"
    if backend == "tensorrt-rtx":
        hint += "; `mmcompress build` makes its engines here, with an audit, but cannot say how fast they are"
    raise MissingRequirementError(f"{backend} has to be timed, and it does not run here: {reason}", hint)


def check_verdict(config: VerdictConfig, _: Sources) -> None:
    runnable(config.backend)


def check_answers(config: DriftConfig | BisectConfig, _: Sources) -> None:
    """Of stages that embed on one backend; engines bring their own, and are looked at when they are there."""
    reason = available_backends()[config.backend] if config.backend is not None else None
    if reason is not None:
        raise MissingRequirementError(
            f"{config.backend} does not run here: {reason}", "`mmcompress doctor` says what works on this machine"
        )


def check_bisect(config: BisectConfig, sources: Sources) -> None:
    check_bisected(sources)
    check_answers(config, sources)


def check_bisected(sources: Sources) -> None:
    """Refuse graphs that are no exports of a checkpoint: their modules have no names that two files share."""
    for artifact in sources.values():
        if artifact.manifest.model is None:
            raise UsageError(
                f"{artifact.path} cannot be bisected: its graphs are a teacher's own, and only the exports of a "
                "checkpoint name their modules",
                "give two exports of one checkpoint; of other graphs `mmcompress drift` says how far they moved",
            )
        if artifact.manifest.stage == "quantize-graphs":
            raise UsageError(
                f"{artifact.path} cannot be bisected: it was quantized as a graph, and its integers are named after "
                "what they come from, not after the module that reads them",
                "quantize the checkpoint and export that; `mmcompress drift` says how far any graph moved",
            )
        if any(graph.prepares for graph in artifact.manifest.graphs):
            raise UsageError(
                f"{artifact.path} cannot be bisected: its image graphs prepare photos themselves, and bisect feeds both"
                " sides the same pixels",
                "export the checkpoint without --image-input: the tower inside is the same",
            )


def check_bench(config: BenchConfig, _: Sources) -> None:
    reasons = available_backends()
    missing = {name: why for name in config.backends if (why := reasons[name]) is not None}
    if len(missing) == len(config.backends):
        raise MissingRequirementError(
            "no backend of the bench runs here: " + "; ".join(f"{name}: {why}" for name, why in missing.items()),
            "`mmcompress doctor` says what works on this machine",
        )
    if config.pin is not None:
        check_cores(config.pin)
