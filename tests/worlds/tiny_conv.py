"""A convolutional image tower with a block of every kind, which `timm_golden.py` has in timm, and a model around it."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcompress.architecture import DualEncoderConfig
from mmcompress.convnet import ConvConfig
from mmcompress.convtower import BatchNorm
from mmcompress.model import DualEncoder, initialize


def uib(channels: int, hidden: int, start: int, middle: int, stride: int = 1) -> dict[str, object]:
    sizes = {"channels": channels, "hidden": hidden, "start": start, "middle": middle, "stride": stride}
    return {"kind": "uib", **sizes}


IMAGE = {
    "kind": "conv",
    "image_size": 40,
    "stem": 8,
    "stages": [
        [{"kind": "conv", "channels": 8, "kernel": 3, "stride": 2}],
        [
            {"kind": "fused", "channels": 8, "hidden": 16, "kernel": 3, "stride": 2},
            {"kind": "fused", "channels": 8, "hidden": 24, "kernel": 3},
        ],
        [uib(16, 16, 3, 5, 2), uib(16, 32, 0, 3), uib(16, 16, 5, 0)],
        [
            {"kind": "mqa", "heads": 3, "head_dim": 8, "kv_stride": 2},
            {"kind": "mqa", "heads": 2, "head_dim": 8},
            uib(16, 32, 0, 0),
        ],
        [uib(24, 32, 3, 0, 2)],
        [{"kind": "conv", "channels": 32, "kernel": 1}],
    ],
    "head": 24,
    "layer_scale": True,
}
TEXT = {
    "width": 32,
    "head_dim": 16,
    "heads": [2],
    "mlp": [64],
    "vocab": 50,
    "context": 12,
    "eos_token_id": 49,
    "pooling": "end",
}


def conv_config(**changes: object) -> DualEncoderConfig:
    return DualEncoderConfig.model_validate({"embed_dim": 16, "image": {**IMAGE, **changes}, "text": TEXT})


def conv_tower_config() -> ConvConfig:
    return ConvConfig.model_validate(IMAGE)


def conv_model(seed: int = 0, **changes: object) -> DualEncoder:
    """Random weights, with BatchNorms and layer scales far from where they begin."""
    model = initialize(DualEncoder(conv_config(**changes)), seed).eval()
    generator = torch.Generator().manual_seed(seed)

    def drawn(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, parameter in model.image.named_parameters():
            if name.endswith(".scale"):
                parameter.copy_(1 + 0.3 * drawn(parameter))
        for norm in model.image.modules():
            if isinstance(norm, BatchNorm):
                norm.weight.copy_(1 + 0.3 * drawn(norm.weight))
                norm.bias.copy_(0.3 * drawn(norm.bias))
                norm.mean.copy_(0.3 * drawn(norm.mean))
                norm.variance.copy_(0.5 + drawn(norm.variance).abs())
    return model


def conv_pixels(count: int, seed: int = 0, side: int = 40) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
