"""What a container leaves of a machine: trees of text files as cgroup v1 and v2 have them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import system_tree

from mmcompress.cli import main as program
from mmcompress.runtime import container
from mmcompress.runtime.machine import memory_bytes, memory_free, usable_cores

GIB = 1 << 30
NESTED = "0::/machine.slice/box.scope"


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty tree, of whose root the process is a member until `member` says otherwise."""
    monkeypatch.setattr(container, "GROUPS", tmp_path)
    member("0::/", tmp_path, monkeypatch)
    return tmp_path


def member(lines: str, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system_tree.write(tree, {"membership": lines})
    monkeypatch.setattr(container, "MEMBERSHIP", tree / "membership")


def test_nothing_limits_a_process_in_no_container(groups: Path) -> None:
    assert (container.cpu_quota(), container.memory_limit(), container.memory_left()) == (None, None, None)
    system_tree.write(groups, {"cpu.max": "max 100000", "memory.max": "max"})
    assert (container.cpu_quota(), container.memory_limit(), container.memory_left()) == (None, None, None)
    v1 = {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}
    system_tree.write(groups, {**v1, "memory/memory.limit_in_bytes": "9223372036854771712"})
    assert (container.cpu_quota(), container.memory_limit(), container.memory_left()) == (None, None, None)


@pytest.mark.parametrize(("quota", "cores"), [("150000 100000", 1), ("50000 100000", 1), ("200000 100000", 2)])
def test_whole_cores_of_a_quota_are_used(groups: Path, quota: str, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    system_tree.write(groups, {"cpu.max": quota})
    assert container.cpu_quota() == int(quota.split()[0]) / 100000
    assert usable_cores() == cores


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
def test_limits_of_v1(groups: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    member("4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc", groups, monkeypatch)
    here = {f"{folder}/cpu.cfs_quota_us": "100000", f"{folder}/cpu.cfs_period_us": "100000"}
    pages = f"cache 1\ntotal_inactive_file {GIB // 4}"
    memory = {"limit_in_bytes": str(GIB), "usage_in_bytes": str(GIB // 2), "stat": pages}
    system_tree.write(groups, {**here, **{f"memory/memory.{name}": text for name, text in memory.items()}})
    assert usable_cores() == 1
    assert memory_bytes() == GIB
    assert memory_free() == container.memory_left() == GIB * 3 // 4, "file pages that can go are free"


def test_the_tightest_group_on_the_way_to_the_root_counts(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    member(NESTED, groups, monkeypatch)
    scope = "machine.slice/box.scope"
    system_tree.write(groups, {"machine.slice/cpu.max": "100000 100000", f"{scope}/cpu.max": "400000 100000"})
    system_tree.write(groups, {"machine.slice/memory.max": str(4 * GIB), f"{scope}/memory.max": str(2 * GIB)})
    system_tree.write(groups, {"machine.slice/memory.current": str(4 * GIB), f"{scope}/memory.current": "0"})
    system_tree.write(groups, {"other.slice/cpu.max": "10000 100000"})
    assert container.cpu_quota() == 1
    assert container.memory_limit() == 2 * GIB
    assert container.memory_left() == 0, "those beside it have used up what the slice has"


def test_a_way_that_the_container_does_not_see_is_passed_by(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    member("0::/../../elsewhere", groups, monkeypatch)
    system_tree.write(groups, {"cpu.max": "100000 100000"})
    assert container.cpu_quota() == 1
    member("0::/docker/abc", groups, monkeypatch)
    assert container.cpu_quota() == 1


def test_openmp_gets_as_many_threads(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system_tree.write(groups, {"cpu.max": "350000 100000"})
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    monkeypatch.setattr("os.environ", environment)
    monkeypatch.setattr("sys.argv", ["mmcompress", "--version"])
    with pytest.raises(SystemExit):
        program.main()
    assert environment["OMP_NUM_THREADS"] == "3"
