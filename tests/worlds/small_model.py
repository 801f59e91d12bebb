"""A dual encoder of two blocks a tower with random weights, random inputs, and what it makes of them."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcompress.architecture import DualEncoderConfig
from mmcompress.model import DualEncoder, initialize

END = 49


def small_model(blocks: int = 2) -> DualEncoder:
    tower = {"width": 64, "head_dim": 16, "heads": (4,) * blocks, "mlp": (128,) * blocks}
    config = DualEncoderConfig.model_validate(
        {
            "embed_dim": 32,
            "image": {**tower, "image_size": 32, "patch": 8},
            "text": {**tower, "vocab": 50, "context": 12, "eos_token_id": END},
        }
    )
    return initialize(DualEncoder(config), 0).eval()


def random_pixels(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def random_tokens(count: int, seed: int = 0) -> Tensor:
    """Texts that end somewhere, with rubbish behind the end."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, END, (count, 12), generator=generator)
    return tokens.scatter(1, torch.randint(2, 12, (count, 1), generator=generator), END)


@torch.no_grad()
def outputs(model: DualEncoder, pixels: Tensor, tokens: Tensor) -> Tensor:
    return torch.cat([model.encode_image(pixels), model.encode_text(tokens)])
