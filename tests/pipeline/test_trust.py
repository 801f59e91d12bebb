"""What somebody else's artifact records is a path or nothing: no command, no address, no leave to run code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmcompress.artifact import Artifact
from mmcompress.errors import UsageError
from mmcompress.manifest import Kind
from mmcompress.pipeline import standalone
from mmcompress.pipeline.sources import data_unless_given, recorded_teacher


def received(path: Path, kind: Kind = Kind.CHECKPOINT, **config: Any) -> Path:
    with Artifact.create(path, kind=kind, stage="distill", key="k", config=config) as draft:
        (draft.path / "a.bin").write_bytes(b"1")
    return path


@pytest.mark.parametrize("field", ["train", "validation", "test", "labels", "templates"])
@pytest.mark.parametrize("spec", ["pipe:touch {0}", "-", "cached:https://a.org/a.tar", "{{pipe:touch {0}; echo }}://"])
@pytest.mark.parametrize("command", ["quantize", "qat", "verdict", "prune", "distill"])
def test_a_recorded_stream_is_not_opened(tmp_path: Path, command: str, spec: str, field: str) -> None:
    mark = tmp_path / "PWNED"
    config = {"data": {"train": "demo:train", field: spec.format(mark)}, "teacher": {"source": "demo:teacher"}}
    checkpoint = received(tmp_path / "checkpoint", **config)
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="nothing that an artifact records is run or fetched") as caught:
        if command in ("quantize", "qat", "verdict"):
            getattr(standalone, command)(checkpoint, out)
        else:
            embeddings = received(tmp_path / "embeddings", Kind.EMBEDDINGS, **config)
            if command == "prune":
                standalone.prune(checkpoint, out, embeddings=embeddings)
            else:
                standalone.distill(out, {"student.source": "vit-t8-64"}, embeddings=embeddings)
    assert "--data" in caught.value.hint
    assert not mark.exists() and not out.exists()


def test_a_recorded_stream_is_no_matter_where_the_user_names_data(tmp_path: Path) -> None:
    checkpoint = Artifact.open(received(tmp_path / "a", data={"train": "pipe:x"}))
    assert data_unless_given({"data.train": "demo:val"}, checkpoint) == {}


def test_leave_to_run_code_is_not_inherited(tmp_path: Path) -> None:
    teacher = {"source": "someone/model", "trust_remote_code": True}
    assert recorded_teacher(Artifact.open(received(tmp_path / "a", teacher=teacher))) == {"source": "someone/model"}
