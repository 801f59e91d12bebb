"""A convolution with all behind it as one linear map, which least squares can fit again, and back into its parts.

Behind it are its BatchNorm and, where it ends a block, the layer scale. What is fitted goes back such that the
statistics of the BatchNorm are those of the fitted outputs: then the model is the same at rest and while it trains, by
statistics of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmcompress.compress.prune.reconstruct import Gram, refit
from mmcompress.convtower import BatchNorm, Convolution

NO_GAIN = 1e-8
"""An output that is multiplied by less than this is not fitted."""


@dataclass(frozen=True)
class Folded:
    """Some outputs of a convolution that is not depthwise: a Linear on the places that it reads."""

    convolution: Convolution
    rows: Tensor
    """The outputs, by index."""
    gain: Tensor
    """(outputs,) what the convolution's own are multiplied by behind it."""
    scale: Tensor
    """(outputs,) the part of that which is the layer scale: 1 where there is none."""

    @classmethod
    def of(cls, convolution: Convolution, rows: Tensor | None = None, scale: Tensor | None = None) -> Folded:
        norm = norm_of(convolution)
        every = torch.arange(convolution.out_channels, device=norm.weight.device) if rows is None else rows
        scales = torch.ones_like(norm.weight) if scale is None else scale
        gain = norm.weight * torch.rsqrt(norm.variance + norm.eps) * scales
        return cls(convolution, every, gain[every], scales[every])

    def linear(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Weight (outputs, columns) and bias (outputs,) on some of the features; see `features_of`."""
        norm = norm_of(self.convolution)
        weight = self.convolution.weight.flatten(1)[self.rows][:, columns] * self.gain[:, None]
        return weight, norm.bias[self.rows] * self.scale - self.gain * norm.mean[self.rows]

    def fitted(self, gram: Gram, kept: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """`linear` of the columns, fitted on a Gram matrix of features of which those at `kept` are these columns."""
        return refit(gram, kept, *self.linear(columns))

    def write(
        self,
        target: Convolution,
        columns: Tensor,
        fitted: tuple[Tensor, Tensor] | None,
        gram: Gram | None,
        kept: Tensor,
    ) -> None:
        """Fill a convolution of these outputs and columns, with what was fitted and on what, if it was."""
        own, norm = self.convolution, norm_of(target)
        target.weight.copy_(own.weight.flatten(1)[self.rows][:, columns].reshape(target.weight.shape))
        for leaf, tensor in norm_of(own).state_dict().items():
            norm.state_dict()[leaf].copy_(tensor[self.rows])
        if fitted is None or gram is None:
            return
        one = torch.ones_like(self.gain)
        lost = self.gain.abs() < NO_GAIN
        weight = fitted[0] / torch.where(lost, one, self.gain)[:, None]
        scale = torch.where(lost, one, self.scale)
        covariance, _ = gram.centred()
        wide, gain = weight.double(), (self.gain / scale).double()
        mean = wide @ (gram.xx[-1, :-1] / gram.count)[kept]
        variance = ((wide @ covariance[kept][:, kept]) * wide).sum(dim=1).clamp_min(0)
        values = {
            "weight": gain * (variance + norm.eps).sqrt(),
            "bias": (fitted[1] / scale).double() + gain * mean,
            "mean": mean,
            "variance": variance,
        }
        target.weight.copy_(torch.where(lost[:, None], target.weight.flatten(1), weight).reshape(target.weight.shape))
        for leaf, found in values.items():
            ours: Tensor = getattr(norm, leaf)
            ours.copy_(torch.where(lost, ours, found.to(ours.dtype)))


def features_of(convolution: Convolution, x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H', W', C times places of the kernel): what each output of a convolution reads."""
    kernel, stride = convolution.kernel_size[0], convolution.stride[0]
    if kernel == 1 and stride == 1:
        return x.permute(0, 2, 3, 1)
    sides = [(side - 1) // stride + 1 for side in x.shape[2:]]
    read = F.unfold(x, kernel, padding=kernel // 2, stride=stride)
    found: Tensor = read.transpose(1, 2).unflatten(1, sides)
    return found


def columns_of(convolution: Convolution, channels: Tensor) -> Tensor:
    """The features of some input channels, by index."""
    places = convolution.kernel_size[0] ** 2
    return (channels[:, None] * places + torch.arange(places, device=channels.device)).flatten()


def norm_of(convolution: Convolution) -> BatchNorm:
    assert convolution.norm is not None
    return convolution.norm


def copy_rows(target: Convolution, source: Convolution, rows: Tensor | None) -> None:
    """A convolution with its BatchNorm, or some of its outputs: of a depthwise one, with what they read."""
    for name, tensor in target.state_dict().items():
        theirs = source.state_dict()[name]
        tensor.copy_(theirs if rows is None else theirs[rows])
