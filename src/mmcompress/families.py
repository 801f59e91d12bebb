"""Families: what the `config.json` of a Hugging Face folder says of a dual encoder, and which stock class a model fits.

One `DualEncoder` holds them all, by a few options of its config (`architecture.py`): CLIP, MetaCLIP 2 (which reads a
text at its first end token), SigLIP and SigLIP 2 of fixed size, Chinese-CLIP and AltCLIP (whose image towers are
CLIP's, beside a text tower with LayerNorms behind its blocks). Absent keys are the family's own defaults, since
transformers' config classes read the file. What would be computed otherwise is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mmcompress.architecture import Activation, DualEncoderConfig, TowerConfig
from mmcompress.convnet import ConvConfig
from mmcompress.errors import CorruptInputError, MissingRequirementError, UsageError
from mmcompress.strictjson import json_from_text
from mmcompress.tensornames import unused_positions
from mmcompress.wrong import first_wrong

CLASSES = {
    "clip": "CLIP",
    "metaclip_2": "MetaClip2",
    "siglip": "Siglip",
    "chinese_clip": "ChineseCLIP",
    "altclip": "AltCLIP",
}
"""`model_type` of a config, and what the names of its classes in transformers begin with."""
_ACTIVATIONS: dict[str, Activation] = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_CLIP_LARGEST = 2
"""The end token of a CLIP config with which `CLIPTextModel`, and what copies it, reads a text at its largest id."""
_READ_AT_END = ("clip", "clipseg", "groupvit")
"""Those that read a text at any other end token that their config states. MetaCLIP 2 reads it at that one too."""


def config_from_hugging_face(folder: Path) -> DualEncoderConfig:
    """The model of a folder. Raises UsageError for another family, or an option of it that is not computed here."""
    path = folder / "config.json"
    try:
        family = json_from_text(path.read_bytes()).get("model_type")
    except FileNotFoundError as error:
        raise UsageError(f"{folder} has no config.json", "give a folder in Hugging Face format") from error
    except (ValueError, AttributeError) as error:
        raise CorruptInputError(f"{path} is not a JSON config: {error}", "restore it from where it came") from error
    if family == "siglip2":
        raise UsageError(
            f"{folder} is a SigLIP 2 of variable image sizes (NaFlex)",
            "give one of fixed size: its name ends in its image size, google/siglip2-base-patch16-224 say",
        )
    if family not in CLASSES:
        raise UsageError(f"{folder} is a {family!r} model", f"model_type must be one of {', '.join(CLASSES)}")
    try:
        source = _config_class(family).from_pretrained(folder)
        return DualEncoderConfig.model_validate(_read(family, source, path))
    except ValidationError as error:
        raise CorruptInputError(f"{path}{first_wrong(error)}", "restore it from where it came") from error
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, OSError) as error:
        raise CorruptInputError(f"{path} cannot be read: {error}", "restore it from where it came") from error


_IMAGE_TOWERS = {"clip": "CLIPVision", "siglip": "SiglipVision"}
_TEXT_TOWERS = {"clip": "CLIPText", "siglip": "SiglipText", "bert": "Bert"}
"""Families of towers that stand alone, and what the names of their config classes in transformers begin with."""


def image_tower_of(folder: Path) -> dict[str, Any]:
    """The image tower of a folder, of a whole model or of its vision model alone, as `ImageConfig` has it.

    Raises UsageError for another architecture.
    """
    family, source, path = _tower_config(folder, "image", "_vision_model", _IMAGE_TOWERS)
    if source.num_channels != 3:
        raise UsageError(f"{path}: images of {source.num_channels} channels", "only RGB is supported")
    tower = {**_tower(source, path), "image_size": source.image_size, "patch": source.patch_size}
    if family == "siglip":
        tower["head"] = {"heads": source.num_attention_heads, "mlp": source.intermediate_size}
    return tower


def text_tower_of(folder: Path) -> dict[str, Any]:
    """The text tower of a folder, of a whole model or of its text model alone, as `TextConfig` has it.

    Raises UsageError for another architecture.
    """
    family, source, path = _tower_config(folder, "text", "_text_model", _TEXT_TOWERS)
    return {**_tower(source, path), **_text("chinese_clip" if family == "bert" else family, source, path)}


def _tower_config(folder: Path, tower: str, ending: str, known: Mapping[str, str]) -> tuple[str, Any, Path]:
    path = folder / "config.json"
    try:
        stated = str(json_from_text(path.read_bytes()).get("model_type"))
    except FileNotFoundError as error:
        raise UsageError(f"{folder} has no config.json", "give a folder in Hugging Face format") from error
    except (ValueError, AttributeError) as error:
        raise CorruptInputError(f"{path} is not a JSON config: {error}", "restore it from where it came") from error
    family = stated.removesuffix(ending)
    if family not in known:
        raise UsageError(
            f"{folder} is a {stated!r} model, and the {tower} tower can be one of {', '.join(known)}",
            "give such a folder; a model of any two towers that is trained already is a teacher: docs/teachers.md",
        )
    try:
        return family, _config_class(known[family], whole=True).from_pretrained(folder), path
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, OSError) as error:
        raise CorruptInputError(f"{path} cannot be read: {error}", "restore it from where it came") from error


def _config_class(family: str, whole: bool = False) -> Any:
    import transformers

    name = f"{family if whole else CLASSES[family]}Config"
    if not hasattr(transformers, name):
        raise MissingRequirementError(
            f"transformers {transformers.__version__} has no {name}", "pip install -U transformers"
        )
    return getattr(transformers, name)


def _read(family: str, source: Any, path: Path) -> dict[str, Any]:
    vision, text = source.vision_config, source.text_config
    embed_dim = vision.hidden_size if family == "siglip" else source.projection_dim
    if vision.num_channels != 3:
        raise UsageError(f"{path}: images of {vision.num_channels} channels", "only RGB is supported")
    image = {**_tower(vision, path), "image_size": vision.image_size, "patch": vision.patch_size}
    if family == "siglip":
        if not getattr(vision, "vision_use_head", True):
            raise UsageError(f"{path}: no pooling head (vision_use_head)", "such a model has no image embedding")
        if text.projection_size != embed_dim:
            raise UsageError(
                f"{path}: images become {embed_dim} channels and texts {text.projection_size}",
                "they must share a space",
            )
        image["head"] = {"heads": vision.num_attention_heads, "mlp": vision.intermediate_size}
    return {
        "embed_dim": embed_dim,
        "image": image,
        "text": {**_tower(text, path), **_text(family, text, path)},
        "sigmoid": family == "siglip",
    }


def _tower(c: Any, path: Path) -> dict[str, Any]:
    width, heads, depth = c.hidden_size, c.num_attention_heads, c.num_hidden_layers
    if c.hidden_act not in _ACTIVATIONS:
        raise UsageError(f"{path}: activation {c.hidden_act!r}", f"supported are {', '.join(_ACTIVATIONS)}")
    if not heads or width % heads:
        raise CorruptInputError(f"{path}: {heads} heads do not share {width} channels", "restore it from where it came")
    return {
        "width": width,
        "head_dim": width // heads,
        "heads": (heads,) * depth,
        "mlp": (c.intermediate_size,) * depth,
        "activation": _ACTIVATIONS[c.hidden_act],
        "layer_norm_eps": c.layer_norm_eps,
    }


def _text(family: str, c: Any, path: Path) -> dict[str, Any]:
    """What is the text tower's alone. Token ids that a family never looks at may be absent."""
    eos, pad = c.eos_token_id, c.pad_token_id
    stated = {
        "vocab": c.vocab_size,
        "context": c.max_position_embeddings,
        "eos_token_id": 0 if eos is None and family in ("siglip", "chinese_clip", "altclip") else eos,
        "bos_token_id": c.bos_token_id or 0,
        "pad_token_id": (eos or 0) if pad is None else pad,
    }
    if family in ("clip", "metaclip_2"):
        return {**stated, "pooling": "largest" if end_read(family, c) is None else "end"}
    if family == "siglip":
        return {**stated, "pooling": "last", "attention": "full", "projection_bias": True}
    if getattr(c, "position_embedding_type", "absolute") != "absolute":
        raise UsageError(f"{path}: {c.position_embedding_type} positions", "absolute ones are supported")
    post = {**stated, "pooling": "first", "attention": "masked", "norm": "post"}
    if family == "chinese_clip":
        return {**post, "final_norm": False}
    return {**post, "projection_bias": True, "context": c.max_position_embeddings - c.pad_token_id - 1}


def end_read(family: str, text: Any) -> int | None:
    """The end token at which the stock class of a `model_type` reads a text; None where it reads it elsewhere.

    `text` is the config of its text tower. Elsewhere is the largest id, the first token or the last one.
    """
    end: int | None = getattr(text, "eos_token_id", None)
    if family == "metaclip_2" or (family in _READ_AT_END and end != _CLIP_LARGEST):
        return end
    return None


def check_states_end(path: Path, config: Mapping[str, Any]) -> None:
    """Raise UsageError where a config.json of a family that reads a text at its end token says null for it.

    One that is left out is the family's own.
    """
    text, family = config.get("text_config"), config.get("model_type")
    if family not in ("metaclip_2", *_READ_AT_END) or not isinstance(text, dict):
        return
    if text.get("eos_token_id", 0) is None:
        raise UsageError(
            f"{path} says eos_token_id = null in text_config, and a {family} model reads a text at that token",
            "state the id of the tokenizer's end token there; of OpenAI's tokenizer it is 49407",
        )


def check_end(where: str, end: int, read: int | None) -> None:
    """Raise UsageError where a tokenizer ends texts with another token than the one that its model reads them at."""
    if read is not None and end != read:
        raise UsageError(
            f"{where} ends texts with id {end}, and its model reads them at id {read} (eos_token_id of text_config)",
            "config.json and tokenizer do not belong together: restore both",
        )


def family_of(config: DualEncoderConfig) -> tuple[str | None, str]:
    """The `model_type` whose stock class computes this model, and otherwise None and why there is none."""
    image, text = config.image, config.text
    if isinstance(image, ConvConfig):
        return None, "its image tower is convolutional"
    for name, tower in (("image", image), ("text", text)):
        if not tower.uniform:
            return None, f"the blocks of its {name} tower differ, or their heads do not fill its width"
    options = (text.attention, text.norm, text.final_norm, text.projection_bias)
    if image.head is not None:
        if (image.head.heads, image.head.mlp, config.embed_dim) != (image.heads[0], image.mlp[0], image.width):
            return None, "its attention pooling has other sizes than its blocks"
        if options == ("full", "pre", True, True) and text.pooling == "last" and config.sigmoid:
            return "siglip", ""
    elif not config.sigmoid:
        if options == ("causal", "pre", True, False) and text.pooling in ("end", "largest"):
            return ("metaclip_2" if text.pooling == "end" and text.eos_token_id == _CLIP_LARGEST else "clip"), ""
        if options[:2] == ("masked", "post") and text.pooling == "first" and text.final_norm == text.projection_bias:
            return ("altclip" if text.final_norm else "chinese_clip"), ""
    return None, "its image tower and its text tower are of two families"


def hugging_face_config(config: DualEncoderConfig, family: str, dtype: str) -> dict[str, Any]:
    """The `config.json` from which the family's stock class builds this model; `dtype` is that of the weights."""
    image, text = config.transformer_image("a class of transformers"), config.text
    largest = family == "clip" and text.pooling == "largest"
    written: dict[str, Any] = {
        "architectures": [f"{CLASSES[family]}Model"],
        "model_type": family,
        "torch_dtype": dtype,
        "vision_config": {
            "model_type": f"{family}_vision_model",
            **_written(image),
            "image_size": image.image_size,
            "patch_size": image.patch,
        },
        "text_config": {
            "model_type": f"{family}_text_model",
            **_written(text),
            "vocab_size": text.vocab,
            "max_position_embeddings": text.position_rows + unused_positions(text),
            "bos_token_id": text.bos_token_id,
            "eos_token_id": _CLIP_LARGEST if largest else text.eos_token_id,
            "pad_token_id": text.pad_token_id,
        },
    }
    if family == "siglip":
        written["text_config"]["projection_size"] = config.embed_dim
        return written
    for part in (written, written["vision_config"], written["text_config"]):
        part["projection_dim"] = config.embed_dim
    if text.norm == "post":
        written["text_config"] |= {"type_vocab_size": 1, "project_dim": config.embed_dim}
    return written


def _written(c: TowerConfig) -> dict[str, Any]:
    return {
        "hidden_size": c.width,
        "num_attention_heads": c.heads[0],
        "num_hidden_layers": c.depth,
        "intermediate_size": c.mlp[0],
        "hidden_act": next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == c.activation),
        "layer_norm_eps": c.layer_norm_eps,
    }
