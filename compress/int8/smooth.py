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

_SMALLEST = 1e-5
NORM_OF = {"qkv": "norm1", "fc1": "norm2"}


def smoothing_factors(activations: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """max |x_j| (in,), max |w_j| (in,) -> (in,): max|x_j|^alpha / max|w_j|^(1 - alpha) (Xiao et al. 2023, eq. 4).

    A channel that is never used, or never read, keeps its size.
    """
    factors = activations.clamp(min=_SMALLEST) ** alpha / weights.clamp(min=_SMALLEST) ** (1 - alpha)
    return torch.where((activations > 0) & (weights > 0), factors, torch.ones_like(factors))


def tower_factors(model: DualEncoder, absmax: Mapping[str, Tensor], tower: str, alpha: float) -> dict[str, Tensor]:
    """Factors (in,) of every QKV and FC1 of a tower at one strength, from the largest magnitudes (in,) they read."""
    factors = {}
    for name, linear in model.linears():
        if name.startswith(f"{tower}.") and name.rpartition(".")[2] in NORM_OF:
            weights = linear.weight.detach().abs().amax(dim=0)
            factors[name] = smoothing_factors(absmax[name].to(weights), weights, alpha)
    return factors


def smoothed(model: DualEncoder, factors: Mapping[str, Tensor]) -> DualEncoder:
    """The model with the LayerNorms in front of some QKV and FC1 divided by factors (in,); it shares with the one that
    it is made from what it does not change, and is that one where nothing changes."""
    if not factors:
        return model
    changed = {*factors, *(f"{name.rpartition('.')[0]}.{NORM_OF[name.rpartition('.')[2]]}" for name in factors)}
    shared = (weight for name, weight in model.named_parameters() if name.rpartition(".")[0] not in changed)
    copied = deepcopy(model, {id(weight): weight for weight in shared})
    for name, of_linear in factors.items():
        block, _, part = name.rpartition(".")
        linear, norm = copied.get_submodule(name), copied.get_submodule(f"{block}.{NORM_OF[part]}")
        assert isinstance(linear.weight, Tensor) and isinstance(norm.weight, Tensor) and isinstance(norm.bias, Tensor)
        with torch.no_grad():
            linear.weight *= of_linear
            norm.weight /= of_linear
            norm.bias /= of_linear
    return copied
