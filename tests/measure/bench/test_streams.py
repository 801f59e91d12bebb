"""Concurrent requests: everything runs at the same time, is counted, and fails loudly."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from stand_in_driver import Driver
from stand_in_tensorrt import GRAPH, TensorRT

from mmcompress.artifact import Artifact
from mmcompress.measure.bench.streams import concurrently, timed_streams
from mmcompress.runtime.backends import open_session
from mmcompress.runtime.enginesession import TensorRTSession
from mmcompress.runtime.libcuda import LibCuda


def test_calls_run_at_the_same_time() -> None:
    """Three calls that only return when all three are inside."""
    meeting = threading.Barrier(3, timeout=20)
    times, elapsed_s = concurrently([meeting.wait] * 3, 0.0)
    assert [len(one) for one in times] == [1, 1, 1]
    assert elapsed_s > 0


def test_a_failure_in_a_stream_is_raised() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        concurrently([fail, lambda: None], 0.0)


def test_throughput_counts_all_streams(make_artifact: Callable[..., Artifact]) -> None:
    artifact = make_artifact()
    graph = artifact.manifest.graphs[0]
    rounds, batches_per_s, device = timed_streams(
        lambda: open_session(artifact, graph, "onnxruntime", threads=1), 2, 4, 0.06, rounds=3, seed=0
    )
    assert [len(one) for one in rounds] == [2, 2, 2]
    calls = sum(len(times) for one in rounds for times in one)
    assert 0 < batches_per_s <= calls / 0.06
    assert device == "CPU"


def test_streams_on_a_gpu_share_one_engine(driver: Driver) -> None:
    trt = TensorRT(driver)
    opened = []

    def open_engine() -> TensorRTSession:
        opened.append(TensorRTSession.load(trt, b"plan", GRAPH, LibCuda(driver.library)))  # type: ignore[arg-type]
        return opened[-1]

    rounds, _, device = timed_streams(open_engine, 3, 2, 0.05, rounds=2, seed=0)
    assert len(opened) == 1 and device == "NVIDIA Stand-in 89"
    assert [len(one) for one in rounds] == [3, 3]
    assert trt.faults == [] and driver.live() == {}
