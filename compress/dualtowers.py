"""The towers of a `VisionTextDualEncoderModel` of transformers, any two networks with a projection each.

What the model computes is its own modules' doing: the pooled output of each, projected. Its own `get_image_features`
fails on networks that pool to (B, C, 1, 1), a ResNet say; here these are flattened first, which is what the projection
was made for. A text is masked from its padding on, as its tokenizer masks it.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from mmcompress.compress.towers import Towers
from mmcompress.manifest import TextProcessing
from mmcompress.pretrained import image_features, text_features


class _Image(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D)"""
        return F.normalize(image_features(self.model, pixels), dim=-1)


class _Text(nn.Module):
    def __init__(self, model: Any, processing: TextProcessing) -> None:
        super().__init__()
        self.model, self.processing = model, processing

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) int32 -> (B, D)"""
        ids = tokens.long()
        encoded = {"input_ids": ids}
        if self.processing.mask:
            written = (ids != self.processing.pad_token_id).long()
            behind = written.flip(1).cumsum(1).flip(1)  # how many written tokens there are from here on
            encoded["attention_mask"] = (behind > 0).long()
        return F.normalize(text_features(self.model, encoded), dim=-1)


def dual_towers(model: Any, tokenizer: Tokenizer, processing: TextProcessing) -> Towers:
    """Of a model of transformers, with the tokenizer that a device runs."""
    image, text = _Image(model).eval(), _Text(model, processing).eval()
    return Towers(image, text, tokenizer, processing, float(torch.exp(model.logit_scale.detach())))
