"""compare: of two artifacts, of two stored measurements, and the mistakes that can be made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_run import bench_document, latency

from mmcompress.artifact import Artifact
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import Kind
from mmcompress.measure import compare as module
from mmcompress.measure.compare import compare, compare_reports
from mmcompress.measure.stored import StoredLatencies

Make = Callable[..., Artifact]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUND_S", 0.01)
    monkeypatch.setattr(module, "ceilings", lambda kernels: ([], [f"no ceiling of {len(list(kernels))}"]))


@pytest.mark.usefixtures("quick")
def test_two_artifacts_are_measured_here(make_artifact: Make) -> None:
    a, b = make_artifact("a"), make_artifact("b", precisions=("fp32", "int8"))
    compared = compare(a.path, b.path, backend="onnxruntime", batch=2, threads=1, seconds=0.04)
    found = compared.model_dump(mode="json", by_alias=True)
    assert (found["measured"], found["a"], found["b"]) == ("here", str(a.path), str(b.path))
    (pair,) = found["comparisons"]
    assert (pair["a"]["row"], pair["a"]["precision"], pair["b"]["row"], pair["b"]["precision"]) == (
        *("a", "fp32"),
        *("b", "int8"),
    )
    low, high = pair["ci95"]
    assert low <= pair["speedup"] <= high
    assert pair["significant"] == (not low <= 1 <= high)
    assert len(pair["a"]["rounds_ms"]) == found["environment"]["rounds"] == 4
    assert pair["a"]["batch"] == 2 and pair["a"]["threads"] == 1
    assert "no ceiling of 2" in found["notes"]
    assert json.dumps(found, allow_nan=False)


def document(rounds: dict[str, list[float]], **environment: Any) -> dict[str, Any]:
    """A bench.json with these rounds on OpenVINO in INT8."""
    whole = bench_document("EPYC")
    same = {**latency("int8", "openvino", 1), "threads": 2}
    rows = [{"row": row, "latency": [{**same, "rounds_ms": times}]} for row, times in rounds.items()]
    return {**whole, "rows": rows, "environment": {**whole["environment"], "warnings": [], **environment}}


def stored(rounds: dict[str, list[float]], **environment: Any) -> StoredLatencies:
    return StoredLatencies.model_validate(document(rounds, **environment))


def times(middle: float, seed: int) -> list[float]:
    return [float(ms) for ms in middle * np.exp(0.01 * np.random.default_rng(seed).standard_normal(8))]


def test_two_reports_are_compared_by_their_rounds() -> None:
    a = stored({"student": times(2.0, 0), "int8": times(1.0, 1), "gone": times(1.0, 2)})
    b = stored({"student": times(2.0, 3), "int8": times(0.8, 4), "new": times(1.0, 5)})
    found = compare_reports(a, b, "a", "b")
    pairs = {pair.a.row: pair for pair in found.comparisons}
    assert list(pairs) == ["student", "int8"]
    assert not pairs["student"].significant
    assert pairs["int8"].significant and pairs["int8"].speedup == pytest.approx(1.25, rel=0.02)
    assert found.notes == (
        "The two were measured in different runs: what changed on the machine between them counts as difference.",
        "Not compared, as only a has a row of that name: gone.",
        "Not compared, as only b has a row of that name: new.",
    )


@pytest.mark.parametrize("order", [1, -1])
def test_of_a_run_that_a_report_has_twice_the_lower_counts(order: int) -> None:
    runs = {**document({"int8": times(1.0, 0)}), "machines": [{"environment": {}}]}
    (entry,) = runs["rows"][0]["latency"]
    slow = {**entry, "p50_ms": 2 * entry["p50_ms"], "rounds_ms": times(2.0, 1)}
    runs["rows"][0]["latency"] = [entry, slow][::order]
    (pair,) = compare_reports(
        stored({"int8": times(1.0, 2)}), StoredLatencies.model_validate(runs), "a", "b"
    ).comparisons
    assert pair.speedup == pytest.approx(1.0, rel=0.02)


def test_other_machines_and_warnings_are_noted() -> None:
    a = stored({"int8": times(1.0, 0)}, power_mode="15W", warnings=["The machine was noisy."])
    b = stored({"int8": times(1.0, 1)}, power_mode="MAXN", cpu="Xeon")
    notes = compare_reports(a, b, "a", "b").notes
    assert notes[1:] == (
        "They were measured under different conditions: processor (EPYC and Xeon), power mode (15W and MAXN).",
        "The machine was noisy.",
    )


def test_reports_are_found_in_folders_and_files(tmp_path: Path) -> None:
    bench = document({"int8": times(1.0, 0)})
    with Artifact.create(tmp_path / "bench", kind=Kind.REPORT, stage="bench", key="bench") as draft:
        (draft.path / "bench.json").write_text(json.dumps(bench))
    bench["rows"] = [{"stage": row.pop("row"), **row} for row in bench["rows"]]
    (tmp_path / "main.json").write_text(json.dumps(bench))
    found = compare(tmp_path / "bench", tmp_path / "main.json")
    assert found.measured == "before"
    assert found.comparisons[0].speedup == pytest.approx(1.0)


def test_what_cannot_be_compared_is_said(make_artifact: Make, tmp_path: Path) -> None:
    good = tmp_path / "good.json"
    good.write_text(json.dumps(document({"int8": times(1.0, 0)})))
    artifact = make_artifact()
    with pytest.raises(UsageError, match="is a report and the other is none") as caught:
        compare(good, artifact.path)
    assert caught.value.hint == "give two artifacts, or two reports"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(document({"fp32": times(1.0, 0), "short": [1.0, 1.0]})))
    with pytest.raises(UsageError, match="have no measurement in common") as caught:
        compare(good, other)
    assert "A has int8 openvino int8 1 2 1; B has fp32 openvino int8 1 2 1" in caught.value.hint
    other.write_text("[]")
    with pytest.raises(CorruptInputError, match=r"other\.json is \[\]: Input should be an object"):
        compare(good, other)
    other.write_text("{")
    with pytest.raises(CorruptInputError, match=r"other\.json is no JSON"):
        compare(good, other)
    with Artifact.create(tmp_path / "drift", kind=Kind.REPORT, stage="drift", key="drift") as draft:
        (draft.path / "drift.json").write_text("{}")
    with pytest.raises(UsageError, match="holds no latencies, it was made by 'drift'"):
        compare(good, tmp_path / "drift")
    with pytest.raises(UsageError, match="is not an artifact"):
        compare(tmp_path / "nowhere", artifact.path)
