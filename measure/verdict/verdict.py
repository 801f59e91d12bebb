"""The verdict stage: whether INT8 earns its place on a backend, and which file to ship if it does not.

Float graphs and the INT8 candidates of a quantized checkpoint are written and run here, on the backend that is asked
about. The FP32 baseline is checked first, since a ratio to a broken one says nothing. A few rounds then order the
candidates by speed; drift is measured in that order until two are within the budget, and these race against every float
graph, in one interleaved run, for the figures that decide. On CPUs FP32 on ONNX Runtime takes part as well: a backend
whose own FP32 is slower than that gives INT8 an easy opponent.

The artifact is an ONNX artifact like any export, with verdict.json beside the graphs. It is written whatever the
verdict is; `strict` only says whether the run may go on. On TensorRT engines are built for the GPU in this machine to
be measured, and the ONNX graphs are what is delivered; that path has never been run on a GPU by this project.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from numpy.typing import NDArray

from mmcompress.artifact import Artifact
from mmcompress.budget import Budget
from mmcompress.card import export_card
from mmcompress.config import VerdictConfig
from mmcompress.data.preprocess import normalize
from mmcompress.errors import UsageError
from mmcompress.measure.document import RaceEnvironment
from mmcompress.measure.early import runnable
from mmcompress.measure.estimate import round_medians, spread
from mmcompress.measure.sanity import checks, enforce_checks
from mmcompress.measure.verdict import contest
from mmcompress.measure.verdict.contest import (
    TOWERS,
    Contestant,
    Embedded,
    Records,
    drift_between,
    outputs,
    speedup,
    timed_contestants,
)
from mmcompress.measure.verdict.contestants import Tried, float_contestants, tried_candidates, written
from mmcompress.measure.verdict.document import HeldOutDrift
from mmcompress.measure.verdict.findings import Findings, document, recommendation, ruling_of
from mmcompress.measure.verdict.heldout import Held, held_out
from mmcompress.measure.verdict.origins import Origin, origin_of
from mmcompress.progress import say, track
from mmcompress.runtime.backends import GPU_BACKENDS
from mmcompress.runtime.conditions import Conditions, snapshot
from mmcompress.runtime.encoder import tower_feeds
from mmcompress.runtime.environment import environment_of
from mmcompress.runtime.gpuclocks import watch_gpu
from mmcompress.runtime.machine import machine, usable_cores
from mmcompress.runtime.scheduling import realtime
from mmcompress.runtime.session import Feeds, Session
from mmcompress.seen import SEEN_IMAGES
from mmcompress.stages import Job
from mmcompress.twins import FLOAT_MODEL, float_model

FINALISTS = 2
CPU_TOLERANCE, GPU_TOLERANCE = 1e-4, 5e-3
"""Largest difference of a number of an embedding from the reference's: TensorRT multiplies FP32 in TF32."""


def verdict(job: Job[VerdictConfig]) -> None:
    """Stage: write, check, measure and judge; deliver one graph a tower in each precision."""
    source, config = asked_about(job), job.config
    backend = runnable(config.backend)
    origin = origin_of(source)
    held = held_out(source, config)
    write = partial(written, origin, job.work / "graphs", config)
    floats, missing = float_contestants(write, backend)
    reference = embedded(source, held, floats[0])
    tolerance = GPU_TOLERANCE if backend in GPU_BACKENDS else CPU_TOLERANCE
    pairs = held.image_group if held.captioned else None
    sanity = checks(*reference, pairs, origin.embedded(held), tolerance, origin.reference)
    enforce_checks(sanity, backend)
    held = held.judged_by(*reference)

    def drift_of(contestant: Contestant) -> HeldOutDrift:
        return drift_between(reference, embedded(source, held, contestant), held.image_group)

    budget = Budget.of(config, len(held.image_group))
    tried = tried_candidates(write, backend, origin.candidates(backend))
    screened = screening(floats[0], [attempt.contestant for attempt in tried if attempt.contestant], config)
    finalists, drifts = within_budget(fastest_first(screened, floats[0]), drift_of, budget)
    drifts |= {contestant: drift_of(contestant) for contestant in floats[1:]}
    raced, environment = final_race(floats, finalists, config)
    findings = Findings(floats, missing, tried, finalists, screened, raced, drifts, held, sanity)
    ruling = ruling_of(findings, budget)
    chosen = next(attempt for attempt in tried if attempt.contestant is findings.int8)
    deliver(job, source, origin, [*floats, findings.int8], chosen)
    said = recommendation(findings, ruling, budget)
    job.draft.facts |= {"candidate": findings.int8.name, "recommendation": said.model_dump(mode="json")}
    document(findings, ruling, config.batch, budget, environment).write(job.draft.path / "verdict.json")
    if not ruling.int8 or ruling.doubts:
        say("verdict", job.name, f"warning: {said.sentence}")


def asked_about(job: Job[VerdictConfig]) -> Artifact:
    """The quantized graphs that were named, else the checkpoint."""
    source = job.sources.get("graphs") or job.sources.get("checkpoint")
    if source is None:
        raise UsageError("a verdict needs something quantized", "put a stage before it that quantizes")
    return source


def embedded(source: Artifact, held: Held, contestant: Contestant) -> Embedded:
    """Both towers over the held-out pairs, on the contestant's backend."""
    preprocessing = source.preprocessing
    assert preprocessing is not None

    def images(session: Session, pixels: NDArray[Any]) -> Feeds:
        return tower_feeds(source, session.inputs, normalize(pixels, preprocessing))

    def texts(session: Session, tokens: NDArray[Any]) -> Feeds:
        return tower_feeds(source, session.inputs, tokens)

    towers = contestant.towers
    return outputs(towers["image"], held.pixels, images), outputs(towers["text"], held.tokens, texts)


def screening(fp32: Contestant, candidates: Sequence[Contestant], config: VerdictConfig) -> Records:
    """The image towers in a few rounds, which is enough to say in which order to look at them."""
    threads = fp32.towers["image"].threads or 1
    with realtime(threads <= usable_cores()):
        rounds = (contest.SCREENING_ROUNDS, contest.SCREENING_ROUNDS)
        return timed_contestants([fp32, *candidates], ("image",), config.batch, rounds, config.seed)


def fastest_first(screened: Records, fp32: Contestant) -> list[Contestant]:
    candidates = [contestant for contestant, _ in screened if contestant is not fp32]
    return sorted(candidates, key=lambda contestant: -speedup(screened, contestant, fp32).speedup)


def within_budget(
    ordered: Sequence[Contestant], drift_of: Callable[[Contestant], HeldOutDrift], budget: Budget
) -> tuple[list[Contestant], dict[Contestant, HeldOutDrift]]:
    """The first that are within the budget, else the one that loses and flips least; and what was measured."""
    drifts: dict[Contestant, HeldOutDrift] = {}
    finalists: list[Contestant] = []
    for contestant in track(ordered, "drift", total=len(ordered)):
        drifts[contestant] = drift_of(contestant)
        if budget.holds(drifts[contestant].cost):
            finalists.append(contestant)
        if len(finalists) == FINALISTS:
            break
    return finalists or [min(ordered, key=lambda graph: (drifts[graph].r10_lost, drifts[graph].flip_rate))], drifts


def final_race(
    floats: Sequence[Contestant], finalists: Sequence[Contestant], config: VerdictConfig
) -> tuple[Records, RaceEnvironment]:
    """Both towers of all, until the ratio of the best INT8 graph to the best float graph is narrow."""

    def decided(records: Records) -> bool:
        best = [
            max(side, key=lambda contestant: speedup(records, contestant, floats[0]).speedup)
            for side in (finalists, floats)
        ]
        ratio = speedup(records, best[0], best[1])
        return ratio.width <= contest.NARROW * ratio.speedup

    threads = floats[0].towers["image"].threads
    watch = watch_gpu(not threads)
    rounds = (contest.ROUNDS, max(contest.ROUNDS, math.ceil(config.seconds / contest.ROUND_S)))
    with realtime((threads or 1) <= usable_cores()) as priority:
        before = snapshot(watch.gpu)
        raced = timed_contestants([*floats, *finalists], TOWERS, config.batch, rounds, config.seed, decided, watch.look)
        conditions = Conditions(before, snapshot(watch.gpu), priority, None, watch)
    meanwhile = conditions.meanwhile(
        [spread(round_medians(record.rounds)) for record in raced.values()], usable_cores()
    )
    rounds_taken = len(next(iter(raced.values())).rounds)
    return raced, environment_of(RaceEnvironment, machine(), meanwhile, rounds=rounds_taken)


def deliver(
    job: Job[VerdictConfig],
    source: Artifact,
    origin: Origin,
    contestants: Sequence[Contestant],
    chosen: Tried,
) -> None:
    """Copy each precision's ONNX files into the draft, and say of the artifact what an export says."""
    draft = job.draft
    draft.inherit(source, SEEN_IMAGES, *([source.tokenizer.file] if source.tokenizer else []))
    once = {contestant.precision: contestant for contestant in reversed(contestants)}
    for tower in TOWERS:
        for precision in (precision for precision in ("fp32", "fp16", "fp8", "int8") if precision in once):
            entrant = once[precision].towers[tower]
            if any(graph.file == entrant.graph.file for graph in draft.graphs):
                continue  # of a tower that is all in float
            for file in entrant.path.parent.glob(f"{entrant.graph.file}*"):
                shutil.copyfile(file, draft.path / file.name)
            draft.graphs.append(entrant.graph)
    draft.facts = {**origin.facts, FLOAT_MODEL: float_model(source), "kept": sorted(chosen.numerics.kept)}
    sizes = {file.name: file.stat().st_size for file in draft.path.iterdir()}
    teacher = source.manifest.config.get("teacher") or {}
    card = export_card(draft.graphs, sizes, draft.facts, teacher.get("source"), job.name)
    (draft.path / "README.md").write_text(card, encoding="utf-8")
