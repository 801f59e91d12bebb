"""The commands of single stages, one after another, and what they find beside an artifact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmcompress.artifact import Artifact
from mmcompress.errors import UsageError
from mmcompress.manifest import Kind
from mmcompress.pipeline import sources, standalone

Cli = Callable[..., Any]


def test_sources_are_found_beside_the_artifact_by_digest(tmp_path: Path) -> None:
    with Artifact.create(tmp_path / "cache", kind=Kind.EMBEDDINGS, stage="embed", key="e") as draft:
        (draft.path / "x.bin").write_bytes(b"1")
    cache = Artifact.open(tmp_path / "cache")
    parents = {"embeddings": cache.digest}
    data = {"data": {"train": "shards"}}
    with Artifact.create(
        tmp_path / "student", kind=Kind.CHECKPOINT, stage="distill", key="s", config=data, parents=parents
    ):
        pass
    student = Artifact.open(tmp_path / "student")
    assert sources.parent_beside(student, "embeddings") == cache.path
    assert sources.parent_beside(student, "checkpoint") is None
    assert sources.recorded_data(student) == sources.data_unless_given({}, student) == {"train": "shards"}
    assert sources.data_unless_given({"data.train": "other"}, student) == {}
    shutil.rmtree(cache.path)
    with pytest.raises(UsageError, match="they are not beside"):
        standalone.prune(student.path, tmp_path / "pruned")


def test_stage_commands_follow_one_another(
    cli: Cli, tmp_path: Path, tiny_clip_folder: Path, coloured_squares: Path
) -> None:
    """From a teacher to INT8 files and back to a person, each stage by its own command."""
    few = ("--set", "optimizer.steps=2", "--set", "optimizer.batch=8", "--json")

    def made(*arguments: object) -> dict[str, Any]:
        done = cli(*arguments)
        assert done.code == 0, done.err
        return dict(json.loads(done.out.splitlines()[-1]))

    student = tmp_path / "student"
    teacher = ("--teacher", tiny_clip_folder, "--data", coloured_squares)
    first = made("distill", *teacher, "--student", "inherit:0.5", "--out", student, *few)
    assert first["kind"] == "checkpoint" and (tmp_path / "student-embeddings" / "manifest.json").is_file()
    assert "reused" in cli("distill", *teacher, "--student", "inherit:0.5", "--out", student, *few).err
    made("prune", student, "--out", tmp_path / "pruned", "--set", "prune.mlp=0.5", "--set", "batch=8", "--json")
    tight = ("--out", tmp_path / "tight", "--set", "batch=8", "--set", "samples=8")
    halved = cli("prune", student, *tight, "--target-macs", "0.9x")
    assert halved.code == 0 and "of the MACs" in halved.out
    floor = cli("prune", student, *tight, "--target-macs", "0.001x")
    assert floor.code == 2 and "the macs of the image tower cannot be pruned to 0.001x: the floor is 0." in floor.err
    both = cli("prune", student, *tight, "--target-macs", "0.5x", "--target-latency", "0.5x")
    assert both.code == 2 and "target_macs and target_latency exclude each other: give one" in both.err
    made("distill", "--from", tmp_path / "pruned", "--out", tmp_path / "recovered", *few)
    made("quantize", tmp_path / "recovered", "--out", tmp_path / "ranges", "--set", "batch=8", "--json")
    within = cli("qat", tmp_path / "ranges", "--max-drop", "1", "--max-flips", "1", "--out", tmp_path / "within")
    assert within.code == 0 and "not trained: INT8 loses" in within.out
    unlimited = ("--max-drop", "any", "--max-flips", "any")
    trained = cli("qat", tmp_path / "ranges", "--out", tmp_path / "qat", *few[:-1], *unlimited)
    assert trained.code == 0 and "drift before" in trained.out
    unfit = cli("qat", tmp_path / "recovered", "--out", tmp_path / "unfit")
    assert unfit.code == 2 and "so it is no quantized checkpoint" in unfit.err
    assert "image-int8-signed.onnx" in made("export", tmp_path / "qat", "--out", tmp_path / "q8", "--json")["files"]
    int8 = made("export", tmp_path / "ranges", "--out", tmp_path / "int8", "--json")
    assert {"image-int8-unsigned.onnx", "image-int8-signed.onnx"} <= set(int8["files"])
    image = coloured_squares / "00.png"
    shares = json.loads(cli("classify", tmp_path / "int8", image, "--labels", "red,blue", "--json").out)
    assert sum(answer["share"] for answer in shares) == pytest.approx(1)
    assert "%" in cli("classify", tmp_path / "int8", image, "--labels", "red,blue").out
    found = cli("search", tmp_path / "int8", "a red square", "--images", coloured_squares, "--top", "3").out
    assert len(found.splitlines()) == 3 and ".png" in found
