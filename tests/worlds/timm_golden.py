"""A tiny MobileNetV4 with a block of every kind, and what timm computes with it.

`timm-golden.json` was made by this file in an environment with timm 1.0.31 and torch 2.14.1:

    python tests/worlds/timm_golden.py

It holds the names and shapes of timm's tensors and its pooled features of two images. Weights and images are drawn by
numpy's legacy generator, whose stream never changes, so they need not be stored.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).with_name("timm-golden.json")
SIDE = 40
BLOCKS = [
    ["cn_r1_k3_s2_c8"],
    ["er_r1_k3_s2_e2_c8", "er_r1_k3_s1_e3_c8"],
    ["uir_r1_a3_k5_s2_e2_c16", "uir_r1_a0_k3_s1_e2_c16", "uir_r1_a5_k0_s1_e1_c16"],
    ["mqa_r1_k3_h3_s1_v2_d8_c16", "mqa_r1_k3_h2_s1_d8_c16", "uir_r1_a0_k0_s1_e2_c16"],
    ["uir_r1_a3_k0_s2_e2_c24"],
    ["cn_r1_k1_s1_c32"],
]
STEM, HEAD = 8, 24


def drawn(shapes: dict[str, list[int]]) -> dict[str, NDArray[np.float32]]:
    """A tensor of each name, far from what an untrained network has."""
    generator = np.random.RandomState(0)
    tensors = {}
    for name, shape in shapes.items():
        values = generator.standard_normal(shape)
        if name.endswith("running_var"):
            values = 0.5 + np.abs(values)
        elif len(shape) == 1:
            values = 0.3 * values + (0.0 if name.endswith(("bias", "running_mean")) else 1.0)
        else:
            values = values / np.sqrt(np.prod(shape[1:]))
        tensors[name] = values.astype(np.float32)
    return tensors


def images() -> NDArray[np.float32]:
    """(2, 3, SIDE, SIDE)"""
    return np.random.RandomState(1).standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)


def _write() -> None:
    import timm
    import torch
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.mobilenetv3 import MobileNetV3

    model = MobileNetV3(
        decode_arch_def(BLOCKS),
        num_classes=0,
        stem_size=STEM,
        num_features=HEAD,
        head_bias=False,
        head_norm=True,
        layer_scale_init_value=1e-5,
    ).eval()
    state = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    shapes = {name: [*tensor.shape] for name, tensor in state.items()}
    tensors = {name: torch.from_numpy(values) for name, values in drawn(shapes).items()}
    model.load_state_dict(tensors, strict=False)
    with torch.no_grad():
        features = model(torch.from_numpy(images())).tolist()
    written = {"timm": timm.__version__, "shapes": shapes, "features": features}
    FILE.write_text(json.dumps(written) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _write()
