"""Students sized by a latency: the costs of this machine, or of a table, and the student that `distill` begins with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcompress.artifact import Artifact
from mmcompress.compress.sizing.document import SIZING, SizingDocument
from mmcompress.config import SizeConfig, TeacherConfig
from mmcompress.errors import UsageError
from mmcompress.manifest import Kind, environment, hash_json
from mmcompress.pipeline.single import config_of, run_single
from mmcompress.pipeline.sources import Given
from mmcompress.places import cache_folder
from mmcompress.progress import say
from mmcompress.runtime.backends import default_backend
from mmcompress.runtime.machine import cpu_model, usable_cores

AUTO = "auto"
"""The student's name where a latency says which."""
STAND_IN = "mnv4-s"
"""What a distillation is checked with while its student is still to be chosen: it takes images of any side."""
DEFAULT_SIDE = 224
COSTED = ("backend", "precision", "threads", "image_size")
"""The keys of a sizing that its costs are measured by."""
UNITS = {"ms": 1.0, "us": 1e-3, "s": 1e3}


@dataclass(frozen=True)
class Budget:
    """How long a student may take for one image, where, and by whose costs."""

    latency: str | None = None
    backend: str | None = None
    table: Path | None = None


NO_BUDGET = Budget()


def block_costs(out: Path, given: Given) -> Artifact:
    """What the work of image towers costs on this machine."""
    return run_single("block-costs", {}, given, {}, out)


def size(out: Path, given: Given, table: Path | None = None, command: str = "size") -> Artifact:
    """The student for a latency, by the costs of a table or of this machine, as the command that was typed asks."""
    asked = config_of("size", {}, given, command=command)
    assert isinstance(asked, SizeConfig)
    costs = _costs({key: given[key] for key in COSTED if key in given}) if table is None else _table(table)
    return run_single("size", {}, given, {"costs": costs}, out)


def bench_blocks(sources: Sequence[str | Path], out: Path, given: Given, image_size: int | None) -> Artifact:
    """As `block_costs`; of the keys of bench the runtime and its threads say how."""
    if sources:
        raise UsageError(f"--blocks times towers of its own, and {sources[0]} was named", "leave one of them out")
    known = {"backends", "threads"}
    if other := sorted(given.keys() - known):
        raise UsageError(f"{other[0]} is of artifacts, and --blocks times towers of its own", "leave it out")
    backends, threads = given.get("backends") or [default_backend()], given.get("threads") or []
    if len(backends) > 1 or len(threads) > 1:
        raise UsageError("a table is of one runtime with one number of threads", "run it once for each")
    asked: dict[str, Any] = {"backend": backends[0], **({"threads": threads[0]} if threads else {})}
    asked |= {} if image_size is None else {"image_size": image_size}
    config_of("block-costs", {}, asked, command="bench --blocks")
    return block_costs(out, asked)


def check_budget(budget: Budget, given: Given, checkpoint: Path | None) -> None:
    """Raise UsageError for a budget that makes no sense beside what is given."""
    named = given.get("student.source")
    if budget.latency is None:
        if named == AUTO:
            raise UsageError("--student auto is sized by a latency, and none is given", "give --target-latency 3ms")
        if budget != NO_BUDGET:
            raise UsageError(
                "--backend and --latency-table are of a student that is sized by a latency, and none is given",
                "give --target-latency 3ms, or leave them out",
            )
        return
    if named not in (None, AUTO) or checkpoint is not None:
        raise UsageError(
            f"--target-latency chooses the student, and {named or checkpoint} is one already",
            "leave --student out; a finished one is made faster by `mmcompress prune --target-latency`",
        )
    if said := sorted({"student.width", "student.depth"} & given.keys()):
        raise UsageError(f"--target-latency chooses {said[0].rpartition('.')[2]}", "leave it out")
    if (given.get("parts") or 1) > 1:
        raise UsageError(
            "--parts is for transformers, and --target-latency may choose a convolutional student",
            "give --recompute, or choose by `mmcompress size` and name the student",
        )
    backend = {"backend": budget.backend} if budget.backend else {}
    config_of("size", {}, {"target_ms": milliseconds(budget.latency), **backend}, command="distill")


def student_within(budget: Budget, out: Path, given: Given, embeddings: Path | None) -> dict[str, Any]:
    """The keys of the student that a budget's latency has room for."""
    assert budget.latency is not None
    target, side = milliseconds(budget.latency), given.get("student.image_size")
    largest = _side(given, embeddings) if side is None else int(side)
    sides = {"image_size": largest, **({} if side is None else {"image_sizes": (largest,)})}
    backend = budget.backend or (default_backend() if budget.table is None else None)
    asked: dict[str, Any] = {"backend": backend} if backend else {}
    made = size(out.with_name(f"{out.name}-sizing"), {"target_ms": target, **sides, **asked}, budget.table, "distill")
    student = made.manifest.facts["student"]
    say("distill", "student", SizingDocument.read(made.file(SIZING)).why)
    return {f"student.{key}": value for key, value in student.items()}


def milliseconds(latency: str) -> float:
    """`3ms`, `800us` or `0.01s` -> milliseconds. Raises UsageError for anything else."""
    number = latency.strip().rstrip("mus")
    try:
        found = float(number) * UNITS[latency.strip()[len(number) :]]
    except (KeyError, ValueError):
        found = 0.0
    if not 0 < found < float("inf"):
        raise UsageError(f"--target-latency {latency!r} is no time of one image", "for example 3ms, 800us or 0.01s")
    return found


def _table(place: Path) -> Artifact:
    """What `bench --blocks` wrote, by its folder or the file in it."""
    return Artifact.open(place.parent if place.is_file() else place, Kind.REPORT)


def _costs(asked: Given) -> Artifact:
    """Those of this machine, measured once for its processor, its cores and the versions of its packages."""
    about = [cpu_model(), usable_cores(), environment(), dict(asked)]
    place = cache_folder() / "tower-costs" / hash_json(about)[:16]
    place.parent.mkdir(parents=True, exist_ok=True)
    return block_costs(place, asked)


def _side(given: Given, embeddings: Path | None) -> int:
    """The side of the teacher's images, which a student's are never larger than; 224 where nothing tells."""
    found = None
    if embeddings is not None:
        preprocessing = Artifact.open(embeddings, Kind.EMBEDDINGS).preprocessing
        found = None if preprocessing is None else preprocessing.size
    elif (source := given.get("teacher.source")) is not None:
        from mmcompress.compress.earlyteacher import side_of

        found = side_of(TeacherConfig(source=source, trust_remote_code=given.get("teacher.trust_remote_code", False)))
    return found or DEFAULT_SIDE
