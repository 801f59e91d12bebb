"""The static stage: a bundle that compilers of other vendors take, QNN, RKNN, Hailo or LiteRT.

They want one ONNX file of static shape, samples of real inputs to calibrate on, and something to compare with. So the
FP32 graphs are fixed at batch 1, every shape in them is inferred, and beside them lie inputs as a graph is fed them and
what ONNX Runtime answers. They quantize by themselves, so INT8 graphs are of no use to them. The bundle's README says
what each maker's tools are told; none of them has been run here, and none is needed to make a bundle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.artifact import Artifact
from mmcompress.config import StaticConfig
from mmcompress.data.batches import batches
from mmcompress.data.preprocess import normalize
from mmcompress.errors import UsageError, require
from mmcompress.export.export import specs, write_model
from mmcompress.manifest import Graph, Preprocessing
from mmcompress.runtime.backends import open_file
from mmcompress.runtime.encoder import tower_feeds
from mmcompress.runtime.session import Tower
from mmcompress.runtime.tokenize import load_tokenizer, text_processing, tokenize
from mmcompress.stages import Job
from mmcompress.templates import render

Arrays = dict[str, NDArray[Any]]
SAMPLES, ANSWERS = "samples", "answers"


def check_static(config: StaticConfig, sources: Mapping[str, Artifact]) -> None:
    """Raise UsageError without samples, and for graphs that have no static form."""
    if config.data.train is None:
        raise UsageError("a bundle needs images and texts to calibrate on", "set data.train, or give --data")
    if "graphs" in sources:
        for tower in ("image", "text"):
            fp32_graph(sources["graphs"], tower)


def fp32_graph(source: Artifact, tower: str) -> Graph:
    """The graph that is fixed at batch 1. Raises UsageError where there is none, or its images are of any size."""
    graph = next((one for one in source.manifest.graphs if (one.tower, one.precision) == (tower, "fp32")), None)
    if graph is None:
        raise UsageError(f"{source.path} has no {tower} graph in FP32", "export it with --precision fp32")
    if any(None in spec.shape[1:] for spec in graph.inputs):
        raise UsageError(
            f"{graph.file} takes images of any size, and a compiler wants one", "export it with --image-input 480x640"
        )
    return graph


def static(job: Job[StaticConfig]) -> None:
    """Stage: static graphs, samples of their inputs, and their answers."""
    source, config = job.sources["graphs"], job.config
    towers: dict[Tower, Graph] = {"image": fp32_graph(source, "image"), "text": fp32_graph(source, "text")}
    inputs = samples_of(source, towers, config)
    described = {}
    for tower, graph in towers.items():
        path = job.draft.path / f"{tower}.onnx"
        fixed = write_static(source.file(graph.file), path, graph)
        job.draft.graphs.append(fixed)
        answers: dict[str, list[NDArray[Any]]] = {spec.name: [] for spec in fixed.outputs}
        with open_file(path, fixed, "onnxruntime") as session:
            for index in range(len(inputs[tower][graph.inputs[0].name])):
                fed = {name: values[index : index + 1] for name, values in inputs[tower].items()}
                for name, answer in session.run(fed).items():
                    answers[name].append(answer)
        described[tower] = {
            SAMPLES: _write(job.draft.path / SAMPLES, tower, inputs[tower]),
            ANSWERS: _write(job.draft.path / ANSWERS, tower, {n: np.concatenate(all_) for n, all_ in answers.items()}),
        }
    job.draft.inherit(source, *([source.tokenizer.file] if source.tokenizer else []))
    job.draft.facts = {
        **{key: source.manifest.facts.get(key) for key in ("params", "macs", "logit_scale", "logit_bias")},
        "samples": len(inputs["image"][towers["image"].inputs[0].name]),
    }
    text = render(
        "static.md.j2",
        name=job.name,
        graphs=job.draft.graphs,
        files=described,
        facts=job.draft.facts,
        rule=source.manifest.preprocessing,
        tokenizer=text_processing(source),
        bank=source.manifest.bank,
        prepares=towers["image"].prepares,
    )
    (job.draft.path / "README.md").write_text(text, encoding="utf-8")


def write_static(source: Path, target: Path, graph: Graph) -> Graph:
    """A graph with batch 1 in place of its free axis, and every shape in it inferred."""
    onnx = require("onnx", "compress")
    model = onnx.load(str(source))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights < 1 << 30:  # what is larger is beyond a protobuf, and keeps the shapes of its ends alone
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    write_model(model, target)
    onnx.checker.check_model(str(target), full_check=True)
    return graph.model_copy(
        update={"file": target.name, "inputs": specs(model.graph.input), "outputs": specs(model.graph.output)}
    )


def samples_of(source: Artifact, towers: Mapping[Tower, Graph], config: StaticConfig) -> dict[Tower, Arrays]:
    """Inputs of both towers by name, one row a sample; captions in turn, as calibration takes them."""
    rule, text = source.preprocessing, text_processing(source)
    assert rule is not None and config.data.train is not None
    tokenizer = load_tokenizer(source.file(text.file))
    image = towers["image"]
    images: list[NDArray[Any]] = []
    tokens: list[NDArray[Any]] = []
    size = image.inputs[0].shape[1:3] if image.prepares else None
    for pixels, texts in _shown(config, rule if size is None else _covering(rule, *size)):
        images.append(normalize(pixels, rule) if size is None else _cut(pixels, *size))
        tokens.append(tokenize(tokenizer, texts, text))
    return {
        "image": tower_feeds(source, image.inputs, np.concatenate(images)[: config.samples]),
        "text": tower_feeds(source, towers["text"].inputs, np.concatenate(tokens)[: config.samples]),
    }


def _covering(rule: Preprocessing, height: int | None, width: int | None) -> Preprocessing:
    """Of squares that a frame of one size is cut out of: whole photos, as a camera of that size would show them."""
    side = max(height or 1, width or 1)
    return rule.model_copy(update={"size": side, "resize": side, "squash": False})


def _cut(squares: NDArray[np.uint8], height: int | None, width: int | None) -> NDArray[np.uint8]:
    """(B, S, S, 3) -> (B, H, W, 3), their middle."""
    top, left = ((squares.shape[1] - (side or 1)) // 2 for side in (height, width))
    return squares[:, top : top + (height or 1), left : left + (width or 1)]


def _shown(config: StaticConfig, rule: Preprocessing) -> Iterator[tuple[NDArray[np.uint8], list[str]]]:
    assert config.data.train is not None
    data, left = config.data, config.samples
    stream = batches(
        str(data.train),
        rule,
        batch=min(32, config.samples),
        workers=data.workers,
        max_bad_fraction=data.max_bad_fraction,
        shuffle_seed=config.seed,
    )
    for batch in stream:
        yield batch.pixels, [captions[index % len(captions)] for index, captions in enumerate(batch.captions)]
        left -= len(batch.pixels)
        if left <= 0:
            return


def _write(folder: Path, tower: str, arrays: Mapping[str, NDArray[Any]]) -> list[str]:
    """Each array as a file; their names."""
    folder.mkdir(exist_ok=True)
    names = [f"{folder.name}/{tower}-{name}.npy" for name in arrays]
    for name, values in zip(names, arrays.values(), strict=True):
        np.save(folder.parent / name, values)
    return names
