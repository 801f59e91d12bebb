"""What a dual encoder is made of: plain numbers, without torch.

A pruned model is a smaller config plus safetensors. Heads and MLP units are listed block by block, so that loading,
exporting and resuming a pruned model are ordinary construction. Everything that only has to *know* a model (manifests,
reports, devices) reads this module; `model.py` builds it in torch and `export/towers.py` in ONNX.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag, model_validator
from typing_extensions import Self

from mmcompress.convnet import ConvConfig
from mmcompress.errors import UsageError
from mmcompress.frozen import Config
from mmcompress.towerparts import Group, ImageSizes, Product

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]
WEIGHTS = "model.safetensors"
"""The file of a checkpoint that holds its tensors."""
NEVER_COMPRESSED = "stays as it is: its LayerNorms are behind its blocks"
"""Said of a text tower wherever one is left alone that others would prune, quantize or train."""
_UNSTATED_LARGEST = 2
"""End token of a document without `pooling` that means the largest id, as it did when the field did not exist."""


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
    """`quick_gelu` is x * sigmoid(1.702 x), OpenAI's; `gelu` is the exact one, `gelu_tanh` it by tanh."""
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
        """Every block alike and heads that fill the width: what a Hugging Face config can say."""
        same = len(set(self.heads)) == 1 and len(set(self.mlp)) == 1
        return same and self.heads[0] * self.head_dim == self.width

    def block_products(self, tokens: int) -> list[Product]:
        """The Linears of all blocks, for a sequence of so many tokens."""
        found = []
        for i, (heads, mlp) in enumerate(zip(self.heads, self.mlp, strict=True)):
            inner = heads * self.head_dim
            sizes = {
                "qkv": (self.width, 3 * inner),
                "out": (inner, self.width),
                "fc1": (self.width, mlp),
                "fc2": (mlp, self.width),
            }
            found += [Product(f"blocks.{i}.{part}", *size, tokens) for part, size in sizes.items()]
        return found

    def groups(self) -> list[Group]:
        """Heads and MLP units, block by block."""
        found = []
        for i, (heads, mlp) in enumerate(zip(self.heads, self.mlp, strict=True)):
            found.append(Group("heads", i, heads, (f"blocks.{i}.qkv",), f"blocks.{i}.out"))
            found.append(Group("mlp", i, mlp, (f"blocks.{i}.fc1",), f"blocks.{i}.fc2"))
        return found

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


class PoolingHead(Config):
    """Attention pooling (Lee et al. 2019, "Set Transformer", section 3.2, as SigLIP has it).

    A learned query reads all tokens, and an MLP follows. It is as wide as the embedding, whatever the residual stream
    is: a tower that has it needs no projection, and a narrower stream changes its keys and values alone.
    """

    heads: int
    """Attention heads; they share the channels of the embedding."""
    mlp: int
    """Hidden MLP units."""

    def params(self, width: int, embed_dim: int) -> int:
        attention = 2 * embed_dim * (embed_dim + 1) + 2 * embed_dim * (width + 1)  # query and out; keys and values
        return embed_dim + attention + 2 * embed_dim + (2 * embed_dim + 1) * self.mlp + embed_dim

    def macs(self, tokens: int, width: int, embed_dim: int) -> int:
        """Multiply-accumulates for one image."""
        attention = 2 * embed_dim**2 + 2 * tokens * (width + 1) * embed_dim
        return attention + 2 * embed_dim * self.mlp

    def folded_macs(self, tokens: int, width: int, embed_dim: int) -> int:
        """The same in the exported graph, where the query is in the keys' weights and values follow the pooling."""
        return 2 * tokens * width * self.heads + (width + embed_dim) * embed_dim + 2 * embed_dim * self.mlp


class ImageConfig(TowerConfig):
    """Vision transformer (Dosovitskiy et al. 2021) over square patches; what does not fill a patch is not read."""

    image_size: int
    """Side of the square input, in pixels."""
    patch: int
    """Side of a patch, in pixels."""
    head: PoolingHead | None = None
    """Attention pooling, with a patch bias and no LayerNorm before the blocks (SigLIP); None is CLIP's class token."""

    @model_validator(mode="after")
    def _patches_fit(self) -> Self:
        if self.patch < 1 or self.image_size < self.patch:
            raise ValueError(f"image_size {self.image_size} holds no patch of {self.patch} pixels")
        return self

    @property
    def output_stride(self) -> int:
        return self.patch

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch) ** 2

    @property
    def tokens(self) -> int:
        return self.patches + (self.head is None)

    def products(self) -> list[Product]:
        """The Linears that INT8 may take."""
        return self.block_products(self.tokens)

    def params(self, embed_dim: int) -> int:
        stem = (3 * self.patch**2 + 1) * self.width + self.tokens * self.width  # class token or bias
        if self.head is not None:
            return stem + self.block_params() + 2 * self.width + self.head.params(self.width, embed_dim)
        return stem + 4 * self.width + self.block_params() + self.width * embed_dim

    def macs(self, embed_dim: int) -> int:
        """Multiply-accumulates for one image."""
        inside = self.patches * 3 * self.patch**2 * self.width + self.block_macs(self.tokens)
        if self.head is not None:
            return inside + self.head.macs(self.tokens, self.width, embed_dim)
        return inside + self.width * embed_dim

    def pooled_macs(self, embed_dim: int) -> int:
        """The same in the exported graph: only what is read at the end is computed there."""
        if self.head is not None:
            sizes = (self.tokens, self.width, embed_dim)
            return self.macs(embed_dim) - self.head.macs(*sizes) + self.head.folded_macs(*sizes)
        inner, mlp = self.heads[-1] * self.head_dim, self.mlp[-1]
        saved = 2 * self.width * (inner + mlp) + 2 * self.tokens * inner
        return self.macs(embed_dim) - (self.tokens - 1) * saved


class TextConfig(TowerConfig):
    """Text transformer that is read at one token (Radford et al. 2021, section 2.4)."""

    vocab: int
    context: int
    """Longest sequence, in tokens, begin and end included."""
    eos_token_id: int
    bos_token_id: int = 0
    pad_token_id: int = 1
    pooling: Literal["end", "largest", "last", "first"]
    """The token that is read: the first `eos_token_id`; the first of the largest id, which CLIP computes where its
    config states the end token 2; the last of the context, padding included (SigLIP); the first (BERT)."""
    attention: Literal["causal", "masked", "full"] = "causal"
    """What a token sees: all before it; all but the padding behind the text; all of the context."""
    norm: Literal["pre", "post"] = "pre"
    """Where a block's LayerNorms are. A `post` tower (BERT) has one before its blocks too, and is never compressed."""
    final_norm: bool = True
    """A LayerNorm between the blocks and the projection."""
    projection_bias: bool = False

    @model_validator(mode="before")
    @classmethod
    def _of_an_older_version(cls, stated: Any) -> Any:
        if isinstance(stated, dict) and "pooling" not in stated:
            largest = stated.get("eos_token_id") == _UNSTATED_LARGEST
            return {**stated, "pooling": "largest" if largest else "end"}
        return stated

    @property
    def counts_written(self) -> bool:
        """Whether a position is how many tokens up to there are no padding, and row 0 is that of padding (XLM-R)."""
        return self.norm == "post" and self.final_norm

    @property
    def position_rows(self) -> int:
        return self.context + self.counts_written

    def products(self) -> list[Product]:
        """The Linears that INT8 may take."""
        return self.block_products(self.context)

    def params(self, embed_dim: int) -> int:
        embeddings = (self.vocab + self.position_rows) * self.width
        norms = 2 * self.width * (self.final_norm + (self.norm == "post"))
        return embeddings + norms + self.block_params() + (self.width + self.projection_bias) * embed_dim

    def macs(self, embed_dim: int) -> int:
        """Multiply-accumulates for one text of full length."""
        return self.block_macs(self.context) + self.width * embed_dim


def _image_kind(stated: Any) -> Any:
    """The kind of an image tower that a document states; those of vision transformers say none."""
    if isinstance(stated, dict):
        return stated.get("kind", "vit")
    return "conv" if isinstance(stated, ConvConfig) else "vit"


AnyImageConfig = Annotated[
    Annotated[ImageConfig, Tag("vit")] | Annotated[ConvConfig, Tag("conv")], Discriminator(_image_kind)
]
"""An image tower of any kind; `towerparts.ImageSizes` is what the kinds have in common."""


class DualEncoderConfig(Config):
    """An image tower and a text tower that embed into one space of `embed_dim` channels."""

    embed_dim: int
    image: AnyImageConfig
    text: TextConfig
    sigmoid: bool = False
    """Trained with the sigmoid loss (Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training"), so there is a
    logit bias beside the scale."""

    @model_validator(mode="after")
    def _head_fits(self) -> Self:
        head = self.image.head if isinstance(self.image, ImageConfig) else None
        if head is not None and self.embed_dim % head.heads:
            raise ValueError(f"{head.heads} pooling heads do not share {self.embed_dim} channels")
        return self

    def transformer_image(self, what: str, hint: str = "take a smaller preset instead, mnv4-s say") -> ImageConfig:
        """The image tower, for `what`, which takes vision transformers alone. Raises UsageError for another."""
        if isinstance(self.image, ImageConfig):
            return self.image
        raise UsageError(f"{what} takes vision transformers, and this image tower is convolutional", hint)

    @property
    def compressed(self) -> tuple[Literal["image", "text"], ...]:
        """The towers that are pruned and quantized: a text tower with LayerNorms behind its blocks stays as it is."""
        return ("image", "text") if self.text.norm == "pre" else ("image",)

    @property
    def params(self) -> int:
        """Parameters of both towers, logit scale and bias included."""
        return self.image_sizes.params(self.embed_dim) + self.text.params(self.embed_dim) + 1 + self.sigmoid

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image through the image tower."""
        return self.image_sizes.macs(self.embed_dim)

    @property
    def image_sizes(self) -> ImageSizes:
        """What the image tower says of itself, whatever its kind."""
        return self.image
