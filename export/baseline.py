"""The baseline stage: the unmodified teacher as ONNX, by somebody else's exporter.

A report that compares our graphs with our own export of the teacher would be a comparison with ourselves. So the
teacher's row is what a user would have without this package: optimum traces the whole model as it stands, in FP32.
Its one graph, which computes both towers and their similarities, is then cut in two at `image_embeds` and
`text_embeds`; nodes and weights are kept as they are, and only the axes that are fixed (image side, context) are
written into the interface. Both graphs are checked against the teacher's feature functions, which the cache is made
with: on random inputs, and on pictures and captions that transformers' own processors prepared for the model and ours
for the graphs, so that a row of the report is the teacher.

Optimum knows CLIP, SigLIP, Chinese-CLIP and MetaCLIP 2. What it does not know has no baseline, and says so.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmcompress.artifact import Draft
from mmcompress.config import BaselineConfig
from mmcompress.data.checkpairs import check_images, judged
from mmcompress.data.preprocess import normalize, to_array
from mmcompress.errors import CorruptInputError, GateFailedError, MMCompressError, UsageError, finite, require
from mmcompress.export.export import save_graph, specs
from mmcompress.export.folders import image_processor_of, tokenizer_of
from mmcompress.export.oddities import odd_images, odd_texts
from mmcompress.export.pixels import image_processing
from mmcompress.export.texts import save_text_processing
from mmcompress.families import config_from_hugging_face
from mmcompress.foreign import foreign_code
from mmcompress.manifest import Graph
from mmcompress.pretrained import image_features, load_model, quiet, text_features
from mmcompress.progress import say
from mmcompress.runtime.tokenize import attention_mask, load_tokenizer, tokenize
from mmcompress.stages import Job
from mmcompress.teachers import resolve

TASK = "zero-shot-image-classification"
OPSET = 18
TOLERANCE = 1e-4
_AT_FAULT = "its weights, processor and tokenizer do not belong together, or its own code has a fault"
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
    folder, trusted = resolve(teacher), teacher.trust_remote_code
    job.draft.preprocessing = image_processing(folder, trusted)
    job.draft.tokenizer = save_text_processing(folder, job.draft.path, trusted)
    model = load_model(folder, trusted, attention="eager")
    if not hasattr(model, "logit_scale"):
        raise UsageError(f"{folder} has no logit scale, so it classifies nothing", "give a CLIP or SigLIP model")
    bias = getattr(model, "logit_bias", None)
    with foreign_code(f"reading logit_scale, a logarithm, and logit_bias of {folder}", _AT_FAULT):
        logit_scale = math.exp(float(model.logit_scale.detach()))
        logit_bias = None if bias is None else float(bias.detach())
    size, context = job.draft.preprocessing.size, job.draft.tokenizer.context
    cases = [random_case(model, size, context), real_case(model, folder, job.draft, trusted)]
    whole = exported_by_optimum(model, context)
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
        apart = [difference(path, job.draft.graphs[-1], feeds, expected[output]) for feeds, expected in cases]
        differences[path.name] = max(finite(number, f"what {tower} embeddings differ by") for number in apart)
        if not differences[path.name] <= TOLERANCE:
            raise GateFailedError(
                f"optimum's {path.name} differs from the teacher's get_{tower}_features by "
                f"{differences[path.name]:.2e}, the limit is {TOLERANCE}",
                "where code of its own computes these otherwise than forward(), wrap it as file.py:function with "
                "towers, which are traced; else try other versions of optimum-onnx and transformers",
            )
    job.draft.facts = {
        **_size_facts(folder, model),
        "logit_scale": logit_scale,
        "logit_bias": logit_bias,
        "opset": OPSET,
    }
    job.draft.metrics = {"against_transformers": differences}
    if (warning := what_it_lacks(model, job.draft)) is not None:
        say("", folder.name, f"warning: the teacher {teacher.source} is no better than chance: {warning}")


def what_it_lacks(model: Any, draft: Draft) -> str | None:
    """What the drawings that ship say of the teacher whose graphs these are, as of every teacher; None for nothing."""
    pixels, text = draft.preprocessing, draft.tokenizer
    assert pixels is not None and text is not None
    tokenizer = load_tokenizer(draft.path / text.file)
    drawings = normalize(check_images(pixels), pixels)

    def unit(tower: Literal["image", "text"], images: NDArray[Any], captions: Sequence[str]) -> NDArray[Any]:
        tokens = tokenize(tokenizer, captions, text)
        feeds = {"pixel_values": images, "input_ids": tokens, "attention_mask": attention_mask(tokens, text)}
        rows = embedded(model, feeds)[OUTPUTS[tower][0]]
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))

    # each tower is asked for one input where the other is looked at
    return judged(unit("image", drawings, ["a"]), lambda captions: unit("text", drawings[:1], captions))


def _size_facts(folder: Path, model: Any) -> dict[str, int | None]:
    """Parameters, and MACs by our own count for the families that a dual encoder holds."""
    params = sum(p.numel() for p in model.parameters())
    try:
        return {"params": params, "macs": config_from_hugging_face(folder).macs}
    except MMCompressError:
        return {"params": params, "macs": None}


def exported_by_optimum(model: Any, context: int) -> Any:
    """The ModelProto that optimum makes of the whole model, traced with texts of `context` tokens."""
    onnx = require("onnx", "compress")
    # the attribute imports optimum, which sets its own log level then
    trace = require("optimum.exporters.onnx", "optimum").onnx_export_from_model
    with tempfile.TemporaryDirectory() as folder, quiet():
        with foreign_code(
            f"optimum's export of the {model.config.model_type!r} model",
            "leave the baseline stage out: `mmcompress export TEACHER --precision fp32` exports a known family without "
            "optimum, and any other model goes as file.py:function with towers",
        ):
            trace(model, folder, opset=OPSET, task=TASK, monolith=True, do_validation=False, sequence_length=context)
        return onnx.load(str(Path(folder) / "model.onnx"))


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


Case = tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]
"""What the graphs are fed, and the embeddings that they should give: by the names of inputs and outputs."""


def random_case(model: Any, size: int, context: int) -> Case:
    """Two random images and texts."""
    rng = np.random.default_rng(0)
    text = getattr(model.config, "text_config", model.config)
    feeds: dict[str, NDArray[Any]] = {
        "pixel_values": rng.standard_normal((2, 3, size, size), dtype=np.float32),
        "input_ids": rng.integers(0, text.vocab_size, (2, context)),
        "attention_mask": np.ones((2, context), dtype=np.int64),
    }
    return feeds, embedded(model, feeds)


def real_case(model: Any, folder: Path, draft: Draft, trust_remote_code: bool) -> Case:
    """Pictures and captions of many kinds: as a device prepares them, and what transformers makes of its own."""
    pixels, text = draft.preprocessing, draft.tokenizer
    assert pixels is not None and text is not None
    images, captions = list(odd_images(pixels.size)), odd_texts()[::10]
    tokens = tokenize(load_tokenizer(draft.path / text.file), captions, text)
    feeds: dict[str, NDArray[Any]] = {
        "pixel_values": normalize(np.stack([to_array(image, pixels) for image in images]), pixels),
        "input_ids": tokens,
        "attention_mask": attention_mask(tokens, text),
    }
    processor, tokenizer = image_processor_of(folder, trust_remote_code), tokenizer_of(folder, trust_remote_code)
    filled = {"padding": "max_length", "truncation": True, "max_length": text.context}
    with foreign_code(f"preparing images and texts by the classes of {folder}", _AT_FAULT), quiet():
        prepared = processor(images=images, return_tensors="np")
        encoded = tokenizer(captions, return_tensors="np", **filled)
    theirs = {name: encoded[name] for name in ("input_ids", "attention_mask") if name in encoded}
    return feeds, embedded(model, {"pixel_values": prepared["pixel_values"], **theirs})


def embedded(model: Any, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What the teacher's two functions say, by the names of the graphs' outputs.

    Not its forward pass, which optimum exports: code of a folder's own may change the functions alone, and they are
    what is cached and learned from.
    """
    torch = require("torch", "compress")
    given = {name: torch.from_numpy(value) for name, value in inputs.items()}
    with foreign_code(f"embedding by the {type(model).__name__} itself", _AT_FAULT, CorruptInputError):
        with torch.inference_mode():
            images = image_features(model, given.pop("pixel_values"))
            texts = text_features(model, given)
        return {OUTPUTS["image"][0]: images.numpy(), OUTPUTS["text"][0]: texts.numpy()}


def difference(path: Path, graph: Graph, feeds: Mapping[str, NDArray[Any]], expected: NDArray[Any]) -> float:
    """Largest difference between a graph's unit embeddings on ONNX Runtime and the expected ones."""
    runtime = require("onnxruntime", "onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (embeddings,) = session.run(None, {spec.name: feeds[spec.name].astype(spec.dtype) for spec in graph.inputs})
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (expected, embeddings)]
    return float(np.abs(unit[0] - unit[1]).max())
