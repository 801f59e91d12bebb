"""A random Hugging Face CLIP folder: two blocks of width 64, 32-pixel images, a tokenizer of whole words."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel

WORDS = ("red", "green", "blue", "grey", "square", "of", "colour", "a")


def write_tiny_teacher(folder: Path) -> Path:
    """The folder, made."""
    vocabulary = {word: index for index, word in enumerate(("<pad>", "<start>", "<unk>", *WORDS, "<end>"))}
    start, end = vocabulary["<start>"], vocabulary["<end>"]
    tower = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": 0, "bos_token_id": start, "eos_token_id": end}
    config = CLIPConfig(
        projection_dim=32,
        vision_config={**tower, "image_size": 32, "patch_size": 8, "projection_dim": 32},
        text_config={
            **tower,
            **ids,
            "vocab_size": len(vocabulary),
            "max_position_embeddings": 12,
            "projection_dim": 32,
        },
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", start), ("<end>", end)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "bos_token": "<start>", "eos_token": "<end>", "unk_token": "<unk>"}
    described = {**names, "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 12}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    processing = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 32},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 32, "width": 32},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processing))
    return folder
