"""The benchmarks of reliability on a few commands each: signals, full disks, silence, load, without a fault."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LIGHT = "pack,unpack,triton,data pack,data filter"


def told(name: str, *words: object) -> str:
    """What a benchmark printed, which found no fault."""
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_sessions_are_flat_in_memory_and_shared_by_threads(backend: str) -> None:
    pytest.importorskip(backend)
    assert "Threads got the same" in told("load", "--backend", backend, "--calls", 20_000, "--sessions", 20)


@pytest.mark.slow  # each needs a run of its own
@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals and no terminals")
def test_signals_full_disks_and_silence(tmp_path: Path) -> None:
    assert "10 signals; not as documented: 0." in told("signals", "--each", 1, "--work", tmp_path, "--commands", LIGHT)
    if os.geteuid() == 0:
        assert "Not as it should be: 0." in told("full_disks", "--work", tmp_path, "--commands", LIGHT)
    told("silence", "--work", tmp_path, "--commands", f"--help,no such command,{LIGHT}")
