"""Small pictures, shards and tables for the tests of data."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from mmcompress.manifest import Preprocessing

SMALL = Preprocessing(size=16, resize=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def picture(
    seed: int = 0, size: tuple[int, int] = (24, 20), kind: str = "JPEG", mode: str = "RGB", **save: object
) -> bytes:
    """An encoded image of noise, (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(noise, "RGBA") if mode == "RGBA" else Image.fromarray(noise[..., :3]).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **save)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size, with no pixels: whole as a container, and undecodable."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def write_tar(path: Path, files: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def pair(key: str, seed: int = 0, caption: str | None = "a caption", about: object = None) -> list[tuple[str, bytes]]:
    """The files of one sample."""
    files = [(f"{key}.jpg", picture(seed))]
    if caption is not None:
        files.append((f"{key}.txt", caption.encode()))
    if about is not None:
        files.append((f"{key}.json", json.dumps(about).encode()))
    return files


def shard(path: Path, samples: int, start: int = 0) -> Path:
    """A shard of good samples whose captions are their numbers."""
    numbers = range(start, start + samples)
    return write_tar(path, [file for n in numbers for file in pair(f"{n:06d}", n, f"number {n}")])
