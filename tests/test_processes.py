"""What the environment announces: one process, several, or a part of what is needed to find the others."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from mmcompress import ranks
from mmcompress.errors import UsageError
from mmcompress.ranks import Announced, announced, join_seconds, share_of_batch

WHOLE = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node", "MASTER_PORT": "29500"}


def test_torchrun_is_understood() -> None:
    assert announced(WHOLE) == Announced(1, 4, 1)
    assert announced({**WHOLE, "LOCAL_RANK": "0"}) == Announced(1, 4, 0)


@pytest.mark.parametrize("alone", [{}, {"WORLD_SIZE": "1"}, {"RANK": "0"}, {"MASTER_ADDR": "node"}])
def test_one_process(alone: dict[str, str]) -> None:
    assert announced(alone) is None


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 announces several processes, but RANK, MASTER_ADDR, MASTER_PORT: not set"),
        ({"RANK": "1"}, "RANK=1 announces several processes, but WORLD_SIZE, MASTER_ADDR, MASTER_PORT: not set"),
        ({**WHOLE, "MASTER_PORT": ""}, "but MASTER_PORT: not set"),
        ({**WHOLE, "RANK": "one"}, "RANK=one, WORLD_SIZE=4, MASTER_PORT=29500: these must be whole numbers"),
        ({**WHOLE, "RANK": "4"}, "RANK=4 is none of WORLD_SIZE=4 processes"),
    ],
)
def test_a_half_set_environment(environment: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        announced(environment)
    assert said in refused.value.what and "torchrun --nproc_per_node" in refused.value.hint


def test_processes_that_a_person_starts_here_are_waited_for_a_moment() -> None:
    here = {**WHOLE, "MASTER_ADDR": "127.0.0.1"}
    assert join_seconds(here) == join_seconds({**WHOLE, "MASTER_ADDR": "localhost"}) == 20
    assert join_seconds(WHOLE) == join_seconds({**here, "TORCHELASTIC_RUN_ID": "none"}) == 300


def test_one_of_two_processes_alone_ends_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_JOIN_HERE_SECONDS", 1.0)
    alone = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29561"}
    monkeypatch.setattr("os.environ", {**os.environ, **alone})
    met = pytest.raises(ranks.LostProcessError, match="rank 0 has not met all 2 processes within 1 s")
    with met, ranks.joined(Announced(0, 2, 0)):
        pass


def test_the_command_line_says_so(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended = cli("--version")
    assert (ended.code, ended.out) == (2, "") and "error: WORLD_SIZE=2 announces" in ended.err


def test_a_batch_is_shared_evenly_or_not_at_all() -> None:
    assert share_of_batch(128, 8) == 16
    with pytest.raises(UsageError, match="100 pairs a step cannot be shared evenly by 8") as refused:
        share_of_batch(100, 8)
    assert "104" in refused.value.hint
