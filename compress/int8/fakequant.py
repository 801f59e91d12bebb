"""Integers that can be trained: the quantized Linears of one kind of graph as parameters, with a gradient.

Rounding has no gradient of use, so the backward pass takes it for the identity (the straight-through estimator, Bengio
et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons", section 4); an input that is clipped
passes none on. Every parameter is how far something has moved from where the fit left it, in a unit of its own: weights
in steps of their channel, ranges in shares. So one learning rate fits all of them, and before the first update the
graph is the given one, to the bit.

Left out: learned scales of the weights. A step that grows moves every integer of its channel, and eight bits are not so
few that a channel needs another step than the fit's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from mmcompress.compress.int8.rounding import allowed, nearest
from mmcompress.compress.int8.simulate import fake_quantized
from mmcompress.int8 import SCALE_TYPES, IntegerLinear, Linears, Range, Signedness, activation_quantizer
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
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor, kind: Signedness) -> Tensor:
        ends = {"low": low.item(), "high": high.item(), "absmax": high.item()}
        quantizer = activation_quantizer(ends, kind, SCALE_TYPES[kind])
        y = fake_quantized(x, quantizer)
        ctx.save_for_backward(x, y)
        ctx.step = float(quantizer.scale)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        (gradient,) = gradients
        x, y = ctx.saved_tensors
        error = y - x
        furthest = ctx.step * (0.5 + 1e-3)  # that rounding moves a value, and the arithmetic on top
        to_x = gradient * (error.abs() <= furthest)
        to_span = (to_x * error).sum().double() / (255 * ctx.step)
        to_high = (gradient * (error < -furthest)).sum().double() + to_span
        to_low = (gradient * (error > furthest)).sum().double() - to_span
        return to_x, to_low, to_high, None


class TrainedLinear(nn.Module):
    """One Linear of a graph, as it was fitted and as far as it has moved from there."""

    scales: Tensor
    """(out, 1) in the type that the graph multiplies them in"""
    start: Tensor
    """(out, in) integers"""
    start_bias: Tensor
    """(out,)"""
    start_ends: Tensor
    """(2,) float64, low and high; of a signed range the lowest is -128/127 of the highest"""

    def __init__(self, stored: IntegerLinear, calibrated: Range, kind: Signedness) -> None:
        super().__init__()
        self.kind = kind
        self._stored = stored
        ends = (
            (calibrated["low"], calibrated["high"])
            if kind == "unsigned"
            else (-calibrated["absmax"] * 128 / 127, calibrated["absmax"])
        )
        self.register_buffer("scales", torch.from_numpy(stored.scales)[:, None])
        # contiguous, as the moments of a resumed run are, which AdamW walks through in step with the parameter
        self.register_buffer("start", torch.from_numpy(stored.weight.T.astype(np.float32)).contiguous())
        self.register_buffer("start_bias", torch.from_numpy(stored.bias.astype(np.float32)))
        self.register_buffer("start_ends", torch.tensor(ends, dtype=torch.float64))
        self.weight_moves = nn.Parameter(torch.zeros_like(self.start))
        self.bias_moves = nn.Parameter(torch.zeros_like(self.start_bias))
        self.range_moves = nn.Parameter(torch.zeros(2 if kind == "unsigned" else 1))

    def steps(self) -> Tensor:
        """(out, in): the weight in units of its step, not rounded."""
        return self.start + self.weight_moves

    def weight(self) -> Tensor:
        """(out, in) as the graph restores it; the gradient goes past the rounding."""
        exact = self.steps() * self.scales.float()
        with torch.no_grad():
            integers = allowed(self.steps().T, self.kind).round_().T
            restored = (integers.to(self.scales.dtype) * self.scales).float()
        return exact + (restored - exact).detach()

    def bias(self) -> Tensor:
        """(out,); it moves as the weight of an input that is always 1."""
        return self.start_bias + self.bias_moves * self.scales[:, 0].float()

    def ends(self) -> Tensor:
        """(2,) float64: low and high."""
        return self.start_ends * torch.exp((_STRETCH * self.range_moves.double()).clamp(-_FURTHEST, _FURTHEST))

    def entering(self, x: Tensor) -> Tensor:
        """An input (..., in) as the graph quantizes and restores it."""
        low, high = self.ends()
        restored: Tensor = FakeQuantize.apply(x.float(), low, high, self.kind)  # type: ignore[no-untyped-call]
        return restored

    @torch.no_grad()
    def stored(self) -> tuple[IntegerLinear, Range]:
        """At the nearest steps, as a file holds it, with the ends of the range."""
        steps = self.steps().double().cpu().numpy().T
        integers = nearest(steps, np.ones(steps.shape[1]), self.kind)
        low, high = self.ends().tolist()
        linear = IntegerLinear(integers, self._stored.scales, self.bias().cpu().numpy())
        return linear, {"low": low, "high": high, "absmax": high}


class TrainedLinears(nn.Module):
    """Every quantized Linear of one kind of graph."""

    def __init__(self, linears: Linears, ranges: Mapping[str, Range], kind: Signedness) -> None:
        super().__init__()
        self.names = tuple(linears)
        self.linears = nn.ModuleList(TrainedLinear(linears[name], ranges[name], kind) for name in self.names)

    def embed(self, model: DualEncoder, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S), (B, T) -> (B, D), (B, D): what the model computes with these Linears for its own."""
        tensors: dict[str, Tensor] = {}
        handles = []
        try:
            for name, linear in self._named():
                tensors |= {f"{name}.weight": linear.weight(), f"{name}.bias": linear.bias()}
                module = model.get_submodule(name)
                handles.append(module.register_forward_pre_hook(lambda _, x, linear=linear: linear.entering(x[0])))
            embeddings: tuple[Tensor, Tensor] = functional_call(model, tensors, (pixels, tokens))
        finally:
            for handle in handles:
                handle.remove()
        return embeddings

    def stored(self) -> dict[str, tuple[IntegerLinear, Range]]:
        """By module, as files hold them."""
        return {name: linear.stored() for name, linear in self._named()}

    def _named(self) -> list[tuple[str, TrainedLinear]]:
        return [
            (n, linear) for n, linear in zip(self.names, self.linears, strict=True) if isinstance(linear, TrainedLinear)
        ]
