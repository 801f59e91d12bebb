"""The dual encoder in torch, numerically equal to the CLIP family, and its Hugging Face form on disk.

In memory the tower is flat and fused (`image.blocks.0.qkv`), which is what pruning, calibration and speed want; at rest
the tensors have the names of `transformers.CLIPModel`, so a checkpoint folder *is* a Hugging Face CLIP folder while its
blocks are uniform, and the same format with smaller tensors once it is pruned. Nothing is ever pickled.

Left out: attention dropout (CLIP has none) and padding masks (the text tower is causal and pools at the end-of-text
token, so what follows that token cannot reach the output).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mmcompress.architecture import WEIGHTS, DualEncoderConfig, ImageConfig, TextConfig, TowerConfig
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.strictjson import json_from_text, read_json, text_from_json

FOLDER_FILES = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")
"""What a checkpoint takes over from the one it was made from."""
LEGACY_EOS = 2
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


def config_from_hugging_face(folder: Path) -> DualEncoderConfig:
    """The sizes of a `transformers.CLIPModel` folder. Raises UsageError if it is of another family."""
    from transformers import CLIPConfig

    path = folder / "config.json"
    try:
        family = json_from_text(path.read_bytes()).get("model_type")
    except FileNotFoundError as error:
        raise UsageError(f"{folder} has no config.json", "give a folder in Hugging Face format") from error
    except (ValueError, AttributeError) as error:
        raise CorruptInputError(f"{path} is not a JSON config: {error}", "restore it from where it came") from error
    if family != "clip":
        raise UsageError(f"{folder} is a {family!r} model", "this needs one of the CLIP family (model_type 'clip')")
    source = CLIPConfig.from_pretrained(folder)
    vision, text = source.vision_config, source.text_config

    def tower(c: object) -> dict[str, object]:
        width, heads, depth = (getattr(c, k) for k in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
        activation = getattr(c, "hidden_act")  # noqa: B009
        if activation not in ("quick_gelu", "gelu"):
            raise UsageError(f"{path}: activation {activation!r}", "quick_gelu and gelu are supported")
        return {
            "width": width,
            "head_dim": width // heads,
            "heads": (heads,) * depth,
            "mlp": (getattr(c, "intermediate_size"),) * depth,  # noqa: B009
            "activation": activation,
            "layer_norm_eps": getattr(c, "layer_norm_eps"),  # noqa: B009
        }

    return DualEncoderConfig(
        embed_dim=source.projection_dim,
        image=ImageConfig.model_validate(
            {**tower(vision), "image_size": vision.image_size, "patch": vision.patch_size}
        ),
        text=TextConfig.model_validate(
            {
                **tower(text),
                "vocab": text.vocab_size,
                "context": text.max_position_embeddings,
                "eos_token_id": text.eos_token_id,
                "bos_token_id": text.bos_token_id or 0,
                "pad_token_id": text.pad_token_id if text.pad_token_id is not None else text.eos_token_id,
            }
        ),
    )


def dual_encoder_from_hugging_face(folder: str | Path) -> DualEncoder:
    """Load a Hugging Face CLIP folder, strictly, in float32."""
    folder = Path(folder)
    return dual_encoder_from_checkpoint(folder, config_from_hugging_face(folder))


def dual_encoder_from_checkpoint(folder: str | Path, config: DualEncoderConfig) -> DualEncoder:
    """Load weights with Hugging Face names into a model of the given sizes; the first tensor that differs is named."""
    model = DualEncoder(config)
    expected = hugging_face_from_state(model.state_dict(), config)
    tensors = _read_tensors(Path(folder))
    for name, tensor in expected.items():
        if name not in tensors:
            raise CorruptInputError(f"{folder}: tensor {name!r} is missing", "the weights do not belong to this config")
        if tensors[name].shape != tensor.shape:
            raise CorruptInputError(
                f"{folder}: tensor {name!r} has shape {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}",
                "the weights do not belong to this config",
            )
        if not tensors[name].is_floating_point():
            raise CorruptInputError(f"{folder}: tensor {name!r} is {tensors[name].dtype}", "expected a float type")
    broken = _first_not_finite({name: tensors[name] for name in expected})
    if broken is not None:
        raise CorruptInputError(
            f"{folder}: tensor {broken!r} has numbers that are NaN or infinite",
            "restore it from where it came, or train it again with a lower learning rate",
        )
    for name in tensors:
        if name not in expected and not name.endswith("position_ids"):
            raise CorruptInputError(f"{folder}: unexpected tensor {name!r}", "the weights do not belong to this config")
    model.load_state_dict(state_from_hugging_face({n: tensors[n].float() for n in expected}, config), strict=True)
    return model.eval()


def save_checkpoint(model: DualEncoder, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write `model.safetensors` with Hugging Face names and, while the towers are uniform, `config.json`.

    Raises UsageError, and writes nothing, for weights that are NaN or that the type cannot hold.
    """
    state = hugging_face_from_state(model.state_dict(), model.config)
    tensors = {k: v.detach().to("cpu", dtype).contiguous() for k, v in state.items()}
    broken = _first_not_finite(tensors)
    if broken is not None:
        raise UsageError(
            f"the model is broken: {broken!r} became NaN or infinite, so no checkpoint is written",
            "lower the learning rate; weights that float16 cannot hold are saved in float32",
        )
    save_file(tensors, folder / WEIGHTS)
    if model.config.image.uniform and model.config.text.uniform:
        text = text_from_json(hugging_face_config(model.config, dtype), indent=2)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def hugging_face_config(config: DualEncoderConfig, dtype: torch.dtype) -> dict[str, object]:
    """The `config.json` that `transformers.CLIPModel` reads."""

    def tower(c: TowerConfig) -> dict[str, object]:
        return {
            "hidden_size": c.width,
            "num_attention_heads": c.heads[0],
            "num_hidden_layers": c.depth,
            "intermediate_size": c.mlp[0],
            "hidden_act": c.activation,
            "layer_norm_eps": c.layer_norm_eps,
            "projection_dim": config.embed_dim,
        }

    vision = {"image_size": config.image.image_size, "patch_size": config.image.patch}
    text = {
        "vocab_size": config.text.vocab,
        "max_position_embeddings": config.text.context,
        "bos_token_id": config.text.bos_token_id,
        "eos_token_id": config.text.eos_token_id,
        "pad_token_id": config.text.pad_token_id,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "vision_config": {"model_type": "clip_vision_model", **tower(config.image), **vision},
        "text_config": {"model_type": "clip_text_model", **tower(config.text), **text},
    }


_TOWERS = {"image": "vision_model", "text": "text_model"}
_NAMES = {
    "image.class_token": "vision_model.embeddings.class_embedding",
    "image.patch.weight": "vision_model.embeddings.patch_embedding.weight",
    "image.positions": "vision_model.embeddings.position_embedding.weight",
    "image.norm_pre.weight": "vision_model.pre_layrnorm.weight",
    "image.norm_pre.bias": "vision_model.pre_layrnorm.bias",
    "image.norm_post.weight": "vision_model.post_layernorm.weight",
    "image.norm_post.bias": "vision_model.post_layernorm.bias",
    "image.projection.weight": "visual_projection.weight",
    "text.tokens.weight": "text_model.embeddings.token_embedding.weight",
    "text.positions": "text_model.embeddings.position_embedding.weight",
    "text.norm_post.weight": "text_model.final_layer_norm.weight",
    "text.norm_post.bias": "text_model.final_layer_norm.bias",
    "text.projection.weight": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_PARTS = {
    "norm1": "layer_norm1",
    "out": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}


def _tensor_names(config: DualEncoderConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each of our names with the Hugging Face names whose rows it stacks."""
    for ours, theirs in _NAMES.items():
        yield ours, (theirs,)
    for tower, depth in (("image", config.image.depth), ("text", config.text.depth)):
        for i in range(depth):
            layer = f"{_TOWERS[tower]}.encoder.layers.{i}"
            for leaf in ("weight", "bias"):
                qkv = tuple(f"{layer}.self_attn.{x}_proj.{leaf}" for x in "qkv")
                yield f"{tower}.blocks.{i}.qkv.{leaf}", qkv
                for part, theirs in _PARTS.items():
                    yield f"{tower}.blocks.{i}.{part}.{leaf}", (f"{layer}.{theirs}.{leaf}",)


def hugging_face_from_state(state: Mapping[str, Tensor], config: DualEncoderConfig) -> dict[str, Tensor]:
    """Our tensors under Hugging Face names, the fused QKV split in three."""
    found: dict[str, Tensor] = {}
    for ours, theirs in _tensor_names(config):
        found.update(zip(theirs, state[ours].chunk(len(theirs)) if len(theirs) > 1 else (state[ours],), strict=True))
    return found


def state_from_hugging_face(tensors: Mapping[str, Tensor], config: DualEncoderConfig) -> dict[str, Tensor]:
    """The inverse of `hugging_face_from_state`."""
    return {
        ours: torch.cat([tensors[n] for n in theirs]) if len(theirs) > 1 else tensors[theirs[0]]
        for ours, theirs in _tensor_names(config)
    }


def _first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    return next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of `model.safetensors`, or of the shards that its index lists."""
    index = folder / f"{WEIGHTS}.index.json"
    files = [WEIGHTS]
    if index.is_file():
        listed = read_json(index, "restore it from where it came")
        files = sorted({Path(name).name for name in listed["weight_map"].values()})
    tensors: dict[str, Tensor] = {}
    for name in files:
        path = folder / name
        if not path.is_file():
            raise UsageError(
                f"{folder} has no {name}",
                "give a folder with safetensors weights (pickled pytorch_model.bin files are not loaded)",
            )
        try:
            with safe_open(path, framework="pt") as reader:
                tensors.update({key: reader.get_tensor(key) for key in reader.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise CorruptInputError(f"{path} is damaged: {error}", "restore it from where it came") from error
    return tensors
