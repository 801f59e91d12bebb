"""A narrower stream: exact where the stream has the room, and as near as least squares allows where it has not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_model import outputs, random_pixels, random_tokens, small_model
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel

from mmcompress.compress.prune.prune import uniform_sizes
from mmcompress.compress.prune.shrink import TowerName, shrunk
from mmcompress.compress.prune.width import narrowed, narrowing, rounded_width, spread
from mmcompress.config import PruneConfig, validated
from mmcompress.errors import UsageError
from mmcompress.families import config_from_hugging_face
from mmcompress.huggingface import dual_encoder_from_checkpoint, save_checkpoint
from mmcompress.model import DualEncoder

PIXELS, TOKENS = random_pixels(48), random_tokens(48)
NEW = (random_pixels(16, 1), random_tokens(16, 1))
TOWERS: tuple[TowerName, ...] = ("image", "text")
GONE = 17
"""Channels 47 to 63."""


def both(model: DualEncoder, width: int, refitted: bool = True) -> DualEncoder:
    for name in TOWERS:
        model = narrowed(model, name, width, list((PIXELS if name == "image" else TOKENS).split(20)), refitted)
    return model


def shaken(model: DualEncoder) -> DualEncoder:
    """LayerNorms and biases that do something."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def with_dead_channels(model: DualEncoder) -> DualEncoder:
    """Nothing writes to the last channels, so the stream is zero there; LayerNorm still counts them.

    The image tower's first LayerNorm has one gain for all channels, else it is no map of the narrow stream's.
    """
    with torch.no_grad():
        for tower in (model.image, model.text):
            for block in tower.blocks:
                for linear in (block.out, block.fc2):
                    linear.weight[-GONE:] = 0
                    linear.bias[-GONE:] = 0
            tower.positions[:, -GONE:] = 0
        model.text.tokens.weight[:, -GONE:] = 0
        model.image.norm_pre.weight.fill_(1.3)
        for tensor in (model.image.positions, model.image.class_token, model.image.patch.weight.movedim(0, -1)):
            kept = tensor[..., :-GONE]  # of mean zero, so that the first LayerNorm leaves the others at zero
            kept -= kept.mean(dim=-1, keepdim=True)
            tensor[..., -GONE:] = 0
        model.image.norm_pre.bias[-GONE:] = 0
    return model


def test_the_whole_width_gives_the_model_itself() -> None:
    model = small_model()
    assert both(model, 64) is model
    assert rounded_width(model.config.image, 1.0, 48) == 64


def test_dead_channels_go_and_nothing_changes() -> None:
    """47 live channels fill 47 dimensions, which a stream of 48 channels of mean zero has: exact, eps included."""
    model = with_dead_channels(shaken(small_model()))
    narrow = both(model, 48, refitted=False)
    assert narrow.config.image.width == narrow.config.text.width == 48 and narrow.config.image.heads == (4, 4)
    torch.testing.assert_close(outputs(narrow, *NEW), outputs(model, *NEW), atol=2e-5, rtol=0)
    torch.testing.assert_close(outputs(both(model, 48), *NEW), outputs(model, *NEW), atol=2e-4, rtol=0)
    assert (outputs(both(model, 32, refitted=False), *NEW) - outputs(model, *NEW)).abs().max() > 1e-2


def test_layer_norm_of_the_narrow_stream_is_the_mapped_layer_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(11, 40, dtype=torch.float64, generator=generator)
    x = 1e-2 * torch.randn(100, 11, dtype=torch.float64, generator=generator) @ mixing  # eps counts
    normed = F.layer_norm(x, (40,), eps=1e-5)
    down = narrowing(normed.T @ normed, 12)
    torch.testing.assert_close(F.layer_norm(x @ down.T, (12,), eps=1e-5), normed @ down.T)
    torch.testing.assert_close(normed @ down.T @ down * (40 / 12), normed)


def test_the_spread_is_orthonormal_and_of_mean_zero() -> None:
    s = spread(24)
    torch.testing.assert_close(s.T @ s, torch.eye(23, dtype=torch.float64))
    torch.testing.assert_close(s.sum(dim=0), torch.zeros(23, dtype=torch.float64))


@pytest.mark.parametrize("width", [32, 48])
def test_a_refit_brings_the_outputs_nearer(width: int) -> None:
    model = shaken(small_model())
    dense = outputs(model, PIXELS, TOKENS)
    plain, refitted = (outputs(both(model, width, r), PIXELS, TOKENS) for r in (False, True))
    assert (refitted - dense).norm() < 0.8 * (plain - dense).norm()


def test_width_and_heads_of_the_same_share_load_in_transformers(tmp_path: Path) -> None:
    model = shaken(small_model())
    for name, batch in (("image", PIXELS), ("text", TOKENS)):
        config = getattr(model.config, name)
        model = narrowed(model, name, rounded_width(config, 0.75, None), [batch], True)
        model = shrunk(model, name, uniform_sizes(config, 0.75, 0.5, 32), [batch], {}, True)
    save_checkpoint(model, tmp_path)
    assert config_from_hugging_face(tmp_path) == model.config
    theirs = CLIPModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        found = theirs(input_ids=NEW[1].long(), pixel_values=NEW[0])
    torch.testing.assert_close(
        torch.cat([found.image_embeds, found.text_embeds]), outputs(model, *NEW), atol=2e-5, rtol=0
    )


def test_width_alone_is_saved_in_our_form_and_loads_strictly(tmp_path: Path) -> None:
    narrow = both(small_model(), 48)
    save_checkpoint(narrow, tmp_path)
    assert not (tmp_path / "config.json").exists(), "4 heads of 16 channels do not fill 48: no CLIPConfig says that"
    loaded = dual_encoder_from_checkpoint(tmp_path, narrow.config)
    assert torch.equal(outputs(loaded, *NEW), outputs(narrow, *NEW))
    assert narrow.config.params == sum(p.numel() for p in narrow.parameters())


@pytest.mark.parametrize(
    ("share", "multiple", "expected"), [(0.75, None, 48), (0.75, 32, 64), (0.5, 32, 32), (0.01, None, 16), (0.7, 1, 45)]
)
def test_the_width_is_rounded_to_its_multiple(share: float, multiple: int | None, expected: int) -> None:
    assert rounded_width(small_model().config.image, share, multiple) == expected


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"width": 0}, "width is 0: Input should be greater than 0"),
        ({"width": 0.5, "target_macs": 0.5}, "width and target_macs exclude each other: prune twice, the width first"),
    ],
)
def test_a_wrong_width_is_named(wrong: dict[str, object], what: str) -> None:
    with pytest.raises(UsageError) as caught:
        validated(PruneConfig, {"data": {}, **wrong}, "mmcompress prune")
    assert what in caught.value.what


def test_the_image_tower_enters_near_the_mapped_stream() -> None:
    """Its first LayerNorm has a gain for every channel, which no map of channels keeps: near, not equal."""
    model = shaken(small_model())
    dense: Tensor = model.encode_image(PIXELS).detach()
    narrow = narrowed(model, "image", 63, [PIXELS], False)
    with torch.no_grad():
        assert (narrow.encode_image(PIXELS) * dense).sum(dim=1).min() > 0.98
