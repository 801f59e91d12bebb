"""What a dual encoder is made of: plain numbers, without torch.

A pruned model is a smaller config plus safetensors. Heads and MLP units are listed block by block, so that loading,
exporting and resuming a pruned model are ordinary construction. Everything that only has to *know* a model (manifests,
reports, devices) reads this module; `model.py` builds it in torch and `export/onnx.py` in ONNX.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator
from typing_extensions import Self

Activation = Literal["quick_gelu", "gelu"]
WEIGHTS = "model.safetensors"
LEGACY_EOS = 2
"""The end token that old CLIP configs state while their tokenizer has another: texts are pooled at the largest id."""
"""The file of a checkpoint that holds its tensors."""


class Config(BaseModel):
    """A frozen set of values that refuses unknown keys, NaN and infinity; each field's docstring says what it means."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class TowerConfig(Config):
    """A pre-LayerNorm transformer whose blocks may differ in heads and MLP units."""

    width: int
    """Channels of the residual stream."""
    head_dim: int
    """Channels of each attention head."""
    heads: tuple[int, ...]
    """Attention heads of each block."""
    mlp: tuple[int, ...]
    """Hidden MLP units of each block."""
    activation: Activation = "quick_gelu"
    """`quick_gelu` is x * sigmoid(1.702 x), OpenAI's; `gelu` is the exact one."""
    layer_norm_eps: float = 1e-5

    @model_validator(mode="after")
    def _blocks_agree(self) -> Self:
        if len(self.heads) != len(self.mlp):
            raise ValueError(f"heads lists {len(self.heads)} blocks and mlp lists {len(self.mlp)}")
        if not self.heads or min(self.width, self.head_dim, *self.heads, *self.mlp) < 1:
            raise ValueError("a tower needs at least one block, and every size must be 1 or more")
        return self

    @property
    def depth(self) -> int:
        return len(self.heads)

    @property
    def uniform(self) -> bool:
        """Every block alike and heads that fill the width: what a Hugging Face CLIP config can say."""
        same = len(set(self.heads)) == 1 and len(set(self.mlp)) == 1
        return same and self.heads[0] * self.head_dim == self.width

    def block_params(self) -> int:
        total = 0
        for heads, mlp in zip(self.heads, self.mlp, strict=True):
            inner = heads * self.head_dim
            total += 4 * self.width * inner + 3 * inner + self.width  # QKV and out-projection
            total += 2 * self.width * mlp + mlp + self.width  # FC1 and FC2
            total += 4 * self.width  # two LayerNorms
        return total

    def block_macs(self, tokens: int) -> int:
        """Multiply-accumulates of all blocks for one sequence, attention products included."""
        total = 0
        for heads, mlp in zip(self.heads, self.mlp, strict=True):
            inner = heads * self.head_dim
            total += tokens * (4 * self.width * inner + 2 * self.width * mlp)
            total += 2 * tokens * tokens * inner
        return total


class ImageConfig(TowerConfig):
    """Vision transformer with a class token (Dosovitskiy et al. 2021, CLIP's variant: LayerNorm before the blocks)."""

    image_size: int
    """Side of the square input, in pixels."""
    patch: int
    """Side of a patch, in pixels."""

    @model_validator(mode="after")
    def _patches_fit(self) -> Self:
        if self.image_size % self.patch:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch {self.patch}")
        return self

    @property
    def tokens(self) -> int:
        return (self.image_size // self.patch) ** 2 + 1

    def params(self, embed_dim: int) -> int:
        stem = 3 * self.patch**2 * self.width + self.width + self.tokens * self.width
        return stem + 4 * self.width + self.block_params() + self.width * embed_dim

    def macs(self, embed_dim: int) -> int:
        """Multiply-accumulates for one image."""
        stem = (self.tokens - 1) * 3 * self.patch**2 * self.width
        return stem + self.block_macs(self.tokens) + self.width * embed_dim

    def pooled_macs(self, embed_dim: int) -> int:
        """The same in the exported graph, whose last block has one query: keys and values only are of all tokens."""
        inner, mlp = self.heads[-1] * self.head_dim, self.mlp[-1]
        saved = 2 * self.width * (inner + mlp) + 2 * self.tokens * inner
        return self.macs(embed_dim) - (self.tokens - 1) * saved


class TextConfig(TowerConfig):
    """Causal text transformer that pools at the end-of-text token (Radford et al. 2021, section 2.4)."""

    vocab: int
    context: int
    """Longest sequence, in tokens, begin and end included."""
    eos_token_id: int
    """Pool at its first occurrence; 2 is the legacy config of OpenAI's exports and pools at the largest id."""
    bos_token_id: int = 0
    pad_token_id: int = 1

    def params(self, embed_dim: int) -> int:
        embeddings = (self.vocab + self.context) * self.width
        return embeddings + 2 * self.width + self.block_params() + self.width * embed_dim

    def macs(self, embed_dim: int) -> int:
        """Multiply-accumulates for one text of full length."""
        return self.block_macs(self.context) + self.width * embed_dim


class DualEncoderConfig(Config):
    """An image tower and a text tower that embed into one space of `embed_dim` channels."""

    embed_dim: int
    image: ImageConfig
    text: TextConfig

    @property
    def params(self) -> int:
        """Parameters of both towers, the logit scale included."""
        return self.image.params(self.embed_dim) + self.text.params(self.embed_dim) + 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image through the image tower."""
        return self.image.macs(self.embed_dim)
