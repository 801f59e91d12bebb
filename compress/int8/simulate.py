"""The quantized model in torch: what goes into its Linears, what they compute as integers, how far that carries.

The simulation quantizes and restores inputs and weights as the graphs do, and computes in FP32 between, so it equals a
runtime up to values on the edge between two steps. As in the graphs, the last block's out-projection and MLP see the
pooled token only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmcompress.compress.products import inferring, product
from mmcompress.errors import CorruptInputError
from mmcompress.int8 import (
    LIMITS,
    OPERANDS,
    SCALE_TYPES,
    ActivationQuantizer,
    IntegerLinear,
    Linears,
    Range,
    Signedness,
    activation_quantizer,
    dequantize_rows,
    quantize_rows,
)
from mmcompress.model import DualEncoder

TOWERS = ("image", "text")
Batches = Sequence[Tensor]
"""What one tower is fed: pixels (B, 3, S, S), or tokens (B, T)."""
Vector = np.ndarray[tuple[int], np.dtype[np.float64]]
_GRAM_COLUMNS = 512
"""Of a Gram matrix, which is symmetric, that are multiplied together: what is below them is known."""
_QUANTIZED_ROWS = 1024
"""Inputs of a Linear, of each batch, that are quantized to see what that takes from them."""


@dataclass(frozen=True)
class Feeds:
    """Samples of both towers that are held in memory."""

    image: Batches
    text: Batches

    def of(self, tower: str) -> Batches:
        return self.image if tower == "image" else self.text

    def first(self, rows: int) -> Feeds:
        """Some rows of each."""
        return Feeds(_first(self.image, rows), _first(self.text, rows))


def _first(batches: Batches, rows: int) -> Batches:
    starts = accumulate(map(len, batches), initial=0)
    return [batch[: rows - start] for batch, start in zip(batches, starts, strict=False) if start < rows]


def embedded(model: DualEncoder, tower: str, batches: Batches) -> Tensor:
    """Embeddings (N, D) of one tower, of unit norm. NaN would pass every budget, so it is refused here."""
    device = model.logit_scale.device
    encode = model.encode_image if tower == "image" else model.encode_text
    with inferring():
        embeddings = torch.cat([encode(batch.to(device)) for batch in batches])
    if not torch.isfinite(embeddings).all():
        raise CorruptInputError(
            f"the {tower} tower answers calibration samples with NaN or infinity",
            "its activations overflow: check the checkpoint with `mmcompress export` and `drift`",
        )
    return embeddings


def distance(reference: Tensor, other: Tensor) -> float:
    """(N, D), (N, D) of unit norm -> mean of 1 - cosine, as half the squared distance, which loses no digits."""
    return float((reference.double() - other.double()).square().sum(dim=1).mean() / 2)


def fake_quantized(x: Tensor, quantizer: ActivationQuantizer) -> Tensor:
    """What is left of x after quantizing and restoring it; any shape."""
    low, high = (limit - quantizer.zero_point for limit in LIMITS[quantizer.kind])
    scale = float(quantizer.scale)
    return (x / scale).round_().clamp_(low, high).mul_(scale)


def restored(stored: IntegerLinear) -> Tensor:
    """The weight (out, in), float32, that integers stand for: `dequantize_weight` as torch lays it out."""
    scales = torch.from_numpy(stored.scales)[:, None]
    return (torch.from_numpy(stored.weight).T.contiguous().to(scales.dtype) * scales).float()


@contextmanager
def quantizing(
    model: DualEncoder, linears: Linears, ranges: Mapping[str, Range], kind: Signedness
) -> Iterator[DualEncoder]:
    """Within, the Linears that are named compute what the graph of that kind does; the others stay in float."""
    originals: list[tuple[nn.Linear, Tensor, Tensor]] = []
    handles = []
    for name, linear in model.linears():
        if name not in linears:
            continue
        originals.append((linear, linear.weight.data, linear.bias.data))
        linear.weight.data = restored(linears[name]).to(linear.weight.data)
        linear.bias.data = torch.from_numpy(linears[name].bias).to(linear.bias.data)
        handles.append(
            linear.register_forward_pre_hook(_quantizing(activation_quantizer(ranges[name], kind, SCALE_TYPES[kind])))
        )
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()
        for linear, weight_before, bias_before in originals:
            linear.weight.data, linear.bias.data = weight_before, bias_before


@contextmanager
def table_in_integers(model: DualEncoder) -> Iterator[DualEncoder]:
    """Within, the table of token embeddings holds what its 8 bits a number stand for."""
    tokens = model.text.tokens
    before = tokens.weight.data
    rounded = dequantize_rows(*quantize_rows(before.cpu().numpy()))
    tokens.weight.data = torch.from_numpy(rounded).to(before)
    try:
        yield model
    finally:
        tokens.weight.data = before


def as_table(model: DualEncoder, integers: bool) -> AbstractContextManager[DualEncoder]:
    """`table_in_integers` where it is asked for."""
    return table_in_integers(model) if integers else nullcontext(model)


def _quantizing(quantizer: ActivationQuantizer) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
    return lambda _, arguments: (fake_quantized(arguments[0], quantizer),)


@contextmanager
def _attached(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Hooks that are there within."""
    attached = list(handles)
    try:
        yield
    finally:
        for handle in attached:
            handle.remove()


def observing(model: DualEncoder, see: Callable[[str, Tensor], None]) -> AbstractContextManager[None]:
    """Show every Linear's input (rows, in)."""

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, arguments: see(name, arguments[0].flatten(0, 1))

    return _attached(linear.register_forward_pre_hook(watch(name)) for name, linear in model.linears())


def observing_attention(model: DualEncoder, see: Callable[[str, Tensor], None]) -> AbstractContextManager[None]:
    """Show the operands of the attention products as graphs multiply them, `image.blocks.0.attention.query` and so on.

    Of the probabilities only the largest is shown, as all that a range needs; where attention is causal it is 1.
    """

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            query, keys, values, mask, causal = arguments
            query = query * query.shape[-1] ** -0.5
            image_by_image = zip(query, keys.transpose(-1, -2), strict=True)
            largest = (
                [query.new_ones(())]
                if causal or mask is not None
                else [(q @ k).softmax(dim=-1).max() for q, k in image_by_image]
            )
            for operand, seen in zip(OPERANDS, (query, keys, torch.stack(largest), values), strict=True):
                see(f"{name}.{operand}", seen)

        return hook

    return _attached(attention.register_forward_pre_hook(watch(name)) for name, attention in model.attentions())


def _total(x: Tensor) -> Tensor:
    """(rows, in) -> (in,) in float64, summed in float32, pairwise, so that a batch keeps six digits"""
    return x.sum(dim=0).double().cpu()


class Moments:
    """Streaming sums over the inputs (rows, in) of a Linear: x x^T as float32 multiplies it, and in float64 x. Every
    second batch is in a fold of its own: one tests what was fitted to the other. Of some rows, evenly spaced, also what
    each kind moves x by, and for the first kind the square of that.

    Sums are of x less the mean of the first batch: of inputs that vary little about a large mean, as behind a LayerNorm
    with a small gain, products of x itself would leave nothing in float32.
    """

    def __init__(self, quantizers: Mapping[Signedness, ActivationQuantizer]) -> None:
        self._quantizers = quantizers
        self._batches = 0
        self._rows = [0, 0]
        self._origin = torch.zeros(())
        self._grams, self._sums = ([torch.zeros(()), torch.zeros(())] for _ in range(2))
        self._quantized = 0
        self._moves = {kind: torch.zeros(()) for kind in quantizers}
        self._errors = torch.zeros(())

    def add(self, x: Tensor) -> None:
        fold = self._batches % 2
        self._batches += 1
        self._rows[fold] += len(x)
        if not self._origin.ndim:
            self._origin = x.mean(dim=0)
        if not self._grams[fold].ndim:
            self._grams[fold] = x.new_zeros(x.shape[1], x.shape[1])
        inputs = (x - self._origin).T.contiguous()
        for start in range(0, len(inputs), _GRAM_COLUMNS):
            some = slice(start, start + _GRAM_COLUMNS)
            self._grams[fold][some, start:].add_(product(inputs[some], inputs[start:]))
        self._sums[fold] = self._sums[fold] + _total(inputs.T)
        some_rows = x[:: max(1, len(x) // _QUANTIZED_ROWS)]
        self._quantized += len(some_rows)
        for index, (kind, quantizer) in enumerate(self._quantizers.items()):
            moves = fake_quantized(some_rows, quantizer).sub_(some_rows)
            self._moves[kind] = self._moves[kind] + _total(moves)
            if index == 0:
                self._errors = self._errors + _total(moves.square_())

    @property
    def rows(self) -> int:
        return sum(self._rows)

    @property
    def gram(self) -> Tensor:
        """(in, in) float32, mean of x x^T; only what is on and above the diagonal."""
        mean = torch.from_numpy(self.mean).float()
        return self.covariance.addr_(mean, mean)

    @property
    def power(self) -> Vector:
        """(in,) mean square of each input."""
        total = sum((gram.diagonal() for gram in self._grams if gram.ndim), torch.zeros(()))
        variance = (total.double() / self.rows).cpu() - self._about_origin.square()
        return (variance + torch.from_numpy(self.mean).square()).numpy()

    @property
    def covariance(self) -> Tensor:
        """(in, in) float32; only what is on and above the diagonal, which is all that a factorization reads."""
        first, *others = (gram.cpu() for gram in self._grams if gram.ndim)
        mean = first / self.rows
        for gram in others:
            mean.add_(gram, alpha=1 / self.rows)
        return _centred(mean, self._about_origin)

    @property
    def mean(self) -> Vector:
        """(in,)"""
        return (self._origin.double().cpu() + self._about_origin).numpy()

    @property
    def _about_origin(self) -> Tensor:
        """(in,) mean of x less the origin."""
        return sum(self._sums, torch.zeros(())) / self.rows

    def folds(self, every: int = 1) -> list[tuple[Tensor, int]]:
        """Of each half the covariance of every so manieth input, and its rows; one of them if there was one batch."""
        halves = zip(self._rows, self._grams, self._sums, strict=True)
        return [
            (_centred(_whole(gram[::every, ::every].cpu()) / rows, total[::every] / rows), rows)
            for rows, gram, total in halves
            if rows
        ]

    def mean_quantized(self, kind: Signedness) -> Vector:
        """(in,)"""
        moved: Vector = self.mean + (self._moves[kind] / self._quantized).numpy()
        return moved

    @property
    def noise(self) -> Vector:
        """(in,) mean square of what the first kind's quantizing takes from each input."""
        return (self._errors / self._quantized).numpy()


@torch.inference_mode()
def _whole(gram: Tensor) -> Tensor:
    """(n, n) symmetric, of which only what is on and above the diagonal is known -> (n, n)"""
    return gram.triu() + gram.triu(1).T


def _centred(gram: Tensor, mean: Tensor) -> Tensor:
    """Mean of x x^T (in, in), which is overwritten, and of x (in,) -> covariance (in, in)."""
    return gram.addr_(mean.float(), mean.float(), alpha=-1)
