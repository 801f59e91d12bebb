"""Students from scratch by name: plain numbers, without torch."""

from __future__ import annotations

CONV_PRESETS: dict[str, tuple[str, int, int, int, int]] = {
    # name: MobileNetV4, image size, stem stride, text width, text blocks
    "mnv4-s-64": ("conv-s", 64, 1, 256, 4),
    "mnv4-s": ("conv-s", 224, 2, 256, 6),
    "mnv4-m": ("conv-m", 224, 2, 384, 6),
    "mnv4-l": ("conv-l", 224, 2, 512, 12),
    "mnv4-hm": ("hybrid-m", 224, 2, 384, 6),
}
PRESETS: dict[str, tuple[int, int, int, int, int, int]] = {
    # name: image width, image blocks, patch, image size, text width, text blocks
    "vit-t8-64": (192, 6, 8, 64, 192, 4),
    "vit-m8-64": (256, 6, 8, 64, 256, 4),
    "vit-t16": (192, 12, 16, 224, 256, 6),
    "vit-s32": (384, 12, 32, 224, 384, 6),
    "vit-s16": (384, 12, 16, 224, 384, 6),
    "vit-b32": (768, 12, 32, 224, 512, 12),
    "vit-b16": (768, 12, 16, 224, 512, 12),
    "vit-l14": (1024, 24, 14, 224, 768, 12),
}
