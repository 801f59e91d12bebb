"""What works on this machine, and what to install for what does not. It reports; it never changes anything."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from mmcompress import __version__
from mmcompress.architecture import Config

CPU_FLAGS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "amx_int8": "AMX INT8",
    "asimddp": "Arm dot product",
    "i8mm": "Arm INT8 matrix multiply",
}
_REQUIREMENT = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)\s*(?P<range>[^;]*?)\s*(?:;\s*(?P<marker>.*))?$")
_EXTRA = re.compile(r"""\bextra\s*==\s*['"](?P<extra>[^'"]+)['"]""")


class Processor(Config):
    model: str
    cores: int
    """Cores that this process may use."""
    int8: tuple[str, ...] | None
    """The instructions that make INT8 fast, of those that it has; None where it is not known."""


class Backend(Config):
    name: str
    usable: bool
    reason: str | None
    """Why it cannot be used; None where it can."""


class Package(Config):
    package: str
    only: str | None
    """The environment marker under which it is needed; None where it is needed everywhere."""


class Extra(Config):
    name: str
    missing: tuple[Package, ...]
    installed: dict[str, str]
    """Version by package."""
    command: str
    """What installs it."""


class Diagnosis(Config):
    """What `doctor --json` prints."""

    mmcompress: str
    python: str
    platform: str
    cpu: Processor
    gpu: tuple[dict[str, str], ...]
    """What nvidia-smi says of each GPU, by its own names of the fields."""
    backends: tuple[Backend, ...]
    extras: tuple[Extra, ...]


def diagnosis() -> Diagnosis:
    """Versions, processor, GPU, backends that run here or why they do not, and the extras that are missing."""
    from mmcompress.runtime.backends import available_backends
    from mmcompress.runtime.machine import cpu_model, usable_cores

    return Diagnosis(
        mmcompress=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=Processor(model=cpu_model(), cores=usable_cores(), int8=int8_instructions(Path("/proc/cpuinfo"))),
        gpu=tuple(gpus()),
        backends=tuple(Backend(name=n, usable=why is None, reason=why) for n, why in available_backends().items()),
        extras=tuple(extra for extra in extras(requires("mmcompress") or []) if extra.name not in ("demo", "dev")),
    )


def int8_instructions(cpuinfo: Path) -> tuple[str, ...] | None:
    """The instructions that make INT8 fast, of those that this processor has; None where it is not known."""
    if not cpuinfo.is_file():
        return None
    flags = re.search(
        r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
    )
    have = flags[1].split() if flags else []
    return tuple(label for flag, label in CPU_FLAGS.items() if flag in have) if flags else None


def gpus() -> list[dict[str, str]]:
    """NVIDIA GPUs by nvidia-smi, or a Jetson by its release file; an empty list where there is none."""
    jetson = Path("/etc/nv_tegra_release")
    if jetson.is_file():
        return [{"name": f"Jetson ({jetson.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')})"}]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    fields = ("name", "compute_cap", "driver_version", "memory.total")
    command = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [
        dict(zip(fields, map(str.strip, line.split(",")), strict=False)) for line in answer.splitlines() if line.strip()
    ]


def extras(requirements: list[str]) -> list[Extra]:
    """Each extra of the package's metadata with the packages it lacks here and the command that brings them."""
    wanted: dict[str, list[Package]] = {}
    for text in requirements:
        match = _REQUIREMENT.match(text)
        extra = _EXTRA.search(match["marker"] or "") if match else None
        if match is None or extra is None or match["name"] == "mmcompress":
            continue
        marker = re.sub(r"\s*(and)?\s*" + _EXTRA.pattern, "", match["marker"] or "").strip("() ")
        wanted.setdefault(extra["extra"], []).append(Package(package=match["name"], only=marker or None))
    return [
        Extra(
            name=name,
            missing=tuple(package for package in packages if installed(package.package) is None),
            installed={p.package: v for p in packages if (v := installed(p.package)) is not None},
            command=f"pip install 'mmcompress[{name}]'",
        )
        for name, packages in sorted(wanted.items())
    ]


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
