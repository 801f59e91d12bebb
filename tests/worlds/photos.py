"""A folder of photos without a word about them."""

from __future__ import annotations

import shutil
from pathlib import Path


def write_photos(folder: Path, images: Path, copies: int) -> Path:
    """Each PNG in `images` so many times, under names of their own."""
    folder.mkdir()
    for index in range(copies):
        for path in images.glob("*.png"):
            shutil.copyfile(path, folder / f"{index}-{path.name}")
    return folder
