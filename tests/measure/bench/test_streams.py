"""Concurrent requests: everything runs at the same time, is counted, and fails loudly."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from mmcompress.artifact import Artifact
from mmcompress.measure.bench.streams import concurrently, timed_streams
from mmcompress.runtime.backends import open_session


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
