"""Small random CLIP models, as transformers builds them, and checkpoint artifacts made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel

from mmcompress.architecture import DualEncoderConfig, ImageConfig, TextConfig
from mmcompress.artifact import Artifact
from mmcompress.int8 import linear_modules
from mmcompress.manifest import Kind, Preprocessing, TextProcessing

VOCAB, CONTEXT, EOS = 60, 12, 59


def config_of(**changes: Any) -> DualEncoderConfig:
    """A two-block model; `image_` and `text_` changes go to that tower, the others to both."""
    tower = {"head_dim": 16, "heads": (2, 2), "mlp": (64, 64), "width": 32}
    image = {**tower, "image_size": 32, "patch": 8}
    text = {**tower, "vocab": VOCAB, "context": CONTEXT, "eos_token_id": EOS}
    for key, value in changes.items():
        name, _, field = key.partition("_")
        if name in ("image", "text") and field:
            {"image": image, "text": text}[name][field] = value
        else:
            image[key] = text[key] = value
    return DualEncoderConfig(embed_dim=24, image=ImageConfig(**image), text=TextConfig(**text))


def clip_of(config: DualEncoderConfig, seed: int = 0) -> CLIPModel:
    """A transformers model of those (uniform) sizes, with weights large enough for every path to matter."""

    def tower(c: Any) -> dict[str, Any]:
        return {
            "hidden_size": c.width,
            "intermediate_size": c.mlp[0],
            "num_hidden_layers": c.depth,
            "num_attention_heads": c.heads[0],
            "hidden_act": c.activation,
            "projection_dim": config.embed_dim,
        }

    text = config.text
    ids = {"eos_token_id": text.eos_token_id, "bos_token_id": text.bos_token_id, "pad_token_id": text.pad_token_id}
    found = CLIPConfig(
        projection_dim=config.embed_dim,
        vision_config={**tower(config.image), "image_size": config.image.image_size, "patch_size": config.image.patch},
        text_config={**tower(text), "vocab_size": text.vocab, "max_position_embeddings": text.context, **ids},
    )
    torch.manual_seed(seed)
    model = CLIPModel(found).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif name != "logit_scale":
                parameter.copy_(0.25 * torch.randn_like(parameter))
    return model


def tensors_of(model: CLIPModel) -> dict[str, np.ndarray[Any, Any]]:
    return {k: v.numpy() for k, v in model.state_dict().items() if not k.endswith("position_ids")}


def write_tokenizer(folder: Path) -> None:
    """Words w0, w1, …, closed by an end token; enough for AutoTokenizer as well."""
    vocab = {**{f"w{i}": i for i in range(EOS)}, "<eos>": EOS}
    vocab |= {"<unk>": vocab.pop("w50"), "<pad>": vocab.pop("w51")}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", EOS)])
    tokenizer.save(str(folder / "tokenizer.json"))
    stated = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))


def write_checkpoint(
    path: Path, config: DualEncoderConfig, tensors: dict[str, Any], ranges: dict[str, Any] | None = None
) -> Artifact:
    with Artifact.create(path, kind=Kind.CHECKPOINT, stage="quantize", key="k", config={"method": "minmax"}) as draft:
        save_file({k: np.array(v, order="C") for k, v in tensors.items()}, draft.path / "model.safetensors")
        write_tokenizer(draft.path)
        if ranges is not None:
            (draft.path / "ranges.json").write_text(json.dumps(ranges))
            draft.facts = {"linears": len(linear_modules(config)), "kept": []}
            draft.metrics = {"calibration": {}}
        draft.model = config
        draft.preprocessing = Preprocessing(size=32, resize=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        draft.tokenizer = TextProcessing(context=CONTEXT, pad_token_id=51, eos_token_id=EOS)
    return Artifact.open(path)


def wide_ranges(config: DualEncoderConfig) -> dict[str, dict[str, float]]:
    return {name: {"low": -3.0, "high": 5.0, "absmax": 5.0} for name in linear_modules(config)}
