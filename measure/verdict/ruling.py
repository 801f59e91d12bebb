"""The ruling of a verdict: from ratios and drift to the file that should be shipped, and the words for it. Pure.

INT8 costs accuracy and a calibration that has to be kept, so it has to earn its place: the whole 95% interval of its
speed-up over the fastest float graph lies beyond 2%, and it loses no more of FP32's R@10 hits, and answers no more
images otherwise, than the budget; where only chance may have passed a limit, that is said, and not accepted under
`strict`. Of the float graphs the plainer one stays unless another is faster by as much. The image tower decides, since
texts are usually embedded once; what the text tower does is reported beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmcompress.artifact import Artifact
from mmcompress.budget import Budget
from mmcompress.errors import GateFailedError
from mmcompress.formats import BACKENDS
from mmcompress.measure.estimate import Ratio
from mmcompress.measure.verdict.contest import Contestant
from mmcompress.measure.verdict.document import HeldOutDrift

MARGIN = 1.02
"""Speed-up that the lower end of the interval has to reach."""
Faster = Callable[[Contestant, Contestant], Ratio]
"""How many times as fast the first is as the second."""


@dataclass(frozen=True)
class Ruling:
    """What to ship, and why."""

    ship: Contestant
    to_beat: Contestant
    """The fastest float graph."""
    speedup: Ratio
    """Of INT8 over it."""
    own_speedup: Ratio | None
    """Of INT8 over FP32 on the same backend, where the fastest float graph is on another one."""
    obstacles: tuple[str, ...]
    """What speaks against INT8; nothing does where it is recommended."""
    doubts: tuple[str, ...]
    """What of the budget INT8 passes by no more than chance may do."""

    @property
    def int8(self) -> bool:
        return not self.obstacles


def plainest(floats: Sequence[Contestant], faster: Faster) -> Contestant:
    """The first, unless a later one is faster by the margin."""
    chosen = floats[0]
    for other in floats[1:]:
        if faster(other, chosen).low >= MARGIN:
            chosen = other
    return chosen


def ruled(
    int8: Contestant, drift: HeldOutDrift, floats: Sequence[Contestant], faster: Faster, budget: Budget
) -> Ruling:
    """`floats` in the order of preference: FP32 on the backend, FP32 elsewhere or FP16; `drift` is that of INT8."""
    to_beat = max(floats, key=lambda contestant: faster(contestant, floats[0]).speedup)
    ratio = faster(int8, to_beat)
    own = faster(int8, floats[0]) if to_beat.backend != int8.backend else None
    obstacles = []
    if not ratio.low >= MARGIN:
        obstacles.append(f"it is {pace(ratio, named(to_beat))}, and 2% faster beyond doubt was asked")
    obstacles += budget.broken(drift.cost)
    ship = plainest(floats, faster) if obstacles else int8
    return Ruling(ship, to_beat, ratio, own, tuple(obstacles), tuple(budget.doubts(drift.cost)))


def sentence(
    ruling: Ruling,
    int8: Contestant,
    drift: HeldOutDrift,
    faster: Faster,
    budget: Budget,
    pairs: int,
    among: str | None = None,
) -> str:
    """The verdict in plain words; of photos that nobody captioned, with `among` what the answers are."""
    said = _ruling_in_words(ruling, int8, drift, faster, budget, f"{pairs} held-out {'photos' if among else 'pairs'}")
    truth = f"The photos have no captions: right is what FP32 answers among {among}."
    return f"{said} {truth}" if among else said


def _ruling_in_words(
    ruling: Ruling, int8: Contestant, drift: HeldOutDrift, faster: Faster, budget: Budget, held: str
) -> str:
    on = BACKENDS[int8.backend]
    own = f" On {on} alone, it is {pace(ruling.own_speedup, 'FP32')}." if ruling.own_speedup else ""
    if ruling.int8:
        fastest = f"{pace(ruling.speedup, named(ruling.to_beat))}, the fastest float graph"
        within = f"and on {held} it {budget.told(drift.cost)}"
        doubts = f" In doubt: {'; '.join(ruling.doubts)}." if ruling.doubts else ""
        return f"Ship {named(int8)} ({int8.name}): it is {fastest}, {within}.{doubts}{own}"
    because = "; ".join(ruling.obstacles)
    told = f"Do not ship {named(int8)} ({int8.name}, the best of the candidates): {because}. Ship {named(ruling.ship)}"
    if ruling.ship is ruling.to_beat:
        return f"{told}, the fastest float graph.{own}"
    small = pace(faster(ruling.to_beat, ruling.ship), "it")
    return f"{told}: {named(ruling.to_beat)} is not clearly faster ({small}).{own}"


def pace(ratio: Ratio, than: str) -> str:
    """`1.11 times as fast as FP32 on OpenVINO (95% interval 1.09 to 1.13)`"""
    return f"{ratio.speedup:.2f} times as fast as {than} (95% interval {ratio.low:.2f} to {ratio.high:.2f})"


def named(contestant: Contestant) -> str:
    """`INT8 on OpenVINO`; `INT8 on OpenVINO with the text tower in FP32` where all of that stays in float"""
    own = {tower: entrant.graph.precision for tower, entrant in contestant.towers.items()}
    others = [f" with the {tower} tower in {p.upper()}" for tower, p in own.items() if p != contestant.precision]
    return f"{contestant.precision.upper()} on {BACKENDS[contestant.backend]}{''.join(others)}"


def enforce(artifact: Artifact | None, strict: bool) -> None:
    """Raise GateFailedError where a verdict was given, does not recommend INT8 or is in doubt, and that is not to be
    accepted."""
    said = artifact.manifest.facts["recommendation"] if artifact else None
    if artifact and said and strict and (not said["int8"] or said.get("doubts")):
        raise GateFailedError(
            f"INT8 is {'not recommended' if not said['int8'] else 'in doubt'}: {said['sentence']}",
            f"{artifact.path} holds all graphs; leave --strict (or `strict`) out to go on with them",
        )
