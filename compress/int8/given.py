"""Ranges that are given to another checkpoint, and names that are: whether they are of what it has.

Ranges belong to a model with certain blocks and to a strength of SmoothQuant, which is folded into its LayerNorms. So
they are given to a checkpoint as it is, a quantized one that is rounded anew or one that was trained on a little, and
are refused where the gains of its LayerNorms are others, or its first FC1, which tells another model; of convolutional
towers it is the gains of BatchNorms, which ranges behind them are proportional to, and the stem. A teacher's own file
is looked at before it becomes a checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmcompress.architecture import WEIGHTS, DualEncoderConfig, TowerConfig
from mmcompress.artifact import Artifact
from mmcompress.convblocks import FusedBlock, PlainBlock, UniversalBlock
from mmcompress.convnet import ConvConfig
from mmcompress.errors import CorruptInputError, UsageError, suggestion
from mmcompress.export.integers import OUTPUT
from mmcompress.int8 import TABLE, Range, attention_operands, linear_modules, products_called, read_ranges

SAME = 0.1
"""Median difference of a norm's gains, as a share, from which on it is another one."""
_LAYER_NORM = re.compile(r"layer_norm\d\.weight$")
_BATCH_NORM = re.compile(r"vision_model\.(.*\.)?(bn\d?|norm|norm_head)\.weight$")
_FIRST_FC1 = "layers.0.mlp.fc1.weight"
_STEM = "vision_model.conv_stem.weight"
ALIKE = 0.5
"""Cosine between two weights, below which they are of two models. Between random ones it is near 0."""


def check_keep(model: DualEncoderConfig, names: Collection[str]) -> None:
    """Raise UsageError for a name of nothing that is quantized in a model, and for every product of a tower."""
    known = (*linear_modules(model), *((TABLE,) if "text" in model.compressed else ()))
    for name in names:
        if name not in known:
            kinds = "Linear" if isinstance(model.image, TowerConfig) else "Linear or convolution"
            raise UsageError(f"quantize.keep: there is no {kinds} {name!r} in this model", suggestion(name, known))
    for tower in model.compressed if names else ():
        if {name for name in linear_modules(model) if name.startswith(f"{tower}.")} <= {*names}:
            kinds = products_called(model, tower)
            raise UsageError(
                f"quantize.keep names every {kinds} of the {tower} tower, so no INT8 of it would be left",
                "keep fewer; a whole tower in float is what `mmcompress export --precision fp32` writes",
            )


def check_same_blocks(given: Artifact, model: DualEncoderConfig) -> dict[str, Range]:
    """The ranges of a quantized checkpoint. Raises UsageError unless they are of what a model has."""
    ranges = read_ranges(given)
    wanted = {*linear_modules(model), *attention_operands(model), *given_on(model)}
    for name in sorted(wanted ^ set(ranges)):
        if name in ranges:
            raise UsageError(
                f"{given.path} has a range of {name}, which this model has not",
                "give --ranges of a checkpoint with the same blocks",
            )
        if name in given.manifest.facts.get("kept", ()):
            raise UsageError(
                f"{given.path} has no range of {name}, since it stays in float there",
                "quantize that one without its budgets: --set max_drop=null --set max_flips=null",
            )
        raise UsageError(f"{given.path} has no range of {name}", "give --ranges of a checkpoint with the same blocks")
    return ranges


def given_on(model: DualEncoderConfig) -> Iterator[str]:
    """What the convolutions of an image tower give to residual sums, to pooling and to the projection, by the names of
    the calibrated ranges."""
    if isinstance(model.image, ConvConfig):
        for name, block, inputs, _ in model.image.placed():
            if isinstance(block, (FusedBlock, UniversalBlock)) and block.residual(inputs):
                yield f"image.{name}.project.{OUTPUT}"
        if isinstance(block, PlainBlock):
            yield f"image.{name}.conv.{OUTPUT}"
        yield f"image.head.{OUTPUT}"


def check_same_weights(given: Artifact, source: Path) -> None:
    """Raise UsageError where the ranges of a quantized checkpoint are of other activations than those of the model in a
    folder: a checkpoint, or a teacher's. Tensors that are not in a `model.safetensors` there are not looked at.
    """
    if not (source / WEIGHTS).is_file():
        return
    with _opened(given.file(WEIGHTS)) as a, _opened(source / WEIGHTS) as b:
        both = sorted({*a.keys()} & {*b.keys()})
        gains = [name for name in both if _LAYER_NORM.search(name) or _BATCH_NORM.match(name)]
        for name in gains:
            if (theirs := a.get_slice(name).get_shape()) != (own := b.get_slice(name).get_shape()):
                raise UsageError(
                    f"{given.path} is {theirs[0]} channels wide at {name}, and {source} {own[0]}",
                    "give --ranges of a checkpoint with the same blocks",
                )
        for name in (name for name in both if name.endswith(_FIRST_FC1) or name == _STEM):
            if _cosine(_read_through(a, name), _read_through(b, name)) < ALIKE:
                raise UsageError(
                    f"the ranges of {given.path} are of another model than {source}: {name} is a different one",
                    "leave --ranges out, or give those of a checkpoint that has the same origin",
                )
        for name in gains:
            before = a.get_tensor(name).double()
            moved = ((b.get_tensor(name).double() - before).abs() / (before.abs() + 1e-6)).median().item()
            if moved > SAME:
                raise UsageError(
                    f"the ranges of {given.path} are of other activations: {name} differs from that of {source} by "
                    f"{moved:.0%}",
                    "they were trained too far apart: leave --ranges out"
                    if _BATCH_NORM.match(name)
                    else "SmoothQuant is folded into those weights: give ranges that were found with --set smooth=[], "
                    f"or quantize {given.path} itself again",
                )


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise CorruptInputError(f"{path} is damaged: {error}", "restore it from where the weights are from") from error


def _read_through(weights: Any, name: str) -> Tensor:
    """(out, in) of an FC1 times the gain of the LayerNorm before it, which SmoothQuant leaves as it is; or a stem."""
    fc1: Tensor = weights.get_tensor(name).double()
    if name == _STEM:
        return fc1
    gain: Tensor = weights.get_tensor(name.replace("mlp.fc1", "layer_norm2")).double()
    return fc1 * gain


def _cosine(a: Tensor, b: Tensor) -> float:
    """Of matrices as vectors; 0 for two shapes."""
    return float(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0)) if a.shape == b.shape else 0.0
