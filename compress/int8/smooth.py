"""SmoothQuant: move outliers of the activations into the weights, where a scale per channel can hold them.

Every channel of a LayerNorm's output is divided by a factor and the weights that read it are multiplied by the same,
so the FP32 function stays what it was (Xiao et al. 2023, "SmoothQuant", eq. 3). The division costs nothing at run time:
it is folded into the LayerNorm's gain and shift. Only QKV and FC1 follow a LayerNorm; the inputs of the out-projection
and of FC2 are left as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor

from mmcompress.model import DualEncoder
from mmcompress.transformer import Block

_SMALLEST = 1e-5
NORM_OF = {"qkv": "norm1", "fc1": "norm2"}


def smoothing_factors(activations: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """max |x_j| (in,), max |w_j| (in,) -> (in,): max|x_j|^alpha / max|w_j|^(1 - alpha) (Xiao et al. 2023, eq. 4).

    A channel that is never used, or never read, keeps its size.
    """
    factors = activations.clamp(min=_SMALLEST) ** alpha / weights.clamp(min=_SMALLEST) ** (1 - alpha)
    return torch.where((activations > 0) & (weights > 0), factors, torch.ones_like(factors))


def smoothed(model: DualEncoder, absmax: Mapping[str, Tensor], tower: str, alpha: float) -> DualEncoder:
    """A copy with the LayerNorms in front of QKV and FC1 of one tower smoothed; `absmax` is per input channel (in,)."""
    copied = deepcopy(model)
    for index, block in enumerate(getattr(copied, tower).blocks):
        assert isinstance(block, Block)
        for part, before in NORM_OF.items():
            linear, norm = block.get_submodule(part), block.get_submodule(before)
            assert isinstance(linear.weight, Tensor) and isinstance(norm.weight, Tensor)
            assert isinstance(norm.bias, Tensor)
            weights = linear.weight.detach().abs().amax(dim=0)
            factors = smoothing_factors(absmax[f"{tower}.blocks.{index}.{part}"].to(weights), weights, alpha)
            with torch.no_grad():
                linear.weight *= factors
                norm.weight /= factors
                norm.bias /= factors
    return copied
