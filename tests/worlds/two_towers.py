"""Small folders of transformers: any two towers as `VisionTextDualEncoderModel`, and single towers to pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    CLIPImageProcessor,
    CLIPVisionConfig,
    ConvNextConfig,
    ConvNextImageProcessor,
    ResNetConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTImageProcessor,
)

WORDS = ("a", "square", "of", "red", "green", "blue", "and", "photo", "the", "dog", "cat", *"0123456789.,!?'-")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
_BLOCKS = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "hidden_size": 32}
_SQUARE = {"image_size": 32, "patch_size": 8}


def vision_config(kind: str) -> Any:
    if kind == "vit":
        return ViTConfig(**_BLOCKS, **_SQUARE)
    if kind == "clip":
        return CLIPVisionConfig(**_BLOCKS, **_SQUARE)
    if kind == "resnet":
        return ResNetConfig(
            embedding_size=16, hidden_sizes=[16, 24, 32, 48], depths=[2, 2, 2, 2], layer_type="basic", hidden_size=48
        )
    return ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], hidden_size=32)


def save_vision_processor(kind: str, folder: Path) -> None:
    square = {"height": 32, "width": 32}
    made = {
        "vit": ViTImageProcessor(size=square),
        "clip": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square),
    }.get(kind) or ConvNextImageProcessor(size={"shortest_edge": 48}, crop_pct=0.875)
    made.save_pretrained(folder)


def save_bert_tokenizer(folder: Path) -> int:
    """The size of its vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    own = [*WORDS, *(letter for letter in LETTERS if letter not in WORDS), *(f"##{letter}" for letter in LETTERS)]
    vocabulary = [*SPECIAL, *own]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=24).save_pretrained(folder)
    return len(vocabulary)


def bert_config(vocabulary: int) -> Any:
    return BertConfig(**_BLOCKS, vocab_size=vocabulary, max_position_embeddings=24)


def spread(model: nn.Module) -> nn.Module:
    """Weights and statistics that make different inputs different."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=0.3 if parameter.ndim == 2 else 0.15, generator=generator)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1, generator=generator)
    return model.eval()


def write_two_towers(folder: Path, kind: str, text: Any = None, **saved: Any) -> Path:
    """A dual encoder of the kind `vit`, `clip`, `resnet` or `convnext`, with a BERT unless a text config is given."""
    vocabulary = save_bert_tokenizer(folder)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision_config(kind), text or bert_config(vocabulary), projection_dim=16
    )
    spread(VisionTextDualEncoderModel(config)).save_pretrained(folder, **saved)
    save_vision_processor(kind, folder)
    return folder


def write_bert(folder: Path) -> Path:
    config = bert_config(save_bert_tokenizer(folder))
    spread(BertModel(config)).save_pretrained(folder)
    return folder
