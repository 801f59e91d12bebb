"""A convolutional image tower as its graph computes it, in torch: BatchNorms and layer scales are in the weights.

It is what QAT trains the integers of, since they are of the folded weights (`export/convgraph.py` folds the same). Only
the BatchNorm in front of attention stays, which the graph has as well.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mmcompress.convtower import Bottleneck, Convolution, ConvTower, MultiQueryAttention
from mmcompress.model import DualEncoder


@torch.no_grad()
def with_folded_tower(model: DualEncoder) -> DualEncoder:
    """A copy in evaluation mode whose convolutions are folded; a model without convolutions as it is."""
    if not isinstance(model.image, ConvTower):
        return model
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for module in model.image.modules():
        if isinstance(module, Convolution):
            _fold(module)
    for module in model.image.modules():
        if isinstance(module, MultiQueryAttention):
            module.query.weight.mul_((module.query.out_channels // module.heads) ** -0.5)
            module.scaling = 1.0
        if isinstance(module, (Bottleneck, MultiQueryAttention)) and module.scale is not None:
            _multiply(module.out if isinstance(module, MultiQueryAttention) else module.project, module.scale)
            module.scale = None
    return model


def _fold(convolution: Convolution) -> None:
    """Put the BatchNorm into the weight and a bias."""
    norm = convolution.norm
    if norm is None:
        return
    gain = norm.weight * torch.rsqrt(norm.variance + norm.eps)
    convolution.bias = nn.Parameter(norm.bias - norm.mean * gain, requires_grad=False)
    convolution.weight.mul_(gain[:, None, None, None])
    convolution.norm = None


def _multiply(convolution: Convolution, gain: Tensor) -> None:
    """Multiply the outputs (C,) of a convolution that is folded."""
    convolution.weight.mul_(gain[:, None, None, None])
    if convolution.bias is not None:
        convolution.bias.mul_(gain)
