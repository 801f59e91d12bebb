"""The faster of torch's float32 products on this CPU.

On x86 torch multiplies float32 by Intel's MKL, which on other makers' CPUs runs at half of what oneDNN reaches there:
torch brings both, and calls oneDNN for what its compiler fuses. So within `fast_products` a Linear on such a CPU is
computed by that very operation, and so are its gradients. Results differ from MKL's by rounding, as those of two sizes
of a batch do. Which library computes follows from the CPU and never from a timing, so that a run repeats to the bit.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_HELD: ContextVar[bool] = ContextVar("held", default=False)
"""Whether `fast_products` holds."""


@contextmanager
def fast_products() -> Iterator[None]:
    """Within, Linears are as fast as torch can make them on this CPU; what torch compiles is fast by itself."""
    token = _HELD.set(True)
    try:
        with _ByOneDNN() if slow_mkl() else nullcontext():
            yield
    finally:
        _HELD.reset(token)


def fast_again() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
    """For `torch.utils.checkpoint`: nothing in the forward pass, and where `fast_products` holds there, also what it
    was computed with when the backward pass, in which no mode holds, computes it again."""
    return nullcontext(), fast_products() if _HELD.get() else nullcontext()


@contextmanager
def inferring() -> Iterator[None]:
    """As `fast_products`, without gradients."""
    with torch.inference_mode(), fast_products():
        yield


def product(a: Tensor, b: Tensor) -> Tensor:
    """(N, K), (M, K) -> (N, M): a b^T, without gradients."""
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


class _Linear(torch.autograd.Function):
    """`F.linear` and its gradients: x W^T + b, and of the gradient g of that g W, g^T x and the sum of g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _by_onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        gradient = gradients[0].contiguous()
        rows = gradient.flatten(0, -2)
        return (
            _by_onednn(gradient, weight.T.contiguous()) if of_x else None,
            _by_onednn(rows.T.contiguous(), x.flatten(0, -2).T.contiguous()) if of_weight else None,
            rows.sum(dim=0) if of_bias else None,
        )


_linear: Callable[..., Tensor] = _Linear.apply


class _ByOneDNN(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        is_linear = func is F.linear and not kwargs and args[0].ndim > 1
        if is_linear and all(_plain(tensor) for tensor in args if tensor is not None):
            x, weight, bias = (*args, None)[:3]
            return _linear(x, weight, bias) if torch.is_grad_enabled() else _by_onednn(x, weight, bias)
        return func(*args, **(kwargs or {}))


def _plain(tensor: Tensor) -> bool:
    is_float = tensor.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return tensor.is_cpu and is_float and tensor.is_contiguous() and tensor.numel() > 0
