"""What works on this machine, and what to install for what does not. It reports; it never changes anything."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from mmcompress import __version__
from mmcompress.errors import MMCompressError
from mmcompress.frozen import Config

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
    quota: float | None
    """Cores' worth of time that its container may use; None where nothing limits it."""
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
    memory_bytes: int
    """Of the machine, or as much of it as the container may use."""
    gpu: str | None
    """The one that engines run on, by its driver; None where there is none that can be used."""
    backends: tuple[Backend, ...]
    extras: tuple[Extra, ...]


def diagnosis() -> Diagnosis:
    """Versions, processor, GPU, backends that run here or why they do not, and the extras that are missing."""
    from mmcompress.runtime.backends import available_backends
    from mmcompress.runtime.container import cpu_quota
    from mmcompress.runtime.machine import cpu_model, memory_bytes, usable_cores

    return Diagnosis(
        mmcompress=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=Processor(
            model=cpu_model(),
            cores=usable_cores(),
            quota=cpu_quota(),
            int8=int8_instructions(Path("/proc/cpuinfo")),
        ),
        memory_bytes=memory_bytes(),
        gpu=gpu(),
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


def gpu() -> str | None:
    """The GPU that engines would run on, by its driver; None where there is none, or no driver for it."""
    from mmcompress.runtime.board import board
    from mmcompress.runtime.gpu import open_cuda

    try:
        device = open_cuda().device
    except MMCompressError:
        return None
    where = f" on {name}" if device.integrated and (name := board()) else ""
    return (
        f"{device.name}{where}, {device.target}, {device.multiprocessors} multiprocessors, "
        f"{device.memory_bytes / (1 << 30):.1f} GiB"
    )


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
