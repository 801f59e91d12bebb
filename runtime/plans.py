"""A plan becomes an engine, and an engine gets execution contexts: TensorRT's calls around `enginesession.py`.

Only names that 10.3 to 11.4 have are used, and TensorRT-RTX's own behind a question whether they are there; a test
holds that against the real bindings.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from mmcompress.errors import CorruptInputError, MissingRequirementError
from mmcompress.manifest import Graph
from mmcompress.progress import say
from mmcompress.runtime.profiles import Batches


def load_engine(module: ModuleType, plan: bytes, graph: Graph) -> Any:
    """Deserialize a plan, and hold its tensors against what the manifest states."""
    runtime = module.Runtime(module.Logger(module.Logger.WARNING))
    check_validity(module, runtime, plan, graph.file)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise CorruptInputError(
            f"{module.__name__} {module.__version__} refuses to load {graph.file}",
            "its log above says why; build the engine again on this machine",
        )
    for spec in (*graph.inputs, *graph.outputs):
        dtype = np.dtype(module.nptype(engine.get_tensor_dtype(spec.name)))
        if dtype != np.dtype(spec.dtype):
            raise CorruptInputError(
                f"{graph.file} has {spec.name!r} of {dtype}, and its manifest says {spec.dtype}",
                "build the engine again",
            )
    return engine


def check_validity(module: ModuleType, runtime: Any, plan: bytes, file: str) -> None:
    """Of TensorRT-RTX, which alone says before it loads an engine whether and why it does not fit."""
    if not hasattr(runtime, "get_engine_validity"):
        return
    validity, bits = runtime.get_engine_validity(plan)
    reasons = ", ".join(
        name.lower().replace("_", " ")
        for name, reason in module.EngineInvalidityDiagnostics.__members__.items()
        if int(bits) & int(reason)
    )
    if validity == module.EngineValidity.INVALID:
        raise CorruptInputError(
            f"{module.__name__} {module.__version__} does not run {file} here: {reasons or 'it does not say why'}",
            "its log above may say more; build the engine for this machine: mmcompress build … --target native",
        )
    if validity == module.EngineValidity.SUBOPTIMAL:
        say("", file, f"{module.__name__} says that this engine is slower here than one built for this GPU: {reasons}")


def new_context(module: ModuleType, engine: Any) -> Any:
    """An execution context that computes in memory of ours."""
    strategy = module.ExecutionContextAllocationStrategy.USER_MANAGED
    if hasattr(module, "DynamicShapesKernelSpecializationStrategy"):  # TensorRT-RTX compiles kernels as it runs
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        config.dynamic_shapes_kernel_specialization_strategy = module.DynamicShapesKernelSpecializationStrategy.EAGER
        context = engine.create_execution_context(config)
    else:
        context = engine.create_execution_context(strategy)
    if context is None:
        raise MissingRequirementError("the GPU has no memory left for this engine", "free some: nvidia-smi")
    return context


def profiles_of(engine: Any, name: str) -> list[Batches]:
    """Batches of each optimization profile, which are the first axis of every input."""
    shapes = (engine.get_tensor_profile_shape(name, number) for number in range(engine.num_optimization_profiles))
    return [(int(smallest[0]), int(usual[0]), int(largest[0])) for smallest, usual, largest in shapes]
