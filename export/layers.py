"""What a TensorRT engine is made of: its compiled layers, from the builder's log or from the engine inspector's JSON.

TensorRT-RTX builds without a GPU but cannot load an engine there, so its log is all there is: at VERBOSE level it
prints a line a layer. Classic TensorRT has a GPU, and its engine inspector gives JSON (`LayerInformationFormat.JSON`).
Both say the same in other words: types are `Half` or `Row major linear FP16 format`, under `Datatype` or
`Format/Datatype`; constants are a list of their own, among the inputs, or `Weights` with a type; and a product is a
`gemm`, a `CaskConvolution` or a `fusion` whose name or tactic says what is fused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmcompress.strictjson import json_from_text

WIDTH = {"fp8": 0, "int8": 0, "fp16": 1, "bf16": 1, "fp32": 2}
"""Of the types that a product may have, by their place in the order; anything else is wider."""
_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]+), Inputs: (?P<inputs>.*?), "
    r"(?:Constants: (?P<constants>.*?), )?Outputs: (?P<outputs>.*?), Tactic(?:Name)?: (?P<tactic>[^,]*)(?P<rest>.*)$"
)
_TENSOR = re.compile(r"Dimensions: \[(?P<shape>[^\]]*)\].*?(?<![\w])Datatype: (?P<type>[^,}\]]+)")
_TYPES = (
    ("int8", re.compile(r"\bU?Int8\b", re.IGNORECASE)),
    ("fp8", re.compile(r"\b(FP8|E4M3\w*|Float8\w*)\b", re.IGNORECASE)),
    ("bf16", re.compile(r"\b(BF16|BFloat16)\b", re.IGNORECASE)),
    ("fp16", re.compile(r"\b(Half|FP16)\b", re.IGNORECASE)),
    ("fp32", re.compile(r"\b(Float|FP32|TF32)\b", re.IGNORECASE)),
)
_OPERANDS = re.compile(r"_(?P<type>i8|e4m3|bf16|f16|f32)(?:i8|i32|e4m3|bf16|f16|f32)_|(?P<vector>int8x4)_")
_OF_TACTIC = {"i8": "int8", "int8x4": "int8", "e4m3": "fp8", "bf16": "bf16", "f16": "fp16", "f32": "fp32"}
_INSTRUCTION = re.compile(r"(?P<int8>i8i8|imma|i8816|i168(?:16|32))|(?P<fp16>hmma|(?<![a-z])h(?:884|1688|16816))")
"""What a tactic's name says of its tensor cores, where it does not name the operands: `h16816` multiplies FP16."""
_OF_PROFILE = re.compile(r" \[profile (\d+)\]$")
UNKNOWN = "unknown"
"""Precision of what TensorRT does not tell, with dynamic shapes say."""
_NODE = re.compile(r"\[ONNX Layer: ([^\]\x1e]+)\]")
_PRODUCT = re.compile(r"^(cask\w*(conv|gemm|matrix)\w*|gemm|correlation|conv(olution)?|matmul|matrixmultiply)$")
_FUSED = re.compile(r"(Fc|Gemm|Conv|Corr)")
_PRODUCT_TACTIC = re.compile(r"gemm|fprop|cutlass|conv|matmul")


@dataclass(frozen=True)
class Layer:
    """One compiled layer."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    """Precisions of the inputs."""
    constants: tuple[str, ...]
    """Precisions of the constants; scalars (a product's alpha and beta) are left out, wherever they are listed."""
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]
    """ONNX nodes that it computes, some of them in part."""
    tactic: str = ""
    profile: int = 0
    """Of several optimization profiles the one that it is compiled for."""

    @property
    def attention(self) -> bool:
        return "mha" in self.name

    @property
    def fusion(self) -> bool:
        return self.kind.lower() in ("fusion", "runtime_fusion")

    @property
    def product(self) -> bool:
        fused = self.fusion and bool(_FUSED.search(self.name) or _PRODUCT_TACTIC.search(self.tactic))
        return not self.attention and (bool(_PRODUCT.match(self.kind.lower())) or fused)

    @property
    def precision(self) -> str:
        """By its tactic where that names the operands, else of the widest operand; what a fusion adds counts too. Where
        an operand is unknown, by the instruction in its tactic, else of the other operand of a plain product."""
        if self.product and (stated := _OPERANDS.search(self.tactic)):
            return _OF_TACTIC[stated["type"] or stated["vector"]]
        operands = (*self.inputs, *(self.constants if self.fusion else self.constants[:1]))
        known = [operand for operand in operands if operand != UNKNOWN]
        if self.product and len(known) < len(operands):
            if (instruction := _INSTRUCTION.search(self.tactic)) and instruction.lastgroup:
                return instruction.lastgroup
            operands = () if self.fusion else tuple(known)
        return max(operands, key=lambda p: (WIDTH.get(p, 3), p), default=UNKNOWN)


def layers_of_log(messages: Iterable[str]) -> list[Layer]:
    """The compiled layers in a build log, in order of execution."""
    return [
        _of_line(match)
        for message in messages
        if "LayerType: " in message
        for line in message.split("\n")  # not splitlines: nodes are listed with \x1e between them
        if (match := _LAYER.search(line))
    ]


def layers_of_inspector(text: str, profile: int = 0) -> list[Layer]:
    """The layers of one profile in an engine inspector's JSON; none where it is something else, or lists names alone.

    A listing of all profiles marks those behind the first: `gemm [profile 1]`.
    """
    try:
        listed = json_from_text(text)["Layers"]
    except (ValueError, KeyError, TypeError):
        return []
    layers = [(entry, _profile_of(entry)) for entry in listed if isinstance(entry, Mapping)]
    marked = any(number is not None for _, number in layers)
    return [_of_entry(entry, profile) for entry, number in layers if not marked or (number or 0) == profile]


def _profile_of(entry: Mapping[str, Any]) -> int | None:
    found = _OF_PROFILE.search(str(entry.get("Name", "")))
    return int(found[1]) if found else None


def _of_line(match: re.Match[str]) -> Layer:
    return Layer(
        name=match["name"],
        kind=match["kind"].strip(),
        inputs=tuple(_line_types(match["inputs"])),
        constants=tuple(_line_types(match["constants"] or "")),
        outputs=tuple(_line_types(match["outputs"], scalars=True)),
        nodes=_nodes(match["name"], match["rest"]),
        tactic=match["tactic"].strip(),
    )


def _line_types(text: str, scalars: bool = False) -> Iterator[str]:
    for tensor in _TENSOR.finditer(text):
        if scalars or tensor["shape"].strip() not in ("", "1"):
            yield precision_of(tensor["type"])


def _of_entry(entry: Mapping[str, Any], profile: int) -> Layer:
    weights = entry.get("Weights")
    stored = [weights] if isinstance(weights, Mapping) else []
    name = str(entry.get("Name", ""))
    return Layer(
        name=name,
        kind=str(entry.get("LayerType", "")),
        inputs=tuple(_entry_types(entry.get("Inputs"))),
        constants=(*_entry_types(entry.get("Constants")), *(precision_of(str(one.get("Type"))) for one in stored)),
        outputs=tuple(_entry_types(entry.get("Outputs"), scalars=True)),
        nodes=_nodes(name, str(entry.get("Metadata", ""))),
        tactic=str(entry.get("TacticName", "")),
        profile=profile,
    )


def _entry_types(tensors: Any, scalars: bool = False) -> Iterator[str]:
    for tensor in tensors if isinstance(tensors, list) else ():
        if scalars or tensor.get("Dimensions") not in ([], [1]):
            yield precision_of(str(tensor.get("Format/Datatype") or tensor.get("Datatype")))


def precision_of(datatype: str) -> str:
    """`Thirty-two wide channel vectorized row major Int8 format` -> `int8`, `N/A due to dynamic shapes` -> `unknown`; a
    type that is none of ours stays as it is called."""
    if datatype.strip().lower() in ("", "none") or datatype.startswith("N/A"):
        return UNKNOWN
    return next((name for name, pattern in _TYPES if pattern.search(datatype)), datatype.strip().lower())


def _nodes(name: str, metadata: str) -> tuple[str, ...]:
    """By the metadata; where there is none, a layer's name joins those of its nodes: `a + b`, `a+b_myl0_7`."""
    if found := _NODE.findall(metadata):
        return tuple(found)
    joined = re.sub(r"_myl\d+_\d+$", "", _OF_PROFILE.sub("", name))
    return tuple(part.strip() for part in re.split(r"\+|\|\|", joined))
