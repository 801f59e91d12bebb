"""Every family that a dual encoder holds, against its own class in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from family_folders import (
    CONTEXT,
    EOS,
    FAMILIES,
    PAD,
    SIZES,
    VOCAB,
    embedded,
    pixels,
    stock_images,
    stock_model,
    stock_texts,
    tokens,
    write_family,
    write_world,
)
from safetensors.numpy import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmcompress.architecture import DualEncoderConfig, TextConfig
from mmcompress.errors import MMCompressError, UsageError
from mmcompress.export.graph import Numerics
from mmcompress.export.reference import random_inputs
from mmcompress.export.texts import text_processing_of
from mmcompress.export.towers import image_graph, text_graph
from mmcompress.families import CLASSES, config_from_hugging_face
from mmcompress.huggingface import dual_encoder_from_hugging_face, save_checkpoint, with_tokenizer
from mmcompress.manifest import TextProcessing
from mmcompress.model import DualEncoder
from mmcompress.reach import reach, read_at
from mmcompress.runtime.tokenize import tokenize

CASES = [(family, size) for family in FAMILIES for size in SIZES if family in ("clip", "siglip") or size != "quick"]


def side_of(size: str) -> int:
    return int(SIZES[size]["sizes"][4])


def run(proto: Any, inputs: Any) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: np.asarray(inputs)})[0])


@pytest.mark.parametrize(("family", "size"), CASES)
def test_everything_inherited_graphs_and_folders_equal_the_stock_class(family: str, size: str, tmp_path: Path) -> None:
    stock = write_family(tmp_path / "teacher", family, size)
    images, ids = pixels(side_of(size)), tokens(family)
    expected = stock_images(stock, images), stock_texts(stock, ids)
    assert np.abs(expected[0][0] - expected[0][1]).max() > 0.03 and np.abs(expected[1][0] - expected[1][1]).max() > 0.03

    student = dual_encoder_from_hugging_face(tmp_path / "teacher").eval()
    for found, wanted in zip(embedded(student, images, ids), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert student.logit_scale.item() == pytest.approx(4.5)
    assert student.config.params == sum(p.numel() for p in student.parameters())

    save_checkpoint(student, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for opset in (17, 18):
        graphs = (graph(student.config, tensors, Numerics(), opset) for graph in (image_graph, text_graph))
        for graph, inputs, wanted in zip(graphs, (images, ids), expected, strict=True):
            np.testing.assert_allclose(run(graph, inputs), wanted, atol=1e-5)

    again = getattr(transformers, f"{CLASSES[family]}Model").from_pretrained(tmp_path).eval()
    np.testing.assert_allclose(stock_images(again, images), expected[0], atol=1e-5)
    np.testing.assert_allclose(stock_texts(again, ids), expected[1], atol=1e-5)
    assert again.logit_scale.item() == pytest.approx(4.5)
    assert config_from_hugging_face(tmp_path) == student.config
    assert not (tmp_path / "README.md").exists()


def test_the_bias_of_a_sigmoid_model_is_carried(tmp_path: Path) -> None:
    write_family(tmp_path, "siglip")
    model = dual_encoder_from_hugging_face(tmp_path)
    assert model.logit_bias is not None and model.logit_bias.item() == -12.25
    save_checkpoint(model, tmp_path)
    assert transformers.SiglipModel.from_pretrained(tmp_path).logit_bias.item() == -12.25
    write_family(tmp_path, "clip")
    assert dual_encoder_from_hugging_face(tmp_path).logit_bias is None


@pytest.mark.parametrize("eos", [2, 58])
def test_only_clip_reads_the_end_token_2_as_the_largest_id(eos: int, tmp_path: Path) -> None:
    """XLM-R's end token is 2: MetaCLIP 2 reads a text there, and a CLIP config of the same id at its largest one."""
    for family in ("clip", "metaclip_2"):
        stock = write_family(tmp_path / family, family, eos_token_id=eos)
        model = dual_encoder_from_hugging_face(tmp_path / family)
        assert model.config.text.pooling == ("largest" if family == "clip" and eos == 2 else "end")
        ids = tokens(family)
        ids[ids == (58 if family == "clip" else 2)] = eos
        np.testing.assert_allclose(embedded(model, pixels(32), ids)[1], stock_texts(stock, ids), atol=1e-5)
        save_checkpoint(model, tmp_path / family)
        assert config_from_hugging_face(tmp_path / family) == model.config


def test_a_document_without_pooling_is_read_as_it_was_meant() -> None:
    stated = {"width": 8, "head_dim": 4, "heads": [2], "mlp": [8], "vocab": 9, "context": 4}
    assert TextConfig.model_validate({**stated, "eos_token_id": 2}).pooling == "largest"
    assert TextConfig.model_validate({**stated, "eos_token_id": 8}).pooling == "end"
    assert TextConfig.model_validate({**stated, "eos_token_id": 2, "pooling": "end"}).pooling == "end"
    config = TextConfig.model_validate({**stated, "eos_token_id": 2, "pooling": "end"})
    assert TextConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("family", ["chinese_clip", "altclip"])
def test_a_masked_tower_takes_for_padding_what_stands_behind_the_text(family: str, tmp_path: Path) -> None:
    """The tokenizer's mask is 1 for a pad token that somebody wrote into a text, and AltCLIP has a position for it."""
    stock = write_family(tmp_path, family)
    ids = tokens(family, 8)
    ids[0, 4] = ids[3, 2] = PAD
    mask = np.arange(CONTEXT) <= np.where(ids != PAD, np.arange(CONTEXT), 0).max(axis=1)[:, None]
    expected = stock_texts(stock, ids, mask)
    assert np.abs(expected - stock_texts(stock, ids, ids != PAD)).max() > 1e-3
    model = dual_encoder_from_hugging_face(tmp_path)
    np.testing.assert_allclose(embedded(model, pixels(32), ids)[1], expected, atol=1e-5)
    graph = text_graph(model.config, load_file(tmp_path / "model.safetensors"), Numerics(), 18)
    np.testing.assert_allclose(run(graph, ids), expected, atol=1e-5)
    save_checkpoint(model, tmp_path)
    again = getattr(transformers, f"{CLASSES[family]}Model").from_pretrained(tmp_path).eval()
    np.testing.assert_allclose(stock_texts(again, ids, mask), expected, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_that_somebody_wrote_into_a_text_are_read_as_the_stock_class_does(
    family: str, tmp_path: Path
) -> None:
    write_world(tmp_path, family)
    texts = ["red", "red <pad> square", "<pad>", "red <pad>", "<pad> <pad> red <unk>", "red <eos> square", "<eos> red"]
    texts += ["<bos> red", "red <eos>", "a <pad> <eos> <bos> <pad> red", "red <pad> " * 20]
    tokenizer, processing = text_processing_of(tmp_path)
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    encoded = reference(texts, padding="max_length", truncation=True, max_length=processing.context)
    ids = tokenize(tokenizer, texts, processing)
    np.testing.assert_array_equal(ids, encoded["input_ids"])
    stock = getattr(transformers, f"{CLASSES[family]}Model").from_pretrained(tmp_path).eval()
    expected = stock_texts(stock, ids, np.asarray(encoded.get("attention_mask", np.ones_like(ids))))
    model = with_tokenizer(dual_encoder_from_hugging_face(tmp_path), processing)
    np.testing.assert_allclose(embedded(model, pixels(32), ids)[1], expected, atol=1e-5)
    save_checkpoint(model, tmp_path)
    for dtype, apart in ((np.float32, 1e-5), (np.float16, 3e-2)):
        graph = text_graph(model.config, load_file(tmp_path / "model.safetensors"), Numerics(dtype), 18)
        np.testing.assert_allclose(run(graph, ids), expected, atol=apart)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_out_of_reach_changes_nothing(family: str, tmp_path: Path) -> None:
    write_family(tmp_path, family)
    model, ids = dual_encoder_from_hugging_face(tmp_path), tokens(family)
    text = model.config.text
    far = reach(ids, text)
    assert far.tolist() == model.text.reach(torch.from_numpy(ids)).tolist()
    assert read_at(ids, text).tolist() == model.text.ends(torch.from_numpy(ids)).tolist()
    assert far.tolist() == ([CONTEXT - 1] * 5 if family == "siglip" else [13, 1, 3, 7, 12])
    last = int(far[1:4].max()) + 1
    whole, cut = (embedded(model, pixels(32), part)[1] for part in (ids[1:4], ids[1:4, :last]))
    np.testing.assert_allclose(cut, whole, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_behind_the_tokenizers_context_go(family: str, tmp_path: Path) -> None:
    stock = write_family(tmp_path, family)
    nine = TextProcessing(context=9, pad_token_id=PAD, eos_token_id=2 if family == "metaclip_2" else EOS)
    model, ids = with_tokenizer(dual_encoder_from_hugging_face(tmp_path), nine), tokens(family, context=9)
    np.testing.assert_allclose(embedded(model, pixels(32), ids)[1], stock_texts(stock, ids), atol=1e-5)
    assert model.config.text.context == 9 and model.config.params == sum(p.numel() for p in model.parameters())
    save_checkpoint(model, tmp_path)
    assert config_from_hugging_face(tmp_path) == model.config
    with pytest.raises(UsageError, match="makes 10 tokens of a text, and the model has positions for 9"):
        with_tokenizer(model, nine.model_copy(update={"context": 10}))
    other = nine.model_copy(update={"eos_token_id": 3})
    if family in ("clip", "metaclip_2"):
        with pytest.raises(UsageError, match="the tokenizer ends texts with id 3, and its model reads them at id"):
            with_tokenizer(model, other)
    else:
        assert with_tokenizer(model, other) is model
    if family in ("chinese_clip", "altclip"):
        with pytest.raises(UsageError, match="pads with id 3, and the model masks id 1"):
            with_tokenizer(model, nine.model_copy(update={"pad_token_id": 3}))
        with pytest.raises(UsageError, match=r"fills texts up with its end token \(id 1\)"):
            with_tokenizer(model, nine.model_copy(update={"eos_token_id": PAD}))
        with pytest.raises(UsageError, match="the tokenizer masks nothing"):
            with_tokenizer(model, nine.model_copy(update={"mask": False}))


@pytest.mark.parametrize("size", ["plain", "odd"])
def test_counts_of_attention_pooling_match_torch(size: str, tmp_path: Path) -> None:
    write_family(tmp_path, "siglip", size)
    model = dual_encoder_from_hugging_face(tmp_path)
    config, tower = model.config, model.image
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        tower(pixels(side_of(size), 1))
    assert counter.get_total_flops() == 2 * config.macs
    proto = image_graph(config, load_file(tmp_path / "model.safetensors"), Numerics(), 18)
    assert macs_of(proto, config) == config.image.pooled_macs(config.embed_dim)


def macs_of(proto: Any, config: DualEncoderConfig) -> int:
    """Multiply-accumulates of the graph's products and its convolution, from the shapes that onnx infers."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    shapes = {v.name: [d.dim_value or 1 for d in v.type.tensor_type.shape.dim] for v in inferred.value_info}
    shapes |= {t.name: list(t.dims) for t in proto.graph.initializer}
    total = 0
    for node in proto.graph.node:
        if node.op_type == "MatMul":
            total += int(np.prod(shapes[node.output[0]])) * shapes[node.input[0]][-1]
        elif node.op_type == "Conv":
            total += config.image.patches * int(np.prod(shapes[node.input[1]]))
    return total


@pytest.mark.parametrize("family", ["siglip", "altclip"])
def test_openvino_computes_the_same_and_fuses_the_activation(family: str, tmp_path: Path) -> None:
    from mmcompress.runtime.openvino import openvino_module

    stock, ov = write_family(tmp_path, family), openvino_module()
    config, tensors = config_from_hugging_face(tmp_path), load_file(tmp_path / "model.safetensors")
    images, ids = pixels(32), tokens(family)
    for name, graph, inputs, wanted in (
        ("image", image_graph, images, stock_images(stock, images)),
        ("text", text_graph, ids, stock_texts(stock, ids)),
    ):
        core, proto = ov.Core(), graph(config, tensors, Numerics(), 18)
        compiled = core.compile_model(
            core.read_model(proto.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        np.testing.assert_allclose(compiled([np.asarray(inputs)])[0], wanted, atol=1e-5)
        infos = [op.get_rt_info() for op in compiled.get_runtime_model().get_ordered_ops()]
        layers = {
            part: info["layerType"].astype(str)
            for info in infos
            if "originalLayersNames" in info
            for part in info["originalLayersNames"].astype(str).split(",")
        }
        assert layers[f"{name}.blocks.0.activation"] == "FullyConnected"


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_graphs_stay_near(family: str, tmp_path: Path) -> None:
    stock = write_family(tmp_path, family)
    config, tensors = config_from_hugging_face(tmp_path), load_file(tmp_path / "model.safetensors")
    images, ids = pixels(32), tokens(family)
    for graph, inputs, wanted in (
        (image_graph, images, stock_images(stock, images)),
        (text_graph, ids, stock_texts(stock, ids)),
    ):
        assert (run(graph(config, tensors, Numerics(np.float16), 18), inputs) * wanted).sum(axis=1).min() > 0.999


@pytest.mark.parametrize("family", FAMILIES)
def test_random_texts_are_ones_that_the_tokenizer_could_make(family: str) -> None:
    model = stock_model(family)
    assert model.config.text_config.vocab_size == VOCAB
    tower = {"width": 8, "head_dim": 4, "heads": (2,), "mlp": (8,)}
    for pooling, attention in (("end", "causal"), ("largest", "causal"), ("last", "full"), ("first", "masked")):
        text = {**tower, "vocab": 9, "context": 6, "eos_token_id": 49407, "pooling": pooling, "attention": attention}
        image = {**tower, "image_size": 8, "patch": 4}
        config = DualEncoderConfig.model_validate({"embed_dim": 8, "image": image, "text": text})
        ids = random_inputs(config, "text", 8)
        assert ids.min() >= 0 and ids.max() < 9


@pytest.mark.parametrize(
    ("family", "changes", "what"),
    [
        ("siglip", {"model_type": "siglip2"}, "variable image sizes"),
        ("siglip", {"model_type": "flava"}, "a 'flava' model"),
        ("siglip", {"vision_config.vision_use_head": False}, "no pooling head"),
        ("siglip", {"vision_config.num_channels": 1}, "images of 1 channels"),
        ("siglip", {"text_config.projection_size": 20}, "images become 64 channels and texts 20"),
        ("clip", {"text_config.hidden_act": "relu"}, "activation 'relu'"),
        ("clip", {"vision_config.num_attention_heads": 5}, "5 heads do not share 64 channels"),
        ("clip", {"text_config.num_attention_heads": 0}, "0 heads do not share 64 channels"),
        ("clip", {"vision_config.patch_size": 40}, "image_size 32 holds no patch of 40 pixels"),
        ("clip", {"vision_config.hidden_size": "wide"}, "cannot be read"),
        ("clip", {"text_config.eos_token_id": None}, "text.eos_token_id"),
        ("chinese_clip", {"text_config.position_embedding_type": "relative_key"}, "relative_key positions"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(
    family: str, changes: dict[str, Any], what: str, tmp_path: Path
) -> None:
    write_family(tmp_path, family)
    stated = json.loads((tmp_path / "config.json").read_text())
    for place, value in changes.items():
        *outer, key = place.split(".")
        (stated[outer[0]] if outer else stated)[key] = value
    (tmp_path / "config.json").write_text(json.dumps(stated))
    with pytest.raises(MMCompressError) as caught:
        config_from_hugging_face(tmp_path)
    assert what in caught.value.what


def test_a_model_of_no_stock_class_says_so_beside_its_weights(tmp_path: Path) -> None:
    write_family(tmp_path / "teacher", "siglip")
    model = dual_encoder_from_hugging_face(tmp_path / "teacher")
    image = model.config.image.model_copy(update={"heads": (4, 3)})
    save_checkpoint(DualEncoder(model.config.model_copy(update={"image": image})), _folder(tmp_path / "pruned"))
    assert "the blocks of its image tower differ" in (tmp_path / "pruned" / "README.md").read_text()
    clip = config_from_hugging_face(_clip(tmp_path / "clip"))
    mixed = model.config.model_copy(update={"image": clip.image, "embed_dim": 64})
    save_checkpoint(DualEncoder(mixed), _folder(tmp_path / "mixed"))
    assert "are of two families" in (tmp_path / "mixed" / "README.md").read_text()
    assert not (tmp_path / "mixed" / "config.json").exists()


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _clip(path: Path) -> Path:
    write_family(path, "clip")
    return path
