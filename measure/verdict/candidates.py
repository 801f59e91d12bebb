"""The INT8 graphs that a verdict tries: one entry a degree of freedom that paid on some backend when it was measured.

Which products are integers, and how activations are stored, is all that the writer can still choose: the rest of the
graph was settled by measuring (docs/decisions.md), as runtimes fuse LayerNorm, GELU and the joint QKV as it is written.
A Linear that costs accuracy or, on a processor without integer instructions, time can stay in float in every block;
Linears that `quantize` left in float stay so in each candidate. Attention products are integers where a runtime gains
by it and the drift allows it, which is seldom for the second of them. Graphs for GPUs compile as they say, by the audit
of TensorRT-RTX; no GPU has timed them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mmcompress.architecture import DualEncoderConfig
from mmcompress.config import Backend, Precision
from mmcompress.export.graph import AttentionProduct, Numerics
from mmcompress.export.products import Product
from mmcompress.int8 import Signedness, linear_modules
from mmcompress.runtime.backends import CPU_BACKENDS, GPU_BACKENDS

LINEARS = ("qkv", "out", "fc1", "fc2")


@dataclass(frozen=True)
class Candidate:
    """One way to write the INT8 graphs."""

    name: str
    says: str
    backends: tuple[Backend, ...]
    activations: Literal["signed", "unsigned", "float8"]
    dtype: type[np.float32] | type[np.float16] = np.float32
    """Of everything that is not an INT8 product."""
    linears: tuple[str, ...] = LINEARS
    """Those that are INT8, in every block."""
    attention: tuple[AttentionProduct, ...] = ()
    """Attention products that are INT8, in every block."""
    by_token: bool = True
    """Whether attention is written in the order that spares TensorRT-RTX a copy."""

    @property
    def precision(self) -> Precision:
        return "fp8" if self.activations == "float8" else "int8"


CANDIDATES = (
    Candidate("all", "all Linears", CPU_BACKENDS, "unsigned"),
    Candidate("signed", "all Linears, signed activations", CPU_BACKENDS, "signed"),
    Candidate("scores", "all Linears and the attention's scores", CPU_BACKENDS, "unsigned", attention=("scores",)),
    Candidate("attention", "all Linears and attention", CPU_BACKENDS, "unsigned", attention=("scores", "mixed")),
    Candidate("no-out", "all but the out-projections", CPU_BACKENDS, "unsigned", linears=("qkv", "fc1", "fc2")),
    Candidate("qkv-fc1", "what reads a LayerNorm: QKV and FC1", CPU_BACKENDS, "unsigned", linears=("qkv", "fc1")),
    Candidate("mlp", "the MLP only", CPU_BACKENDS, "unsigned", linears=("fc1", "fc2")),
    Candidate("all", "all Linears, FP16 around them", GPU_BACKENDS, "signed", np.float16),
    Candidate("qkv-fc1", "QKV and FC1, FP16 elsewhere", GPU_BACKENDS, "signed", np.float16, ("qkv", "fc1")),
    Candidate("mlp", "the MLP only, FP16 elsewhere", GPU_BACKENDS, "signed", np.float16, ("fc1", "fc2")),
    Candidate(
        "no-out",
        "all but the out-projections, FP16 elsewhere",
        GPU_BACKENDS,
        "signed",
        np.float16,
        ("qkv", "fc1", "fc2"),
    ),
    Candidate("by-image", "all Linears, heads by image", ("tensorrt",), "signed", np.float16, by_token=False),
    Candidate("fp8", "all Linears in FP8, FP16 around them", GPU_BACKENDS, "float8", np.float16),
)


@dataclass(frozen=True)
class GraphCandidate(Candidate):
    """One way to write the INT8 graphs of any architecture."""

    convolutions: Literal["all", "dense", "none"] = "all"
    """Those that are INT8; a dense one reads every channel of its input, or of a group of several."""
    outputs: bool = False
    """Whether what convolutions give is quantized too, which ONNX Runtime needs to compute them in integers."""

    @property
    def kind(self) -> Signedness:
        """Of its integers."""
        return "unsigned" if self.activations == "unsigned" else "signed"

    def takes(self, product: Product) -> bool:
        """Whether a product is INT8."""
        if product.op != "Conv" or self.convolutions == "all":
            return True
        return self.convolutions == "dense" and not product.depthwise


GRAPH_CANDIDATES = (
    GraphCandidate("all", "all products", CPU_BACKENDS, "unsigned"),
    GraphCandidate("signed", "all products, signed activations", CPU_BACKENDS, "signed"),
    GraphCandidate("outputs", "all products and what convolutions give", CPU_BACKENDS, "unsigned", outputs=True),
    GraphCandidate("no-depthwise", "all but depthwise convolutions", CPU_BACKENDS, "unsigned", convolutions="dense"),
    GraphCandidate("linears", "the Linears only", CPU_BACKENDS, "unsigned", convolutions="none"),
    GraphCandidate("all", "all products, FP32 around them", GPU_BACKENDS, "signed"),
)


def candidates_for(
    backend: Backend, model: DualEncoderConfig, int8: Mapping[str, Numerics]
) -> Iterator[tuple[Candidate, Numerics]]:
    """Those that make sense on a backend with their numerics, each different graph once."""
    known = set()
    for candidate in CANDIDATES:
        if backend not in candidate.backends:
            continue
        base = int8[candidate.activations]
        left_out = {*LINEARS} - {*candidate.linears}
        others = {name for name in linear_modules(model) if name.rpartition(".")[2] in left_out}
        kept = base.kept | others
        kind = (candidate.activations, candidate.dtype, kept, candidate.attention, candidate.by_token)
        if kind not in known and not kept.issuperset(linear_modules(model)):
            known.add(kind)
            numerics = replace(base, dtype=candidate.dtype, kept=kept, attention=candidate.attention)
            yield candidate, replace(numerics, by_token=candidate.by_token)
