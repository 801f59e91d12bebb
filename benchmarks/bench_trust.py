"""Can a ratio of `compare` and `bench` be believed? Equal things must come out equal, a slower one slower, ten times.

python benchmarks/bench_trust.py [runs/demo/recovered] [--tries 10] [--slower 0.05]

A against A: two copies of an artifact, each try a process of its own, through the command line. Slowed: a session that
waits for 5% of the median call after each one, by the same measuring loop, within this process. Bars, at batch 1: the
95% interval holds 1 in at least 9 of 10 tries and is at most 0.06 wide; the slowed copy is significant in at least 9 of
10.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.artifact import Artifact
from mmcompress.measure.compare import race, subject
from mmcompress.measure.subjects import Subject
from mmcompress.runtime.backends import CPU_BACKENDS
from mmcompress.runtime.machine import cpu_model, usable_cores
from mmcompress.runtime.scheduling import realtime
from mmcompress.runtime.session import Session

WIDEST = 0.06


@dataclass(frozen=True, eq=False)
class Slowed:
    """A contender whose every call takes some milliseconds longer."""

    subject: Subject
    delay_ms: float

    @property
    def memory_bytes(self) -> int:
        return self.subject.memory_bytes

    def open(self) -> Session:
        session: Any = self.subject.open()
        run = session.run

        def slowed(feeds: Any) -> dict[str, NDArray[Any]]:
            found: dict[str, NDArray[Any]] = run(feeds)
            end = time.perf_counter() + self.delay_ms / 1000
            while time.perf_counter() < end:
                pass
            return found

        session.run = slowed
        opened: Session = session
        return opened


Interval = tuple[float, float, float]
"""speedup, low, high"""


def equal_copies(artifact: Path, backend: str, tries: int) -> Iterator[tuple[Interval, float]]:
    """A against A through `mmcompress compare`, with the median call in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        copies = [shutil.copytree(artifact, Path(folder) / name) for name in "ab"]
        command = [sys.executable, "-m", "mmcompress", "compare", *map(str, copies), "--backend", backend, "--json"]
        for _ in range(tries):
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])["comparisons"][0]
            yield (found["speedup"], *found["ci95"]), found["a"]["p50_ms"]


def benched_copies(artifact: Path, tries: int) -> dict[str, list[Interval]]:
    """A against A through `mmcompress bench`, with its defaults: the ratios at batch 1, by backend."""
    found: dict[str, list[Interval]] = {}
    with tempfile.TemporaryDirectory() as folder:
        copies = [shutil.copytree(artifact, Path(folder) / name) for name in "ab"]
        for number in range(tries):
            out = Path(folder) / f"bench-{number}"
            command = [sys.executable, "-m", "mmcompress", "bench", *map(str, copies), "--out", str(out)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for ratio in json.loads((out / "bench.json").read_text(encoding="utf-8"))["ratios"]:
                if ratio["batch"] == 1:
                    interval = (ratio["speedup"], *ratio["ci95"])
                    found.setdefault(ratio["numerator"]["backend"], []).append(interval)
    return found


def slowed_copies(artifact: Path, backend: Any, tries: int, delay_ms: float) -> Iterator[Interval]:
    opened = Artifact.open(artifact)
    for number in range(tries):
        plain, other = (subject(opened, backend, None, None) for _ in range(2))
        with realtime():
            _, ratio = race(plain, Slowed(other, delay_ms), 1, 30.0, seed=number)
        yield ratio.speedup, ratio.low, ratio.high


def verdict(what: str, found: list[Interval], expected_equal: bool) -> bool:
    """One line of the table; whether its bars hold."""
    significant = sum(not low <= 1 <= high for _, low, high in found)
    widths = [high - low for _, low, high in found]
    good = len(found) - significant if expected_equal else significant
    holds = good >= 0.9 * len(found) and (not expected_equal or max(widths) <= WIDEST)
    means = f"{np.mean([speedup for speedup, _, _ in found]):.4f}"
    right = f"{good} of {len(found)} {'hold 1' if expected_equal else 'significant'}"
    print(
        f"{what:<36} {means:>8} {np.median(widths):>8.4f} {max(widths):>8.4f}  {right:<22} {'ok' if holds else 'FAIL'}"
    )
    return holds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, nargs="?", default=Path("runs/demo/recovered"))
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--slower", type=float, default=0.05)
    asked = parser.parse_args()
    if not asked.artifact.is_dir():
        print(f"skipped: there is no {asked.artifact}; make demo writes it")
        return 0
    print(f"{cpu_model()}, {usable_cores()} cores, load {os.getloadavg()[0]:.1f}; {asked.artifact.name}, batch 1")
    print(f"{'':<36} {'ratio':>8} {'width':>8} {'widest':>8}")
    holds = []
    for backend in CPU_BACKENDS:
        equal = list(equal_copies(asked.artifact, backend, asked.tries))
        median_ms = float(np.median([ms for _, ms in equal]))
        holds.append(verdict(f"A against A, {backend}, {median_ms:.2f} ms", [one for one, _ in equal], True))
        slowed = list(slowed_copies(asked.artifact, backend, asked.tries, asked.slower * median_ms))
        holds.append(verdict(f"A against A +{asked.slower:.0%}, {backend}", slowed, False))
    for backend, benched in benched_copies(asked.artifact, asked.tries).items():
        holds.append(verdict(f"A against A in bench, {backend}", benched, True))
    print(f"load {os.getloadavg()[0]:.1f}")
    return 0 if all(holds) else 1


if __name__ == "__main__":
    sys.exit(main())
