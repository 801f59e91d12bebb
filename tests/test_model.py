"""Our dual encoder against transformers.CLIPModel, and its form on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPModel

from mmcompress.architecture import DualEncoderConfig
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.huggingface import dual_encoder_from_checkpoint, dual_encoder_from_hugging_face, save_checkpoint
from mmcompress.model import DualEncoder, initialize
from mmcompress.transformer import Block

SHAPES = [(64, 2, 2, 128, 32, 8), (96, 3, 3, 200, 48, 16), (128, 2, 2, 512, 64, 8), (192, 6, 4, 768, 112, 14)]


def reference(folder: Path, shape: tuple[int, ...], activation: str, eos: int) -> CLIPModel:
    width, heads, depth, mlp, size, patch = shape
    tower = {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_hidden_layers": depth,
        "intermediate_size": mlp,
        "hidden_act": activation,
        "projection_dim": 48,
    }
    text = {
        "vocab_size": 100,
        "max_position_embeddings": 20,
        "eos_token_id": eos,
        "bos_token_id": 98,
        "pad_token_id": 1,
    }
    vision = {"image_size": size, "patch_size": patch}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(projection_dim=48, vision_config=tower | vision, text_config=tower | text)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # biases and gains start at 0 and 1 and would hide
    model.save_pretrained(folder)
    return model


def captions(eos: int) -> torch.Tensor:
    tokens = torch.randint(3, 97, (5, 20))
    tokens[:, 0] = 98
    for row, length in enumerate((3, 7, 12, 19, 20)):
        tokens[row, length - 1] = 99
        tokens[row, length:] = 1
    return tokens


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_image_tower_matches_transformers(tmp_path: Path, shape: tuple[int, ...], activation: str) -> None:
    expected = reference(tmp_path, shape, activation, 99)
    pixels = torch.randn(5, 3, shape[4], shape[4])
    features = torch.nn.functional.normalize(expected.get_image_features(pixels), dim=-1)
    ours = dual_encoder_from_hugging_face(tmp_path).encode_image(pixels)
    assert (ours - features).abs().max() <= 1e-5


@pytest.mark.parametrize("eos", [2, 99], ids=["legacy", "first-eos"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@torch.no_grad()
def test_text_tower_matches_transformers(tmp_path: Path, activation: str, eos: int) -> None:
    expected = reference(tmp_path, SHAPES[1], activation, eos)
    tokens = captions(eos)
    features = torch.nn.functional.normalize(expected.get_text_features(tokens), dim=-1)
    ours = dual_encoder_from_hugging_face(tmp_path).encode_text(tokens)
    assert (ours - features).abs().max() <= 1e-5


@torch.no_grad()
def test_saved_checkpoint_loads_in_transformers(tmp_path: Path) -> None:
    reference(tmp_path, SHAPES[0], "gelu", 99)
    ours = dual_encoder_from_hugging_face(tmp_path)
    (tmp_path / "again").mkdir()
    save_checkpoint(ours, tmp_path / "again")
    loaded = CLIPModel.from_pretrained(tmp_path / "again").eval()
    pixels = torch.randn(2, 3, 32, 32)
    features = torch.nn.functional.normalize(loaded.get_image_features(pixels), dim=-1)
    torch.testing.assert_close(ours.encode_image(pixels), features, atol=1e-6, rtol=0)
    assert loaded.logit_scale == ours.logit_scale


def test_pruned_shapes_survive_the_disk(tmp_path: Path) -> None:
    config = tiny()
    config = config.model_copy(update={"image": config.image.model_copy(update={"heads": (1, 2), "mlp": (32, 96)})})
    model = initialize(DualEncoder(config), 0).eval()
    save_checkpoint(model, tmp_path)
    assert not (tmp_path / "config.json").exists(), "no Hugging Face config can say this"
    loaded = dual_encoder_from_checkpoint(tmp_path, config)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_counts_match_torch() -> None:
    config = tiny()
    model = DualEncoder(config)
    assert config.params == sum(p.numel() for p in model.parameters())
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        x = model.image.enter(torch.randn(1, 3, 32, 32))
        for block in model.image.blocks:
            x = block(x, causal=False)
        model.image.leave(x[:, :1])
    assert counter.get_total_flops() == 2 * config.macs


def test_loading_names_the_first_tensor_that_differs(tmp_path: Path) -> None:
    save_checkpoint(initialize(DualEncoder(tiny()), 0), tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    save_file({k: v for k, v in tensors.items() if k != "visual_projection.weight"}, weights)
    with pytest.raises(CorruptInputError, match=r"'visual_projection\.weight' is missing"):
        dual_encoder_from_hugging_face(tmp_path)
    save_file({**tensors, "text_projection.weight": torch.zeros(3, 3)}, weights)
    with pytest.raises(CorruptInputError, match=r"has shape \(3, 3\), expected \(32, 64\)"):
        dual_encoder_from_hugging_face(tmp_path)
    save_file({**tensors, "stranger": torch.zeros(1)}, weights)
    with pytest.raises(CorruptInputError, match="unexpected tensor 'stranger'"):
        dual_encoder_from_hugging_face(tmp_path)
    weights.write_bytes(b"\x10" * 100)
    with pytest.raises(CorruptInputError, match="is damaged"):
        dual_encoder_from_hugging_face(tmp_path)


def test_other_families_and_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UsageError, match="'bert' model"):
        dual_encoder_from_hugging_face(tmp_path)
    save_checkpoint(initialize(DualEncoder(tiny()), 0), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.bin")
    with pytest.raises(UsageError) as caught:
        dual_encoder_from_hugging_face(tmp_path)
    assert caught.value.hint.endswith("model.safetensors or pytorch_model.bin")


def tiny() -> DualEncoderConfig:
    tower = {"width": 64, "head_dim": 32, "heads": (2, 2), "mlp": (128, 128)}
    return DualEncoderConfig.model_validate(
        {
            "embed_dim": 32,
            "image": {**tower, "image_size": 32, "patch": 8},
            "text": {**tower, "vocab": 50, "context": 12, "eos_token_id": 49},
        }
    )


@pytest.mark.parametrize("causal", [False, True])
def test_a_block_for_one_token_equals_that_token_of_the_whole(causal: bool) -> None:
    config = tiny().image
    block = Block(config, 0).eval()
    x, ends = torch.randn(3, 7, config.width), torch.tensor([0, 3, 6])
    with torch.inference_mode():
        whole = block(x, causal)
        torch.testing.assert_close(block(x, causal, ends)[:, 0], whole[torch.arange(3), ends], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_neither_written_nor_read(tmp_path: Path, value: float) -> None:
    sizes = tiny()
    model = initialize(DualEncoder(sizes), 0)
    save_checkpoint(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["visual_projection.weight"][1, 2] = value
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CorruptInputError, match=r"tensor 'visual_projection\.weight' has numbers that are NaN or inf"):
        dual_encoder_from_checkpoint(tmp_path, sizes)
    with torch.no_grad():
        model.image.projection.weight[1, 2] = value
    (tmp_path / "new").mkdir()
    with pytest.raises(UsageError, match=r"'visual_projection\.weight' became NaN or infinite"):
        save_checkpoint(model, tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


def test_weights_that_float16_cannot_hold_are_not_written(tmp_path: Path) -> None:
    model = initialize(DualEncoder(tiny()), 0)
    with torch.no_grad():
        model.logit_scale.fill_(1e5)
    with pytest.raises(UsageError, match="'logit_scale' became NaN or infinite"):
        save_checkpoint(model, tmp_path, torch.float16)
