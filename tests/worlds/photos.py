"""A folder of photos without a word about them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def write_photos(folder: Path, images: Path, copies: int) -> Path:
    """Each PNG in `images` so many times, under names of their own; no two are the same, by one corner."""
    folder.mkdir()
    for index in range(copies):
        for path in images.glob("*.png"):
            with Image.open(path) as image:
                image.putpixel((0, 0), (index, 0, 0))
                image.save(folder / f"{index}-{path.name}")
    return folder
