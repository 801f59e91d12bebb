"""A whole small world for stages: sixty coloured squares with captions, and a CLIP folder that can embed them."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image
from shards import write_tar

from mmcompress.architecture import DualEncoderConfig
from mmcompress.compress.train.vocabulary import save_tokenizer, tokenizer_from_captions
from mmcompress.huggingface import save_checkpoint
from mmcompress.manifest import Preprocessing
from mmcompress.model import DualEncoder, initialize
from mmcompress.processing import save_preprocessing

CAPTIONS = [f"a square of red {r} and blue {b}" for r in range(8) for b in range(8)][:60]


def write_squares(folder: Path) -> Path:
    files: list[tuple[str, bytes]] = []
    for index, caption in enumerate(CAPTIONS):
        buffer = io.BytesIO()
        Image.new("RGB", (40, 32), (32 * (index // 8), 90, 32 * (index % 8))).save(buffer, "PNG")
        files += [(f"{index:04d}.png", buffer.getvalue()), (f"{index:04d}.txt", caption.encode())]
    return write_tar(folder / "squares-00000.tar", files)


def write_teacher(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = save_tokenizer(tokenizer_from_captions(CAPTIONS, 320), folder, 16)
    tower = {"width": 64, "head_dim": 16, "heads": (4,) * 4, "mlp": (128,) * 4}
    config = DualEncoderConfig.model_validate(
        {
            "embed_dim": 32,
            "image": {**tower, "image_size": 32, "patch": 8},
            "text": {
                **tower,
                "vocab": 320,
                "context": text.context,
                "eos_token_id": text.eos_token_id,
                "pad_token_id": text.pad_token_id,
            },
        }
    )
    save_checkpoint(initialize(DualEncoder(config), seed), folder)
    save_preprocessing(Preprocessing(size=32, resize=32, mean=(0.5,) * 3, std=(0.5,) * 3), folder)
    return folder
