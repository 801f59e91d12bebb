"""A random CLIP that finds every one of sixty squares by its caption, since its text projection was solved for that."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from shards import write_tar
from tiny_clip import CONTEXT, EOS, clip_of, config_of, tensors_of, wide_ranges, write_checkpoint, write_tokenizer

from mmcompress.artifact import Artifact
from mmcompress.data.batches import batches
from mmcompress.data.preprocess import normalize
from mmcompress.manifest import Preprocessing, TextProcessing
from mmcompress.runtime.tokenize import load_tokenizer, tokenize

CAPTIONS = [f"w{1 + i // 8} w{11 + i % 8}" for i in range(60)]
TEXT = TextProcessing(context=CONTEXT, pad_token_id=51, eos_token_id=EOS)
PREPROCESSING = Preprocessing(size=32, resize=32, mean=(0.5,) * 3, std=(0.5,) * 3)


def write_squares(folder: Path) -> Path:
    """Sixty squares in as many colours, with their captions."""
    files: list[tuple[str, bytes]] = []
    for index, caption in enumerate(CAPTIONS):
        buffer = io.BytesIO()
        Image.new("RGB", (40, 32), (32 * (index // 8), 90, 32 * (index % 8))).save(buffer, "PNG")
        files += [(f"{index:04d}.png", buffer.getvalue()), (f"{index:04d}.txt", caption.encode())]
    return write_tar(folder / "squares-00000.tar", files)


@torch.no_grad()
def write_matched(folder: Path, data: Path) -> Artifact:
    """The checkpoint: least squares from the features of the texts to the centred embeddings of their images."""
    config = config_of(width=64, heads=(4, 4))
    model = clip_of(config)
    write_tokenizer(folder)
    (batch,) = batches(str(data), PREPROCESSING, batch=60)
    tokens = tokenize(load_tokenizer(folder / "tokenizer.json"), [texts[0] for texts in batch.captions], TEXT)
    ids = torch.from_numpy(tokens.astype(np.int64))
    features = model.text_model(input_ids=ids).pooler_output
    images = model.visual_projection(
        model.vision_model(pixel_values=torch.from_numpy(normalize(batch.pixels, PREPROCESSING))).pooler_output
    )
    images = images / images.norm(dim=1, keepdim=True)
    solved = torch.linalg.lstsq(features.double(), (images - images.mean(0)).double()).solution
    model.text_projection.weight.copy_(solved.T.float())
    return write_checkpoint(folder / "quantized", config, tensors_of(model), wide_ranges(config))
