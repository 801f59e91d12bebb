"""The memory of a session on a GPU: of each tensor one pinned piece on the host and one on the device.

A piece grows when a call needs more and never shrinks, so calls of the sizes seen allocate nothing. Growing is all or
nothing: what is new is allocated before what is old is freed, and a failure leaves everything as it was. Where the GPU
shares the host's memory (a Jetson), a tensor has one mapped piece, and nothing is copied.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.runtime.cuda import Cuda


@dataclass(frozen=True)
class Buffer:
    """Of one tensor, `size_bytes` at both addresses."""

    host: int
    device: int
    size_bytes: int

    def view(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """The pinned piece as an array, which is valid until the piece grows."""
        size_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        piece = (ctypes.c_char * size_bytes).from_address(self.host)
        array: NDArray[Any] = np.ndarray(shape, dtype=dtype, buffer=memoryview(piece))
        return array


class Buffers:
    """Owned by one session; every method is called inside `cuda.current()`, with nothing in flight."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._buffers: dict[str, Buffer] = {}
        self._scratch = (0, 0)

    def __getitem__(self, name: str) -> Buffer:
        return self._buffers[name]

    @property
    def scratch(self) -> tuple[int, int]:
        """Address and bytes of what the engine computes in."""
        return self._scratch

    def fit(self, sizes: Mapping[str, int], scratch_bytes: int, let_go: Callable[[], None]) -> None:
        """Make room for tensors, in bytes by name, and for scratch. Before an address changes, `let_go` is called:
        from then on nobody may use the old ones."""
        grown: dict[str, Buffer] = {}
        scratch = self._scratch
        with ExitStack() as undo:
            for name, size in sizes.items():
                if name not in self._buffers or self._buffers[name].size_bytes < size:
                    grown[name] = self._allocated(size, undo)
            if scratch[1] < scratch_bytes:
                scratch = (self._cuda.malloc(scratch_bytes), scratch_bytes)
                undo.callback(self._cuda.free, scratch[0])
            if grown or scratch != self._scratch:
                let_go()
            undo.pop_all()
        with ExitStack() as freeing:
            for name in grown.keys() & self._buffers.keys():
                self._free(self._buffers[name], freeing)
            if scratch != self._scratch and self._scratch[0]:
                freeing.callback(self._cuda.free, self._scratch[0])
            self._buffers.update(grown)
            self._scratch = scratch

    def _allocated(self, size_bytes: int, undo: ExitStack) -> Buffer:
        host = self._cuda.malloc_host(size_bytes)
        undo.callback(self._cuda.free_host, host)
        if self._cuda.device.integrated:
            return Buffer(host, self._cuda.mapped(host), size_bytes)
        device = self._cuda.malloc(size_bytes)
        undo.callback(self._cuda.free, device)
        return Buffer(host, device, size_bytes)

    def _free(self, buffer: Buffer, freeing: ExitStack) -> None:
        freeing.callback(self._cuda.free_host, buffer.host)
        if not self._cuda.device.integrated:
            freeing.callback(self._cuda.free, buffer.device)

    def close(self) -> None:
        """Free everything, whatever single frees answer; a second time does nothing."""
        with ExitStack() as freeing:
            for buffer in self._buffers.values():
                self._free(buffer, freeing)
            if self._scratch[0]:
                freeing.callback(self._cuda.free, self._scratch[0])
            self._buffers, self._scratch = {}, (0, 0)
