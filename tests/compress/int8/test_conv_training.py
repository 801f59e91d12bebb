"""Convolutions as integers that are trained: folded towers against the model, learners against the delivered graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_conv import conv_model, conv_pixels

from mmcompress.compress.int8.convfit import as_fitted
from mmcompress.compress.int8.fakequant import TrainedLinears
from mmcompress.compress.int8.foldedtower import with_folded_tower
from mmcompress.compress.int8.given import given_on
from mmcompress.compress.int8.graphfit import fit_tower
from mmcompress.compress.int8.graphtower import GraphTower
from mmcompress.config import ExportConfig, QuantizeConfig
from mmcompress.convtower import BatchNorm
from mmcompress.export.graph import Numerics
from mmcompress.export.reference import TOLERANCE, Reference
from mmcompress.export.sums import ends_of, sums_of
from mmcompress.export.towers import convolutions_of, image_graph
from mmcompress.model import DualEncoder
from mmcompress.tensornames import hugging_face_from_state

TOKENS = torch.tensor([[1, 2, 49]])
KEPT = "image.blocks.4.expand"


def test_a_folded_tower_computes_the_same() -> None:
    model = conv_model().double()
    folded = with_folded_tower(model)
    pixels = conv_pixels(3).double()
    norms = [name for name, module in folded.image.named_modules() if isinstance(module, BatchNorm)]
    assert len(norms) == 2 and all(name.endswith(".norm") for name in norms), "those in front of attention"
    with torch.inference_mode():
        torch.testing.assert_close(folded.encode_image(pixels), model.encode_image(pixels), atol=1e-12, rtol=1e-9)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[DualEncoder, GraphTower, Any]:
    """A model with a block of every kind, its graph, and its fit with ranges so narrow that some inputs are clipped."""
    model = conv_model(1)
    tensors = {name: x.numpy() for name, x in hugging_face_from_state(model.state_dict(), model.config).items()}
    graph = image_graph(model.config, tensors, Numerics(), int(ExportConfig.model_fields["opset"].default))
    products = tuple(convolutions_of(model.config, graph))
    tower = GraphTower("image", graph, products, tmp_path_factory.mktemp("graphs"), sums=True)
    fed = [{"pixels": conv_pixels(4, seed).numpy()} for seed in range(2)]
    data: Any = {"train": "unread.tar"}
    fitted = fit_tower(tower, fed, fed, fed, QuantizeConfig(data=data, method="percentile", percentile=99.0))
    linears = {kind: {n: x for n, x in named.items() if n != KEPT} for kind, named in fitted.linears.items()}
    return model, tower, as_fitted(tower, fitted.ranges, linears)


def learner_of(world: tuple[DualEncoder, GraphTower, Any], kind: Any, *names: str) -> TrainedLinears:
    """Of some products, or of all that are not kept."""
    _, tower, fitted = world
    taken = [product for product in tower.products if (product.name in names if names else product.name != KEPT)]
    linears, ranges = fitted.fitted.linears[kind], fitted.fitted.ranges
    named = {product.name: linears[product.name] for product in taken}
    ends = [one.name for one in ends_of(tower.model, taken)]
    return TrainedLinears(named, ranges, kind, taken, sums_of(tower.model, taken), ends)


def embedded_in_order(tower: GraphTower, model: Any, pixels: torch.Tensor, folder: Path) -> np.ndarray[Any, Any]:
    """Of a graph as it is written, without the runtime's own fusions."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    (folder / "graph.onnx").write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(str(folder / "graph.onnx"), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"pixels": pixels.numpy()})[0])


@pytest.mark.parametrize("kind", ["signed", "unsigned"])
def test_learners_compute_what_the_graph_of_what_they_store_does(
    world: tuple[DualEncoder, GraphTower, Any], kind: Any, tmp_path: Path
) -> None:
    """One product at a time, as values on the edge between two steps multiply otherwise; and both sides of each sum."""
    model, tower, fitted = world
    folded, pixels = with_folded_tower(model), conv_pixels(4, seed=3)
    alone = [(product.name,) for product in tower.products if product.name != KEPT]
    both = [(one.reader, one.branch) for one in sums_of(tower.model, tower.products) if one.reader != KEPT]
    assert len(alone) == 32 and len(both) == 3
    branches = [one.branch for one in sums_of(tower.model, tower.products)]
    ends = [one.name for one in ends_of(tower.model, tower.products)]
    assert ends == [tower.products[-2].name, "image.head"]
    assert [f"{name}.output" for name in (*branches, *ends)] == [*given_on(model.config)]
    floats = embedded_in_order(tower, tower.model, pixels, tmp_path)
    lost, off = [], []
    for names in (*alone, *both):
        learner = learner_of(world, kind, *names)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in learner.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
            found, _ = learner.embed(folded, pixels, TOKENS.expand(4, -1))
        stored, outputs = learner.stored(), learner.stored_outputs()
        assert len(outputs) == (kind == "unsigned" and (len(names) == 2 or names[0] in ends))
        linears = {name: linear for name, (linear, _) in stored.items()}
        ranges = {**fitted.fitted.ranges, **{name: ends for name, (_, ends) in stored.items()}, **outputs}
        expected = embedded_in_order(tower, tower.quantized(linears, ranges, kind), pixels, tmp_path)
        off.append(np.abs(found.numpy() - expected).max())
        lost.append(np.abs(floats - expected).max())
    assert max(off) < 1e-4 and np.median(lost) > 100 * np.median(off)


@pytest.mark.parametrize("kind", ["signed", "unsigned"])
def test_what_has_not_moved_is_the_fit(world: tuple[DualEncoder, GraphTower, Any], kind: Any) -> None:
    fitted, end = world[2].fitted, "absmax" if kind == "signed" else "high"
    for name, (linear, ends) in learner_of(world, kind).stored().items():
        assert np.array_equal(linear.weight, fitted.linears[kind][name].weight), name
        assert np.array_equal(linear.bias, fitted.linears[kind][name].bias), name
        assert ends[end] == pytest.approx(fitted.ranges[name][end])


@pytest.mark.parametrize("kind", ["signed", "unsigned"])
def test_everything_that_the_graph_stores_is_trained(world: tuple[DualEncoder, GraphTower, Any], kind: Any) -> None:
    learner = learner_of(world, kind)
    pixels = conv_pixels(4)
    images, _ = learner.embed(with_folded_tower(world[0]), pixels, TOKENS.expand(4, -1))
    images[:, :5].sum().backward()
    still = [name for name, x in learner.named_parameters() if x.requires_grad and (x.grad is None or not x.grad.any())]
    assert not still
    unbiased = {product.name for product in world[1].products if product.bias is None}
    untrained = [name for name, x in learner.named_parameters() if not x.requires_grad]
    assert len(untrained) == len(unbiased) > 0 and all(name.endswith("bias_moves") for name in untrained)


def test_a_graph_may_be_as_far_from_float64_as_float32_itself() -> None:
    """In a student that has hardly begun channels vary little beside their mean, which costs digits."""
    model = conv_model(1)
    assert Reference.of(model).limits == {"image": TOLERANCE, "text": TOLERANCE}
    weights = model.state_dict()
    reading = weights["image.blocks.3.expand.weight"]
    weights["image.blocks.3.start.norm.bias"].add_(3e3)
    reading.sub_(reading.mean(dim=1, keepdim=True))  # so the mean that all of its inputs have is nothing to it
    limits = Reference.of(model).limits
    assert TOLERANCE < limits["image"] < 0.1 and limits["text"] == TOLERANCE
