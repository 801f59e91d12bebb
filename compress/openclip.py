"""Teachers of open_clip: `NAME/TAG`, `NAME/FILE`, `hf-hub:OWNER/NAME` and `local-dir:FOLDER`.

What open_clip would do with a warning, or without one, is an error here: random weights where none were found,
positions stretched to another image size, an activation that is not the one the weights were trained with. Images are
prepared as its own transform does for the model, or the model is refused by name; texts go through its own tokenizer.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from zipfile import ZipFile, is_zipfile

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from mmcompress.compress.contract import Teacher, logits_of
from mmcompress.compress.opencliptowers import open_clip_towers
from mmcompress.compress.products import inferring
from mmcompress.compress.towers import Towers
from mmcompress.errors import (
    CorruptInputError,
    MissingRequirementError,
    MMCompressError,
    UsageError,
    require,
    suggestion,
)
from mmcompress.foreign import foreign_code
from mmcompress.manifest import Preprocessing
from mmcompress.progress import say
from mmcompress.teachers import OPEN_CLIP, OPEN_CLIP_SCHEMES, cached_folder, open_clip_weights
from mmcompress.weights import check_finite

RANDOM = "random"
"""The tag of somebody who wants random weights."""
_IN_FOLDERS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
"""Weights in a folder or repository with an `open_clip_config.json`, the first one first."""
_FILTERS: dict[str, Literal["bicubic", "bilinear"]] = {
    "bicubic": "bicubic",
    "bilinear": "bilinear",
    "random": "bicubic",
}
"""What images are resized with: of a model that was trained with either, open_clip takes bicubic."""
_LONGEST = 300
"""Characters of what open_clip says: of two models that do not belong together it names every tensor."""
_POSITIONS = ("positional_embedding", "visual.positional_embedding", "text.positional_embedding")


def check_open_clip(name: str) -> None:
    """Raise UsageError for a name that open_clip does not know, or that leaves its weights to chance. Loads nothing."""
    place = open_clip_weights(name)
    if name.startswith(OPEN_CLIP_SCHEMES):
        if place is not None and not (place / "open_clip_config.json").is_file():
            raise UsageError(f"{place} has no open_clip_config.json", "give a folder that open_clip saved")
        return
    open_clip = require("open_clip", "open-clip")
    architecture, _, tag = name.partition("/")
    if architecture not in open_clip.list_models():
        raise UsageError(f"open_clip has no model {architecture!r}", suggestion(architecture, open_clip.list_models()))
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if not tag:
        raise UsageError(
            f"{OPEN_CLIP}{name} names no weights, so they would be random",
            f"add a file or a tag: {OPEN_CLIP}{name}/TAG ({_known('', tags)}), or /{RANDOM} if that is what you want",
        )
    if place is not None and not place.is_file():
        raise UsageError(
            f"there is no file of weights {place}", f"an absolute path has two slashes: {OPEN_CLIP}NAME//…"
        )
    if place is None and tag != RANDOM and not open_clip.get_pretrained_cfg(architecture, tag):
        raise UsageError(f"open_clip has no weights {tag!r} of {architecture}", _known(tag, tags))


def check_open_clip_weights(source: str) -> None:
    """Raise CorruptInputError for weights on this machine with a number that is NaN or infinite.

    A TorchScript archive, as OpenAI's weights are published, is looked at when it has been loaded.
    """
    place = open_clip_weights(source.removeprefix(OPEN_CLIP)) or cached_folder(source)
    if place is not None and (file := _file_in(place)) is not None and not _is_torchscript(file):
        check_finite(file)


def _file_in(place: Path) -> Path | None:
    """A file of weights, or the one of a folder that open_clip takes; None where there is none of a usual name."""
    names = [place, *(place / name for name in _IN_FOLDERS)]
    return next((name for name in names if name.is_file()), None)


def _is_torchscript(file: Path) -> bool:
    if not is_zipfile(file):
        return False
    with ZipFile(file) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def _known(tag: str, tags: Sequence[str]) -> str:
    return suggestion(tag, tags) if tags else "it has no released weights: give a file"


def open_clip_teacher(name: str, device: torch.device) -> Teacher:
    """The model, in evaluation mode on the device, with its own tokenizer, context and preprocessing."""
    check_open_clip(name)
    open_clip = require("open_clip", "open-clip")
    with _own_errors(name):
        model, tokenizer = _loaded(open_clip, name)
        settings = open_clip.get_model_preprocess_cfg(model)
    model = model.eval().to(device)
    _warn_of_default(open_clip, name, settings)

    def encode_image(pixels: Tensor) -> Tensor:
        with inferring():
            return F.normalize(model.encode_image(pixels.to(device)).float(), dim=-1)

    def encode_text(texts: Sequence[str]) -> Tensor:
        with inferring():
            return F.normalize(model.encode_text(tokenizer(list(texts)).to(device)).float(), dim=-1)

    def towers() -> Towers:
        with _own_errors(name):
            return open_clip_towers(model, tokenizer, name)

    with _own_errors(name):
        width = encode_text(["a"]).shape[-1]
    return Teacher(
        encode_image,
        encode_text,
        preprocessing_from(settings, name),
        width,
        *logits_of(model),
        towers,
    )


def _loaded(open_clip: Any, name: str) -> tuple[Any, Any]:
    """The model with all of its weights, and its tokenizer."""
    if name.startswith(OPEN_CLIP_SCHEMES):
        model, place = open_clip.create_model(name, require_pretrained=True), open_clip_weights(name)
        if place is not None and (file := _file_in(place)) is not None and not _is_torchscript(file):
            _check_positions(model, file)
        return model, open_clip.get_tokenizer(name)
    architecture, _, tag = name.partition("/")
    place = open_clip_weights(name)
    options: dict[str, Any] = {}
    if place is None and tag != RANDOM:
        # the activation is a property of the weights, which open_clip leaves to the architecture's name
        options["quick_gelu"] = bool(open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu", False))
    pretrained = None if tag == RANDOM else tag if place is None else str(place)
    model = open_clip.create_model(
        architecture, pretrained=pretrained, require_pretrained=tag != RANDOM, pretrained_text=False, **options
    )
    if place is not None:
        _check_positions(model, place)
    return model, open_clip.get_tokenizer(architecture)


def _check_positions(model: Any, place: Path) -> None:
    """open_clip stretches the positions of another image size or context to fit; the rest it loads strictly."""
    expected, stored = model.state_dict(), _stored_shapes(place)
    for key in _POSITIONS:
        if key in stored and key in expected and stored[key] != tuple(expected[key].shape):
            raise CorruptInputError(
                f"{place}: tensor {key!r} has shape {stored[key]}, expected {tuple(expected[key].shape)}",
                "the weights are of another image size or context: name their own architecture, or correct its config",
            )


def _stored_shapes(place: Path) -> dict[str, tuple[int, ...]]:
    """Of the tensors in a file of weights, without reading their numbers; a prefix of DataParallel is taken off."""
    if place.suffix == ".safetensors":
        with safe_open(place, framework="pt") as reader:
            return {key: tuple(reader.get_slice(key).get_shape()) for key in reader.keys()}  # noqa: SIM118
    stored = torch.load(place, map_location="meta", weights_only=True)
    stored = stored.get("state_dict", stored)
    return {key.removeprefix("module."): tuple(value.shape) for key, value in stored.items() if torch.is_tensor(value)}


def preprocessing_from(settings: Mapping[str, Any], name: str) -> Preprocessing:
    """open_clip's settings as a rule that a device repeats; UsageError, with the setting, for what it cannot."""
    with foreign_code(f"reading how {OPEN_CLIP}{name} prepares images", "correct preprocess_cfg in its config"):
        return _rule(settings, name)


def _rule(settings: Mapping[str, Any], name: str) -> Preprocessing:
    size = settings["size"]
    sides = {size} if isinstance(size, int) else set(size)
    mode = settings.get("resize_mode") or "shortest"
    if len(sides) > 1:
        raise UsageError(f"{OPEN_CLIP}{name} takes images of {size}, which are not square", "give another model")
    if mode not in ("shortest", "squash"):
        raise UsageError(
            f"{OPEN_CLIP}{name} prepares images with resize_mode {mode!r}, which no device here repeats",
            "give a model whose resize_mode is shortest or squash",
        )
    filter_name = settings.get("interpolation") or "bicubic"
    if filter_name not in _FILTERS:
        raise UsageError(
            f"{OPEN_CLIP}{name} resizes images with interpolation {filter_name!r}, which open_clip's own transform "
            "does not take",
            f"say {' or '.join(map(repr, _FILTERS))} in preprocess_cfg, as the model was trained",
        )
    (side,) = sides
    mean, std = (
        value if isinstance(value, Sequence) else (value,) * 3 for value in (settings["mean"], settings["std"])
    )
    return Preprocessing(
        size=side,
        resize=side,
        squash=mode == "squash",
        interpolation=_FILTERS[filter_name],
        centre="even",
        mean=tuple(mean),
        std=tuple(std),
    )


def _warn_of_default(open_clip: Any, name: str, settings: Mapping[str, Any]) -> None:
    """A bare file of weights says nothing of its images, and open_clip takes OpenAI's rule for all of them."""
    place = open_clip_weights(name)
    if place is None or name.startswith(OPEN_CLIP_SCHEMES):
        return
    architecture = name.partition("/")[0]
    keys = ("mean", "std", "interpolation", "resize_mode")
    known = [
        open_clip.get_pretrained_cfg(architecture, tag) for tag in open_clip.list_pretrained_tags_by_model(architecture)
    ]
    used = [settings.get(key) for key in keys]
    if known and all(_listed(tag, keys) != _listed(settings, keys) for tag in known):
        say(
            "",
            place.name,
            f"warning: open_clip prepares images for a file of weights by {dict(zip(keys, used, strict=True))}, and "
            f"for every released {architecture} otherwise: put an open_clip_config.json beside it, and give local-dir:",
        )


def _listed(settings: Mapping[str, Any], keys: Sequence[str]) -> list[Any]:
    values = [settings.get(key) for key in keys]
    return [list(value) if isinstance(value, tuple | list) else value for value in values]


@contextmanager
def _own_errors(name: str) -> Iterator[None]:
    """Silence what open_clip logs, which is judged here, and put what it raises into our words."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except MMCompressError:
        raise
    except ImportError as error:
        raise MissingRequirementError(
            f"open_clip needs another package for {name!r}: {_first_line(error)}", "install it: pip install timm, say"
        ) from error
    except Exception as error:
        what = f"open_clip cannot load {name!r}: {_first_line(error)}"
        if open_clip_weights(name) is None:
            raise MissingRequirementError(
                what, "its weights come from a hub: check the network and the name"
            ) from error
        raise CorruptInputError(what, "check the weights; a tokenizer may have to come from a hub") from error
    finally:
        logging.disable(disabled)


def _first_line(error: Exception) -> str:
    """What it says first, with the next line where that one ends in a colon: the tensors that are missing, say."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1])
    return f"{said[:_LONGEST]}{'…' if len(said) > _LONGEST else ''}" or type(error).__name__
