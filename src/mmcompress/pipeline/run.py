"""A pipeline is a list of stages; a stage is a function from a config and source artifacts to an artifact.

Resume and caching are one rule. The key of a stage's output is the hash of (stage, what counts of its config, digests
of its parents and of the data it reads, version); a valid artifact with that key is reused, if what it was found to
have read otherwise is still the same (`outside.py`), and anything else is made again. A stage that is killed leaves no
artifact, at most a hidden `.NAME.work` folder that it resumes from.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmcompress import __version__
from mmcompress.architecture import DualEncoderConfig
from mmcompress.artifact import Artifact, read_manifest
from mmcompress.config import ConvertConfig, DistillConfig, StageConfig, what_counts
from mmcompress.errors import CorruptInputError, StoppedError, UsageError
from mmcompress.interrupts import Interrupted
from mmcompress.lock import locked
from mmcompress.manifest import Kind, Manifest, hash_json
from mmcompress.pipeline.outside import READ, outside, revisions, still_as_read
from mmcompress.pipeline.plan import Step, check_data, local_inputs, plan
from mmcompress.pipeline.recipe import Recipe
from mmcompress.pipeline.together import run_on_all
from mmcompress.places import MANIFEST, check_name, check_place, inside_folders, writing
from mmcompress.progress import RUNNING, say
from mmcompress.publish import aside_of, draft_of, drop_work_of, tidy, work_of, working
from mmcompress.stages import Job, Stage

STRICT = "strict"
"""A key that says what follows from an artifact and not what is in it: it is not recorded either."""
Parents = dict[str, str]
"""Digests by role."""


def run_recipe(recipe: Recipe, out: Path, where: str = "recipe") -> dict[str, Artifact]:
    """Run every stage whose output is not there yet, each into its folder of `out`; return the artifacts by name."""
    if (out / MANIFEST).exists():
        raise UsageError(f"{out} has a {MANIFEST}, so it is no folder of runs", "give another --out")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, and a run is a folder of artifacts", "give another --out")
    return run_stages(recipe, {table.name: out / table.name for table in recipe.stages}, where)


def run_stages(recipe: Recipe, places: Mapping[str, Path], where: str) -> dict[str, Artifact]:
    """Run every stage whose output is not at its place yet; return the artifacts by name.

    What cannot work is refused before the first one runs, and only of those that will.
    """
    steps = plan(recipe, places, where)
    digests: dict[str, str] = {}
    for step in steps:
        parents = _parents(step, digests, places)
        standing = None if parents is None else digest_of_standing(step.stage, step.config, parents, step.place)
        if standing is None:
            step.stage.refuse_impossible(step.config, {}, _coming_start(step, steps))
            check_data(step.config, step.stage)
        else:
            digests[step.name] = standing
    artifacts: dict[str, Artifact] = {}
    with inside_folders(*places.values()), locked(*places.values()):
        for number, step in enumerate(steps, start=1):
            turn = f"stage {number} of {len(steps)}" if len(steps) > 1 else ""
            sources = {role: artifacts[name] for role, name in step.sources.items()}
            gathered = tuple(artifacts[name] for name in step.gathered)
            artifacts[step.name] = run_stage(step.stage, step.config, sources, gathered, step.place, turn)
    return artifacts


def _coming_start(step: Step, steps: Sequence[Step]) -> DualEncoderConfig | None:
    """The sizes of the checkpoint that a step starts from where a teacher becomes it, or a student is made for it, if
    they count and are known."""
    start = next((other for other in steps if other.name == step.sources.get("checkpoint")), None)
    if not step.stage.fits or start is None or not isinstance(start.config, ConvertConfig | DistillConfig):
        return None
    from mmcompress.compress.earlyteacher import coming_model
    from mmcompress.compress.train.student import coming_student

    teacher = coming_model(start.config.teacher)
    if teacher is None or isinstance(start.config, ConvertConfig):
        return teacher
    return None if "checkpoint" in start.sources else coming_student(start.config, teacher)


def _parents(step: Step, digests: Mapping[str, str], places: Mapping[str, Path]) -> Parents | None:
    """The digests of what a step is made from; None where one of them is still to be made."""
    if not {*step.sources.values(), *step.gathered} <= digests.keys():
        return None
    sources = {role: digests[name] for role, name in step.sources.items()}
    return sources | {_gathered_role(i, places[name].name): digests[name] for i, name in enumerate(step.gathered)}


def digest_of_standing(stage: Stage, built: StageConfig, parents: Parents, out: Path) -> str | None:
    """The digest of the artifact at `out` that a run will reuse unless it is damaged; None where it will make one.

    By its manifest alone, since no file need be read twice.
    """
    check_name(out)
    if not (out / MANIFEST).is_file():
        return None
    try:
        manifest = read_manifest(out / MANIFEST)
    except CorruptInputError:
        return None
    return manifest.digest if _is_right(manifest, _key(stage, built, parents | outside(built)), built) else None


def parents_of(sources: Mapping[str, Artifact], gathered: Sequence[Artifact]) -> Parents:
    """The digests of what a stage is made from, by role."""
    named = {role: artifact.digest for role, artifact in sources.items()}
    return named | {_gathered_role(i, artifact.path.name): artifact.digest for i, artifact in enumerate(gathered)}


def _gathered_role(index: int, name: str) -> str:
    return f"{index:02d}-{name}"


def run_stage(
    stage: Stage,
    built: StageConfig,
    sources: Mapping[str, Artifact],
    gathered: tuple[Artifact, ...],
    out: Path,
    turn: str = "",
) -> Artifact:
    """Reuse the artifact at `out` if it has the right key and is undamaged, else make it; then enforce what it says.

    `turn` says which of several stages it is, to the user.
    """
    artifact = _made_or_reused(stage, built, sources, gathered, out, turn)
    _enforce(stage, built, artifact)
    return artifact


def whole_and_right(
    stage: Stage, built: StageConfig, sources: Mapping[str, Artifact], gathered: tuple[Artifact, ...], out: Path
) -> Artifact | None:
    """What `run_stage` would reuse, for who holds `out` together with other readers; None where it would change
    anything there, if only what a killed run has left."""
    if any(left.exists() for left in (work_of(out), draft_of(out), aside_of(out))):
        return None
    try:
        artifact = Artifact.open(out)
    except (CorruptInputError, UsageError):
        return None
    if not _is_right(artifact.manifest, _key(stage, built, parents_of(sources, gathered) | outside(built)), built):
        return None
    say(stage.name, out.name, "reused")
    _enforce(stage, built, artifact)
    return artifact


def _enforce(stage: Stage, built: StageConfig, artifact: Artifact) -> None:
    if stage.enforce:
        module, _, name = stage.enforce.partition(":")
        getattr(importlib.import_module(module), name)(artifact, getattr(built, STRICT))


def _made_or_reused(
    stage: Stage,
    built: StageConfig,
    sources: Mapping[str, Artifact],
    gathered: tuple[Artifact, ...],
    out: Path,
    turn: str,
) -> Artifact:
    read = [*(artifact.path for artifact in (*sources.values(), *gathered)), *local_inputs(built)]
    check_place(out, read, stage.name)
    parents = parents_of(sources, gathered) | outside(built)
    key = _key(stage, built, parents)
    tidy(out)
    work = work_of(out)
    if (reused := _reusable(out, key, built)) is not None:
        drop_work_of(work, key)  # of a run that was killed when all was done
        say(stage.name, out.name, "reused", turn)
        return reused
    stage.refuse_impossible(built, sources)
    say(stage.name, out.name, RUNNING, turn)
    start = time.monotonic()
    said, standing = _said(built), out if (out / MANIFEST).is_file() else None
    with (
        writing(out),
        _stopped_with_a_word(stage, out.name, work),
        working(work, key),
        Artifact.create(out, kind=stage.produces, stage=stage.name, key=key, config=said, parents=parents) as draft,
    ):
        run_on_all(stage, Job(built, sources, gathered, draft, out.name, work, standing), key)
        if found := {**draft.facts.get(READ, {}), **revisions(built)}:
            draft.facts[READ] = found
    if stage.produces is Kind.EMBEDDINGS:
        Artifact(out, read_manifest(out / MANIFEST)).remember()
    say(stage.name, out.name, f"done in {time.monotonic() - start:.1f} s")
    return Artifact.open(out)


@contextmanager
def _stopped_with_a_word(stage: Stage, name: str, work: Path) -> Iterator[None]:
    """Who stops a stage is told what the same command will do; a scheduler by the code, where something is kept."""
    try:
        yield
    except Interrupted as stop:
        kept = work.is_dir()
        if kept and stop.of_scheduler:
            raise StoppedError(
                f"{stage.name} ({name}) was stopped by {stop.by}; what it has done so far is kept",
                "give the same command again: it goes on there",
            ) from stop
        goes_on = "goes on with what is kept" if kept else "begins anew, and what was finished before it is reused"
        stop.hint = f"give the same command again: {stage.name} ({name}) {goes_on}"
        raise


def _said(built: StageConfig) -> dict[str, Any]:
    """The config as it is recorded."""
    return built.model_dump(mode="json", exclude={STRICT})


def _key(stage: Stage, built: StageConfig, parents: Parents) -> str:
    return hash_json([stage.name, what_counts(built), parents, __version__])


def _reusable(out: Path, key: str, built: StageConfig) -> Artifact | None:
    if not out.is_dir():
        return None
    try:
        artifact = Artifact.open(out)
    except CorruptInputError as error:
        say("", out.name, f"damaged, made again: {error.what}")
        return None
    except UsageError:
        return None
    return artifact if _is_right(artifact.manifest, key, built) else None


def _is_right(manifest: Manifest, key: str, built: StageConfig) -> bool:
    return manifest.key == key and still_as_read(manifest.facts.get(READ, {}), built)
