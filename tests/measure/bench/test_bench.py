"""The benchmark's arithmetic against plain numpy, and the stage on toy graphs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from stand_in_driver import Driver
from stand_in_tensorrt import GRAPH, TensorRT

from mmcompress.architecture import ImageConfig
from mmcompress.artifact import Artifact
from mmcompress.config import BenchConfig
from mmcompress.errors import MissingRequirementError, UsageError
from mmcompress.manifest import Kind
from mmcompress.measure import interleave, peak
from mmcompress.measure.bench import bench as latency
from mmcompress.measure.bench.bench import Timed, bench, ratios
from mmcompress.measure.bench.document import Run
from mmcompress.measure.bench.energy import Counter
from mmcompress.measure.document import Ceiling
from mmcompress.measure.interleave import Record
from mmcompress.measure.peak import peaks, random_call
from mmcompress.measure.subjects import Subject, find_subjects
from mmcompress.runtime import machine
from mmcompress.runtime.enginesession import TensorRTSession
from mmcompress.runtime.libcuda import LibCuda

Make = Callable[..., Artifact]
MIB = 1 << 20


def test_where_a_call_on_a_gpu_spends_its_time(driver: Driver) -> None:
    """On stand-ins, whose events count operations: the copy in, the engine and the copy out are two each."""
    sessions = []

    def opened() -> TensorRTSession:
        sessions.append(TensorRTSession.load(TensorRT(driver), b"plan", GRAPH, LibCuda(driver.library)))  # type: ignore[arg-type]
        return sessions[-1]

    on_gpu = cast(Subject, SimpleNamespace(threads=None, open=opened))
    phases = latency.phases_of(Timed(on_gpu, 2, 1, Record()))
    assert phases is not None and phases.enqueue_ms > 0
    assert (phases.copy_in_ms, phases.gpu_ms, phases.copy_out_ms) == (2, 2, 2)
    assert driver.live() == {}
    assert latency.phases_of(Timed(on_gpu, 2, 2, Record())) is None and len(sessions) == 1
    assert latency.phases_of(Timed(cast(Subject, SimpleNamespace(threads=1)), 2, 1, Record())) is None


def test_the_stage_measures_every_combination(
    make_artifact: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interleave, "WARM_UP_S", 0.01)
    monkeypatch.setattr(latency, "ALONE_S", 0.01)
    monkeypatch.setattr(latency, "ceilings", known_ceilings)
    artifacts = (
        make_artifact("teacher", facts={"macs": 1000}),
        make_artifact("student"),
        make_artifact("int8", precisions=("int8",)),
    )
    config = BenchConfig(batches=(1, 4), threads=(1,), seconds=0.05, rounds=4, photo=(32, 24))
    bench(cast(Any, SimpleNamespace(config=config, gathered=artifacts, draft=SimpleNamespace(path=tmp_path))))
    report = json.loads((tmp_path / "bench.json").read_text())
    assert [row["row"] for row in report["rows"]] == ["teacher", "student", "int8"]
    for row in report["rows"]:
        measured = [(one["backend"], one["batch"]) for one in row["latency"]]
        assert measured == [("onnxruntime", 1), ("onnxruntime", 4), ("openvino", 1), ("openvino", 4)]
        for one in row["latency"]:
            assert one["precision"] == ("int8" if row["row"] == "int8" else "fp32")
            assert one["activations"] == ("unsigned" if row["row"] == "int8" else "float")
            assert 0 < one["p50_ms"] <= one["p90_ms"] <= one["p95_ms"] <= one["p99_ms"]
            assert one["throughput_ips"] == pytest.approx(1000 * one["batch"] / one["mean_ms"])
            assert 20 * MIB < one["peak_bytes"] < 1000 * MIB
            assert one["samples"] == sum(one["histogram"]["counts"]) >= len(one["rounds_ms"]) == 4
            assert one["load_ms"] > 0 and one["first_ms"] > 0
            assert (one["energy_mj"], one["energy_source"], one["device_peak_bytes"]) == (None, None, None)
            assert (one["threads"], one["streams"]) == (1, 1)
            assert one["device"] == machine.cpu_model()
            assert one["pipeline"]["input_ms"] < one["pipeline"]["together_ms"]
            share = 1000 * one["batch"] / one["p50_ms"] / 1e9
            assert one["ceiling_share"] == (pytest.approx(1000 * share / 50) if row["row"] == "teacher" else None)
    assert report["ceiling"] == [
        ceiling.model_dump(mode="json")
        for ceiling in known_ceilings([("onnxruntime", "fp32", 1), ("openvino", "fp32", 1)])[0]
    ]
    environment = report["environment"]
    assert environment["cpu"] and environment["cores"] >= 1
    assert environment["priority"] in ("real-time", "normal")
    assert set(environment["noise"]) == {"level", "noisy", "reason"}
    assert environment["warnings"][-1] == "No ceiling of int8."


def known_ceilings(kernels: Any) -> tuple[list[Ceiling], list[str]]:
    fp32 = [kernel for kernel in dict.fromkeys(kernels) if kernel[1] == "fp32"]
    known = {"device": "EPYC", "gmacs_per_s": 50.0, "shape": (8, 8, 8)}
    names = ("backend", "precision", "threads")
    ceilings = [Ceiling.model_validate({**dict(zip(names, kernel, strict=True)), **known}) for kernel in fp32]
    return ceilings, ["No ceiling of int8."]


def test_ratios_are_of_the_pairs_that_readers_ask_for(make_artifact: Make) -> None:
    """The times are exact, so each ratio is the quotient of what was put in."""
    rows = {"teacher": ("fp32", 8.0), "student": ("fp32", 4.0), "int8": ("int8", 1.0)}
    measured = []
    for backend, factor in (("onnxruntime", 1.0), ("openvino", 0.5)):
        for name, (precision, milliseconds) in rows.items():
            artifact = SimpleNamespace(path=Path(name), manifest=None)
            subject: Any = SimpleNamespace(artifact=artifact, backend=backend, threads=2, graph=None)
            subject.graph = SimpleNamespace(precision=precision)
            subject.run = Run.model_validate({"row": name, "backend": backend, "precision": precision})
            measured.append(Timed(subject, 1, 1, Record([[np.full(3, milliseconds * factor)]] * 5)))
    same = {name: next(m.subject.artifact for m in measured if m.subject.artifact.path.name == name) for name in rows}
    for entry in measured:
        entry.subject.artifact = same[entry.subject.artifact.path.name]  # type: ignore[misc]
    in_row_order = sorted(measured, key=lambda entry: list(rows).index(entry.subject.artifact.path.name))
    found = {
        (tuple(dict(one.numerator).values()), tuple(dict(one.denominator).values())): one.speedup
        for one in ratios(in_row_order, 2, 0)
    }
    ort, ov = "onnxruntime", "openvino"
    assert found == pytest.approx(
        {
            (("student", ort, "fp32"), ("teacher", ort, "fp32")): 2,
            (("student", ov, "fp32"), ("teacher", ov, "fp32")): 2,
            (("int8", ort, "int8"), ("teacher", ort, "fp32")): 8,
            (("int8", ort, "int8"), ("student", ort, "fp32")): 4,
            (("int8", ov, "int8"), ("teacher", ort, "fp32")): 16,
            (("int8", ov, "int8"), ("student", ov, "fp32")): 4,
        }
    )
    assert ratios(in_row_order, 1, 0) == []


def test_threads_and_streams_are_swept(make_artifact: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "with_peaks", lambda subjects, batches: subjects)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    config = BenchConfig(
        backends=("onnxruntime",),
        batches=(2,),
        threads=(1, 2),
        streams=(2,),
        seconds=0.02,
        rounds=4,
        priority=False,
        photo=None,
        ceiling=False,
    )
    report = latency.bench_document((make_artifact(),), config)
    entries = report.rows[0].latency
    assert [(one.threads, one.streams) for one in entries] == [(1, 1), (2, 1), (2, 2)]
    for one in entries:
        assert len(one.rounds_ms) == 4 and one.throughput_ips > 0
        assert one.pipeline is None and one.ceiling_share is None
        assert (one.load_ms is None) == (one.streams == 2)
    assert report.environment.priority == "normal"


def test_energy_is_measured_where_there_is_a_meter(make_artifact: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = make_artifact()
    subject = Subject(artifact, artifact.manifest.graphs[0], "onnxruntime", 1)
    monkeypatch.setattr(latency, "ENERGY_S", 0.0)
    joules = iter([5.0, 9.0])
    monkeypatch.setattr(latency, "find_meter", lambda gpu, on_gpu: Counter("rapl", lambda: next(joules)))
    source, millijoules = latency.energy_of(Timed(subject, 4, 1, Record()), None)
    assert (source, millijoules) == ("rapl", pytest.approx(1000.0))


def test_macs_are_those_of_the_graph() -> None:
    """The last block of an exported tower has one query: written out for one block of 5 tokens."""
    image = ImageConfig(width=8, head_dim=4, heads=(2,), mlp=(16,), image_size=8, patch=4)
    keys_values = 5 * 8 * 16
    one_token = 8 * 8 + 2 * 5 * 8 + 8 * 8 + 2 * 8 * 16
    assert image.pooled_macs(6) == 4 * 3 * 16 * 8 + keys_values + one_token + 8 * 6


def test_peak_memory_is_the_childs_own(make_artifact: Make) -> None:
    """Linux' ru_maxrss of a child starts at its parent's peak; this parent holds 600 MiB."""
    artifact = make_artifact()
    held = np.ones(600 * MIB // 8)
    found = peaks(artifact.path, "image-fp32.onnx", "onnxruntime", 1, (8, 1))
    assert held[-1] == 1
    assert list(found) == [1, 8]
    assert 20 * MIB < (found[1].process or 0) <= (found[8].process or 0) < 500 * MIB
    assert found[1].device is None


def test_an_unknown_peak_is_said(make_artifact: Make, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = make_artifact()
    artifact.file("image-fp32.onnx").write_bytes(b"damaged")
    assert peaks(artifact.path, "image-fp32.onnx", "onnxruntime", 1, (1,)) == {}
    said = "".join(capsys.readouterr().err.split())  # rich breaks lines anywhere
    assert "peakmemoryononnxruntimeisunknown" in said
    assert "image-fp32.onnxisdamaged" in said


def test_what_does_not_run_here_is_left_out_and_said(
    make_artifact: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = make_artifact(precisions=("fp32", "fp16", "int8"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    subjects = find_subjects([artifact], ("onnxruntime", "openvino"), (2,))
    assert [subject.run.model_dump() for subject in subjects] == [
        {"row": "student", "backend": "onnxruntime", "precision": "fp32"},
        {"row": "student", "backend": "onnxruntime", "precision": "int8"},
    ]
    assert "openvino is left out: this needs the Python package 'openvino'" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(MissingRequirementError, match="none of openvino can run any of the graphs") as caught:
        find_subjects([artifact], ("openvino",), (2,))
    assert caught.value.exit_code == 3
    engine = make_artifact("engine", kind=Kind.ENGINE)
    with pytest.raises(MissingRequirementError, match="none of onnxruntime"):
        find_subjects([engine], ("onnxruntime",), (2,))
    with pytest.raises(UsageError, match="there is no artifact"):
        find_subjects([], ("onnxruntime",), (2,))


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
    assert found.cpu == machine.cpu_model() != ""
    assert found.memory_bytes > MIB
    assert found.onnxruntime
    assert "tensorrt" not in found.model_dump() and found.tensorrt is None
    assert machine.memory_budget_bytes() > 0
    high_water = peak.high_water_bytes()
    assert high_water is None or high_water > 10 * MIB


@pytest.mark.parametrize("key", ["batches", "threads", "streams", "photo"])
def test_counts_are_above_zero(key: str) -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        BenchConfig.model_validate({key: [0, 1]})


@pytest.mark.parametrize(
    ("key", "said", "what"),
    [
        ("batches", [1, 8, 1], "expected each once, and 1 is there twice"),
        ("threads", [2, 2], "expected each once, and 2 is there twice"),
        ("streams", [2, 2], "expected each once, and 2 is there twice"),
        ("backends", ["openvino", "openvino"], "expected each once, and openvino is there twice"),
        ("streams", [1, 2], "one request at a time is measured in any case"),
    ],
)
def test_nothing_is_measured_twice(key: str, said: list[Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        BenchConfig.model_validate({key: said})


@pytest.mark.parametrize("command", [("bench",), ("drift", "--data", "demo:test")])
def test_what_can_be_no_row_is_refused_before_data_is_read_or_a_teacher_exported(
    cli: Callable[..., Any], make_artifact: Make, tmp_path: Path, tiny_clip_folder: Path, command: tuple[str, ...]
) -> None:
    other = make_artifact("index", kind=Kind.INDEX).path
    command = tuple(word.replace("demo:test", "nowhere") for word in command)
    done = cli(*command, tiny_clip_folder, other, "--out", tmp_path / "out")
    assert done.code == 2 and f"{other} is an artifact of kind 'index'" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


@pytest.mark.parametrize("data", [(), ("--data", "nowhere")])
def test_what_no_graph_allows_is_said_before_data_is_asked_for(
    cli: Callable[..., Any], make_artifact: Make, tmp_path: Path, data: tuple[str, ...]
) -> None:
    int8 = make_artifact("int8", precisions=("int8",)).path
    for command in ("quantize", "verdict"):
        done = cli(command, int8, *data, "--out", tmp_path / "out")
        assert done.code == 2 and f"{int8} has no image graph in fp32" in done.err, done.err
    done = cli("bisect", int8, int8, *(data or ("--data", "nowhere")), "--out", tmp_path / "out")
    assert done.code == 2 and f"{int8} cannot be bisected: its graphs are a teacher's own" in done.err


@pytest.mark.parametrize("command", [("bench",), ("drift", "--data", "demo:test")])
def test_rows_of_one_name_are_refused(
    cli: Callable[..., Any], make_artifact: Callable[..., Artifact], tmp_path: Path, command: tuple[str, ...]
) -> None:
    made = [make_artifact(f"{name}/int8", kind=Kind.ONNX).path for name in "ab"]
    for named in (made, [made[0], made[0]]):
        done = cli(*command, *named, "--out", tmp_path / "out")
        assert done.code == 2 and "have one name, and rows of a measurement are told apart by it" in done.err
        assert not (tmp_path / "out").exists()
