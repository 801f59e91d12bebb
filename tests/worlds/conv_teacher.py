"""A small dual encoder that is no transformer of ours: convolutions with BatchNorm, squeeze-excite and attention.

`conv_teacher.py:teacher` is what a user would write for a model of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional as F

from mmcompress.compress.teacher import Teacher
from mmcompress.compress.towers import Towers
from mmcompress.manifest import Preprocessing, TextProcessing

SIDE, WIDTH, CONTEXT = 32, 24, 10
WORDS = ("<pad>", "<start>", "<end>", "<unk>", *(f"w{index}" for index in range(20)))


class Excite(nn.Module):
    """Squeeze and excite (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Attention(nn.Module):
    """One head over all places, behind a LayerNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).chunk(3, dim=-1)
        weights = (query @ key.transpose(1, 2) * query.shape[-1] ** -0.5).softmax(dim=-1)
        return x + self.out(weights @ value)


class ImageTower(nn.Module):
    """(B, 3, 32, 32) -> (B, 24)"""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16))
        self.grouped = nn.Conv2d(16, WIDTH, 3, 2, 1, groups=4)
        self.pointwise = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.GELU())
        self.excite, self.attention = Excite(WIDTH), Attention(WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH)

    def forward(self, pixels: Tensor) -> Tensor:
        x = F.relu(self.depthwise(self.stem(pixels)))
        x = self.excite(self.pointwise(F.relu(self.grouped(x))))
        x = self.attention(x.flatten(2).transpose(1, 2)).mean(dim=1)
        return F.normalize(self.project(x), dim=-1)


class TextTower(nn.Module):
    """(B, 10) token ids -> (B, 24)"""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.attention = nn.Embedding(len(WORDS), WIDTH), Attention(WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH, bias=False)

    def features(self, tokens: Tensor) -> Tensor:
        """(B, 10) -> (B, 24), before the last Linear."""
        mean: Tensor = self.attention(self.table(tokens)).mean(dim=1)
        return mean

    def forward(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.project(self.features(tokens)), dim=-1)


def tokenizer() -> Tokenizer:
    """Whole words."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return made


def towers(seed: int = 0) -> Towers:
    """With BatchNorm statistics and weights that are as different as trained ones."""
    torch.manual_seed(seed)
    image, text = ImageTower().eval(), TextTower().eval()
    for module in image.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.3, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, 0, 0.2)
    processing = TextProcessing(context=CONTEXT, pad_token_id=0, eos_token_id=2)
    return Towers(image, text, tokenizer(), processing, logit_scale=20.0)


@torch.no_grad()
def matched(pixels: Tensor, texts: Sequence[str]) -> Towers:
    """Towers that find images (B, 3, S, S) by their texts, since the last Linear was solved for that."""
    made = towers()
    assert isinstance(made.text, TextTower)
    features = made.text.features(made.tokens(texts)).double()
    images = made.image(pixels).double()
    gram = features.T @ features
    ridge = 1e-4 * gram.trace() * torch.eye(WIDTH).double()
    solved = torch.linalg.solve(gram + ridge, features.T @ (images - images.mean(dim=0)))
    made.text.project.weight.copy_(solved.T.float())
    return made


def teacher(given: Towers | None = None) -> Teacher:
    """What `--teacher conv_teacher.py:teacher` calls."""
    made = given or towers()

    def encode_image(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return made.image(pixels)  # type: ignore[no-any-return]

    def encode_text(texts: Sequence[str]) -> Tensor:
        with torch.inference_mode():
            return made.text(made.tokens(texts))  # type: ignore[no-any-return]

    half = (0.5, 0.5, 0.5)
    preprocessing = Preprocessing(size=SIDE, resize=SIDE, mean=half, std=(0.25, 0.25, 0.25))
    return Teacher(encode_image, encode_text, preprocessing, WIDTH, logit_bias=-3.0, towers=lambda: made)
