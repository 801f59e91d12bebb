"""Two pretrained towers made one: what they compute is what transformers computes, and together they learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_world import CAPTIONS, write_squares
from family_folders import write_world
from torch.nn.functional import normalize
from transformers import (
    AutoTokenizer,
    BertModel,
    ChineseCLIPModel,
    CLIPModel,
    CLIPVisionModel,
    DistilBertConfig,
    DistilBertModel,
    SiglipModel,
)
from two_towers import save_bert_tokenizer, save_vision_processor, spread, vision_config, write_bert, write_two_towers

from mmcompress.artifact import Artifact
from mmcompress.compress.train.pair import model_from_pair, pair_config
from mmcompress.config import PairConfig
from mmcompress.errors import UsageError
from mmcompress.export.texts import save_text_processing
from mmcompress.huggingface import with_tokenizer
from mmcompress.pipeline import standalone
from mmcompress.runtime.tokenize import load_tokenizer, tokenize

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A BERT, the vision model of a CLIP, and whole models of CLIP and SigLIP."""
    base = tmp_path_factory.mktemp("towers")
    spread(CLIPVisionModel(vision_config("clip"))).save_pretrained(base / "vision")  # type: ignore[attr-defined]
    save_vision_processor("clip", base / "vision")
    write_bert(base / "bert")
    return {
        "vision": base / "vision",
        "bert": base / "bert",
        "clip": write_world(base / "clip", "clip"),
        "siglip": write_world(base / "siglip", "siglip"),
    }


def pixels_of(side: int) -> torch.Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("image", "text"), [("vision", "bert"), ("clip", "clip"), ("siglip", "siglip"), ("siglip", "bert")]
)
@torch.no_grad()
def test_each_tower_is_the_one_that_transformers_runs(
    image: str, text: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    pair = PairConfig(image=str(folders[image]), text=str(folders[text]))
    config = pair_config(pair, 24, False)
    processing = save_text_processing(folders[text], tmp_path)
    model = with_tokenizer(model_from_pair(pair, config, 0), processing).eval()
    pixels = pixels_of(config.image.image_size)
    if image == "siglip":
        assert config.embed_dim == config.image.width
        pooled = SiglipModel.from_pretrained(folders[image]).vision_model(pixels).pooler_output
    else:
        opened = CLIPVisionModel if image == "vision" else CLIPModel
        pooled = opened.from_pretrained(folders[image]).vision_model(pixels).pooler_output
        assert model.image.projection is not None and config.embed_dim == 24
        pooled = pooled @ model.image.projection.weight.T
    assert torch.allclose(model.encode_image(pixels), normalize(pooled, dim=-1), atol=1e-5)
    tokens = torch.from_numpy(tokenize(load_tokenizer(tmp_path / processing.file), CAPTIONS[:5], processing))
    encoded = AutoTokenizer.from_pretrained(folders[text])(
        CAPTIONS[:5], padding="max_length", truncation=True, max_length=processing.context, return_tensors="pt"
    )
    if text == "bert":
        read = BertModel.from_pretrained(folders[text])(**encoded).last_hidden_state[:, 0]
    elif text == "clip":
        read = CLIPModel.from_pretrained(folders[text]).text_model(encoded["input_ids"]).pooler_output
    else:
        inner = SiglipModel.from_pretrained(folders[text]).text_model
        inner.head = torch.nn.Identity()
        read = inner(encoded["input_ids"]).pooler_output
    assert torch.allclose(model.encode_text(tokens), normalize(model.text.projection(read), dim=-1), atol=1e-5)


def test_the_command_trains_both_and_transformers_opens_what_it_writes(
    cli: Cli, folders: dict[str, Path], tmp_path: Path
) -> None:
    data = write_squares(tmp_path)
    given = (
        "--image-tower",
        folders["vision"],
        "--text-tower",
        folders["bert"],
        "--data",
        data,
        "--out",
        tmp_path / "m",
    )
    keys = (
        "--optimizer-epochs",
        12,
        "--optimizer-batch",
        20,
        "--optimizer-lr",
        3e-3,
        "--augment",
        "none",
        "--embed-dim",
        24,
    )
    watch = ("--validation", data, "--watch-steps", 18)
    made = cli("train", *given, *keys, *watch)
    assert made.code == 0, made.err
    artifact = Artifact.open(tmp_path / "m")
    assert artifact.manifest.metrics["training"]["best_r10"] > 0.4, made.err  # chance is a sixth
    model, text = ChineseCLIPModel.from_pretrained(artifact.path).eval(), artifact.tokenizer
    assert text is not None and {"towers.image", "towers.text"} <= artifact.manifest.parents.keys()
    tokens = torch.from_numpy(tokenize(load_tokenizer(artifact.file(text.file)), CAPTIONS, text)).long()
    colours = np.array([[32 * (i // 8), 90, 32 * (i % 8)] for i in range(60)], dtype=np.float32) / 255
    rule = artifact.preprocessing
    assert rule is not None
    values = (colours - np.array(rule.mean)) / np.array(rule.std)
    pixels = torch.from_numpy(values.astype(np.float32))[:, :, None, None].expand(-1, -1, 32, 32)
    with torch.no_grad():
        hidden = model.text_model(tokens, attention_mask=(tokens != text.pad_token_id).long()).last_hidden_state[:, 0]
        texts = normalize(model.text_projection(hidden), dim=-1)
        images = normalize(model.get_image_features(pixels), dim=-1)
    ranks = (images @ texts.T).argsort(dim=1, descending=True)
    found = float((ranks[:, :10] == torch.arange(60)[:, None]).any(dim=1).float().mean())
    assert found > 0.4
    assert "reused" in cli("train", *given, *keys, *watch).err
    assert cli("export", tmp_path / "m", "--out", tmp_path / "graphs").code == 0


def test_what_a_tower_cannot_be_is_refused_by_name(folders: dict[str, Path], tmp_path: Path) -> None:
    data = {"data.train": str(write_squares(tmp_path)), "optimizer.batch": 20}
    distil = DistilBertModel(DistilBertConfig(vocab_size=100, dim=32, n_layers=1, n_heads=2, hidden_dim=64))
    distil.save_pretrained(tmp_path / "distil")
    save_bert_tokenizer(tmp_path / "distil")
    two = write_two_towers(tmp_path / "two", "resnet")
    (tmp_path / "side").mkdir()
    for file in folders["vision"].iterdir():
        (tmp_path / "side" / file.name).write_bytes(
            file.read_bytes().replace(b'"width": 32', b'"width": 64').replace(b'"height": 32', b'"height": 64')
        )
    for image, text, said in (
        (two, folders["bert"], "is a 'vision-text-dual-encoder' model, and the image tower can be one of clip, siglip"),
        (
            folders["vision"],
            tmp_path / "distil",
            "is a 'distilbert' model, and the text tower can be one of clip, siglip, bert",
        ),
        (folders["bert"], folders["bert"], "is a 'bert' model, and the image tower"),
        (tmp_path / "side", folders["bert"], "makes images of 64 pixels, and its tower takes 32"),
        (tmp_path / "nowhere", folders["bert"], "there is no teacher folder"),
    ):
        with pytest.raises(UsageError, match=said):
            standalone.train_pair(str(image), str(text), tmp_path / "out", data)
    with pytest.raises(UsageError, match="pools by attention and embeds into 64 dimensions, and embed_dim is 32"):
        standalone.train_pair(str(folders["siglip"]), str(folders["bert"]), tmp_path / "out", {**data, "embed_dim": 32})
    with pytest.raises(UsageError, match="vocab is of a trained tokenizer, and the text tower has its own"):
        standalone.train_pair(str(folders["vision"]), str(folders["bert"]), tmp_path / "out", {**data, "vocab": 400})


def test_a_recipe_and_towers_are_not_said_together(cli: Cli, folders: dict[str, Path], tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    for said in ((), ("--image-tower", folders["vision"]), ("demo", "--image-tower", "a", "--text-tower", "b")):
        done = cli("train", *said, *out)
        assert done.code == 2 and "a recipe, or --image-tower and --text-tower" in done.err
    towers = ("--image-tower", folders["vision"], "--text-tower", folders["bert"])
    done = cli("train", *towers, *out)
    assert done.code == 2 and "give --data" in done.err
