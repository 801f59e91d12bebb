"""The dual encoder in torch, numerically equal to the CLIP family, and its Hugging Face form on disk.

In memory the tower is flat and fused (`image.blocks.0.qkv`), which is what pruning, calibration and speed want; at rest
the tensors have the names of `transformers.CLIPModel`, so a checkpoint folder *is* a Hugging Face CLIP folder while its
blocks are uniform, and the same format with smaller tensors once it is pruned (`huggingface.py`). Nothing is
ever pickled.

Left out: attention dropout (CLIP has none) and padding masks (the text tower is causal and pools at the end-of-text
token, so what follows that token cannot reach the output).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmcompress.architecture import LEGACY_EOS, DualEncoderConfig, ImageConfig, TextConfig, TowerConfig

MAX_LOGIT_SCALE = math.log(100.0)  # Radford et al. 2021, section 2.5


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d)) v; without parameters, and a module so that calibration sees what goes into it."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """q (B, H, R, d), k and v (B, H, T, d) -> (B, H, R, d)"""
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)


class Block(nn.Module):
    """Pre-LayerNorm transformer block: x + attention(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, config: TowerConfig, index: int) -> None:
        super().__init__()
        self.heads = config.heads[index]
        self.quick = config.activation == "quick_gelu"
        inner = self.heads * config.head_dim
        self.norm1 = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.qkv = nn.Linear(config.width, 3 * inner)
        self.attention = Attention()
        self.out = nn.Linear(inner, config.width)
        self.norm2 = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.fc1 = nn.Linear(config.width, config.mlp[index])
        self.fc2 = nn.Linear(config.mlp[index], config.width)

    def forward(self, x: Tensor, causal: bool, pooled: Tensor | None = None) -> Tensor:
        """(B, T, width) -> (B, T, width), or (B, 1, width) of the token `pooled` (B,), where nothing else is read."""
        mixed = self.attended(x, causal, pooled)
        x = (x if pooled is None else token_at(x, pooled)) + self.out(mixed)
        return x + self.fc2(self.hidden(x))  # type: ignore[no-any-return]

    def attended(self, x: Tensor, causal: bool, pooled: Tensor | None = None) -> Tensor:
        """(B, T, width) -> (B, T or 1, heads * head_dim): what goes into the out-projection, head by head."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None
        if pooled is not None:
            q = token_at(q.transpose(1, 2), pooled).transpose(1, 2)
            if causal:
                mask = (torch.arange(x.shape[1], device=x.device) <= pooled[:, None])[:, None, None]
        mixed: Tensor = self.attention(q, k, v, mask, causal and pooled is None)
        return mixed.transpose(1, 2).flatten(2)

    def hidden(self, x: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, mlp): what goes into FC2."""
        hidden: Tensor = self.fc1(self.norm2(x))
        return hidden * torch.sigmoid(1.702 * hidden) if self.quick else F.gelu(hidden)


def token_at(x: Tensor, places: Tensor) -> Tensor:
    """(B, T, ...), (B,) -> (B, 1, ...): one token of each sequence."""
    return x[torch.arange(len(x), device=x.device), places][:, None]


class ImageTower(nn.Module):
    causal = False

    def __init__(self, config: ImageConfig, embed_dim: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.empty(config.width))
        self.patch = nn.Conv2d(3, config.width, config.patch, config.patch, bias=False)
        self.positions = nn.Parameter(torch.empty(config.tokens, config.width))
        self.norm_pre = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.depth))
        self.norm_post = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.projection = nn.Linear(config.width, embed_dim, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D)"""
        return self.leave(_through(self.blocks, self.enter(pixels), self.ends(pixels), self.causal))

    def enter(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, T, width): the residual stream before the first block."""
        patches = self.patch(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(patches), 1, -1), patches], dim=1)
        return self.norm_pre(tokens + self.positions)  # type: ignore[no-any-return]

    def ends(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B,): the token that is read at the end, the class token."""
        return torch.zeros(len(pixels), dtype=torch.long, device=pixels.device)

    def leave(self, pooled: Tensor) -> Tensor:
        """(B, 1, width) -> (B, D): the token that is read, behind the last block."""
        return self.projection(self.norm_post(pooled[:, 0]))  # type: ignore[no-any-return]


class TextTower(nn.Module):
    causal = True

    def __init__(self, config: TextConfig, embed_dim: int) -> None:
        super().__init__()
        self.eos_token_id = config.eos_token_id
        self.tokens = nn.Embedding(config.vocab, config.width)
        self.positions = nn.Parameter(torch.empty(config.context, config.width))
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.depth))
        self.norm_post = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.projection = nn.Linear(config.width, embed_dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) int -> (B, D)"""
        return self.leave(_through(self.blocks, self.enter(tokens), self.ends(tokens), self.causal))

    def enter(self, tokens: Tensor) -> Tensor:
        """(B, T) int -> (B, T, width): the residual stream before the first block."""
        return self.tokens(tokens) + self.positions[: tokens.shape[1]]  # type: ignore[no-any-return]

    def ends(self, tokens: Tensor) -> Tensor:
        """(B, T) int -> (B,): where each text is pooled; what follows cannot reach the output."""
        scores = tokens if self.eos_token_id == LEGACY_EOS else (tokens == self.eos_token_id).int()
        return scores.argmax(dim=-1)

    def leave(self, pooled: Tensor) -> Tensor:
        """(B, 1, width) -> (B, D): the token that is read, behind the last block."""
        return self.projection(self.norm_post(pooled[:, 0]))  # type: ignore[no-any-return]


def _through(blocks: nn.ModuleList, x: Tensor, ends: Tensor, causal: bool) -> Tensor:
    """(B, T, width), (B,) -> (B, 1, width): all blocks; the last one computes the token that is read."""
    for block in blocks[:-1]:
        x = block(x, causal)
    pooled: Tensor = blocks[-1](x, causal, ends)
    return pooled


class DualEncoder(nn.Module):
    """An image and a text tower that embed into one space."""

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.image = ImageTower(config.image, config.embed_dim)
        self.text = TextTower(config.text, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) normalized float -> (B, D) of unit norm"""
        return F.normalize(self.image(pixels), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(B, T) int -> (B, D) of unit norm"""
        return F.normalize(self.text(tokens), dim=-1)

    def forward(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Both embeddings in one call, which is what DistributedDataParallel wraps."""
        return self.encode_image(pixels), self.encode_text(tokens)

    def linears(self) -> Iterator[tuple[str, nn.Linear]]:
        """The Linear groups that INT8 may take: `image.blocks.0.qkv`, … in order."""
        for name, module in self.named_modules():
            if ".blocks." in name and isinstance(module, nn.Linear):
                yield name, module

    def attentions(self) -> Iterator[tuple[str, Attention]]:
        """`image.blocks.0.attention`, … in order."""
        for name, module in self.named_modules():
            if isinstance(module, Attention):
                yield name, module


def initialize(model: DualEncoder, seed: int) -> DualEncoder:
    """Random weights as in CLIP's reference code: residual outputs scaled down with depth (GPT-2, section 2.3)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, std: float) -> None:
        nn.init.normal_(tensor, std=std, generator=generator)

    for tower, config in ((model.image, model.config.image), (model.text, model.config.text)):
        width = config.width
        normal(tower.positions, 0.01)
        normal(tower.projection.weight, width**-0.5)
        for block in tower.blocks:
            assert isinstance(block, Block)
            normal(block.qkv.weight, width**-0.5)
            normal(block.out.weight, width**-0.5 * (2 * config.depth) ** -0.5)
            normal(block.fc1.weight, (2 * width) ** -0.5)
            normal(block.fc2.weight, width**-0.5 * (2 * config.depth) ** -0.5)
            for linear in (block.qkv, block.out, block.fc1, block.fc2):
                nn.init.zeros_(linear.bias)
    normal(model.image.class_token, model.config.image.width**-0.5)
    normal(model.image.patch.weight, (3 * model.config.image.patch**2) ** -0.5)
    normal(model.text.tokens.weight, 0.02)
    return model


def _first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    return next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)
