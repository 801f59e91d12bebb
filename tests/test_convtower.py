"""Convolutional towers against timm's numbers, torch's own layers, and documents of before they existed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from timm_golden import BLOCKS, FILE, HEAD, STEM, drawn, images
from tiny_conv import IMAGE, conv_config, conv_model, conv_pixels, conv_tower_config, uib
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmcompress.architecture import DualEncoderConfig
from mmcompress.compress.train.mobilenetv4 import STAGES, mobilenetv4
from mmcompress.convnames import conv_entries
from mmcompress.convtower import BatchNorm, Convolution, ConvTower
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.huggingface import dual_encoder_from_checkpoint, save_checkpoint
from mmcompress.tensorentry import read_entries

OLD = {
    "embed_dim": 8,
    "image": {
        "width": 16,
        "head_dim": 8,
        "heads": [2, 1],
        "mlp": [32, 24],
        "activation": "quick_gelu",
        "layer_norm_eps": 1e-05,
        "image_size": 16,
        "patch": 8,
        "head": None,
    },
    "text": {
        "width": 16,
        "head_dim": 8,
        "heads": [2],
        "mlp": [32],
        "activation": "quick_gelu",
        "layer_norm_eps": 1e-05,
        "vocab": 30,
        "context": 6,
        "eos_token_id": 29,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "pooling": "end",
        "attention": "causal",
        "norm": "pre",
        "final_norm": True,
        "projection_bias": False,
    },
    "sigmoid": False,
}
"""What a manifest of before convolutional towers says of its model: it is opened, and written, as it was."""


def test_manifests_of_before_are_the_same_documents() -> None:
    assert DualEncoderConfig.model_validate(OLD).model_dump(mode="json") == OLD


def test_a_convolutional_model_survives_its_document() -> None:
    config = conv_config()
    again = DualEncoderConfig.model_validate(config.model_dump(mode="json"))
    assert again == config
    assert again.image.groups()[0].units == 16


def test_another_kind_of_tower_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match=r"'mamba'.*'vit', 'conv'"):
        DualEncoderConfig.model_validate({**OLD, "image": {"kind": "mamba"}})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stages": [[uib(8, 8, 4, 0)]]}, r"stages\.0\.0\.uib\.start\n.*must be odd.*input_value=4"),
        ({"stages": [[uib(8, 8, 0, 0, 2)]]}, "has no stride"),
        ({"stages": [[]]}, "every stage a block"),
        ({"stages": [[{"kind": "dense", "channels": 8}]]}, "'dense'"),
        ({"image_size": 10**9}, r"image_size\n.*less than or equal to 4096"),
    ],
)
def test_blocks_that_are_none_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        conv_config(**changes)


def test_every_kind_of_block_equals_timm() -> None:
    golden = json.loads(FILE.read_text(encoding="utf-8"))
    config = conv_tower_config()
    assert (config.stem, config.head, len(config.stages)) == (STEM, HEAD, len(BLOCKS))
    entries = [*conv_entries(config)]
    assert {name for entry in entries for name in entry.theirs} == {*golden["shapes"]}
    tensors = {name: torch.from_numpy(values) for name, values in drawn(golden["shapes"]).items()}
    tower = ConvTower(config, 8).eval()
    assert tower.load_state_dict(read_entries(entries, tensors, "golden"), strict=False).missing_keys == [
        "projection.weight"
    ]
    features: list[torch.Tensor] = []
    tower.projection.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    with torch.no_grad():
        tower(torch.from_numpy(images()))
    torch.testing.assert_close(features[0], torch.tensor(golden["features"]), atol=1e-5, rtol=1e-5)


def test_sizes_are_those_of_the_modules() -> None:
    model = conv_model()
    assert model.config.params == sum(parameter.numel() for parameter in model.parameters())
    products = dict(model.products())
    convolutions = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert {n: m for n, m in products.items() if n.startswith("image.")} == convolutions
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model.encode_image(conv_pixels(1))
    assert model.config.macs == counter.get_total_flops() // 2
    for group in model.config.image.groups():
        units = {products[f"image.{name}"].out_channels for name in group.writers}  # type: ignore[union-attr]
        assert units == {products[f"image.{group.reader}"].in_channels}  # type: ignore[union-attr]


@pytest.mark.parametrize("variant", STAGES)
def test_presets_take_any_image_size(variant: str) -> None:
    for side in (33, 64, 96):
        config = mobilenetv4(variant, side, stem_stride=1)
        assert config.last_side == -(-side // 16)


def test_batch_norm_equals_torchs() -> None:
    own, theirs = BatchNorm(5, 1e-5), torch.nn.BatchNorm2d(5, momentum=1.0)
    x = torch.randn(6, 5, 3, 4, requires_grad=True)
    copy = x.detach().clone().requires_grad_()
    own.summed = lambda tensor: tensor  # the path of several processes, with one
    for norm, given in ((own, x), (theirs, copy)):
        norm(given).square().mul(torch.arange(5.0)[:, None, None]).sum().backward()
    torch.testing.assert_close(x.grad, copy.grad)
    torch.testing.assert_close(own.weight.grad, theirs.weight.grad)
    own.summed = None
    torch.testing.assert_close(own(x), theirs(x))
    own.mean, own.variance = theirs.running_mean, theirs.running_var
    torch.testing.assert_close(own.eval()(x), theirs.eval()(x))


def test_a_checkpoint_has_timms_names_and_comes_back(tmp_path: Path) -> None:
    model = conv_model()
    save_checkpoint(model, tmp_path)
    names = {*load_file(tmp_path / "model.safetensors")}
    assert {"vision_model.conv_stem.weight", "vision_model.blocks.2.0.dw_mid.bn.running_var"} <= names
    assert "its image tower is convolutional" in (tmp_path / "README.md").read_text()
    again = dual_encoder_from_checkpoint(tmp_path, model.config)
    torch.testing.assert_close(again.encode_image(conv_pixels(2)), model.encode_image(conv_pixels(2)), atol=0, rtol=0)


def test_the_first_tensor_that_differs_is_named(tmp_path: Path) -> None:
    model = conv_model()
    save_checkpoint(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "vision_model.conv_stem.weight": torch.zeros(8, 3, 5, 5)}, tmp_path / "model.safetensors")
    with pytest.raises(CorruptInputError, match=r"conv_stem.weight' has shape \(8, 3, 5, 5\), expected \(8, 3, 3, 3\)"):
        dual_encoder_from_checkpoint(tmp_path, model.config)
    del tensors["vision_model.blocks.3.0.attn.key.norm.running_mean"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CorruptInputError, match=r"attn.key.norm.running_mean' is missing"):
        dual_encoder_from_checkpoint(tmp_path, model.config)


def test_who_takes_transformers_alone_says_so() -> None:
    with pytest.raises(UsageError, match="prune takes vision transformers, and this image tower is convolutional"):
        conv_config().transformer_image("prune")


def test_untrained_towers_tell_images_apart() -> None:
    """He's variance keeps the signal: behind every ReLU in training the maps neither vanish nor explode."""
    model = conv_model().train()
    sizes = []
    for module in model.image.modules():
        if isinstance(module, Convolution) and module.relu:
            module.register_forward_hook(lambda _, __, out: sizes.append(out.std().item()))
    model.encode_image(conv_pixels(8))
    assert np.ptp(np.log(sizes)) < np.log(10)
    assert IMAGE["layer_scale"]
