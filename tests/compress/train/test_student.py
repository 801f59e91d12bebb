"""Where students come from: sizes, budgets, and the identity when everything is inherited."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmcompress.architecture import DualEncoderConfig
from mmcompress.compress.train.student import (
    PRESETS,
    evenly_spaced,
    inherited_share,
    preset_config,
    student_from_teacher,
)
from mmcompress.config import StudentConfig
from mmcompress.errors import UsageError
from mmcompress.huggingface import dual_encoder_from_hugging_face, save_checkpoint
from mmcompress.manifest import TextProcessing
from mmcompress.model import DualEncoder, initialize


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    tower = {"width": 128, "head_dim": 32, "heads": (4,) * 6, "mlp": (512,) * 6}
    config = DualEncoderConfig.model_validate(
        {
            "embed_dim": 64,
            "image": {**tower, "image_size": 64, "patch": 8},
            "text": {**tower, "vocab": 60, "context": 16, "eos_token_id": 59},
        }
    )
    save_checkpoint(initialize(DualEncoder(config), 0), tmp_path)
    return tmp_path


@pytest.mark.parametrize("share", [0.1, 0.25, 0.4, 0.7, 0.9])
def test_inherited_student_stays_inside_its_budget_and_near_it(teacher: Path, share: float) -> None:
    full = dual_encoder_from_hugging_face(teacher).config
    student = student_from_teacher(teacher, share).config
    assert 0.6 * share * full.macs <= student.macs <= share * full.macs
    assert student.text.macs(64) <= share * full.text.macs(64)


@torch.no_grad()
def test_inheriting_everything_is_the_teacher(teacher: Path) -> None:
    pixels, tokens = torch.randn(2, 3, 64, 64), torch.randint(0, 60, (2, 16))
    full, student = dual_encoder_from_hugging_face(teacher), student_from_teacher(teacher, 1.0).eval()
    assert torch.equal(student.encode_image(pixels), full.encode_image(pixels))
    assert torch.equal(student.encode_text(tokens), full.encode_text(tokens))


def test_blocks_are_evenly_spaced_with_both_ends() -> None:
    assert evenly_spaced(12, 6) == [0, 2, 4, 7, 9, 11]
    assert evenly_spaced(6, 6) == list(range(6))
    assert evenly_spaced(6, 1) == [5]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_models_of_their_name(name: str) -> None:
    text = TextProcessing(context=77, pad_token_id=0, eos_token_id=1)
    config = preset_config(StudentConfig(source=name), 512, text, 49408)
    assert config.image.uniform and config.text.uniform
    if name == "vit-s16":
        assert config.image.params(512) == pytest.approx(21.9e6, rel=0.01) and config.macs == pytest.approx(
            4.6e9, rel=0.03
        )
    if name == "vit-l14":
        assert config.image.params(768) == pytest.approx(304e6, rel=0.01)


@pytest.mark.parametrize("source", ["inherit:0", "inherit:2", "inherit:x", "inherit:nan"])
def test_wrong_shares_are_refused(source: str) -> None:
    with pytest.raises(UsageError, match="the share must be"):
        inherited_share(source)


def test_misspelt_preset_is_suggested() -> None:
    with pytest.raises(UsageError) as caught:
        preset_config(
            StudentConfig(source="vit-s61"), 512, TextProcessing(context=77, pad_token_id=0, eos_token_id=1), 9
        )
    assert "vit-s16" in caught.value.hint
