"""Names of well-known teachers, without torch: the command line, model cards and `compress/teacher.py` share them."""

from __future__ import annotations

from pathlib import Path

ALIASES = {
    "vit-b32": "openai/clip-vit-base-patch32",
    "vit-b16": "openai/clip-vit-base-patch16",
    "vit-l14": "openai/clip-vit-large-patch14",
    "vit-l14-336": "openai/clip-vit-large-patch14-336",
    "laion-vit-h14": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "metaclip-b16": "facebook/metaclip-b16-fullcc2.5b",
    "metaclip-l14": "facebook/metaclip-l14-fullcc2.5b",
    "metaclip-h14": "facebook/metaclip-h14-fullcc2.5b",
    "siglip-b16": "google/siglip-base-patch16-224",
    "siglip2-b16": "google/siglip2-base-patch16-224",
    "siglip2-l16": "google/siglip2-large-patch16-256",
    "siglip2-so400m": "google/siglip2-so400m-patch14-384",
    "chinese-clip-b16": "OFA-Sys/chinese-clip-vit-base-patch16",
    "chinese-clip-l14": "OFA-Sys/chinese-clip-vit-large-patch14",
}


def hub_id(source: str) -> str | None:
    """The hub's name of a teacher, `openai/clip-vit-base-patch32`; None for one that has none, a local folder say."""
    name = ALIASES.get(source, source)
    if name.count("/") != 1 or ":" in name or source.startswith((".", "/", "~")) or Path(source).exists():
        return None
    return name
