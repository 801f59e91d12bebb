"""What one backend needs of this machine, checked one by one: ok, warn or fail, each with what mends it.

Nothing here was seen on a GPU: its checks are those that a session makes, and are held by the same stand-ins.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Literal, cast

import psutil

from mmcompress import config
from mmcompress.cli.doctor import gpu, int8_instructions
from mmcompress.errors import MissingRequirementError, MMCompressError, UsageError, of_choices
from mmcompress.frozen import Config
from mmcompress.home import expanded
from mmcompress.places import cache_folder
from mmcompress.runtime.backends import BACKENDS, GPU_BACKENDS
from mmcompress.runtime.board import driver_version, jetpack, on_jetson
from mmcompress.runtime.conditions import power_mode
from mmcompress.runtime.gpu import open_cuda
from mmcompress.runtime.machine import memory_bytes, memory_free
from mmcompress.runtime.tensorrt import tensorrt_module, this_machine

GIB = 1 << 30
SMALL_MEMORY = 12 * GIB
"""Below it TensorRT builds of the larger towers have no room without swap: the Orins of 8 GB."""
SWAP = 4 * GIB
LOW_DISK = 5 * GIB
_FAST_INT8 = {"AVX-512 VNNI", "AVX-VNNI", "AMX INT8", "Arm dot product", "Arm INT8 matrix multiply"}


class Check(Config):
    """One thing that a backend needs."""

    what: str
    state: Literal["ok", "warn", "fail"]
    found: str
    mend: str | None = None
    """What to do; None where nothing is to be done."""


def requirements(backend: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[Check, ...]:
    """What a backend needs here, in the order in which it is to be mended. UsageError for an unknown one."""
    if backend not in BACKENDS:
        raise UsageError(f"there is no backend {backend!r}", of_choices(backend, BACKENDS))
    name = cast(config.Backend, backend)
    own = gpu_checks(name) if name in GPU_BACKENDS else [_asked("library", BACKENDS[name].check, _version_of(name))]
    if name not in GPU_BACKENDS:
        own.append(processor_check(name, int8_instructions(cpuinfo)))
    swap = psutil.swap_memory()
    return (
        *own,
        *memory_checks(memory_bytes(), memory_free(), swap.total, builds=name in GPU_BACKENDS),
        folder_check("cache", cache_folder(), "MMCOMPRESS_CACHE"),
        folder_check("hub cache", hub_cache(), "HF_HOME"),
        folder_check("disk", Path.cwd(), None),
    )


def enforce(checks: tuple[Check, ...], backend: str) -> None:
    """Raise MissingRequirementError with the first thing that keeps a backend from running."""
    for check in checks:
        if check.state == "fail":
            raise MissingRequirementError(f"{backend} cannot run here: {check.what}: {check.found}", check.mend or "")


def gpu_checks(backend: config.Backend) -> list[Check]:
    """Library, GPU and driver, and whether they fit each other, which is asked only where they are there."""
    module = _asked("library", lambda: tensorrt_module(backend), lambda: _module_version(backend))
    device = _asked("GPU", open_cuda, lambda: str(gpu()))
    checks = [module, device]
    if device.state == "ok":
        checks.append(Check(what="driver", state="ok", found=_driver()))
    if all(check.state == "ok" for check in checks):
        checks.append(_asked("library and driver", lambda: this_machine(backend), lambda: "fit each other"))
    if on_jetson():
        checks.append(Check(what="JetPack", state="ok", found=jetpack() or "unknown"))
        checks.append(power_check(power_mode()))
    return checks


def power_check(mode: str | None) -> Check:
    """A Jetson under a limit is slower than its maker's figures, and engines are timed under it."""
    if mode is None:
        return Check(what="power mode", state="warn", found="unknown", mend="sudo nvpmodel -q says it")
    if "MAXN" in mode:
        return Check(what="power mode", state="ok", found=mode)
    mend = "sudo nvpmodel -p lists the modes; build engines under the one that they run in"
    return Check(what="power mode", state="warn", found=f"{mode}, which limits clocks or cores", mend=mend)


def processor_check(backend: str, instructions: tuple[str, ...] | None) -> Check:
    """Without a product of bytes in one instruction INT8 is slower than FP32 on OpenVINO."""
    if instructions is None:
        return Check(what="processor", state="warn", found="its instructions are not known here")
    found = ", ".join(instructions) or "no instructions that speed up INT8"
    if _FAST_INT8.isdisjoint(instructions):
        mend = "FP32 or ONNX Runtime's INT8 file may be faster: mmcompress verdict says which"
        return Check(what="processor", state="warn", found=f"{found}: INT8 gains little or nothing", mend=mend)
    return Check(what="processor", state="ok", found=found)


def memory_checks(total: int, available: int, swap: int, *, builds: bool) -> list[Check]:
    """Bytes of memory, of what of it is free, and of swap; where engines are built a small machine wants swap."""
    memory = Check(what="memory", state="ok", found=f"{_gib(available)} of {_gib(total)} free")
    if available < GIB:
        memory = memory.model_copy(update={"state": "warn", "mend": "end other programs"})
    tight = builds and total < SMALL_MEMORY and swap < SWAP
    mend = "add swap: fallocate -l 8G /swapfile, mkswap, swapon; a build may be killed without" if tight else None
    return [memory, Check(what="swap", state="warn" if tight else "ok", found=_gib(swap), mend=mend)]


def folder_check(what: str, folder: Path, variable: str | None) -> Check:
    """Whether a folder can be written to and has room; one that is not there yet is made where it is needed."""
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    move = f", or set {variable} to another place" if variable else ""
    if not os.access(above, os.W_OK):
        return Check(what=what, state="warn", found=f"{folder} cannot be written", mend=f"chown {above}{move}")
    free = shutil.disk_usage(above).free
    state: Literal["ok", "warn"] = "warn" if free < LOW_DISK else "ok"
    return Check(
        what=what,
        state=state,
        found=f"{folder}, {_gib(free)} free",
        mend=f"free some{move}" if free < LOW_DISK else None,
    )


def hub_cache() -> Path:
    """Where Hugging Face keeps what it downloads, by its own variables."""
    home = os.environ.get("HF_HOME") or expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or expanded(home) / "hub")


def _asked(what: str, ask: Callable[[], object], found: Callable[[], str]) -> Check:
    """Ok with what is found, or the error that a session would end with, and its hint."""
    try:
        ask()
        return Check(what=what, state="ok", found=found())
    except MMCompressError as error:
        return Check(what=what, state="fail", found=error.what, mend=error.hint or None)


def _version_of(package: str) -> Callable[[], str]:
    return lambda: f"{package} {version(package)}"


def _module_version(backend: config.Backend) -> str:
    return f"{backend} {tensorrt_module(backend).__version__}"


def _driver() -> str:
    return "{}, for CUDA {}.{}".format(driver_version() or "version unknown", *open_cuda().device.cuda)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB"
