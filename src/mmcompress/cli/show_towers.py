"""What `inspect` says of a tower: the blocks of a transformer in a line, and those of a convolutional one by stage."""

from __future__ import annotations

from itertools import groupby

from mmcompress.architecture import TowerConfig
from mmcompress.convblocks import AttentionBlock, ConvBlock, UniversalBlock
from mmcompress.convnet import ConvConfig


def transformer_line(tower: TowerConfig) -> str:
    """`12 blocks of width 384; heads 6 6 …; MLP 1536 1536 …; gelu`"""
    heads, mlp = " ".join(map(str, tower.heads)), " ".join(map(str, tower.mlp))
    return f"{tower.depth} blocks of width {tower.width}; heads {heads}; MLP {mlp}; {tower.activation}"


def convolution_lines(tower: ConvConfig) -> dict[str, str]:
    """The tower in a line, and each of its stages: `128 channels at 7x7: ExtraDW 3-576-3 /2, 2 x IB 512-3`."""
    ends = f"stem of {tower.stem} channels /{tower.stem_stride}, head of {tower.head}"
    lines = {"image tower": f"convolutional, {tower.depth} blocks in {len(tower.stages)} stages; {ends}"}
    placed = list(tower.placed())
    for number, stage in enumerate(tower.stages, 1):
        own, placed = placed[: len(stage)], placed[len(stage) :]
        _, last, inputs, side = own[-1]
        channels = inputs if isinstance(last, AttentionBlock) else last.channels
        out = (side - 1) // last.stride + 1
        blocks = [(len([*same]), told) for told, same in groupby(_told(block) for block in stage)]
        listed = ", ".join(f"{times} x {told}" if times > 1 else told for times, told in blocks)
        lines[f"stage {number}"] = f"{channels} channels at {out}x{out}: {listed}"
    return lines


def _told(block: ConvBlock) -> str:
    """Kernels around hidden channels, and the stride: `ExtraDW 3-576-3 /2`."""
    stride = f" /{block.stride}" if block.stride > 1 else ""
    if isinstance(block, AttentionBlock):
        down = f" with keys and values /{block.kv_stride}" if block.kv_stride > 1 else ""
        return f"attention {block.heads}x{block.head_dim}{down}"
    if isinstance(block, UniversalBlock):
        parts = [part for part in (block.start, block.hidden, block.middle) if part]
        return f"{block.variant} {'-'.join(map(str, parts))}{stride}"
    if block.kind == "fused":
        return f"fused {block.kernel}-{block.hidden}{stride}"
    return f"convolution {block.kernel}{stride}"
