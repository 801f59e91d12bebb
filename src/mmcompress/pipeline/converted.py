"""What is no artifact yet becomes one first, beside what is made of it, and is reused while the source is the same.

A command that takes an artifact takes a teacher as well: an alias, a hub id, a folder in Hugging Face format. One that
`model.py` can compute becomes a checkpoint (stage `convert`), any other one ONNX graphs (`baseline`, `trace`). Where a
command needs graphs, a checkpoint is exported first too. Commands without `--out` keep these in the user's cache.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from mmcompress.architecture import DualEncoderConfig
from mmcompress.artifact import Artifact, manifest_of_kind, read_manifest
from mmcompress.config import ConvertConfig, TeacherConfig
from mmcompress.errors import UsageError, suggestion
from mmcompress.home import expanded
from mmcompress.manifest import Kind
from mmcompress.pipeline.single import checked, config_of, run_single
from mmcompress.pipeline.sources import Given
from mmcompress.places import MANIFEST, cache_folder, check_apart, check_place
from mmcompress.progress import say
from mmcompress.runtime.backends import check_runs_graphs
from mmcompress.sidefiles import check_side_files

NOTHING: Given = {}


def is_artifact(source: str | Path) -> bool:
    """Whether a source is an artifact's folder; if not, it names a teacher, or nothing."""
    return (Path(source) / MANIFEST).is_file()


def artifact_at(source: str | Path, *kinds: Kind) -> Artifact | None:
    """The artifact at a source, of one of the kinds; None where a teacher may be meant."""
    return Artifact.open(source, *kinds) if is_artifact(source) else None


def teacher_named(source: str, wanted: str = "an", given: Given = NOTHING) -> TeacherConfig:
    """The teacher that a source names, looked at and not loaded; `wanted` is the kind of artifact it stands for.

    What else is `given` of a teacher, the leave to run its code, is of this one.

    Raises UsageError for what is neither a teacher nor an artifact, before anything is fetched.
    """
    from mmcompress.teachers import ALIASES, own_code, resolve

    said = {key: value for key, value in given.items() if key.partition(".")[0] == "teacher"}
    teacher = cast(ConvertConfig, config_of("convert", {}, {**said, "teacher.source": source})).teacher
    path = expanded(source)
    if source.startswith("open_clip:") or (source in ALIASES and not path.exists()):
        return teacher
    if source.startswith("demo:"):
        resolve(teacher)
        return teacher
    if (own := own_code(source)) is not None:
        if not own[0].is_file():
            raise UsageError(f"there is no Python file {own[0]}", "give path/to/file.py:function")
        return teacher
    artifact = f"give a folder that mmcompress wrote ({wanted} artifact)"
    if path.exists():
        check_side_files(path)
        if not (path / "config.json").is_file():
            if path.is_file():
                Artifact.open(path)
            lacks = f"it has no {MANIFEST}, and no config.json of a model"
            raise UsageError(f"{source} is not an artifact: {lacks}", f"{artifact}, or a model in Hugging Face format")
        resolve(teacher)
        return teacher
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or path.parent.is_dir():
        raise UsageError(
            f"{source} is not an artifact: there is no such folder",
            f"{artifact}, or a teacher: {suggestion(source, ALIASES)}",
        )
    return teacher


def check_named(source: str | Path, wanted: str = Kind.ONNX.value) -> None:
    """Raise UsageError for what is neither the name of a teacher nor an artifact that is graphs or can become some.

    No file of it is opened, and nothing is fetched.
    """
    if is_artifact(source):
        manifest_of_kind(Path(source), Kind.ONNX, Kind.ENGINE, Kind.CHECKPOINT)
    else:
        teacher_named(str(source), wanted)


def check_rows(sources: Sequence[str | Path]) -> None:
    """As `check_named`, of what one measurement compares; UsageError too where two would be rows of one name."""
    for source in sources:
        check_named(source)
    named: dict[str, Path] = {}
    for path in (Path(source) for source in sources if is_artifact(source)):
        row = read_manifest(path / MANIFEST).kind is not Kind.CHECKPOINT
        if row and (other := named.setdefault(path.absolute().name, path)) is not path:
            raise UsageError(
                f"{other} and {path} have one name, and rows of a measurement are told apart by it",
                "name each once, or copy one to a folder of another name",
            )


def check_named_with_labels(source: str | Path, labels: object) -> None:
    """As `check_named`; a teacher, which is long to convert, has no labels inside."""
    check_named(source)
    if labels is None and not is_artifact(source):
        raise UsageError(f"{source} is a teacher, and has no labels inside", "give some: --labels cat,dog")


def becomes_checkpoint(teacher: TeacherConfig) -> bool:
    """Whether a teacher is of a family that `model.py` computes."""
    from mmcompress.checkpoints import is_own_checkpoint
    from mmcompress.families import config_from_hugging_face
    from mmcompress.pretrained import check_folder
    from mmcompress.teachers import resolve

    if teacher.source.startswith("open_clip:") or ".py:" in teacher.source:
        return False
    folder = resolve(teacher)
    if is_own_checkpoint(folder):
        return True
    check_folder(folder, teacher.trust_remote_code)
    try:
        config_from_hugging_face(folder)
    except UsageError:
        return False
    return True


def check_becomes_checkpoint(
    source: str | Path,
    wanted: str,
    given: Given = NOTHING,
    hint: str = "`mmcompress export` writes its ONNX as it is, and distill takes it as a teacher",
) -> None:
    """Raise UsageError, before anything is fetched or loaded that need not be, unless a teacher can be a checkpoint.

    `wanted` says what cannot be done with it, and `hint` what can.
    """
    if not becomes_checkpoint(teacher_named(str(source), Kind.CHECKPOINT.value, given)):
        raise UsageError(f"{source} cannot be {wanted}: it is of no family whose blocks mmcompress knows", hint)


def is_graph(source: str | Path, near: Artifact | None, given: Given = NOTHING) -> bool:
    """Whether a source is worked on as graphs: an ONNX artifact (`near`), or a teacher that cannot be a checkpoint."""
    if near is not None:
        return near.manifest.kind is Kind.ONNX
    return not becomes_checkpoint(teacher_named(str(source), Kind.CHECKPOINT.value, given))


def coming_start(source: str | Path, near: Artifact | None, given: Given = NOTHING) -> DualEncoderConfig | None:
    """The sizes of the checkpoint at a source (`near`), or of the one that its teacher becomes; None for a graph."""
    if near is not None:
        return near.manifest.model if near.manifest.kind is Kind.CHECKPOINT else None
    from mmcompress.compress.earlyteacher import coming_model

    return coming_model(teacher_named(str(source), given=given))


def as_checkpoint(source: str | Path, out: Path, given: Given = NOTHING) -> Artifact:
    """The checkpoint at a source, or the one that its teacher becomes, in OUT-checkpoint; `given` is of `convert`."""
    if (artifact := artifact_at(source, Kind.CHECKPOINT)) is not None:
        return artifact
    check_becomes_checkpoint(source, "a checkpoint", given)
    place = out.with_name(f"{out.name}-checkpoint")
    return run_single("convert", {}, {**given, "teacher.source": str(source)}, {}, place)


def as_model(source: str | Path, out: Path, given: Given = NOTHING) -> Artifact:
    """What can be quantized: a checkpoint, or of a teacher that cannot be one its graphs, in OUT-teacher."""
    if (artifact := artifact_at(source, Kind.CHECKPOINT, Kind.ONNX)) is not None:
        return artifact
    if is_graph(source, None, given):
        return teacher_graphs(str(source), out.with_name(f"{out.name}-teacher"), given)
    return as_checkpoint(source, out, given)


def made_first(source: str | Path, near: Artifact | None, given: Given = NOTHING) -> dict[str, str]:
    """The end of the name that `as_model` puts behind OUT, and the stage that makes it; nothing where `near` is it."""
    if near is not None:
        return {}
    return {"teacher": tracing_stage(str(source))} if is_graph(source, None, given) else {"checkpoint": "convert"}


def teacher_graphs(source: str, out: Path, given: Given = NOTHING) -> Artifact:
    """A teacher's own graphs: through optimum where it is of transformers, else traced from its torch modules."""
    return run_single(tracing_stage(source), {}, {**given, "teacher.source": source}, {}, out)


def tracing_stage(source: str) -> str:
    """The stage that makes graphs of a teacher as it is: optimum knows no two towers of one's own choice."""
    if source.startswith("open_clip:") or ".py:" in source:
        return "trace"
    from mmcompress.pretrained import TWO_TOWERS, model_type_of
    from mmcompress.teachers import cached_folder

    folder = expanded(source)
    found = folder if folder.exists() else cached_folder(source)
    return "trace" if found is not None and model_type_of(found) == TWO_TOWERS else "baseline"


def as_graphs(source: str | Path, out: Path, given: Given = NOTHING, *kinds: Kind) -> Artifact:
    """The ONNX artifact at a source, or the one that its checkpoint or its teacher is exported to, at `out`."""
    kinds = kinds or (Kind.ONNX,)
    artifact = artifact_at(source, *kinds, Kind.CHECKPOINT)
    if artifact is not None and artifact.manifest.kind is not Kind.CHECKPOINT:
        return artifact
    if artifact is None:
        if not becomes_checkpoint(teacher_named(str(source), " or ".join(kind.value for kind in kinds), given)):
            return teacher_graphs(str(source), out, given)
        check_place(out, stage="export")
        artifact = as_checkpoint(source, out, given)
    return run_single("export", {"precisions": natural_precisions(artifact)}, {}, {"checkpoint": artifact}, out)


def natural_precisions(checkpoint: Artifact) -> tuple[str, ...]:
    """What a checkpoint is exported in where nobody says it."""
    return ("int8",) if checkpoint.manifest.stage in ("quantize", "qat") else ("fp32",)


def all_as_graphs(
    sources: Sequence[str | Path], out: Path, given: Given = NOTHING, *kinds: Kind, read: Sequence[Path] = ()
) -> list[Artifact]:
    """Each source as graphs; what is no ONNX artifact yet becomes one in `OUT-sources`, by a name of its own.

    `OUT-sources` lies apart from what is `read` later.
    """
    for source in sources:  # all that is misspelt, before the first of them takes minutes
        if not is_artifact(source):
            teacher_named(str(source), " or ".join(kind.value for kind in kinds or (Kind.ONNX,)), given)
            checked(tracing_stage(str(source)), {}, {**given, "teacher.source": str(source)})
    unique = names_of(sources)
    folder = out.with_name(f"{out.name}-sources")
    for source, name in zip(sources, unique, strict=True):
        if not is_artifact(source):
            check_apart(folder, read)
            check_place(folder / name)
    return [as_graphs(source, folder / name, given, *kinds) for source, name in zip(sources, unique, strict=True)]


def names_of(sources: Sequence[str | Path]) -> list[str]:
    """A name for each source, none that another source has."""
    return told_apart([name_of(source) for source in sources])


def told_apart(names: Sequence[str]) -> list[str]:
    """The names, with a number behind those that come more than once; none that is there already."""
    taken = {*names}
    apart = []
    for name in names:
        number = 0
        own = name
        while names.count(name) > 1 and own in taken:
            own, number = f"{name}-{number}", number + 1
        taken.add(own)
        apart.append(own)
    return apart


def name_of(source: str | Path) -> str:
    """A file name for a source: `vit-b32`, `clip-vit-base-patch32`, `ViT-B-32-openai`."""
    text = str(source).removeprefix("open_clip:")
    if is_artifact(source) or Path(text).exists() or (text.count("/") == 1 and ":" not in str(source)):
        text = Path(text).absolute().name
    return re.sub(r"[^\w.-]+", "-", text.split(":", 1)[-1] if text.startswith("demo:") else text).strip("-.") or "model"


def graphs_to_use(source: str | Path, backend: str | None = None) -> Artifact:
    """For commands that write nothing of their own: the artifact, or graphs of it in the user's cache.

    Raises for a `backend` that does not run such graphs, before there are any.
    """
    artifact = artifact_at(source, Kind.ONNX, Kind.ENGINE, Kind.CHECKPOINT)
    if artifact is not None and artifact.manifest.kind is not Kind.CHECKPOINT:
        return artifact
    if backend is not None:
        check_runs_graphs(backend)
    return as_graphs(source, _cached_place(source, "ONNX graphs"), NOTHING, Kind.ONNX, Kind.ENGINE)


def anything_to_use(source: str | Path) -> Artifact:
    """Any artifact, or what a teacher becomes in the user's cache."""
    if (artifact := artifact_at(source)) is not None:
        return artifact
    if becomes_checkpoint(teacher_named(str(source))):
        return as_checkpoint(source, _cached_place(source, "a checkpoint"))
    return as_graphs(source, _cached_place(source, "ONNX graphs"))


def _cached_place(source: str | Path, becoming: str) -> Path:
    """One place a source, told by its path where it is one; what is there is made again when the source changes.

    Its last part is the source's own name, since pages, rows and warnings call an artifact by its folder.
    """
    check_named(source)
    where = str(Path(source).resolve()) if Path(source).exists() else str(source)
    place = cache_folder() / "models" / hashlib.sha256(where.encode()).hexdigest()[:8] / name_of(source)
    say("cache", place.name, f"{source} becomes {becoming} first, once for all such commands, in {place.parent}")
    return place
