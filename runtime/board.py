"""Which board and which driver a GPU is on, from the files that NVIDIA's systems have; what is not there is None.

Read from trees that tests write in the published layout, never on a Jetson.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path("/")


def on_jetson(root: Path = ROOT) -> bool:
    return (root / "etc/nv_tegra_release").is_file()


def board(root: Path = ROOT) -> str | None:
    """The model of a board: CUDA calls all Orins `Orin`, the device tree tells an Orin Nano from an AGX Orin."""
    return _text(root / "proc/device-tree/model").strip("\0\n ") or None


def jetpack(root: Path = ROOT) -> str | None:
    """`6.2+b77 (L4T 36.4.3)`: the package nvidia-jetpack, where it is installed, and the release of the system."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", _text(root / "etc/nv_tegra_release"))
    if found is None:
        return None
    release = f"L4T {found[1]}.{found[2]}"
    packages = _text(root / "var/lib/dpkg/status")
    package = re.search(r"^Package: nvidia-jetpack\n(?:.+\n)*?Version: (\S+)", packages, re.MULTILINE)
    return f"{package[1]} ({release})" if package else release


def driver_version(root: Path = ROOT) -> str | None:
    """`580.65.06`, of the kernel module that is loaded."""
    found = re.search(r"^NVRM version:.*?\s(\d{3,}\.\d+(?:\.\d+)?)\s", _text(root / "proc/driver/nvidia/version"), re.M)
    return found[1] if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
