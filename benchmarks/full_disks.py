"""Fill the disk under every command, at its output, its cache and its temporary files, and look at what it says.

    python benchmarks/full_disks.py [--commands quantize,prune] [--work DIR] (as root: it mounts file systems in memory)

Each command (tests/worlds/every_command.py) writes to a file system of its own, first with room, then with so little
that it fills at the begin, in the middle or near the end of what the command writes. It has to end with code 2 and a
sentence that names the place, without a traceback, and what is visible has to be whole; with room again the same
command has to end well. Then its cache and its temporary files lie on a full disk: a command that needs one of them
says so, any other works. Prints a table in Markdown; exits with 1 where anything was not so.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "worlds"))

from every_command import WORDS, words, workplace
from kills import IMPORTED, forked

from mmcompress.artifact import Artifact
from mmcompress.errors import MMCompressError
from mmcompress.runtime.machine import cpu_model, usable_cores

PAGE = 4096
SHARES = (0.0, 0.3, 0.9)
"""Of what a command writes, how much there is room for."""


@contextmanager
def disk(place: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={max(size, PAGE)}", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def resize(place: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={max(size, PAGE)}", place], check=True)


def fill(place: Path) -> None:
    """Leave no room at all."""
    with suppress(OSError), (place / "filler").open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(PAGE))


def run(asked: list[str], log: Path, cache: Path, scratch: Path) -> tuple[int, str]:
    """Exit code and what was said."""
    log.write_bytes(b"")

    def command() -> None:
        os.environ |= {"MMCOMPRESS_CACHE": str(cache), "TMPDIR": str(scratch)}
        tempfile.tempdir = None
        sys.argv = ["mmcompress", *asked]
        importlib.import_module("mmcompress.cli.main").main()

    code = os.waitstatus_to_exitcode(os.waitpid(forked(command, log), 0)[1])
    return code, log.read_text(errors="replace")


def told(code: int, said: str, place: Path) -> list[str]:
    """What is wrong with the end of a command that found no room."""
    faults = ["a traceback"] if "Traceback" in said else []
    last = said.splitlines()[-2:]
    if code != 2:
        faults.append(f"code {code}")
    elif [line[:6] for line in last] != ["error:", "hint: "] or str(place) not in last[0]:
        faults.append(f"said {last}")
    if faults:
        print(f"== {faults}\n{said}", file=sys.stderr)
    return faults


def half_visible(place: Path, whole: bool) -> list[str]:
    """What is visible under a full disk and should not be; a Triton repository is no artifact."""
    if not place.exists() or not whole:
        return []
    try:
        Artifact.open(place)
    except MMCompressError as error:
        return [f"half an artifact: {error.what}"]
    return []


def tried(command: str, folder: Path, world: Path) -> tuple[str, list[str]]:
    """One command: its row of the table, and what was not as it should be."""
    log, cache, scratch, out = folder / "log", world / "cache", folder / "scratch", folder / "disk"
    scratch.mkdir(exist_ok=True)
    faults, row = [], []
    asked = words(command, world, out / "o")
    writes = any("{out}" in word for word in WORDS[command])
    with disk(out, 1 << 30):
        code, said = run(asked, log, cache, scratch)
        if code:
            return f"| {command} | | {code} | | |", [f"ended with {code} on an empty disk: {said[-500:]}"]
        size = sum(path.stat().st_blocks * 512 for path in out.rglob("*"))
        artifact = (out / "o" / "manifest.json").exists()
    for share in SHARES if writes else ():
        with disk(out, int(share * size) // PAGE * PAGE):
            code, said = run(asked, log, cache, scratch)
            if code:
                faults += told(code, said, out) + half_visible(out / "o", artifact)
                resize(out, 1 << 30)
                again, said = run(asked, log, cache, scratch)
                faults += [f"afterwards {again}: {said[-500:]}"] if again else []
            row.append(str(code))
    for name in ("cache", "scratch"):
        shutil.rmtree(folder / "plain", ignore_errors=True)
        (folder / "plain").mkdir()
        with disk(folder / f"full-{name}", 16 * PAGE) as full:
            fill(full)
            places = (full, scratch) if name == "cache" else (cache, full)
            code, said = run(words(command, world, folder / "plain" / "o"), log, *places)
            faults += told(code, said, full) if code else []
            row.append(str(code))
    return f"| {command} | {size / 1e3:.0f} | {' '.join(row[:-2])} | {row[-2]} | {row[-1]} |", faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", help="only these, separated by commas")
    parser.add_argument("--work", type=Path, help="folder that keeps the world, for another time")
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}  # read when torch is imported
    for name in IMPORTED:
        importlib.import_module(name)
    rows, faults = [], []
    with workplace(given.work) as (folder, world):
        os.environ["MMCOMPRESS_CACHE"] = str(world / "cache")
        for command in given.commands.split(",") if given.commands else WORDS:
            row, found = tried(command, folder, world)
            rows.append(row)
            faults += [f"{command}: {fault}" for fault in found]
            print(row, found, file=sys.stderr)
    print(f"{cpu_model()}, {usable_cores()} cores; python benchmarks/full_disks.py {' '.join(sys.argv[1:])}\n")
    shares = ", ".join(f"{share:.0%}" for share in SHARES)
    print(f"| command | writes, kB | exit codes with room for {shares} of it | full cache | full TMPDIR |")
    print("|---|--:|---|--:|--:|", *rows, sep="\n")
    print(f"\nNot as it should be: {len(faults)}.", *faults, sep="\n- ")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
