"""How good input is spoiled: bytes are changed, cut and repeated; of JSON and TOML also values, one at a time."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

ODD_NUMBERS = (
    0,
    -1,
    1,
    2,
    0.5,
    -0.0,
    1e-300,
    1e300,
    1e308,
    1e-320,
    2**31,
    2**63,
    2**64,
    -(2**63),
    10**400,
    float("nan"),
    float("inf"),
)
ODD_TEXTS = (
    *("", " ", ".", "..", "../x", "/", "/dev/null", "~", "a" * 5000, "\0", "\x1b[2J", "😀", "\ud800", "{}", "{x}", "-"),
    *("pipe:touch PWNED", "x.py:f", "demo:test", "image", "text", "1e999", "NaN", "null", "1", "%s%n", "\r\n", "int8"),
)
ODD = (None, True, False, [], {}, [[]], [None], {"": None}, {"a": {"b": [1]}}, *ODD_NUMBERS, *ODD_TEXTS)
WORDS = (b"\0" * 4, b"\xff" * 8, b"{}", b"[]", b"null", b"1e999", b"\n", b'"', b"../../x", b"\xf0\x9f\x98\x80", b"RIFF")


@st.composite
def spoiled_bytes(draw: st.DrawFn, good: bytes) -> bytes:
    """Up to four edits of good bytes."""
    spoiled = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(spoiled) - 1)))
        length = draw(st.sampled_from([1, 1, 2, 4, 8, 64, 512]))
        match draw(st.sampled_from(["flip", "set", "cut", "insert", "repeat", "end"])):
            case "flip" if spoiled:
                spoiled[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                spoiled[at : at + length] = bytes([draw(st.integers(0, 255))]) * length
            case "cut":
                del spoiled[at : at + length]
            case "insert":
                spoiled[at:at] = draw(st.one_of(st.sampled_from(WORDS), st.binary(max_size=16)))
            case "repeat":
                spoiled[at:at] = spoiled[at : at + length] * draw(st.integers(1, 4))
            case "end":
                del spoiled[at:]
    return bytes(spoiled)


def _places(document: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [at, *(place for key, value in inside for place in _places(value, (*at, key)))]


@st.composite
def spoiled_document(draw: st.DrawFn, good: Any) -> Any:
    """Up to three values of a document replaced by odd ones, taken away, or put under another key."""
    document = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        *way, key = draw(st.sampled_from(_places(document)[1:] or [("nothing",)]))
        holder = document
        for step in way:
            holder = holder[step]
        match draw(st.sampled_from(["odd", "odd", "odd", "other", "remove", "rename"])):
            case "odd":
                holder[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
            case "other":
                holder[key] = draw(st.one_of(st.integers(), st.floats(), st.text(max_size=20), st.booleans()))
            case "remove":
                del holder[key]
            case "rename" if isinstance(holder, dict):
                holder[draw(st.one_of(st.sampled_from(["x", "", "schema", "__class__"]), st.text(max_size=8)))] = (
                    holder.pop(key)
                )
    return document
