"""The container checks against Pillow, which decodes."""

from __future__ import annotations

import io
import struct

import pytest
from PIL import Image
from shards import chunk, picture, png_of

from mmcompress.data.imagefile import MAX_PIXELS, image_size

WHOLE = {
    "jpeg": picture(kind="JPEG"),
    "jpeg progressive": picture(kind="JPEG", progressive=True),
    "jpeg grey": picture(kind="JPEG", mode="L"),
    "jpeg cmyk": picture(kind="JPEG", mode="CMYK"),
    "png": picture(kind="PNG"),
    "png palette": picture(kind="PNG", mode="P"),
    "png alpha": picture(kind="PNG", mode="RGBA"),
    "webp lossy": picture(kind="WEBP"),
    "webp lossless": picture(kind="WEBP", lossless=True),
    "webp alpha": picture(kind="WEBP", mode="RGBA"),
    "webp odd": picture(kind="WEBP", size=(301, 7)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_size_is_what_pillow_says(name: str) -> None:
    assert image_size(WHOLE[name]) == Image.open(io.BytesIO(WHOLE[name])).size


@pytest.mark.parametrize("name", WHOLE)
def test_every_truncation_that_pillow_refuses_is_refused(name: str) -> None:
    whole = WHOLE[name]
    for length in range(0, len(whole) - 24, 37):  # Pillow does without a PNG's last chunk
        cut = whole[:length]
        with pytest.raises((OSError, SyntaxError, ValueError)):  # the reference
            Image.open(io.BytesIO(cut)).load()
        with pytest.raises(ValueError, match=r"truncated|damaged|empty|no JPEG, PNG or WebP"):
            image_size(cut)


def test_jpegs_with_stray_bytes_are_whole_as_they_are_for_pillow() -> None:
    plain = WHOLE["jpeg"]
    thumbnail = b"Exif\0\0" + plain
    comment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    for data in (plain + b"tail\xff\xda", plain[:2] + comment + plain[2:], plain[:2] + b"\xff\xff" + plain[2:]):
        Image.open(io.BytesIO(data)).load()
        assert image_size(data) == (24, 20)
    with pytest.raises(ValueError, match="truncated"):  # the thumbnail's end is not the image's
        image_size(plain[:2] + comment + plain[2:-2])


def test_bombs_are_refused_and_the_largest_size_is_not() -> None:
    assert image_size(png_of(8192, 8192)) == (8192, 8192) and MAX_PIXELS == 8192 * 8192
    with pytest.raises(ValueError, match=r"8193 x 8192 pixels large, and more than 67,108,864 are refused"):
        image_size(png_of(8193, 8192))
    jpeg = bytearray(WHOLE["jpeg"])
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65535, 65535)
    with pytest.raises(ValueError, match="65535 x 65535"):
        image_size(bytes(jpeg))
    webp = bytearray(WHOLE["webp alpha"])
    webp[24:30] = b"\xff" * 6
    with pytest.raises(ValueError, match="16777216 x 16777216"):
        image_size(bytes(webp))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"GIF89a" + bytes(40), "no JPEG, PNG or WebP"),
        (png_of(0, 5), "0 x 5 pixels"),
        (WHOLE["png"].replace(b"IDAT", b"IDAX"), "checksum"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""), "no header"),
        (b"\xff\xd8\xff\xda\x00\x02\xff\xd9", "no frame header"),
        (b"\xff\xd8\xff\xe0\x00\x00\xff\xd9", "no length"),
        (b"RIFF" + struct.pack("<I", 30) + b"WEBPVP9 " + bytes(30), "no frame header"),
    ],
)
def test_reasons(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        image_size(data)
