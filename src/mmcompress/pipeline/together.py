"""A stage that all processes of a command run: rank 0 hands it out, the others take part and write no artifact.

Only what a stage's function needs is handed out: its config, its sources by path and digest, and the folder for state
to resume from. The others open the very artifacts that rank 0 has verified and locked, and fill a draft that is thrown
away. All stages that are not marked `together` run on rank 0 as if it were alone, while the others wait.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmcompress import ranks
from mmcompress.artifact import Artifact, Draft, read_manifest
from mmcompress.errors import CorruptInputError
from mmcompress.frozen import Config
from mmcompress.places import MANIFEST
from mmcompress.progress import console
from mmcompress.publish import KEY
from mmcompress.ranks import Ranks, wait_until_seen
from mmcompress.stages import STAGES, Job, Stage


class Task(Config):
    """A stage as rank 0 hands it out."""

    stage: str
    config: dict[str, Any]
    """What was said; defaults are not."""
    sources: dict[str, tuple[str, str]]
    """Path and digest, by role."""
    name: str
    work: str
    key: str


def run_on_all(stage: Stage, job: Job[Any], key: str) -> None:
    """Run a stage's function: here, and where it is `together` on every other rank too."""
    here = ranks.here()
    if here is None or not stage.together:
        stage.function()(job)
        return
    sources = {role: (str(artifact.path.absolute()), artifact.digest) for role, artifact in job.sources.items()}
    said = job.config.model_dump(mode="json", exclude_unset=True)
    work = str(job.work.absolute())
    here.shared(Task(stage=stage.name, config=said, sources=sources, name=job.name, work=work, key=key).model_dump())
    with _together(here):
        stage.function()(job)
    here.collected(None)


def follow(here: Ranks) -> int:
    """Take part in what rank 0 hands out, silently, until it ends; the exit code."""
    console.quiet = True
    return here.follow(lambda said: _take_part(Task.model_validate(said), here))


def _take_part(task: Task, here: Ranks) -> None:
    stage, work = STAGES[task.stage], Path(task.work)
    mark = work / KEY
    wait_until_seen(lambda: mark.is_file() and mark.read_text() == task.key, mark)
    sources = {role: _as_verified(Path(path), digest) for role, (path, digest) in task.sources.items()}
    built = stage.config.model_validate(task.config)
    with tempfile.TemporaryDirectory(prefix="mmcompress-") as scratch, _together(here):
        stage.function()(Job(built, sources, (), Draft(Path(scratch)), task.name, work))


def _as_verified(path: Path, digest: str) -> Artifact:
    """The artifact that rank 0 has verified, not hashed once more by every rank."""
    wait_until_seen((path / MANIFEST).is_file, path)
    manifest = read_manifest(path / MANIFEST)
    if manifest.digest != digest:
        raise CorruptInputError(f"{path} is another artifact here than on rank 0", "all nodes must share the folder")
    return Artifact(path, manifest)


@contextmanager
def _together(here: Ranks) -> Iterator[None]:
    here.together = True
    try:
        yield
    finally:
        here.together = False
