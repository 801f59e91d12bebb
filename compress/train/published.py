"""Students that start from a published MobileNetV4: a folder as timm puts it on the hub, read without timm.

`config.json` says the architecture, and how images were normalized; `model.safetensors` has the weights by timm's
names. Everything but the classifier is read, strictly; the projection into the teacher's space begins with random
weights, and so does the text tower, whose sizes are those of the preset of the same architecture.

Of how images are prepared the student takes two things from here: mean and standard deviation, which its first
convolution was trained with and which no weights can make up for where zeros are padded, and its image side where none
is asked for. What part of an image it sees is the teacher's rule (`processing.py`), as both learn from the same views.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmcompress.config import StudentConfig, TeacherConfig
from mmcompress.convnames import COUNTER, VARIANCE, conv_entries
from mmcompress.convnet import ConvConfig
from mmcompress.convtower import ConvTower
from mmcompress.errors import CorruptInputError, UsageError, suggestion
from mmcompress.progress import say
from mmcompress.strictjson import read_json
from mmcompress.teachers import resolve
from mmcompress.tensorentry import read_entries
from mmcompress.towerparts import LARGEST_SIDE
from mmcompress.weights import first_not_finite, not_finite, read_weights, weight_files

ARCHITECTURES = {
    "mobilenetv4_conv_small": "mnv4-s",
    "mobilenetv4_conv_medium": "mnv4-m",
    "mobilenetv4_conv_large": "mnv4-l",
    "mobilenetv4_hybrid_medium": "mnv4-hm",
}
"""timm's names, and the presets of the same towers."""
_COMPUTED = {"in_chans": 3, "global_pool": "avg"}
"""Arguments of timm's that change nothing here."""
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_CLASSIFIER = "classifier."
_RESTORE = "restore it from where it came"
Colour = tuple[float, float, float]
_LEAST = {"mean": 0.0, "std": 1e-3}
"""Of pixels in [0, 1]; a smaller divisor makes of them what no tower was trained on."""


@dataclass(frozen=True)
class Published:
    """What the folder of a published tower says of it."""

    folder: Path
    preset: str
    """The preset whose tower it has."""
    image_size: int
    """Side of the images that it was trained on, in pixels."""
    mean: Colour
    """Of values in [0, 1], for red, green and blue."""
    std: Colour
    """Of values in [0, 1], for red, green and blue."""


def published(student: StudentConfig) -> Published:
    """What a student of the hub or of a local folder starts from, fetched if need be."""
    return read_published(resolve(TeacherConfig(source=student.source), "student"))


def read_published(folder: Path) -> Published:
    """Raises UsageError for a tower that is none of `ARCHITECTURES`, or is computed otherwise than they are."""
    path = folder / "config.json"
    said = read_json(path, _RESTORE)
    architecture = said.get("architecture") if isinstance(said, dict) else None
    if not isinstance(architecture, str):
        raise UsageError(
            f"{path} names no architecture, so {folder} is no folder as timm publishes it",
            "give a hub id such as timm/mobilenetv4_conv_medium.e500_r224_in1k, or a folder with its files",
        )
    if architecture not in ARCHITECTURES:
        raise UsageError(f"{path}: a student cannot be a {architecture!r}", suggestion(architecture, ARCHITECTURES))
    arguments, given = said.get("model_args") or {}, said.get("pretrained_cfg") or said  # older: its keys on top
    for key, found in (("model_args", arguments), ("pretrained_cfg", given)):
        if not isinstance(found, dict):
            raise CorruptInputError(f"{path}: {key} is {found!r}, expected an object", _RESTORE)
    options = {"global_pool": said.get("global_pool", "avg"), **arguments}
    options.pop("num_classes", None)  # of the classifier, which is left out
    other = [f"{key} = {value!r}" for key, value in options.items() if _COMPUTED.get(key) != value]
    if other:
        raise UsageError(f"{path}: {other[0]} is not computed here", "give one that was made without it")
    sizes = given.get("input_size")
    whole = isinstance(sizes, list) and all(type(size) is int and 0 < size <= LARGEST_SIDE for size in sizes)
    if not whole or len(sizes) != 3 or sizes[0] != 3 or sizes[1] != sizes[2]:
        expected = f"3 channels and a square of 1 to {LARGEST_SIDE} pixels"
        raise CorruptInputError(f"{path}: input_size is {sizes!r}, expected {expected}", _RESTORE)
    mean, std = (_colour(given, key, path) for key in ("mean", "std"))
    return Published(folder, ARCHITECTURES[architecture], sizes[1], mean, std)


def load_published(tower: ConvTower, config: ConvConfig, found: Published) -> None:
    """Read the weights into a tower whose projection stays as it is.

    Raises CorruptInputError that names the first tensor that is missing, unexpected, misshapen or not finite.
    """
    tensors = {name: x for file in weight_files(found.folder) for name, x in read_weights(file).items()}
    entries = [*conv_entries(config)]
    known = {name for entry in entries for name in entry.theirs}
    classifier = [name for name in tensors if name.startswith(_CLASSIFIER)]
    for name in tensors:
        if name not in known and name not in classifier and not name.endswith(COUNTER):
            raise CorruptInputError(f"{found.folder}: unexpected tensor {name!r}", _RESTORE)
    for name, x in tensors.items():
        if name in known and x.dtype not in _FLOATS:
            said = f"tensor {name!r} holds {str(x.dtype).removeprefix('torch.')}, expected float32, float16 or bfloat16"
            raise UsageError(f"{found.folder}: {said}", "give the model that it was made from: it is quantized here")
    floats = {name: x.float() for name, x in tensors.items() if name in known}
    state: Mapping[str, Tensor] = read_entries(entries, floats, str(found.folder))
    if (broken := first_not_finite(floats.items())) is not None:
        raise not_finite(found.folder, broken)
    for name, x in floats.items():
        if name.endswith(VARIANCE) and float(x.min()) < 0:
            raise CorruptInputError(f"{found.folder}: tensor {name!r} has a negative variance", _RESTORE)
    tower.load_state_dict({**state, "projection.weight": tower.projection.weight.detach()}, strict=True)
    classes = next((x.shape[0] for name in classifier if (x := tensors[name]).ndim), 0)
    left = f"; the classifier of {classes} classes is left out" if classes else ""
    say("", "student", f"published weights of {found.preset}{left}")


def _colour(given: Mapping[str, Any], key: str, path: Path) -> Colour:
    values = given.get(key)
    numbers = isinstance(values, list) and all(type(x) in (int, float) for x in values)
    if not isinstance(values, list) or len(values) != 3 or not numbers:
        raise CorruptInputError(f"{path}: {key} is {values!r}, expected a number for each of three colours", _RESTORE)
    if not _LEAST[key] <= min(values) <= max(values) <= 1:
        raise CorruptInputError(
            f"{path}: {key} is {values!r}, expected numbers from {_LEAST[key]:g} to 1, of pixels in [0, 1]",
            "write what they were normalized with: of 0 to 255, divided by 255",
        )
    red, green, blue = map(float, values)
    return red, green, blue
