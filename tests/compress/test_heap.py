"""Freed memory goes back to the system where it is told to, and stays where it is not; in processes of their own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked")

RESIDENT = """
import psutil
from mmcompress.compress import heap
def resident():
    return psutil.Process().memory_info().rss
"""
SCATTERED = """
blocks = [bytearray(100_000) for _ in range(2_000)]
held = blocks[::10]
before = resident()
del blocks
heap.return_freed_memory()
print(before - resident())
"""
LARGE = """
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
heap.keep_freed_memory()
address = libc.malloc(200_000_000)
ctypes.memset(address, 1, 200_000_000)
before = resident()
libc.free(address)
print(before - resident())
"""


def freed_bytes(code: str) -> int:
    done = subprocess.run([sys.executable, "-c", RESIDENT + code], check=True, capture_output=True, text=True)
    return int(done.stdout)


def test_what_lies_between_blocks_in_use_goes_back() -> None:
    assert freed_bytes(SCATTERED) > 100_000_000


def test_a_large_block_stays_where_freed_memory_is_kept() -> None:
    assert freed_bytes(LARGE) < 10_000_000
