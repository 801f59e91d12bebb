"""INT8 of any architecture through its graphs: what is calibrated, chosen and delivered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conv_graphs import traced_squares
from rich.console import Console
from tiny_clip import config_of
from torch.nn import functional as F

from mmcompress.artifact import Artifact
from mmcompress.cli.show_compress import quantize_summary
from mmcompress.compress.int8 import quantize_graphs
from mmcompress.compress.int8.graphfit import calibrated, chosen_ranges, rounded_all
from mmcompress.compress.int8.graphtower import GraphTower, computed, paired, unpaired
from mmcompress.config import BisectConfig, DataConfig, DriftConfig, QuantizeGraphsConfig, VerdictConfig
from mmcompress.errors import UsageError
from mmcompress.export.export import Variant
from mmcompress.export.products import Product, attributes, products_of
from mmcompress.int8 import FLOATS_FACT, GRAPH_RANGES, INTEGERS, dequantize_weight
from mmcompress.measure.drift.drift import drift_document
from mmcompress.measure.verdict import contest
from mmcompress.measure.verdict.contestants import written
from mmcompress.measure.verdict.origins import origin_of
from mmcompress.pipeline.run import run_stage
from mmcompress.report.rows import delivered_bytes
from mmcompress.runtime.encoder import Encoder
from mmcompress.stages import STAGES
from mmcompress.strictjson import read_json

pytestmark = pytest.mark.usefixtures("better_than_chance")

CONVOLUTIONS = [f"image.{name}.Conv" for name in ("depthwise.depthwise.0", "grouped", "pointwise.pointwise.0")]


def fit(source: Artifact, data: Path, out: Path, **changed: Any) -> Artifact:
    asked = {"samples": 512, "held": 60, "batch": 10, "max_drop": None, "max_flips": None, **changed}
    config = QuantizeGraphsConfig(data=DataConfig(train=str(data)), **asked)
    return run_stage(STAGES["quantize-graphs"], config, {"graphs": source}, (), out)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Path]:
    return traced_squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture(scope="module")
def quantized(world: tuple[Artifact, Path], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return fit(*world, tmp_path_factory.mktemp("quantized") / "q")


@pytest.fixture
def tower(world: tuple[Artifact, Path], tmp_path: Path) -> GraphTower:
    return GraphTower.of(world[0].file("image-fp32.onnx"), "image", tmp_path)


def test_what_cannot_be_integers_is_told(
    world: tuple[Artifact, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"image.up{index}.ConvTranspose: a transposed convolution" for index in range(3)]
    monkeypatch.setattr(quantize_graphs, "left_in_float", lambda *_: names)
    found = fit(*world, tmp_path / "q", sensitivity=False, rounding="nearest", bias_correction=False)
    assert found.manifest.facts[FLOATS_FACT] == 2 * names
    with (page := Console(width=200)).capture() as shown:
        page.print(quantize_summary(found, None)[1])
    said = shown.get()
    assert "INT8: 12 of 18 products" in said and f"not in INT8 here: {names[0]}" in said and "and 1 more" in said


def test_the_artifact_has_float_and_both_kinds_of_integers(quantized: Artifact, world: tuple[Artifact, Path]) -> None:
    source = world[0]
    kinds = [(graph.tower, graph.precision, graph.activations) for graph in quantized.manifest.graphs]
    for tower in ("image", "text"):
        assert [kind[1:] for kind in kinds if kind[0] == tower] == [
            ("fp32", "float"),
            ("int8", "unsigned"),
            ("int8", "signed"),
        ]
    facts = quantized.manifest.facts
    assert facts["products"] == 12 and facts[FLOATS_FACT] == [] and facts["kept"] == [] and facts["logit_scale"] == 20.0
    assert facts["params"] == source.manifest.facts["params"]
    assert facts["seen"]["pairs"] == 60, "there are no more"
    assert {GRAPH_RANGES, INTEGERS} < quantized.manifest.files.keys()
    drift = quantized.manifest.metrics["calibration"]["drift"]
    assert all(0 < drift[kind]["image"] < 2e-4 and 0 < drift[kind]["text"] < 5e-3 for kind in ("signed", "unsigned"))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_both_runtimes_embed_with_it_as_the_float_graph_does(quantized: Artifact, backend: Any) -> None:
    pixels = np.random.default_rng(0).uniform(-2, 2, (9, 3, 32, 32)).astype(np.float32)
    with Encoder.open(quantized, backend, "fp32") as fp32, Encoder.open(quantized, backend) as int8:
        assert set(int8.precisions.values()) == {"int8"}
        cosines = (fp32.images(pixels) * int8.images(pixels)).sum(axis=1)
        assert cosines.min() > 0.99 and cosines.max() < 1 - 1e-9
        texts = ["w1 w12", "w3 w17 w2"]
        assert (fp32.texts(texts) * int8.texts(texts)).sum(axis=1).min() > 0.98


def test_weights_are_stored_as_integers_and_older_cpus_can_add_their_products(quantized: Artifact) -> None:
    model = onnx.load(str(quantized.file("image-int8-unsigned.onnx")))
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    integers = {name: array for name, array in stored.items() if array.dtype == np.int8 and array.ndim > 1}
    assert {name.removesuffix(".weight") for name in integers} > set(CONVOLUTIONS)
    for name, array in integers.items():
        matrix = array.transpose(2, 3, 1, 0).reshape(-1, len(array)) if array.ndim == 4 else array
        matrix = matrix[: len(matrix) // 2 * 2].astype(int)
        pairs = matrix.reshape(-1, 2, matrix.shape[1])
        sums = np.maximum(np.maximum(pairs, 0).sum(axis=1), np.maximum(-pairs, 0).sum(axis=1))
        assert sums.max() <= 128, name
    assert np.abs(integers["image.stem.stem.0.Conv.weight"].astype(int)).max() <= 64, "three channels: any may meet"


def test_histograms_see_what_the_products_read(world: tuple[Artifact, Path], tower: GraphTower) -> None:
    feeds = [{"pixels": np.random.default_rng(i).standard_normal((3, 3, 32, 32), dtype=np.float32)} for i in (0, 1)]
    seen = calibrated(tower, feeds)
    whole = np.concatenate([feed["pixels"] for feed in feeds])
    assert seen.histograms["pixels"].low == whole.min() and seen.histograms["pixels"].high == whole.max()
    assert seen.histograms["pixels"].counts.sum() == whole.size
    assert np.allclose(seen.powers["pixels"], (whole.astype(np.float64) ** 2).mean(axis=(0, 2, 3)))
    shown: list[torch.Tensor] = []
    tower.show([tower.output_of(tower.products[0])], feeds, lambda _, x: shown.append(x))
    output = torch.cat(shown)
    assert seen.outputs["image.stem.stem.0.Conv.output"]["high"] == pytest.approx(float(output.max()))
    product, node = tower.products[0], tower.model.graph.node[tower.products[0].node]
    weight, bias = tower.parameters[product.name]
    answer = computed(product, node, torch.from_numpy(whole), weight) + torch.from_numpy(bias.copy())[:, None, None]
    assert (answer - output).abs().max() < 1e-4 and attributes(node)["strides"] == [2, 2]


def test_fitted_linears_beat_the_nearest_and_kernels_clip_by_their_inputs(
    world: tuple[Artifact, Path], tower: GraphTower
) -> None:
    config = QuantizeGraphsConfig(data=DataConfig(train="x"), method="minmax")
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((3, 3)).astype(np.float32)
    feeds = [
        {"pixels": np.einsum("bchw,cd->bdhw", rng.standard_normal((8, 3, 32, 32), dtype=np.float32), mixing)}
        for _ in range(2)
    ]
    seen = calibrated(tower, feeds)
    ranges, methods = chosen_ranges(tower, seen, feeds, config)
    assert set(methods.values()) == {"minmax"} and ranges.keys() == tower.parameters.keys()
    results = rounded_all(tower, seen, ranges, feeds, "signed", ("nearest", "gptq"))
    product = next(p for p in tower.products if p.name == "image.pointwise.pointwise.0.Conv")
    weight, _ = tower.parameters[product.name]
    shown: list[torch.Tensor] = []
    tower.show([product.input], feeds, lambda _, x: shown.append(x.permute(0, 2, 3, 1).flatten(0, 2)))
    rows = torch.cat(shown).numpy()

    def error(rounding: str) -> float:
        stored = results[rounding, False][product.name]
        return float(np.square(rows @ (dequantize_weight(stored.weight, stored.scales) - weight)).mean())

    assert error("gptq") < 0.9 * error("nearest")
    depthwise = results["gptq", False]["image.depthwise.depthwise.0.Conv"]
    assert depthwise.weight.shape == (9, 16) and np.abs(depthwise.weight.astype(int)).max(axis=0).min() >= 63


def test_a_budget_keeps_what_loses_most_in_float(world: tuple[Artifact, Path], tmp_path: Path) -> None:
    rough = {"method": "minmax", "rounding": "nearest", "bias_correction": False}
    kept = fit(*world, tmp_path / "kept", max_drop=0.0, max_flips=0.0, keep=("image.grouped.Conv",), **rough)
    facts = kept.manifest.facts
    assert "image.grouped.Conv" in facts["kept"]
    if len(facts["kept"]) > 1:
        drifts = [entry["drift"] for entry in facts["sensitivity"]]
        assert len(drifts) == 12 and drifts == sorted(drifts, reverse=True)
        assert {entry["module"] for entry in facts["sensitivity"] if entry["kept"]} == set(facts["kept"])
    measured = kept.manifest.metrics["calibration"]
    assert measured["r10_lost"] == 0 and measured["flips"] == 0
    names = {node.name for node in onnx.load(str(kept.file("image-int8-signed.onnx"))).graph.node}
    assert "image.grouped.Conv.weight.dequantize" not in names and f"{CONVOLUTIONS[0]}.weight.dequantize" in names
    assert "image.grouped.Conv" not in read_json(kept.file(GRAPH_RANGES), "")


def test_a_tower_that_stays_in_float_whole_has_no_int8_graph_and_no_verdict_calls_it_so(
    world: tuple[Artifact, Path], quantized: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = [name for name in read_json(quantized.file(GRAPH_RANGES), "") if name.startswith("text.")]
    kept = fit(*world, tmp_path / "kept", samples=20, held=20, keep=tuple(text))
    held = [(graph.tower, graph.precision) for graph in kept.manifest.graphs]
    assert held == [("image", "fp32"), ("image", "int8"), ("text", "fp32"), ("image", "int8")]
    origin = origin_of(kept)
    candidate, numerics = next(origin.candidates("onnxruntime"))
    config = VerdictConfig(data=DataConfig())
    int8 = written(origin, tmp_path, config, candidate.name, Variant("int8", numerics), "onnxruntime")
    assert {tower: entrant.graph.precision for tower, entrant in int8.towers.items()} == {
        "image": "int8",
        "text": "fp32",
    }
    assert int8.towers["text"].path.read_bytes() == kept.file("text-fp32.onnx").read_bytes()
    for name, value in {"ROUND_S": 0.002, "SCREENING_ROUNDS": 4, "ROUNDS": 4}.items():
        monkeypatch.setattr(contest, name, value)
    verdict = run_stage(
        STAGES["verdict"],
        VerdictConfig(data=DataConfig(validation=str(world[1])), backend="onnxruntime", seconds=0.01, samples=40),
        {"graphs": kept},
        (),
        tmp_path / "verdict",
    )
    held = [(graph.tower, graph.precision) for graph in verdict.manifest.graphs]
    assert held == [("image", "fp32"), ("image", "int8"), ("text", "fp32")]
    said = verdict.manifest.facts["recommendation"]
    assert "INT8 on ONNX Runtime with the text tower in FP32" in said["sentence"]
    assert not [name for name in verdict.manifest.files if name.startswith("text-int8")]
    files = [graph.file for graph in verdict.manifest.graphs if (graph.tower, graph.precision) != ("image", "fp32")]
    assert delivered_bytes(verdict, "int8", None) == sum(verdict.manifest.files[name].bytes for name in files)
    assert drift_document([verdict], DriftConfig(data=DataConfig(test=str(world[1])))).rows[0].precision == "int8"


def test_mistakes_are_named(world: tuple[Artifact, Path], quantized: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no product 'image\.group\.Conv'") as refused:
        fit(*world, tmp_path / "q", keep=("image.group.Conv",))
    assert "image.grouped.Conv" in refused.value.hint
    with pytest.raises(UsageError, match="a name begins with its tower") as refused:
        STAGES["quantize-graphs"].refuse_impossible(
            QuantizeGraphsConfig(data=DataConfig(), keep=("imgae.grouped.Conv",)), {}
        )
    assert GRAPH_RANGES in refused.value.hint
    with pytest.raises(UsageError, match="needs samples"):
        run_stage(
            STAGES["quantize-graphs"], QuantizeGraphsConfig(data=DataConfig()), {"graphs": world[0]}, (), tmp_path / "q"
        )
    assert not (tmp_path / "q").exists()


def test_a_teachers_graphs_are_not_bisected(
    cli: Callable[..., Any], quantized: Artifact, world: tuple[Artifact, Path], tmp_path: Path
) -> None:
    for pair in ((world[0].path, quantized.path), (quantized.path, world[0].path)):
        done = cli("bisect", *pair, "--data", world[1], "--out", tmp_path / "b")
        assert done.code == 2 and f"error: {pair[0]} cannot be bisected" in done.err, done.err
        assert "hint: give two exports of one checkpoint" in done.err and "running" not in done.err
    assert not (tmp_path / "b").exists()


def test_an_input_whose_neighbours_are_unknown_is_its_own() -> None:
    product = Product("p", 0, "Conv", "x", "w", None, (4, 3, 3, 3))
    matrix = np.arange(27 * 4, dtype=np.float32).reshape(27, 4)
    assert product.torn and np.array_equal(paired(product, matrix)[::2], paired(product, matrix)[1::2])
    assert np.array_equal(unpaired(product, paired(product, matrix).astype(np.int8)), matrix.astype(np.int8))
    even = Product("p", 0, "Conv", "x", "w", None, (4, 2, 3, 3))
    assert not even.torn and paired(even, matrix) is matrix


def test_a_padded_strided_dilated_convolution_is_computed_as_torch_does() -> None:
    settings = {"group": 2, "strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2]}
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 2, 3, 2), dtype=np.float32)
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="c", **settings)
    values = onnx.helper.make_tensor_value_info("x", 1, [1, 4, 9, 8]), onnx.helper.make_tensor_value_info("y", 1, None)
    tensors = [onnx.numpy_helper.from_array(weight, "w")]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [values[0]], [values[1]], tensors))
    (product,) = products_of(model, "image")
    x = torch.from_numpy(rng.standard_normal((1, 4, 9, 8), dtype=np.float32))
    expected = F.conv2d(F.pad(x, (0, 1, 1, 2)), torch.from_numpy(weight), stride=(2, 1), dilation=(1, 2), groups=2)
    assert (computed(product, node, x, product.matrix(weight)) - expected).abs().max() < 1e-5


def test_what_was_quantized_as_a_graph_is_not_bisected(world: tuple[Artifact, Path]) -> None:
    """Even where its float graphs are those of a checkpoint and name their modules."""
    manifest = world[0].manifest.model_copy(update={"model": config_of(), "stage": "quantize-graphs"})
    named = replace(world[0], manifest=manifest)
    with pytest.raises(UsageError, match=r"cannot be bisected: it was quantized as a graph") as refused:
        STAGES["bisect"].refuse_impossible(
            BisectConfig(data=DataConfig(test=str(world[1]))), {"reference": named, "candidate": named}
        )
    assert "quantize the checkpoint" in refused.value.hint
