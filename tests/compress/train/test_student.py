"""Which students there are: presets, and shares of a teacher."""

from __future__ import annotations

import pytest

from mmcompress.compress.train.student import PRESETS, inherited_share, preset_config
from mmcompress.config import StudentConfig
from mmcompress.errors import UsageError
from mmcompress.manifest import TextProcessing


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
