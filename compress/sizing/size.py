"""The student that a latency has room for: composed times of many, whole graphs of the best few, and one choice.

Students are ranked by `capacity`. From the top, those whose composed time fits are timed as whole graphs of random
weights; what a family's whole graphs take above or below the composed times corrects those of the rest. It ends when
the best that should fit was timed and does. The best few of each family are timed beside it, in one interleaved run
with the choice, so that a reader sees what the other one would be.

With the costs of another machine nothing can be timed: then composed times decide, and the document says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mmcompress.architecture import AnyImageConfig, ImageConfig
from mmcompress.artifact import Artifact
from mmcompress.compress.sizing.candidates import SMALL, Candidate, candidates, tower_of
from mmcompress.compress.sizing.costs import EMBED_DIM, predicted_ms, timed
from mmcompress.compress.sizing.document import COSTS, SIZING, CostsDocument, SizedRow, SizingDocument
from mmcompress.compress.sizing.work import Family, family_of, work_of
from mmcompress.config import SizeConfig
from mmcompress.errors import UsageError
from mmcompress.progress import say
from mmcompress.runtime.machine import cpu_model, usable_cores
from mmcompress.stages import Job

FACTOR = 5.0
"""Multiply-accumulates of a transformer that are worth one of a convolutional tower: MobileNetV4-Conv-M has with 0.83
billion the ImageNet accuracy of a ViT-S/16 with 4.2 (Qin et al. 2024, table 6; Touvron et al. 2021, table 5)."""
SMALL_FACTOR = 1.5
"""The same of images up to `SMALL` pixels: `mnv4-s-64` with 61 million learns in as many steps as much of the teacher
that ships as a ViT with 91 million (`benchmarks/results/mnv4.md`)."""
ATTEMPTS = 8
RUNNERS_UP = 2
"""Of each family that are timed beside the choice."""


@dataclass(frozen=True)
class Weighed:
    """A student, what is expected of it, and its composed time."""

    candidate: Candidate
    tower: AnyImageConfig
    capacity: float
    predicted: float
    measured: float | None = None

    def expected(self, moved: Mapping[Family, float]) -> float:
        """Its time: measured, or composed and moved by what whole graphs of the family took."""
        return self.predicted * moved.get(self.family, 1.0) if self.measured is None else self.measured

    @property
    def family(self) -> Family:
        return family_of(self.tower)


def size(job: Job[SizeConfig]) -> None:
    """Stage: choose a student for a latency, and write down what it was chosen from."""
    costs = CostsDocument.read(job.sources["costs"].file(COSTS))
    document, chosen = sized(costs, job.config, here=is_here(costs))
    document.write(job.draft.path / SIZING)
    job.draft.facts = {"student": chosen.student.model_dump(mode="json", exclude_defaults=True)}


def check_size(config: SizeConfig, sources: Mapping[str, Artifact]) -> None:
    """Refuse costs of another runtime, precision, number of threads or kind of towers; a latency that is too short."""
    if "costs" not in sources:
        return
    costs = CostsDocument.read(sources["costs"].file(COSTS))
    for key in ("backend", "precision", "threads"):
        asked, found = getattr(config, key), getattr(costs, key)
        if key in config.model_fields_set and asked is not None and asked != found:
            raise UsageError(
                f"{sources['costs'].path} is of {key} {found}, and {asked} was asked for",
                f"measure a table of it: mmcompress block-costs --{key} {asked} --out TABLE",
            )
    if (costs.image_size <= SMALL) != (config.image_size <= SMALL):
        raise UsageError(
            f"{sources['costs'].path} is of towers for images of up to {costs.image_size} pixels, and the student's"
            f" have up to {config.image_size}: those of up to {SMALL} are for other towers",
            f"measure one of this size: mmcompress bench --blocks --image-size {config.image_size} --out TABLE",
        )
    _fitting(weighed(costs, config), config.target_ms, {})


def sized(costs: CostsDocument, config: SizeConfig, *, here: bool) -> tuple[SizingDocument, Candidate]:
    """The document and its choice; `here` says whether the costs are this machine's, so that graphs can be timed."""
    every = weighed(costs, config)
    asked = config.target_ms
    found = _searched(every, asked, costs) if here else every
    known = [one for one in found if one.measured is not None] if here else found
    chosen = _fitting(known, asked, {})[0]
    others = [one for one in known if one is not chosen] if here else _leading(found, asked, {})
    rows = [chosen, *(one for one in others if one is not chosen)]
    why = f"{chosen.candidate.name} has the most capacity within {asked:g} ms, of {len(found)} students" + (
        "" if here else ", by the costs of another machine, or of other cores of it: nothing was timed here"
    )
    return SizingDocument(
        asked_ms=asked,
        backend=costs.backend,
        precision=costs.precision,
        threads=costs.threads,
        environment=costs.environment,
        why=why,
        rows=tuple(_row(one, asked) for one in rows),
    ), chosen.candidate


def capacity_of(tower: AnyImageConfig) -> float:
    """What a tower is expected to learn, as multiply-accumulates of a transformer."""
    macs = float(tower.macs(EMBED_DIM))
    if isinstance(tower, ImageConfig):
        return macs
    return macs * (SMALL_FACTOR if tower.image_size <= SMALL else FACTOR)


def weighed(costs: CostsDocument, config: SizeConfig) -> list[Weighed]:
    """Every student by falling capacity."""
    found = []
    for candidate in candidates(config.image_size, config.image_sizes or None):
        tower = tower_of(candidate)
        family = costs.families.get(family_of(tower))
        if family is None or not work_of(tower, EMBED_DIM).keys() <= family.ns_of.keys():
            raise UsageError(
                f"the table of latencies lacks a kind of work that {candidate.name} does: it is of other towers",
                f"measure one of this size: mmcompress bench --blocks --image-size {config.image_size} --out TABLE",
            )
        found.append(Weighed(candidate, tower, capacity_of(tower), predicted_ms(costs, tower)))
    if not found:
        raise UsageError(
            f"no student takes images of {', '.join(map(str, config.image_sizes))} pixels",
            "ask for a multiple of 32, 224 say, or of 16 for images of up to 96 pixels",
        )
    return sorted(found, key=lambda one: -one.capacity)


def _fitting(every: Sequence[Weighed], asked: float, moved: Mapping[Family, float]) -> list[Weighed]:
    """Those that should fit, composed times moved by what the family's whole graphs took; UsageError if none does."""
    found = [one for one in every if one.expected(moved) <= asked]
    if not found:
        smallest = min(every, key=lambda one: one.predicted)
        raise _too_short(asked, smallest.predicted, smallest.candidate)
    return found


def _searched(every: Sequence[Weighed], asked: float, costs: CostsDocument) -> list[Weighed]:
    """The same students, the best few with the time of their whole graph: the best one beside the others at the end."""
    found = {one.candidate: one for one in every}
    moved: dict[Family, float] = {}
    for _ in range(ATTEMPTS):
        best = _fitting([*found.values()], asked, moved)[0]
        runs = [best]
        if last := best.measured is not None:
            for family in ("convolutional", "transformer"):
                own = [one for one in _leading([*found.values()], asked, moved) if one.family == family]
                runs += [one for one in own if one is not best][:RUNNERS_UP]
        times = _whole_times(runs, costs, asked)
        for one, ms in zip(runs, times, strict=True):
            found[one.candidate] = replace(one, measured=ms)
        moved[best.family] = times[0] / best.predicted
        told = f"composed {best.predicted:.2f} ms, measured {times[0]:.2f} ms"
        say("size", "size", f"{best.candidate.name}: {told}")
        if last and times[0] <= asked:
            return [*found.values()]
    raise UsageError(
        f"no student was found in {ATTEMPTS} tries that takes {asked:g} ms: times of one graph differ too much here",
        "try it when the machine is quiet, or ask for more",
    )


def _whole_times(runs: Sequence[Weighed], costs: CostsDocument, asked: float) -> list[float]:
    """Milliseconds of whole graphs; where the first, which should fit, does not, the faster of two runs: noise adds."""
    towers = [one.tower for one in runs]
    times = timed(towers, costs.backend, costs.precision, costs.threads)
    if times[0] <= asked:
        return times
    return list(map(min, times, timed(towers, costs.backend, costs.precision, costs.threads)))


def _leading(every: Sequence[Weighed], asked: float, moved: Mapping[Family, float]) -> list[Weighed]:
    """The best of every preset that should fit, by falling capacity."""
    best: dict[str, Weighed] = {}
    for one in every:
        if one.expected(moved) <= asked:
            best.setdefault(one.candidate.preset, one)
    return sorted(best.values(), key=lambda one: -one.capacity)


def _row(one: Weighed, asked: float) -> SizedRow:
    return SizedRow(
        student=one.candidate.name,
        family=one.family,
        macs=one.tower.macs(EMBED_DIM),
        params=one.tower.params(EMBED_DIM),
        capacity=one.capacity,
        predicted_ms=one.predicted,
        measured_ms=one.measured,
        fits=(one.predicted if one.measured is None else one.measured) <= asked,
    )


def is_here(costs: CostsDocument) -> bool:
    """Whether a graph would be timed here as these costs were: virtual machines of many sizes name one processor."""
    there = costs.environment
    return (there.cpu, there.cores) == (cpu_model(), usable_cores())


def _too_short(asked: float, least: float, candidate: Candidate) -> UsageError:
    more, smaller = float(f"{1.1 * least:.2g}"), candidate.image_size // 2
    return UsageError(
        f"no student takes {asked:g} ms or less: the fastest, {candidate.name}, takes about {least:.3g} ms",
        f"ask for {more:g}ms or more, or for smaller images: --student-image-size {smaller}, of `mmcompress size` "
        f"--image-size {smaller}",
    )
