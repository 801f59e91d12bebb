"""What a command inherits: not said, said to be none, and said to be a number are three things."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmcompress.artifact import Artifact
from mmcompress.data.fingerprint import fingerprint
from mmcompress.errors import UsageError
from mmcompress.int8 import RANGES
from mmcompress.manifest import Kind
from mmcompress.pipeline import single, standalone
from mmcompress.pipeline.sources import recorded_data
from mmcompress.stages import Stage


def checkpoint(path: Path, stage: str, **config: Any) -> Path:
    with Artifact.create(path, kind=Kind.CHECKPOINT, stage=stage, key="k", config=config) as draft:
        (draft.path / RANGES).write_bytes(b"{}")
    return path


@pytest.mark.parametrize(
    ("stage", "recorded", "given", "budget"),
    [
        ("quantize", {"max_drop": None, "max_flips": None}, {}, (None, None)),
        ("quantize", {"max_drop": 0.1, "max_flips": 0.2}, {}, (0.1, 0.2)),
        ("quantize", {"max_drop": 0.1, "max_flips": 0.2}, {"max_flips": None}, (0.1, None)),
        ("quantize", {"max_drop": None, "max_flips": 0.2}, {"max_drop": 0.005}, (0.005, 0.2)),
        ("distill", {}, {}, (0.005, 0.02)),
        ("distill", {}, {"max_drop": None}, (None, 0.02)),
        ("qat", {"max_drop": 0.1}, {}, (0.1, 0.02)),
        ("qat", {"max_drop": None, "max_flips": 0.2}, {}, (None, 0.2)),
        ("qat", {"max_drop": None, "max_flips": None}, {}, (0.005, 0.02)),
    ],
)
def test_a_verdict_inherits_the_budget_that_is_recorded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    recorded: Mapping[str, Any],
    given: Mapping[str, Any],
    budget: tuple[float | None, float | None],
) -> None:
    built: list[Any] = []

    def run_stage(_: Stage, config: Any, *__: object) -> Any:
        built.append(config)

    monkeypatch.setattr(single, "run_stage", run_stage)
    source = checkpoint(tmp_path / "a", stage, data={"train": "demo:train"}, **recorded)
    standalone.verdict(source, tmp_path / "out", given)
    assert (built[0].max_drop, built[0].max_flips) == budget


def test_a_recorded_path_that_leads_to_other_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, colour in (("here", "red"), ("there", "blue")):
        (tmp_path / place / "photos").mkdir(parents=True)
        Image.new("RGB", (8, 8), colour).save(tmp_path / place / "photos" / "a.png")
    monkeypatch.chdir(tmp_path / "here")
    parents = {"data.train": fingerprint("photos")}
    config = {"data": {"train": "photos"}}
    with Artifact.create(
        tmp_path / "q", kind=Kind.CHECKPOINT, stage="quantize", key="k", config=config, parents=parents
    ):
        pass
    near = Artifact.open(tmp_path / "q")
    assert recorded_data(near) == {"train": "photos"}
    monkeypatch.chdir(tmp_path / "there")
    with pytest.raises(
        UsageError, match=r"made from data.train = 'photos', and what lies there now, seen from .*there"
    ):
        recorded_data(near)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="there is no photos"):
        recorded_data(near)
