"""Towers and tokenizers of open_clip, where it is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mmcompress.compress.opencliptowers import open_clip_towers
from mmcompress.export.oddities import odd_texts

open_clip: Any = pytest.importorskip("open_clip")


@pytest.mark.parametrize("name", ["RN50", "MobileCLIP-S1"])
def test_its_tokenizer_and_its_folded_branches_are_the_models_own(name: str) -> None:
    torch.manual_seed(0)
    model, own = open_clip.create_model(name).eval(), open_clip.get_tokenizer(name)
    made = open_clip_towers(model, own, name)
    texts = [*odd_texts(), "ΟΔΟΣ Σ ΣΑΣ", "don’t “quote” ﬁne &amp;amp; Ａ"]
    assert np.array_equal(made.tokens(texts).numpy(), own(texts).numpy())
    side = model.visual.image_size
    pixels = torch.randn(1, 3, *((side, side) if isinstance(side, int) else side))
    with torch.inference_mode():
        assert (made.image(pixels) - model.encode_image(pixels, normalize=True)).abs().max() < 1e-5
        tokens = made.tokens(texts[:2])
        assert (made.text(tokens) - model.encode_text(tokens.long(), normalize=True)).abs().max() < 1e-5
