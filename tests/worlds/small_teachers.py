"""Small random models of several families with their own kinds of tokenizers and processors, and what they embed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from small_tokenizers import CONTEXTS, FAMILIES
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

SIDE = 32
_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_SQUARE = {"height": SIDE, "width": SIDE}
_PROCESSORS: dict[str, dict[str, Any]] = {
    "siglip": {"image_processor_type": "SiglipImageProcessor", "size": _SQUARE, "resample": 2},
    "chinese_clip": {"image_processor_type": "ChineseCLIPImageProcessor", "size": _SQUARE, "do_center_crop": False},
}
_CLIP = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": SIDE}, "crop_size": SIDE}


def write_small_teacher(folder: Path, family: str) -> Path:
    """A family of `small_tokenizers.FAMILIES`, with weights large enough for every token and pixel to matter."""
    folder.mkdir(parents=True, exist_ok=True)
    FAMILIES[family](folder)
    stated = AutoConfig.from_pretrained(folder)
    vocab = len(AutoTokenizer.from_pretrained(folder))
    config = stated.to_dict()
    config["text_config"] |= {**_TOWER, "vocab_size": vocab, "projection_size": 32, "project_dim": 32}
    config["vision_config"] |= {**_TOWER, "image_size": SIDE, "patch_size": 8, "projection_dim": 24}
    if stated.model_type != "siglip":
        config["projection_dim"] = config["text_config"]["projection_dim"] = 24
    if family in ("clip", "long clip"):
        config["text_config"] |= {"eos_token_id": vocab - 1, "bos_token_id": vocab - 2, "pad_token_id": vocab - 1}
    torch.manual_seed(0)
    model = AutoModel.from_config(type(stated).from_dict(config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("logit_"):
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.logit_scale.fill_(4.2)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_PROCESSORS.get(stated.model_type, _CLIP)))
    return folder


def embedded_by_transformers(folder: Path, family: str, images: list[Image.Image], texts: list[str]) -> list[Tensor]:
    """[(N, D), (M, D)] of unit norm: the model's forward pass on what the folder's own classes prepare."""
    model = AutoModel.from_pretrained(folder).eval()
    pixels = AutoImageProcessor.from_pretrained(folder, use_fast=False)(images=images, return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(folder)(
        texts, padding="max_length", truncation=True, max_length=CONTEXTS[family], return_tensors="pt"
    )
    inputs = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
    with torch.inference_mode():
        outputs = model(pixel_values=pixels["pixel_values"], **inputs)
    return [normalize(outputs[f"{tower}_embeds"], dim=-1) for tower in ("image", "text")]
