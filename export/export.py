"""The export stage: a checkpoint becomes two ONNX graphs, one a tower, in each precision that was asked for.

Every export runs the FP32 graphs on ONNX Runtime against the torch model, at three batch sizes, and fails where they
differ; the architecture is written twice (`towers.py`, `model.py`), and this is what keeps the two the same. What FP16
and INT8 do to the same random inputs is measured too, but it is no gate: random pixels say little about accuracy, the
drift stage says it on data.

FP8 has the ranges of the same calibration, and is for GPUs from Ada on (sm89); its weights are rounded to nearest.
INT8 comes as two files of one calibration. The signed one is for TensorRT, with everything that is not quantized in
FP16, since its fused attention exists in FP16 only; the unsigned one is for CPUs, with the rest in FP32. A tower that
is never compressed is delivered in these two float types.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmcompress.architecture import WEIGHTS, DualEncoderConfig
from mmcompress.artifact import Artifact
from mmcompress.card import export_card
from mmcompress.config import EIGHT_BITS, ExportConfig, Precision
from mmcompress.embedding import SPREAD, always_the_same
from mmcompress.errors import CorruptInputError, GateFailedError, UsageError, require
from mmcompress.export.form import PLAIN, Form, form_of
from mmcompress.export.graph import Array, Numerics, Ranges
from mmcompress.export.reference import Reference
from mmcompress.export.towers import check_eight_bits, graph_integers, image_graph, text_graph
from mmcompress.export.trim import trim_of
from mmcompress.int8 import (
    INTEGERS,
    RANGES,
    TABLE_FACT,
    check_tensors,
    linear_modules,
    linears_from_tensors,
    products_called,
    read_ranges,
)
from mmcompress.manifest import VOCABULARY, Graph, TensorSpec
from mmcompress.progress import say
from mmcompress.seen import SEEN_IMAGES
from mmcompress.stages import Job
from mmcompress.twins import FLOAT_MODEL, float_model

INLINE_LIMIT_BYTES = 1 << 31
"""A protobuf ends here; weights beyond it go into a file beside the graph."""
_BUILDERS = {"image": image_graph, "text": text_graph}
Tower = Literal["image", "text"]


@dataclass(frozen=True)
class Variant:
    """One file a tower."""

    precision: Precision
    numerics: Numerics

    def file(self, tower: Tower) -> str:
        kind = self.numerics.activations
        sort = f"-{kind}" if kind in ("signed", "unsigned") else ""
        return f"{tower}-{self.precision}{sort}.onnx"


VARIANTS = (
    Variant("fp32", Numerics()),
    Variant("fp16", Numerics(np.float16)),
    Variant("fp8", Numerics(np.float16, "float8")),
    Variant("int8", Numerics(np.float16, "signed")),
    Variant("int8", Numerics(np.float32, "unsigned")),
)


def export(job: Job[ExportConfig]) -> None:
    """Stage: write, check and describe the graphs of a checkpoint."""
    source, config = job.sources["checkpoint"], job.config
    model = source.model
    check_eight_bits(model, config.precisions)
    int8 = read_int8(source) if {"int8", "fp8"} & set(config.precisions) else {}
    for tower in model.compressed if int8 else ():
        check_has_integers(source, tower)
    tensors = read_tensors(source.path / WEIGHTS)
    require("torch", "compress")
    from mmcompress.huggingface import dual_encoder_from_checkpoint

    encoder = dual_encoder_from_checkpoint(source.path, model)
    form = form_of(config, source, encoder, logits(tensors))
    carried = [*([source.tokenizer.file] if source.tokenizer else []), *([SEEN_IMAGES] if int8 else [])]
    job.draft.inherit(source, *carried)
    if (trim := trim_of(config.trim_vocab, source, job.name)) is not None:
        model, tensors = trim.model, trim.tensors(tensors)
        trim.shorten(encoder)
        trim.write(job.draft)
    reference = Reference.of(encoder, form)
    if form.bank is not None:
        job.draft.bank = form.bank.said
    differences: dict[str, dict[str, float]] = {}
    for tower in ("image", "text"):
        for variant in variants_of(model, tower, config.precisions):
            numerics = int8.get(variant.numerics.activations, variant.numerics)
            path = job.draft.path / variant.file(tower)
            job.draft.graphs.append(
                write_graph(path, model, tensors, tower, replace(variant, numerics=numerics), config.opset, form)
            )
            differences[path.name] = reference.compare(path, tower)
            inside = job.draft.graphs[-1].prepares
            apart = 1 - differences[path.name]["min_cosine"] if inside else differences[path.name]["max_abs"]
            if variant.precision == "fp32" and not apart <= (limit := reference.limits[tower]):
                raise GateFailedError(
                    f"{path.name} is {apart:.2e} from torch, the limit is {limit:.2g}",
                    "this is a fault of the exporter or of the runtime: please report it with the checkpoint's config",
                )
    job.draft.facts = {
        "params": model.params,
        "macs": model.macs,
        **logits(tensors),
        FLOAT_MODEL: float_model(source),
        "ranges_source": _ranges_source(source) if int8 else None,
        "kept": sorted(source.manifest.facts.get("kept", ())) if int8 else [],
        **({TABLE_FACT: "int8"} if any(numerics.table for numerics in int8.values()) else {}),
        **({VOCABULARY: trim.facts} if trim else {}),
    }
    constant = sorted({graph.tower for graph in job.draft.graphs if differences[graph.file]["spread"] < SPREAD})
    if constant:
        job.draft.facts["constant"] = constant
        say("export", job.name, f"warning: {always_the_same(constant)}")
    job.draft.metrics = {"against_torch": differences}
    sizes = {file.name: file.stat().st_size for file in job.draft.path.iterdir()}
    teacher = source.manifest.config.get("teacher") or {}
    card = export_card(job.draft.graphs, sizes, job.draft.facts, teacher.get("source"), job.name)
    (job.draft.path / "README.md").write_text(card, encoding="utf-8")


def variants_of(model: DualEncoderConfig, tower: Tower, precisions: Collection[Precision]) -> list[Variant]:
    """The files of one tower. One that is never compressed has no integers, so it is a float graph, under its name."""
    asked = [variant for variant in VARIANTS if variant.precision in precisions]
    if tower in model.compressed:
        return asked
    types = {variant.numerics.dtype for variant in asked}
    return [variant for variant in VARIANTS if variant.precision not in EIGHT_BITS and variant.numerics.dtype in types]


def logits(tensors: Mapping[str, Array]) -> dict[str, float | None]:
    """What similarities are multiplied with before a softmax or sigmoid, and what a sigmoid model adds then."""
    bias = tensors.get("logit_bias")
    return {
        "logit_scale": math.exp(tensors["logit_scale"].item()),
        "logit_bias": None if bias is None else float(bias.item()),
    }


def write_graph(
    path: Path,
    model: DualEncoderConfig,
    tensors: Mapping[str, Array],
    tower: Tower,
    variant: Variant,
    opset: int,
    form: Form = PLAIN,
) -> Graph:
    """Write and check one graph; return the manifest's entry of it."""
    proto = _BUILDERS[tower](model, tensors, variant.numerics, opset)
    if tower == "image":
        form.put_around(proto)
    save_graph(proto, path)
    return described(proto, path.name, tower, variant, prepares=tower == "image" and form.rule is not None)


def read_int8(source: Artifact) -> dict[str, Numerics]:
    """How the graphs of each kind compute: calibrated ranges, fitted integers, and what stays in float."""
    kept = frozenset(source.manifest.facts.get("kept", ()))
    table = TABLE_FACT in source.manifest.facts
    ranges = complete_ranges(source, kept)
    tensors = read_tensors(source.file(INTEGERS)) if INTEGERS in source.manifest.files else {}
    numerics: dict[str, Numerics] = {}
    for variant in VARIANTS:
        kind = variant.numerics.activations
        if kind == "float8":
            numerics[kind] = replace(variant.numerics, ranges=ranges, kept=kept)
        elif kind != "float":
            integers = graph_integers(source.model, linears_from_tensors(tensors, kind))
            numerics[kind] = replace(variant.numerics, ranges=ranges, integers=integers, kept=kept, table=table)
    return numerics


def check_has_integers(source: Artifact, tower: Tower) -> None:
    """Raise UsageError where every product of a tower stays in float: its graph would be INT8 in name only."""
    kept = source.manifest.facts.get("kept", ())
    if all(name in kept for name in linear_modules(source.model) if name.startswith(f"{tower}.")):
        kinds = products_called(source.model, tower)
        raise UsageError(
            f"{source.path} keeps every {kinds} of the {tower} tower in float, so there is no INT8 of it",
            "quantize again with a larger --max-drop or --max-flips, or export it in fp32 or fp16",
        )


def complete_ranges(source: Artifact, kept: frozenset[str] = frozenset()) -> Ranges:
    """The calibrated ranges of a checkpoint, for every Linear that is not kept in float."""
    ranges = read_ranges(source)
    if missing := [name for name in linear_modules(source.model) if name not in ranges and name not in kept]:
        raise CorruptInputError(
            f"{source.path / RANGES} has no range for {missing[0]} ({len(missing)} missing)", "calibrate it again"
        )
    return ranges


def _ranges_source(source: Artifact) -> dict[str, Any]:
    """How the ranges were found, as far as the source says it."""
    known = ("method", "percentile", "samples", "seed")
    config = source.manifest.config
    return {"stage": source.manifest.stage, **{key: config[key] for key in known if key in config}}


def read_tensors(path: Path) -> Mapping[str, Array]:
    """Every tensor of a safetensors file."""
    safetensors = require("safetensors.numpy", "compress")
    try:
        tensors: Mapping[str, Array] = safetensors.load_file(path)
    except FileNotFoundError as error:
        raise UsageError(f"{path.parent} has no {path.name}", "give a checkpoint that a stage wrote") from error
    except Exception as error:  # safetensors raises its own type, which has no common base
        raise CorruptInputError(f"{path} is no readable safetensors file: {error}", "make it again") from error
    check_tensors(path, tensors)
    return tensors


def save_graph(model: Any, path: Path, limit_bytes: int = INLINE_LIMIT_BYTES) -> None:
    """Write a ModelProto and check it fully."""
    write_model(model, path, limit_bytes)
    require("onnx", "compress").checker.check_model(str(path), full_check=True)


def write_model(model: Any, path: Path, limit_bytes: int = INLINE_LIMIT_BYTES) -> None:
    """Write a ModelProto; weights go into `NAME.onnx.data` where they pass the limit."""
    onnx = require("onnx", "compress")
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    slack = 1 << 20  # nodes and names
    if weights + slack < limit_bytes:
        onnx.save_model(model, str(path))
    else:
        place = {"all_tensors_to_one_file": True, "location": f"{path.name}.data", "size_threshold": 1024}
        onnx.save_model(model, str(path), save_as_external_data=True, **place)


def specs(values: Any) -> tuple[TensorSpec, ...]:
    """Inputs or outputs of a GraphProto; a named axis is dynamic."""
    onnx = require("onnx", "compress")
    return tuple(
        TensorSpec(
            name=value.name,
            shape=tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim),
            dtype=onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
        )
        for value in values
    )


def described(model: Any, file: str, tower: Tower, variant: Variant, prepares: bool = False) -> Graph:
    """The manifest's entry of a graph."""
    return Graph(
        file=file,
        tower=tower,
        precision=variant.precision,
        activations="float" if variant.numerics.activations == "float8" else variant.numerics.activations,
        inputs=specs(model.graph.input),
        outputs=specs(model.graph.output),
        prepares=prepares,
    )
