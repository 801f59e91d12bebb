"""Checkpoints on disk: Hugging Face folders, whose config and tensor names are mapped to the towers of `model.py`.

The maps are tables of names, so reading and writing are the same table in both directions, and loading is strict: the
first tensor that is missing, unexpected or of another shape is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmcompress.architecture import WEIGHTS, DualEncoderConfig, ImageConfig, TextConfig, TowerConfig
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.model import DualEncoder, _first_not_finite
from mmcompress.strictjson import json_from_text, read_json, text_from_json

FOLDER_FILES = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "preprocessor_config.json")
"""What a checkpoint takes over from the one it was made from."""


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
    tensors: dict[str, Tensor] = {}
    for ours, theirs in _tensor_names(config):
        tensors.update(zip(theirs, state[ours].chunk(len(theirs)) if len(theirs) > 1 else (state[ours],), strict=True))
    return tensors


def state_from_hugging_face(tensors: Mapping[str, Tensor], config: DualEncoderConfig) -> dict[str, Tensor]:
    """The inverse of `hugging_face_from_state`."""
    return {
        ours: torch.cat([tensors[n] for n in theirs]) if len(theirs) > 1 else tensors[theirs[0]]
        for ours, theirs in _tensor_names(config)
    }


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
