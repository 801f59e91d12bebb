"""A GPU's clock while it works: of a card by a stand-in for NVML's handle, of a Jetson by a tree of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from system_tree import write

from mmcompress.runtime import gpuclocks
from mmcompress.runtime.conditions import Conditions, snapshot
from mmcompress.runtime.gpuclocks import GpuWatch, clock_warnings, jetson_mhz, watch_gpu


class Card:
    """A GPU that has one clock a look."""

    def __init__(self, *clocks: float | None, highest: float | None = 1980.0) -> None:
        self.clocks, self.highest = list(clocks), highest

    def clock_mhz(self) -> float | None:
        return self.clocks.pop(0)

    def highest_clock_mhz(self) -> float | None:
        return self.highest

    def slowdowns(self) -> list[str]:
        return ["heat"] if len(self.clocks) == 1 else []


def watched(*clocks: float | None, highest: float | None = 1980.0) -> GpuWatch:
    card: Any = Card(*clocks, highest=highest)
    watch = GpuWatch(card)
    for _ in clocks:
        watch.look()
    return watch


@pytest.mark.parametrize(
    ("clocks", "highest", "told"),
    [
        ((1980.0, 1950.0, 1980.0), 1980.0, []),
        ((1980.0, 1980.0, 1400.0), 1980.0, ["The GPU's clock was between 1400 and 1980 MHz while this was measured."]),
        ((990.0, 990.0), 1980.0, ["The GPU ran at 990 of 1980 MHz: locked clocks, a cap or a power mode hold it."]),
        ((990.0, 990.0), None, []),
        ((None, None), 1980.0, []),
    ],
)
def test_a_reader_is_told_of_changing_and_of_low_clocks(clocks: Any, highest: float | None, told: list[str]) -> None:
    assert clock_warnings(watched(*clocks, highest=highest).seen()) == told


def test_what_was_seen_is_recorded_with_the_conditions() -> None:
    now = snapshot()
    conditions = Conditions(now, now, False, None, watched(1400.0, 1980.0, 1960.0))
    meanwhile = conditions.meanwhile([0.0], 2)
    assert meanwhile.gpu_clocks_mhz is not None
    seen = meanwhile.gpu_clocks_mhz
    assert (seen.lowest, seen.usual, seen.highest, seen.possible) == (1400, 1960, 1980, 1980)
    assert conditions.throttled and "between 1400 and 1980 MHz" in meanwhile.warnings[-1]
    assert "forced down while this was measured (heat)" in " ".join(meanwhile.warnings)


def test_a_jetson_in_a_low_power_mode(tmp_path: Path) -> None:
    gpu = "sys/class/devfreq/17000000.gpu"
    files = {f"{gpu}/cur_freq": "624750000", f"{gpu}/max_freq": "1300500000"}
    root = write(tmp_path, {**files, "sys/class/devfreq/15480000.nvenc/cur_freq": "115200000"})
    assert jetson_mhz(root, "cur_freq") == 624.75
    watch = GpuWatch(None, root)
    watch.look()
    assert clock_warnings(watch.seen()) == [
        "The GPU ran at 625 of 1300 MHz: locked clocks, a cap or a power mode hold it."
    ]


def test_nothing_is_watched_where_only_cpus_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpuclocks, "open_gpu", lambda: pytest.fail("a GPU was asked"))
    watch = watch_gpu(engines=False)
    watch.look()
    assert watch.seen() is None and not watch.slowdowns
