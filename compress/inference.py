"""Torch without gradients, with the faster of its float32 products.

On x86 torch multiplies float32 by Intel's MKL, which on other makers' CPUs runs at half of what oneDNN reaches there:
torch brings both, and calls oneDNN for what its compiler fuses. So within `inferring` a Linear on such a CPU is
computed by that very operation. Results differ from MKL's by rounding, as those of two sizes of a batch do. Which
library computes follows from the CPU and never from a timing, so that a run repeats to the bit. Left out: training,
whose backward pass torch does not compute there.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


@contextmanager
def inferring() -> Iterator[None]:
    """Within, no gradient is kept and Linears are as fast as torch can make them on this CPU."""
    with torch.inference_mode(), _ByOneDNN() if slow_mkl() else nullcontext():
        yield


def product(a: Tensor, b: Tensor) -> Tensor:
    """(N, K), (M, K) -> (N, M): a b^T, as fast as within `inferring`."""
    return _by_onednn(a.contiguous(), b.contiguous()) if a.is_cpu and slow_mkl() else a @ b.T


@cache
def slow_mkl() -> bool:
    """Whether torch multiplies by MKL on another maker's CPU, and knows the operation of oneDNN."""
    if platform.machine() != "x86_64" or not (
        torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    ):
        return False
    try:
        intel = "GenuineIntel" in Path("/proc/cpuinfo").read_text()
        one = torch.ones(2, 2)
        return not intel and torch.equal(_by_onednn(one, one), one @ one)
    except (OSError, RuntimeError, AttributeError):
        return False


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of contiguous float32; other layouts are copied one number at a time there."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


class _ByOneDNN(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and not kwargs and all(_plain(tensor) for tensor in args if tensor is not None):
            return _by_onednn(*args)
        return func(*args, **(kwargs or {}))


def _plain(tensor: Tensor) -> bool:
    return tensor.is_cpu and tensor.dtype == torch.float32 and tensor.is_contiguous() and tensor.numel() > 0
