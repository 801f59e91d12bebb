"""Augmentation as a pure function of the pixels and of a few uniform numbers a sample.

A view is a function of (seed, view number, key) through Philox (Salmon et al. 2011), so it can be made again anywhere:
the student sees exactly the pixels that the teacher embedded, at whatever resolution, on whatever device, and a
resumed run goes on as if it had not stopped. All of it runs on whole batches in torch.

`photo` crops, mirrors and jitters colours. `drawing` is for pictures on a plain white ground: it moves, warps, shades
and recolours what is drawn, and never mirrors it, since an arrow or a letter has a direction.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mmcompress.data.batches import Batch
from mmcompress.manifest import Preprocessing

UNIFORMS = 40


def uniforms(seed: int, views: NDArray[np.int64], keys: Sequence[str]) -> NDArray[np.float32]:
    """(B, UNIFORMS) in [0, 1), a stateless function of (seed, view, key)."""
    rows = [
        np.random.Generator(np.random.Philox(key=[seed, _hash(key)], counter=[int(view), 0, 0, 0])).random(
            UNIFORMS, dtype=np.float32
        )
        for view, key in zip(views, keys, strict=True)
    ]
    return np.stack(rows)


def choices(seed: int, epoch: int, keys: Sequence[str]) -> NDArray[np.float32]:
    """(B, 2) in [0, 1): which view and which caption a sample shows in an epoch."""
    return uniforms(seed, np.full(len(keys), -1 - epoch) & 0xFFFFFFFF, keys)[:, :2]


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def pixels_of_views(decoded: Batch, views: NDArray[np.int64], seed: int, kind: str, device: torch.device) -> Tensor:
    """(B, 3, S, S) in [0, 1]: each image in its view; view 0 is the plain image."""
    pixels = torch.from_numpy(decoded.pixels).to(device).permute(0, 3, 1, 2).float() / 255
    changed = np.flatnonzero(views) if kind != "none" else views[:0]
    if len(changed):
        u = torch.from_numpy(uniforms(seed, views[changed], [decoded.keys[i] for i in changed])).to(device)
        rows = torch.from_numpy(changed).to(device)
        pixels = pixels.contiguous()
        pixels[rows] = (drawing if kind == "drawing" else photo)(pixels[rows], u)
    return pixels


def normalized(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(B, 3, S, S) in [0, 1] -> zero mean and unit deviation by the model's own constants."""
    mean, std = (pixels.new_tensor(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    return (pixels - mean) / std


def photo(pixels: Tensor, u: Tensor) -> Tensor:
    """Random resized crop of 40 to 100% of the area, mirror image, colour jitter: (B, 3, H, W) -> (B, 3, H, W)."""
    side = (0.4 + 0.6 * u[:, 0]).sqrt()
    aspect = torch.exp(_signed(u[:, 1]) * math.log(4 / 3) / 2)
    scale_x, scale_y = (side * aspect).clamp(max=1), (side / aspect).clamp(max=1)
    mirror = torch.where(u[:, 4] < 0.5, -1.0, 1.0)
    zero = torch.zeros_like(side)
    row_x = torch.stack([scale_x * mirror, zero, _signed(u[:, 2]) * (1 - scale_x)], dim=-1)
    row_y = torch.stack([zero, scale_y, _signed(u[:, 3]) * (1 - scale_y)], dim=-1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), list(pixels.shape), align_corners=False)
    cropped = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return _recoloured(cropped, u[:, 5:14], hue=0.1, strength=0.4)


def drawing(pixels: Tensor, u: Tensor) -> Tensor:
    """Another hand's drawing of the same thing, on white: (B, 3, H, W) -> (B, 3, H, W)."""
    moved = _warped(pixels, u[:, :11])
    ground = (moved.amin(dim=1, keepdim=True) - 0.9).clamp_min(0) * 10  # 1 where nothing is drawn
    shaded = moved + (1 - ground) * _shading(1 - ground, u[:, 11:18])
    hue = torch.where(u[:, 19] < 0.25, 0.6, 0.15)
    coloured = _recoloured(shaded, u[:, [18, *range(20, 28)]], hue=hue, strength=1.0)
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


def _recoloured(pixels: Tensor, u: Tensor, hue: float | Tensor, strength: float) -> Tensor:
    """Hue rotation about the grey axis, saturation, contrast, brightness, channel gains and gamma, from (B, 9)."""
    s = strength * _signed(u)
    angle = (_signed(u[:, 0]) * hue).view(-1, 1, 1)
    eye, grey, q = torch.eye(3).to(pixels), pixels.new_full((3, 3), 1 / 3), math.sqrt(1 / 3)
    cross = pixels.new_tensor([[0.0, -q, q], [q, 0.0, -q], [-q, q, 0.0]])
    turn = torch.cos(angle) * eye + (1 - torch.cos(angle)) * grey + torch.sin(angle) * cross
    saturation = torch.where(u[:, 2] < 0.06, 0.0, torch.exp(0.5 * s[:, 1])).view(-1, 1, 1)
    colour = (saturation * eye + (1 - saturation) * grey) @ turn
    y = torch.einsum("bij,bjhw->bihw", colour, pixels)
    contrast, brightness, gamma = torch.exp(0.3 * s[:, 3]), 0.15 * s[:, 4], torch.exp(0.35 * s[:, 8])
    y = (y - 0.5) * contrast.view(-1, 1, 1, 1) + 0.5 + brightness.view(-1, 1, 1, 1)
    y = y * (1 + 0.12 * s[:, 5:8]).view(-1, 3, 1, 1)
    return y.clamp(1e-4, 1) ** gamma.view(-1, 1, 1, 1)


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
