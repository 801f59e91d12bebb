"""The verdict stage: whether INT8 earns its place on a backend, and which file to ship if it does not.

FP32, FP16 and the INT8 candidates of a quantized checkpoint are written and run here, on the backend that is asked
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
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from mmcompress.architecture import WEIGHTS
from mmcompress.artifact import Artifact
from mmcompress.budget import Budget
from mmcompress.card import export_card
from mmcompress.config import VerdictConfig
from mmcompress.data.preprocess import normalize
from mmcompress.export.export import read_int8, read_tensors
from mmcompress.export.graph import Array
from mmcompress.huggingface import dual_encoder_from_checkpoint
from mmcompress.measure.document import RaceEnvironment
from mmcompress.measure.estimate import round_medians, spread
from mmcompress.measure.retrieval import Floats
from mmcompress.measure.sanity import checks, enforce_checks
from mmcompress.measure.verdict import contest
from mmcompress.measure.verdict.candidates import candidates_for
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
from mmcompress.measure.verdict.contestants import Tried, float_contestants, runnable, tried_candidates, written
from mmcompress.measure.verdict.document import HeldOutDrift
from mmcompress.measure.verdict.findings import Findings, document, recommendation, ruling_of
from mmcompress.measure.verdict.heldout import Held, held_out
from mmcompress.progress import say, track
from mmcompress.runtime.backends import GPU_BACKENDS
from mmcompress.runtime.conditions import Conditions, snapshot
from mmcompress.runtime.environment import environment_of
from mmcompress.runtime.machine import machine, usable_cores
from mmcompress.runtime.nvml import open_gpu
from mmcompress.runtime.scheduling import realtime
from mmcompress.stages import Job

FINALISTS = 2
CHECKED = 32
"""Images and texts that torch embeds too."""
CPU_TOLERANCE, GPU_TOLERANCE = 1e-4, 5e-3
"""Largest difference of a number of an embedding from torch's: TensorRT multiplies FP32 in TF32."""


def verdict(job: Job[VerdictConfig]) -> None:
    """Stage: write, check, measure and judge; deliver one graph a tower in each precision."""
    source, config = job.sources["checkpoint"], job.config
    backend = runnable(config.backend)
    int8, tensors = read_int8(source), read_tensors(source.path / WEIGHTS)
    held = held_out(source, config)
    write = partial(written, source, tensors, job.work / "graphs", config)
    floats, missing = float_contestants(write, backend)
    reference = embedded(source, held, floats[0])
    tolerance = GPU_TOLERANCE if backend in GPU_BACKENDS else CPU_TOLERANCE
    pairs = held.image_group if held.captioned else None
    sanity = checks(*reference, pairs, torch_embeddings(source, held), tolerance)
    enforce_checks(sanity, backend)
    held = held.judged_by(*reference)

    def drift_of(contestant: Contestant) -> HeldOutDrift:
        return drift_between(reference, embedded(source, held, contestant), held.image_group)

    budget = Budget.of(config)
    tried = tried_candidates(write, backend, candidates_for(backend, source.model, int8))
    screened = screening(floats[0], [attempt.contestant for attempt in tried if attempt.contestant], config)
    finalists, drifts = within_budget(fastest_first(screened, floats[0]), drift_of, budget)
    drifts |= {contestant: drift_of(contestant) for contestant in floats[1:]}
    raced, environment = final_race(floats, finalists, config)
    findings = Findings(floats, missing, tried, finalists, screened, raced, drifts, held, sanity)
    ruling = ruling_of(findings, budget)
    chosen = next(attempt for attempt in tried if attempt.contestant is findings.int8)
    deliver(job, source, tensors, [*floats, findings.int8], chosen)
    said = recommendation(findings, ruling, budget)
    job.draft.facts |= {"candidate": findings.int8.name, "recommendation": said.model_dump(mode="json")}
    document(findings, ruling, config.batch, budget, environment).write(job.draft.path / "verdict.json")
    if not ruling.int8:
        say("verdict", job.name, f"warning: {said.sentence}")


def embedded(source: Artifact, held: Held, contestant: Contestant) -> Embedded:
    """Both towers over the held-out pairs, on the contestant's backend."""
    preprocessing = source.preprocessing
    assert preprocessing is not None
    images = outputs(contestant.towers["image"], held.pixels, lambda pixels: normalize(pixels, preprocessing))
    return images, outputs(contestant.towers["text"], held.tokens, lambda tokens: tokens)


def torch_embeddings(source: Artifact, held: Held) -> dict[str, Floats]:
    """The first held-out images and texts as the torch model embeds them."""
    model = dual_encoder_from_checkpoint(source.path, source.model)
    assert source.preprocessing is not None
    pixels = torch.from_numpy(normalize(held.pixels[:CHECKED], source.preprocessing))
    tokens = torch.from_numpy(held.tokens[:CHECKED])
    with torch.inference_mode():
        return {"image": model.encode_image(pixels).numpy(), "text": model.encode_text(tokens).numpy()}


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
    gpu = None if threads else open_gpu()
    rounds = (contest.ROUNDS, max(contest.ROUNDS, math.ceil(config.seconds / contest.ROUND_S)))
    with realtime((threads or 1) <= usable_cores()) as priority:
        before = snapshot(gpu)
        raced = timed_contestants([*floats, *finalists], TOWERS, config.batch, rounds, config.seed, decided)
        conditions = Conditions(before, snapshot(gpu), priority, None, tuple(gpu.slowdowns() if gpu else ()))
    meanwhile = conditions.meanwhile(
        [spread(round_medians(record.rounds)) for record in raced.values()], usable_cores()
    )
    rounds_taken = len(next(iter(raced.values())).rounds)
    return raced, environment_of(RaceEnvironment, machine(), meanwhile, rounds=rounds_taken)


def deliver(
    job: Job[VerdictConfig],
    source: Artifact,
    tensors: Mapping[str, Array],
    contestants: Sequence[Contestant],
    chosen: Tried,
) -> None:
    """Copy each precision's ONNX files into the draft, and say of the artifact what an export says."""
    draft = job.draft
    draft.inherit(source, *([source.tokenizer.file] if source.tokenizer else []))
    once = {contestant.precision: contestant for contestant in reversed(contestants)}
    for tower in TOWERS:
        for precision in (precision for precision in ("fp32", "fp16", "int8") if precision in once):
            entrant = once[precision].towers[tower]
            for file in entrant.path.parent.glob(f"{entrant.graph.file}*"):
                shutil.copyfile(file, draft.path / file.name)
            draft.graphs.append(entrant.graph)
    draft.facts = {
        "params": source.model.params,
        "macs": source.model.macs,
        "logit_scale": math.exp(float(tensors["logit_scale"])),
        "kept": sorted(chosen.numerics.kept),
    }
    sizes = {file.name: file.stat().st_size for file in draft.path.iterdir()}
    teacher = source.manifest.config.get("teacher") or {}
    card = export_card(draft.graphs, sizes, draft.facts, teacher.get("source"), job.name)
    (draft.path / "README.md").write_text(card, encoding="utf-8")
