"""Contrastive training: with and without a guide, into a folder that transformers reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from clip_world import CAPTIONS, write_squares, write_teacher
from safetensors.torch import load_file
from transformers import CLIPModel

from mmcompress.artifact import Artifact
from mmcompress.errors import UsageError
from mmcompress.huggingface import dual_encoder_from_checkpoint
from mmcompress.measure.drift.drift import retrieval
from mmcompress.pipeline import standalone
from mmcompress.runtime.tokenize import load_tokenizer, tokenize

ALONE = """
[data]
train = "{data}"
[student]
source = "vit-t8-64"
image_size = 32
[[stage]]
run = "train"
vocab = 320
context = 16
embed_dim = 32
augment = "none"
save_dtype = "float16"
optimizer = {{ epochs = 50, batch = 20, lr = 2e-3, precision = "float32" }}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    (folder / "alone.toml").write_text(ALONE.format(data=write_squares(folder)))
    guide = f'[teacher]\nsource = "{write_teacher(folder / "guide")}"\n[[stage]]\nrun = "embed"\n'
    text = (folder / "alone.toml").read_text().replace("epochs = 50", "epochs = 2")
    text = text.replace('embed_dim = 32\naugment = "none"\n', "")
    text = text.replace('[[stage]]\nrun = "train"', f'{guide}[[stage]]\nrun = "train"')
    (folder / "guided.toml").write_text(text)
    return folder


@torch.no_grad()
def image_to_text(artifact: Artifact) -> float:
    """R@10 of the sixty squares among their sixty captions; chance is one in six."""
    model, text = dual_encoder_from_checkpoint(artifact.path, artifact.model), artifact.tokenizer
    assert text is not None
    tokens = tokenize(load_tokenizer(artifact.file(text.file)), CAPTIONS, text)
    colours = np.array([[32 * (i // 8), 90, 32 * (i % 8)] for i in range(60)], dtype=np.float32)
    pixels = torch.from_numpy(colours / 127.5 - 1)[:, :, None, None].expand(-1, -1, 32, 32)
    embedded = model.encode_image(pixels).numpy(), model.encode_text(torch.from_numpy(tokens)).numpy()
    return retrieval(*embedded, np.arange(60))["i2t_r10"]


def test_training_learns_what_belongs_together(world: Path) -> None:
    made = standalone.train(str(world / "alone.toml"), world / "alone")
    assert image_to_text(made) > 0.5
    loaded = CLIPModel.from_pretrained(made.path)
    assert loaded.config.projection_dim == 32
    assert {t.dtype for t in load_file(made.file("model.safetensors")).values()} == {torch.float16}


def test_a_guide_lends_its_space_and_lies_beside(world: Path) -> None:
    made = standalone.train(str(world / "guided.toml"), world / "guided")
    assert made.model.embed_dim == 32
    assert made.manifest.parents["embeddings"] == Artifact.open(world / "guided-embed").digest


def test_the_last_stage_must_train(world: Path) -> None:
    with pytest.raises(UsageError, match="ends with a stage that runs 'report'"):
        standalone.train("demo", world / "no")
