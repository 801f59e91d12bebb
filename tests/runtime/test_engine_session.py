"""Engines: the passport and the errors of a machine without a GPU everywhere, execution where there is one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from stand_in_driver import Driver, round_trip
from system_tree import write
from toy_model import SIDE

from mmcompress.artifact import Artifact
from mmcompress.errors import CorruptInputError, MissingRequirementError
from mmcompress.export.engine import supported_targets
from mmcompress.manifest import Kind
from mmcompress.runtime import tensorrt
from mmcompress.runtime.backends import available_backends, graph_for, open_session
from mmcompress.runtime.gpu import open_cuda
from mmcompress.runtime.libcuda import LibCuda
from mmcompress.runtime.passport import (
    PASSPORTS,
    TRUST,
    Machine,
    Passport,
    check_passport,
    differences,
    stated_passport,
)
from mmcompress.runtime.plans import check_validity
from mmcompress.runtime.tensorrt import this_machine

Make = Callable[..., Artifact]
HERE = Machine(backend="tensorrt-rtx", tensorrt="1.7.1.116", target="sm89")


@pytest.fixture
def engine(make_artifact: Make) -> Artifact:
    facts = {"backend": "tensorrt-rtx", "tensorrt_version": "1.7.1.116"}
    return make_artifact("engine", precisions=("int8",), facts=facts, kind=Kind.ENGINE, targets=("sm86", "sm89"))


def graph_of(engine: Artifact, target: str) -> Any:
    return next(graph for graph in engine.manifest.graphs if graph.target == target)


def here(**changes: Any) -> Machine:
    return HERE.model_copy(update=changes)


def native(make_artifact: Make, name: str, built_on: Machine, **passport: Any) -> tuple[Artifact, Any]:
    """An engine that was built on a machine."""
    file = f"image-int8-{built_on.target}.onnx"
    stated = Passport(built_on=built_on, **passport).model_dump(mode="json")
    facts = {"backend": built_on.backend, "tensorrt_version": built_on.tensorrt, PASSPORTS: {file: stated}}
    made = make_artifact(name, precisions=("int8",), facts=facts, kind=Kind.ENGINE, targets=(built_on.target,))
    return made, graph_of(made, built_on.target)


def test_a_fitting_passport(engine: Artifact) -> None:
    assert differences(stated_passport(engine.manifest, graph_of(engine, "sm89")), HERE) == []
    check_passport(engine, graph_of(engine, "sm89"), HERE)


@pytest.mark.parametrize(
    ("target", "machine", "different"),
    [
        ("sm86", HERE, ["compute capability: the engine is for sm86, here it is sm89"]),
        (
            "sm89",
            here(tensorrt="1.8.0"),
            ["TensorRT version: the engine is for 1.7.1.116, here it is 1.8.0"],
        ),
        (
            "sm89",
            Machine(backend="tensorrt", tensorrt="11.4.1", target="sm87"),
            [
                "backend: the engine is for tensorrt-rtx, here it is tensorrt",
                "TensorRT version: the engine is for 1.7.1.116, here it is 11.4.1",
                "compute capability: the engine is for sm89, here it is sm87",
            ],
        ),
    ],
)
def test_every_difference_is_said(engine: Artifact, target: str, machine: Machine, different: list[str]) -> None:
    with pytest.raises(CorruptInputError) as caught:
        check_passport(engine, graph_of(engine, target), machine)
    assert caught.value.what.endswith("does not fit this machine: " + "; ".join(different))
    assert f"mmcompress build ONNX_ARTIFACT --backend {machine.backend} --target native" in caught.value.hint
    assert "--trust" in caught.value.hint and caught.value.exit_code == 4


AGX = Machine(
    backend="tensorrt",
    tensorrt="10.3.0",
    target="sm87",
    gpu="Orin",
    multiprocessors=16,
    memory_bytes=64 << 30,
    board="NVIDIA Jetson AGX Orin Developer Kit",
    jetpack="6.2+b77 (L4T 36.4.3)",
    power_mode="nvpmodel 0 (MAXN)",
)
H100 = Machine(
    backend="tensorrt",
    tensorrt="11.4.0",
    target="sm90",
    gpu="NVIDIA H100 80GB HBM3",
    multiprocessors=132,
    memory_bytes=80 << 30,
)


@pytest.mark.parametrize(
    ("built_on", "changes", "different"),
    [
        (AGX, {"memory_bytes": 62 << 30}, []),
        (
            AGX,
            {"board": "NVIDIA Jetson Orin Nano Developer Kit", "multiprocessors": 8, "memory_bytes": 8 << 30},
            ["board: the engine is for NVIDIA Jetson AGX Orin Developer Kit", "multiprocessors", "memory"],
        ),
        (H100, {"gpu": "NVIDIA H200", "memory_bytes": 141 << 30}, ["GPU: the engine is for NVIDIA H100", "memory"]),
    ],
)
def test_gpus_of_one_architecture_are_told_apart(
    make_artifact: Make, built_on: Machine, changes: dict[str, Any], different: list[str]
) -> None:
    artifact, graph = native(make_artifact, "native", built_on)
    machine = built_on.model_copy(update=changes)
    found = differences(stated_passport(artifact.manifest, graph), machine)
    assert len(found) == len(different)
    assert all(line.startswith(start) for line, start in zip(found, different, strict=True))
    if different:
        with pytest.raises(CorruptInputError, match="does not fit this machine"):
            check_passport(artifact, graph, machine)


def test_multiprocessors_that_a_power_mode_switched_off_are_said_so(make_artifact: Make) -> None:
    artifact, graph = native(make_artifact, "native", AGX)
    here = AGX.model_copy(update={"multiprocessors": 8, "power_mode": "nvpmodel 2 (30W)"})
    (line,) = differences(stated_passport(artifact.manifest, graph), here)
    assert "16 under nvpmodel 0 (MAXN), here it is 8 under nvpmodel 2 (30W)" in line
    assert "sudo nvpmodel -m 0 goes back" in line
    with pytest.raises(CorruptInputError, match="nvpmodel -m 0"):
        check_passport(artifact, graph, here)
    (plain,) = differences(stated_passport(artifact.manifest, graph), AGX.model_copy(update={"multiprocessors": 8}))
    assert "nvpmodel" not in plain, "in the same mode it is another GPU"


def test_inspect_shows_the_passport(cli: Callable[..., Any], make_artifact: Make) -> None:
    artifact, _ = native(make_artifact, "native", AGX, profiles=((1, 1, 1), (2, 8, 32)), precisions={"int8": 48})
    shown = " ".join(cli("inspect", artifact.path).out.split())
    for part in ("Orin, tensorrt 10.3.0", "AGX Orin Developer Kit", "nvpmodel 0 (MAXN)", "48 products in int8"):
        assert part in shown
    assert "batches 1 to 1, usually 1, batches 2 to 32, usually 8" in shown and "16 multiprocessors" in shown


def test_hardware_compatibility_widens_where_an_engine_runs(make_artifact: Make) -> None:
    artifact, graph = native(make_artifact, "wide", H100, reach="Ampere and later")
    passport = stated_passport(artifact.manifest, graph)
    assert differences(passport, H100.model_copy(update={"target": "sm86", "gpu": "NVIDIA A10"})) == []
    assert differences(passport, H100.model_copy(update={"target": "sm75", "gpu": "Tesla T4"})) != []
    artifact, graph = native(make_artifact, "same", H100, reach="same compute capability")
    passport = stated_passport(artifact.manifest, graph)
    assert differences(passport, H100.model_copy(update={"gpu": "NVIDIA H200"})) == []
    assert differences(passport, H100.model_copy(update={"target": "sm100"})) != []


def test_another_power_mode_is_warned_of(make_artifact: Make, capfd: pytest.CaptureFixture[str]) -> None:
    artifact, graph = native(make_artifact, "native", AGX)
    check_passport(artifact, graph, AGX.model_copy(update={"power_mode": "nvpmodel 2 (30W)"}))
    said = " ".join(capfd.readouterr().err.split())
    assert "timed under nvpmodel 0 (MAXN), here is nvpmodel 2 (30W)" in said


def test_an_engine_without_a_passport_is_refused(make_artifact: Make) -> None:
    bare = make_artifact("bare", precisions=("int8",), kind=Kind.ENGINE, targets=("sm89",))
    with pytest.raises(CorruptInputError, match="nothing says what the engine was built for"):
        check_passport(bare, graph_of(bare, "sm89"), HERE)


def test_trust_opens_it_and_says_so(
    engine: Artifact, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TRUST, "1")
    check_passport(engine, graph_of(engine, "sm86"), HERE)
    said = " ".join(capfd.readouterr().err.split())
    assert "although it does not fit this machine: compute capability: the engine is for sm86" in said
    monkeypatch.setattr(tensorrt, "this_machine", lambda backend: here(target="sm75"))
    assert graph_for(engine, "image", "tensorrt-rtx").target in ("sm86", "sm89")


def test_trust_is_an_option_of_what_opens_engines(
    cli: Callable[..., Any], engine: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(TRUST, "")  # whatever the option sets is taken back
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "image.png")
    opened: list[str | None] = []

    def this_machine(backend: str) -> Machine:
        opened.append(os.environ.get(TRUST))
        return HERE

    monkeypatch.setattr(tensorrt, "this_machine", this_machine)
    arguments = ("classify", engine.path, tmp_path / "image.png", "--labels", "red,blue", "--backend", "tensorrt-rtx")
    cli(*arguments)
    cli(*arguments, "--trust")
    assert opened[0] == "" and opened[-1] == "1"
    for command in ("search", "bench", "drift", "compare"):
        assert "--trust" in cli(command, "--help").out


def test_the_engine_of_this_gpu_is_chosen(engine: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "this_machine", lambda backend: HERE)
    assert graph_for(engine, "image", "tensorrt-rtx").target == "sm89"
    monkeypatch.setattr(tensorrt, "this_machine", lambda backend: here(target="sm87"))
    with pytest.raises(CorruptInputError, match="are for sm86, sm89, and the GPU here is sm87"):
        graph_for(engine, "image", "tensorrt-rtx")


def library(name: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(name)
    module.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)


def test_this_machine_is_described(driver: Driver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    driver.reset(cuda=12060, capability=87, integrated=True, multiprocessors=8, name="Orin")
    library("tensorrt", "10.3.0", monkeypatch)
    monkeypatch.setattr(tensorrt, "open_cuda", lambda: LibCuda(driver.library))
    root = write(
        tmp_path,
        {
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64",
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release",
            "var/lib/dpkg/status": "Package: vim\nVersion: 9\n\nPackage: nvidia-jetpack\nStatus: ok\nVersion: 6.2+b77",
            "var/lib/nvpmodel/status": "pmode:0002",
            "etc/nvpmodel.conf": "< POWER_MODEL ID=2 NAME=25W >",
        },
    )
    for name in ("board", "jetpack", "driver_version", "power_mode"):
        monkeypatch.setattr(tensorrt, name, partial(getattr(tensorrt, name), root))
    assert this_machine("tensorrt") == Machine(
        backend="tensorrt",
        tensorrt="10.3.0",
        target="sm87",
        gpu="Orin",
        multiprocessors=8,
        memory_bytes=8 << 30,
        board="NVIDIA Jetson Orin Nano Developer Kit",
        jetpack="6.2+b77 (L4T 36.4.3)",
        power_mode="nvpmodel 2 (25W)",
        driver="540.4.0",
        cuda="12.6",
    )


@pytest.mark.parametrize(("cuda", "fits"), [(12020, False), (12060, False), (13000, True)])
def test_a_library_for_a_newer_cuda_than_the_drivers(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, cuda: int, fits: bool
) -> None:
    driver.reset(cuda=cuda)
    library("tensorrt", "11.4.0", monkeypatch)
    monkeypatch.setattr(tensorrt, "open_cuda", lambda: LibCuda(driver.library))
    monkeypatch.setattr(tensorrt, "_installed", lambda name: "11.4.0.106" if name == "tensorrt-cu13-bindings" else None)
    if fits:
        assert this_machine("tensorrt").cuda == "13.0"
        return
    with pytest.raises(MissingRequirementError) as caught:
        this_machine("tensorrt")
    shown = f"12.{cuda % 1000 // 10}"
    assert "tensorrt-cu13-bindings 11.4.0.106 needs a driver for CUDA 13.0" in caught.value.what
    assert caught.value.what.endswith(f"is for CUDA {shown}")
    assert caught.value.hint.startswith("install NVIDIA driver 580 or later")
    assert "made for CUDA 12: pip install tensorrt-cu12" in caught.value.hint


def test_a_jetson_is_never_told_to_install_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "on_jetson", lambda: True)
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingRequirementError) as caught:
        this_machine("tensorrt")
    assert "pip install" not in caught.value.hint and "--system-site-packages" in caught.value.hint
    with pytest.raises(MissingRequirementError) as caught:
        this_machine("tensorrt-rtx")
    assert "pip install" not in caught.value.hint and "--backend tensorrt" in caught.value.hint


@pytest.mark.parametrize(("init", "said"), [(100, "cuInit answers CUDA_ERROR_NO_DEVICE (100)"), (0, "0 devices")])
def test_no_gpu_is_said_with_the_drivers_answer(
    engine: Artifact, driver: Driver, monkeypatch: pytest.MonkeyPatch, init: int, said: str
) -> None:
    driver.reset(init=init, devices=0)
    monkeypatch.setattr(tensorrt, "open_cuda", lambda: LibCuda(driver.library))
    library("tensorrt_rtx", "1.7.1.116", monkeypatch)
    with pytest.raises(MissingRequirementError) as caught:
        graph_for(engine, "image", "tensorrt-rtx")
    assert caught.value.what.startswith("there is no NVIDIA GPU to run on: ") and said in caught.value.what
    assert caught.value.exit_code == 3
    assert available_backends()["tensorrt-rtx"] == caught.value.what


def test_no_tensorrt_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingRequirementError) as caught:
        this_machine("tensorrt")
    assert caught.value.hint == "pip install 'mmcompress[tensorrt]'"


class Validity(IntEnum):
    VALID, SUBOPTIMAL, INVALID = range(3)


class Reason(IntEnum):
    VERSION_MISMATCH, UNSUPPORTED_CC = 1, 2


def test_tensorrt_rtx_says_beforehand_what_does_not_fit(capfd: pytest.CaptureFixture[str]) -> None:
    module: Any = ModuleType("tensorrt_rtx")
    module.__version__, module.EngineValidity, module.EngineInvalidityDiagnostics = "1.7.1.116", Validity, Reason
    answer = [Validity.INVALID, 3]
    runtime = SimpleNamespace(get_engine_validity=lambda plan: answer)
    with pytest.raises(CorruptInputError, match="does not run it here: version mismatch, unsupported cc"):
        check_validity(module, runtime, b"plan", "it")
    answer[:] = [Validity.SUBOPTIMAL, 2]
    check_validity(module, runtime, b"plan", "it")
    assert "slower here than one built for this GPU: unsupported cc" in " ".join(capfd.readouterr().err.split())
    answer[:] = [Validity.VALID, 0]
    check_validity(module, runtime, b"plan", "it")
    check_validity(module, object(), b"plan", "it")  # TensorRT has nothing to ask
    assert capfd.readouterr().err == ""


def test_the_real_tensorrt_rtx_says_that_zeros_are_no_engine() -> None:
    module = pytest.importorskip("tensorrt_rtx")
    runtime = module.Runtime(module.Logger(module.Logger.INTERNAL_ERROR))
    with pytest.raises(CorruptInputError, match="does not run zeros here: malformed engine"):
        check_validity(module, runtime, bytes(500), "zeros")


@pytest.mark.gpu
def test_copies_and_events_on_the_gpu() -> None:
    given = np.random.default_rng(0).standard_normal((4, 3, SIDE, SIDE), dtype=np.float32)
    np.testing.assert_array_equal(round_trip(open_cuda(), given), given)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_an_engine_answers_as_onnxruntime_does(backend: Any, make_artifact: Make, tmp_path: Path) -> None:
    """Built here with the same module that runs it; the image tower of the toy model in FP32."""
    if reason := available_backends()[backend]:
        pytest.skip(reason)
    module = tensorrt.tensorrt_module(backend)
    machine = this_machine(backend)
    if (known := supported_targets(module)) and machine.target not in known:
        pytest.skip(f"{backend} does not build for {machine.target}")
    source = make_artifact("source")
    builder = module.Builder(module.Logger(module.Logger.ERROR))
    network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = module.OnnxParser(network, module.Logger(module.Logger.ERROR))
    assert parser.parse_from_file(str(source.file("image-fp32.onnx")))
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("pixels", (1, 3, SIDE, SIDE), (2, 3, SIDE, SIDE), (4, 3, SIDE, SIDE))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    graph = source.manifest.graphs[0].model_copy(update={"file": "image.engine", "target": machine.target})
    with Artifact.create(tmp_path / "built", kind=Kind.ENGINE, stage="build", key="") as draft:
        (draft.path / "image.engine").write_bytes(bytes(plan))
        draft.graphs.append(graph)
        draft.facts = {"backend": backend, "tensorrt_version": machine.tensorrt}
    built = Artifact.open(tmp_path / "built")
    pixels = np.random.default_rng(0).standard_normal((4, 3, SIDE, SIDE), dtype=np.float32)
    with open_session(source, graph_for(source, "image", "onnxruntime"), "onnxruntime") as reference:
        expected = reference.run({"pixels": pixels})["embedding"]
    with open_session(built, graph_for(built, "image", backend), backend) as session:
        assert session.max_batch == 4
        for batch in (1, 4, 2) * 4:  # enqueued, captured, and launched as a graph
            actual = session.run({"pixels": pixels[:batch]})["embedding"]
            np.testing.assert_allclose(actual, expected[:batch], rtol=2e-3, atol=2e-3)
        phases = session.phases({"pixels": pixels})
        assert phases is not None and phases.gpu_ms > 0 and phases.copy_in_ms >= 0
        other = session.shared()
        assert other is not None
        with other, ThreadPoolExecutor(4) as pool:
            for actual in pool.map(lambda side: side.run({"pixels": pixels})["embedding"], (session, other) * 50):
                np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=2e-3)
