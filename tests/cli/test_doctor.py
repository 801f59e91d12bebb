"""`mmcompress doctor`: what works here, and what to install for what does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmcompress.cli import doctor

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
