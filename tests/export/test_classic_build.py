"""Classic TensorRT's builder, with a stand-in for the module: profiles, tuning, timings that are kept, and why not."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmcompress.config import BuildConfig
from mmcompress.errors import GateFailedError, MissingRequirementError, MMCompressError, UsageError
from mmcompress.export import engine as engines
from mmcompress.export.audit import check_audit
from mmcompress.export.build import tuning_of
from mmcompress.export.tuning import Tuning, profiles_for_batches, timing_cache_of
from mmcompress.manifest import TensorSpec
from mmcompress.runtime.passport import Machine

PIXELS = (TensorSpec(name="pixels", shape=(None, 3, 32, 32), dtype="float32"),)
UNTOLD = "N/A due to dynamic shapes"


def gemm(batch: int, datatype: str, mark: str = "") -> dict[str, Any]:
    """An inspector's entry of a Linear; `mark` is ` [profile 1]` in a listing of all profiles."""
    tensor = {"Dimensions": [batch, 64], "Format/Datatype": datatype}
    node = "image.blocks.0.qkv"
    return {
        "Name": f"{node}{mark}",
        "LayerType": "gemm",
        "Inputs": [tensor],
        "Outputs": [tensor],
        "Metadata": f"[ONNX Layer: {node}]",
    }


class Context:
    """An execution context of the stand-in, in the profile and of the batch that were set."""

    def __init__(self, trt: Classic) -> None:
        self.trt, self.profile, self.batch = trt, -1, -1

    def set_optimization_profile_async(self, number: int, stream: int) -> bool:
        self.profile, self.batch = number, -1
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self.trt.config.profiles[self.profile][name]
        self.batch = shape[0]
        return bool(smallest[0] <= shape[0] <= largest[0])


class Inspector:
    """Tells types only by a context whose shapes are set, as TensorRT's does."""

    execution_context: Context | None = None

    def __init__(self, trt: Classic) -> None:
        self.trt = trt

    def get_engine_information(self, form: str) -> str:
        assert form == "json"
        context = self.execution_context
        if context is None or context.batch < 0:
            return json.dumps({"Layers": [gemm(-1, UNTOLD)]})
        self.trt.inspected.append(context.batch)
        mark = f" [profile {context.profile}]" if context.profile else ""
        told = gemm(context.batch, self.trt.types[context.profile], mark)
        return json.dumps({"Layers": [told, gemm(-1, UNTOLD, "" if mark else " [profile 1]")]})


ORIN = Machine(backend="tensorrt", tensorrt="10.3.0", target="sm87", gpu="Orin", board="NVIDIA Jetson Orin Nano")


class Config:
    """A builder's config that keeps what it is told."""

    def __init__(self, trt: Classic) -> None:
        self.trt = trt
        self.profiles: list[Any] = []
        self.limits: dict[str, int] = {}
        self.cache: Any = None

    def add_optimization_profile(self, profile: Any) -> None:
        self.profiles.append(profile.shapes)

    def set_memory_pool_limit(self, pool: str, size_bytes: int) -> None:
        self.limits[pool] = size_bytes

    def create_timing_cache(self, known: bytes) -> Any:
        if known.startswith(b"damaged"):
            return None
        return SimpleNamespace(known=known, serialize=lambda: known + b"+")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        fits = not cache.known.startswith(b"other")
        if fits:
            self.cache = cache
        return fits

    def get_timing_cache(self) -> Any:
        return self.cache


class Classic:
    """Passes for the module `tensorrt` with a GPU."""

    __name__, __version__ = "tensorrt", "10.3.0"
    ProfilingVerbosity = SimpleNamespace(DETAILED=2)
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    HardwareCompatibilityLevel = SimpleNamespace(NONE=0, AMPERE_PLUS=1)
    LayerInformationFormat = SimpleNamespace(JSON="json")
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)

    class ILogger:
        def __init__(self) -> None:
            pass

    def __init__(self, errors: tuple[str, ...] = (), types: tuple[str, ...] = ("Half", "Half")) -> None:
        self.config, self.errors, self.types = Config(self), errors, types
        self.inspected: list[int] = []
        """Batches whose layers the inspector told of."""
        self.has_memory = True
        self.OnnxParser = lambda network, log: SimpleNamespace(
            parse_from_file=lambda path: True, supports_operator=lambda operator: True
        )
        engine = SimpleNamespace(
            create_engine_inspector=lambda: Inspector(self),
            create_execution_context=lambda: Context(self) if self.has_memory else None,
        )
        self.Runtime = lambda log: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)

    def Builder(self, log: Any) -> Any:  # noqa: N802
        def profile() -> Any:
            shapes: dict[str, Any] = {}
            return SimpleNamespace(shapes=shapes, set_shape=lambda name, *three: shapes.update({name: three}))

        def serialized(network: Any, config: Config) -> bytes | None:
            for error in self.errors:
                log.log(SimpleNamespace(name="ERROR"), error)
            return None if self.errors else b"plan"

        return SimpleNamespace(
            create_network=lambda flags: None,
            create_builder_config=lambda: self.config,
            create_optimization_profile=profile,
            build_serialized_network=serialized,
        )


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(engines, "quantized_linears", lambda path: {})
    monkeypatch.setattr(engines, "check_graph", lambda path, supported: None)
    return tmp_path / "image-fp16.onnx"


def built(trt: Classic, graph: Path, batches: tuple[int, int, int] = (1, 8, 32), **tuning: Any) -> engines.Engine:
    module: Any = trt
    return engines.engine_from_onnx(module, graph, PIXELS, target="native", batches=batches, tuning=Tuning(**tuning))


def test_batch_one_has_a_profile_by_itself(graph: Path) -> None:
    trt = Classic()
    engine = built(trt, graph)
    assert engine.profiles == ((1, 1, 1), (2, 8, 32))
    assert (engine.audit.layers, engine.audit.products) == (1, {"fp16": 1}), "what one call starts"
    assert trt.inspected == [1, 8], "each in its usual batch"
    shapes = [[shape[0] for shape in profile["pixels"]] for profile in trt.config.profiles]
    assert shapes == [[1, 1, 1], [2, 8, 32]]


def test_every_profile_is_audited(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "quantized_linears", lambda path: {"image.blocks.0.qkv": "int8"})
    check_audit(built(Classic(types=("Int8", "Int8")), graph).audit, "e")
    for types, said in (
        (("Int8", "Half"), r"fell back as a whole: none of its 1 INT8 Linears is, all are fp16"),
        (("Half", "Int8"), r"fell back as a whole: none of its 1 INT8 Linears is, all are fp16"),
        (("Int8", UNTOLD), r"does not say in which type e computes 1 of its 1 INT8 Linears.*: image\.blocks\.0\.qkv"),
    ):
        with pytest.raises(GateFailedError, match=said) as caught:
            check_audit(built(Classic(types=types), graph).audit, "e")
        assert "--allow-fallback" in caught.value.hint


def test_no_memory_for_the_audit(graph: Path) -> None:
    trt = Classic()
    trt.has_memory = False
    with pytest.raises(MissingRequirementError, match=r"cannot open what it built from image-fp16\.onnx for its audit"):
        built(trt, graph)


@pytest.mark.parametrize(
    ("batches", "rtx", "profiles"),
    [
        ((1, 8, 32), True, ((1, 8, 32),)),
        ((1, 1, 1), False, ((1, 1, 1),)),
        ((1, 1, 8), False, ((1, 1, 1), (2, 2, 8))),
        ((4, 8, 16), False, ((4, 8, 16),)),
    ],
)
def test_profiles_cover_the_batches(batches: Any, rtx: bool, profiles: Any) -> None:
    assert profiles_for_batches(batches, rtx) == profiles


def test_tuning_reaches_the_builder_and_timings_are_kept(graph: Path, tmp_path: Path) -> None:
    cache = tmp_path / "timing" / "a.cache"
    trt = Classic()
    built(trt, graph, workspace_mb=512, optimization_level=5, reach="Ampere and later", timings=cache)
    assert trt.config.limits == {"workspace": 512 << 20}
    assert (trt.config.builder_optimization_level, trt.config.hardware_compatibility_level) == (5, 1)  # type: ignore[attr-defined]
    assert cache.read_bytes() == b"+" and [file.name for file in cache.parent.iterdir()] == ["a.cache"]
    again = Classic()
    built(again, graph, timings=cache)
    assert again.config.cache.known == b"+" and cache.read_bytes() == b"++"
    assert not hasattr(again.config, "builder_optimization_level") and not again.config.limits


@pytest.mark.parametrize("known", [b"other version", b"damaged"])
def test_timings_that_do_not_fit_are_left_alone(known: bytes, graph: Path, tmp_path: Path) -> None:
    cache = tmp_path / "a.cache"
    cache.write_bytes(known)
    built(Classic(), graph, timings=cache)
    assert cache.read_bytes() == b"+"


def test_a_cache_that_cannot_be_written_loses_no_build(
    graph: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert built(Classic(), graph, timings=tmp_path / "file" / "a.cache").plan == b"plan", "no folder can be made"
    assert "what was timed is not kept" in " ".join(capfd.readouterr().err.split())

    def full(self: Path, _: Path) -> Path:
        assert self.is_file()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert built(Classic(), graph, timings=tmp_path / "full" / "a.cache").plan == b"plan"
    assert "No space left on device" in " ".join(capfd.readouterr().err.split())
    assert list((tmp_path / "full").iterdir()) == [], "what was begun is gone"


def test_a_cache_is_of_one_version_and_one_gpu() -> None:
    name = timing_cache_of(ORIN).name
    assert name == "tensorrt-10.3.0-Orin-NVIDIA-Jetson-Orin-Nano.cache"
    assert timing_cache_of(ORIN.model_copy(update={"tensorrt": "10.4.0"})).name != name
    assert timing_cache_of(ORIN.model_copy(update={"board": "NVIDIA Jetson AGX Orin"})).name != name


def test_only_classic_tensorrt_is_tuned() -> None:
    assert tuning_of(BuildConfig(backend="tensorrt", targets=("native",)), ORIN).timings == timing_cache_of(ORIN)
    assert tuning_of(BuildConfig(backend="tensorrt", timing_cache=False), ORIN).timings is None
    assert tuning_of(BuildConfig(), ORIN) == Tuning()
    for key, value in {"workspace_mb": 64, "optimization_level": 3, "reach": "this GPU", "timing_cache": True}.items():
        with pytest.raises(ValueError, match=f"{key} is of TensorRT, and TensorRT-RTX times no kernels"):
            BuildConfig.model_validate({key: value})


@pytest.mark.parametrize("reach", ["same compute capability", "Ampere and later"])
def test_an_engine_of_a_jetson_reaches_no_other_gpu(reach: Any) -> None:
    config = BuildConfig(backend="tensorrt", targets=("native",), reach=reach)
    with pytest.raises(UsageError, match="is not for NVIDIA Jetson Orin Nano: TensorRT has no hardware compatibility"):
        tuning_of(config, ORIN)
    assert tuning_of(config, ORIN.model_copy(update={"board": None})).reach == reach
    assert tuning_of(config.model_copy(update={"reach": "this GPU"}), ORIN).reach == "this GPU"


def test_a_level_that_this_version_lacks_is_refused(graph: Path) -> None:
    with pytest.raises(UsageError, match=r"tensorrt 10\.3\.0 makes no engines for 'same compute capability'"):
        built(Classic(), graph, reach="same compute capability")


@pytest.mark.parametrize(
    ("errors", "kind", "said", "hint"),
    [
        (
            (
                "Error Code 10: Internal Error (Could not find any implementation for node image.blocks.0.qkv.)",
                "failed",
            ),
            UsageError,
            "has no kernel for a part of it: .*image.blocks.0.qkv",
            "--workspace-mb",
        ),
        (
            ("Error Code 2: OutOfMemory (no further information)", "CUDA error: out of memory", "Engine failed"),
            MissingRequirementError,
            "out of memory",
            "free memory",
        ),
        (
            ("Error Code 6: API Usage Error (CUDA initialization failure with error: 35)",),
            MissingRequirementError,
            "there is no GPU to build on: .*CUDA initialization",
            "on a machine with an NVIDIA GPU",
        ),
        (("Error Code 4: odd shape",), UsageError, "Error Code 4: odd shape", "another precision"),
    ],
)
def test_why_there_is_no_engine_is_told_apart(
    errors: tuple[str, ...], kind: type[MMCompressError], said: str, hint: str, graph: Path
) -> None:
    with pytest.raises(kind, match=said) as caught:
        built(Classic(errors), graph)
    assert hint in caught.value.hint
