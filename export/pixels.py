"""A teacher's image processor as the rule that a device repeats: read off transformers' own object, then tried.

The config is not read by hand: what a key is called, what stands for an absent one, and which keys a class ignores is
known to the class alone. Keys that no device repeats are refused by name. What a class does beyond its keys shows when
it prepares a few odd images, which our own code must match to a level of 255.
"""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any, NoReturn, get_args

import numpy as np
from PIL import Image

from mmcompress.checkpoints import is_own_checkpoint, own_checkpoint
from mmcompress.data.preprocess import normalize, to_array
from mmcompress.errors import UsageError
from mmcompress.export.folders import config_of, image_processor_of
from mmcompress.export.oddities import odd_images
from mmcompress.foreign import foreign_code
from mmcompress.manifest import Preprocessing
from mmcompress.pretrained import quiet
from mmcompress.towerparts import LARGEST_SIDE

LEVELS = 1.0
"""How far the same pixel may lie apart, of 255: two resizers round differently, another filter or crop is far more."""
_CONVOLUTIONS = ("convnext", "convnextv2")
"""Whose configs state an image_size and a patch_size that they do not read."""
_FILTERS = {
    Image.Resampling[name.upper()].value: name
    for name in get_args(Preprocessing.model_fields["interpolation"].annotation)
}
_FLAGS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}


def image_processing(folder: Path, trust_remote_code: bool = False) -> Preprocessing:
    """How a Hugging Face folder prepares images. UsageError, with the key, for what a device cannot repeat exactly."""
    if is_own_checkpoint(folder):
        return own_checkpoint(folder).image_processing
    processor = image_processor_of(folder, trust_remote_code)
    with foreign_code(f"reading the {type(processor).__name__} in {folder}", "a value in its config makes no sense"):
        rule = rule_from_processor(processor)
    _check_repeats(processor, rule)
    _check_model(folder, rule, trust_remote_code)
    return rule


def rule_from_processor(processor: Any) -> Preprocessing:
    """What the attributes of a processor of transformers say."""
    if _stated(processor, "max_num_patches") is not None:
        _refuse(
            processor, "max_num_patches", "images of one shape", "take the model of a fixed size, not the NaFlex one"
        )
    if not _stated(processor, "do_resize", True):
        _refuse(processor, "do_resize", "true", "a device has to make images of any size the model's: set it")
    for key, value in vars(processor).items():
        if key.startswith("do_") and value and key not in _FLAGS and _takes(processor, key):
            _refuse(processor, key, "no such step", "set it to false if the model does not depend on it")
    size, resize, squash = _sizes(processor)
    for side, key in ((size, "crop_size" if _stated(processor, "do_center_crop", False) else "size"), (resize, "size")):
        if side > LARGEST_SIDE:
            _refuse(processor, key, f"at most {LARGEST_SIDE} pixels", "give it the model's image_size")
    stated = _stated(processor, "resample")
    interpolation = _FILTERS.get(stated) if isinstance(stated, int) else None
    if interpolation is None:  # newer Pillows have more, which the one on a device need not know
        _refuse(processor, "resample", "0 to 5, a filter of Pillow", "3 is bicubic, 2 bilinear")
    factor = 255 * (_stated(processor, "rescale_factor", 0) if _stated(processor, "do_rescale", True) else 1)
    if not 0 < factor < math.inf:
        _refuse(processor, "rescale_factor", "a number above 0", "1/255 makes of a byte a number from 0 to 1")
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    if _stated(processor, "do_normalize", True):
        mean, std = _of_channels(processor, "image_mean"), _of_channels(processor, "image_std")
    # (factor * v - mean) / std of a value v in [0, 1] is (v - mean / factor) / (std / factor)
    return Preprocessing.model_validate(
        {
            "size": size,
            "resize": resize,
            "squash": squash,
            "interpolation": interpolation,
            "mean": tuple(value / factor for value in mean),
            "std": tuple(value / factor for value in std),
        }
    )


def _takes(processor: Any, key: str) -> bool:
    """Whether the class knows a key; transformers stores unknown ones of a config as attributes too."""
    return hasattr(type(processor), key) or key in inspect.signature(type(processor).__init__).parameters


def _stated(processor: Any, key: str, otherwise: Any = None) -> Any:
    value = getattr(processor, key, None) if _takes(processor, key) else None
    return otherwise if value is None else value


def _sizes(processor: Any) -> tuple[int, int, bool]:
    """(crop, resize, squash), as `Preprocessing` calls them."""
    size = _stated(processor, "size")
    stated = {key: value for key, value in dict(size).items() if value} if hasattr(size, "keys") else {}
    side = stated.get("shortest_edge") or stated.get("height")
    if side is True or not side or side < 1 or stated not in ({"shortest_edge": side}, {"height": side, "width": side}):
        _refuse(processor, "size", "a shortest_edge, or an equal height and width", "give it the model's image_size")
    squash = "height" in stated
    share = _stated(processor, "crop_pct")
    if share is not None:  # ConvNeXt: below 384 pixels an image is resized to more than is cropped out of it
        return (side, int(side / share), False) if side < 384 else (side, side, True)
    if not _stated(processor, "do_center_crop", False):
        if not squash:
            _refuse(processor, "do_center_crop", "true where size is a shortest_edge", "the images would be no squares")
        return side, side, True
    crop = {"height": 0, **dict(_stated(processor, "crop_size", {}))}
    if crop["height"] < 1 or crop != {"height": crop["height"], "width": crop["height"]}:
        _refuse(processor, "crop_size", "an equal height and width", "give it the model's image_size")
    return crop["height"], side, squash


def _of_channels(processor: Any, key: str) -> tuple[float, ...]:
    value = _stated(processor, key)
    values = (value,) * 3 if isinstance(value, (int, float)) else tuple(value or ())
    numbers = all(isinstance(each, int | float) and math.isfinite(each) for each in values)
    if len(values) != 3 or not numbers or (key == "image_std" and not all(values)):
        _refuse(processor, key, "a number each for red, green and blue", "one for all is fine; none of std is 0")
    return values


def _refuse(processor: Any, key: str, expected: str, hint: str) -> NoReturn:
    raise UsageError(
        f"the teacher's {type(processor).__name__} has {key} = {getattr(processor, key, None)!r}, expected {expected}",
        hint,
    )


def _check_repeats(processor: Any, rule: Preprocessing) -> None:
    """The processor itself against our own code, on odd images."""
    name = type(processor).__name__
    for image in odd_images(rule.size):
        what = f"an image of {image.width} x {image.height} pixels"
        with np.errstate(all="ignore"):  # of a std that is nearly 0, say, whose numbers are compared below
            ours = normalize(to_array(image, rule)[None], rule)
        how = foreign_code(
            f"the teacher's {name} for {what}", "its config contradicts itself, or it needs more than an image"
        )
        with how, quiet():
            theirs = np.asarray(processor(images=[image], return_tensors="np")["pixel_values"], dtype=np.float32)
        if theirs.shape != ours.shape:
            raise UsageError(
                f"the teacher's {name} makes {what} an array of shape {theirs.shape}, expected {ours.shape}",
                "it does something that its keys do not say, so a device cannot repeat it",
            )
        apart = np.abs(ours - theirs) * np.array(rule.std, dtype=np.float32)[:, None, None] * 255
        if not apart.max() <= LEVELS + 1e-2:
            raise UsageError(
                f"the teacher's {name} prepares {what} otherwise than its keys say: {apart.max():.0f} of 255 levels"
                " apart from our own preprocessing",
                "a device would see other images than the teacher; write what it does as a CLIPImageProcessor",
            )


def _check_model(folder: Path, rule: Preprocessing, trust_remote_code: bool) -> None:
    """A model with learnt positions takes images of one size; one of convolutions has none."""
    if not (folder / "config.json").is_file():
        return
    vision = getattr(config_of(folder, trust_remote_code), "vision_config", None)
    side = getattr(vision, "image_size", None)
    positions = hasattr(vision, "patch_size") and getattr(vision, "model_type", "") not in _CONVOLUTIONS
    if isinstance(side, int) and positions and side != rule.size:
        raise UsageError(
            f"the processor in {folder} makes images of {rule.size} pixels, and its model takes {side}",
            "make crop_size (or size) in its config and image_size in config.json the same",
        )
