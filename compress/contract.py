"""What a teacher is, and what its answers are held to: by the inputs that ship when it is loaded, then batch by batch.

A teacher comes from anywhere, and a student learns whatever it says. Rows that are not of unit norm, of another width,
constant, or different each time make no error later, only a bad student. So every answer is looked at here, and only
here: below, embeddings are (B, D), finite and of unit norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from mmcompress.compress.towers import Towers
from mmcompress.data.checkpairs import check_captions, check_images, judged
from mmcompress.data.preprocess import normalize
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.foreign import foreign_code
from mmcompress.home import expanded
from mmcompress.manifest import Preprocessing, TextProcessing

NORM_ERROR = 0.01
"""How far a norm may be from 1: bfloat16 has three digits."""
REPEAT_ERROR = 1e-3
"""How far the cosine of two answers to one input may be from 1; dropout moves it by a hundred times as much."""
SAME = 1e-6
"""Largest difference of a number of two answers that are one answer; what is only near it gets a warning."""
FEW = 8
"""Inputs below which a batch of like answers may be a batch of like inputs."""


@dataclass(frozen=True)
class Teacher:
    """Two functions into one space, and what they expect. Each is held to its line here on every batch."""

    encode_image: Callable[[Tensor], Tensor]
    """(B, 3, S, S) float32 on the CPU, normalized by `preprocessing` -> (B, D) of unit norm, on any device"""
    encode_text: Callable[[Sequence[str]], Tensor]
    """B texts -> (B, D) of unit norm; a row depends on its own text only"""
    preprocessing: Preprocessing
    embed_dim: int
    """D, of both towers."""
    logit_scale: float | None = None
    """What cosines are multiplied with before a softmax, 100 for CLIP; None where it is not known."""
    logit_bias: float | None = None
    """What is added to that product, of models that were trained with a sigmoid (Zhai et al. 2023, SigLIP)."""
    towers: Callable[[], Towers] | None = None
    """What both functions run, for those who want graphs of it; None where that cannot be said."""
    files: tuple[Path, ...] = ()
    """What it was read from beside its own code: a change of one of these files is another teacher."""


def logits_of(model: Any) -> tuple[float | None, float | None]:
    """Scale and bias of the logits of a model of transformers or open_clip, which store the scale's logarithm.

    Raises CorruptInputError where no probability can be computed with them.
    """
    scale, bias = (getattr(model, name, None) for name in ("logit_scale", "logit_bias"))
    with foreign_code(f"reading logit_scale and logit_bias of the {type(model).__name__}", "each has to be one number"):
        factor = None if scale is None else float(scale.detach().exp())
        offset = None if bias is None else float(bias.detach())
    if not (_is_number(factor, above=0) and _is_number(offset)):
        raise CorruptInputError(
            f"the {type(model).__name__} multiplies cosines with {factor} and adds {offset}, expected a number above 0 "
            "and a number",
            "its logit_scale is the logarithm of the first, 4.6 for CLIP, and is damaged: restore the weights",
        )
    return factor, offset


def check_form(teacher: Teacher, source: str) -> None:
    """Raise UsageError for a field that is not what `Teacher` says: whoever wrote it need not have a type checker."""
    wrong = {
        "encode_image, expected a function": not callable(teacher.encode_image),
        "encode_text, expected a function": not callable(teacher.encode_text),
        "preprocessing, expected a mmcompress.artifact.Preprocessing": not isinstance(
            teacher.preprocessing, Preprocessing
        ),
        "embed_dim, expected a whole number above 0": not isinstance(teacher.embed_dim, int) or teacher.embed_dim < 1,
        "logit_scale, expected a number above 0, or None": not _is_number(teacher.logit_scale, above=0),
        "logit_bias, expected a number or None": not _is_number(teacher.logit_bias),
        "towers, expected a function or None": not (teacher.towers is None or callable(teacher.towers)),
        "files, expected a tuple of paths": not _are_paths(teacher.files),
    }
    _refuse(wrong, teacher, f"the teacher {source} has")
    check_files(teacher.files, source)


def check_towers(towers: Any, source: str) -> None:
    """As `check_form`, of what a teacher's `towers` returns."""
    if not isinstance(towers, Towers):
        raise UsageError(
            f"towers() of the teacher {source} returned {type(towers).__name__}",
            "it must return mmcompress.compress.towers.Towers",
        )
    wrong = {
        "image, expected a torch.nn.Module": not isinstance(towers.image, nn.Module),
        "text, expected a torch.nn.Module": not isinstance(towers.text, nn.Module),
        "tokenizer, expected a tokenizers.Tokenizer": not isinstance(towers.tokenizer, Tokenizer),
        "processing, expected a mmcompress.artifact.TextProcessing": not isinstance(towers.processing, TextProcessing),
        "logit_scale, expected a number above 0": towers.logit_scale is None or not _is_number(towers.logit_scale, 0),
        "files, expected a tuple of paths": not _are_paths(towers.files),
    }
    _refuse(wrong, towers, f"towers() of the teacher {source} has")
    check_files(towers.files, source)


def _refuse(wrong: Mapping[str, bool], given: object, who: str) -> None:
    """Raise for the first field, named by its first word, that is wrong."""
    for what, is_so in wrong.items():
        if is_so:
            value = getattr(given, what.split(",")[0])
            raise UsageError(f"{who} {value!r} as its {what}", "docs/teachers.md shows a whole one")


def check_files(files: Sequence[str | Path], source: str) -> None:
    for name in files:
        if not expanded(name).is_file():
            raise UsageError(
                f"the teacher {source} says that it was read from {name}, which is no file", "correct files"
            )


def _are_paths(files: object) -> bool:
    return isinstance(files, tuple | list) and all(isinstance(name, str | Path) for name in files)


def _is_number(value: object, above: float = -math.inf) -> bool:
    return value is None or (isinstance(value, float | int) and math.isfinite(value) and value > above)


def under_contract(teacher: Teacher, source: str) -> Teacher:
    """The same teacher with both functions checked. Answers become float32 on the CPU, without a gradient.

    Raises UsageError for answers of a wrong form, CorruptInputError for numbers that teach nothing.
    """

    def encode_image(pixels: Tensor) -> Tensor:
        answer = answered(teacher.encode_image, pixels, source, "image")
        images = _checked(answer, len(pixels), teacher.embed_dim, source, "image")
        if len(pixels) >= FEW:
            _refuse_constant(images, len(pixels.flatten(1).unique(dim=0)), source, "image")
        return images

    def encode_text(texts: Sequence[str]) -> Tensor:
        answer = answered(teacher.encode_text, list(texts), source, "text")
        return _checked(answer, len(texts), teacher.embed_dim, source, "text")

    return replace(teacher, encode_image=encode_image, encode_text=encode_text)


def answered(encode: Callable[[Any], Any], inputs: Any, source: str, tower: str) -> Any:
    """What foreign code answers; what it raises becomes an error that names it."""
    what = f"images of {inputs.shape[-1]} pixels" if tower == "image" else f"{len(inputs)} texts"
    with foreign_code(
        f"the teacher {source}: encode_{tower} for {what}",
        "its weights, image size or tokenizer do not belong together; where memory is short, lower the batch",
        CorruptInputError,
    ):
        return encode(inputs)


def _checked(answer: Any, rows: int, width: int, source: str, tower: str) -> Tensor:
    """(B, D), if that is what it is."""
    who = f"the teacher {source}: encode_{tower}"
    if (kind := _no_numbers(answer)) is not None:
        raise UsageError(f"{who} returned {kind}", f"expected a float tensor of shape ({rows}, {width})")
    if answer.shape != (rows, width):
        hint = "pool the tokens: one row an input" if answer.ndim == 3 else "embed_dim is the width of both towers"
        raise UsageError(f"{who} returned the shape {tuple(answer.shape)}, expected ({rows}, {width})", hint)
    embeddings: Tensor = answer.detach().float().cpu()
    norms = embeddings.norm(dim=-1)
    if not (torch.isfinite(norms) & (norms > 0)).all():
        what = "an image" if tower == "image" else "a text"
        raise CorruptInputError(
            f"the teacher {source} embeds {what} as NaN, infinity or zeros only", "its weights are broken: check them"
        )
    if not ((norms - 1).abs() <= NORM_ERROR).all():
        raise UsageError(
            f"{who} returned rows of norm {float(norms.min()):.4g} to {float(norms.max()):.4g}, expected 1",
            "end it with torch.nn.functional.normalize(…, dim=-1)",
        )
    return embeddings


def _no_numbers(answer: Any) -> str | None:
    """What an answer is instead of a tensor of floats that can be read."""
    if not isinstance(answer, Tensor):
        return f"a {type(answer).__name__}"
    if answer.is_meta:
        return "a tensor on the device meta, which holds no numbers"
    if answer.layout is not torch.strided:
        return f"a tensor of the layout {answer.layout}"
    return None if answer.is_floating_point() else f"a tensor of {answer.dtype}"


def _refuse_constant(embeddings: Tensor, different: int, source: str, tower: str) -> None:
    """(B, D) of which `different` inputs are.

    Captions of a batch may begin alike and be cut off there, so of texts only those that ship are looked at.
    """
    if different >= FEW and float((embeddings - embeddings[0]).abs().max()) <= SAME:
        raise CorruptInputError(
            f"the teacher {source} gives the same answer to {different} different {tower}s",
            "its weights are broken, or its code does not look at its input",
        )


def check_teacher(teacher: Teacher, source: str) -> str | None:
    """Try a teacher under contract on what ships. The answer is a warning: what it knows nothing about.

    Raises what `under_contract` raises, and UsageError where one input gets two answers.
    """
    pixels = torch.from_numpy(normalize(check_images(teacher.preprocessing), teacher.preprocessing))
    images = teacher.encode_image(pixels)
    captions = check_captions()
    _check_repeats(images, teacher.encode_image(pixels[1::2].clone()), slice(1, None, 2), source, "image")
    texts = teacher.encode_text(captions)
    _refuse_constant(texts, len(captions), source, "text")
    _check_repeats(texts, teacher.encode_text(captions[::2]), slice(0, None, 2), source, "text")

    def embed(asked: Sequence[str]) -> NDArray[np.floating[Any]]:
        return (texts if list(asked) == captions else teacher.encode_text(asked)).numpy()

    return judged(images.numpy(), embed)


def _check_repeats(first: Tensor, again: Tensor, rows: slice, source: str, tower: str) -> None:
    """(B, D), and the answer to some of its inputs in another batch."""
    apart = float((1 - torch.cosine_similarity(first[rows], again, dim=-1)).abs().max())
    if apart > REPEAT_ERROR:
        raise UsageError(
            f"the teacher {source}: encode_{tower} gave one input two answers, 1 - cosine {apart:.2g}",
            "call eval() on the model: no dropout, no statistics of the batch, and mask what fills a text up",
        )
