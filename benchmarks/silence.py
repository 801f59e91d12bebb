"""The longest time that a command says nothing, on a terminal and in a pipe.

    python benchmarks/silence.py [--commands quantize,prune] [--full-size] [--work DIR]

Every command that needs no host runs on small input (tests/worlds/every_command.py), and so do help and a user's
mistakes, each under a terminal of its own (a pty) and with pipes in its place. A silence lasts from one byte of output
to the next, from the start to the first, or from the last to the end. Beside each stand the CPU seconds that the
command and its children took in it: where these are far less, other programs had the processor. With `--full-size` the
commands of the main job run on a ViT-B/32 of OpenAI's sizes with random weights instead, on 32 photos of the
development data, on a terminal alone. Prints a table in Markdown; exits with 1 where a terminal was left without a sign
for longer than the bar, or a command that is no mistake did not run to its end.
"""

from __future__ import annotations

import argparse
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "worlds"))

import psutil
from every_command import WORDS, named_places, words, workplace
from full_size import PHOTOS, TEXT, write_pairs, write_teacher

from mmcompress.runtime.machine import cpu_model, usable_cores

VIT_B32 = {"width": 768, "head_dim": 64, "heads": (12,) * 12, "mlp": (3072,) * 12, "image_size": 224, "patch": 32}
TERMINAL_S, LOG_S = 2.0, 31.0
"""The bars: what a person waits without a sign, and what lies between two lines of a log."""
OTHERS: dict[str, tuple[str, ...]] = {
    "--help": ("--help",),
    "distill --help": ("distill", "--help"),
    "no such command": ("quantise",),
    "no such option": ("quantize", "x", "--out", "{out}", "--sample", "1"),
    "no such teacher": ("embed", "--teacher", "{world}/none", "--data", "{data}", "--out", "{out}"),
    "no such data": ("quantize", "{run}/convert", "--data", "{world}/none.tar", "--out", "{out}"),
    "no such host": ("remote", "doctor", "nobody@host.invalid"),
}
"""What else is waited for: help, and mistakes."""


@dataclass(frozen=True)
class Silence:
    """The longest of one run."""

    seconds: float
    cpu_s: float
    at: float
    """Seconds after the start, where it began."""
    total: float
    code: int


def listened(command: list[str], terminal: bool, environment: dict[str, str]) -> Silence:
    """Run a command to its end and look at when it says something."""
    if terminal:
        ours, theirs = pty.openpty()
    else:
        ours, theirs = os.pipe()
    begun = time.monotonic()
    process = subprocess.Popen(
        command, stdin=theirs if terminal else subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    watched = psutil.Process(process.pid)
    heard, cpu, longest = begun, 0.0, (0.0, 0.0, 0.0)
    now_cpu = 0.0
    while True:
        ready = select.select([ours], [], [], 0.05)[0]
        now, now_cpu = time.monotonic(), max(now_cpu, _cpu_s(watched))
        try:
            said = os.read(ours, 65536) if ready else None
        except OSError:  # a terminal whose other side is closed
            said = b""
        if said or said == b"":
            longest = max(longest, (now - heard, now_cpu - cpu, heard - begun))
            heard, cpu = now, now_cpu
        if said == b"":
            break
    code = process.wait()
    now = time.monotonic()
    longest = max(longest, (now - heard, 0.0, heard - begun))
    os.close(ours)
    return Silence(longest[0], longest[1], longest[2], now - begun, code)


def _cpu_s(process: psutil.Process) -> float:
    """Of a process and of those that it started, ended or not."""
    try:
        with process.oneshot():
            taken = process.cpu_times()
            live = [child.cpu_times() for child in process.children(recursive=True)]
        return sum(taken[:4]) + sum(sum(own[:2]) for own in live)
    except (psutil.Error, OSError):
        return 0.0


def full_size_words(folder: Path, out: Path) -> dict[str, list[str]]:
    """The commands of the main job; what one reads the one before has made."""
    teacher, photos, made = folder / "vit-b32", folder / "photos-00000.tar", out.parent / "made"
    teacher.mkdir()
    captions = write_pairs(photos, PHOTOS, 32)
    write_teacher(teacher, captions, VIT_B32, {**TEXT, "width": 512, "heads": (8,) * 12, "mlp": (2048,) * 12}, 512)
    few = ("--data", photos, "--samples", 32)
    said: dict[str, tuple[object, ...]] = {
        "convert": (teacher,),
        "embed": ("--teacher", teacher, "--data", photos),
        "distill": ("--embeddings", made / "embed", "--data", photos, "--student", "inherit:0.5"),
        "prune": (made / "convert", *few, "--target-macs", 0.5, "--batch", 16),
        "quantize": (made / "convert", *few, "--max-drop", "none", "--max-flips", "none"),
        "export": (made / "convert",),
        "bench": (made / "export", "--rounds", 4),
        "drift": (made / "export", "--data", photos),
    }
    said["distill"] += ("--optimizer-steps", 3, "--optimizer-batch", 16)
    return {name: [name, *map(str, rest), "--out", str(made / name)] for name, rest in said.items()}


def measure(
    asked: dict[str, list[str]], out: Path, cache: Path, ways: tuple[bool, ...]
) -> dict[tuple[str, bool], Silence]:
    """The silences of every command, on a terminal, in a pipe, or both."""
    found = {}
    environment = os.environ | {"MMCOMPRESS_CACHE": str(cache), "TERM": "xterm", "COLUMNS": "100"}
    for name, said in asked.items():
        for terminal in ways:
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            silence = listened([sys.executable, "-m", "mmcompress", *said], terminal, environment)
            found[name, terminal] = silence
            where = "terminal" if terminal else "pipe"
            print(f"{name}, {where}: {silence.seconds:.1f} s at {silence.at:.1f} s, {silence.code}", file=sys.stderr)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", help="only these, separated by commas")
    parser.add_argument("--full-size", action="store_true")
    parser.add_argument("--work", type=Path, help="folder that keeps the world, for another time")
    given = parser.parse_args()
    with workplace(given.work) as (folder, world):
        out = folder / "out"
        asked = {command: words(command, world, out / "o") for command in WORDS}
        told = named_places(world, out / "o")
        asked |= {name: [word.format(**told) for word in said] for name, said in OTHERS.items()}
        if given.full_size:
            asked = full_size_words(folder, out)
        if given.commands:
            asked = {name: asked[name] for name in given.commands.split(",")}
        found = measure(asked, out, world / "cache", (True,) if given.full_size else (True, False))
    print(f"{cpu_model()}, {usable_cores()} cores; python benchmarks/silence.py {' '.join(sys.argv[1:])}\n")
    print("| command | exit code | takes | terminal | begins at | its CPU time | pipe |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name in sorted(asked, key=lambda name: -found[name, True].seconds):
        shown, piped = found[name, True], found.get((name, False))
        cells = (f"{shown.total:.1f} s", f"{shown.seconds:.2f} s", f"{shown.at:.1f} s", f"{shown.cpu_s:.2f} s")
        print(f"| {name} | {shown.code} | {' | '.join(cells)} | {f'{piped.seconds:.1f} s' if piped else ''} |")
    late = [n for (n, on), s in found.items() if s.seconds > (TERMINAL_S if on else LOG_S)]
    print(f"\nLonger than {TERMINAL_S:.0f} s on a terminal, or {LOG_S:.0f} s in a pipe: {', '.join(late) or 'none'}.")
    broken = [name for (name, _), silence in found.items() if silence.code and name not in OTHERS]
    if broken:
        print(f"Did not run to its end, so that its silence says nothing: {', '.join(broken)}.")
    return int(bool(late or broken))


if __name__ == "__main__":
    sys.exit(main())
