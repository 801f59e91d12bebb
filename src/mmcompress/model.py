"""The dual encoder in torch, numerically equal to the families that it holds (`families.py`), as one model.

In memory a tower is flat and fused (`image.blocks.0.qkv`), which is what pruning, calibration and speed want; at rest
the tensors have the names of the family's own class (`tensornames.py`), so a checkpoint folder *is* a Hugging Face
folder while its blocks are uniform, and the same format with smaller tensors once it is pruned (`huggingface.py`).
Nothing is ever pickled.

What a token may see is derived from the ids: a causal tower that pools at the end of a text never sees what follows,
and a masked one takes for padding what follows the last id that is not `pad_token_id`. So a pad token inside a text is
seen, as tokenizers mask it; AltCLIP gives it the position of padding, and counts the others. Left out: dropout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmcompress.architecture import DualEncoderConfig, ImageConfig, TextConfig
from mmcompress.convnet import ConvConfig
from mmcompress.convtower import ConvTower, initialize_convolutions
from mmcompress.transformer import Attention, AttentionPooling, Block, PostNormBlock, token_at

MAX_LOGIT_SCALE = math.log(100.0)  # Radford et al. 2021, section 2.5


class Tower(nn.Module):
    """What both towers share: from inputs to a residual stream, through the blocks, and out at what is read."""

    causal: bool
    positions: nn.Parameter
    blocks: nn.ModuleList
    norm_post: nn.Module
    recomputing: Callable[..., Tensor] | None = None
    """What computes a block so that the backward pass does it again, and what is inside is not kept."""
    every: int = 1
    """Which blocks are passed in training: all, or every second one of a tower that is to be deeper later."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, ...) -> (B, D)"""
        return self.onward(self.enter(inputs), inputs)

    def onward(self, x: Tensor, inputs: Tensor, start: int = 0) -> Tensor:
        """The stream (B, T, width) before block `start` -> (B, D); the last block computes the token that is read, if
        there is only one.
        """
        mask = self.mask(inputs)
        *before, last = self.blocks[start :: self.every if self.training else 1]
        for block in before:
            x = self._behind(block, x, None, mask)
        return self.leave(self._behind(last, x, self.ends(inputs), mask))

    def _behind(self, block: nn.Module, x: Tensor, pooled: Tensor | None, mask: Tensor | None) -> Tensor:
        given = (x, self.causal, pooled, mask)
        behind: Tensor = block(*given) if self.recomputing is None else self.recomputing(block, *given)
        return behind

    def enter(self, inputs: Tensor) -> Tensor:
        """(B, ...) -> (B, T, width): the residual stream before the first block."""
        raise NotImplementedError

    def mask(self, inputs: Tensor) -> Tensor | None:
        """(B, 1, 1, T): the tokens that are seen, where it is neither all nor those before."""
        return None

    def ends(self, inputs: Tensor) -> Tensor | None:
        """(B,): the token that is read at the end; None where all are."""
        raise NotImplementedError

    def reach(self, inputs: Tensor) -> Tensor:
        """(B,): the last token that the embedding depends on."""
        return torch.full((len(inputs),), len(self.positions) - 1, device=inputs.device)

    def read(self, x: Tensor, inputs: Tensor) -> Tensor:
        """(B, T, width) behind the last block -> what `leave` takes."""
        ends = self.ends(inputs)
        return x if ends is None else token_at(x, ends)

    def leave(self, read: Tensor) -> Tensor:
        """(B, 1 or T, width) -> (B, D)"""
        raise NotImplementedError


class ImageTower(Tower):
    causal = False

    def __init__(self, config: ImageConfig, embed_dim: int) -> None:
        super().__init__()
        pooled = config.head is not None
        self.class_token = None if pooled else nn.Parameter(torch.zeros(config.width))
        self.patch = nn.Conv2d(3, config.width, config.patch, config.patch, bias=pooled)
        self.positions = nn.Parameter(torch.zeros(config.tokens, config.width))
        self.norm_pre = None if pooled else nn.LayerNorm(config.width, config.layer_norm_eps)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.depth))
        self.norm_post = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.head = None if config.head is None else AttentionPooling(config.head, config, embed_dim)
        self.projection = None if pooled else nn.Linear(config.width, embed_dim, bias=False)

    def enter(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, T, width)"""
        patches = self.patch(pixels)
        tokens = patches.flatten(2).transpose(1, 2)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(tokens), 1, -1), tokens], dim=1)
        x: Tensor = tokens + self._positions_of(patches.shape[-2:])
        return x if self.norm_pre is None else self.norm_pre(x)

    def _positions_of(self, grid: torch.Size) -> Tensor:
        """(T, width): the positions, interpolated for images that are still growing, which is in training alone."""
        own = len(self.positions) - (self.class_token is not None)
        if grid.numel() == own or not self.training:
            return self.positions
        side = math.isqrt(own)
        first, patches = self.positions[:-own], self.positions[-own:].T.unflatten(-1, (side, side))
        resized = F.interpolate(patches[None], grid, mode="bilinear", align_corners=False)[0]
        return torch.cat([first, resized.flatten(1).T])

    def ends(self, pixels: Tensor) -> Tensor | None:
        """(B, 3, H, W) -> (B,): the class token's place, the first."""
        return torch.zeros(len(pixels), dtype=torch.long, device=pixels.device) if self.head is None else None

    def leave(self, read: Tensor) -> Tensor:
        if self.head is not None:
            return self.head(self.norm_post(read))  # type: ignore[no-any-return]
        assert self.projection is not None
        return self.projection(self.norm_post(read[:, 0]))  # type: ignore[no-any-return]


class TextTower(Tower):
    def __init__(self, config: TextConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.causal = config.attention == "causal"
        post, sizes = config.norm == "post", (config.width, config.layer_norm_eps)
        self.tokens = nn.Embedding(config.vocab, config.width)
        self.positions = nn.Parameter(torch.zeros(config.position_rows, config.width))
        self.norm_pre = nn.LayerNorm(*sizes) if post else None
        self.blocks = nn.ModuleList((PostNormBlock if post else Block)(config, i) for i in range(config.depth))
        self.norm_post = nn.LayerNorm(*sizes) if config.final_norm else nn.Identity()
        self.projection = nn.Linear(config.width, embed_dim, bias=config.projection_bias)

    def enter(self, tokens: Tensor) -> Tensor:
        """(B, T) int -> (B, T, width)"""
        x: Tensor = self.tokens(tokens) + self._placed(tokens)
        return x if self.norm_pre is None else self.norm_pre(x)

    def _placed(self, tokens: Tensor) -> Tensor:
        """(B, T) int -> (T, width), or (B, T, width) where positions depend on what is written."""
        if not self.config.counts_written:
            return self.positions[: tokens.shape[1]]
        written = (tokens != self.config.pad_token_id).long()
        return self.positions[written.cumsum(dim=1) * written]

    def mask(self, tokens: Tensor) -> Tensor | None:
        if self.config.attention != "masked":
            return None
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return (places <= self.reach(tokens)[:, None])[:, None, None]

    def ends(self, tokens: Tensor) -> Tensor:
        """(B, T) int -> (B,): where each text is read."""
        match self.config.pooling:
            case "end":
                return (tokens == self.config.eos_token_id).int().argmax(dim=-1)
            case "largest":
                return tokens.argmax(dim=-1)
            case "last":
                return torch.full((len(tokens),), tokens.shape[1] - 1, device=tokens.device)
            case "first":
                return torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)

    def reach(self, tokens: Tensor) -> Tensor:
        if self.causal:
            return self.ends(tokens)
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        seen = tokens != self.config.pad_token_id if self.config.attention == "masked" else True
        return torch.where(torch.as_tensor(seen, device=tokens.device), places, 0).amax(dim=1)

    def leave(self, read: Tensor) -> Tensor:
        return self.projection(self.norm_post(read[:, 0]))  # type: ignore[no-any-return]


def image_tower(config: DualEncoderConfig) -> ImageTower | ConvTower:
    """The module from pixels (B, 3, H, W) to embeddings (B, D) of the kind that a config asks for."""
    if isinstance(config.image, ImageConfig):
        return ImageTower(config.image, config.embed_dim)
    return ConvTower(config.image, config.embed_dim)


class DualEncoder(nn.Module):
    """An image and a text tower that embed into one space."""

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.image: ImageTower | ConvTower = image_tower(config)
        self.text = TextTower(config.text, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if config.sigmoid else None

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
        for name, module in self._compressed_modules():
            if ".blocks." in name and isinstance(module, nn.Linear):
                yield name, module

    def products(self) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
        """The Linears and convolutions of the towers' configs, `image.blocks.0.expand`, … in order."""
        for tower in self.config.compressed:
            for product in getattr(self.config, tower).products():
                yield f"{tower}.{product.name}", getattr(self, tower).get_submodule(product.name)

    def attentions(self) -> Iterator[tuple[str, Attention]]:
        """`image.blocks.0.attention`, … in order."""
        for name, module in self._compressed_modules():
            if ".blocks." in name and isinstance(module, Attention):
                yield name, module

    def _compressed_modules(self) -> Iterator[tuple[str, nn.Module]]:
        for tower in self.config.compressed:
            yield from getattr(self, tower).named_modules(prefix=tower)


def initialize(model: DualEncoder, seed: int) -> DualEncoder:
    """Random weights as in CLIP's reference code: residual outputs scaled down with depth (GPT-2, section 2.3)."""
    generator = torch.Generator().manual_seed(seed)
    image = model.image

    def normal(tensor: Tensor, std: float) -> None:
        nn.init.normal_(tensor, std=std, generator=generator)

    for tower, config in ((image, model.config.image), (model.text, model.config.text)):
        if isinstance(tower, ConvTower) or isinstance(config, ConvConfig):
            continue
        width = config.width
        normal(tower.positions, 0.01)
        assert tower.projection is not None
        normal(tower.projection.weight, width**-0.5)
        for block in tower.blocks:
            assert isinstance(block, Block)
            normal(block.qkv.weight, width**-0.5)
            normal(block.out.weight, width**-0.5 * (2 * config.depth) ** -0.5)
            normal(block.fc1.weight, (2 * width) ** -0.5)
            normal(block.fc2.weight, width**-0.5 * (2 * config.depth) ** -0.5)
            for linear in (block.qkv, block.out, block.fc1, block.fc2):
                nn.init.zeros_(linear.bias)
    if isinstance(image, ConvTower):
        initialize_convolutions(image, generator)
    else:
        assert image.class_token is not None
        normal(image.class_token, len(image.class_token) ** -0.5)
        normal(image.patch.weight, (3 * image.patch.kernel_size[0] ** 2) ** -0.5)
    normal(model.text.tokens.weight, 0.02)
    return model
