"""`mmcompress doctor`: what works here, and what to install for what does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmcompress.cli import doctor, requirements
from mmcompress.errors import MissingRequirementError

Cli = Callable[..., Any]


def test_doctor_names_what_is_missing(cli: Cli) -> None:
    found = json.loads(cli("doctor", "--json").out)
    assert {backend["name"] for backend in found["backends"]} == {"openvino", "onnxruntime", "tensorrt", "tensorrt-rtx"}
    assert all((backend["reason"] is None) == backend["usable"] for backend in found["backends"])
    assert {"compress", "openvino", "tensorrt-rtx", "pycuda"} <= {extra["name"] for extra in found["extras"]}
    shown = cli("doctor").out
    assert "pip install 'mmcompress[" in shown or all(not extra["missing"] for extra in found["extras"])


def test_doctor_reads_requirements_and_processor(tmp_path: Path) -> None:
    (extra,) = doctor.extras(
        [
            "numpy>=1.26",
            'no-such-package>=1; extra == "toy"',
            'no-such-engine; (platform_machine == "x86_64") and extra == "toy"',
            'pytest>=8; extra == "toy"',
            'mmcompress[toy]; extra == "all"',
        ]
    )
    assert extra.name == "toy"
    assert [(package.package, package.only) for package in extra.missing] == [
        ("no-such-package", None),
        ("no-such-engine", 'platform_machine == "x86_64"'),
    ]
    assert list(extra.installed) == ["pytest"]
    assert extra.command == "pip install 'mmcompress[toy]'"
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: X\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_int8\n")
    assert doctor.int8_instructions(cpuinfo) == ("AVX2", "AVX-512", "AVX-512 VNNI", "AMX INT8")
    assert doctor.int8_instructions(tmp_path / "none") is None


def test_a_backend_that_runs_is_checked_part_by_part(cli: Cli) -> None:
    done = cli("doctor", "--backend", "onnxruntime", "--json")
    assert done.code == 0
    checks = {check["what"]: check for check in json.loads(done.out)["checks"]}
    assert list(checks) == ["library", "processor", "memory", "swap", "cache", "hub cache", "disk"]
    assert checks["library"]["state"] == "ok" and checks["library"]["found"].startswith("onnxruntime 1.")
    assert all(check["mend"] for check in checks.values() if check["state"] == "fail")


def test_a_backend_that_cannot_run_ends_with_3(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise MissingRequirementError("there is no driver", "install one")

    monkeypatch.setattr(requirements, "open_cuda", missing)
    done = cli("doctor", "--backend", "tensorrt")
    assert done.code == 3 and "tensorrt cannot run here: " in done.err and "hint: " in done.err
    assert "there is no driver" in done.out and "install one" in done.out
    assert cli("doctor", "--backend", "tensort").code == 2


def test_checks_tell_what_to_mend(tmp_path: Path) -> None:
    gib = requirements.GIB
    states = [check.state for check in requirements.memory_checks(8 * gib, 4 * gib, 0, builds=True)]
    assert states == ["ok", "warn"]
    assert requirements.memory_checks(8 * gib, 4 * gib, 8 * gib, builds=True)[1].state == "ok"
    assert requirements.memory_checks(8 * gib, 4 * gib, 0, builds=False)[1].state == "ok"
    assert requirements.memory_checks(64 * gib, gib // 2, 0, builds=True)[0].state == "warn"
    assert requirements.power_check("nvpmodel 0 (MAXN)").state == "ok"
    assert "15W" in requirements.power_check("nvpmodel 2 (15W)").found
    assert requirements.power_check(None).state == "warn"
    assert requirements.processor_check("openvino", ("AVX2",)).state == "warn"
    assert requirements.processor_check("openvino", ("AVX2", "AVX-512 VNNI")).state == "ok"
    assert requirements.folder_check("disk", tmp_path / "not" / "there", None).found.startswith(str(tmp_path))
