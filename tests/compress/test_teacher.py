"""Teachers of three families from local folders of the true architecture, one's own, and the errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from clip_world import CAPTIONS, write_teacher
from safetensors.torch import load_file, save_file
from small_tokenizers import restated
from transformers import (
    AutoTokenizer,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)

from mmcompress.compress.teacher import load_teacher
from mmcompress.config import TeacherConfig
from mmcompress.errors import CorruptInputError, MissingRequirementError, UsageError
from mmcompress.export.texts import save_text_processing
from mmcompress.huggingface import dual_encoder_from_hugging_face
from mmcompress.runtime.tokenize import load_tokenizer, tokenize
from mmcompress.teachers import ALIASES, resolve

CPU = torch.device("cpu")
SMALL = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64}


def other_family(folder: Path, family: str) -> Path:
    write_teacher(folder)
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    vision = {**SMALL, "image_size": 32, "patch_size": 8}
    if family == "siglip":
        restated(folder, model_input_names=["input_ids"])
        text = {**SMALL, "vocab_size": 320, "max_position_embeddings": 16, "projection_size": 32}
        SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    else:
        restated(folder, pad_token="<|startoftext|>")
        text = {**SMALL, "vocab_size": 320, "max_position_embeddings": 16}
        config = ChineseCLIPConfig(text_config=text, vision_config={**vision, "projection_dim": 24}, projection_dim=24)
        ChineseCLIPModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["clip", "siglip", "chinese_clip"])
def test_families_embed_into_one_space(tmp_path: Path, family: str) -> None:
    folder = write_teacher(tmp_path) if family == "clip" else other_family(tmp_path, family)
    teacher = load_teacher(TeacherConfig(source=str(folder)), CPU)
    images, texts = teacher.encode_image(torch.randn(2, 3, 32, 32)), teacher.encode_text(["a square", "红色"])
    assert images.shape == texts.shape == (2, teacher.embed_dim)
    torch.testing.assert_close(images.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))
    assert teacher.preprocessing.size == 32


@pytest.mark.parametrize("logarithm", [800.0, -800.0])
def test_a_scale_that_no_probability_has_is_refused(tmp_path: Path, logarithm: float) -> None:
    """Of the factor itself in place of its logarithm, say: e^100 is a number of float32 no more."""
    write_teacher(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "logit_scale": torch.tensor(logarithm)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CorruptInputError, match=r"multiplies cosines with (inf|0\.0) and adds None"):
        load_teacher(TeacherConfig(source=str(tmp_path)), CPU)


def test_clip_teacher_matches_our_own_towers(tmp_path: Path) -> None:
    folder = write_teacher(tmp_path)
    teacher = load_teacher(TeacherConfig(source=str(folder)), CPU)
    processing = save_text_processing(folder, tmp_path)
    tokens = tokenize(load_tokenizer(tmp_path / "tokenizer.json"), CAPTIONS[:5], processing)
    with torch.no_grad():
        ours = dual_encoder_from_hugging_face(folder).encode_text(torch.from_numpy(tokens))
    torch.testing.assert_close(ours, teacher.encode_text(CAPTIONS[:5]), atol=1e-5, rtol=0)


def test_an_alias_that_is_not_cached_says_which_folder_to_give(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingRequirementError) as caught:
        resolve(TeacherConfig(source="vit-l14"))
    assert caught.value.exit_code == 3
    assert "'vit-l14' (openai/clip-vit-large-patch14)" in caught.value.what
    assert "--teacher /path/to/clip-vit-large-patch14" in caught.value.hint


@pytest.mark.parametrize(
    ("source", "what", "hint"),
    [
        ("vit-l41", "unknown teacher 'vit-l41'", "did you mean 'vit-l14"),
        ("./nowhere", "there is no teacher folder ./nowhere", "Hugging Face format"),
    ],
)
def test_wrong_names_are_suggested(source: str, what: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(TeacherConfig(source=source))
    assert what in caught.value.what and hint in caught.value.hint


def test_folders_that_are_no_teacher(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no config\.json"):
        resolve(TeacherConfig(source=str(tmp_path)))
    folder = write_teacher(tmp_path / "t")
    (folder / "model.safetensors").write_bytes(b"\x10" * 64)
    with pytest.raises(CorruptInputError, match="cannot be opened"):
        load_teacher(TeacherConfig(source=str(folder)), CPU)


def test_a_text_tower_that_cannot_answer_is_an_error_that_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise IndexError("index out of range in self")

    write_teacher(tmp_path)
    monkeypatch.setattr("mmcompress.compress.teacher.text_features", failing)
    with pytest.raises(CorruptInputError, match="encode_text for 1 texts failed") as caught:
        load_teacher(TeacherConfig(source=str(tmp_path)), CPU)
    assert str(tmp_path) in caught.value.what and caught.value.hint


def test_saved_tokenizer_is_what_transformers_reads(tmp_path: Path) -> None:
    folder = write_teacher(tmp_path / "t")
    processing = save_text_processing(folder, tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ours = tokenize(load_tokenizer(tmp_path / "tokenizer.json"), CAPTIONS, processing)
    padded = theirs(CAPTIONS, padding="max_length", truncation=True, max_length=processing.context)["input_ids"]
    assert ours.tolist() == padded
    assert processing.eos_token_id in ours[0]


def test_trained_tokenizer_is_the_same_in_transformers(tmp_path: Path) -> None:
    """transformers rewrites a byte-level tokenizer's prefix space unless the config says which it is."""
    folder = write_teacher(tmp_path / "t")
    ours = load_tokenizer(folder / "tokenizer.json")
    theirs = AutoTokenizer.from_pretrained(folder)
    (tmp_path / "saved").mkdir()
    save_text_processing(folder, tmp_path / "saved")
    saved = load_tokenizer(tmp_path / "saved" / "tokenizer.json")
    for text in [*CAPTIONS[:4], "Cat!", "猫 和 dog", ""]:
        expected = ours.encode(text).ids
        assert theirs(text)["input_ids"] == expected and saved.encode(text).ids == expected, text


def test_aliases_name_hub_repositories() -> None:
    assert ALIASES["vit-l14"] == "openai/clip-vit-large-patch14"
    assert all(hub_id.count("/") == 1 for hub_id in ALIASES.values())
