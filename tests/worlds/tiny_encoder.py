"""A small random dual encoder and batches for it."""

from __future__ import annotations

import torch

from mmcompress.architecture import DualEncoderConfig
from mmcompress.compress.int8.samples import Captioned
from mmcompress.model import DualEncoder, initialize


def encoder(depth: int = 2, seed: int = 0) -> DualEncoder:
    tower = {"width": 32, "head_dim": 16, "heads": (2,) * depth, "mlp": (64,) * depth}
    config = DualEncoderConfig.model_validate(
        {
            "embed_dim": 16,
            "image": {**tower, "image_size": 16, "patch": 8},
            "text": {**tower, "vocab": 20, "context": 6, "eos_token_id": 19},
        }
    )
    model = initialize(DualEncoder(config), seed).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter += 0.3 * torch.randn_like(parameter)
            elif ".blocks." in name:
                parameter *= 2
    return model


def captioned(batches: int = 4, size: int = 16, seed: int = 0) -> list[Captioned]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(batches):
        tokens = torch.randint(0, 19, (size, 6), generator=generator)
        tokens[torch.arange(size), torch.randint(1, 6, (size,), generator=generator)] = 19
        found.append(Captioned(torch.randn(size, 3, 16, 16, generator=generator), tokens))
    return found
