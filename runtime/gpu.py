"""The GPU that engines run on: the first that CUDA_VISIBLE_DEVICES leaves, by NVIDIA's driver or through pycuda.

The driver's own library is taken unless MMCOMPRESS_CUDA=pycuda asks for the other: it is wherever a GPU works, needs
nothing installed, and no package whose newest release asks for a newer driver than a JetPack or a host has. pycuda is
for programs that use it already.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache

from mmcompress.errors import UsageError
from mmcompress.runtime.cuda import Cuda
from mmcompress.runtime.libcuda import LibCuda
from mmcompress.runtime.pycuda import PyCuda

CHOICE = "MMCOMPRESS_CUDA"


def open_cuda() -> Cuda:
    """The seam on the first GPU, one for the process; MissingRequirementError says what is missing."""
    return _opened(os.environ.get(CHOICE) or "driver")


@cache
def _opened(choice: str) -> Cuda:
    implementations: dict[str, Callable[[], Cuda]] = {"driver": LibCuda.open, "pycuda": PyCuda.open}
    if choice not in implementations:
        raise UsageError(f"{CHOICE} is {choice!r}", f"it takes {' or '.join(implementations)}")
    return implementations[choice]()
