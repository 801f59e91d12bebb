"""A plan becomes an engine, and an engine gets execution contexts: TensorRT's calls around `enginesession.py`.

Only names that 10.3 to 11.4 have are used, and TensorRT-RTX's own behind a question whether they are there; a test
holds that against the real bindings.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mmcompress.drafts import written_whole
from mmcompress.errors import CorruptInputError, MissingRequirementError
from mmcompress.manifest import Graph
from mmcompress.places import cache_folder
from mmcompress.progress import say
from mmcompress.runtime.profiles import Batches


@dataclass(eq=False)
class LoadedEngine:
    """A deserialized engine, which sessions share; TensorRT frees it when the last of them is closed."""

    module: ModuleType
    engine: Any
    profiles: Sequence[Batches]
    kernels: Path
    """File of the kernels that TensorRT-RTX compiled for this engine on this GPU, in the user's cache folder: an
    artifact's own folder takes no file that its manifest does not name."""
    cache: Any = None
    """The same in memory, where this TensorRT has one."""
    kept: bytes = b""
    """What the file held when it was read, or was last written."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def context(self) -> Any:
        """An execution context that computes in memory of ours."""
        strategy = self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        with self.lock:
            if hasattr(self.module, "DynamicShapesKernelSpecializationStrategy"):  # TensorRT-RTX compiles as it runs
                context = self.engine.create_execution_context(self._config(strategy))
            else:
                context = self.engine.create_execution_context(strategy)
        if context is None:
            raise MissingRequirementError("the GPU has no memory left for this engine", "free some: nvidia-smi")
        return context

    def _config(self, strategy: Any) -> Any:
        """Of TensorRT-RTX: kernels for the shape at hand are compiled at once, as a graph would keep the fallbacks.
        What was compiled before is taken if TensorRT-RTX finds that it was for this GPU, driver and version."""
        config = self.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        at_once = self.module.DynamicShapesKernelSpecializationStrategy.EAGER
        config.dynamic_shapes_kernel_specialization_strategy = at_once
        if self.cache is None:
            cache = config.create_runtime_cache()
            with suppress(OSError):
                if cache.deserialize(stored := self.kernels.read_bytes()):
                    self.kept = stored
            self.cache = cache
        config.set_runtime_cache(self.cache)
        return config

    def keep_kernels(self) -> None:
        """Write what was compiled for the next process. A folder that cannot be written costs it that time again."""
        cache = self.cache
        serialized = None if cache is None else cache.serialize()
        if serialized is None or (compiled := bytes(serialized)) == self.kept:
            return
        with suppress(OSError):
            with written_whole(self.kernels) as stream:
                stream.write(compiled)
            self.kept = compiled


def load_engine(module: ModuleType, plan: bytes, graph: Graph) -> LoadedEngine:
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
    kernels = cache_folder() / "kernels" / hashlib.sha256(plan).hexdigest()
    return LoadedEngine(module, engine, profiles_of(engine, graph.inputs[0].name), kernels)


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


def profiles_of(engine: Any, name: str) -> list[Batches]:
    """Batches of each optimization profile, which are the first axis of every input."""
    shapes = (engine.get_tensor_profile_shape(name, number) for number in range(engine.num_optimization_profiles))
    return [(int(smallest[0]), int(usual[0]), int(largest[0])) for smallest, usual, largest in shapes]


def enter_profile(context: Any, number: int, stream: int, file: str) -> None:
    """Let an execution context run in a profile; the change is enqueued on a stream.

    Raises MissingRequirementError where TensorRT refuses, by RuntimeError as its bindings do, or by False.
    """
    said = "its log above says why"
    try:
        taken = context.set_optimization_profile_async(number, stream)
    except RuntimeError as error:
        taken, said = False, f"{error}; {said}"
    if not taken:
        raise MissingRequirementError(f"TensorRT could not take profile {number} of {file}", said)
