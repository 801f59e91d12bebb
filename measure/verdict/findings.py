"""What a verdict found, and verdict.json: the table of precisions, the candidates, the recommendation. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from mmcompress.budget import Budget
from mmcompress.measure.document import RaceEnvironment, SanityCheck
from mmcompress.measure.estimate import Ratio, summary
from mmcompress.measure.verdict.contest import TOWERS, Contestant, Records, speedup, tower_latency
from mmcompress.measure.verdict.contestants import Tried
from mmcompress.measure.verdict.document import (
    FloatGraph,
    HeldOutDrift,
    ReasonedRecommendation,
    Recommendation,
    VerdictCandidate,
    VerdictDocument,
    VerdictRow,
)
from mmcompress.measure.verdict.heldout import Held
from mmcompress.measure.verdict.ruling import Ruling, ruled, sentence


@dataclass(frozen=True)
class Findings:
    """Everything that was measured, before anything is concluded."""

    floats: Sequence[Contestant]
    """FP32 on the backend first."""
    missing: Mapping[str, str]
    """Float graphs that do not run, and why."""
    tried: Sequence[Tried]
    finalists: Sequence[Contestant]
    screened: Records
    raced: Records
    """The final race."""
    drifts: Mapping[Contestant, HeldOutDrift]
    """From FP32 on the backend; of the candidates those that had to be known."""
    held: Held
    sanity: Sequence[SanityCheck]

    def faster(self, fast: Contestant, slow: Contestant) -> Ratio:
        return speedup(self.raced, fast, slow)

    @property
    def int8(self) -> Contestant:
        """The fastest of the finalists; of those that it does not beat significantly, the one that drifts least."""
        fastest = max(self.finalists, key=lambda contestant: self.faster(contestant, self.floats[0]).speedup)
        equal = [
            contestant
            for contestant in self.finalists
            if contestant is fastest or not self.faster(fastest, contestant).significant
        ]
        return max(equal, key=self._cosine)

    def _cosine(self, contestant: Contestant) -> float:
        """Of the tower that moved more."""
        moved = self.drifts[contestant]
        return min(moved.cosine_mean, moved.text_cosine_mean)


def ruling_of(findings: Findings, budget: Budget) -> Ruling:
    """A float graph that leaves the budget is no alternative."""
    floats = [
        contestant
        for contestant in findings.floats
        if contestant is findings.floats[0] or budget.holds(findings.drifts[contestant].cost)
    ]
    return ruled(findings.int8, findings.drifts[findings.int8], floats, findings.faster, budget)


def recommendation(findings: Findings, ruling: Ruling, budget: Budget) -> Recommendation:
    """What the manifest's facts say."""
    moved, held = findings.drifts[findings.int8], findings.held
    texts = (
        f"the {len(held.tokens)} labels of {held.labels}" if held.labels else f"{len(held.tokens)} sentences that ship"
    )
    among = None if held.captioned else texts
    return Recommendation(
        int8=ruling.int8,
        precision=ruling.ship.precision,
        backend=ruling.ship.backend,
        files=tuple(ruling.ship.towers[tower].graph.file for tower in TOWERS),
        candidate=findings.int8.name,
        doubts=ruling.doubts,
        sentence=sentence(ruling, findings.int8, moved, findings.faster, budget, len(held.image_group), among),
    )


def document(
    findings: Findings, ruling: Ruling, batch: int, budget: Budget, environment: RaceEnvironment
) -> VerdictDocument:
    """verdict.json."""
    image = findings.floats[0].towers["image"]
    row = partial(_row, findings, ruling, batch)
    return VerdictDocument(
        backend=image.backend,
        batch=batch,
        threads=image.threads,
        data=findings.held.spec,
        pairs=len(findings.held.image_group),
        texts=len(findings.held.tokens),
        left_out=findings.held.left_out,
        own_answers=not findings.held.captioned,
        labels=findings.held.labels,
        max_drop=budget.max_drop,
        max_flips=budget.max_flips,
        sanity=tuple(findings.sanity),
        rows=tuple(map(row, (*findings.floats, findings.int8))),
        missing=dict(findings.missing),
        candidates=tuple(_candidate(findings, tried, batch, budget) for tried in findings.tried),
        recommendation=ReasonedRecommendation(
            **dict(recommendation(findings, ruling, budget)),
            to_beat=FloatGraph(precision=ruling.to_beat.precision, backend=ruling.to_beat.backend),
            obstacles=ruling.obstacles,
        ),
        environment=environment,
    )


def _row(findings: Findings, ruling: Ruling, batch: int, contestant: Contestant) -> VerdictRow:
    """Latency, its ratio to the fastest float graph, and drift."""
    to_beat = None if contestant is ruling.to_beat else ruling.to_beat
    towers = {
        tower: tower_latency(
            findings.raced[contestant, tower],
            batch,
            speedup(findings.raced, contestant, to_beat, tower) if to_beat else None,
        )
        for tower in TOWERS
    }
    return VerdictRow(
        name=contestant.name,
        precision=contestant.precision,
        backend=contestant.backend,
        recommended=contestant is ruling.ship,
        bytes=sum(contestant.towers[tower].file_bytes for tower in TOWERS),
        image=towers["image"],
        text=towers["text"],
        drift=findings.drifts.get(contestant),
    )


def _candidate(findings: Findings, tried: Tried, batch: int, budget: Budget) -> VerdictCandidate:
    """A candidate as it was screened; drift is None where faster ones within the budget made it needless."""
    contestant, screened = tried.contestant, findings.screened
    moved = findings.drifts.get(contestant) if contestant else None
    return VerdictCandidate(
        name=tried.candidate.name,
        says=tried.candidate.says,
        activations=tried.candidate.activations,
        kept=tuple(sorted(tried.numerics.kept)),
        image_p50_ms=summary(screened[contestant, "image"].calls, batch).p50_ms if contestant else None,
        against_fp32=speedup(screened, contestant, findings.floats[0]).document() if contestant else None,
        drift=moved,
        within_budget=budget.holds(moved.cost) if moved else None,
        finalist=contestant in findings.finalists,
        failed=tried.failed,
    )
