"""Joules from trees in the layout of RAPL and of a Jetson's INA3221, and from lines as tegrastats prints them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from system_tree import write

from mmcompress.measure.bench import energy
from mmcompress.measure.bench.energy import (
    Counter,
    Rapl,
    Sampler,
    energy_mj,
    find_meter,
    ina_rails,
    ina_watts,
    integrated,
    rapl_zones,
    tegrastats_watts,
    wrapped,
)

ORIN = (
    "11-24-2026 10:00:00 RAM 2345/7844MB (lfb 4x4MB) SWAP 0/3922MB (cached 0MB) CPU [12%@1510,8%@1510,off,off] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 61%@624 cpu@48.5C gpu@47C tj@48.5C VDD_IN 7123mW/6800mW "
    "VDD_CPU_GPU_CV 2345mW/2100mW VDD_SOC 1500mW/1490mW"
)
AGX = (
    "RAM 1000/30000MB CPU [1%@1200] GR3D_FREQ 0% "
    "VDD_GPU_SOC 3000mW/2900mW VDD_CPU_CV 1000mW/1000mW VIN_SYS_5V0 4000mW/4000mW"
)
NANO = (
    "RAM 500/3964MB (lfb 5x1MB) IRAM 0/252kB(lfb 252kB) CPU [0%@102] "
    "POM_5V_IN 2532/2500 POM_5V_GPU 40/40 POM_5V_CPU 321/300"
)


@pytest.mark.parametrize(("line", "watts"), [(ORIN, 7.123), (AGX, 8.0), (NANO, 2.532), ("RAM 1/2MB", None), ("", None)])
def test_tegrastats_lines(line: str, watts: float | None) -> None:
    assert tegrastats_watts(line) == (None if watts is None else pytest.approx(watts))


def rapl(root: Path, first: str = "262143328000", second: str = "1000") -> Path:
    zone = "sys/class/powercap/intel-rapl"
    return write(
        root,
        {
            f"{zone}:0/name": "package-0",
            f"{zone}:0/energy_uj": first,
            f"{zone}:0/max_energy_range_uj": "262143328850",
            f"{zone}:1/name": "package-1",
            f"{zone}:1/energy_uj": second,
            f"{zone}:1/max_energy_range_uj": "262143328850",
            f"{zone}:0:0/name": "core",
            f"{zone}:0:0/energy_uj": "5",
            f"{zone}:0:0/max_energy_range_uj": "262143328850",
            f"{zone}:2/name": "psys",
            f"{zone}:2/energy_uj": "5",
            f"{zone}:2/max_energy_range_uj": "262143328850",
        },
    )


def test_rapl_adds_packages_and_survives_a_wrap(tmp_path: Path) -> None:
    zones = rapl_zones(rapl(tmp_path))
    assert [zone.name for zone in zones] == ["intel-rapl:0", "intel-rapl:1"]
    found = Rapl(zones).joules(lambda: rapl(tmp_path, "1499149", "2001000") and None)
    assert found == pytest.approx(1.5 + 2.0)
    assert wrapped(10, 30, 99) == 20
    assert wrapped(90, 9, 99) == 19


def test_rapl_that_may_not_be_read_is_no_source(tmp_path: Path) -> None:
    root = rapl(tmp_path)
    zones = rapl_zones(root)
    for zone in zones:
        (zone / "energy_uj").unlink()
    assert rapl_zones(root) == []
    assert find_meter(None, on_gpu=False, root=root) is None
    assert Rapl(zones).joules(lambda: None) is None


def ina(root: Path) -> Path:
    rails = {1: ("VDD_IN", 5000, 1400), 2: ("VDD_CPU_GPU_CV", 5000, 300), 3: ("NC", 5000, 9)}
    files = {"sys/class/hwmon/hwmon1/name": "ina3221", "sys/class/hwmon/hwmon0/name": "tmp451"}
    for channel, (label, millivolts, milliamperes) in rails.items():
        files |= {
            f"sys/class/hwmon/hwmon1/in{channel}_label": label,
            f"sys/class/hwmon/hwmon1/in{channel}_input": str(millivolts),
            f"sys/class/hwmon/hwmon1/curr{channel}_input": str(milliamperes),
        }
    return write(root, files)


def test_the_rail_that_feeds_all_others_is_read(tmp_path: Path) -> None:
    root = ina(tmp_path)
    assert ina_watts(ina_rails(root)) == pytest.approx(7.0)
    write(root, {"sys/class/hwmon/hwmon1/in1_label": "VDD_GPU_SOC"})
    assert ina_watts(ina_rails(root)) == pytest.approx(8.5)
    meter = find_meter(None, on_gpu=True, root=root)
    assert meter is not None and meter.source == "ina"
    assert meter.joules(lambda: None) is not None


def test_a_thor_measures_in_front_of_module_and_carrier(tmp_path: Path) -> None:
    files = {
        "name": "ina238",
        "in0_input": "4",
        "in1_input": "20000",
        "curr1_input": "2500",
        "power1_input": "50000000",
    }
    root = write(ina(tmp_path), {f"sys/class/hwmon/hwmon3/{name}": text for name, text in files.items()})
    assert ina_watts(ina_rails(root)) == pytest.approx(50.0)


def test_power_is_integrated_by_trapezoids() -> None:
    """2 W for 1 s, then a rise from 2 to 6 W in 2 s, then 6 W for 1 s."""
    assert integrated([(1.0, 2.0), (3.0, 6.0)], 0.0, 4.0) == pytest.approx(2 + 8 + 6)
    assert integrated([(5.0, 3.0)], 0.0, 4.0) == pytest.approx(12)
    assert integrated([], 0.0, 4.0) is None
    assert Sampler("ina", lambda: None).joules(lambda: None) is None


def test_energy_is_of_one_input_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(energy.time, "monotonic", lambda: now.s)

    def call() -> None:
        now.s += 0.1

    meter = Counter("nvml", lambda: 20.0 * now.s)
    assert energy_mj(meter, call, batch=4, seconds=1.0) == pytest.approx(1000 * 20 * 0.1 / 4)
    assert energy_mj(None, call, batch=4, seconds=1.0) is None
    assert energy_mj(Counter("nvml", lambda: None), call, batch=4, seconds=1.0) is None


def test_a_gpu_counts_its_own_energy(tmp_path: Path) -> None:
    gpu: Any = SimpleNamespace(energy_j=lambda: 5.0)
    rapl(tmp_path)
    meters = [find_meter(gpu, on_gpu, tmp_path) for on_gpu in (True, False)]
    assert [meter.source for meter in meters if meter] == ["nvml", "rapl"]
    assert find_meter(None, on_gpu=True, root=tmp_path) is None
