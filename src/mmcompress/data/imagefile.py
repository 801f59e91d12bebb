"""Is this a whole JPEG, PNG or WebP of sane size? Answered from the bytes, without decoding them.

Data sets come with truncated downloads and, from strangers, with small files that decode to gigabytes. Both show in the
container: a JPEG that ends has an end marker, a PNG has checksums and an end chunk, a WebP states its length, and all
state their size in pixels. So a stream can be checked at reading speed, a resumed epoch can skip a million images
without decoding one, and Pillow's process-wide limits stay untouched. What is damaged inside and still whole in this
sense fails when it is decoded.
"""

from __future__ import annotations

import zlib

MAX_PIXELS = 64 * 2**20
"""Larger images are refused unread; decoded, this many take 256 MiB. Pillow would warn from 89 million on."""

_PNG = b"\x89PNG\r\n\x1a\n"
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})


def image_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a whole image of at most MAX_PIXELS; ValueError with the reason for any other bytes."""
    if data.startswith(b"\xff\xd8"):
        width, height = _jpeg_size(data)
    elif data.startswith(_PNG):
        width, height = _png_size(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        width, height = _webp_size(data)
    else:
        raise ValueError("the image is empty" if not data else "the image is no JPEG, PNG or WebP")
    if width < 1 or height < 1:
        raise ValueError(f"the image is {width} x {height} pixels large")
    if width * height > MAX_PIXELS:
        raise ValueError(f"the image is {width} x {height} pixels large, and more than {MAX_PIXELS:,} are refused")
    return width, height


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Walk the segments to the scan (ITU T.81, B.1); within it FF D9 can only be the end."""
    size, at = None, 2
    while at + 4 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF or marker in (0x00, 0xFF):  # stray bytes between segments, which decoders skip
            at += 1
            continue
        if marker in _BARE_MARKERS:
            at += 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if length < 2:
            raise ValueError("the JPEG is damaged: a segment has no length")
        if marker in _FRAME_MARKERS and at + 9 <= len(data):
            size = (int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big"))
        if marker == 0xDA:
            if size is None:
                raise ValueError("the JPEG is damaged: it has no frame header")
            if data.find(b"\xff\xd9", at + length) < 0:
                break
            return size
        at += 2 + length
    raise ValueError("the JPEG is truncated")


def _png_size(data: bytes) -> tuple[int, int]:
    """Walk the chunks to IEND and check each one's CRC (ISO 15948, 5.3)."""
    size, at, view = None, len(_PNG), memoryview(data)
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data):
            break
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise ValueError("the PNG is damaged: a checksum does not match")
        if kind == b"IHDR" and length == 13:
            size = (int.from_bytes(data[at + 8 : at + 12], "big"), int.from_bytes(data[at + 12 : at + 16], "big"))
        if kind == b"IEND":
            if size is None:
                raise ValueError("the PNG is damaged: it has no header")
            return size
        at = end
    raise ValueError("the PNG is truncated")


def _webp_size(data: bytes) -> tuple[int, int]:
    """The RIFF length, and the size in the first chunk: VP8X, VP8L or VP8 (RFC 9649, 2.4 to 2.7)."""
    if len(data) < 30 or int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise ValueError("the WebP is truncated")
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L" and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    raise ValueError("the WebP is damaged: it has no frame header")
