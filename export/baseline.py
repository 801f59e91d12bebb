"""The baseline stage: the unmodified teacher as ONNX, by somebody else's exporter.

A report that compares our graphs with our own export of the teacher would be a comparison with ourselves. So the
teacher's row is what a user would have without this package: optimum traces the whole model as it stands, in FP32.
Its one graph, which computes both towers and their similarities, is then cut in two at `image_embeds` and
`text_embeds`; nodes and weights are kept as they are, and only the axes that are fixed (image side, context) are
written into the interface. Both graphs are checked against transformers.

Optimum knows CLIP, SigLIP, Chinese-CLIP and MetaCLIP 2. What it does not know has no baseline, and says so.
"""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmcompress.config import BaselineConfig
from mmcompress.errors import GateFailedError, MMCompressError, UsageError, require
from mmcompress.export.export import save_graph, specs
from mmcompress.huggingface import config_from_hugging_face
from mmcompress.manifest import Graph
from mmcompress.pretrained import load_model
from mmcompress.processing import image_processing, save_text_processing
from mmcompress.stages import Job
from mmcompress.teachers import resolve

TASK = "zero-shot-image-classification"
OPSET = 18
TOLERANCE = 1e-4
OUTPUTS: Mapping[Literal["image", "text"], tuple[str, str]] = {
    "image": ("image_embeds", "pixel_values"),
    "text": ("text_embeds", "input_ids"),
}
"""Each tower's output in the graph that optimum writes, and its first input."""


def baseline(job: Job[BaselineConfig]) -> None:
    """Stage: the teacher's two towers, as optimum exports them."""
    require("optimum.exporters.onnx", "optimum")
    teacher = job.config.teacher
    if teacher.source.startswith("open_clip:") or ".py:" in teacher.source:
        raise UsageError(
            f"optimum cannot export the teacher {teacher.source!r}", "give a Hugging Face folder or hub id"
        )
    folder = resolve(teacher)
    job.draft.preprocessing = image_processing(folder, teacher.trust_remote_code)
    job.draft.tokenizer = save_text_processing(folder, job.draft.path, teacher.trust_remote_code)
    model = load_model(folder, teacher.trust_remote_code, attention="eager")
    if not hasattr(model, "logit_scale"):
        raise UsageError(f"{folder} has no logit scale, so it classifies nothing", "give a CLIP or SigLIP model")
    whole = exported_by_optimum(model, job.draft.tokenizer.context)
    size, context = job.draft.preprocessing.size, job.draft.tokenizer.context
    feeds, expected = random_case(model, size, context)
    differences = {}
    for tower, (output, first) in OUTPUTS.items():
        graph = cut(whole, tower, output, first, {"image": (3, size, size), "text": (context,)}[tower])
        path = job.draft.path / f"{tower}-fp32.onnx"
        save_graph(graph, path)
        job.draft.graphs.append(
            Graph(
                file=path.name,
                tower=tower,
                precision="fp32",
                inputs=specs(graph.graph.input),
                outputs=specs(graph.graph.output),
            )
        )
        differences[path.name] = difference(path, job.draft.graphs[-1], feeds, expected[output])
        if not differences[path.name] <= TOLERANCE:
            raise GateFailedError(
                f"optimum's {path.name} differs from transformers by {differences[path.name]:.2e}",
                f"the limit is {TOLERANCE}; try other versions of optimum-onnx and transformers",
            )
    job.draft.facts = {
        **_size_facts(folder, model),
        "logit_scale": math.exp(float(model.logit_scale.detach())),
        "opset": OPSET,
    }
    job.draft.metrics = {"against_transformers": differences}


def _size_facts(folder: Path, model: Any) -> dict[str, int | None]:
    """Parameters and MACs by our own count for the CLIP family; else counted parameters, and no MACs."""
    try:
        config = config_from_hugging_face(folder)
    except MMCompressError:
        return {"params": sum(p.numel() for p in model.parameters()), "macs": None}
    return {"params": config.params, "macs": config.macs}


def exported_by_optimum(model: Any, context: int) -> Any:
    """The ModelProto that optimum makes of the whole model, traced with texts of `context` tokens."""
    onnx = require("onnx", "compress")
    # the attribute imports optimum, which sets its own log level then
    trace = require("optimum.exporters.onnx", "optimum").onnx_export_from_model
    with tempfile.TemporaryDirectory() as folder, _quiet():
        try:
            trace(model, folder, opset=OPSET, task=TASK, monolith=True, do_validation=False, sequence_length=context)
        except (ValueError, KeyError, NotImplementedError) as error:
            raise UsageError(
                f"optimum cannot export a {model.config.model_type!r} model: {error}",
                "leave the baseline stage out; the other rows of the report do not need it",
            ) from error
        return onnx.load(str(Path(folder) / "model.onnx"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Tracing warns of every Python branch it passes; what it produced is compared with the model instead."""
    loggers = [logging.getLogger(name) for name in ("optimum", "transformers", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def cut(whole: Any, name: str, output: str, first: str, shape: Sequence[int]) -> Any:
    """The part of a graph that `output` needs; its input `first` comes first and gets the given axes."""
    onnx = require("onnx", "compress")
    graph = whole.graph
    needed, nodes = {output}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
            needed.update(_captured(node))
    inputs = sorted((value for value in graph.input if value.name in needed), key=lambda value: value.name != first)
    results = [value for value in graph.output if value.name == output]
    if not results or not inputs or inputs[0].name != first:
        raise UsageError(
            f"optimum's graph has no {output!r} that depends on {first!r}",
            "leave the baseline stage out; the other rows of the report do not need it",
        )
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    part = onnx.helper.make_graph(nodes[::-1], name, inputs, results, weights)
    for value in part.input:
        _name_axes(value, shape if value.name == first else shape[:1])
    _name_axes(part.output[0], ())
    return onnx.helper.make_model(
        part, opset_imports=whole.opset_import, ir_version=whole.ir_version, producer_name=whole.producer_name
    )


def _captured(node: Any) -> set[str]:
    """Names that the bodies of an If or Loop take from outside; a few too many do no harm."""
    bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return {name for body in bodies for inner in body.node for name in (*inner.input, *_captured(inner))}


def _name_axes(value: Any, shape: Sequence[int]) -> None:
    """The first axis is the batch, the next ones are as given."""
    axes = value.type.tensor_type.shape.dim
    axes[0].dim_param = "batch"
    for axis, size in zip(axes[1:], shape, strict=False):
        axis.dim_value = size


def random_case(model: Any, size: int, context: int) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Two random images and texts, and the embeddings that the model's own forward pass gives them.

    The forward pass rather than `get_text_features`, which fails for Chinese-CLIP in transformers 4.57.
    """
    torch = require("torch", "compress")
    rng = np.random.default_rng(0)
    text = getattr(model.config, "text_config", model.config)
    feeds: dict[str, NDArray[Any]] = {
        "pixel_values": rng.standard_normal((2, 3, size, size), dtype=np.float32),
        "input_ids": rng.integers(0, text.vocab_size, (2, context)),
        "attention_mask": np.ones((2, context), dtype=np.int64),
    }
    with torch.inference_mode():
        outputs = model(**{name: torch.from_numpy(value) for name, value in feeds.items()})
    return feeds, {output: outputs[output].numpy() for output, _ in OUTPUTS.values()}


def difference(path: Path, graph: Graph, feeds: Mapping[str, NDArray[Any]], expected: NDArray[Any]) -> float:
    """Largest difference between a graph's unit embeddings on ONNX Runtime and the expected ones."""
    runtime = require("onnxruntime", "onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (embeddings,) = session.run(None, {spec.name: feeds[spec.name].astype(spec.dtype) for spec in graph.inputs})
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (expected, embeddings)]
    return float(np.abs(unit[0] - unit[1]).max())
