"""Integers that can be trained: the quantized Linears and convolutions of one kind of graph, with a gradient.

Rounding has no gradient of use, so the backward pass takes it for the identity (the straight-through estimator, Bengio
et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons", section 4); an input that is clipped
passes none on. Every parameter is how far something has moved from where the fit left it, in a unit of its own: weights
in steps of their channel, ranges in shares. So one learning rate fits all of them, and before the first update the
graph is the given one, to the bit.

Convolutions are trained as the graph has them, with BatchNorm in their weights (`foldedtower.py`), and so are the
ranges of residual sums, where those are integers.

Left out: learned scales of the weights. A step that grows moves every integer of its channel, and eight bits are not so
few that a channel needs another step than the fit's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from mmcompress.compress.int8.rounding import allowed
from mmcompress.compress.int8.simulate import fake_quantized
from mmcompress.export.integers import OUTPUT
from mmcompress.export.products import Product
from mmcompress.export.sums import Sum
from mmcompress.int8 import IntegerLinear, Linears, Range, Signedness, activation_quantizer
from mmcompress.model import DualEncoder

_STRETCH = 0.1
"""Logarithm of a range's growth for each unit of its parameter."""
_FURTHEST = 2.0
"""A range ends within exp(2) of its start, either way: a run that diverges must not overflow a half-precision scale."""


class FakeQuantize(torch.autograd.Function):
    """`simulate.fake_quantized` over [low, high], with a gradient for the input (any shape) and both ends (scalars).

    With the step S = (high - low) / 255, dy/dS is (y - x) / S inside of the range (Esser et al. 2020, "Learned Step
    Size Quantization", equation 3); a value that is clipped becomes the end that clips it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, low: Tensor, high: Tensor, kind: Signedness, dtype: type[np.floating[Any]]
    ) -> Tensor:
        ends = {"low": low.item(), "high": high.item(), "absmax": high.item()}
        quantizer = activation_quantizer(ends, kind, dtype)
        y = fake_quantized(x, quantizer)
        ctx.save_for_backward(x, y)
        ctx.step = float(quantizer.scale)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, Tensor, None, None]:
        (gradient,) = gradients
        x, y = ctx.saved_tensors
        error = y - x
        furthest = ctx.step * (0.5 + 1e-3)  # that rounding moves a value, and the arithmetic on top
        to_x = gradient * (error.abs() <= furthest)
        to_span = (to_x * error).sum().double() / (255 * ctx.step)
        to_high = (gradient * (error < -furthest)).sum().double() + to_span
        to_low = (gradient * (error > furthest)).sum().double() - to_span
        return to_x, to_low, to_high, None, None


class TrainedRange(nn.Module):
    """What the levels of one tensor cover, as it was calibrated and as far as it has moved from there."""

    start_ends: Tensor
    """(2,) float64, low and high; of a signed range the lowest is -128/127 of the highest"""

    def __init__(self, calibrated: Range, kind: Signedness, dtype: type[np.floating[Any]]) -> None:
        super().__init__()
        self.kind, self._dtype = kind, dtype
        ends = (
            (calibrated["low"], calibrated["high"])
            if kind == "unsigned"
            else (-calibrated["absmax"] * 128 / 127, calibrated["absmax"])
        )
        self.register_buffer("start_ends", torch.tensor(ends, dtype=torch.float64))
        self.range_moves = nn.Parameter(torch.zeros(2 if kind == "unsigned" else 1))

    def ends(self) -> Tensor:
        """(2,) float64: low and high."""
        return self.start_ends * torch.exp((_STRETCH * self.range_moves.double()).clamp(-_FURTHEST, _FURTHEST))

    def through(self, x: Tensor) -> Tensor:
        """A tensor of any shape as the graph quantizes and restores it."""
        low, high = self.ends()
        restored: Tensor = FakeQuantize.apply(x.float(), low, high, self.kind, self._dtype)  # type: ignore[no-untyped-call]
        return restored

    def stored_range(self) -> Range:
        """As a file holds it."""
        low, high = self.ends().tolist()
        return {"low": low, "high": high, "absmax": high}


class TrainedLinear(TrainedRange):
    """One Linear or convolution of a graph and the range of its input, as far as they have moved from the fit."""

    scales: Tensor
    """(out, 1) in the type that the graph multiplies them in"""
    start: Tensor
    """(out, in) integers"""
    start_bias: Tensor
    """(out,)"""

    def __init__(
        self, stored: IntegerLinear, calibrated: Range, kind: Signedness, convolution: Product | None = None
    ) -> None:
        super().__init__(calibrated, kind, stored.scales.dtype.type)
        self._stored, self._convolution = stored, convolution
        self.register_buffer("scales", torch.from_numpy(stored.scales)[:, None])
        # contiguous, as the moments of a resumed run are, which AdamW walks through in step with the parameter
        self.register_buffer("start", torch.from_numpy(stored.weight.T.astype(np.float32)).contiguous())
        self.register_buffer("start_bias", torch.from_numpy(stored.bias.astype(np.float32)))
        self.weight_moves = nn.Parameter(torch.zeros_like(self.start))
        self.bias_moves = nn.Parameter(torch.zeros_like(self.start_bias), requires_grad=self.biased)

    @property
    def biased(self) -> bool:
        """Whether the graph adds the bias."""
        return self._convolution is None or self._convolution.bias is not None

    def steps(self) -> Tensor:
        """(out, in): the weight in units of its step, not rounded."""
        return self.start + self.weight_moves

    def weight(self) -> Tensor:
        """(out, in), or (out, in / groups, k, k), as the graph restores it; the gradient goes past the rounding."""
        exact = self.steps() * self.scales.float()
        with torch.no_grad():
            integers = self._rounded(self.steps().T).T
            restored = (integers.to(self.scales.dtype) * self.scales).float()
        weight = exact + (restored - exact).detach()
        if self._convolution is None:
            return weight
        _, channels, height, width = self._convolution.shape
        kernel: Tensor = weight.unflatten(1, (height, width, channels)).permute(0, 3, 1, 2)
        return kernel

    def bias(self) -> Tensor:
        """(out,); it moves as the weight of an input that is always 1."""
        return self.start_bias + self.bias_moves * self.scales[:, 0].float()

    @torch.no_grad()
    def stored(self) -> tuple[IntegerLinear, Range]:
        """At the nearest steps, as a file holds it, with the ends of the range."""
        integers = self._rounded(self.steps().double().cpu().T).to(torch.int8).numpy()
        return IntegerLinear(integers, self._stored.scales, self.bias().cpu().numpy()), self.stored_range()

    def _rounded(self, steps: Tensor) -> Tensor:
        """(in, out) -> (in, out) at the nearest integers that a file may hold."""
        if self._convolution is None or not self._convolution.torn:
            return allowed(steps, self.kind).round_()
        return allowed(steps.repeat_interleave(2, dim=0), self.kind).round_()[::2]


class TrainedLinears(nn.Module):
    """Every quantized Linear and convolution of one kind of graph, and what they give where that is integers too.

    `ends` are the convolutions behind whose ReLU integers are pooled or projected (`export/sums.py`).
    """

    def __init__(
        self,
        linears: Linears,
        ranges: Mapping[str, Range],
        kind: Signedness,
        convolutions: Iterable[Product] = (),
        sums: Iterable[Sum] = (),
        ends: Iterable[str] = (),
    ) -> None:
        super().__init__()
        convolved = {product.name: product for product in convolutions}
        self.names = tuple(linears)
        self.linears = nn.ModuleList(
            TrainedLinear(linears[name], ranges[name], kind, convolved.get(name)) for name in self.names
        )
        added = [one for one in sums if kind == "unsigned" and f"{one.branch}.{OUTPUT}" in ranges]
        self._streams = {one.reader: one.branch.rpartition(".")[0] for one in added}
        last = [name for name in ends if kind == "unsigned" and f"{name}.{OUTPUT}" in ranges]
        self._branches = (*(one.branch for one in added), *last)
        self.outputs = nn.ModuleList(
            TrainedRange(ranges[f"{name}.{OUTPUT}"], kind, linears[name].scales.dtype.type) for name in self._branches
        )

    def embed(self, model: DualEncoder, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S), (B, T) -> (B, D), (B, D): what the model computes with these Linears for its own.

        Of a convolutional tower it is one whose BatchNorms are folded.
        """
        tensors: dict[str, Tensor] = {}
        handles = []
        try:
            for name, linear in self._named():
                tensors[f"{name}.weight"] = linear.weight()
                if linear.biased:
                    tensors[f"{name}.bias"] = linear.bias()
                reading = model.get_submodule(self._streams.get(name, name))  # a stream is read by the sum as well
                handles.append(reading.register_forward_pre_hook(lambda _, x, linear=linear: linear.through(x[0])))
            for name, given in self._given():
                giving = model.get_submodule(name)
                handles.append(giving.register_forward_hook(lambda _, __, y, given=given: given.through(y)))
            embeddings: tuple[Tensor, Tensor] = functional_call(model, tensors, (pixels, tokens))
        finally:
            for handle in handles:
                handle.remove()
        return embeddings

    def stored(self) -> dict[str, tuple[IntegerLinear, Range]]:
        """By module, as files hold them."""
        return {name: linear.stored() for name, linear in self._named()}

    def stored_outputs(self) -> dict[str, Range]:
        """Ranges of what convolutions give to sums and to what ends a tower, by the names that files have for them."""
        return {f"{name}.{OUTPUT}": given.stored_range() for name, given in self._given()}

    def _named(self) -> list[tuple[str, TrainedLinear]]:
        return [
            (n, linear) for n, linear in zip(self.names, self.linears, strict=True) if isinstance(linear, TrainedLinear)
        ]

    def _given(self) -> list[tuple[str, TrainedRange]]:
        return [
            (n, given) for n, given in zip(self._branches, self.outputs, strict=True) if isinstance(given, TrainedRange)
        ]
