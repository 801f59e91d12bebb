"""What a verdict found, and verdict.json: the table of precisions, the candidates, the recommendation. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mmcompress.measure.estimate import Ratio
from mmcompress.measure.sanity import Check
from mmcompress.measure.verdict.contest import TOWERS, Measured, Pair, latency, speedup
from mmcompress.measure.verdict.contestants import Tried
from mmcompress.measure.verdict.heldout import Held
from mmcompress.measure.verdict.ruling import Budget, Ruling, ruled, sentence

Document = dict[str, Any]


@dataclass(frozen=True)
class Findings:
    """Everything that was measured, before anything is concluded."""

    floats: Sequence[Pair]
    """FP32 on the backend first."""
    missing: Mapping[str, str]
    """Float graphs that do not run, and why."""
    tried: Sequence[Tried]
    finalists: Sequence[Pair]
    screened: Measured
    measured: Measured
    """The final race."""
    drifts: Mapping[Pair, Mapping[str, float]]
    """From FP32 on the backend; of the candidates those that had to be known."""
    held: Held
    sanity: Sequence[Check]

    def faster(self, fast: Pair, slow: Pair) -> Ratio:
        return speedup(self.measured, fast, slow)

    @property
    def int8(self) -> Pair:
        """The fastest of the finalists; of those that it does not beat significantly, the one that drifts least."""
        fastest = max(self.finalists, key=lambda one: self.faster(one, self.floats[0]).speedup)
        equal = [one for one in self.finalists if one is fastest or not self.faster(fastest, one).significant]
        return max(equal, key=self._cosine)

    def _cosine(self, pair: Pair) -> float:
        """Of the tower that moved more."""
        return min(self.drifts[pair]["cosine_mean"], self.drifts[pair]["text_cosine_mean"])


def ruling_of(found: Findings, budget: Budget) -> Ruling:
    """A float graph that leaves the budget is no alternative."""
    floats = [one for one in found.floats if one is found.floats[0] or budget.holds(found.drifts[one])]
    return ruled(found.int8, found.drifts[found.int8], floats, found.faster, budget)


def recommendation(found: Findings, ruling: Ruling, budget: Budget) -> Document:
    """What the manifest's facts say."""
    drift, pairs = found.drifts[found.int8], len(found.held.image_group)
    return {
        "int8": ruling.int8,
        "precision": ruling.ship.precision,
        "backend": ruling.ship.backend,
        "files": [ruling.ship.towers[tower].graph.file for tower in TOWERS],
        "candidate": found.int8.name,
        "sentence": sentence(ruling, found.int8, drift, found.faster, budget, pairs),
    }


def document(found: Findings, ruling: Ruling, batch: int, budget: Budget, environment: Mapping[str, Any]) -> Document:
    """verdict.json."""
    image = found.floats[0].towers["image"]
    row = partial(_row, found, ruling, batch)
    return {
        "schema": 1,
        "backend": image.backend,
        "batch": batch,
        "threads": image.threads,
        "data": found.held.spec,
        "pairs": len(found.held.image_group),
        "texts": len(found.held.tokens),
        "max_drop": budget.max_drop,
        "max_flips": budget.max_flips,
        "sanity": list(found.sanity),
        "rows": [row(pair) for pair in (*found.floats, found.int8)],
        "missing": dict(found.missing),
        "candidates": [_candidate(found, one, batch, budget) for one in found.tried],
        "recommendation": {
            **recommendation(found, ruling, budget),
            "to_beat": {"precision": ruling.to_beat.precision, "backend": ruling.to_beat.backend},
            "obstacles": list(ruling.obstacles),
        },
        "environment": dict(environment),
    }


def _row(found: Findings, ruling: Ruling, batch: int, pair: Pair) -> Document:
    """Latency, its ratio to the fastest float graph, and drift."""
    towers: Document = {}
    for tower in TOWERS:
        ratio = speedup(found.measured, pair, ruling.to_beat, tower)
        towers[tower] = {
            **latency(found.measured[pair, tower], batch),
            "against_fastest_float": None if pair is ruling.to_beat else ratio.document(),
        }
    moved = found.drifts.get(pair)
    return {
        "name": pair.name,
        "precision": pair.precision,
        "backend": pair.backend,
        "recommended": pair is ruling.ship,
        "bytes": sum(pair.towers[tower].file_bytes for tower in TOWERS),
        **towers,
        "drift": dict(moved) if moved else None,
    }


def _candidate(found: Findings, one: Tried, batch: int, budget: Budget) -> Document:
    """A candidate as it was screened; drift is None where faster ones within the budget made it needless."""
    pair = one.pair
    moved = found.drifts.get(pair) if pair else None
    screened = found.screened
    return {
        "name": one.candidate.name,
        "says": one.candidate.says,
        "activations": one.candidate.activations,
        "kept": sorted(one.numerics.kept),
        "image_p50_ms": latency(screened[pair, "image"], batch)["p50_ms"] if pair else None,
        "against_fp32": speedup(screened, pair, found.floats[0]).document() if pair else None,
        "drift": dict(moved) if moved else None,
        "within_budget": budget.holds(moved) if moved else None,
        "finalist": pair in found.finalists,
        "failed": one.failed,
    }
