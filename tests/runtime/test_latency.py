"""The benchmark's arithmetic against plain numpy, and the stage on toy graphs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from mmcompress.artifact import Artifact, Graph, Kind
from mmcompress.config import BenchConfig
from mmcompress.errors import MissingRequirementError, UsageError
from mmcompress.runtime import latency, machine, peak
from mmcompress.runtime.latency import SessionPool, Subject, bench, burst, find_subjects, paired_speedup, warm_up
from mmcompress.runtime.peak import peak_bytes, random_call

Make = Callable[..., Artifact]
MIB = 1 << 20


def test_the_stage_measures_every_combination(
    make_artifact: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "WARM_UP_S", 0.01)
    artifacts = (make_artifact("teacher"), make_artifact("student"), make_artifact("int8", precisions=("int8",)))
    config = BenchConfig(batches=(1, 4), threads=1, seconds=0.05)
    bench(cast(Any, SimpleNamespace(config=config, gathered=artifacts, draft=SimpleNamespace(path=tmp_path))))
    report = json.loads((tmp_path / "bench.json").read_text())
    assert [row["row"] for row in report["rows"]] == ["teacher", "student", "int8"]
    for row in report["rows"]:
        measured = [(one["backend"], one["batch"]) for one in row["latency"]]
        assert measured == [("onnxruntime", 1), ("onnxruntime", 4), ("openvino", 1), ("openvino", 4)]
        for one in row["latency"]:
            assert one["precision"] == ("int8" if row["row"] == "int8" else "fp32")
            assert one["activations"] == ("unsigned" if row["row"] == "int8" else "float")
            assert 0 < one["p50_ms"] <= one["p90_ms"] <= one["p99_ms"]
            assert one["throughput_ips"] == pytest.approx(1000 * one["batch"] / one["mean_ms"])
            assert 20 * MIB < one["peak_bytes"] < 1000 * MIB
            assert one["samples"] >= latency.ROUNDS
            assert one["energy_mj"] is None
            assert one["threads"] == 1
            assert one["device"] == machine.cpu_model()
    pairs = [
        (one["numerator"]["backend"], one["denominator"]["row"], one["denominator"]["backend"], one["batch"])
        for one in report["ratios"]
    ]
    assert pairs == [
        ("onnxruntime", "teacher", "onnxruntime", 1),
        ("onnxruntime", "teacher", "onnxruntime", 4),
        ("onnxruntime", "student", "onnxruntime", 1),
        ("onnxruntime", "student", "onnxruntime", 4),
        ("openvino", "teacher", "onnxruntime", 1),
        ("openvino", "teacher", "onnxruntime", 4),
        ("openvino", "student", "openvino", 1),
        ("openvino", "student", "openvino", 4),
    ]
    for one in report["ratios"]:
        low, high = one["ci95"]
        assert low <= one["speedup"] <= high
    assert report["environment"]["cpu"]
    assert report["environment"]["cores"] >= 1


def test_a_paired_speedup_ignores_what_slows_both() -> None:
    """Each round is slowed by another factor, up to a hundred times; the ratio is 3 in all of them."""
    rng = np.random.default_rng(0)
    slow_down = 10 ** rng.uniform(0, 2, 12)
    fast = [s * (1 + 0.01 * rng.standard_normal(9)) for s in slow_down]
    slow = [3 * s * (1 + 0.01 * rng.standard_normal(5)) for s in slow_down]
    speedup, (low, high) = paired_speedup(fast, slow)
    assert speedup == pytest.approx(3, rel=0.02)
    assert 2.95 < low <= speedup <= high < 3.05
    noisy = [s * f for s, f in zip(slow, rng.uniform(0.5, 2, 12), strict=True)]
    wide_low, wide_high = paired_speedup(fast, noisy)[1]
    assert wide_high - wide_low > 10 * (high - low)


def test_a_burst_keeps_its_time_and_drops_the_cold_call() -> None:
    calls: list[float] = []

    def call() -> None:
        time.sleep(0.05 if not calls else 0.002)
        calls.append(0)

    times = burst(call, 0.1)
    assert len(times) == len(calls) - 1
    assert times.max() < 50
    slow = burst(lambda: time.sleep(0.02), 0.001)
    assert len(slow) == 1
    assert slow[0] >= 20


def test_warm_up_ends_when_calls_are_steady() -> None:
    delays = iter([0.03, 0.02, 0.01, *[0.005] * 50])
    assert 5 <= warm_up(lambda: time.sleep(next(delays))) <= 20
    assert warm_up(lambda: time.sleep(0.3)) == 2


class FakeSession:
    closed = False

    def close(self) -> None:
        self.closed = True


def test_sessions_stay_within_the_memory_budget(make_artifact: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, FakeSession]] = []

    def open_fake(artifact: Artifact, graph: Graph, backend: str, *, threads: int) -> FakeSession:
        opened.append((artifact.path.name, FakeSession()))
        return opened[-1][1]

    monkeypatch.setattr(latency, "open_session", open_fake)
    a, b, c = (Subject(x, x.manifest.graphs[0], "openvino") for x in map(make_artifact, "abc"))
    pool = SessionPool(100, 1, {a.key: {1: 40, 8: 50}, b.key: {1: 50}, c.key: {1: 50}})
    first = pool.session(a)
    pool.session(b)
    assert pool.session(a) is first
    pool.session(c)
    assert [(name, session.closed) for name, session in opened] == [("a", False), ("b", True), ("c", False)]
    pool.session(b)
    assert [session.closed for _, session in opened] == [True, True, False, False]
    pool.close()
    assert all(session.closed for _, session in opened)
    huge = SessionPool(1, 1, {})
    huge.session(a)
    huge.session(b)
    assert opened[-2][1].closed
    huge.close()


def test_peak_memory_is_the_childs_own(make_artifact: Make) -> None:
    """Linux' ru_maxrss of a child starts at its parent's peak; this parent holds 600 MiB."""
    artifact = make_artifact()
    held = np.ones(600 * MIB // 8)
    peaks = peak_bytes(artifact.path, "image-fp32.onnx", "onnxruntime", 1, (8, 1))
    assert held[-1] == 1
    assert list(peaks) == [1, 8]
    assert 20 * MIB < peaks[1] <= peaks[8] < 500 * MIB


def test_an_unknown_peak_is_said(make_artifact: Make, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = make_artifact()
    artifact.file("image-fp32.onnx").write_bytes(b"damaged")
    assert peak_bytes(artifact.path, "image-fp32.onnx", "onnxruntime", 1, (1,)) == {}
    said = "".join(capsys.readouterr().err.split())  # rich breaks lines anywhere
    assert "peakmemoryononnxruntimeisunknown" in said
    assert "image-fp32.onnxisdamaged" in said


def test_what_does_not_run_here_is_left_out_and_said(
    make_artifact: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = make_artifact(precisions=("fp32", "fp16", "int8"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    subjects = find_subjects([artifact], ("onnxruntime", "openvino"))
    assert [subject.name() for subject in subjects] == [
        {"row": "student", "backend": "onnxruntime", "precision": "fp32"},
        {"row": "student", "backend": "onnxruntime", "precision": "int8"},
    ]
    assert "openvino is left out: this needs the Python package 'openvino'" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(MissingRequirementError, match="none of openvino can run any of the graphs") as caught:
        find_subjects([artifact], ("openvino",))
    assert caught.value.exit_code == 3
    engine = make_artifact("engine", kind=Kind.ENGINE)
    with pytest.raises(MissingRequirementError, match="none of onnxruntime"):
        find_subjects([engine], ("onnxruntime",))
    with pytest.raises(UsageError, match="there is no artifact"):
        find_subjects([], ("onnxruntime",))


def test_inputs_follow_the_graph(make_artifact: Make) -> None:
    artifact = make_artifact()
    seen: list[Any] = []
    session: Any = SimpleNamespace(
        inputs=artifact.manifest.graphs[0].inputs, max_batch=4, run=lambda feeds: seen.append(feeds)
    )
    random_call(session, 3)()
    assert seen[0]["pixels"].shape == (3, 3, 8, 8)
    assert seen[0]["pixels"].dtype == np.float32
    with pytest.raises(UsageError, match="batches up to 4, not 5"):
        random_call(session, 5)


def test_the_machine_is_described() -> None:
    found = machine.machine()
    assert found["cpu"] == machine.cpu_model() != ""
    assert found["memory_bytes"] > MIB
    assert found["onnxruntime"]
    assert json.dumps(found)
    assert machine.memory_budget_bytes() > 0
    high_water = peak.high_water_bytes()
    assert high_water is None or high_water > 10 * MIB
