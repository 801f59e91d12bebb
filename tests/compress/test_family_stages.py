"""What compresses a CLIP compresses the other families: inherit, prune, quantize, train the integers, export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_world import CAPTIONS, write_squares
from family_folders import EOS, FAMILIES, pixels, stock_images, stock_texts, tokens, write_family, write_world
from onnx import TensorProto, load
from torch.nn.functional import normalize
from transformers import AutoModel

from mmcompress.artifact import Artifact
from mmcompress.compress.prune.harm import measured_errors
from mmcompress.compress.prune.importance import magnitudes
from mmcompress.compress.prune.prune import towers_of
from mmcompress.compress.prune.semistructured import is_two_four, sparsified
from mmcompress.compress.prune.shrink import TowerName, counted, shrunk
from mmcompress.compress.prune.width import narrowed
from mmcompress.compress.train.inherit import inherited
from mmcompress.config import DataConfig, PruneConfig
from mmcompress.errors import UsageError
from mmcompress.huggingface import (
    dual_encoder_from_checkpoint,
    dual_encoder_from_hugging_face,
    save_checkpoint,
    with_tokenizer,
)
from mmcompress.int8 import linear_modules
from mmcompress.measure.bisect.document import BisectDocument
from mmcompress.model import DualEncoder
from mmcompress.pipeline import standalone
from mmcompress.runtime.backends import graph_for
from mmcompress.runtime.encoder import Encoder
from mmcompress.runtime.tokenize import load_tokenizer, text_processing, tokenize

TRAINED = {"optimizer.steps": 2, "optimizer.batch": 8}
TOWERS: tuple[TowerName, ...] = ("image", "text")


def inputs_of(model: DualEncoder, name: str, count: int = 48) -> list[torch.Tensor]:
    """Batches of one tower's samples."""
    return list((pixels(32, count) if name == "image" else torch.from_numpy(tokens("siglip", count))).split(20))


@torch.no_grad()
def outputs(model: DualEncoder, name: str, batches: list[torch.Tensor]) -> torch.Tensor:
    encode = model.encode_image if name == "image" else model.encode_text
    return torch.cat([encode(batch) for batch in batches])


@pytest.fixture
def siglip(tmp_path: Path) -> DualEncoder:
    write_family(tmp_path / "siglip", "siglip")
    return dual_encoder_from_hugging_face(tmp_path / "siglip")


@pytest.mark.parametrize("name", TOWERS)
def test_units_that_do_nothing_cost_nothing_in_siglip(siglip: DualEncoder, name: TowerName) -> None:
    with torch.no_grad():
        for block in getattr(siglip, name).blocks:
            block.out.weight[:, 16:32] = 0  # the second of four heads
            block.fc2.weight[:, 32:96] = 0
    batches = inputs_of(siglip, name)
    pruned = shrunk(siglip, name, [(3, 64)] * 2, batches, magnitudes(siglip), False)
    assert getattr(pruned.config, name).heads == (3, 3) and pruned.config.params < siglip.config.params
    torch.testing.assert_close(outputs(pruned, name, batches), outputs(siglip, name, batches), atol=1e-5, rtol=0)


def test_every_token_counts_where_all_are_read(siglip: DualEncoder) -> None:
    assert counted(siglip.image, pixels(32, 3)).tolist() == [[1.0] * 16] * 3
    text = counted(siglip.text, torch.from_numpy(tokens("siglip", 3)))
    assert text.tolist() == [[1.0] * 13 + [7.0]] * 3, "the last token is read, and sees all of the context"


@pytest.mark.parametrize("name", TOWERS)
def test_channels_that_nothing_writes_go_exactly(siglip: DualEncoder, name: TowerName, tmp_path: Path) -> None:
    """No LayerNorm stands before SigLIP's blocks, so its stream is mapped exactly; the head keeps its width."""
    tower: Any = getattr(siglip, name)
    with torch.no_grad():
        for block in tower.blocks:
            for linear in (block.out, block.fc2):
                linear.weight[-17:], linear.bias[-17:] = 0, 0
        tower.positions[:, -17:] = 0
        table = tower.patch.weight.movedim(0, -1) if name == "image" else tower.tokens.weight
        table[..., -17:] = 0
        if name == "image":
            tower.patch.bias[-17:] = 0
    batches = inputs_of(siglip, name)
    narrow = narrowed(siglip, name, 48, batches, False)
    assert getattr(narrow.config, name).width == 48 and narrow.config.embed_dim == 64
    torch.testing.assert_close(outputs(narrow, name, batches), outputs(siglip, name, batches), atol=2e-4, rtol=0)
    assert narrow.config.params == sum(p.numel() for p in narrow.parameters())
    save_checkpoint(narrow, tmp_path)
    again = dual_encoder_from_checkpoint(tmp_path, narrow.config)
    assert torch.equal(outputs(again, name, batches), outputs(narrow, name, batches))


def test_a_refit_of_a_narrow_siglip_brings_it_nearer(siglip: DualEncoder) -> None:
    for name in TOWERS:
        batches = inputs_of(siglip, name)
        dense = outputs(siglip, name, batches)
        plain, fitted = (outputs(narrowed(siglip, name, 32, batches, refit), name, batches) for refit in (False, True))
        assert (fitted - dense).norm() < 0.9 * (plain - dense).norm()


@pytest.mark.parametrize("name", TOWERS)
def test_harm_and_sparsity_run_through_attention_pooling(siglip: DualEncoder, name: TowerName) -> None:
    batches = inputs_of(siglip, name)
    errors = measured_errors(siglip, name, batches, {}, 32, True)
    assert len(errors) == 2 and all(e[0][4] == 0 and e[2] > 0 for e in errors)
    assert errors[0][1][32] > errors[0][1][96] > 0
    sparse = sparsified(siglip, name, batches)
    own = [linear for module, linear in sparse.linears() if module.startswith(name)]
    assert len(own) == 8 and all(is_two_four(linear.weight) for linear in own)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_post_norm_tower_is_left_alone(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_family(tmp_path, family)
    model, post = dual_encoder_from_hugging_face(tmp_path), family in ("chinese_clip", "altclip")
    assert [name for name, _ in model.linears()] == list(linear_modules(model.config))
    assert len(linear_modules(model.config)) == (8 if post else 16)
    student = inherited(model, 0.4, model.config.compressed, [])
    assert student.config.macs <= 0.4 * model.config.macs and (student.config.text == model.config.text) == post
    config = PruneConfig(data=DataConfig())
    assert towers_of(model.config, config) == (["image"] if post else ["image", "text"])
    assert ("stays as it is" in capsys.readouterr().err) == post
    if post:
        with pytest.raises(UsageError, match="is not pruned"):
            towers_of(model.config, config.model_copy(update={"towers": ("text",)}))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_squares(tmp_path_factory.mktemp("data")))


Made = Callable[[str], tuple[Path, dict[str, Artifact]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, data: str) -> Made:
    """Every stage from a family's folder to graphs, once a family."""
    done: dict[str, tuple[Path, dict[str, Artifact]]] = {}

    def make(family: str) -> tuple[Path, dict[str, Artifact]]:
        if family not in done:
            folder = tmp_path_factory.mktemp(family)
            teacher = write_world(folder / "teacher", family)
            given = {"data.train": data, "teacher.source": str(teacher), "student.source": "inherit:0.7", **TRAINED}
            stages = {"student": standalone.distill(folder / "s", given)}
            pruning = {"target_macs": 0.6, "samples": 16, "batch": 8}
            stages["pruned"] = standalone.prune(folder / "s", folder / "p", pruning)
            small = {"data.train": data, "samples": 16, "held": 16, "batch": 8, "max_drop": 1, "max_flips": 1}
            stages["int8"] = standalone.quantize(folder / "p", folder / "q", {**small, "smooth": [0.5]})
            graphs = {"precisions": ("fp32", "fp16", "int8")}
            stages["onnx"] = standalone.export(str(folder / "q"), folder / "onnx", graphs)
            done[family] = teacher, stages
        return done[family]

    return make


@pytest.mark.parametrize("family", ["siglip", "chinese_clip", "altclip"])
def test_every_stage_runs_on_a_family(family: str, made: Made, data: str) -> None:
    teacher, stages = made(family)
    before, after = (stages[name].model for name in ("student", "pruned"))
    assert after.macs <= 0.6 * before.macs
    tokenizer = stages["student"].tokenizer
    assert tokenizer is not None
    source = with_tokenizer(dual_encoder_from_hugging_face(teacher), tokenizer)
    if family != "siglip":
        assert after.text == source.config.text
        kept = dual_encoder_from_checkpoint(stages["int8"].path, after)
        for name, tensor in source.text.state_dict().items():
            torch.testing.assert_close(kept.text.state_dict()[name], tensor, atol=1e-6, rtol=0)
    facts = stages["onnx"].manifest.facts
    assert facts["logit_scale"] == pytest.approx(np.exp(4.5), rel=1e-5)
    assert facts["logit_bias"] == (-12.25 if family == "siglip" else None)
    differences = stages["onnx"].manifest.metrics["against_torch"]
    assert min(differences[f"{tower}-fp16.onnx"]["min_cosine"] for tower in TOWERS) > 0.999


@pytest.mark.parametrize("family", ["siglip", "altclip"])
def test_a_tower_without_integers_is_a_float_graph_by_its_name(family: str, made: Made, tmp_path: Path) -> None:
    _, stages = made(family)
    onnx = standalone.export(str(stages["int8"].path), tmp_path / "onnx", {"precisions": ("int8",)})
    kinds = {"fp16", "fp32"} if family == "altclip" else {"int8-signed", "int8-unsigned"}
    files = {f"image-int8-{kind}.onnx" for kind in ("signed", "unsigned")} | {f"text-{kind}.onnx" for kind in kinds}
    assert {graph.file for graph in onnx.manifest.graphs} == files
    for graph in onnx.manifest.graphs:
        types = {tensor.data_type for tensor in load(onnx.file(graph.file)).graph.initializer}
        assert (TensorProto.INT8 in types) == (graph.precision == "int8") == (graph.activations != "float")
    with Encoder.open(onnx, "onnxruntime", precision="int8") as encoder:
        assert encoder.precisions == {"image": "int8", "text": "fp32" if family == "altclip" else "int8"}
        assert encoder.texts(CAPTIONS[:2]).shape == (2, onnx.model.embed_dim)
    with pytest.raises(UsageError, match="has no text graph in fp8"):
        graph_for(onnx, "text", "onnxruntime", "fp8")


@pytest.mark.parametrize("family", ["siglip", "altclip"])
def test_the_delivered_graphs_embed_as_the_checkpoint(family: str, made: Made) -> None:
    _, stages = made(family)
    texts = [*CAPTIONS[:5], "a", "red " * 15]
    model = dual_encoder_from_checkpoint(stages["int8"].path, stages["int8"].model)
    with Encoder.open(stages["onnx"], "onnxruntime", precision="fp32") as encoder:
        found = encoder.texts(texts)
    processing = text_processing(stages["onnx"])
    ids = tokenize(load_tokenizer(stages["onnx"].file(processing.file)), texts, processing)
    with torch.no_grad():
        wanted = model.encode_text(torch.from_numpy(ids)).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("family", ["siglip", "altclip"])
def test_integers_are_trained_and_modules_bisected(family: str, made: Made, data: str, tmp_path: Path) -> None:
    _, stages = made(family)
    given = {"data.train": data, "samples": 16, "batch": 8, "max_drop": None, "max_flips": None, **TRAINED}
    trained = standalone.qat(stages["int8"].path, tmp_path / "qat", given)
    assert trained.manifest.facts["qat"]["trained"] is True
    onnx = stages["onnx"].path
    found = standalone.bisect(onnx, onnx, tmp_path / "b", {"data.test": data, "samples": 16, "precision": "int8"})
    document = BisectDocument.read(found.file("bisect.json"))
    assert {module.tower for module in document.modules} == {"image", "text"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_preset_of_any_teacher_opens_in_a_stock_class_and_has_its_scale(
    family: str, data: str, tmp_path: Path
) -> None:
    """XLM-R tokenizers end texts with id 2, which CLIPModel would take for the largest id: MetaClip2Model does not."""
    teacher = write_world(tmp_path / "teacher", family)
    given = {"data.train": data, "teacher.source": str(teacher), "student.source": "vit-t8-64", **TRAINED}
    student = standalone.distill(tmp_path / "student", given)
    assert student.model.text.pooling == "end"
    stock = AutoModel.from_pretrained(student.path).eval()
    assert stock.config.model_type == ("metaclip_2" if family in ("metaclip_2", "altclip") else "clip")
    ids, images = tokens(family), pixels(64)
    assert (2 if family in ("metaclip_2", "altclip") else EOS) in ids
    model = dual_encoder_from_checkpoint(student.path, student.model)
    assert model.logit_scale.item() == pytest.approx(4.5)
    with torch.no_grad():
        np.testing.assert_allclose(model.encode_text(torch.from_numpy(ids)), stock_texts(stock, ids), atol=1e-5)
        np.testing.assert_allclose(model.encode_image(images), stock_images(stock, images), atol=1e-5)


def test_a_kept_text_tower_brings_scale_and_bias_and_its_own_pooling(data: str, tmp_path: Path) -> None:
    teacher = write_world(tmp_path / "teacher", "siglip")
    given = {"data.train": data, "teacher.source": str(teacher), "student.source": "vit-t8-64", "text": "keep"}
    student = standalone.distill(tmp_path / "student", {**given, **TRAINED})
    model = dual_encoder_from_checkpoint(student.path, student.model)
    assert model.logit_bias is not None and model.logit_bias.item() == -12.25 and model.image.head is None
    ids = torch.from_numpy(tokens("siglip"))
    source = AutoModel.from_pretrained(teacher).eval()
    with torch.no_grad():
        expected = normalize(source.get_text_features(ids.long()), dim=-1)
    torch.testing.assert_close(model.encode_text(ids).detach(), expected, atol=1e-5, rtol=0)
    assert "two families" in (student.path / "README.md").read_text()
