"""Towers that deepen while they are trained from random weights: every second block first, all of them later.

Progressive stacking (Gong et al. 2019, "Efficient Training of BERT by Progressively Stacking"), once, from half of the
blocks to all. A new block is a copy of the one before it, without a share in the residual stream, so that the deeper
tower begins as the equal of the shallow one (Chen et al. 2016, "Net2Net"). Which blocks a step passes is a function of
the step, and copies are made at every step before, so a resumed run has the same.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from mmcompress.model import DualEncoder, Tower
from mmcompress.transformer import Block


def share_within(deepening: float, steps: int) -> float:
    """The share of so many steps that pass every second block: none where no step would be left to pass them all."""
    return deepening if (steps - 1) / steps >= deepening else 0.0


def deepen(model: DualEncoder, done: float, deepening: float) -> None:
    """Have the towers that are trained pass the blocks that they should, when so much of the training is done.

    `deepening` is the share of the steps that pass every second block, 0 for none.
    """
    for tower in (model.image, model.text):
        if isinstance(tower, Tower) and tower.positions.requires_grad:
            tower.every = 2 if done < deepening else 1
            if tower.every == 2:
                for block, behind in list(pairwise(tower.blocks))[::2]:
                    _copy_silently(block, behind)


@torch.no_grad()
def _copy_silently(block: nn.Module, behind: nn.Module) -> None:
    """Make `behind` a copy that adds nothing to what passes it, and is ready to learn to."""
    assert isinstance(behind, Block)
    behind.load_state_dict(block.state_dict())
    for linear in (behind.out, behind.fc2):
        linear.weight.zero_()
        linear.bias.zero_()
