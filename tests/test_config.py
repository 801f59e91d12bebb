"""What excludes each other in a config is refused when it is read, with the key."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmcompress.config import PruneConfig, QuantizeConfig, validated
from mmcompress.distributed import world
from mmcompress.errors import MissingRequirementError, UsageError

DATA = {"data": {"train": "demo:train"}}


@pytest.mark.parametrize(
    ("model", "values", "what"),
    [
        (PruneConfig, {"target_latency": "0.5x", "mlp": 0.5}, "mlp and target_latency exclude each other"),
        (PruneConfig, {"target_macs": 0.5, "heads": 0.5}, "heads and target_macs exclude each other"),
        (QuantizeConfig, {"sensitivity": False, "max_drop": 0.0}, "max_drop needs the ranking"),
        (QuantizeConfig, {"sensitivity": False, "max_flips": 0.01}, "max_flips needs the ranking"),
        (QuantizeConfig, {"device": "gpu"}, "device: String should match"),
    ],
)
def test_options_that_would_be_ignored_are_refused(model: type[Any], values: dict[str, object], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        validated(model, {**DATA, **values}, "test")


def test_what_goes_together_is_taken() -> None:
    assert validated(PruneConfig, {**DATA, "target_macs": 0.5}, "test").target == ("macs", 0.5)
    for limits in ({}, {"max_drop": None}, {"max_drop": 1.0, "max_flips": 1.0}):
        validated(QuantizeConfig, {**DATA, "sensitivity": False, **limits}, "test")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said() -> None:
    with pytest.raises(MissingRequirementError, match="torch finds no GPU here"), world("cuda:0"):
        pass
