"""Check that a wheel holds what the source tree holds: `python tests/check_wheel.py dist/*.whl`."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("compress", "export", "measure", "runtime")
"""Packages whose folder stands at the top level."""
SOURCES = {"mmcompress": ROOT / "src/mmcompress"} | {f"mmcompress/{room}": ROOT / room for room in ROOMS}


def expected() -> set[str]:
    """Names in a wheel of everything in the source folders that git does not ignore."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split("\0")
    tracked = {ROOT / name for name in listed if name}
    return {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in SOURCES.items()
        for path in folder.rglob("*")
        if path in tracked and path.is_file()
    }


def differences(wheel: Path) -> list[str]:
    """What the wheel lacks and what it should not hold."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        licenses = [name for name in archive.namelist() if name.endswith(("/LICENSE", "/NOTICE"))]
    wanted = expected()
    found = [f"missing: {name}" for name in sorted(wanted - held)]
    found += [f"not in the tree: {name}" for name in sorted(held - wanted)]
    return found + ([] if len(licenses) == 2 else [f"licenses: {licenses}"])


def main() -> None:
    for name in sys.argv[1:]:
        found = differences(Path(name))
        if found:
            sys.exit("\n".join([f"{name} differs from the tree:", *found]))
        print(f"{name}: holds every file of the tree")


if __name__ == "__main__":
    main()
