"""Layer-wise decay of the learning rate: the nearer a block is to the input, the less it is changed.

As in fine-tuning BEiT (Bao et al. 2021, appendix) and ELECTRA (Clark et al. 2020): with L blocks and a factor d, what
is behind the blocks has the whole rate, block i of 0 … L - 1 has d^(L - i) of it, and what is before them d^(L + 1).
The towers are counted apart, as each has a depth of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mmcompress.architecture import DualEncoderConfig

_BEFORE = ("class_token", "patch", "positions", "tokens", "norm_pre", "stem")


def layer_scales(names: Iterable[str], config: DualEncoderConfig, decay: float) -> Mapping[str, float]:
    """The factor on the learning rate of each parameter of a dual encoder, `image.blocks.0.qkv.weight` say."""
    scales: dict[str, float] = {}
    for name in names:
        tower, _, inside = name.partition(".")
        part, _, rest = inside.partition(".")
        if tower not in ("image", "text"):
            scales[name] = 1.0
            continue
        depth = config.image.depth if tower == "image" else config.text.depth
        below = depth - int(rest.partition(".")[0]) if part == "blocks" else (depth + 1) * (part in _BEFORE)
        scales[name] = decay**below
    return scales
