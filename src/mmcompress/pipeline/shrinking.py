"""`mmcompress shrink`: a teacher to a small INT8 model and one page that says what it lost, as a recipe written here.

The recipe is run like any other: every step is an artifact in the folder, so a run that was killed goes on, and a rerun
does no work. What judges is kept apart from what is fitted: where no test pairs are given, the data is cut into three
parts by the hash of each sample's key, one to prune, recover and calibrate on, one on which choices are made, and one
that only the last measurement reads.

A recovery is said in minutes and trained in steps: the embed stage has measured how fast this machine is with this
teacher, and a step of training takes about three passes. The estimate rests on recorded figures, so a rerun makes it
again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmcompress.artifact import Artifact
from mmcompress.checkpoints import check_float_checkpoint
from mmcompress.config import Backend
from mmcompress.convnet import ConvConfig
from mmcompress.data.layout import say_classes
from mmcompress.datakeys import with_keys_in
from mmcompress.errors import UsageError
from mmcompress.pipeline.apart import BINS, judging_bins, part
from mmcompress.pipeline.converted import (
    check_becomes_checkpoint,
    is_artifact,
    is_graph,
    name_of,
    teacher_named,
    tracing_stage,
)
from mmcompress.pipeline.recipe import DATA_FIELDS, Recipe, parse_assignments, recipe_of
from mmcompress.pipeline.run import run_recipe

RECOVERY_BATCH = 64
RECOVERY_LR = 1e-4
RECOVERY_LR_CONV = 1e-3
"""BatchNorm bears larger steps: at 1e-4 a pruned MobileNetV4 came out further from its teacher than it went in."""
PASSES = 3.0
"""Forward passes that a step of training costs: one forward, two backward."""


@dataclass(frozen=True)
class Wish:
    """What `mmcompress shrink` is asked for."""

    data: str
    validation: str | None = None
    test: str | None = None
    labels: str | None = None
    target_latency: str | float | None = None
    backend: str | None = None
    minutes: float = 0.0
    overrides: Sequence[str] = ()


def shrink(source: str, out: Path, wish: Wish) -> dict[str, Artifact]:
    """Every artifact of the way by name, the report last."""
    from mmcompress.measure.early import runnable

    if is_artifact(source):
        check_float_checkpoint(Path(source))
    elif wish.target_latency is not None:
        hint = "leave --target-latency out: it is quantized as it is then"
        check_becomes_checkpoint(source, "pruned", parse_assignments(wish.overrides), hint)
    else:
        teacher_named(source, given=parse_assignments(wish.overrides))
    if said := {f"data.{field}" for field in DATA_FIELDS} & {*parse_assignments(wish.overrides)}:
        raise UsageError(
            f"--set {min(said)}: shrink gives every stage a part of its data of its own",
            "give --data, --validation, --test or --labels",
        )
    if wish.minutes and wish.target_latency is None:
        raise UsageError("--minutes are for what pruning lost, and nothing is pruned", "give --target-latency too")
    backend = runnable(wish.backend)
    wish = _with_keys(wish)
    data = parts(wish)
    say_classes(wish.data)
    planned = recipe_for(source, wish, data, backend, 1 if wish.minutes else 0)
    if not wish.minutes:
        return run_recipe(planned, out, "shrink")
    names = [table.name for table in planned.stages]
    begun = planned.model_copy(update={"stages": planned.stages[: names.index("prune") + 1]})
    made = run_recipe(begun, out, "shrink")
    steps = recovery_steps(wish.minutes, made["embed"], made["prune"])
    lr = RECOVERY_LR_CONV if isinstance(made["prune"].model.image, ConvConfig) else RECOVERY_LR
    return run_recipe(recipe_for(source, wish, data, backend, steps, lr), out, "shrink")


def _with_keys(wish: Wish) -> Wish:
    """The wish with the keys that its data is read by in each specification."""
    table: dict[str, Any] = {"data.train": wish.data, "data.validation": wish.validation, "data.test": wish.test}
    read = with_keys_in({**parse_assignments(wish.overrides), **table}, "data.") or table
    return replace(wish, data=read["data.train"], validation=read["data.validation"], test=read["data.test"])


def recipe_for(
    source: str, wish: Wish, data: dict[str, str], backend: Backend, steps: int, lr: float = RECOVERY_LR
) -> Recipe:
    """The stages in order, checked; `steps` of recovery at a rate. What cannot be a checkpoint is quantized as its
    graphs."""
    tables = {"data": data, "teacher": {"source": source}}
    said = parse_assignments(wish.overrides)
    measured = [
        {"run": "bench", "backends": [backend]},
        {"run": "drift", "backend": backend},
        {"run": "report", "title": f"{name_of(source)}, shrunk"},
    ]
    if not is_artifact(source) and is_graph(source, None, said):
        stages = [
            {"run": tracing_stage(source), "name": "teacher"},
            {"run": "quantize-graphs", "name": "quantize", "graphs": "teacher"},
            {"run": "verdict", "name": "int8", "graphs": "quantize", "backend": backend},
            *measured,
        ]
        return recipe_of({**tables, "stage": stages}, "shrink", said)
    pruned: list[dict[str, Any]] = []
    last = "convert"
    if wish.target_latency is not None:
        target = {"target_latency": wish.target_latency, "backend": backend, "towers": ["image"]}
        pruned = [
            {"run": "embed"},
            {"run": "prune", "checkpoint": "convert", **target},
            {"run": "export", "name": "pruned", "checkpoint": "prune"},
        ]
        last = "prune"
    if steps:
        trained = {"steps": steps, "batch": RECOVERY_BATCH, "lr": lr}
        pruned += [
            {"run": "distill", "name": "recover", "checkpoint": "prune", "text": "keep", "optimizer": trained},
            {"run": "export", "name": "recovered", "checkpoint": "recover"},
        ]
        last = "recover"
    stages = [
        {"run": "convert"},
        {"run": "export", "name": "teacher", "checkpoint": "convert"},
        *pruned,
        {"run": "quantize", "checkpoint": last},
        {"run": "verdict", "name": "int8", "checkpoint": "quantize", "backend": backend},
        *measured,
    ]
    return recipe_of({**tables, "stage": stages}, "shrink", said)


def parts(wish: Wish) -> dict[str, str]:
    """The data table: what the user named, and parts of the data for what is not named."""
    named = {"validation": wish.validation, "test": wish.test}
    missing = [name for name, spec in named.items() if spec is None]
    table = {name: spec for name, spec in {**named, "labels": wish.labels}.items() if spec is not None}
    if not missing:
        return {"train": wish.data, **table}
    bins = judging_bins(wish.data, "give more, or name others with --validation and --test")
    for index, name in enumerate(missing):
        table[name] = part(wish.data, index * bins, (index + 1) * bins - 1)
    return {"train": part(wish.data, len(missing) * bins, BINS - 1), **table}


def recovery_steps(minutes: float, embeddings: Artifact, pruned: Artifact) -> int:
    """Steps that take about so long on this machine, by how fast it embedded and what pruning left."""
    speed = float(embeddings.manifest.metrics["embedding"]["image_tower_per_s"])
    share = float(pruned.manifest.facts["macs_share"])
    return max(1, round(60 * minutes * speed / (PASSES * share * RECOVERY_BATCH)))
