"""What lies beside an artifact and what its manifest records, so that a command need not ask for it.

A manifest records the config and the parents' digests of its artifact. So `prune DIR` finds the teacher's embeddings
that DIR was distilled from beside it, by their digest, and the data in its config. An artifact may come from anybody:
of what it records only paths count, and nothing that it records is run or fetched.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcompress.artifact import Artifact
from mmcompress.config import BudgetConfig, StageConfig
from mmcompress.data.fingerprint import fingerprint
from mmcompress.data.spec import expand, is_stream
from mmcompress.errors import UsageError
from mmcompress.manifest import Kind
from mmcompress.pipeline.recipe import DATA_FIELDS
from mmcompress.places import MANIFEST
from mmcompress.strictjson import json_from_text

_PAIRS = ("train", "validation", "test")
"""The fields of data that are no lists."""
Given = Mapping[str, Any]
"""What the user said, by the dotted keys of a config: `{"optimizer.lr": 0.1}`. None is a value; absent is not said."""
NOTHING: Given = {}


def recorded_data(near: Artifact | None) -> dict[str, Any]:
    """The data table that the artifact was made from. A command, a URL or stdin in it is refused."""
    recorded = None if near is None else near.manifest.config.get("data")
    if near is None or not isinstance(recorded, dict):
        raise UsageError(
            "no training data is given" + (f" or recorded in {near.path}" if near else ""), "give --data SHARDS"
        )
    for name in DATA_FIELDS:
        if isinstance(spec := recorded.get(name), str) and is_stream(spec):
            raise UsageError(
                f"{near.path} was made from the stream data.{name} = {spec!r}, and nothing that an artifact records "
                "is run or fetched",
                f"if you trust it, name it yourself: --data {shlex.quote(spec)}",
            )
        if isinstance(spec, str):
            _check_same_data(near, name, spec)
    return dict(recorded)


def _check_same_data(near: Artifact, name: str, spec: str) -> None:
    """Raise UsageError where a recorded path leads to other data than what the artifact was made from."""
    if (known := near.manifest.parents.get(f"data.{name}")) is None:
        return
    if name in _PAIRS:
        expand(spec)
    if known != fingerprint(spec):
        raise UsageError(
            f"{near.path} was made from data.{name} = {spec!r}, and what lies there now, seen from {Path.cwd()}, is "
            "other data",
            "name the data that is meant, by a path from here: --data DATA",
        )


def data_unless_given(given: Given, near: Artifact | None, field: str = "train") -> dict[str, Any]:
    """The recorded data table, to be completed by what is given; none of it where the user names other data."""
    if "data" in given or f"data.{field}" in given:
        return {}
    return recorded_data(near)


def names_teacher(given: Given) -> bool:
    return bool({"teacher", "teacher.source"} & given.keys())


def recorded_teacher(near: Artifact) -> dict[str, Any]:
    """The teacher that an artifact was made from, without the leave to run code: only this user can give that."""
    recorded = near.manifest.config.get("teacher")
    if not isinstance(recorded, dict) or not isinstance(recorded.get("source"), str):
        raise UsageError(f"{near.path} does not say which teacher it was made from", "give --teacher")
    return {"source": recorded["source"]}


def recorded_budget(checkpoint: Artifact) -> dict[str, Any]:
    """The budget that INT8 was made within, as far as it is recorded: null is recorded too, and stays any.

    But `qat` without any limit trains whatever the loss is, which says nothing about what a verdict may accept.
    """
    config = checkpoint.manifest.config
    limits = BudgetConfig.model_fields.keys() - StageConfig.model_fields.keys()
    recorded = {name: config[name] for name in sorted(limits & config.keys())}
    unlimited = all(limit is None for limit in recorded.values())
    return {} if unlimited and checkpoint.manifest.stage == "qat" else recorded


def embeddings_beside(near: Artifact | None) -> Artifact:
    """The teacher's cached embeddings that an artifact was made from."""
    folder = None if near is None else parent_beside(near, "embeddings")
    if folder is None:
        raise UsageError(
            "the teacher's embeddings are not known" + (f": they are not beside {near.path}" if near else ""),
            "give --embeddings ARTIFACT, or --teacher and --data to make them",
        )
    return Artifact.open(folder, Kind.EMBEDDINGS)


def parent_beside(artifact: Artifact, role: str) -> Path | None:
    """The folder beside an artifact that holds its parent, told by the digest."""
    digest = artifact.manifest.parents.get(role)
    found = _digests_in(artifact.path.absolute().parent) if digest is not None else {}
    return next((folder for folder, own in found.items() if own == digest), None)


def measured_beside(artifacts: Sequence[Artifact]) -> list[Artifact]:
    """What bench and drift measured and what is not among the artifacts, from beside them and from their OUT-sources.

    Raises UsageError where not one of the measured artifacts is to be found.
    """
    measurements = [a for a in artifacts if a.manifest.stage in ("bench", "drift")]
    wanted = {digest: role for a in measurements for role, digest in a.manifest.parents.items() if role[:2].isdigit()}
    for artifact in artifacts:
        wanted.pop(artifact.digest, None)
    found: list[Artifact] = []
    for place in (measurement.path.absolute() for measurement in measurements):
        for folder, digest in {
            **_digests_in(place.parent),
            **_digests_in(place.with_name(f"{place.name}-sources")),
        }.items():
            if wanted.pop(digest, None) is not None:
                found.append(Artifact.open(folder))
    if wanted and not any(a.manifest.kind in (Kind.ONNX, Kind.ENGINE) for a in (*artifacts, *found)):
        names = ", ".join(role[3:] for role in wanted.values())
        raise UsageError(
            f"{measurements[0].path} measured {names}, which is not beside it",
            "give the folders of these artifacts too",
        )
    return found


def _digests_in(folder: Path) -> dict[Path, str]:
    """The artifacts right in a folder with the digests that they state, in order."""
    digests: dict[Path, str] = {}
    for manifest in sorted(folder.glob(f"*/{MANIFEST}")):
        try:
            digests[manifest.parent] = json_from_text(manifest.read_bytes()).get("digest")
        except (ValueError, AttributeError):
            continue
    return digests


def artifacts_in(folder: Path) -> list[Artifact]:
    """The artifact at a folder, or those in it."""
    if (folder / MANIFEST).is_file() or not folder.is_dir():
        return [Artifact.open(folder)]
    return [Artifact.open(path.parent) for path in sorted(folder.glob(f"*/{MANIFEST}")) if path.parent.name[0] != "."]


def in_recipe_order(artifacts: Sequence[Artifact]) -> list[Artifact]:
    """Measured artifacts in the order in which bench and drift gathered them, the rest behind them by name."""
    order: dict[str, int] = {}
    for measurement in artifacts:
        if measurement.manifest.kind is Kind.REPORT:
            for digest in measurement.manifest.parents.values():
                order.setdefault(digest, len(order))
    return sorted(artifacts, key=lambda a: (order.get(a.digest, len(order)), a.path.name))
