"""Small random folders of every family that a dual encoder holds, as transformers builds and saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from clip_world import CAPTIONS
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn.functional import normalize

from mmcompress.families import CLASSES
from mmcompress.manifest import Preprocessing
from mmcompress.model import DualEncoder
from mmcompress.processing import save_preprocessing, save_tokenizer_config

FAMILIES = tuple(CLASSES)
VOCAB, CONTEXT, BOS, EOS, PAD = 60, 14, 57, 58, 1
SIZES: dict[str, dict[str, Any]] = {
    # width, heads, depth, MLP, image side, patch, projection, then what else a tower's config states
    "plain": {"sizes": (64, 4, 2, 128, 32, 8, 48)},
    "deep": {"sizes": (32, 4, 5, 64, 32, 16, 32)},
    "odd": {"sizes": (36, 3, 2, 50, 30, 7, 21)},  # heads of 12 channels, an MLP of no round size, 30 pixels in sevens
    "eps": {"sizes": (48, 2, 2, 96, 32, 8, 48), "layer_norm_eps": 1e-3},
    "gelu": {"sizes": (64, 2, 1, 96, 16, 8, 64), "hidden_act": "gelu"},
    "quick": {"sizes": (40, 5, 3, 72, 24, 12, 16), "hidden_act": "quick_gelu"},
}


def stock_model(family: str, size: str = "plain", seed: int = 0, **text_changes: Any) -> Any:
    """A model of the family's own class, with weights large enough for every path to matter."""
    width, heads, depth, mlp, side, patch, projection = SIZES[size]["sizes"]
    tower = {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_hidden_layers": depth,
        "intermediate_size": mlp,
        **{key: value for key, value in SIZES[size].items() if key != "sizes"},
    }
    text = {**tower, "vocab_size": VOCAB, "max_position_embeddings": CONTEXT, "pad_token_id": PAD}
    if family in ("clip", "metaclip_2"):
        text |= {"bos_token_id": BOS, "eos_token_id": EOS if family == "clip" else 2}
    if family == "altclip":
        text |= {"max_position_embeddings": CONTEXT + PAD + 1, "project_dim": 40}
    vision = {**tower, "image_size": side, "patch_size": patch}
    shared = {} if family == "siglip" else {"projection_dim": projection}
    config = getattr(transformers, f"{CLASSES[family]}Config")(
        vision_config=vision, text_config=text | text_changes, **shared
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"{CLASSES[family]}Model")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() or "pre_LN" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif not name.startswith("logit"):
                parameter.copy_(0.25 * torch.randn_like(parameter))
        model.logit_scale.fill_(4.5)
        if family == "siglip":
            model.logit_bias.fill_(-12.25)
    return model


def write_family(folder: Path, family: str, size: str = "plain", **text_changes: Any) -> Any:
    """The same, saved into a folder."""
    model = stock_model(family, size, **text_changes)
    model.save_pretrained(folder)
    return model


def write_world(folder: Path, family: str) -> Path:
    """A folder of a family with a tokenizer of the words in `clip_world.CAPTIONS` and a processor: a whole teacher."""
    write_family(folder, family, max_position_embeddings=90 if family == "altclip" else CONTEXT)
    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    end = 2 if family in ("metaclip_2", "altclip") else EOS
    ids = {"<unk>": 3, "<pad>": PAD, "<bos>": BOS, "<eos>": end, **{word: 4 + i for i, word in enumerate(words)}}
    vocab = ids | {f"<{i}>": i for i in range(VOCAB) if i not in ids.values()}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", end)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>"}
    save_tokenizer_config(folder, CONTEXT, **names, add_prefix_space=False, mask=family != "siglip")
    save_preprocessing(Preprocessing(size=32, resize=32, mean=(0.5,) * 3, std=(0.5,) * 3), folder)
    return folder


def pixels(side: int, batch: int = 4) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(batch).standard_normal((batch, 3, side, side), dtype=np.float32))


def tokens(family: str, batch: int = 5, context: int = CONTEXT) -> NDArray[np.int32]:
    """(B, T) ids as the family's tokenizer makes them: short, empty and full texts, padded behind the end."""
    rng = np.random.default_rng(batch)
    ids = rng.integers(4, BOS, (batch, context), dtype=np.int32)
    end = 2 if family in ("metaclip_2", "altclip") else EOS
    for row in range(batch):
        place = (context - 1, 1, 3, context // 2, context - 2)[row % 5]
        ids[row, 0] = BOS
        ids[row, place] = end
        ids[row, place + 1 :] = PAD
    return ids


@torch.no_grad()
def stock_images(model: Any, images: torch.Tensor) -> NDArray[np.float32]:
    """(B, D) of unit norm, by the stock class."""
    return np.asarray(normalize(model.get_image_features(images), dim=-1))


@torch.no_grad()
def stock_texts(model: Any, ids: NDArray[np.int32], mask: NDArray[Any] | None = None) -> NDArray[np.float32]:
    """(B, D) of unit norm, by the stock class with the mask that its tokenizer would give; SigLIP's gives none."""
    given = {"input_ids": torch.from_numpy(ids).long()}
    if model.config.model_type != "siglip":
        given["attention_mask"] = torch.from_numpy(ids != PAD if mask is None else mask).long()
    if model.config.model_type == "chinese_clip":  # its get_text_features projects a pooler that it never built
        features = model.text_projection(model.text_model(**given).last_hidden_state[:, 0])
    else:
        features = model.get_text_features(**given)
    return np.asarray(normalize(features, dim=-1))


@torch.no_grad()
def embedded(model: DualEncoder, images: torch.Tensor, ids: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """Our own embeddings of (B, 3, S, S) images and (B, T) token ids."""
    return model.encode_image(images).numpy(), model.encode_text(torch.from_numpy(ids)).numpy()
