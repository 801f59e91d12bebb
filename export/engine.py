"""One engine from one ONNX graph: targets, profiles, the builder's log, and its errors in our words.

The module is an argument, `tensorrt` or `tensorrt_rtx`, and only names that exist in both are used, so what is built
without a GPU is what is built on one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mmcompress.config import Backend
from mmcompress.errors import CorruptInputError, MissingRequirementError, MMCompressError, UsageError
from mmcompress.export.audit import audit_of, quantized_linears
from mmcompress.export.document import Audit
from mmcompress.export.layers import Layer, layers_of_inspector, layers_of_log
from mmcompress.export.parserrules import check_graph
from mmcompress.export.tuning import Tuning, apply_tuning, keep_timings, profiles_for_batches
from mmcompress.manifest import TensorSpec
from mmcompress.runtime.plans import enter_profile
from mmcompress.runtime.profiles import Batches

NATIVE = "native"
_FIRST_FP8 = 89
"""Compute capability from which tensor cores multiply FP8 (Ada)."""
_NO_GPU = re.compile(r"cudaError|CUDA (initialization|driver|error)|no CUDA-capable|driver version", re.IGNORECASE)
_NO_MEMORY = re.compile(r"out of memory|memory allocation|insufficient memory|workspace", re.IGNORECASE)
_NO_KERNEL = re.compile(r"could not find any implementation|no implementation|no tactic|has no .*tactic", re.IGNORECASE)


@dataclass(frozen=True)
class Engine:
    """A serialized engine and what the builder said of it."""

    plan: bytes
    audit: Audit
    warnings: tuple[str, ...]
    profiles: tuple[Batches, ...] = ()
    """Smallest, usual and largest batch of each optimization profile."""
    sparsity: tuple[str, ...] = ()
    """Its lines on sparse kernels; TensorRT-RTX 1.7 writes none, and gives the same engine with and without them."""


def supported_targets(trt: ModuleType) -> dict[str, object]:
    """`sm86` -> the module's own constant; empty for a TensorRT that builds for its own GPU only."""
    capability = getattr(trt, "ComputeCapability", None)
    names = [name for name in dir(capability) if name.startswith("SM") and name[2:].isdigit()]
    return {name.lower(): getattr(capability, name) for name in sorted(names, key=lambda n: int(n[2:]))}


def checked_targets(trt: ModuleType, backend: Backend, targets: Sequence[str]) -> tuple[str, ...]:
    """The targets, or UsageError for one that this TensorRT does not build for."""
    known = supported_targets(trt)
    for target in targets:
        if target != NATIVE and target not in known:
            listed = (
                f"{', '.join(known)} and {NATIVE}" if known else f"{NATIVE} only, the GPU of the machine it runs on"
            )
            raise UsageError(f"{backend} does not build for {target!r}", f"it builds for {listed}")
    if not targets:
        raise UsageError("there is no target to build for", f"give one of {', '.join((*known, NATIVE))}")
    return tuple(dict.fromkeys(targets))


def check_precision(path: Path, quantized: Mapping[str, str], target: str) -> None:
    """Raise UsageError for FP8 on a GPU that has none."""
    if "fp8" in quantized.values() and target != NATIVE and int(target.removeprefix("sm")) < _FIRST_FP8:
        raise UsageError(
            f"{path.name} has {len(quantized)} Linears in FP8, which {target} does not compute",
            f"FP8 is for sm{_FIRST_FP8} and later: name those targets, or build the INT8 or FP16 graph",
        )


def engine_from_onnx(
    trt: ModuleType,
    path: Path,
    inputs: Sequence[TensorSpec],
    *,
    target: str,
    batches: Batches,
    sparse: bool = False,
    tuning: Tuning | None = None,
    checked: bool = True,
) -> Engine:
    """Build one engine. `inputs` says which axes are dynamic: they take the smallest, usual and largest batch.

    A graph that is not `checked` goes to TensorRT's parser as it is, which finds the same faults and says less.

    Raises UsageError with the node where TensorRT does not take the graph, or has no kernel for it;
    MissingRequirementError where it needs a GPU or memory that is not there.
    """
    rtx, tuning = bool(supported_targets(trt)), tuning or Tuning()
    quantized = quantized_linears(path)
    check_precision(path, quantized, target)
    log = _log_of(trt)
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # pybind11 got a null pointer: no driver
        raise MissingRequirementError(
            f"{trt.__name__} cannot build here: {_last_error(log) or error}",
            "run this on a machine with an NVIDIA GPU and its driver, or build with --backend tensorrt-rtx",
        ) from error
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, log)
    if checked:
        check_graph(path, parser.supports_operator)
    _parse(trt, parser, path)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if sparse:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if rtx:
        capability = trt.ComputeCapability.CURRENT if target == NATIVE else supported_targets(trt)[target]
        config.num_compute_capabilities = 1
        config.set_compute_capability(capability, 0)
    else:
        apply_tuning(trt, config, tuning)
    dynamic = [spec for spec in inputs if None in spec.shape]
    profiles = profiles_for_batches(batches, rtx) if dynamic else ()
    for batches_of_one in profiles:
        profile = builder.create_optimization_profile()
        for spec in dynamic:
            profile.set_shape(spec.name, *_profile_shapes(spec, batches_of_one, path))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _not_built(trt, path, target, _errors(log))
    if not rtx:
        keep_timings(config, tuning)
    plan = bytes(plan)
    messages = [text for _, text in log.lines]
    warnings = tuple(dict.fromkeys(text for severity, text in log.lines if severity == "WARNING"))
    sparsity = tuple(text.strip() for text in messages if "(Sparsity)" in text)
    layers = layers_of_log(messages) if rtx else inspected_layers(trt, log, plan, dynamic, profiles, path)
    return Engine(plan, audit_of(layers, quantized, messages), warnings, profiles, sparsity)


def inspected_layers(
    trt: ModuleType, log: Any, plan: bytes, dynamic: Sequence[TensorSpec], profiles: Sequence[Batches], path: Path
) -> list[Layer]:
    """The layers of every profile of an engine by TensorRT's inspector, which needs the GPU that it was built on.

    The inspector knows formats only by a context that is in a profile and has all input shapes: here of its usual batch
    (TensorRT developer guide, "Engine Inspector").
    """
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise CorruptInputError(f"{trt.__name__} does not load what it built: {_last_error(log)}", "update the driver")
    context = engine.create_execution_context()
    if context is None:
        raise MissingRequirementError(
            f"{trt.__name__} cannot open what it built from {path.name} for its audit: {_last_error(log)}",
            "free memory of the GPU, or build for smaller --batches",
        )
    inspector = engine.create_engine_inspector()
    layers: list[Layer] = []
    for number in range(max(1, len(profiles))):
        if profiles:
            enter_profile(context, number, 0, path.name)
        for spec in dynamic:
            _, usual, _ = _profile_shapes(spec, profiles[number], path)
            if not context.set_input_shape(spec.name, usual):
                raise MissingRequirementError(
                    f"{trt.__name__} does not take {spec.name!r} of shape {usual} for the audit of {path.name}",
                    "its log above says why",
                )
        inspector.execution_context = context
        told = layers_of_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON), number)
        if not told:  # what is in the other profiles says nothing of this one
            return []
        layers += told
    return layers


def _not_built(trt: ModuleType, path: Path, target: str, errors: Sequence[str]) -> MMCompressError:
    """Why there is no engine: no GPU, no memory, no kernel, or what TensorRT says."""

    def said(pattern: re.Pattern[str]) -> str | None:
        return next((error for error in errors if pattern.search(error)), None)

    what = f"{trt.__name__} built no engine for {target} from {path.name}"
    if reason := said(_NO_KERNEL):
        return UsageError(
            f"{what}: it has no kernel for a part of it: {reason}",
            "let it use more memory (--workspace-mb), or build the graph in another precision",
        )
    if reason := said(_NO_MEMORY):
        return MissingRequirementError(f"{what}: {reason}", "free memory of the GPU, or build for smaller --batches")
    if reason := said(_NO_GPU):
        hint = "run this on a machine with an NVIDIA GPU and its driver, or name the targets: --target sm86"
        return MissingRequirementError(f"{what}: there is no GPU to build on: {reason}", hint)
    return UsageError(
        f"{what}: {errors[-1] if errors else 'it gave no reason'}", "try another target, or another precision"
    )


def _strongly_typed(trt: ModuleType) -> int:
    """The creation flag of TensorRT 10; later ones know nothing else and may drop it."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(trt: ModuleType, parser: Any, path: Path) -> None:
    if parser.parse_from_file(str(path)):
        return
    if not parser.num_errors:
        raise CorruptInputError(f"{trt.__name__} cannot read {path}", "export it again")
    error = parser.get_error(0)
    raise UsageError(
        f"{trt.__name__} does not take {path} ({parser.num_errors} errors): node {_node(error)}: {error.desc()}",
        "export the checkpoint with mmcompress; TensorRT takes no zero points other than 0 and no QOperator nodes",
    )


def _node(error: Any) -> str:
    """Name and operator of the node that a parser error is about."""
    name = error.node_name() if hasattr(error, "node_name") else ""
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    return f"{name or error.node()!r}{f' ({operator})' if operator else ''}"


def _profile_shapes(spec: TensorSpec, batches: Batches, path: Path) -> list[tuple[int, ...]]:
    """(None, 3, 64, 64) -> (1, 3, 64, 64), (8, 3, 64, 64), (32, 3, 64, 64)."""
    first, *rest = spec.shape
    if first is not None or None in rest:
        raise UsageError(f"{path}: input {spec.name!r} is {spec.shape}", "only the first axis may be dynamic")
    if not 1 <= batches[0] <= batches[1] <= batches[2]:
        raise UsageError(f"batches {list(batches)} do not rise", "give smallest, usual and largest, [1, 8, 32] say")
    return [(batch, *(side or 1 for side in rest)) for batch in batches]


def _log_of(trt: ModuleType) -> Any:
    """A logger that keeps every line; the module's base class is only known at run time."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[str, str]] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append((severity.name, message))

    return Log()


def _errors(log: Any) -> list[str]:
    return [text.strip() for severity, text in log.lines if severity in ("ERROR", "INTERNAL_ERROR")]


def _last_error(log: Any) -> str:
    return (_errors(log) or [""])[-1]
