"""Towers that deepen in training: which blocks a step passes, and what the new ones begin as."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from small_model import random_pixels, random_tokens, small_model
from tiny_conv import conv_model

from mmcompress.compress.train.deepening import deepen, share_within
from mmcompress.config import DistillConfig, TrainConfig
from mmcompress.transformer import Block

NEEDED: dict[type[TrainConfig] | type[DistillConfig], dict[str, object]] = {
    TrainConfig: {"data": {"train": "demo:train"}},
    DistillConfig: {"data": {"train": "demo:train"}, "teacher": {"source": "demo:teacher"}},
}


def test_a_step_passes_every_second_block_and_then_all() -> None:
    model = small_model().train()
    passed: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, Block):
            module.register_forward_hook(lambda *_, name=name: passed.append(name))

    def seen(done: float) -> list[str]:
        passed.clear()
        deepen(model, done, 0.5)
        model(random_pixels(2), random_tokens(2))
        return passed

    depths = {"image": model.config.image.depth, "text": model.config.text.depth}
    every = [f"{tower}.blocks.{index}" for tower, depth in depths.items() for index in range(depth)]
    second = [f"{tower}.blocks.{index}" for tower, depth in depths.items() for index in range(0, depth, 2)]
    assert seen(0.0) == second and seen(0.49) == second and second != every
    assert seen(0.5) == every


def test_the_deeper_tower_begins_as_the_equal_of_the_shallow_one() -> None:
    model = small_model().train()
    pixels = random_pixels(2)
    with torch.no_grad():
        deepen(model, 0.0, 0.5)
        shallow = model.encode_image(pixels)
        deepen(model, 0.5, 0.5)
        deep = model.encode_image(pixels)
    assert torch.allclose(shallow, deep, atol=1e-6)
    first, new = model.image.blocks[0], model.image.blocks[1]
    assert torch.equal(first.qkv.weight, new.qkv.weight) and torch.equal(first.fc1.weight, new.fc1.weight)
    assert not new.out.weight.any() and not new.fc2.weight.any() and first.out.weight.any()


def test_new_blocks_learn_and_those_that_wait_do_not() -> None:
    model = small_model().train()
    for done, learns in ((0.0, False), (0.5, True)):
        model.zero_grad(set_to_none=True)
        deepen(model, done, 0.5)
        model.encode_image(random_pixels(2))[:, 0].sum().backward()
        gradient = model.image.blocks[1].out.weight.grad
        assert (gradient is not None and bool(gradient.any())) is learns


@pytest.mark.parametrize(("share", "steps", "found"), [(0.5, 1, 0.0), (0.5, 2, 0.5), (0.9, 9, 0.0), (0.9, 10, 0.9)])
def test_the_last_step_passes_all_blocks(share: float, steps: int, found: float) -> None:
    assert share_within(share, steps) == found


def test_an_evaluation_passes_all_blocks() -> None:
    model = small_model()
    whole = model.eval().encode_image(random_pixels(2))
    model.image.every = 2
    assert torch.equal(model.encode_image(random_pixels(2)), whole)


def test_a_kept_text_tower_and_convolutions_stay_as_they_are() -> None:
    kept, convolutional = small_model(), conv_model()
    kept.text.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in kept.text.state_dict().items()}
    deepen(kept, 0.0, 0.5)
    deepen(convolutional, 0.0, 0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in kept.text.state_dict().items())
    assert kept.text.every == 1 and kept.image.every == 2 and convolutional.text.every == 2


@pytest.mark.parametrize("source", ["inherit:0.5", "mnv4-s-64", "timm/mobilenetv4_conv_medium.e500_r224_in1k"])
def test_what_is_no_preset_of_vits_is_refused(source: str) -> None:
    for config in (TrainConfig, DistillConfig):
        given = {**NEEDED[config], "student": {"source": source}, "deepening": 0.5}
        with pytest.raises(ValidationError, match="deepening is of ViT presets"):
            config.model_validate(given)
    with pytest.raises(ValidationError, match="student is nothing"):
        DistillConfig.model_validate({**NEEDED[DistillConfig], "deepening": 0.5})
