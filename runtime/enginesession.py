"""A session on a TensorRT engine: one execution context and one CUDA graph a batch size, on a stream of its own.

Where the time goes, and what is done about it. Enqueueing a hundred kernels takes longer than a small tower computes,
so the second call of a batch size captures a CUDA graph and later ones launch it. TensorRT ties a graph to the context
that it was captured from and to every address in it (TensorRT developer guide, "CUDA Graphs"), so each batch size has a
context, all contexts share one piece of scratch memory, and a piece of memory that grows drops them all. Copies are
asynchronous, from and to pinned memory (`buffers.py`), and stay outside the graph, so that events tell them apart from
the engine as `trtexec` does.

Ownership: `run` copies what it is fed before it returns, and what it returns is the caller's. Threads may share a
session: one call at a time runs, the others wait; to run side by side they take sessions of their own (`shared`). A
call that fails leaves a session that works, or one that is closed where the GPU itself does not answer any more. Nobody
has run this on a GPU: order, addresses, shapes and frees are held by stand-ins for the driver and for TensorRT.
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

from mmcompress.errors import MissingRequirementError, MMCompressError, UsageError
from mmcompress.manifest import Graph, TensorSpec
from mmcompress.progress import say
from mmcompress.runtime.buffers import Buffers
from mmcompress.runtime.cuda import Cuda
from mmcompress.runtime.plans import LoadedEngine, enter_profile, load_engine
from mmcompress.runtime.profiles import profile_for
from mmcompress.runtime.session import Feeds, Phases, Session, check_feeds

MOST_SIZES = 8
"""Batch sizes with a context and a graph of their own; beyond, the one that was used longest ago is dropped."""
Arrays = dict[str, NDArray[Any]]
Shapes = tuple[tuple[int, ...], ...]


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
    """Owns a stream and its memory until closed, and the engine together with those that it was shared with."""

    def __init__(self, loaded: LoadedEngine, graph: Graph, cuda: Cuda) -> None:
        self._cuda, self._graph, self._file = cuda, graph, graph.file
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
        self.profiles = loaded.profiles
        self._loaded: LoadedEngine | None = loaded
        with cuda.current():
            self._stream = cuda.open_stream()
            self._owned.callback(cuda.close_stream, self._stream)
        self.min_batch = min(smallest for smallest, _, _ in self.profiles)
        self.max_batch: int | None = max(largest for _, _, largest in self.profiles)

    @staticmethod
    def load(module: ModuleType, plan: bytes, graph: Graph, cuda: Cuda) -> TensorRTSession:
        """Deserialize a plan, with a session on it."""
        with cuda.current():
            return TensorRTSession(load_engine(module, plan, graph), graph, cuda)

    def shared(self) -> TensorRTSession:
        """Another one on the same engine, that runs beside this one: its weights are in the GPU's memory once."""
        with self._entered() as loaded:
            return TensorRTSession(loaded, self._graph, self._cuda)

    def _run(self, feeds: Arrays) -> Arrays:
        with self._entered() as loaded:
            return self._answered(loaded, feeds, self._enqueue)

    def phases(self, feeds: Feeds) -> Phases:
        """By events on the stream, and by the clock for what the host does."""
        checked = check_feeds(feeds, self.inputs)
        with self._entered() as loaded:
            if not self._events:
                for _ in range(4):
                    self._events.append(self._cuda.open_event())
                    self._owned.callback(self._cuda.close_event, self._events[-1])
            took: list[float] = []
            self._answered(loaded, checked, lambda call: took.append(self._enqueue(call, self._events)))
            copied_in, computed, copied_out = (
                self._cuda.elapsed_ms(*self._events[i : i + 2]) for i in range(len(self._events) - 1)
            )
            return Phases(took[0], copied_in, computed, copied_out)

    @contextmanager
    def _entered(self) -> Iterator[LoadedEngine]:
        """One thread at a time, with the context current."""
        with self._lock:
            if self._loaded is None or self._closed:
                raise UsageError(f"the session of {self._file} is closed", "open it again")
            with self._cuda.current():
                yield self._loaded

    def _answered(self, loaded: LoadedEngine, feeds: Arrays, enqueue: Callable[[Call], object]) -> Arrays:
        call = self._call_for(loaded, tuple(array.shape for array in feeds.values()))
        for name, array in feeds.items():
            np.copyto(call.inputs[name], array)
        try:
            if call.runs == 1 and self.uncaptured is None:
                self._capture(call)
                if self.uncaptured is not None:
                    say("", self._file, f"runs without a CUDA graph: {self.uncaptured}")
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
        """Keep the engine's work as a graph; where it cannot be one, go on without."""
        context, graphs = call.context, self._cuda.graphs
        if graphs is None:
            return
        if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(self._stream):
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

    def _call_for(self, loaded: LoadedEngine, shapes: Shapes) -> Call:
        call = self._calls.pop(shapes, None) or self._new_call(loaded, shapes)
        self._calls[shapes] = call
        while len(self._calls) > MOST_SIZES:
            self._drop(next(iter(self._calls)))
        return call

    def _new_call(self, loaded: LoadedEngine, shapes: Shapes) -> Call:
        first = self.inputs[0]
        number = profile_for(self.profiles, shapes[0][0])
        if number is None:
            ranges = ", ".join(f"{low} to {high}" for low, _, high in self.profiles)
            raise UsageError(
                f"the engine takes batches of {ranges}, and {first.name!r} is of shape {shapes[0]}",
                "use another batch, or build it with other --batches",
            )
        context = loaded.context()
        enter_profile(context, number, self._stream, self._file)
        self._cuda.synchronize(self._stream)
        for spec, shape in zip(self.inputs, shapes, strict=True):
            if not context.set_input_shape(spec.name, shape):
                smallest, _, largest = loaded.engine.get_tensor_profile_shape(spec.name, number)
                raise UsageError(
                    f"the engine takes {spec.name!r} of shape {tuple(smallest)} to {tuple(largest)}, not {shape}",
                    "give arrays of such a shape",
                )
        tensors = {spec: tuple(context.get_tensor_shape(spec.name)) for spec in (*self.inputs, *self.outputs)}
        sizes = {spec.name: int(np.prod(shape)) * np.dtype(spec.dtype).itemsize for spec, shape in tensors.items()}
        scratch_bytes = int(loaded.engine.get_device_memory_size_for_profile_v2(number))
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
                closing.callback(setattr, self, "_loaded", None)
                if self._loaded is not None:
                    closing.callback(self._loaded.keep_kernels)
                closing.callback(self._buffers.close)
                closing.callback(self._drop, *self._calls)
                closing.callback(self._cuda.synchronize, self._stream)
