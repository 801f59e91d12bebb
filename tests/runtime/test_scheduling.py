"""Priority and pinning: what is asked of the system, and what is said where it refuses."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from mmcompress.errors import UsageError
from mmcompress.runtime import scheduling
from mmcompress.runtime.scheduling import pinned, realtime

linux = pytest.mark.skipif(not hasattr(os, "sched_setscheduler"), reason="Linux only")


@linux
def test_every_thread_is_raised_and_lowered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(scheduling, "_sound", lambda: True)
    monkeypatch.setattr(os, "sched_setscheduler", lambda thread, policy, _: asked.append((thread, policy)))
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        with realtime() as permitted:
            assert permitted
        threads = {thread for thread, _ in asked}
        assert {os.getpid(), other.native_id} <= threads
        for policy in (os.SCHED_RR, os.SCHED_OTHER):
            assert {thread for thread, found in asked if found == policy} == threads
    finally:
        done.set()
        other.join()


@linux
def test_where_it_is_not_permitted_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def refuse(*arguments: Any) -> None:
        asked.append(arguments)
        raise PermissionError

    monkeypatch.setattr(scheduling, "_sound", lambda: True)
    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with realtime() as permitted:
        assert not permitted
    assert len(asked) == 1
    with realtime(False) as permitted:
        assert not permitted
    assert len(asked) == 1


@linux
def test_pinning_is_undone_and_an_impossible_core_is_named() -> None:
    before = os.sched_getaffinity(0)
    core = min(before)
    with pinned((core,)):
        assert os.sched_getaffinity(0) == {core}
    assert os.sched_getaffinity(0) == before
    with pinned(None):
        assert os.sched_getaffinity(0) == before
    with pytest.raises(UsageError, match="the cores 4096 are not all usable here") as caught, pinned((4096,)):
        pass
    assert caught.value.hint == f"this process may use: {', '.join(map(str, sorted(before)))}"
