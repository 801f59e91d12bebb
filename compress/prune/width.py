"""A narrower residual stream: every tensor that touches it is mapped into one subspace, and fitted again in order.

The subspace holds most of what LayerNorm makes of the stream over all blocks: it is spanned by the leading eigenvectors
V of the second moment of the normalized stream. That is SliceGPT (Ashkboos et al. 2024, sections 3.2 and 3.3), which
turns LayerNorm into RMSNorm; here it stays, and with it the family of the model. The narrow stream of w' channels is

    z = D x,   D = sqrt(w'/w) S V^T (I - 11^T/w),   S (w', w' - 1) with orthonormal columns of mean zero,

so z has mean zero over its channels and, as far as the centred x lies in the subspace, the variance of x. Then
LayerNorm(z) = D LayerNorm(x), eps included, before gain and shift; these go into the Linear that reads it, beside the
pseudo-inverse (w/w') D^T. Where the centred stream has at most w' - 1 dimensions, nothing changes. S is a cosine
transform, which spreads the few strong directions over all channels, as 8 bits like them. Only the LayerNorm before the
blocks of CLIP's image tower is not exact: its variance is that of D diag(gain), so one gain is fitted to it.

Afterwards the Linears are refitted from the first block to the last: what reads the stream towards its dense outputs,
what writes to it towards D x less z, so that later blocks mend what earlier ones lost (as in `shrink.py`).
Left out: a subspace for each block, for which the residual connection would need a Linear of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmcompress.architecture import TowerConfig
from mmcompress.compress.prune.reconstruct import Gram, refit
from mmcompress.compress.prune.shrink import Streams, TowerName, counted
from mmcompress.model import DualEncoder, ImageTower, TextTower
from mmcompress.transformer import Block


def rounded_width(tower: TowerConfig, share: float, multiple: int | None) -> int:
    """The share of the width in multiples, of one head's channels if not given; one multiple at least."""
    step = multiple or tower.head_dim
    return min(tower.width, max(step, round(tower.width * share / step) * step)) if share < 1 else tower.width


def spread(width: int) -> Tensor:
    """S (width, width - 1): the cosine transform (DCT-II) without its constant."""
    place, wave = torch.arange(width, dtype=torch.float64), torch.arange(1, width, dtype=torch.float64)
    return torch.cos(math.pi / width * (place[:, None] + 0.5) * wave) * math.sqrt(2 / width)


def narrowing(moment: Tensor, width: int) -> Tensor:
    """(w, w) second moment of the normalized stream -> D (width, w)."""
    leading = torch.linalg.eigh(moment).eigenvectors[:, 1 - width :]
    centred = leading - leading.mean(dim=0)
    down: Tensor = math.sqrt(width / len(moment)) * spread(width).to(moment) @ centred.T
    return down


@torch.no_grad()
def normalized_moment(model: DualEncoder, name: TowerName, inputs: Sequence[Tensor]) -> Tensor:
    """(w, w): second moment of the stream at every LayerNorm of the blocks and behind them, before gain and shift."""
    tower, config = _tower(model, name), _config(model, name)
    total = torch.zeros(config.width, config.width, dtype=torch.float64, device=model.logit_scale.device)

    def add(stream: Tensor, counts: Tensor) -> None:
        x = F.layer_norm(stream, (config.width,), eps=config.layer_norm_eps).flatten(0, 1)
        total.add_(((x * counts.flatten()[:, None]).T @ x).double())

    for batch in inputs:
        counts, x = counted(tower, batch), tower.enter(batch)
        add(x, counts)
        for block in cast("list[Block]", tower.blocks):
            x = x + block.out(block.attended(x, tower.causal))
            add(x, counts)
            x = x + block.fc2(block.hidden(x))
            add(x, counts)
    return total


@dataclass(frozen=True)
class Narrowing:
    """What maps one tower's Linears, and the batches that fit them."""

    down: Tensor
    """D (w', w)"""
    counts: Sequence[Tensor]
    """(B, T) of each batch: how much each token counts."""
    refitted: bool

    @property
    def up(self) -> Tensor:
        """(w, w') pseudo-inverse of D."""
        return self.down.T * (self.down.shape[1] / len(self.down))

    def reader(self, linear: nn.Linear, norm: nn.Module, dense: Streams, ours: Streams) -> tuple[Tensor, Tensor]:
        """Weight (out, w') and bias (out,) of what reads a LayerNorm of the narrow stream; `norm` is the dense one."""
        gain, shift = cast(Tensor, norm.weight), cast(Tensor, norm.bias)
        weight = (linear.weight * gain) @ self.up
        bias = linear.weight @ shift + (0 if linear.bias is None else linear.bias)
        plain = (len(self.down),)
        inputs = (F.layer_norm(x, plain, eps=cast(nn.LayerNorm, norm).eps) for x in ours)
        return self._fitted(weight, bias, inputs, (linear(norm(x)) for x in dense))

    def writer(
        self, linear: nn.Linear, features: Callable[[Tensor], Tensor], behind: Streams, ours: Streams
    ) -> tuple[Tensor, Tensor]:
        """Weight (w', in) and bias (w',) of what adds its features to the narrow stream; `behind` is the dense one."""
        wanted = (x @ self.down.T - z for x, z in zip(behind, ours, strict=True))
        return self._fitted(self.down @ linear.weight, self.down @ linear.bias, (features(z) for z in ours), wanted)

    def _fitted(
        self, weight: Tensor, bias: Tensor, inputs: Iterable[Tensor], outputs: Iterable[Tensor]
    ) -> tuple[Tensor, Tensor]:
        if not self.refitted:
            return weight, bias
        gram = Gram(weight.shape[1], len(weight), weight.device)
        for x, y, counts in zip(inputs, outputs, self.counts, strict=True):
            gram.add(x, y, counts)
        return refit(gram, torch.arange(weight.shape[1], device=weight.device), weight, bias)


@torch.no_grad()
def narrowed(model: DualEncoder, name: TowerName, width: int, inputs: Sequence[Tensor], refitted: bool) -> DualEncoder:
    """`model` with one tower at this width; `inputs` are its batches of pixels or tokens."""
    config = _config(model, name)
    if width == config.width:
        return model
    tower = _tower(model, name)
    smaller_config = model.config.model_copy(update={name: config.model_copy(update={"width": width})})
    smaller = DualEncoder(smaller_config).to(model.logit_scale.device)
    state = model.state_dict()
    same = {k: state[k] if state[k].shape == v.shape else v for k, v in smaller.state_dict().items()}
    smaller.load_state_dict(same)
    target = _tower(smaller, name)
    down = narrowing(normalized_moment(model, name, inputs), width).to(model.logit_scale.dtype)
    ours = Narrowing(down, [counted(tower, x) for x in inputs], refitted)

    dense = [tower.enter(x) for x in inputs]
    if isinstance(tower, ImageTower) and isinstance(target, ImageTower):
        _enter_image(target, tower, down, (dense, inputs))
    elif isinstance(tower, TextTower) and isinstance(target, TextTower):
        target.tokens.weight.copy_(tower.tokens.weight @ down.T)
        target.positions.copy_(tower.positions @ down.T)
    narrow = [target.enter(x) for x in inputs]
    for block, new in zip(cast("list[Block]", tower.blocks), cast("list[Block]", target.blocks), strict=True):
        for norm in (new.norm1, new.norm2):
            norm.reset_parameters()
        _put(new.qkv, ours.reader(block.qkv, block.norm1, dense, narrow))
        dense = [x + block.out(block.attended(x, tower.causal)) for x in dense]
        _put(new.out, ours.writer(block.out, partial(new.attended, causal=tower.causal), dense, narrow))
        narrow = [x + new.out(new.attended(x, tower.causal)) for x in narrow]
        _put(new.fc1, ours.reader(block.fc1, block.norm2, dense, narrow))
        dense = [x + block.fc2(block.hidden(x)) for x in dense]
        _put(new.fc2, ours.writer(block.fc2, new.hidden, dense, narrow))
        narrow = [x + new.fc2(new.hidden(x)) for x in narrow]
    weight, bias = ours.reader(_last(tower), tower.norm_post, dense, narrow)
    _leave(target, weight, bias)
    return smaller.eval()


def _last(tower: ImageTower | TextTower) -> nn.Linear:
    """The Linear that reads the stream behind the blocks."""
    linear = tower.head.kv if isinstance(tower, ImageTower) and tower.head is not None else tower.projection
    assert linear is not None
    return linear


def _leave(target: ImageTower | TextTower, weight: Tensor, bias: Tensor) -> None:
    """The last LayerNorm, and the weight (D, w') and bias (D,) of what reads it."""
    norm, linear = cast(nn.LayerNorm, target.norm_post), _last(target)
    norm.reset_parameters()
    if linear.bias is not None:
        _put(linear, (weight, bias))
        return
    # LayerNorm's output has mean zero, so a shift of 1 carries a bias in every row's mean.
    norm.bias.fill_(1)
    linear.weight.copy_(weight - weight.mean(dim=1, keepdim=True) + bias[:, None] / weight.shape[1])


def _enter_image(
    target: ImageTower, tower: ImageTower, down: Tensor, samples: tuple[Streams, Sequence[Tensor]]
) -> None:
    """Patches, positions and the first LayerNorm, if any, so that `enter` gives D x, nearly behind a LayerNorm.

    The samples are dense streams and the pixels that they are of.
    """
    if tower.norm_pre is None or target.norm_pre is None:
        assert tower.patch.bias is not None and target.patch.bias is not None
        target.positions.copy_(tower.positions @ down.T)
        target.patch.weight.copy_(torch.einsum("nw,wcij->ncij", down, tower.patch.weight))
        target.patch.bias.copy_(down @ tower.patch.bias)
        return
    assert tower.class_token is not None and target.class_token is not None
    gain = tower.norm_pre.weight
    mapped = down * gain / gain.square().mean().sqrt()  # about the variance that it had, for eps to weigh the same
    mapped = mapped - mapped.mean(dim=1, keepdim=True)
    target.class_token.copy_(mapped @ tower.class_token)
    target.positions.copy_(tower.positions @ mapped.T)
    target.patch.weight.copy_(torch.einsum("nw,wcij->ncij", mapped, tower.patch.weight))
    target.norm_pre.weight.fill_(1)
    target.norm_pre.bias.zero_()
    shift = down @ tower.norm_pre.bias
    energy, wanted = torch.zeros(()).to(down), torch.zeros(()).to(down)
    for x, batch in zip(*samples, strict=True):
        z = target.enter(batch)
        energy, wanted = energy + z.square().sum(), wanted + (z * (x @ down.T - shift)).sum()
    target.norm_pre.weight.fill_(float(wanted / energy))
    target.norm_pre.bias.copy_(shift)


def _put(linear: nn.Linear, fitted: tuple[Tensor, Tensor]) -> None:
    linear.weight.copy_(fitted[0])
    linear.bias.copy_(fitted[1])


def _tower(model: DualEncoder, name: TowerName) -> ImageTower | TextTower:
    tower: ImageTower | TextTower = getattr(model, name)
    return tower


def _config(model: DualEncoder, name: TowerName) -> TowerConfig:
    config: TowerConfig = getattr(model.config, name)
    return config
