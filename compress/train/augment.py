"""Augmentation on batches of pixels, as a pure function of them and of a few uniform numbers a sample.

Which numbers those are is a function of (seed, view, key), see `data/views.py`. So the student sees exactly the pixels
that the teacher embedded, at whatever resolution, on whatever device, and a resumed run goes on as if it had not
stopped.

`photo` crops, mirrors and jitters colours; it is done where images are decoded, and here its views are taken out of the
batch. `drawing` is for pictures on a plain white ground: it moves, warps, shades and recolours what is drawn, and never
mirrors it, since an arrow or a letter has a direction. It runs on whole batches in torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mmcompress.data.batches import Batch
from mmcompress.data.views import PLAIN, Given, Shown, recolouring, uniforms
from mmcompress.manifest import Preprocessing

GIVEN = "given"
"""How images are varied whose views somebody else chose: their parameters are cached beside the embeddings."""


def decoded_views(
    kind: str, seed: int, each: int, of: Callable[[str], Sequence[int]], given: Given | None = None
) -> Shown:
    """What `batches` has to decode, so that `pixels_of_views` can show `each` views of a sample, which `of` numbers."""
    return Shown(seed, each, of, given) if kind in ("photo", GIVEN) else PLAIN


def pixels_of_views(decoded: Batch, views: NDArray[np.int64], seed: int, kind: str, device: torch.device) -> Tensor:
    """(B, 3, S, S): each image in its view, bytes as decoded or floats in [0, 1]; view 0 is the plain image."""
    if kind in ("photo", GIVEN):
        return _on(device, _decoded(decoded, views))
    pixels = _on(device, decoded.pixels)
    changed = np.flatnonzero(views) if kind == "drawing" else views[:0]
    if not len(changed):
        return pixels
    pixels = (pixels.float() / 255).contiguous()
    rows = torch.from_numpy(changed).to(device)
    pixels[rows] = drawing(pixels[rows], uniforms(seed, views[changed], [decoded.keys[i] for i in changed]))
    return pixels


def _decoded(decoded: Batch, views: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(B, S, S, 3): of each sample the view of that number, which must be among those that were decoded."""
    is_wanted = decoded.views == views[:, None]
    if not is_wanted.any(axis=1).all():
        raise ValueError(f"of the views {views} some were not decoded, see `decoded_views`: {decoded.views}")
    count, each = decoded.views.shape
    return decoded.pixels if each == 1 else decoded.pixels[each * np.arange(count) + is_wanted.argmax(axis=1)]


def _on(device: torch.device, pixels: NDArray[np.uint8]) -> Tensor:
    """(B, S, S, 3) -> (B, 3, S, S) on the device; from pinned memory where it is a GPU, so that nobody waits."""
    here = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return here.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else here.to(device)


def normalized(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(B, 3, S, S), bytes or in [0, 1] -> zero mean and unit deviation by the model's own constants.

    a x + b with a = 1 / std and b = -mean / std, channel by channel in memory: with channels side by side it took ten
    times as long on a CPU.
    """
    levels = 1.0 if pixels.is_floating_point() else 255.0
    scale = [1 / (levels * std) for std in preprocessing.std]
    offset = [-mean / std for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True)]
    a, b = (torch.tensor(v, device=pixels.device)[:, None, None] for v in (scale, offset))
    floats = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    return torch.addcmul(b, floats, a, out=None if floats is pixels else floats)


def drawing(pixels: Tensor, uniform: NDArray[np.float32]) -> Tensor:
    """Another hand's drawing of the same thing, on white: (B, 3, H, W), (B, UNIFORMS) -> (B, 3, H, W)."""
    u = torch.from_numpy(uniform).to(pixels)
    moved = _warped(pixels, u[:, :11])
    ground = (moved.amin(dim=1, keepdim=True) - 0.9).clamp_min(0) * 10  # 1 where nothing is drawn
    shaded = moved + (1 - ground) * _shading(1 - ground, u[:, 11:18])
    hue = np.where(uniform[:, 19] < 0.25, np.float32(0.6), np.float32(0.15))
    coloured = _recoloured(shaded, *recolouring(uniform[:, [18, *range(20, 28)]], hue, strength=1.0))
    tone = torch.where(u[:, 28:29] < 0.15, u[:, 29:32], 1.0)[:, :, None, None]
    return _cutout(_refocused(coloured * (1 - ground) + tone * ground, u[:, 32:35]), u[:, 35:40])


def _warped(pixels: Tensor, u: Tensor) -> Tensor:
    """Scale, aspect, rotation, shear, shift and a smooth warp of the proportions; outside is white."""
    b, _, h, w = pixels.shape
    x, y = _plane(pixels)
    s = _signed(u)
    scale, aspect, angle = torch.exp(0.30 * s[:, 0] - 0.02), torch.exp(0.12 * s[:, 1]), s[:, 2] * math.radians(15)
    cos, sin, ones = torch.cos(angle), torch.sin(angle), torch.ones_like(angle)
    rotation = torch.stack([cos, -sin, sin, cos], dim=-1).view(b, 2, 2)
    shear = torch.stack([ones, 0.12 * s[:, 3], 0.12 * s[:, 4], ones], dim=-1).view(b, 2, 2)
    stretch = torch.stack([1 / (scale * aspect), aspect / scale], dim=-1)
    matrix = (rotation @ shear) * stretch[:, None, :]
    phase = (2 * math.pi * u[:, 7:11]).view(b, 4, 1, 1)
    warped_x = x + 0.06 * torch.sin(2.2 * y + phase[:, 0]) + 0.04 * torch.sin(3.5 * x + phase[:, 1])
    warped_y = y + 0.06 * torch.sin(2.2 * x + phase[:, 2]) + 0.04 * torch.sin(3.5 * y + phase[:, 3])
    points = torch.stack([warped_x, warped_y], dim=-1).view(b, h * w, 2)
    grid = (points @ matrix.transpose(1, 2) + 0.15 * s[:, None, 5:7]).view(b, h, w, 2)
    return 1 - F.grid_sample(1 - pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _shading(drawn: Tensor, u: Tensor) -> Tensor:
    """(B, 1, H, W) light to add: a ramp, a highlight, and a bevel along the outline, as a rendered solid has."""
    x, y = _plane(drawn)
    angle, centre_x, centre_y, size, bevel, ramp, spot = (u[:, i].view(-1, 1, 1, 1) for i in range(7))
    light = torch.cos(2 * math.pi * angle) * x + torch.sin(2 * math.pi * angle) * y
    distance = (x - 0.6 * _signed(centre_x)) ** 2 + (y - 0.6 * _signed(centre_y)) ** 2
    highlight = torch.exp(-distance / (0.08 + 0.3 * size))
    soft = averaged(averaged(drawn, 7, 3), 7, 3)
    edge = soft - torch.roll(soft, (3, 3), (2, 3))
    return 0.22 * _signed(ramp) * light + 0.30 * _signed(spot) * highlight + 0.9 * bevel * edge


def _recoloured(pixels: Tensor, maps: NDArray[np.float64], powers: NDArray[np.float64]) -> Tensor:
    """`data.views.recolouring` of whole batches: affine maps of RGB (B, 3, 4), and the powers (B,) of their outcome."""
    linear, offset = torch.from_numpy(maps).to(pixels).split([3, 1], dim=2)
    mapped = torch.baddbmm(offset, linear, pixels.flatten(2)).view_as(pixels)
    return mapped.clamp_(1e-4, 1).pow_(torch.from_numpy(powers).to(pixels).view(-1, 1, 1, 1))


def _refocused(pixels: Tensor, u: Tensor) -> Tensor:
    """Blur a third of the images, sharpen some of the others."""
    soft = averaged(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 0)
    mix = torch.where(u[:, 0] < 0.35, u[:, 1], -0.5 * u[:, 1] * (u[:, 2] < 0.4))
    return pixels + (soft - pixels) * mix.view(-1, 1, 1, 1)


def _cutout(pixels: Tensor, u: Tensor) -> Tensor:
    """Whiten a rectangle in a third of the images (DeVries & Taylor 2017)."""
    x, y = _plane(pixels)
    half_x, half_y, centre_x, centre_y, chosen = (u[:, i].view(-1, 1, 1, 1) for i in range(5))
    inside_x = (x - _signed(centre_x)).abs() < 0.12 + 0.25 * half_x
    inside_y = (y - _signed(centre_y)).abs() < 0.12 + 0.25 * half_y
    return torch.where(inside_x & inside_y & (chosen < 0.3), 1.0, pixels).clamp(0, 1)


def averaged(planes: Tensor, side: int, padding: int) -> Tensor:
    """(B, C, H, W) -> (B, C, H', W'): `F.avg_pool2d` of stride 1, the same bits.

    On CPUs it is vectorized over channels alone, so each plane is a channel here: three to four times faster.
    """
    channels = planes.flatten(0, 1)[None].contiguous(memory_format=torch.channels_last)
    means: Tensor = F.avg_pool2d(channels, side, 1, padding)[0].contiguous()
    return means.view(*planes.shape[:2], *means.shape[1:])


def _plane(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """x and y of every pixel, (H, W) in [-1, 1]."""
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, pixels.shape[-2], device=pixels.device),
        torch.linspace(-1, 1, pixels.shape[-1], device=pixels.device),
        indexing="ij",
    )
    return x, y


def _signed(u: Tensor) -> Tensor:
    """[0, 1) -> [-1, 1)"""
    return 2 * u - 1
