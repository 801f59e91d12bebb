"""What Linux says of a machine, from trees in the layout of a PC and of a Jetson Orin, and what follows from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from system_tree import write

from mmcompress.runtime import conditions
from mmcompress.runtime.conditions import Conditions, Snapshot, Ticks, noise, shares, snapshot, warnings
from mmcompress.runtime.environment import Noise
from mmcompress.runtime.gpuclocks import GpuWatch


def test_a_pc(tmp_path: Path) -> None:
    cpu = "sys/devices/system/cpu"
    root = write(
        tmp_path,
        {
            f"{cpu}/cpu0/cpufreq/scaling_governor": "powersave",
            f"{cpu}/cpu0/cpufreq/scaling_cur_freq": "3400000",
            f"{cpu}/cpu1/cpufreq/scaling_cur_freq": "3600000",
            f"{cpu}/cpu0/thermal_throttle/core_throttle_count": "9",
            f"{cpu}/cpu0/thermal_throttle/corethrottle_count": "3",
            f"{cpu}/cpu1/thermal_throttle/corethrottle_count": "4",
            "sys/class/thermal/thermal_zone0/temp": "48000",
            "sys/class/thermal/thermal_zone1/temp": "-274000",
            "sys/class/hwmon/hwmon2/temp1_input": "61500",
            "sys/firmware/acpi/platform_profile": "balanced",
            "proc/stat": "cpu  100 5 20 800 30 1 2 42 7 0\ncpu0 1 2 3",
        },
    )
    assert conditions.governor(root) == "powersave"
    assert conditions.clocks_mhz(root) == [3400, 3600]
    assert conditions.throttle_count(root) == 7
    assert conditions.temperature_c(root) == 61.5
    assert conditions.power_mode(root) == "balanced"
    assert conditions.cpu_ticks(root) == Ticks(total=1000, busy=170, stolen=42)
    found = snapshot(root=root)
    assert (found.throttles, found.temperature_c, found.clocks_mhz) == (7, 61.5, [3400, 3600])


def test_a_jetson(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "var/lib/nvpmodel/status": "pmode:0002",
            "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=2 NAME=15W >",
            "sys/class/hwmon/hwmon0/oc1_event_cnt": "2",
            "sys/class/hwmon/hwmon0/oc3_event_cnt": "5",
        },
    )
    assert conditions.power_mode(root) == "nvpmodel 2 (15W)"
    assert conditions.throttle_count(root) == 7


def test_a_virtual_machine_says_little(tmp_path: Path) -> None:
    root = write(
        tmp_path, {"proc/cpuinfo": "processor\t: 0\ncpu MHz\t\t: 2445.426\n\nprocessor\t: 1\ncpu MHz\t\t: 2400.0"}
    )
    assert conditions.clocks_mhz(root) == [2445.426, 2400]
    nothing = snapshot(root=tmp_path / "empty")
    assert (nothing.ticks, nothing.clocks_mhz, nothing.temperature_c, nothing.throttles) == (None, [], None, None)
    assert conditions.governor(root) is None and conditions.power_mode(root) is None
    assert shares(nothing, nothing, 2) == (None, None)


BEFORE = Snapshot(10.0, 5.0, Ticks(1000, 500, 0), [3000.0, 3000.0], 40.0, 0.2, 1)
AFTER = Snapshot(20.0, 15.0, Ticks(3000, 2000, 100), [2900.0, 2900.0], 70.0, 2.2, 1)


def test_shares_of_the_processor() -> None:
    """10 s of 2 cores are 2,000 ticks; 1,500 were busy: 1,000 by us in 10 s, 100 stolen, 400 by others."""
    assert shares(BEFORE, AFTER, 2) == pytest.approx((0.2, 0.05))


def test_a_noisy_machine_says_why() -> None:
    quiet = noise([0.01, 0.02, 0.2], 0.05, 0.0, priority=False)
    assert quiet == Noise(level=0.02, noisy=False, reason=None)
    assert noise([0.02], 0.4, 0.0, priority=True).noisy is False
    loud = noise([0.08], 0.4, 0.03, priority=False)
    assert loud.reason == (
        "equal rounds differ by 8%; other programs took 40% of the processor; "
        "the hypervisor gave 3% of the processor to other machines"
    )


def test_throttling_is_told_by_counters_and_by_the_gpu() -> None:
    assert Conditions(BEFORE, AFTER, False, None).throttled is False
    assert Conditions(BEFORE, replace(AFTER, throttles=2), False, None).throttled is True
    assert Conditions(BEFORE, replace(AFTER, throttles=None), False, None).throttled is None
    assert (
        Conditions(BEFORE, replace(AFTER, throttles=None), False, None, GpuWatch(slowdowns={"heat"})).throttled is True
    )


def test_what_a_reader_is_warned_of() -> None:
    quiet = Noise(level=0.0, noisy=False, reason=None)
    assert warnings(BEFORE, AFTER, quiet, None, ()) == []
    loud = Noise(level=0.08, noisy=True, reason="equal rounds differ by 8%")
    slow = replace(AFTER, clocks_mhz=[1500.0, 1500.0])
    found = warnings(BEFORE, slow, loud, True, ("power cap", "heat"))
    assert found[0].startswith("The machine was noisy: equal rounds differ by 8%.")
    assert "forced down while this was measured (power cap, heat)" in found[1]
    assert found[2] == "The clocks fell from 3000 to 1500 MHz while this was measured."


def test_the_document_has_what_the_report_shows() -> None:
    found = Conditions(BEFORE, AFTER, True, (0, 1)).meanwhile([0.01], 2).model_dump(mode="json")
    assert found["pinned_cores"] == [0, 1]
    assert found["priority"] == "real-time"
    assert found["clocks_mhz"] == {"before": [3000.0, 3000.0], "after": [2900.0, 2900.0]}
    assert found["temperature_c"] == {"before": 40.0, "after": 70.0}
    assert (found["load_average_before"], found["load_average_after"]) == (0.2, 2.2)
    assert found["noise"]["noisy"] is True and "hypervisor gave 5%" in found["warnings"][0]
