"""Which stage gets which key: all that have it with one meaning, none that does not run, and nothing is dropped."""

from __future__ import annotations

import pytest

from mmcompress.errors import UsageError
from mmcompress.pipeline.routing import routed


def test_a_key_reaches_every_stage_that_has_it_with_the_same_meaning() -> None:
    given = {"data.max_bad_fraction": 0.3, "device": "cpu", "seed": 3, "optimizer.lr": 1.0, "augment": "drawing"}
    to = routed(given, "distill", "embed")
    assert to["distill"] == {"data.max_bad_fraction": 0.3, "device": "cpu", "seed": 3, "optimizer.lr": 1.0}
    assert to["embed"] == {"data.max_bad_fraction": 0.3, "device": "cpu", "seed": 3, "augment": "drawing"}


def test_trust_reaches_whatever_has_a_teacher() -> None:
    to = routed({"teacher.trust_remote_code": True}, "prune", "embed", "convert")
    assert to == {
        "prune": {},
        "embed": {"teacher.trust_remote_code": True},
        "convert": {"teacher.trust_remote_code": True},
    }


def test_one_name_with_two_meanings_is_the_commands_own() -> None:
    """A verdict's batch is a call's, quantize's is what is computed at once; their budget is one."""
    to = routed({"batch": 8, "samples": 9, "max_drop": 0.1, "quantize.batch": 4}, "verdict", "quantize")
    assert to["verdict"] == {"batch": 8, "samples": 9, "max_drop": 0.1}
    assert to["quantize"] == {"max_drop": 0.1, "batch": 4}


def test_a_stage_named_with_its_key_gets_it_alone_and_last() -> None:
    to = routed({"embed.batch": 16, "batch": 32}, "prune", "embed")
    assert to == {"prune": {"batch": 32}, "embed": {"batch": 16}}


@pytest.mark.parametrize("key", ["views", "embed.views"])
def test_a_stage_that_has_nothing_to_do_is_named(key: str) -> None:
    with pytest.raises(UsageError, match=f"{key} is a key of embed, which has nothing to do here: it is there"):
        routed({key: 2}, "prune", idle={"embed": "it is there"})


def test_what_no_stage_has_goes_to_one_that_says_what_is_close() -> None:
    assert routed({"mpl": 1}, "prune", "embed") == {"prune": {"mpl": 1}, "embed": {}}
    assert routed({"teacher.sorce": 1}, "prune", "embed")["embed"] == {"teacher.sorce": 1}
