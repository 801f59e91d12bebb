"""Which files beside an ONNX file its weights are read from, said by the file itself.

Runtimes open them by the names in the graph, whatever a manifest lists. So the names are read here, by the numbers of
their fields in onnx.proto3, without the package `onnx`, which devices lack, and without the weights: what is long is
stepped over in a file that is mapped into memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

_TENSOR, _ENTRY = "TensorProto", "StringStringEntryProto"
_INSIDE: Mapping[str, Mapping[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: _TENSOR, 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        **{5: _TENSOR, 6: "GraphProto", 10: _TENSOR, 11: "GraphProto"},
        **{22: "SparseTensorProto", 23: "SparseTensorProto"},
    },
    "SparseTensorProto": {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {13: _ENTRY},
}
"""Messages that lead to a tensor, by the field that they stand in."""
_VARINT, _EIGHT_BYTES, _LENGTH, _GROUP, _GROUP_END, _FOUR_BYTES = range(6)
_DEEPEST = 100
"""As protobuf's own readers allow."""


def files_beside(path: Path) -> set[str]:
    """The names, relative to the file's folder. Of what is no message, those before its fault: no runtime reads it."""
    found: set[str] = set()
    if not path.stat().st_size:
        return found
    with (
        path.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
        suppress(IndexError, ValueError),
    ):
        for name in _locations(content, 0, len(content), "ModelProto", 0):
            found.add(name)
    return found


def _locations(content: mmap.mmap, at: int, end: int, message: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError(f"its messages lie more than {_DEEPEST} deep")
    for number, begin, stop in _fields(content, at, end):
        inside = _INSIDE[message].get(number)
        if inside == _ENTRY:
            said = {key: content[start:over] for key, start, over in _fields(content, begin, stop)}
            if said.get(1) == b"location":
                yield said.get(2, b"").decode("utf-8", "surrogateescape")
        elif inside is not None:
            yield from _locations(content, begin, stop, inside, depth + 1)


def _fields(content: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each field that has a length."""
    while at < end:
        key, at = _varint(content, at)
        kind = key & 7
        if kind == _LENGTH:
            length, at = _varint(content, at)
            if at + length > end:
                raise ValueError(f"a field of {length} bytes at {at} goes beyond its message")
            yield key >> 3, at, at + length
            at += length
        elif kind == _VARINT:
            _, at = _varint(content, at)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if kind == _EIGHT_BYTES else 4
        elif kind not in (_GROUP, _GROUP_END):  # of a group, which ONNX has none of, readers step over each field
            raise ValueError(f"a field of the unknown kind {kind} at {at}")


def _varint(content: mmap.mmap, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise ValueError(f"a number of more than 10 bytes at {at}")
