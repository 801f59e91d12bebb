"""The four MobileNetV4 towers as configs (Qin et al. 2024), at any image size; their sizes are those that timm has.

A stage is its channels and its bottlenecks, each with the depthwise kernels in front of the expansion and behind it, 0
for none, and how often it multiplies its input channels. A number in their place is multi-query attention that
downsamples keys and values by it. The first bottleneck of a stage halves the image.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmcompress.convblocks import AttentionBlock, ConvBlock, FusedBlock, PlainBlock, UniversalBlock
from mmcompress.convnet import ConvConfig

Row = tuple[int, int, int] | int
"""Kernel in front, kernel behind, expansion; or the stride of an attention's keys and values."""
Stage = tuple[int, Sequence[Row]]

_LAST, _HEAD = 960, 1280
_HEADS, _HEAD_DIM = 4, 64
_FFN2: Row = (0, 0, 2)
_FFN4: Row = (0, 0, 4)
_NEXT: Row = (3, 0, 4)

STAGES: dict[str, tuple[Stage, Stage]] = {
    "conv-s": (
        (96, [(5, 5, 3), *[(0, 3, 2)] * 4, _NEXT]),
        (128, [(3, 3, 6), (5, 5, 4), (0, 5, 4), (0, 5, 3), *[(0, 3, 4)] * 2]),
    ),
    "conv-m": (
        (160, [(3, 5, 6), *[(3, 3, 4)] * 2, (3, 5, 4), (3, 3, 4), _NEXT, _FFN2, _NEXT]),
        (
            256,
            [(5, 5, 6), (5, 5, 4), *[(3, 5, 4)] * 2, _FFN4, _NEXT, (3, 5, 2), (5, 5, 4), *[_FFN4] * 2, (5, 0, 2)],
        ),
    ),
    "conv-l": (
        (192, [(3, 5, 4), *[(3, 3, 4)] * 3, (3, 5, 4), *[(5, 3, 4)] * 5, _NEXT]),
        (512, [*[(5, 5, 4)] * 4, (5, 0, 4), (5, 3, 4), *[(5, 0, 4)] * 2, (5, 3, 4), (5, 5, 4), *[(5, 0, 4)] * 3]),
    ),
    "hybrid-m": (
        (160, [(3, 5, 6), _FFN2, (3, 3, 4), (3, 5, 4), 2, (3, 3, 4), 2, _NEXT, 2, (3, 3, 4), 2, _NEXT]),
        (
            256,
            [
                (5, 5, 6),
                (5, 5, 4),
                *[(3, 5, 4)] * 2,
                _FFN2,
                (3, 5, 2),
                _FFN2,
                _FFN4,
                1,
                _NEXT,
                1,
                (5, 5, 4),
                1,
                (5, 0, 4),
                1,
                (5, 0, 4),
            ],
        ),
    ),
}
"""The third and the fourth stage of each."""


def mobilenetv4(variant: str, image_size: int, stem_stride: int = 2) -> ConvConfig:
    """One of `STAGES` for square images of a side."""
    stem = 24 if variant == "conv-l" else 32
    first, inputs = _first_stages(variant, stem)
    stages = [*first]
    for channels, rows in STAGES[variant]:
        stages.append(_stage(inputs, channels, rows))
        inputs = channels
    stages.append([PlainBlock(kind="conv", channels=_LAST, kernel=1)])
    return ConvConfig(
        kind="conv",
        image_size=image_size,
        stem=stem,
        stem_stride=stem_stride,
        stages=tuple(map(tuple, stages)),
        head=_HEAD,
        layer_scale=variant == "hybrid-m",
    )


def _first_stages(variant: str, stem: int) -> tuple[list[list[ConvBlock]], int]:
    """The two stages on large maps, and the channels that they give."""
    if variant == "conv-s":
        plain = [((32, 3, 2), (32, 1, 1)), ((96, 3, 2), (64, 1, 1))]
        stages = [[PlainBlock(kind="conv", channels=c, kernel=k, stride=s) for c, k, s in stage] for stage in plain]
        return [*map(list[ConvBlock], stages)], 64
    channels, second = (96, 4) if variant == "conv-l" else (80, 2)
    fused: ConvBlock = FusedBlock(kind="fused", channels=48, hidden=4 * stem, kernel=3, stride=2)
    return [[fused], _stage(48, channels, [(3, 5, 4), (3, 3, second)])], channels


def _stage(inputs: int, channels: int, rows: Sequence[Row]) -> list[ConvBlock]:
    blocks: list[ConvBlock] = []
    stride = 2
    for row in rows:
        if isinstance(row, int):
            blocks.append(AttentionBlock(kind="mqa", heads=_HEADS, head_dim=_HEAD_DIM, kv_stride=row))
            continue
        start, middle, expansion = row
        hidden = inputs * expansion
        blocks.append(
            UniversalBlock(kind="uib", channels=channels, hidden=hidden, start=start, middle=middle, stride=stride)
        )
        inputs, stride = channels, 1
    return blocks
