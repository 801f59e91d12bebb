"""Attention relevance: which patches an image tower's answer to a text rests on.

Chefer et al. 2021, "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers".

An attention map alone says where a token looks, not whether that changed the answer. So each map is weighted with the
gradient of the answer, the cosine of image and text, and what speaks for the answer is carried from block to block:
R <- R + E_h[(dA * A)+] R (equations 5 and 6). What is read at the end is one row of R: the class token's, or the
pooling query's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmcompress.model import ImageTower
from mmcompress.transformer import Attention


def relevance(tower: ImageTower, pixels: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 3, H, W) normalized, (B, D) -> (B,) the cosine with its text, and (B, P, P), of P patches a side, what each
    adds to it.
    """
    with _seen_attention(tower) as maps, torch.enable_grad():
        cosines = F.cosine_similarity(tower(pixels), texts.detach(), dim=-1)
        gradients = torch.autograd.grad(cosines.sum(), maps)
    tokens = len(tower.positions)
    carried = torch.eye(tokens, device=pixels.device).expand(len(pixels), -1, -1)
    for attention, gradient in zip(maps, gradients, strict=True):
        for_answer = (gradient * attention.detach()).clamp(min=0).mean(dim=1)  # equation 5: (B, R, T)
        added = for_answer @ carried  # equation 6
        if for_answer.shape[1] == tokens:
            carried = carried + added
        else:  # the last map, of what is read alone; a pooling query is no token, and brings nothing of its own
            carried = added if tower.head is not None else carried[:, :1] + added
    patches = carried[:, 0, tower.class_token is not None :]
    side = math.isqrt(patches.shape[-1])
    return cosines.detach(), patches.unflatten(-1, (side, side)).detach()


@contextmanager
def _seen_attention(tower: ImageTower) -> Iterator[list[Tensor]]:
    """The attention maps (B, H, R, T) of a forward pass, block by block, as parts of its graph."""
    maps: list[Tensor] = []

    def computed(_: Any, given: tuple[Any, ...], __: Any) -> Tensor:
        q, k, v = given[:3]
        attention = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
        maps.append(attention)
        return attention @ v  # type: ignore[no-any-return]

    hooks = [module.register_forward_hook(computed) for module in tower.modules() if isinstance(module, Attention)]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()
