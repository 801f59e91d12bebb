"""The trace stage: any teacher's towers as ONNX in FP32, traced by torch.

For teachers that no exporter knows: open_clip's architectures, and modules of the user's own. Torch's exporter by
tracing is taken, whose nodes have the names of modules; the one by `torch.export` names them by number, and writes an
invalid graph for the text towers of open_clip. The batch is left free. Whether the graphs and the tokenizer are the
teacher is measured: drawings and captions that ship with the package go through both.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mmcompress.compress.identity import READ, hashes_of_read
from mmcompress.compress.ownteacher import without_towers
from mmcompress.compress.teacher import Teacher, load_teacher
from mmcompress.compress.towers import Towers
from mmcompress.config import TraceConfig
from mmcompress.data.batches import Batch, batches
from mmcompress.data.preprocess import normalize
from mmcompress.errors import GateFailedError, require
from mmcompress.export.export import save_graph, specs
from mmcompress.export.reference import BATCHES
from mmcompress.foreign import foreign_code
from mmcompress.manifest import Graph
from mmcompress.runtime.session import Tower
from mmcompress.runtime.tokenize import tokenize
from mmcompress.stages import Job

OPSET = 18
TOLERANCE = 1e-4
CHECKED = "demo:val"
"""Pairs that ship with the package."""


def trace(job: Job[TraceConfig]) -> None:
    """Stage: trace both towers and check them."""
    source = job.config.teacher.source
    teacher = load_teacher(job.config.teacher, torch.device("cpu"))
    if teacher.towers is None:
        raise without_towers(source)
    towers = teacher.towers()
    read = hashes_of_read({*teacher.files, *towers.files}, source)
    towers.tokenizer.no_padding()
    towers.tokenizer.no_truncation()
    towers.tokenizer.save(str(job.draft.path / towers.processing.file))
    job.draft.preprocessing, job.draft.tokenizer = teacher.preprocessing, towers.processing
    size, context = teacher.preprocessing.size, towers.processing.context
    shapes: dict[Tower, tuple[nn.Module, torch.Tensor]] = {
        "image": (towers.image, torch.zeros(2, 3, size, size)),
        "text": (towers.text, torch.full((2, context), towers.processing.eos_token_id, dtype=torch.int32)),
    }
    for name, (module, example) in shapes.items():
        path = job.draft.path / f"{name}-fp32.onnx"
        with towers.running():
            model = traced(module, example, "pixels" if name == "image" else "tokens", path)
        given, gives = specs(model.graph.input), specs(model.graph.output)
        job.draft.graphs.append(Graph(file=path.name, tower=name, precision="fp32", inputs=given, outputs=gives))
    job.draft.facts = {
        "params": sum(p.numel() for p in nn.ModuleList([towers.image, towers.text]).parameters()),
        "macs": None,
        "logit_scale": towers.logit_scale,
        "logit_bias": teacher.logit_bias,
        "opset": OPSET,
        **({READ: read} if read else {}),
    }
    job.draft.metrics = {"against_torch": checked(job.draft.path, teacher, towers, source)}


def traced(module: nn.Module, example: torch.Tensor, name: str, path: Path) -> Any:
    """Write a module of one input as a graph with a free batch; return its ModelProto."""
    onnx = require("onnx", "compress")
    axes = {name: {0: "batch"}, "embedding": {0: "batch"}}
    how = foreign_code(
        f"torch's export of the {type(module).__name__}",
        "a graph needs towers without data-dependent Python, made of operators that ONNX has",
    )
    with how, torch.no_grad(), _traceable():
        torch.onnx.export(
            module.eval(),
            (example,),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=[name],
            output_names=["embedding"],
            dynamic_axes=axes,
        )
    model = onnx.load(str(path))
    width = model.graph.output[0].type.tensor_type.shape.dim
    if len(width) == 2 and not width[1].HasField("dim_value"):
        with torch.no_grad():
            width[1].dim_value = module(example).shape[1]
    save_graph(model, path)
    return model


@contextmanager
def _traceable() -> Iterator[None]:
    """Attention as operators that ONNX has, and no warning of every Python branch: the result is compared instead."""
    fast, level = torch.backends.mha.get_fastpath_enabled(), logging.getLogger("torch.onnx").level
    torch.backends.mha.set_fastpath_enabled(False)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        logging.getLogger("torch.onnx").setLevel(level)


def checked(folder: Path, teacher: Teacher, towers: Towers, source: str) -> dict[str, float]:
    """Largest difference between each graph and the teacher's own functions, over several batches."""
    pairs: Batch = next(batches(CHECKED, teacher.preprocessing, batch=sum(BATCHES), shuffle_seed=0))
    texts = [captions[0] for captions in pairs.captions]
    pixels = normalize(pairs.pixels, teacher.preprocessing)
    tokens = tokenize(towers.tokenizer, texts, towers.processing)
    wanted = {
        "image-fp32.onnx": (pixels, teacher.encode_image(torch.from_numpy(pixels))),
        "text-fp32.onnx": (tokens, teacher.encode_text(texts)),
    }
    differences = {}
    for file, (inputs, embeddings) in wanted.items():
        answers = np.concatenate(run_in(folder / file, inputs, BATCHES))
        differences[file] = float(np.abs(answers - embeddings.numpy()).max())
        if not differences[file] <= TOLERANCE:
            raise GateFailedError(
                f"{file} differs from the teacher {source} by {differences[file]:.2e}, the limit is {TOLERANCE}",
                "its towers have to give unit embeddings, and with its tokenizer those of its functions",
            )
    return differences


def run_in(path: Path, inputs: NDArray[Any], sizes: Sequence[int]) -> list[NDArray[np.float32]]:
    """(N, …) through a graph on ONNX Runtime, in batches of these sizes, of the sum N."""
    runtime = require("onnxruntime", "onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ends = np.cumsum(sizes)[:-1]
    name = session.get_inputs()[0].name
    return [session.run(None, {name: part})[0] for part in np.split(inputs, ends)]
