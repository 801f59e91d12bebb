"""Bisect on a small model of the exporter's: what was broken on purpose is named first, in either tower."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from onnx import helper
from safetensors.numpy import load_file
from shards import pair, write_tar
from tiny_clip import clip_of, config_of, tensors_of, wide_ranges
from toy_model import WORDS, write_tokenizer

from mmcompress.architecture import DualEncoderConfig, ImageConfig, TextConfig
from mmcompress.artifact import Artifact
from mmcompress.compress.int8.quantize import calibrate
from mmcompress.compress.int8.ranges import ranges_of
from mmcompress.compress.int8.samples import Captioned
from mmcompress.compress.train.pairs import trimmed
from mmcompress.config import BisectConfig, DataConfig
from mmcompress.data.batches import batches
from mmcompress.data.preprocess import normalize
from mmcompress.errors import UsageError
from mmcompress.export.export import VARIANTS, described
from mmcompress.export.graph import Numerics
from mmcompress.export.towers import image_graph, text_graph
from mmcompress.huggingface import save_checkpoint
from mmcompress.manifest import Kind, Preprocessing, TextProcessing
from mmcompress.measure.bisect.bisect import bisect, bisect_document, kept
from mmcompress.measure.bisect.cuts import Opened, border_module, common_borders, with_outputs
from mmcompress.measure.bisect.document import BisectModule
from mmcompress.measure.bisect.noise import LIMIT_DB, Sums, decibels, needed_noise, rows_of
from mmcompress.model import DualEncoder, initialize
from mmcompress.reach import reach
from mmcompress.runtime.tokenize import load_tokenizer, tokenize

TOWER = {"width": 32, "head_dim": 16, "heads": (2, 2), "mlp": (64, 64)}
CONFIG = DualEncoderConfig(
    embed_dim=16,
    image=ImageConfig(**TOWER, image_size=16, patch=8),  # type: ignore[arg-type]
    text=TextConfig(**TOWER, vocab=12, context=6, eos_token_id=2, pooling="end"),  # type: ignore[arg-type]
)
PREPROCESSING = Preprocessing(size=16, resize=16, mean=(0.5,) * 3, std=(0.25,) * 3)
TEXT = TextProcessing(context=6, pad_token_id=1, eos_token_id=2)
BUILDERS = {"image": image_graph, "text": text_graph}
Tensors = dict[str, np.ndarray[Any, Any]]
Ranges = dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """24 pictures of noise, each with one to three words."""
    rng = np.random.default_rng(0)
    captions = [" ".join(rng.choice(WORDS, 1 + index % 3)) for index in range(24)]
    files = [file for index, text in enumerate(captions) for file in pair(f"{index:03d}", index, text)]
    return DataConfig(test=str(write_tar(tmp_path_factory.mktemp("pairs") / "pairs.tar", files)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, pairs: DataConfig) -> tuple[Tensors, Ranges]:
    """Weights of a small random model, and ranges that were calibrated on the pairs."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    network = initialize(DualEncoder(CONFIG), 0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
            elif "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    save_checkpoint(network, folder)
    write_tokenizer(folder / "tokenizer.json")
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    [batch] = batches(str(pairs.test), PREPROCESSING, batch=24)
    pixels = torch.from_numpy(normalize(batch.pixels, PREPROCESSING))
    texts = [
        torch.from_numpy(trimmed(tokenize(tokenizer, list(caption), TEXT), CONFIG.text)) for caption in batch.captions
    ]
    histograms = calibrate(network, [Captioned(pixels, tokens) for tokens in texts]).histograms
    ranges = {name: ranges_of(found, "minmax", 100) for name, found in histograms.items()}
    return load_file(folder / "model.safetensors"), ranges


@pytest.fixture
def exported(model: tuple[Tensors, Ranges], tmp_path: Path) -> Callable[..., Artifact]:
    """(name, precision, changes) -> an ONNX artifact; `tensors` and `ranges` replace some of the model's."""

    def export(name: str, precision: str, tensors: Tensors | None = None, ranges: Ranges | None = None) -> Artifact:
        with Artifact.create(tmp_path / name, kind=Kind.ONNX, stage="export", key=name) as draft:
            for tower in ("image", "text"):
                for variant in VARIANTS:
                    if variant.precision != precision or variant.numerics.activations == "signed":
                        continue
                    numerics = variant.numerics
                    if precision == "int8":
                        numerics = Numerics(np.float32, "unsigned", {**model[1], **(ranges or {})})
                    proto = BUILDERS[tower](CONFIG, {**model[0], **(tensors or {})}, numerics, 18)
                    proto.producer_version = name  # so that two exports are never the same bytes
                    file = draft.path / variant.file(tower)  # type: ignore[arg-type]
                    file.write_bytes(proto.SerializeToString())
                    draft.graphs.append(described(proto, file.name, tower, variant))  # type: ignore[arg-type]
            write_tokenizer(draft.path / "tokenizer.json")
            draft.model = CONFIG
            draft.preprocessing, draft.tokenizer = PREPROCESSING, TEXT
        return Artifact.open(tmp_path / name)

    return export


@pytest.fixture
def report(exported: Callable[..., Artifact], pairs: DataConfig) -> Callable[..., dict[str, Any]]:
    def run(precision: str, **changes: Any) -> dict[str, Any]:
        pair = exported("reference", "fp32"), exported("candidate", precision, **changes)
        config = BisectConfig(data=pairs, samples=24, backend="onnxruntime")
        return bisect_document(*pair, config).model_dump(mode="json", by_alias=True)

    return run


def scaled(factor: float, entry: dict[str, float]) -> dict[str, float]:
    return {key: value * factor for key, value in entry.items()}


def shifted(entry: dict[str, float]) -> dict[str, float]:
    width = entry["high"] - entry["low"]
    return {"low": 0.0, "high": width, "absmax": width}


@pytest.mark.parametrize(
    ("module", "change"),
    [
        ("image.blocks.0.fc1", partial(scaled, 0.25)),
        ("image.blocks.1.qkv", partial(scaled, 8)),
        ("image.blocks.1.fc2", shifted),
        ("text.blocks.0.qkv", partial(scaled, 0.25)),
        ("text.blocks.1.out", partial(scaled, 8)),
        ("text.blocks.0.fc1", shifted),
    ],
)
def test_a_range_that_was_scaled_wrongly_is_named_first(
    report: Callable[..., dict[str, Any]], model: tuple[Tensors, Ranges], module: str, change: Any
) -> None:
    found = report("int8", ranges={module: change(model[1][module])})
    assert found["modules"][0]["module"] == module
    assert found["keep"][0] == module
    assert found["modules"][0]["excess_db"] > found["modules"][1]["excess_db"] + 3


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_weights_that_were_scaled_wrongly_are_named_first(
    report: Callable[..., dict[str, Any]], model: tuple[Tensors, Ranges], precision: str
) -> None:
    name = "text_model.encoder.layers.1.mlp.fc2.weight"
    found = report(precision, tensors={name: model[0][name] * np.float32(1.3)})
    assert found["modules"][0]["module"] == "text.blocks.1.fc2"
    assert found["keep"][0] == "text.blocks.1.fc2"


def test_a_layer_norm_that_overflows_half_precision_is_named(
    report: Callable[..., dict[str, Any]], model: tuple[Tensors, Ranges]
) -> None:
    name = "vision_model.encoder.layers.0.layer_norm2.weight"
    found = report("fp16", tensors={name: model[0][name] * np.float32(1e6)})
    worst = found["modules"][0]
    assert worst["module"] == "image.blocks.0.norm2"
    assert worst["local_sqnr_db"] == -LIMIT_DB and worst["local_cosine_mean"] < 1


def test_nothing_is_kept_of_a_good_model(report: Callable[..., dict[str, Any]]) -> None:
    found = report("int8")
    assert found["keep"] == []
    assert found["reference"] == {"row": "reference", "precision": "fp32"}
    assert found["candidate"] == {"row": "candidate", "precision": "int8"}
    assert found["samples"] == 24
    linears = [f"{t}.blocks.{i}.{m}" for t in ("image", "text") for i in range(2) for m in ("qkv", "out", "fc1", "fc2")]
    rows = {entry["module"]: entry for entry in found["modules"]}
    for module in linears:
        assert abs(rows[module]["excess_db"]) < 5 and 25 < rows[module]["local_sqnr_db"] < 60
        assert 0.99 < rows[module]["local_cosine_mean"] <= 1
    for module in ("image.patch_embed", "image.blocks.0.norm1", "text.final_norm"):
        assert rows[module]["local_sqnr_db"] > 120  # FP32 in both
    for tower in ("image", "text"):
        assert sum(entry["share"] for entry in found["modules"] if entry["tower"] == tower) == pytest.approx(1)
    assert [entry["block"] for entry in found["blocks"]] == [
        f"{t}.blocks.{i}" for t in ("image", "text") for i in range(2)
    ]
    carried = [entry["carried_sqnr_db"] for entry in found["blocks"]]
    assert carried[0] > 25 and carried[0] < LIMIT_DB


def test_fp32_against_itself_has_no_error(report: Callable[..., dict[str, Any]]) -> None:
    found = report("fp32")
    assert found["keep"] == []
    assert all(entry["local_sqnr_db"] > 120 and entry["excess_db"] == 0 for entry in found["modules"])


def test_the_stage_writes_its_report(exported: Callable[..., Artifact], pairs: DataConfig, tmp_path: Path) -> None:
    sources = {"reference": exported("reference", "fp32"), "candidate": exported("candidate", "int8")}
    config = BisectConfig(data=pairs, samples=4)
    bisect(cast(Any, SimpleNamespace(config=config, sources=sources, draft=SimpleNamespace(path=tmp_path))))
    assert (tmp_path / "bisect.json").stat().st_size > 1000


def test_other_models_and_no_data_are_refused(exported: Callable[..., Artifact], tmp_path: Path) -> None:
    reference = exported("reference", "fp32")
    with pytest.raises(UsageError, match=r"data.test is not set") as caught:
        bisect_document(reference, reference, BisectConfig(data=DataConfig()))
    assert caught.value.exit_code == 2
    other = reference.manifest.model_copy(update={"model": CONFIG.model_copy(update={"embed_dim": 8})})
    with pytest.raises(UsageError, match="are models of different sizes") as caught:
        bisect_document(reference, Artifact(reference.path, other), BisectConfig(data=DataConfig(test="demo:val")))
    assert "two exports of one checkpoint" in caught.value.hint


def test_an_artifact_against_itself_is_refused(exported: Callable[..., Artifact], pairs: DataConfig) -> None:
    """But not the INT8 graphs of an artifact against the FP32 ones beside them."""
    reference = exported("reference", "fp32")
    with pytest.raises(UsageError, match="hold the same graphs") as caught:
        bisect_document(reference, reference, BisectConfig(data=pairs, samples=4))
    assert "its export in INT8 or FP16" in caught.value.hint


def test_modules_are_told_by_the_names_of_tensors() -> None:
    names = {
        "image.blocks.5.qkv.kv.add": "image.blocks.5.qkv",
        "text.blocks.11.attention.scores": "text.blocks.11.attention",
        "text.final_norm.float": "text.final_norm",
        "embedding.norm": "image.embedding",
        "text.mask.end": None,
        "pixels": None,
    }
    assert {name: border_module(name, "image") for name in names} == names


def test_a_tensor_that_no_operator_of_onnx_makes_is_named() -> None:
    made = helper.make_node("Nothing", ["pixels"], ["image.blocks.0.fc1"])
    ends = [helper.make_tensor_value_info(name, 1, [None, 4]) for name in ("pixels", "embedding")]
    last = helper.make_node("Identity", ["image.blocks.0.fc1"], ["embedding"])
    graph = helper.make_graph([made, last], "image", ends[:1], ends[1:])
    opened = Opened(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), "image")
    with pytest.raises(UsageError, match=r"'image\.blocks\.0\.fc1' of the image tower is"):
        with_outputs(opened, ["image.blocks.0.fc1"])


def test_sums_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((30, 8)).astype(np.float32)
    other = truth + 0.1 * rng.standard_normal((30, 8)).astype(np.float32)
    sums = Sums()
    for start in range(0, 30, 7):
        sums.add(truth[start : start + 7], other[start : start + 7])
    assert sums.ratio == pytest.approx(((other - truth) ** 2).sum() / (truth**2).sum(), rel=1e-5)
    expected = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(truth, other, strict=True)]
    assert sums.cosine == pytest.approx(np.mean(expected), rel=1e-5)
    assert decibels(1, 0.001) == pytest.approx(30)
    assert (decibels(1, 0), decibels(1, np.inf), decibels(0, 1)) == (LIMIT_DB, -LIMIT_DB, -LIMIT_DB)


def test_rows_are_tokens_up_to_the_end() -> None:
    ids = np.array([[5, 2, 1, 1], [5, 6, 7, 2], [5, 6, 7, 2]])
    mask = np.arange(4) <= reach(ids, CONFIG.text)[:, None]
    assert mask.sum(axis=1).tolist() == [2, 4, 4]
    heads = np.arange(3 * 2 * 4 * 5).reshape(3, 2, 4, 5)
    rows = rows_of(heads, mask)
    assert rows.shape == (10, 10)
    assert rows[1].tolist() == [*heads[0, 0, 1], *heads[0, 1, 1]]
    assert rows_of(heads[:, :, 0], None).shape == (6, 5)
    assert rows_of(heads[:, :1, 0], mask).shape == (3, 5)  # the pooled token alone
    assert rows_of(heads[:, 0, 0], mask).shape == (3, 5)


def test_needed_noise_is_that_of_the_best_range() -> None:
    rng = np.random.default_rng(0)
    inputs, weight = rng.standard_normal((64, 16)).astype(np.float32), rng.standard_normal((16, 8)).astype(np.float32)
    plain = needed_noise(inputs, weight, weight, "unsigned")
    step = (inputs.max() - inputs.min()) / 255
    assert plain == pytest.approx(step**2 / 12 * 64 * (weight**2).sum(), rel=0.2)  # uniform rounding errors
    inputs[0, 0] = 1000.0
    spread = needed_noise(inputs, weight, weight, "signed")
    assert spread < ((2000 / 255) ** 2 / 12) * 64 * (weight**2).sum() * 1.5


def test_what_is_kept_stands_out() -> None:
    def entry(module: str, excess: float, share: float, sqnr: float = 30.0) -> BisectModule:
        return BisectModule(
            module=module,
            tower="image",
            local_sqnr_db=sqnr,
            local_cosine_mean=1.0,
            excess_db=excess,
            carried_sqnr_db=sqnr,
            share=share,
        )

    modules = [entry("a", 9, 0.1), entry("b", 7, 0.1), entry("c", 1, 0.5), *(entry(str(i), 0, 0.05) for i in range(6))]
    assert kept(modules) == ["a", "b", "c"]
    assert kept([entry("quiet", 9, 1.0, sqnr=75.0)]) == []


def test_a_smoothed_candidate_is_not_taken_for_a_broken_one(
    report: Callable[..., dict[str, Any]], model: tuple[Tensors, Ranges]
) -> None:
    gains = {name: 2 * values for name, values in model[0].items() if "layer_norm" in name and name.endswith("weight")}
    with pytest.raises(UsageError, match="LayerNorms of the image tower differ in their gains") as caught:
        report("fp32", tensors=gains)
    assert "export QUANTIZED --precision fp32" in caught.value.hint and caught.value.exit_code == 2


@pytest.mark.parametrize(("tower", "graph"), [("image", image_graph), ("text", text_graph)])
def test_graphs_for_tensorrt_have_the_borders_of_the_reference(tower: Any, graph: Any) -> None:
    """Their attention is written in another order inside its module."""
    config = config_of()
    tensors = tensors_of(clip_of(config))
    reference = Opened(graph(config, tensors, Numerics(), 18), tower)
    signed = Opened(graph(config, tensors, Numerics(np.float16, "signed", wide_ranges(config)), 18), tower)
    assert common_borders(reference, signed) == reference.borders
    read = {product.reads for product in signed.products.values()}
    assert len(signed.products) == 9 and read <= set(reference.borders)
