"""Stages that embed and train, each from its own command."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcompress.architecture import DualEncoderConfig
from mmcompress.artifact import Artifact
from mmcompress.config import DistillConfig, StageConfig
from mmcompress.data.batches import count_up_to
from mmcompress.data.layout import say_classes
from mmcompress.data.spec import is_stream
from mmcompress.errors import UsageError
from mmcompress.manifest import Kind
from mmcompress.pipeline.apart import with_validation
from mmcompress.pipeline.converted import (
    artifact_at,
    as_checkpoint,
    check_becomes_checkpoint,
    coming_start,
    made_first,
)
from mmcompress.pipeline.routing import routed, routed_with_source
from mmcompress.pipeline.single import check_places, checked, look_at_data, run_single
from mmcompress.pipeline.sources import (
    NOTHING,
    Given,
    data_unless_given,
    embeddings_beside,
    names_teacher,
    parent_beside,
    recorded_teacher,
)
from mmcompress.pipeline.standalone.sizing import NO_BUDGET, STAND_IN, Budget, check_budget, student_within
from mmcompress.places import check_place
from mmcompress.progress import say

FEW, VIEWS = 10_000, 4
"""Pairs up to which `distill` embeds each in so many views where nothing is said (benchmarks/results/views.md)."""


def train_pair(image: str, text: str, out: Path, given: Given = NOTHING) -> Artifact:
    """Two pretrained towers, with new projections into one space."""
    if "data.train" not in given:
        raise UsageError("two towers learn from image-text pairs", "give --data")
    return run_single("train", {"towers": {"image": image, "text": text}}, given, {}, out)


def embed(out: Path, given: Given) -> Artifact:
    return run_single("embed", {}, given, {}, out)


def import_embeddings(out: Path, given: Given) -> Artifact:
    """What lies beside published images as cached embeddings."""
    return run_single("import-embeddings", {}, given, {}, out)


def ensemble(teachers: Sequence[Path], out: Path, given: Given = NOTHING) -> Artifact:
    """Cached embeddings of several teachers as those of one."""
    gathered = [Artifact.open(teacher, Kind.EMBEDDINGS) for teacher in teachers]
    return run_single("ensemble", {}, given, {}, out, gathered)


def convert(source: str, out: Path, given: Given = NOTHING) -> Artifact:
    """A teacher as a checkpoint of ours, with its own weights."""
    check_becomes_checkpoint(source, "a checkpoint", given)
    return run_single("convert", {}, {**given, "teacher.source": source}, {}, out)


def distill(
    out: Path,
    given: Given = NOTHING,
    *,
    embeddings: Path | None = None,
    checkpoint: Path | None = None,
    budget: Budget = NO_BUDGET,
) -> Artifact:
    """A new student, or with `checkpoint` that one recovered; the teacher is embedded first where it has not been.

    Within a budget of latency the student is chosen first, into OUT-sizing.
    """
    check_place(out)
    check_budget(budget, given, checkpoint)
    if sized := budget.latency is not None:
        given = {**given, "student.source": STAND_IN}
    start = None if checkpoint is None else Artifact.open(checkpoint, Kind.CHECKPOINT)
    student = any(key.split(".")[0] == "student" for key in given)
    if start is None and not student:
        raise UsageError(
            "distill needs a student", "--student vit-s16 or inherit:0.25, or --from CHECKPOINT to recover one"
        )
    if start is not None and student:
        raise UsageError(f"--student and --from {checkpoint} both say where to start", "leave one of them out")
    if "data.validation" in given and not any("watch" in key for key in given):
        raise UsageError(
            "--validation is what --watch-steps measures on, and it is not given", "add it, or leave --validation out"
        )
    if {"sentences", "embed.sentences"} & given.keys():  # before anything is embedded
        from mmcompress.compress.early import check_asks_no_pairs

        asked = given.get("contrastive") or 0.0, given.get("interactive") or 0.0
        check_asks_no_pairs(*asked, "sentences of one's own belong to no image")
    if sized:
        _check_unsized(out, given, embeddings)
        given = {**given, **student_within(budget, out, given, embeddings)}
    cached, to = _embeddings(out, "distill", given, embeddings, start, start=lambda _: start)
    sources = {"embeddings": cached} | ({"checkpoint": start} if start else {})
    return run_single("distill", _tables(given, cached), to["distill"], sources, out)


def _check_unsized(out: Path, given: Given, embeddings: Path | None) -> None:
    """Refuse what a distillation cannot do, whichever student it will have, before towers are timed for minutes."""
    cached, to = _routes("distill", given, embeddings, None)
    tables = {"data": data_unless_given(given, None)} if cached is None else _tables(given, cached)
    built = checked("distill", tables, to["distill"], {"embeddings": cached} if cached else {})
    if cached is None:
        checked("embed", tables, to["embed"])
    check_places(out, "distill", built, {"sizing": "size", **({} if cached else {"embeddings": "embed"})})
    look_at_data("distill", built, out)


def _tables(given: Given, cached: Artifact) -> dict[str, Any]:
    """The teacher and the data of a distillation, where its embeddings say them."""
    teacher = {} if names_teacher(given) else recorded_teacher(cached)
    return {"teacher": teacher, "data": data_unless_given(given, cached)}


def finetune(source: str | Path, out: Path, given: Given = NOTHING) -> Artifact:
    """A checkpoint trained further; a teacher becomes one in OUT-checkpoint. A tenth of the data is kept to choose by
    where no validation data is given.
    """
    check_place(out)
    near = artifact_at(source, Kind.CHECKPOINT)
    to = routed_with_source(given, "finetune", near)
    coming = to.get("convert", NOTHING)
    if near is None:
        check_becomes_checkpoint(source, "fine-tuned", coming)
    own = with_validation(to["finetune"])
    check_places(out, "finetune", built := checked("finetune", {}, own), made_first(source, near, coming), source)
    say_classes(own.get("data.train"))
    look_at_data("finetune", built, out)
    checkpoint = near or as_checkpoint(source, out, coming)
    return run_single("finetune", {}, own, {"checkpoint": checkpoint}, out)


def prune(source: str | Path, out: Path, given: Given = NOTHING, *, embeddings: Path | None = None) -> Artifact:
    """A checkpoint, or a teacher, which becomes one in OUT-checkpoint and is embedded as its own teacher."""
    check_place(out)
    near = artifact_at(source, Kind.CHECKPOINT, Kind.ONNX)
    if near is None and embeddings is None and not names_teacher(given):
        given = {**given, "teacher.source": str(source)}
    if near is None:
        check_becomes_checkpoint(source, "pruned", given)
        if embeddings is not None:
            from mmcompress.compress.earlyteacher import check_same_teacher

            check_same_teacher(str(source), Artifact.open(embeddings, Kind.EMBEDDINGS))
    elif near.manifest.kind is Kind.ONNX:
        raise UsageError(f"{source} cannot be pruned: a graph has no blocks", "prune the checkpoint that it is from")

    def checkpoint(to: Mapping[str, Given]) -> Artifact:
        return near or as_checkpoint(source, out, to.get("convert", NOTHING))

    say_classes(given.get("data.train"))
    sizes = coming_start(source, near, given)
    also = [] if near else ["convert"]
    cached, to = _embeddings(out, "prune", given, embeddings, near, *also, start=checkpoint, sizes=sizes)
    tables = {"data": data_unless_given(given, cached)}
    built = checked("prune", tables, to["prune"], start=sizes)
    check_places(out, "prune", built, made_first(source, near, to.get("convert", NOTHING)))
    sources = {"checkpoint": checkpoint(to), "embeddings": cached}
    return run_single("prune", tables, to["prune"], sources, out)


def _embeddings(
    out: Path,
    own: str,
    given: Given,
    embeddings: Path | None,
    near: Artifact | None,
    *also: str,
    start: Callable[[Mapping[str, Given]], Artifact | None],
    sizes: DualEncoderConfig | None = None,
) -> tuple[Artifact, dict[str, dict[str, Any]]]:
    """Cached embeddings to learn from, and what each stage is given: those named, those of a teacher that is given,
    made now in OUT-embeddings, or those that `near` is from. `also` are other stages that run, `start` is the
    checkpoint that the stage begins with, by which it is checked before anything is embedded; its `sizes` may be known
    before there is one.
    """
    found, to = _routes(own, given, embeddings, near, *also)
    if found is not None:
        return found, to
    data = {"data": data_unless_given(given, near)}
    beside = {"embeddings": "embed"} | ({"checkpoint": "convert"} if "convert" in also else {})
    check_places(out, own, built := checked(own, data, to[own], start=sizes), beside)
    look_at_data(own, built, out)
    if (begun := start(to)) is not None:
        checked(own, data, to[own], {"checkpoint": begun})
    views = {"views": VIEWS} if own == "distill" and _is_small(built, to["embed"]) else {}
    return run_single("embed", data, {**views, **to["embed"]}, {}, out.with_name(f"{out.name}-embeddings")), to


def _routes(
    own: str, given: Given, embeddings: Path | None, near: Artifact | None, *also: str
) -> tuple[Artifact | None, dict[str, dict[str, Any]]]:
    """The cached embeddings that there are, and what each stage that runs is given."""
    found, why = None, f"--embeddings {embeddings} are given"
    if embeddings is not None:
        found = Artifact.open(embeddings, Kind.EMBEDDINGS)
    elif not names_teacher(given):
        if near is not None and near.manifest.stage == "convert" and parent_beside(near, "embeddings") is None:
            given = {**given, "teacher.source": str(near.path)}  # it is a model in Hugging Face format itself
        else:
            found = embeddings_beside(near)
            why = f"the teacher's embeddings are in {found.path}"
    idle = {} if "convert" in also else {"convert": "nothing is converted"}
    if found is not None:
        return found, routed(given, own, *also, idle={"embed": why, **idle})
    return None, routed(given, own, "embed", *also, idle=idle)


def _is_small(built: StageConfig, of_embed: Given) -> bool:
    """Whether a student would see the same few images so often that varied ones teach it more, which is then said."""
    spec = built.data.train if isinstance(built, DistillConfig) else None
    if spec is None or is_stream(spec) or {"views", "augment"} & of_embed.keys():
        return False
    if (there := count_up_to(FEW + 1, spec)) > FEW:
        return False
    say("", "data", f"{there} pairs are few: each is embedded in {VIEWS} views (--embed-views 1 for the plain image)")
    return True
