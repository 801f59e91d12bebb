"""One set of data in parts that share no sample: what is fitted, what choices are made on, what is only measured.

The parts are tenths, told by the hash of each sample's key. A set that is large is calibrated on in part only, and the
rest can judge as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from mmcompress.config import FitConfig
from mmcompress.data.batches import count_up_to, images_of
from mmcompress.data.spec import Share, is_stream
from mmcompress.errors import UsageError
from mmcompress.measure.verdict.heldout import FEWEST
from mmcompress.pipeline.routing import routed
from mmcompress.pipeline.single import config_of
from mmcompress.pipeline.sources import Given
from mmcompress.progress import say

JUDGES = 45
"""Samples that a part has at least, in the mean, so that twenty different texts are among them."""
BINS = 10


def part(data: str, first: int, last: int) -> str:
    """The specification of some tenths of a set."""
    return Share(first, last, BINS).of(data)


def judging_bins(data: str, hint: str = "give more") -> int:
    """How many of ten bins judge: one where there is plenty, three at most. Raises UsageError where that is too few."""
    enough = JUDGES * BINS
    there = count_up_to(enough, data)
    bins = next((bins for bins in (1, 2, 3) if there * bins >= enough), None)
    if bins is None:
        raise UsageError(
            f"{data} has {there} samples, too few to keep some apart for the choices and for the test: "
            f"{-(-enough // 3)} are needed",
            hint,
        )
    if not is_stream(data) and (different := len({*images_of(data, enough)})) < FEWEST:
        raise UsageError(
            f"{data} has {different} different images in {there} samples, too few to calibrate on some and judge by "
            f"{FEWEST} others",
            "give more images, not more copies",
        )
    return bins


def leaves_some_unseen(data: str, fit: FitConfig) -> bool:
    """Whether a calibration leaves samples that can judge it. A stream is taken for endless."""
    seen = -(-fit.samples // fit.batch) * fit.batch
    return is_stream(data) or count_up_to(seen + JUDGES, data) == seen + JUDGES


def check_leaves_some_unseen(data: str, fit: FitConfig) -> None:
    """Raise UsageError, with commands that go, where a calibration would leave too little for a verdict."""
    if not leaves_some_unseen(data, fit):
        bins = judging_bins(data)
        raise UsageError(
            f"{data} has too few samples to calibrate on {fit.samples} and to leave some for a verdict",
            f"calibrate on a part: --data {part(data, bins, BINS - 1)} --validation {part(data, 0, bins - 1)}",
        )


def with_some_apart(given: Given, recorded: Mapping[str, Any]) -> Given:
    """What is said to a verdict that quantizes first, with a part of the data kept for it where none would be left.

    `recorded` is the data table of its source, of which nothing is said.
    """
    own = routed(given, "verdict", "quantize")["quantize"]
    fit = cast(FitConfig, config_of("quantize", {"data": recorded}, own))
    if fit.data.train is None or fit.data.validation is not None or leaves_some_unseen(fit.data.train, fit):
        return given
    bins = judging_bins(fit.data.train)
    rest, judging = part(fit.data.train, bins, BINS - 1), part(fit.data.train, 0, bins - 1)
    say("", "data", f"{judging} is kept for the verdict, as there is little; {rest} calibrates")
    return {**given, "data.train": rest, "data.validation": judging}


def with_validation(given: Given) -> Given:
    """What is said to a stage that trains and chooses, with a tenth of the data to choose by where none is named."""
    data = given.get("data.train")
    if data is None or given.get("data.validation") is not None:
        return given
    if is_stream(data) or data.startswith("part:"):
        what = "is read once" if is_stream(data) else "is a part already"
        raise UsageError(f"{data} {what}, so no tenth of it is kept to choose by", "give --validation")
    say("", "data", f"a tenth of {data} is kept to choose by: {part(data, 0, 0)}")
    return {**given, "data.train": part(data, 1, BINS - 1), "data.validation": part(data, 0, 0)}
