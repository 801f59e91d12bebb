"""What classic TensorRT can be told of its search for kernels, and what it remembers of it.

Classic TensorRT times kernels on the GPU in the machine. What it timed is kept in a file for one version of the library
and one kind of GPU, so that a second build, or the next candidate of a verdict, measures only what is new. Kernels are
chosen for the usual batch of a profile, so batch 1 has a profile by itself. TensorRT-RTX times nothing: a timing cache
stops its builds without a GPU, and it specializes kernels for shapes on the device. Nothing here has run on a GPU.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mmcompress.drafts import written_whole
from mmcompress.errors import UsageError
from mmcompress.places import cache_folder
from mmcompress.progress import say
from mmcompress.runtime.passport import Machine, Reach
from mmcompress.runtime.profiles import Batches

_LEVELS: dict[Reach, str] = {
    "this GPU": "NONE",
    "same compute capability": "SAME_COMPUTE_CAPABILITY",
    "Ampere and later": "AMPERE_PLUS",
}


@dataclass(frozen=True)
class Tuning:
    """Of one build with classic TensorRT; what is None is TensorRT's own default."""

    workspace_mb: int | None = None
    """Most memory that a kernel may use for intermediate results, in MiB."""
    optimization_level: int | None = None
    """0 to 5: how long it searches."""
    reach: Reach = "this GPU"
    """Where the engine may run."""
    timings: Path | None = None
    """File of what was timed before, and is read and written; none if not given."""


def profiles_for_batches(batches: Batches, rtx: bool) -> tuple[Batches, ...]:
    """(1, 8, 32) -> (1, 1, 1) and (2, 8, 32) on classic TensorRT; one profile where batch 1 is all, or is not in."""
    smallest, usual, largest = batches
    if rtx or smallest != 1 or largest == 1:
        return (batches,)
    return (1, 1, 1), (2, max(2, usual), largest)


def timing_cache_of(machine: Machine) -> Path:
    """The file of this library's version and this GPU, in the user's cache."""
    named = f"{machine.backend}-{machine.tensorrt}-{machine.gpu or machine.target}-{machine.board or ''}"
    return cache_folder() / "timing" / f"{re.sub(r'[^A-Za-z0-9.]+', '-', named).strip('-')}.cache"


def apply_tuning(trt: ModuleType, config: Any, tuning: Tuning) -> None:
    """Say to a builder's config what was asked for."""
    if tuning.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, tuning.workspace_mb << 20)
    if tuning.optimization_level is not None:
        config.builder_optimization_level = tuning.optimization_level
    if tuning.reach != "this GPU":
        level = getattr(trt.HardwareCompatibilityLevel, _LEVELS[tuning.reach], None)
        if level is None:
            raise UsageError(
                f"{trt.__name__} {trt.__version__} makes no engines for {tuning.reach!r}", "leave `reach` out"
            )
        config.hardware_compatibility_level = level
    if tuning.timings is not None:
        known = b""
        with suppress(OSError):
            known = tuning.timings.read_bytes()
        if not _start_with(config, known):  # of another version, or damaged
            _start_with(config, b"")


def _start_with(config: Any, known: bytes) -> bool:
    timing_cache = config.create_timing_cache(known)
    return timing_cache is not None and bool(config.set_timing_cache(timing_cache, False))


def keep_timings(config: Any, tuning: Tuning) -> None:
    """Write what a build timed for the next one; whole or not at all, as two may end at once. A folder that cannot be
    written costs the next build that time again."""
    timing_cache = config.get_timing_cache() if tuning.timings is not None else None
    if timing_cache is None or tuning.timings is None:
        return
    place = tuning.timings
    try:
        with written_whole(place) as stream:
            stream.write(bytes(timing_cache.serialize()))
    except OSError as error:
        say("build", place.name, f"warning: what was timed is not kept for the next build: {error}")
