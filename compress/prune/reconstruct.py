"""Least squares for what pruning leaves: which inputs a Linear can do without, and the weights it then needs.

A pruned Linear sees fewer inputs x and should still give y, what the dense model gives there. Both questions need sums
over samples only, the Gram matrices of (x, 1) with itself and with y, so memory does not grow with the samples.

- `refit`: the kept inputs' weights and bias that fit y best, by ridge regression towards the weights they had, which
  is what a unit that saw no data keeps (Hoerl & Kennard 1970; as in SliceGPT's and ThiNet's reconstruction, eq. 7).
- `removal_order`: greedy backward elimination. Removing the inputs of a group M, with all others refitted, costs
  tr(W_M^T [(H^-1)_MM]^-1 W_M), H being the inputs' covariance: optimal brain surgeon (Hassibi & Stork 1993) for
  groups, as in ZipLM (Kurtic et al. 2023, equations 3 to 5). Removals update W and H^-1, so redundant units protect
  each other no longer once one of them is gone.

Products are taken in the activations' own type and summed in float64; all solving is in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

RIDGE = 1e-2
"""Of the mean variance of the inputs."""
STEPS = 128
"""Removals of single units are done in about this many rounds, the cheapest ones of a round together."""


class Gram:
    """Sums over tokens of (x, 1)(x, 1)^T and (x, 1) y^T, for inputs x and wanted outputs y."""

    def __init__(self, inputs: int, outputs: int, device: torch.device | None = None) -> None:
        self.xx = torch.zeros(inputs + 1, inputs + 1, dtype=torch.float64, device=device)
        self.xy = torch.zeros(inputs + 1, outputs, dtype=torch.float64, device=device)

    def add(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> None:
        """(..., inputs), (..., outputs), and for each row how much it counts (...), once if not given."""
        x, y = F.pad(x.flatten(0, -2), (0, 1), value=1.0), y.flatten(0, -2)
        weighted = x if weight is None else x * weight.flatten()[:, None]
        self.xx += (weighted.T @ x).double()
        self.xy += (weighted.T @ y).double()

    @property
    def count(self) -> float:
        return float(self.xx[-1, -1])

    def centred(self) -> tuple[Tensor, Tensor]:
        """Covariances (inputs, inputs) and (inputs, outputs): what the best bias leaves for the weights."""
        mean = self.xx[-1] / self.count
        xx = self.xx - torch.outer(self.xx[-1], mean)
        xy = self.xy - torch.outer(mean, self.xy[-1])
        return xx[:-1, :-1] / self.count, xy[:-1] / self.count


def refit(gram: Gram, kept: Tensor, weight: Tensor, bias: Tensor, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """New weight (outputs, kept) and bias (outputs,) for the inputs `kept` (indices), near the given ones.

    Minimizes sum |y - W x - b|^2 / n + ridge * v * |W - W_0|^2, with v the mean variance of the inputs.
    """
    index = torch.cat([kept, kept.new_tensor([len(gram.xx) - 1])])
    xx, xy = gram.xx[index][:, index] / gram.count, gram.xy[index] / gram.count
    covariance, _ = gram.centred()
    damping = torch.full((len(index),), ridge * float(covariance.diagonal().mean()), dtype=xx.dtype, device=xx.device)
    damping[-1] = 0
    before = torch.cat([weight.T, bias[None]]).to(xx)
    solved = torch.linalg.solve(xx + torch.diag(damping), xy + damping[:, None] * before)
    return solved[:-1].T.to(weight.dtype), solved[-1].to(bias.dtype)


def removal_order(gram: Gram, group: int, ridge: float = RIDGE, kept: int = 0) -> list[int]:
    """Groups of `group` neighbouring inputs, the most dispensable first; single units go some at a time. The last
    `kept` are in no order.
    """
    covariance, crossed = gram.centred()
    damping = ridge * covariance.diagonal().mean().clamp_min(torch.finfo(covariance.dtype).tiny)
    inverse = torch.linalg.inv(covariance + damping * torch.eye(len(covariance)).to(covariance))
    weight = inverse @ crossed
    alive = torch.arange(len(covariance) // group, device=inverse.device)
    at_once = max(1, len(alive) // STEPS) if group == 1 else 1
    order: list[int] = []
    while len(alive) > kept:
        inputs = torch.arange(len(inverse), device=inverse.device).unflatten(0, (-1, group))  # of those alive
        blocks = inverse[inputs[:, :, None], inputs[:, None, :]]
        costs = (torch.linalg.solve(blocks, weight[inputs]) * weight[inputs]).sum(dim=(1, 2))
        cheapest = torch.argsort(costs, stable=True)[: min(at_once, len(alive) - kept)]
        others = torch.ones_like(alive, dtype=torch.bool).index_fill(0, cheapest, False)
        gone, left = inputs[cheapest].flatten(), inputs[others].flatten()
        touched = inverse[left[:, None], gone]
        solved = torch.linalg.solve(inverse[gone][:, gone], torch.cat([touched.T, weight[gone]], dim=1))
        order += alive[cheapest].tolist()
        weight = weight[left] - touched @ solved[:, len(left) :]
        inverse = inverse[left[:, None], left] - touched @ solved[:, : len(left)]
        alive = alive[others]
    return order + alive.tolist()
