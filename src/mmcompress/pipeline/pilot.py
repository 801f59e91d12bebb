"""`mmcompress distill --pilot A,B`: which teacher to distil from, tried on a part of the data before the long run.

A stronger teacher may make a worse student, where the gap between both is wide (Mirzadeh et al. 2020). Each teacher
embeds the same part of the data and trains the same kind of student for as many steps, and the students are compared by
R@10 on validation pairs, the mean of both ways. The image is the unit that is resampled, and the captions of one go
together, so the differences are paired. Of teachers that do not differ the one that embeds fastest is named.

The budget is spent half on embedding and half on training. How fast that is here is measured first, on a few samples
and steps. A student of a few minutes says nothing of how good one of a day will be, only which teacher leads.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmcompress.artifact import Artifact
from mmcompress.data.batches import count
from mmcompress.data.spec import Share, is_stream, part_of
from mmcompress.document import Document, Interval, Part
from mmcompress.document import Share as DocumentShare
from mmcompress.errors import UsageError
from mmcompress.measure.drift.significance import interval, paired_change, resample_counts, resampled_means
from mmcompress.measure.retrieval import Matches, hits
from mmcompress.pipeline import standalone
from mmcompress.pipeline.single import config_of
from mmcompress.pipeline.sources import Given
from mmcompress.progress import say
from mmcompress.stages import STAGES

PROBED_PAIRS, PROBED_STEPS = 256, 6
"""What the speed is measured on."""
JUDGED = 1000
"""Validation pairs, at most."""
BINS = 100_000
"""A part of the data is told by these, as `part:0-249/100000:SPEC`."""


class PilotRow(Part):
    """One teacher, by the student that it made."""

    teacher: str
    """As it was named."""
    r10: DocumentShare
    """R@10 of its student, the mean of both ways."""
    r10_ci95: Interval | None
    """By resampling images."""
    change: float
    """Of R@10, against the student of the teacher that is named."""
    change_ci95: Interval | None
    """On the same resamples; null of the teacher itself."""
    significant: bool
    """Whether the interval of the change leaves out 0."""
    embedded_ips: float
    """Images a second that the teacher embeds here."""


class PilotDocument(Document):
    """What a pilot found."""

    take: str
    """The teacher to take: the fastest of those that are not worse than the best one."""
    pairs: int
    """Training pairs of each student."""
    steps: int
    """Training steps of each student."""
    judged: int
    """Validation images."""
    rows: tuple[PilotRow, ...]
    """The teachers in the order that they were named in."""


@dataclass(frozen=True)
class Trial:
    """A student, how fast its teacher embeds and itself trains, and the seconds of the whole."""

    artifact: Artifact
    images_per_s: float
    views: int
    step_s: float
    seconds: float


def pilot(teachers: Sequence[str], budget_s: float, out: Path, given: Given) -> PilotDocument:
    """Try each teacher within the budget of all; what was made stays in `out`, and a rerun reuses it.

    Raises UsageError where there is nothing to compare, or no time for a step.
    """
    data, validation = given.get("data.train"), given.get("data.validation")
    if len({*teachers}) < 2 or len({*teachers}) < len(teachers):
        raise UsageError(
            f"a pilot compares different teachers, and {', '.join(teachers)} was named", "name two or more"
        )
    if data is None or is_stream(data) or part_of(data)[0] is not None:
        raise UsageError("a pilot trains on a part of --data", "give shards or a folder, whole")
    if validation is None:
        raise UsageError("a pilot judges students on validation pairs", "give --validation")
    if "teacher.source" in given:
        raise UsageError("--teacher and --pilot both name teachers", "leave one of them out")
    if "student.source" not in given:
        raise UsageError("a pilot needs a student", "--student vit-s16 or inherit:0.25")
    if said := sorted({"optimizer.steps", "optimizer.epochs"} & {*given}):
        raise UsageError(f"a pilot chooses its steps within --budget, and {said[0]} was given", "leave it out")
    of_teacher = {key: value for key, value in given.items() if key.startswith("teacher.")}
    for name in teachers:
        asked = {**of_teacher, "teacher.source": name, "data.train": data}
        STAGES["embed"].refuse_impossible(config_of("embed", {}, asked), {})
    there = count(data)
    few = min(there, PROBED_PAIRS)
    probes = [
        _trial(name, out / f"probe-{i}", (data, few, there), PROBED_STEPS, given) for i, name in enumerate(teachers)
    ]
    left = budget_s - sum(probe.seconds for probe in probes)
    a_pair = sum(probe.views / probe.images_per_s for probe in probes)
    a_step = sum(probe.step_s for probe in probes)
    pairs = min(there, int(left / 2 / a_pair))
    steps = int((left - pairs * a_pair) / a_step)
    if pairs < few or steps < PROBED_STEPS:
        needed = budget_s - left + 2 * max(few * a_pair, PROBED_STEPS * a_step)
        raise UsageError(
            f"{budget_s:g} s are too short for {len(teachers)} teachers", f"--budget {-(-needed // 60):g}m or more"
        )
    say("pilot", "each", f"{pairs} pairs, {steps} steps")
    trials = [_trial(name, out / f"student-{i}", (data, pairs, there), steps, given) for i, name in enumerate(teachers)]
    found = [_hits(trial.artifact, validation) for trial in trials]
    take, rows = compared(teachers, found, [probe.images_per_s for probe in probes])
    return PilotDocument(take=take, pairs=pairs, steps=steps, judged=len(found[0]), rows=rows)


def seconds_of(budget: str) -> float:
    """`90s`, `10m` or `1.5h` -> seconds. Raises UsageError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget.strip())
    if match is None or not float(match[1]):
        raise UsageError(f"--budget {budget!r} is no time", "for example 90s, 10m or 1.5h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def _trial(teacher: str, place: Path, part: tuple[str, int, int], steps: int, given: Given) -> Trial:
    """`part` is a set, how many of its pairs are used, and how many there are."""
    data, pairs, there = part
    share = data if pairs == there else Share(0, max(0, round(BINS * pairs / there) - 1), BINS).of(data)
    own = {key: value for key, value in given.items() if key != "data.validation"}
    varied = any(key.removeprefix("embed.") in ("views", "augment") for key in own)
    plain = {} if varied else {"embed.views": 1}  # a part is small, and the whole may not be
    asked = {**own, **plain, "teacher.source": teacher, "data.train": share, "optimizer.steps": steps}
    began = time.monotonic()
    made = standalone.distill(place, asked)
    seconds = time.monotonic() - began
    cached = Artifact.open(place.with_name(f"{place.name}-embeddings"))
    speed, training = cached.manifest.metrics["embedding"], made.manifest.metrics["training"]
    return Trial(
        made,
        float(speed["images_per_s"]),
        int(cached.manifest.facts["views"]),
        float(training["seconds"]) / steps,
        seconds,
    )


def _hits(student: Artifact, validation: str) -> NDArray[np.float64]:
    """(N, 2): R@10 of each image, and the mean of its captions'."""
    import torch

    from mmcompress.compress.train.watching import embedded_pairs
    from mmcompress.config import DataConfig
    from mmcompress.huggingface import dual_encoder_from_checkpoint

    model = dual_encoder_from_checkpoint(student.path, student.model)
    images, texts, owner = embedded_pairs(model, student, validation, JUDGED, 64, DataConfig(), torch.device("cpu"))
    rows = np.arange(len(images))
    by_image = hits(images, texts, Matches.of(rows, owner))[:, -1]
    by_text = hits(texts, images, Matches.of(owner, rows))[:, -1]
    captions = np.maximum(1, np.bincount(owner, minlength=len(images)))
    return np.stack([by_image, np.bincount(owner, weights=by_text, minlength=len(images)) / captions], axis=1)


def compared(
    teachers: Sequence[str], found: Sequence[NDArray[np.float64]], speeds: Sequence[float]
) -> tuple[str, tuple[PilotRow, ...]]:
    """The teacher to take, and a row for each; `found` is (N, 2) hits of each student, `speeds` the teachers'."""
    counts = resample_counts(len(found[0]))
    resampled = [resampled_means(one.mean(axis=1, keepdims=True), counts)[:, 0] for one in found]
    means = [float(one.mean()) for one in found]
    best = int(np.argmax(means))
    level = [i for i in range(len(teachers)) if not paired_change(resampled[best], resampled[i])[1]]
    chosen = max(level, key=lambda index: speeds[index])
    rows = []
    for index, teacher in enumerate(teachers):
        change, significant = paired_change(resampled[chosen], resampled[index])
        rows.append(
            PilotRow(
                teacher=teacher,
                r10=means[index],
                r10_ci95=interval(resampled[index]),
                change=means[index] - means[chosen],
                change_ci95=None if index == chosen else change,
                significant=significant and index != chosen,
                embedded_ips=speeds[index],
            )
        )
    return teachers[chosen], tuple(rows)
