"""Commands on a file system without flock and without hard links, held against the same commands on a plain folder.

    pip install mfusepy    # and libfuse 2 of the system
    python benchmarks/lockless.py [--commands embed,export] [--errno ENOSYS|ENOLCK|EOPNOTSUPP] [--work DIR]

A folder is mounted by FUSE (as root, or whoever may) through a program that answers every flock with an error and every
link with EPERM, as some network and container file systems do. Output and cache of each command (in
tests/worlds/every_command.py) lie there. It has to end well, to say that there are no locks, and to write the digest
that it writes to a plain folder; afterwards nothing hidden may be left. Prints a table in Markdown; exits with 1 where
anything was not so.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "worlds"))

from every_command import words, workplace
from full_disks import run

from mmcompress.artifact import Artifact
from mmcompress.errors import MMCompressError
from mmcompress.runtime.machine import cpu_model, usable_cores

COMMANDS = "embed,import-embeddings,ensemble,convert,quantize,export,build,bench,drift,report,index,unpack,data pack"
MEASURED = {"bench", "report", "index"}
"""What has times in it."""


def serve(root: str, place: str, code: int) -> None:
    """Mount `place`, where what lies in `root` is seen, until it is unmounted."""
    import mfusepy

    class Lockless(mfusepy.Operations):  # type: ignore[misc, name-defined]
        use_ns = True

        def __getattribute__(self, name: str) -> Any:
            same = {
                "mkdir": os.mkdir,
                "unlink": os.unlink,
                "rmdir": os.rmdir,
                "chmod": os.chmod,
                "readlink": os.readlink,
            }
            if name in same:
                return lambda path, *rest: same[name](root + path, *rest) or 0
            return super().__getattribute__(name)

        def access(self, path: str, mode: int) -> int:
            return 0

        def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
            found = os.lstat(root + path)
            names = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_ino")
            times = {f"st_{kind}time": getattr(found, f"st_{kind}time_ns") for kind in "amc"}
            return {name: getattr(found, name) for name in names} | times

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", *(one.name for one in Path(root + path).iterdir())]

        def rename(self, path: str, to: str, flags: int = 0) -> int:
            Path(root + path).rename(root + to)
            return 0

        def link(self, path: str, to: str) -> int:
            raise mfusepy.FuseOSError(errno.EPERM)

        def create(self, path: str, mode: int, info: object = None) -> int:
            return os.open(root + path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)

        def open(self, path: str, flags: int) -> int:
            return os.open(root + path, flags & ~os.O_APPEND)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return os.pread(fh, size, offset)

        def write(self, path: str, content: bytes, offset: int, fh: int) -> int:
            return os.pwrite(fh, content, offset)

        def truncate(self, path: str, length: int, fh: int | None = None) -> int:
            os.truncate(root + path, length)
            return 0

        def fsync(self, path: str, data_only: int, fh: int) -> int:
            os.fsync(fh)
            return 0

        def release(self, path: str, fh: int) -> int:
            os.close(fh)
            return 0

        def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
            os.utime(root + path, ns=times)
            return 0

        def statfs(self, path: str) -> dict[str, int]:
            found = os.statvfs(root + path)
            names = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_frsize")
            return {name: getattr(found, name) for name in (*names, "f_namemax")}

        def flock(self, path: str, fh: int, operation: int) -> int:
            raise mfusepy.FuseOSError(code)

    mfusepy.FUSE(Lockless(), place, foreground=True, nothreads=True)


@contextmanager
def mounted(folder: Path, code: str) -> Iterator[Path]:
    """A file system without locks."""
    root, place = folder / "behind", folder / "lockless"
    for one in (root, place):
        one.mkdir(exist_ok=True)
    with subprocess.Popen([sys.executable, __file__, "--serve", root, place, code]) as server:
        while not place.is_mount() and server.poll() is None:
            time.sleep(0.1)
        if server.poll() is not None:
            sys.exit("it cannot be mounted: pip install mfusepy, libfuse 2 and the right to mount are needed")
        try:
            yield place
        finally:
            subprocess.run(["umount", place], check=True)


def tried(command: str, folder: Path, world: Path, place: Path) -> tuple[str, list[str]]:
    """One command: its row of the table, and what was not as it should be."""
    faults, made, log, plain = [], [], folder / "log", folder / "plain"
    (folder / "scratch").mkdir(exist_ok=True)
    for where in (plain, place):
        shutil.rmtree(where / "out", ignore_errors=True)
        (where / "out").mkdir(parents=True)
        code, said = run(words(command, world, where / "out" / "o"), log, where / "cache", folder / "scratch")
        if code:
            return f"| {command} | {code} | | |", [f"{command} ended with {code}: {said[-500:]}"]
        made.append(Artifact.open(where / "out" / "o").digest)
    left = [path.name for path in (place / "out").iterdir() if path.name.startswith(".") and ".lock" not in path.name]
    faults += [f"{command} left {left}"] if left else []
    told = "no locks on this file system" in " ".join(said.split())
    faults += [] if told else [f"{command} said nothing of locks"]
    same = "" if command in MEASURED else "yes" if made[0] == made[1] else "no"
    faults += [f"{command} made something else"] if same == "no" else []
    return f"| {command} | {code} | {'yes' if told else 'no'} | {same} |", faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", default=COMMANDS)
    parser.add_argument("--errno", default="ENOSYS", choices=("ENOSYS", "ENOLCK", "EOPNOTSUPP"))
    parser.add_argument("--work", type=Path, help="folder that keeps the world, for another time")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(*asked.serve[:2], getattr(errno, asked.serve[2]))
        return 0
    rows, faults = [], []
    with workplace(asked.work) as (folder, world), mounted(folder, asked.errno) as place:
        for command in asked.commands.split(","):
            try:
                row, found = tried(command, folder, world, place)
            except MMCompressError as error:
                row, found = f"| {command} | | | |", [f"{command}: {error}"]
            rows.append(row)
            faults += found
            print(row, found, file=sys.stderr)
    print(f"{cpu_model()}, {usable_cores()} cores; python benchmarks/lockless.py {' '.join(sys.argv[1:])}\n")
    print("| command | exit code | says that there are no locks | same digest |\n|---|--:|---|---|", *rows, sep="\n")
    print(f"\nNot as it should be: {len(faults)}.", *faults, sep="\n- ")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
