"""The passport of an engine: what it was made of, on which machine, and whether it may be opened on this one.

An engine is code for one kind of GPU and one version of the library, and deserializing a foreign one ends in a crash or
worse. Two GPUs of one architecture differ too: TensorRT times its kernels on the GPU in the machine, and an engine of
an AGX Orin is slow or too large on an Orin Nano, one of an H100 on an H200. So a passport states the GPU's name, its
multiprocessors and its memory, and what differs is named with the command that builds the engine anew. Driver, JetPack
and power mode are stated and not compared, but for the power mode, which is warned of: kernels were timed under it.

`--trust` opens an engine in spite of its passport. TensorRT then still refuses what it knows to be another version's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, ValidationError

from mmcompress.artifact import Artifact
from mmcompress.config import Backend
from mmcompress.errors import CorruptInputError
from mmcompress.frozen import Config
from mmcompress.manifest import Graph, Manifest
from mmcompress.progress import say
from mmcompress.runtime.profiles import Batches
from mmcompress.seen import SEEN_IMAGES
from mmcompress.wrong import first_wrong

PASSPORTS = "passports"
"""The fact of an engine artifact: a passport by the engine's file."""
TRUST = "MMCOMPRESS_TRUST"
"""Set to 1 by `--trust`, for this process and those that it starts."""
Reach = Literal["this GPU", "same compute capability", "Ampere and later"]
"""Where an engine may run: TensorRT's `HardwareCompatibilityLevel`."""
_SAME_MEMORY = 0.9
"""Two of the same model differ by what their firmware keeps."""


class Machine(Config):
    """A machine with a GPU, as a passport states it and as it is found here."""

    backend: Backend
    tensorrt: str
    """Version of the library."""
    target: str
    """Compute capability, `sm87`."""
    gpu: str | None = None
    """Name by the driver; null in what was built for a GPU that was not there."""
    multiprocessors: int | None = None
    memory_bytes: int | None = None
    board: str | None = None
    """Of a Jetson, by its device tree."""
    jetpack: str | None = None
    power_mode: str | None = None
    driver: str | None = None
    cuda: str | None = None
    """Newest CUDA that the driver runs, `12.6`."""


class Passport(Config):
    """Of one engine."""

    built_on: Machine
    """The machine, or what it was built for where no GPU took part."""
    reach: Reach = "this GPU"
    profiles: tuple[Batches, ...] = ()
    """Smallest, usual and largest batch of each optimization profile."""
    onnx_sha256: str | None = None
    """Of the graph that it was built from."""
    checkpoint: str | None = None
    """Digest of the checkpoint whose weights and ranges the graph has."""
    calibration_sha256: str | None = None
    """Of the list of images that calibrated it; null where the graphs have none."""
    precisions: Mapping[str, int] = Field(default_factory=dict)
    """Matrix products in each precision, by the audit."""
    weights_bytes: int | None = None
    """Of the engine's weights; null where the builder does not say."""


def passport_of(
    source: Artifact,
    graph: Graph,
    machine: Machine,
    *,
    profiles: tuple[Batches, ...],
    precisions: Mapping[str, int],
    weights_bytes: int | None,
    reach: Reach = "this GPU",
) -> Passport:
    """Of an engine that was built from a graph of `source`."""
    files, parents = source.manifest.files, source.manifest.parents
    return Passport(
        built_on=machine,
        reach=reach,
        profiles=profiles,
        onnx_sha256=files[graph.file].sha256 if graph.file in files else None,
        checkpoint=next(iter(parents.values()), None),
        calibration_sha256=files[SEEN_IMAGES].sha256 if SEEN_IMAGES in files else None,
        precisions=precisions,
        weights_bytes=weights_bytes,
    )


def stated_passport(manifest: Manifest, graph: Graph) -> Passport | None:
    """What an artifact states of one of its engines; None where nothing says what it was built with."""
    passports = manifest.facts.get(PASSPORTS, {})
    backend, version = manifest.facts.get("backend"), manifest.facts.get("tensorrt_version")
    try:
        stated = passports.get(graph.file) if isinstance(passports, Mapping) else passports
        if stated is not None:
            return Passport.model_validate(stated)
        if backend is None or version is None or graph.target is None:
            return None
        return Passport(built_on=Machine(backend=backend, tensorrt=version, target=graph.target))
    except ValidationError as error:
        raise CorruptInputError(
            f"the passport of {graph.file}{first_wrong(error)}", "build the engine again"
        ) from error


def differences(passport: Passport | None, here: Machine) -> list[str]:
    """What keeps an engine from being opened on this machine, one phrase a difference."""
    if passport is None:
        return ["nothing says what the engine was built for"]
    built = passport.built_on
    compared: dict[str, tuple[object, object]] = {
        "backend": (built.backend, here.backend),
        "TensorRT version": (built.tensorrt, here.tensorrt),
        "compute capability": (built.target, here.target),
    }
    if passport.reach == "Ampere and later" and int(here.target[2:]) >= 80:
        del compared["compute capability"]
    if passport.reach == "this GPU" and built.gpu is not None:
        compared |= {
            "GPU": (built.gpu, here.gpu),
            "board": (built.board, here.board),
            "multiprocessors": _multiprocessors(built, here),
        }
        memory = sorted((built.memory_bytes or 0, here.memory_bytes or 0))
        if memory[0] < _SAME_MEMORY * memory[1]:
            compared["memory"] = _gigabytes(built.memory_bytes), _gigabytes(here.memory_bytes)
    return [
        f"{what}: the engine is for {engine}, here it is {found}"
        for what, (engine, found) in compared.items()
        if engine != found
    ]


def _multiprocessors(built: Machine, here: Machine) -> tuple[object, object]:
    """Of both machines; on a Jetson, whose power modes switch parts of the GPU off, with modes that differ."""
    counts = built.multiprocessors, here.multiprocessors
    modes = built.power_mode, here.power_mode
    if counts[0] == counts[1] or modes[0] == modes[1] or None in (*modes, built.board, here.board):
        return counts
    number = re.match(r"nvpmodel (\d+)", str(modes[0]))
    switch = f"sudo nvpmodel -m {number[1]}" if number else "sudo nvpmodel -m MODE"
    return (
        f"{counts[0]} under {modes[0]}",
        f"{counts[1]} under {modes[1]}, and a power mode may switch some off: {switch} goes back, or build again",
    )


def _gigabytes(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else f"{size_bytes / (1 << 30):.1f} GiB"


def check_passport(artifact: Artifact, graph: Graph, here: Machine) -> None:
    """Raise CorruptInputError with every difference; with `--trust`, say them and go on."""
    passport = stated_passport(artifact.manifest, graph)
    different = differences(passport, here)
    if different and trusted():
        say("", graph.file, f"opened as --trust says, although it does not fit this machine: {'; '.join(different)}")
    elif different:
        raise CorruptInputError(
            f"the engine {graph.file} of {artifact.path} does not fit this machine: {'; '.join(different)}",
            f"{rebuild(here.backend)}; or open it all the same with --trust, if you know who made it",
        )
    if passport is not None and passport.built_on.power_mode not in (None, here.power_mode):
        say("", graph.file, f"its kernels were timed under {passport.built_on.power_mode}, here is {here.power_mode}")


def trusted() -> bool:
    """Whether engines are opened in spite of their passports."""
    return os.environ.get(TRUST) == "1"


def rebuild(backend: Backend) -> str:
    """What makes an engine for this machine."""
    return f"build it on this machine: mmcompress build ONNX_ARTIFACT --backend {backend} --target native"
