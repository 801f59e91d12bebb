"""What a verdict is about: a quantized checkpoint, whose graphs are written here, or quantized graphs of any kind.

Both offer the same: candidates, the graph of one tower in any of them, and embeddings by somebody else, which show that
the FP32 graph is computed rightly here. For a checkpoint that is torch, for graphs ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from mmcompress.architecture import WEIGHTS
from mmcompress.artifact import Artifact
from mmcompress.config import Backend, ExportConfig
from mmcompress.data.preprocess import normalize
from mmcompress.errors import UsageError, require
from mmcompress.export.export import Variant, described, logits, read_int8, read_tensors, save_graph, write_graph
from mmcompress.export.graph import Array, Numerics
from mmcompress.export.integers import with_integers
from mmcompress.export.products import Product, products_of
from mmcompress.huggingface import dual_encoder_from_checkpoint
from mmcompress.int8 import GRAPH_RANGES, INTEGERS, Range, linear_modules, linears_from_tensors
from mmcompress.manifest import Graph, Kind
from mmcompress.measure.retrieval import Floats
from mmcompress.measure.verdict.candidates import GRAPH_CANDIDATES, Candidate, GraphCandidate, candidates_for
from mmcompress.measure.verdict.contest import TOWERS, Entrant, outputs
from mmcompress.measure.verdict.heldout import Held
from mmcompress.runtime.encoder import tower_feeds
from mmcompress.runtime.machine import usable_cores
from mmcompress.runtime.session import Session, Tower
from mmcompress.strictjson import read_json

OPSET = int(ExportConfig.model_fields["opset"].default)
CHECKED = 32
"""Images and texts that somebody else embeds too."""


class Origin(Protocol):
    """What a verdict is about."""

    @property
    def reference(self) -> str:
        """Who else computes embeddings."""

    def candidates(self, backend: Backend) -> Iterator[tuple[Candidate, Numerics]]:
        """Those that make sense on a backend."""

    def products(self, tower: Tower) -> Collection[str]:
        """What of a tower could be integers."""

    def write(self, path: Path, tower: Tower, name: str, variant: Variant) -> Graph:
        """Write one graph: of a float variant, or of the candidate of that name. UsageError where there is no such."""

    def embedded(self, held: Held) -> dict[str, Floats]:
        """The first held-out images and texts, by somebody else."""

    @property
    def facts(self) -> dict[str, Any]:
        """Sizes and logit scale, as an export states them."""


def origin_of(source: Artifact) -> Origin:
    """Of what a verdict was asked about. Raises UsageError for graphs that nobody quantized."""
    if source.manifest.kind is Kind.CHECKPOINT:
        return CheckpointOrigin(source)
    if GRAPH_RANGES not in source.manifest.files:
        raise UsageError(
            f"{source.path} holds ONNX graphs that were not quantized as graphs: it has no {GRAPH_RANGES}",
            "give a checkpoint, or graphs, that `mmcompress quantize` wrote",
        )
    return GraphOrigin(source)


class CheckpointOrigin:
    """A quantized checkpoint."""

    reference = "torch"

    def __init__(self, source: Artifact) -> None:
        self._source = source
        self._tensors: Mapping[str, Array] = read_tensors(source.path / WEIGHTS)
        self._int8 = read_int8(source)

    def candidates(self, backend: Backend) -> Iterator[tuple[Candidate, Numerics]]:
        return candidates_for(backend, self._source.model, self._int8)

    def products(self, tower: Tower) -> Collection[str]:
        model = self._source.model
        return [name for name in linear_modules(model) if tower in model.compressed and name.startswith(f"{tower}.")]

    def write(self, path: Path, tower: Tower, name: str, variant: Variant) -> Graph:
        return write_graph(path, self._source.model, self._tensors, tower, variant, OPSET)

    def embedded(self, held: Held) -> dict[str, Floats]:
        model = dual_encoder_from_checkpoint(self._source.path, self._source.model)
        assert self._source.preprocessing is not None
        pixels = torch.from_numpy(normalize(held.pixels[:CHECKED], self._source.preprocessing))
        tokens = torch.from_numpy(held.tokens[:CHECKED])
        with torch.inference_mode():
            return {"image": model.encode_image(pixels).numpy(), "text": model.encode_text(tokens).numpy()}

    @property
    def facts(self) -> dict[str, Any]:
        model = self._source.model
        return {"params": model.params, "macs": model.macs, **logits(self._tensors)}


class GraphOrigin:
    """Quantized graphs of any architecture: FP32 with the ranges and integers of its products beside."""

    reference = "onnxruntime"

    def __init__(self, source: Artifact) -> None:
        self._source = source
        onnx = require("onnx", "compress")
        graphs = {graph.tower: graph for graph in source.manifest.graphs if graph.precision == "fp32"}
        self._graphs: dict[Tower, Graph] = {tower: graphs[tower] for tower in TOWERS}
        self._models = {tower: onnx.load(str(source.file(graph.file))) for tower, graph in self._graphs.items()}
        self._ranges: Mapping[str, Range] = read_json(source.file(GRAPH_RANGES), "quantize the graphs again")
        self._tensors = read_tensors(source.file(INTEGERS))

    @cached_property
    def _products(self) -> dict[Tower, list[Product]]:
        return {tower: products_of(model, tower) for tower, model in self._models.items()}

    def candidates(self, backend: Backend) -> Iterator[tuple[Candidate, Numerics]]:
        known = set()
        for candidate in GRAPH_CANDIDATES:
            taken = frozenset(product.name for product in self._taken(candidate))
            outputs = frozenset(self._outputs(candidate))
            kind = (candidate.activations, taken, outputs)
            if backend in candidate.backends and taken and kind not in known:
                known.add(kind)
                every = {product.name for products in self._products.values() for product in products}
                yield candidate, Numerics(activations=candidate.activations, kept=frozenset(every - taken))

    def _taken(self, candidate: GraphCandidate) -> list[Product]:
        integers = linears_from_tensors(self._tensors, candidate.kind)
        every = [product for products in self._products.values() for product in products]
        return [product for product in every if product.name in integers and candidate.takes(product)]

    def _outputs(self, candidate: GraphCandidate) -> list[str]:
        return [product.name for product in self._taken(candidate) if candidate.outputs and product.op == "Conv"]

    def products(self, tower: Tower) -> Collection[str]:
        return [product.name for product in self._products[tower]]

    def write(self, path: Path, tower: Tower, name: str, variant: Variant) -> Graph:
        model = self._models[tower]
        if variant.precision == "fp16":
            raise UsageError("graphs of other architectures have no FP16 form", "judge FP32 and INT8")
        if variant.precision == "int8":
            candidate = next(
                c for c in GRAPH_CANDIDATES if c.name == name and c.activations == variant.numerics.activations
            )
            integers = linears_from_tensors(self._tensors, candidate.kind)
            taken = {product.name: integers[product.name] for product in self._taken(candidate)}
            outputs = self._outputs(candidate)
            model = with_integers(model, self._products[tower], taken, self._ranges, candidate.kind, outputs)
        save_graph(model, path)
        return described(model, path.name, tower, variant)

    def embedded(self, held: Held) -> dict[str, Floats]:
        preprocessing = self._source.preprocessing
        assert preprocessing is not None
        inputs = {"image": normalize(held.pixels[:CHECKED], preprocessing), "text": held.tokens[:CHECKED]}

        def feeds(session: Session, batch: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
            return tower_feeds(self._source, session.inputs, batch)

        return {
            tower: outputs(
                Entrant(self._source.file(graph.file), graph, "onnxruntime", usable_cores()), inputs[tower], feeds
            )
            for tower, graph in self._graphs.items()
        }

    @property
    def facts(self) -> dict[str, Any]:
        said = self._source.manifest.facts
        return {name: said.get(name) for name in ("params", "macs", "logit_scale", "logit_bias")}
