"""A session runs one delivered graph: named arrays in, named arrays out, whatever the backend.

What all backends do is done once, here: a session is a context manager, feeds are checked before a backend sees them,
and a file is held against its manifest. A backend opens its graph and runs it. Buffers: a session never keeps an array
that it was fed after `run` returns, and every array that it returns belongs to the caller.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from mmcompress.errors import CorruptInputError, MMCompressError, UsageError, suggestion
from mmcompress.manifest import TensorSpec
from mmcompress.progress import say

Tower = Literal["image", "text"]
Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Phases:
    """Where one call on a GPU spent its time, in milliseconds, under the names of NVIDIA's `trtexec`."""

    enqueue_ms: float
    """Host time of enqueueing the engine, or of launching its graph: "Enqueue Time"."""
    copy_in_ms: float
    """ "H2D Latency"; about 0 where memory is mapped."""
    gpu_ms: float
    """ "GPU Compute Time"."""
    copy_out_ms: float
    """ "D2H Latency"."""


class Session(ABC):
    """A graph that is loaded and can be run, until it is closed."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    device: str = "CPU"
    min_batch: int = 1
    """Fewest inputs that one call takes."""
    max_batch: int | None = None
    """Largest batch that one call takes; None where the graph sets no limit."""

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Arrays by the names of the inputs -> arrays by the names of the outputs. UsageError for a wrong one."""
        return self._run(check_feeds(feeds, self.inputs))

    def shared(self) -> Session | None:
        """Another session on the same weights, that runs beside this one and is closed by itself; None where the
        runtime has to load them again."""
        return None

    def phases(self, feeds: Feeds) -> Phases | None:
        """As `run`, once, for where its time went; None where the runtime does not tell."""
        return None

    @abstractmethod
    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """With feeds that are checked, contiguous and in the order of the inputs."""

    @abstractmethod
    def close(self) -> None:
        """Free what the session owns; a second time does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; an error in that does not hide the one that the caller met."""
        try:
            self.close()
        except MMCompressError as failure:
            if error is None:
                raise
            say("", self.device, f"closing the session failed too: {failure.what}")


def check_interface(specs: Sequence[TensorSpec], dtypes: Mapping[str, str], path: Path) -> None:
    """Raise CorruptInputError unless a file has the tensors that its manifest states; `dtypes` are by name."""
    for spec in specs:
        if dtypes.get(spec.name) != np.dtype(spec.dtype).name:
            raise CorruptInputError(
                f"{path} has {dict(dtypes)}, and its manifest says {spec.name!r} of {spec.dtype}",
                "export the artifact again",
            )


def cannot_run(backend: str, path: Path, reason: str) -> CorruptInputError:
    return CorruptInputError(
        f"{backend} cannot run {path}: {reason}", "export the artifact again, or try another backend"
    )


def check_feeds(feeds: Feeds, inputs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
    """The arrays in the order of the inputs, contiguous; a wrong name, dtype or shape is named."""
    unknown = sorted(set(feeds) - {spec.name for spec in inputs})
    if unknown:
        raise UsageError(f"the graph has no input {unknown[0]!r}", suggestion(unknown[0], [s.name for s in inputs]))
    checked: dict[str, NDArray[Any]] = {}
    for spec in inputs:
        if spec.name not in feeds:
            raise UsageError(f"the input {spec.name!r} was not given", f"it is {spec.dtype} of shape {shape_of(spec)}")
        array = feeds[spec.name]
        fits = len(array.shape) == len(spec.shape) and all(
            expected in (None, actual) for expected, actual in zip(spec.shape, array.shape, strict=True)
        )
        if not fits or array.dtype != np.dtype(spec.dtype):
            raise UsageError(
                f"the input {spec.name!r} is {array.dtype} of shape {array.shape}",
                f"expected {spec.dtype} of shape {shape_of(spec)}",
            )
        checked[spec.name] = np.ascontiguousarray(array)
    return checked


def shape_of(spec: TensorSpec) -> str:
    return "(" + ", ".join("N" if size is None else str(size) for size in spec.shape) + ")"
