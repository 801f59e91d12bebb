"""Send signals to every command at random moments, and look at how it ends and at what it leaves.

    python benchmarks/signals.py [--each 2] [--seed 0] [--commands quantize,prune] [--work DIR]

Each command (tests/worlds/every_command.py) runs to its end once, and then gets Ctrl-C as a terminal sends it, to all
of its processes, and SIGTERM, each `--each` times at a random moment. It has to end with the documented code and two
last lines, `error: …` and `hint: …`, with no traceback; nothing hidden may be left beside its output but work that the
same command goes on with, no lock beside what it read, nothing among the temporary files, and none of its processes.
Commands are forked from one process that has imported what they need, so that signals fall into work and not into
imports. Prints a table in Markdown; exits with 1 where anything was not so.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "worlds"))

import psutil
from every_command import WORDS, words, workplace
from kills import IMPORTED, forked, half_visible

from mmcompress.runtime.machine import cpu_model, usable_cores

LONGEST_S = 20.0
"""Moments lie within so many seconds of a command."""
SLOW_S = 10.0
"""What a command may take to end."""
OF_STAGES = {"run", "shrink"}
"""Commands whose output is a folder of artifacts, which keeps those that are finished."""
CODES = {signal.SIGINT: {130}, signal.SIGTERM: {143, 75}}


@dataclass
class Place:
    """Where commands write."""

    folder: Path
    world: Path
    whole: list[str] = field(default_factory=list)
    """What a command writes that no signal ends."""

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    @property
    def log(self) -> Path:
        return self.folder / "log"


def started(command: str, place: Place) -> int:
    """The process of a command that has begun, a group of its own; its output folder and temporary files are empty."""
    for folder in (place.out, place.scratch):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    place.log.write_bytes(b"")

    reading, writing = os.pipe()

    def run() -> None:
        os.setsid()
        os.environ["TMPDIR"] = str(place.scratch)
        tempfile.tempdir = None
        program = importlib.import_module("mmcompress.cli.main")
        app = program.app

        def told(**named: object) -> None:
            os.close(writing)
            app(**named)

        program.app = told
        sys.argv = ["mmcompress", *words(command, place.world, place.out / "o")]
        program.main()

    process = forked(run, place.log)
    os.close(writing)
    os.read(reading, 1)  # its end, when signals are caught
    os.close(reading)
    return process


def faults_of(command: str, number: int, moment: float, place: Place) -> tuple[list[str], int]:
    """What was not as documented when a command got a signal at a moment; and its exit code."""
    process = started(command, place)
    time.sleep(moment)
    children = psutil.Process(process).children(recursive=True)
    sent = time.monotonic()
    (os.killpg if number == signal.SIGINT else os.kill)(process, number)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    took = time.monotonic() - sent
    said = place.log.read_text(errors="replace")
    faults = ["a traceback"] if "Traceback" in said else []
    if code in (0, 1) and "Traceback" not in said:
        return [], code  # it was over
    if code not in CODES[signal.Signals(number)]:
        faults.append(f"code {code}")
    last = [line[:6] for line in said.splitlines()[-2:]]
    if last != ["error:", "hint: "]:
        faults.append(f"last lines {said.splitlines()[-2:]}")
    kept = ".work" if "goes on" in said else "nothing"
    left = [path for path in place.out.iterdir() if not path.name.endswith(kept)]
    if command in OF_STAGES:
        faults += half_visible(place.out / "o")
        left = [path for path in left if path.name != "o"]
    stands = files(place.out) == place.whole  # the signal came behind the end, when the summary was to be printed
    faults += [f"left {path.name}" for path in left if path.name.startswith(".") or not stands]
    faults += [f"left {path.name} in TMPDIR" for path in place.scratch.iterdir()]
    faults += [f"left {path.name} beside its input" for path in (place.world / "run").glob(".*")]
    alive = psutil.wait_procs(children, timeout=5)[1]
    faults += [f"left a process {child.name()}" for child in alive]
    faults += [f"took {took:.0f} s"] if took > SLOW_S else []
    if faults:
        print(f"== {command}, {signal.Signals(number).name} at {moment:.2f} s: {faults}\n{said}", file=sys.stderr)
    return faults, code


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=2, help="signals of each kind to each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", help="only these, separated by commas")
    parser.add_argument("--work", type=Path, help="folder that keeps the world, for another time")
    asked = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's `&` lets be ignored
    moments = random.Random(asked.seed)
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}  # read when torch is imported
    for name in IMPORTED:
        importlib.import_module(name)
    rows, faults, sent = [], [], 0
    with workplace(asked.work) as (folder, world):
        place = Place(folder, world)
        os.environ["MMCOMPRESS_CACHE"] = str(place.world / "cache")
        for command in asked.commands.split(",") if asked.commands else WORDS:
            began = time.monotonic()
            code = os.waitstatus_to_exitcode(os.waitpid(started(command, place), 0)[1])
            seconds, place.whole = time.monotonic() - began, files(place.out)
            if code:
                faults.append(f"{command} ended with {code} without a signal")
                print(place.log.read_text(errors="replace")[-2000:], file=sys.stderr)
            ends: Counter[int] = Counter()
            for number in (signal.SIGINT, signal.SIGTERM) * asked.each:
                found, code = faults_of(command, number, moments.uniform(0, min(seconds, LONGEST_S)), place)
                faults += [f"{command}, {number.name}: {fault}" for fault in found]
                ends[code] += 1
                sent += 1
            half = half_visible(place.world / "run")
            faults += [f"{command} spoiled {name}" for name in half]
            codes = ", ".join(f"{count} x {code}" for code, count in sorted(ends.items()))
            rows.append(f"| {command} | {seconds:.1f} | {codes} |")
            print(rows[-1], file=sys.stderr)
    print(f"{cpu_model()}, {usable_cores()} cores; python benchmarks/signals.py {' '.join(sys.argv[1:])}\n")
    print("| command | seconds | ended with |\n|---|--:|---|", *rows, sep="\n")
    print(f"\n{sent} signals; not as documented: {len(faults)}.", *faults, sep="\n- ")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
