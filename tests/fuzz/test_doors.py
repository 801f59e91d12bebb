"""Spoiled input at every door: a result or one of our errors, never a traceback, a hang or a heap of memory.

By default each door gets the same few inputs every time. With `FUZZ_SECONDS`, which `make fuzz` sets, it gets other
ones for so long.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from pathlib import Path

import doors
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mutation import spoiled_bytes, spoiled_document

from mmcompress.errors import MMCompressError

SECONDS = int(os.environ.get("FUZZ_SECONDS", "0"))
EXAMPLES = 25
LONGEST_SECONDS = 10.0
LARGEST_KIB = 6 << 20


@pytest.mark.parametrize("door", doors.DOORS, ids=lambda door: door.name)
def test_spoiled_input_gets_an_answer(door: doors.Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good = door.good(tmp_path)
    door.enter(tmp_path, good)
    spoil = spoiled_bytes if door.kind == "bytes" else spoiled_document

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=not SECONDS,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def attack(data: st.DataObject) -> None:
        spoiled = data.draw(spoil(good))
        begin = time.monotonic()
        with contextlib.suppress(MMCompressError):
            door.enter(tmp_path, spoiled)
        assert time.monotonic() - begin < LONGEST_SECONDS

    start = time.monotonic()
    attack()
    while time.monotonic() - start < SECONDS:
        attack()
    assert not list(tmp_path.parent.rglob("PWNED")), "a command in the input was run"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < LARGEST_KIB
