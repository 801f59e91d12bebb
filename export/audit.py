"""What a TensorRT build really compiled: layers, types, and whether every Linear that should be in 8 bits is.

A quantized graph that parses is no INT8 engine yet: the compiler may move a reshape through a product, find that it can
no longer quantize it, and fall back to FP16 without a word. Compiled layers name the ONNX nodes that they come from
(`layers.py`) and our nodes carry module names, so the audit can say `image.blocks.3.qkv` was not quantized, on a
machine with no GPU. What should be in 8 bits is read from the graph that was built: its products of constant weights
with Q/DQ. An engine in which one of them is not fails the build, and so does one of which nothing can be read.

A product is as precise as its widest operand. Fused attention (`mha`) is counted apart: it is never quantized here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mmcompress.errors import GateFailedError, require
from mmcompress.export.document import Audit, AuditSummary
from mmcompress.export.layers import UNKNOWN, WIDTH, Layer
from mmcompress.progress import say

UNSEEN = "in no layer"
"""Precision of a Linear that no compiled layer names."""
_MODULE = re.compile(r"^((?:image|text)\.blocks\.\d+\.(?:qkv|out|fc1|fc2))(?:\.q|\.kv)?$")
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")


def linear_of(node: str) -> str | None:
    """`image.blocks.5.qkv.kv` -> `image.blocks.5.qkv`; None for a node that is no Linear's product."""
    match = _MODULE.match(node)
    return match[1] if match else None


def quantized_linears(path: Path) -> dict[str, str]:
    """Of an ONNX file, the MatMuls of constant weights with Q/DQ, each with its precision: `int8` or `fp8`."""
    onnx = require("onnx", "compress")
    graph = onnx.load(str(path), load_external_data=False).graph
    constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
    restored = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    turned = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Transpose"}
    linears = {}
    for node in graph.node:
        left, right = (turned.get(name, name) for name in (*node.input, "", "")[:2])
        if node.op_type == "MatMul" and left in restored and right in restored:
            stored = constants.get(restored[right].input[0])
            if stored is not None:
                linears[node.name] = "int8" if stored == onnx.TensorProto.INT8 else "fp8"
    return linears


def audit_of(layers: Sequence[Layer], quantized: Mapping[str, str], messages: Iterable[str] = ()) -> Audit:
    """The audit of an engine whose graph has `quantized` products by node; `messages` are of its build.

    What is counted is what one call starts: the layers of the profile with the most. Linears are of all profiles.
    """
    products = [layer for layer in layers if layer.product]
    profiles = Counter(layer.profile for layer in layers)
    fullest = max(profiles, key=profiles.__getitem__, default=0)
    called = [layer for layer in layers if layer.profile == fullest]
    wanted = {linear_of(node) or node: precision for node, precision in quantized.items()}
    modules: dict[str, str] = {}
    for layer in products:
        for node in layer.nodes:
            module = linear_of(node) or (node if node in quantized else None)
            if module is not None:
                modules[module] = max(modules.get(module, layer.precision), layer.precision, key=_width)
    weights = [int(m[1]) for message in messages if (m := _WEIGHTS.search(message))]
    return Audit(
        layers=len(called),
        kinds=_counted(layer.kind for layer in called),
        products=_counted(layer.precision for layer in called if layer.product),
        attention=_counted(layer.precision for layer in called if layer.attention),
        modules=dict(sorted(modules.items(), key=lambda item: _natural(item[0]))),
        quantized=dict(sorted(wanted.items(), key=lambda item: _natural(item[0]))),
        weights_bytes=weights[-1] if weights else None,
    )


def fallen_back(audit: Audit) -> dict[str, str]:
    """Linears that the graph has in 8 bits and the engine has not, with the precision that they have there."""
    found = {name: audit.modules.get(name, UNSEEN) for name in audit.quantized}
    return {name: precision for name, precision in found.items() if precision != audit.quantized[name]}


def check_audit(audit: Audit, engine: str, allow_fallback: bool = False) -> None:
    """Raise GateFailedError where nothing was compiled that can be read, or a Linear is not in the type it should be or
    in one that TensorRT does not say; with `allow_fallback`, say it."""
    found = fallen_back(audit)
    if audit.layers and not found:
        return
    wide = {name: precision for name, precision in found.items() if precision != UNKNOWN}
    kinds = "/".join(sorted({precision.upper() for precision in audit.quantized.values()}))
    if not audit.layers:
        what = f"TensorRT says nothing of the layers of {engine} that can be read, so there is no audit of it"
    elif not wide:
        listed = ", ".join(list(found)[:4]) + (", …" if len(found) > 4 else "")
        what = (
            f"TensorRT does not say in which type {engine} computes {len(found)} of its {len(audit.quantized)} {kinds}"
            f" Linears, so nothing shows that they are: {listed}"
        )
    elif len(wide) == len(audit.quantized):
        taken = ", ".join(sorted(set(wide.values())))
        what = f"{engine} fell back as a whole: none of its {len(wide)} {kinds} Linears is, all are {taken}"
    else:
        listed = ", ".join(f"{name} ({precision})" for name, precision in list(wide.items())[:4])
        more = ", …" if len(wide) > 4 else ""
        what = f"{len(wide)} of {len(audit.quantized)} {kinds} Linears of {engine} are not: {listed}{more}"
    if not allow_fallback:
        raise GateFailedError(what, "take the engine as it is with --allow-fallback, or build the FP16 graph")
    say("build", engine, f"warning: {what}")


def summary_of(audit: Audit) -> AuditSummary:
    """Without the lists of modules, but with those that fell back."""
    return AuditSummary(
        layers=audit.layers,
        products=audit.products,
        attention=audit.attention,
        weights_bytes=audit.weights_bytes,
        modules=_counted(audit.modules.values()),
        not_int8=tuple(fallen_back(audit)),
    )


def _width(precision: str) -> int:
    return WIDTH.get(precision, 3)


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in name.split(".")]
