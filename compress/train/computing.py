"""How a training step is computed where memory or time is short. What is learned stays the same, but for rounding.

A batch in parts is gradient checkpointing of whole parts: the first pass keeps the embeddings alone, the loss sees
those of the whole batch, and the backward pass computes one part after another again. That is GradCache (Gao et al.
2021, section 3.2), so terms that compare a batch with itself are exact, which plain accumulation of gradients is not.
It costs a second forward pass. Recomputing blocks (Chen et al. 2016) holds the residual stream between blocks alone;
both go together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmcompress.compress.products import fast_again
from mmcompress.convnet import ConvConfig
from mmcompress.errors import MissingRequirementError, UsageError
from mmcompress.model import DualEncoder

_AGAIN = partial(checkpoint, use_reentrant=False, preserve_rng_state=False, context_fn=fast_again)
"""Computes what it is given, and once more in the backward pass."""


def in_parts(encode: Callable[[Tensor], Tensor], inputs: Tensor, parts: int) -> Tensor:
    """`encode` of (B, ...) -> (B, D), with the activations of one of up to `parts` parts in memory at a time."""
    if parts == 1:
        return encode(inputs)
    return torch.cat([_AGAIN(encode, part) for part in inputs.chunk(parts)])


def set_up(model: DualEncoder, recompute: bool, compiled: bool, parts: int = 1) -> None:
    """Have both towers compute their blocks again in the backward pass, or run as compiled code.

    Raises MissingRequirementError where torch cannot compile, UsageError where the model takes no parts.
    """
    check_parts(isinstance(model.config.image, ConvConfig), parts)
    if compiled:
        _check_compiles(next(model.parameters()).device)
    for tower in (model.image, model.text):
        tower.recomputing = _AGAIN if recompute else None
        if compiled:
            tower.compile()


def check_parts(convolutional: bool, parts: int) -> None:
    """Raise UsageError where a part of a batch would be normalized by itself, and so be another function of it."""
    if convolutional and parts > 1:
        raise UsageError(
            f"parts = {parts} computes parts of a batch apart, and BatchNorm, which a convolutional tower has, makes "
            "the images of a batch depend on each other",
            "give --recompute, which saves memory as well, or a smaller batch",
        )


def _check_compiles(device: torch.device) -> None:
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
    except Exception as error:  # of dynamo, of inductor, or of the compiler that it starts
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise MissingRequirementError(
            f"torch.compile does not work here: {said[0]}", "install a C++ compiler, or leave --compile out"
        ) from error
