"""Engines: the passport and the errors of a machine without a GPU everywhere, execution where there is one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from stand_in_driver import Driver, round_trip
from toy_model import SIDE

from mmcompress.artifact import Artifact
from mmcompress.errors import CorruptInputError, MissingRequirementError
from mmcompress.manifest import Kind
from mmcompress.runtime import tensorrt
from mmcompress.runtime.backends import available_backends, graph_for
from mmcompress.runtime.gpu import open_cuda
from mmcompress.runtime.libcuda import LibCuda
from mmcompress.runtime.tensorrt import Machine, check_passport, passport_differences

Make = Callable[..., Artifact]
HERE = Machine("tensorrt-rtx", "1.7.1.116", "sm89")


@pytest.fixture
def engine(make_artifact: Make) -> Artifact:
    facts = {"backend": "tensorrt-rtx", "tensorrt_version": "1.7.1.116"}
    return make_artifact("engine", precisions=("int8",), facts=facts, kind=Kind.ENGINE, targets=("sm86", "sm89"))


def graph_of(engine: Artifact, target: str) -> Any:
    return next(graph for graph in engine.manifest.graphs if graph.target == target)


def test_a_fitting_passport(engine: Artifact) -> None:
    assert passport_differences(engine.manifest, graph_of(engine, "sm89"), HERE) == []
    check_passport(engine, graph_of(engine, "sm89"), HERE)


@pytest.mark.parametrize(
    ("target", "here", "differences"),
    [
        ("sm86", HERE, ["GPU: the engine is for sm86, here it is sm89"]),
        (
            "sm89",
            Machine("tensorrt-rtx", "1.8.0", "sm89"),
            ["TensorRT version: the engine is for 1.7.1.116, here it is 1.8.0"],
        ),
        (
            "sm89",
            Machine("tensorrt", "11.4.1", "sm87"),
            [
                "backend: the engine is for tensorrt-rtx, here it is tensorrt",
                "TensorRT version: the engine is for 1.7.1.116, here it is 11.4.1",
                "GPU: the engine is for sm89, here it is sm87",
            ],
        ),
    ],
)
def test_every_difference_is_said(engine: Artifact, target: str, here: Machine, differences: list[str]) -> None:
    with pytest.raises(CorruptInputError) as caught:
        check_passport(engine, graph_of(engine, target), here)
    assert caught.value.what.endswith("does not fit this machine: " + "; ".join(differences))
    assert f"mmcompress build ONNX_ARTIFACT --backend {here.backend} --target native" in caught.value.hint
    assert caught.value.exit_code == 4


def test_an_engine_without_a_passport_is_refused(make_artifact: Make) -> None:
    bare = make_artifact("bare", precisions=("int8",), kind=Kind.ENGINE, targets=("sm89",))
    with pytest.raises(CorruptInputError, match="backend: the engine is for an unknown one"):
        check_passport(bare, graph_of(bare, "sm89"), HERE)


def test_the_engine_of_this_gpu_is_chosen(engine: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "this_machine", lambda backend: HERE)
    assert graph_for(engine, "image", "tensorrt-rtx").target == "sm89"
    monkeypatch.setattr(tensorrt, "this_machine", lambda backend: Machine("tensorrt-rtx", "1.7.1.116", "sm87"))
    with pytest.raises(CorruptInputError, match="are for sm86, sm89, and the GPU here is sm87"):
        graph_for(engine, "image", "tensorrt-rtx")


@pytest.mark.parametrize(("init", "said"), [(100, "cuInit answers CUDA_ERROR_NO_DEVICE (100)"), (0, "0 devices")])
def test_no_gpu_is_said_with_the_drivers_answer(
    engine: Artifact, driver: Driver, monkeypatch: pytest.MonkeyPatch, init: int, said: str
) -> None:
    driver.reset(init=init, devices=0)
    monkeypatch.setattr(tensorrt, "open_cuda", lambda: LibCuda(driver.library))
    rtx = ModuleType("tensorrt_rtx")
    rtx.__version__ = "1.7.1.116"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)
    with pytest.raises(MissingRequirementError) as caught:
        graph_for(engine, "image", "tensorrt-rtx")
    assert caught.value.what.startswith("there is no NVIDIA GPU to run on: ") and said in caught.value.what
    assert caught.value.exit_code == 3
    assert available_backends()["tensorrt-rtx"] == caught.value.what


def test_no_tensorrt_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingRequirementError) as caught:
        tensorrt.this_machine("tensorrt")
    assert caught.value.hint == "pip install 'mmcompress[tensorrt]'"


@pytest.mark.gpu
def test_copies_and_events_on_the_gpu() -> None:
    given = np.random.default_rng(0).standard_normal((4, 3, SIDE, SIDE), dtype=np.float32)
    np.testing.assert_array_equal(round_trip(open_cuda(), given), given)


@pytest.mark.gpu
def test_an_engine_answers_as_onnxruntime_does(make_artifact: Make, tmp_path: Any) -> None:
    """Built here with the same module that runs it; the image tower of the toy model in FP32."""
    from mmcompress.runtime.backends import open_session

    backend: Any = "tensorrt-rtx"
    module = tensorrt.tensorrt_module(backend)
    here = tensorrt.this_machine(backend)
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
    graph = source.manifest.graphs[0].model_copy(update={"file": "image.engine", "target": here.target})
    with Artifact.create(tmp_path / "built", kind=Kind.ENGINE, stage="build", key="") as draft:
        (draft.path / "image.engine").write_bytes(bytes(plan))
        draft.graphs.append(graph)
        draft.facts = {"backend": backend, "tensorrt_version": here.version}
    built = Artifact.open(tmp_path / "built")
    pixels = np.random.default_rng(0).standard_normal((4, 3, SIDE, SIDE), dtype=np.float32)
    with open_session(source, graph_for(source, "image", "onnxruntime"), "onnxruntime") as reference:
        expected = reference.run({"pixels": pixels})["embedding"]
    with open_session(built, graph_for(built, "image", backend), backend) as session:
        assert session.max_batch == 4
        for batch in (1, 4, 2):
            actual = session.run({"pixels": pixels[:batch]})["embedding"]
            np.testing.assert_allclose(actual, expected[:batch], rtol=2e-3, atol=2e-3)
