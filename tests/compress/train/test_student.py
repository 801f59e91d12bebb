"""How large students are: presets, and parts of the teacher within a budget."""

from __future__ import annotations

import pytest

from mmcompress.architecture import DualEncoderConfig
from mmcompress.compress.train.student import (
    PRESETS,
    evenly_spaced,
    inherited_config,
    inherited_share,
    preset_config,
)
from mmcompress.config import StudentConfig
from mmcompress.errors import UsageError
from mmcompress.manifest import TextProcessing

TOWER = {"width": 128, "head_dim": 32, "heads": (4,) * 6, "mlp": (512,) * 6}
TEACHER = DualEncoderConfig.model_validate(
    {
        "embed_dim": 64,
        "image": {**TOWER, "image_size": 64, "patch": 8},
        "text": {**TOWER, "vocab": 60, "context": 16, "eos_token_id": 59},
    }
)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.4, 0.7, 0.9])
def test_inherited_sizes_stay_inside_their_budget_and_near_it(share: float) -> None:
    student = inherited_config(TEACHER, share)
    assert 0.6 * share * TEACHER.macs <= student.macs <= share * TEACHER.macs
    assert student.text.macs(64) <= share * TEACHER.text.macs(64)


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
