"""The measuring loop on stand-in sessions: orders, memory, warm-up. None depends on the machine's speed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmcompress.manifest import TensorSpec
from mmcompress.measure import interleave
from mmcompress.measure.interleave import Record, SessionPool, add_round, burst, warm_up

PIXELS = TensorSpec(name="pixels", shape=(None, 3), dtype="float32")


class Side:
    """A contender that writes down when it is opened, run and closed."""

    def __init__(self, name: str, log: list[str], memory_bytes: int = 1) -> None:
        self.name, self.log, self.memory_bytes = name, log, memory_bytes

    def open(self) -> Any:
        self.log.append(f"open {self.name}")

        def run(feeds: dict[str, Any]) -> None:
            self.log.append(f"{self.name}{len(feeds['pixels'])}")

        def close() -> None:
            self.log.append(f"close {self.name}")

        return SimpleNamespace(inputs=(PIXELS,), max_batch=None, device="CPU", run=run, close=close)


def visits(log: list[str]) -> list[str]:
    """The log without repetitions."""
    return [entry for index, entry in enumerate(log) if index == 0 or entry != log[index - 1]]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interleave, "VISIT_S", 0.0)
    monkeypatch.setattr(interleave, "WARM_UP_S", 0.0)


@pytest.mark.usefixtures("short")
def test_a_round_opens_all_anew_and_goes_there_and_back() -> None:
    log: list[str] = []
    sides = [Side(name, log) for name in "abc"]
    combinations = [(side, batch) for side in sides for batch in (1, 4)]
    records = [Record() for _ in combinations]
    for number in range(3):
        log.clear()
        add_round(records, combinations, 1e-9, number, lambda: log.append("look"))
        assert log.pop(-4) == "look", "once, behind the last call and before sessions close"
        assert sorted(log[:3]) == ["open a", "open b", "open c"]
        assert sorted(log[-3:]) == ["close a", "close b", "close c"]
        seen = visits(log[3:-3])  # the middle one of a pass and of its mirror image follow each other
        assert [name[1] for name in seen] in (list("1" * 5 + "4" * 5), list("4" * 5 + "1" * 5))
        for half in (seen[:5], seen[5:]):
            assert half == half[::-1] and len(set(half)) == 3
    assert [len(record.rounds) for record in records] == [3] * 6
    assert all(len(passes) == 2 for record in records for passes in record.rounds)
    assert all(start.device == "CPU" and start.load_ms is not None for record in records for start in record.starts)


@pytest.mark.usefixtures("short")
def test_orders_are_balanced_over_rounds() -> None:
    log: list[str] = []
    sides = [Side(name, log) for name in "ab"]
    first = []
    for seed in range(64):
        log.clear()
        add_round([Record(), Record()], [(side, 1) for side in sides], 1e-9, seed)
        first.append((log[0], log[2]))
    opened_first = sum(opened == "open a" for opened, _ in first)
    ran_first = sum(ran == "a1" for _, ran in first)
    assert 16 < opened_first < 48 and 16 < ran_first < 48


@pytest.mark.usefixtures("short")
def test_sessions_stay_within_the_memory_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    a, b, c = (Side(name, log, 50) for name in "abc")
    pool = SessionPool(100)
    assert pool.holds([a, b]) and not pool.holds([a, b, c])
    with pool:
        for side in (a, b, a, c, b):
            pool.open(side)
        assert log == ["open a", "open b", "close b", "open c", "close a", "open b"]
    assert log[-2:] == ["close c", "close b"]
    log.clear()
    monkeypatch.setattr(interleave, "memory_budget_bytes", lambda: 1)
    records = [Record(), Record()]
    add_round(records, [(a, 1), (b, 1)], 1e-9, 0)
    assert [entry for entry in log if " " in entry] in (
        ["open a", "close a", "open b", "close b"],
        ["open b", "close b", "open a", "close a"],
    )
    assert [len(record.rounds[0]) for record in records] == [1, 1]


def clock(monkeypatch: pytest.MonkeyPatch, calls_s: Iterator[float]) -> Any:
    """A call that lets a false clock pass by the next of these seconds."""
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr(time, "monotonic", lambda: now.s)
    monkeypatch.setattr(time, "perf_counter_ns", lambda: int(1e9 * now.s))
    monkeypatch.setattr(time, "sleep", lambda _: None)

    def call() -> None:
        now.s += next(calls_s)

    return call


def test_a_burst_drops_a_short_cold_call_and_counts_a_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    times = burst(clock(monkeypatch, iter([0.015, *[0.002] * 9])), 0.020)
    np.testing.assert_allclose(times, [2, 2, 2], atol=1e-3)
    assert burst(clock(monkeypatch, iter([0.5])), 0.003).tolist() == pytest.approx([500])
    assert burst(clock(monkeypatch, iter([0.01, 0.005])), 0.003).tolist() == pytest.approx([5], abs=1e-3)


def test_warm_up_ends_when_calls_are_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interleave, "WARM_UP_S", 1.0)
    assert warm_up(clock(monkeypatch, iter([0.03, 0.02, 0.01, *[0.005] * 9]))) == 6
    assert warm_up(clock(monkeypatch, iter([0.6, 0.6]))) == 2
