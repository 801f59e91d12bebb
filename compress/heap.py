"""What becomes of freed memory: it stays with the process while that quantizes, and goes back while that trains.

glibc maps every tensor of some megabytes anew and unmaps it when it is freed, and each first touch of a page costs a
fault: a tenth of the time of `quantize` at true size. Of small blocks it keeps what lies between those in use, which
grows for hours where threads decode images. What other C libraries do is left as it is.
"""

from __future__ import annotations

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""`M_TRIM_THRESHOLD` and `M_MMAP_THRESHOLD` of malloc.h."""
_LARGEST = (1 << 30, 1 << 25)
"""Bytes of an allocation that comes from the heap; up to 2.34 glibc takes the second at most."""


@cache
def keep_freed_memory() -> None:
    """From now on; where the C library is glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and any(mallopt(_MMAP_THRESHOLD, size) for size in _LARGEST):
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


def return_freed_memory() -> None:
    """What is free now."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
