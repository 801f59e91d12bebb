"""A session on a TensorRT engine: one execution context and one CUDA graph a batch size, on a stream of its own.

Where the time goes, and what is done about it. Enqueueing a hundred kernels takes longer than a small tower computes,
so the second call of a batch size captures a CUDA graph and later ones launch it. TensorRT ties a graph to the context
that it was captured from and to every address in it (TensorRT developer guide, "CUDA Graphs"), so each batch size has a
context, all contexts share one piece of scratch memory, and a piece of memory that grows drops them all. Copies are
asynchronous, from and to pinned memory (`buffers.py`), and stay outside the graph, so that events tell them apart from
the engine as `trtexec` does.

Ownership: `run` copies what it is fed before it returns, and what it returns is the caller's. Threads may share a
session: one call at a time runs, the others wait; to run side by side they open sessions of their own. A call that
fails leaves a session that works, or one that is closed where the GPU itself does not answer any more. Nobody has run
this on a GPU: order, addresses, shapes and frees are held by stand-ins for the driver and for TensorRT.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.errors import CorruptInputError, MissingRequirementError, MMCompressError, UsageError
from mmcompress.manifest import Graph, TensorSpec
from mmcompress.progress import say
from mmcompress.runtime.buffers import Buffers
from mmcompress.runtime.cuda import Cuda
from mmcompress.runtime.profiles import Batches, profile_for
from mmcompress.runtime.session import Feeds, Session, check_feeds

MOST_SIZES = 8
"""Batch sizes with a context and a graph of their own; beyond, the one that was used longest ago is dropped."""
Arrays = dict[str, NDArray[Any]]
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Phases:
    """Where one call spent its time, in milliseconds, by events on the stream, under the names of `trtexec`."""

    enqueue_ms: float
    """Host time of enqueueing or launching the engine: "Enqueue Time"."""
    copy_in_ms: float
    """ "H2D Latency"; about 0 where memory is mapped."""
    gpu_ms: float
    """ "GPU Compute Time"."""
    copy_out_ms: float
    """ "D2H Latency"."""


@dataclass(eq=False)
class Call:
    """What calls of one batch size repeat."""

    context: Any
    inputs: Arrays
    """Pinned, by name."""
    outputs: Arrays
    graph: int | None = None
    runs: int = 0


class TensorRTSession(Session):
    """Owns the engine, a stream and its memory until closed."""

    def __init__(self, module: ModuleType, plan: bytes, graph: Graph, cuda: Cuda) -> None:
        self._module, self._cuda, self._file = module, cuda, graph.file
        self._lock = threading.RLock()
        self._closed = False
        self._calls: dict[Shapes, Call] = {}
        self._buffers = Buffers(cuda)
        self._owned = ExitStack()
        self._events: list[int] = []
        self.inputs: tuple[TensorSpec, ...] = graph.inputs
        self.outputs: tuple[TensorSpec, ...] = graph.outputs
        self.device = cuda.device.name
        self.uncaptured: str | None = None if cuda.graphs else "pycuda captures no graphs"
        """Why calls are enqueued and not launched as a graph; None where they are."""
        with cuda.current():
            self._engine: Any = load_engine(module, plan, graph)
            self.profiles = profiles_of(self._engine, self.inputs[0].name)
            self._stream = cuda.open_stream()
            self._owned.callback(cuda.close_stream, self._stream)
        self.max_batch: int | None = max(largest for _, _, largest in self.profiles)

    def _run(self, feeds: Arrays) -> Arrays:
        with self._entered():
            return self._answered(feeds, self._enqueue)

    def timed(self, feeds: Feeds) -> tuple[Arrays, Phases]:
        """As `run`, with where the time went."""
        checked = check_feeds(feeds, self.inputs)
        with self._entered():
            if not self._events:
                for _ in range(4):
                    self._events.append(self._cuda.open_event())
                    self._owned.callback(self._cuda.close_event, self._events[-1])
            took: list[float] = []
            results = self._answered(checked, lambda call: took.append(self._enqueue(call, self._events)))
            copied_in, computed, copied_out = (
                self._cuda.elapsed_ms(*self._events[i : i + 2]) for i in range(len(self._events) - 1)
            )
            return results, Phases(took[0], copied_in, computed, copied_out)

    @contextmanager
    def _entered(self) -> Iterator[None]:
        """One thread at a time, with the context current."""
        with self._lock:
            if self._closed:
                raise UsageError(f"the session of {self._file} is closed", "open it again")
            with self._cuda.current():
                yield

    def _answered(self, feeds: Arrays, enqueue: Callable[[Call], object]) -> Arrays:
        call = self._call_for(tuple(array.shape for array in feeds.values()))
        for name, array in feeds.items():
            np.copyto(call.inputs[name], array)
        try:
            if call.runs == 1 and self.uncaptured is None:
                self._capture(call)
            enqueue(call)
            self._cuda.synchronize(self._stream)
        except BaseException:
            self._recover(call)
            raise
        call.runs += 1
        return {name: array.copy() for name, array in call.outputs.items()}

    def _enqueue(self, call: Call, events: list[int] | None = None) -> float:
        """Everything of one call, on the stream; the milliseconds that enqueueing the engine took here."""
        cuda, stream = self._cuda, self._stream
        mapped = cuda.device.integrated

        def mark(number: int) -> None:
            if events:
                cuda.record(events[number], stream)

        mark(0)
        for name, array in () if mapped else call.inputs.items():
            buffer = self._buffers[name]
            cuda.copy_in(buffer.device, buffer.host, array.nbytes, stream)
        mark(1)
        begun = time.perf_counter()
        if call.graph is not None and cuda.graphs is not None:
            cuda.graphs.launch(call.graph, stream)
        else:
            self._execute(call)
        took_ms = 1e3 * (time.perf_counter() - begun)
        mark(2)
        for name, array in () if mapped else call.outputs.items():
            buffer = self._buffers[name]
            cuda.copy_out(buffer.host, buffer.device, array.nbytes, stream)
        mark(3)
        return took_ms

    def _execute(self, call: Call) -> None:
        if not call.context.execute_async_v3(self._stream):
            raise MissingRequirementError(
                f"the GPU could not run {self._file}", "TensorRT's log above says why; is the GPU's memory free?"
            )

    def _capture(self, call: Call) -> None:
        """Keep the engine's work as a graph; where it cannot be one, go on without and say so."""
        capturable = getattr(call.context, "is_stream_capturable", None)  # TensorRT-RTX compiles while it runs
        graphs = self._cuda.graphs
        if graphs is None or (capturable is not None and not capturable(self._stream)):
            self.uncaptured = "TensorRT-RTX says that its work cannot be captured"
            return
        graphs.begin_capture(self._stream)
        try:
            self._execute(call)
        except BaseException as failure:
            with suppress(MMCompressError):
                graphs.close_graph(graphs.end_capture(self._stream))
            if not isinstance(failure, MissingRequirementError):
                raise
            self.uncaptured = "TensorRT could not enqueue its work while it was captured"
        else:
            try:
                call.graph = graphs.end_capture(self._stream)
            except MissingRequirementError as error:
                self.uncaptured = error.what
        if self.uncaptured is not None:
            say("", self._file, f"runs without a CUDA graph: {self.uncaptured}")

    def _call_for(self, shapes: Shapes) -> Call:
        call = self._calls.pop(shapes, None) or self._new_call(shapes)
        self._calls[shapes] = call
        while len(self._calls) > MOST_SIZES:
            self._drop(next(iter(self._calls)))
        return call

    def _new_call(self, shapes: Shapes) -> Call:
        first = self.inputs[0]
        number = profile_for(self.profiles, shapes[0][0])
        if number is None:
            ranges = ", ".join(f"{low} to {high}" for low, _, high in self.profiles)
            raise UsageError(
                f"the engine takes batches of {ranges}, and {first.name!r} is of shape {shapes[0]}",
                "use another batch, or build it with other --batches",
            )
        context = new_context(self._module, self._engine)
        if not context.set_optimization_profile_async(number, self._stream):
            raise MissingRequirementError(
                f"TensorRT could not take profile {number} of {self._file}", "its log above says why"
            )
        self._cuda.synchronize(self._stream)
        for spec, shape in zip(self.inputs, shapes, strict=True):
            if not context.set_input_shape(spec.name, shape):
                smallest, _, largest = self._engine.get_tensor_profile_shape(spec.name, number)
                raise UsageError(
                    f"the engine takes {spec.name!r} of shape {tuple(smallest)} to {tuple(largest)}, not {shape}",
                    "give arrays of such a shape",
                )
        tensors = {spec: tuple(context.get_tensor_shape(spec.name)) for spec in (*self.inputs, *self.outputs)}
        sizes = {spec.name: int(np.prod(shape)) * np.dtype(spec.dtype).itemsize for spec, shape in tensors.items()}
        scratch_bytes = int(self._engine.get_device_memory_size_for_profile_v2(number))
        self._buffers.fit(sizes, scratch_bytes, lambda: self._drop(*self._calls))
        context.set_device_memory(*self._buffers.scratch)
        for name in sizes:
            if not context.set_tensor_address(name, self._buffers[name].device):
                raise MissingRequirementError(f"TensorRT takes no address for {name!r}", "its log above says why")
        views = {spec.name: self._buffers[spec.name].view(shape, spec.dtype) for spec, shape in tensors.items()}
        return Call(
            context,
            {spec.name: views[spec.name] for spec in self.inputs},
            {spec.name: views[spec.name] for spec in self.outputs},
        )

    def _drop(self, *dropped: Shapes) -> None:
        with ExitStack() as closing:
            for shapes in dropped:
                call = self._calls.pop(shapes)
                if call.graph is not None and self._cuda.graphs is not None:
                    closing.callback(self._cuda.graphs.close_graph, call.graph)

    def _recover(self, failed: Call) -> None:
        """Behind a failure: wait for what still runs, and forget the call; close where the GPU does not answer."""
        try:
            self._cuda.synchronize(self._stream)
            self._drop(*(shapes for shapes, call in self._calls.items() if call is failed))
        except MMCompressError:
            with suppress(MMCompressError):
                self.close()

    def close(self) -> None:
        """Free everything, whatever single frees answer, and raise the last error behind that. Waits for a call."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with self._cuda.current(), self._owned, ExitStack() as closing:
                closing.callback(setattr, self, "_engine", None)
                closing.callback(self._buffers.close)
                closing.callback(self._drop, *self._calls)
                closing.callback(self._cuda.synchronize, self._stream)


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
