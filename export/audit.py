"""What a TensorRT build really compiled, read from its own log: layers, types, and which modules run in INT8.

A quantized graph that parses is no INT8 engine yet: the compiler may move a reshape through a product, find that it can
no longer quantize it, and fall back to FP16 without a word. At VERBOSE level, with detailed profiling verbosity, the
builder prints every compiled layer with the types of its inputs, constants and outputs and the ONNX nodes it came from.
Our nodes carry module names, so the audit can say `image.blocks.3.qkv` was not quantized, on a machine with no GPU.

Matrix products are the layers `gemm`, `correlation` and the convolutions, and the fusions around a fully connected one
(`Fc`, `Gemm`, `Conv` in their name). A product is as precise as its widest operand. Fused attention (`mha`) is
counted apart: it is never quantized here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmcompress.export.document import Audit, AuditSummary

PRECISIONS = {"Int8": "int8", "UInt8": "int8", "Half": "fp16", "BFloat16": "bf16", "BF16": "bf16", "Float": "fp32"}
WIDTH = {"int8": 0, "fp16": 1, "bf16": 1, "fp32": 2}
_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]+), Inputs: (?P<inputs>.*?), Constants: (?P<constants>.*?), "
    r"Outputs: (?P<outputs>.*?), Tactic(?P<rest>.*)$"
)
_TENSOR = re.compile(r"Dimensions: \[(?P<shape>[^\]]*)\].*?Datatype: (?P<type>\w+)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]\x1e]+)\]")
_MODULE = re.compile(r"^((?:image|text)\.blocks\.\d+\.(?:qkv|out|fc1|fc2))(?:\.q|\.kv)?$")
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")
_PRODUCT_KINDS = ("gemm", "correlation", "convolution", "conv", "matmul", "matrixmultiply")
_PRODUCT_FUSION = re.compile(r"(Fc|Gemm|Conv|Corr)")


@dataclass(frozen=True)
class Layer:
    """One compiled layer."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    """Types of the inputs."""
    constants: tuple[str, ...]
    """Types of the constants, scalars (a product's alpha and beta) left out."""
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]
    """ONNX nodes that it computes, some of them in part."""

    @property
    def attention(self) -> bool:
        return "mha" in self.name

    @property
    def product(self) -> bool:
        fused = self.kind.lower() == "runtime_fusion" and bool(_PRODUCT_FUSION.search(self.name))
        return not self.attention and (self.kind.lower() in _PRODUCT_KINDS or fused)

    @property
    def precision(self) -> str:
        """Of the widest operand; of a fusion that adds a residual, the operands that it adds count too."""
        precisions = {PRECISIONS.get(t, t.lower()) for t in (*self.inputs, *self.constants)}
        if self.kind.lower() != "runtime_fusion" and precisions:
            precisions = {PRECISIONS.get(t, t.lower()) for t in (*self.inputs, *self.constants[:1])}
        return max(precisions, key=lambda p: (WIDTH.get(p, 3), p), default="unknown")


def summary_of(audit: Audit) -> AuditSummary:
    """Without the list of modules, but with those that are in the minority of a quantized engine."""
    counted = dict(sorted(Counter(audit.modules.values()).items()))
    wide = [name for name, precision in audit.modules.items() if precision != "int8"] if "int8" in counted else []
    return AuditSummary(
        layers=audit.layers,
        products=audit.products,
        attention=audit.attention,
        weights_bytes=audit.weights_bytes,
        modules=counted,
        not_int8=tuple(wide),
    )


def parse_layers(messages: Iterable[str]) -> list[Layer]:
    """The compiled layers in a build log, in order of execution."""
    return [
        _layer(match)
        for message in messages
        if "LayerType: " in message
        for line in message.split("\n")  # not splitlines: nodes are listed with \x1e between them
        if (match := _LAYER.search(line))
    ]


def _layer(match: re.Match[str]) -> Layer:
    return Layer(
        name=match["name"],
        kind=match["kind"].strip(),
        inputs=_types(match["inputs"]),
        constants=_types(match["constants"], scalars=False),
        outputs=_types(match["outputs"]),
        nodes=tuple(_NODE.findall(match["rest"])),
    )


def _types(text: str, scalars: bool = True) -> tuple[str, ...]:
    tensors = ((m["shape"], m["type"]) for m in _TENSOR.finditer(text))
    return tuple(kind for shape, kind in tensors if scalars or shape.strip() not in ("", "1"))


def linear_of(node: str) -> str | None:
    """`image.blocks.5.qkv.kv` -> `image.blocks.5.qkv`; None for a node that is no Linear's product."""
    match = _MODULE.match(node)
    return match[1] if match else None


def audit_log(messages: Sequence[str]) -> Audit:
    """Read a build log."""
    layers = parse_layers(messages)
    products = [layer for layer in layers if layer.product]
    modules: dict[str, str] = {}
    for layer in products:
        for module in filter(None, map(linear_of, layer.nodes)):
            modules[module] = max(modules.get(module, "int8"), layer.precision, key=lambda p: WIDTH.get(p, 3))
    weights = [int(m[1]) for message in messages if (m := _WEIGHTS.search(message))]
    return Audit(
        layers=len(layers),
        kinds=_counted(layer.kind for layer in layers),
        products=_counted(layer.precision for layer in products),
        attention=_counted(layer.precision for layer in layers if layer.attention),
        modules=dict(sorted(modules.items(), key=lambda item: _natural(item[0]))),
        weights_bytes=weights[-1] if weights else None,
    )


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in name.split(".")]
