"""Transformer blocks in torch, and attention pooling: what the towers of `model.py` are made of.

Query, key and value are one Linear, as pruning, calibration and speed want it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmcompress.architecture import Activation, ImageConfig, PoolingHead, TowerConfig


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
        self.activation = config.activation
        inner = self.heads * config.head_dim
        self.norm1 = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.qkv = nn.Linear(config.width, 3 * inner)
        self.attention = Attention()
        self.out = nn.Linear(inner, config.width)
        self.norm2 = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.fc1 = nn.Linear(config.width, config.mlp[index])
        self.fc2 = nn.Linear(config.mlp[index], config.width)

    def forward(self, x: Tensor, causal: bool, pooled: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """(B, T, width) -> (B, T, width), or (B, 1, width) of the token `pooled` (B,), where nothing else is read.

        `mask` (B, 1, 1, T) is true for the tokens that are seen.
        """
        mixed = self.attended(x, causal, pooled, mask)
        x = (x if pooled is None else token_at(x, pooled)) + self.out(mixed)
        return x + self.fc2(self.hidden(x))  # type: ignore[no-any-return]

    def attended(self, x: Tensor, causal: bool, pooled: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """(B, T, width) -> (B, T or 1, heads * head_dim): what goes into the out-projection, head by head."""
        return self._mixed(self.norm1(x), causal, pooled, mask)

    def hidden(self, x: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, mlp): what goes into FC2."""
        return activated(self.fc1(self.norm2(x)), self.activation)

    def _mixed(self, x: Tensor, causal: bool, pooled: Tensor | None, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if pooled is not None:
            q = token_at(q.transpose(1, 2), pooled).transpose(1, 2)
            if causal:
                mask = (torch.arange(x.shape[1], device=x.device) <= pooled[:, None])[:, None, None]
        mixed: Tensor = self.attention(q, k, v, mask, causal and pooled is None)
        return mixed.transpose(1, 2).flatten(2)


class PostNormBlock(Block):
    """LayerNorm behind each sum, as in BERT (Vaswani et al. 2017, section 3.1): norm1(x + attention(x)), then
    norm2(x + mlp(x))."""

    def forward(self, x: Tensor, causal: bool, pooled: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        mixed = self._mixed(x, causal, pooled, mask)
        x = self.norm1((x if pooled is None else token_at(x, pooled)) + self.out(mixed))
        hidden = activated(self.fc1(x), self.activation)
        return self.norm2(x + self.fc2(hidden))  # type: ignore[no-any-return]


def activated(x: Tensor, kind: Activation) -> Tensor:
    if kind == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


def token_at(x: Tensor, places: Tensor) -> Tensor:
    """(B, T, ...), (B,) -> (B, 1, ...): one token of each sequence."""
    return x[torch.arange(len(x), device=x.device), places][:, None]


class AttentionPooling(nn.Module):
    """`PoolingHead` in torch: a learned query reads all tokens. Its Linears are no blocks' and stay in float: in the
    exported graph they cost less than a hundredth of the tower."""

    def __init__(self, config: PoolingHead, tower: ImageConfig, width: int) -> None:
        super().__init__()
        self.heads, self.activation = config.heads, tower.activation
        self.probe = nn.Parameter(torch.zeros(width))
        self.query = nn.Linear(width, width)
        self.kv = nn.Linear(tower.width, 2 * width)
        self.attention = Attention()
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, tower.layer_norm_eps)
        self.fc1 = nn.Linear(width, config.mlp)
        self.fc2 = nn.Linear(config.mlp, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width of the tower) -> (B, D)"""
        k, v = self.kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q = self.query(self.probe).view(1, self.heads, 1, -1).expand(len(x), -1, -1, -1)
        x = self.out(self.attention(q, k, v, None, False).flatten(1))
        return x + self.fc2(activated(self.fc1(self.norm(x)), self.activation))  # type: ignore[no-any-return]
