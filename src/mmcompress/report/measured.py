"""What the other stages measured, as the report reads it: documents of bench, drift and bisect, and whose they are.

A report may join several devices. Rows are artifacts and machines are where they ran: every measurement says by the
digests of its parents which artifacts it is of, so a bench folder that is copied back from a device joins the rows that
it ran, and one of other files under the same names is told and left out (`current.py`). Accuracy is taken once,
from the first drift, since the delivered files do not change between machines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

from mmcompress.artifact import Artifact
from mmcompress.compress.sizing.document import SIZING, SizingDocument
from mmcompress.document import Document, Part
from mmcompress.errors import CorruptInputError
from mmcompress.manifest import Kind
from mmcompress.measure.bench.document import BenchDocument, BenchRow
from mmcompress.measure.bisect.document import BisectDocument
from mmcompress.measure.drift.document import DriftDocument, DriftRow
from mmcompress.measure.verdict.document import VerdictDocument
from mmcompress.places import MANIFEST
from mmcompress.report.document import ReportDocument
from mmcompress.report.parts import NamedBisect, NamedSizing, NamedVerdict, ReportMachine, Sensitivity
from mmcompress.report.row import MachineLatency
from mmcompress.wrong import first_wrong

D = TypeVar("D", bound=Document, covariant=True)
P = TypeVar("P", bound=Part)


@dataclass(frozen=True)
class Measurement(Generic[D]):
    """A document and the artifact that it comes from."""

    name: str
    folder: Path
    digests: Mapping[str, str]
    """Of each artifact that was measured, by its name."""
    document: D


def measurements(gathered: Iterable[Artifact], stage: str, kind: type[D]) -> list[Measurement[D]]:
    """The documents that a measuring stage wrote, in order."""
    return [
        Measurement(artifact.path.name, artifact.path, measured(artifact), read_document(artifact, stage, kind))
        for artifact in gathered
        if artifact.manifest.kind is Kind.REPORT and artifact.manifest.stage == stage
    ]


def drifts(gathered: Iterable[Artifact]) -> list[Measurement[DriftDocument]]:
    return measurements(gathered, "drift", DriftDocument)


def benches(gathered: Sequence[Artifact]) -> list[Measurement[BenchDocument]]:
    """Every bench, and the latencies of finished reports: what a device sends back may be its report alone.

    A report of nothing but benches that are there themselves adds none.
    """
    own = measurements(gathered, "bench", BenchDocument)
    reports = measurements(gathered, "report", ReportDocument)
    sent = [
        Measurement(
            report.name,
            report.folder,
            {row.row: row.digest for row in report.document.rows},
            bench_of_machine(report.document, machine),
        )
        for report in reports
        for machine in report.document.machines
    ]
    known = [run for bench in own for run in _runs(bench)]
    return [*own, *(bench for bench in sent if not all(run in known for run in _runs(bench)))]


def _runs(bench: Measurement[BenchDocument]) -> list[tuple[str | None, str, dict[str, object]]]:
    """Each latency with the digest of what ran, whether a bench or a report tells it."""
    return [
        (bench.digests.get(row.row), row.row, entry.model_dump(exclude={"machine"}))
        for row in bench.document.rows
        for entry in row.latency
    ]


def read_document(artifact: Artifact, stage: str, kind: type[D]) -> D:
    """The document that a stage wrote into its artifact."""
    return kind.read(artifact.file(f"{stage}.json"), f"run {stage} again")


def measured(artifact: Artifact) -> dict[str, str]:
    """Digest of each artifact that a measurement gathered, by its name: the role is `03-recovered`."""
    return {role.partition("-")[2]: digest for role, digest in artifact.manifest.parents.items() if role[:1].isdigit()}


def bench_of_machine(report: ReportDocument, machine: ReportMachine) -> BenchDocument:
    """What one machine of a finished report measured, in several benches maybe: a run may be there more than once."""
    return BenchDocument.model_construct(
        rows=tuple(
            BenchRow.model_construct(
                row=row.row, latency=tuple(entry for entry in row.latency if entry.machine == machine.id)
            )
            for row in report.rows
        ),
        ratios=tuple(ratio for ratio in report.ratios if ratio.machine == machine.id),
        ceiling=machine.ceiling,
        environment=machine.environment,
    )


def machines(documents: Iterable[BenchDocument]) -> tuple[list[ReportMachine], list[str]]:
    """The machines that measured, each once, and the id of each document's machine.

    The id is the processor's name, with a number behind it where two machines have the same.
    """
    known: dict[tuple[object, ...], ReportMachine] = {}
    ids: list[str] = []
    for document in documents:
        here = document.environment
        same = (here.cpu, here.cores, here.memory_bytes, here.platform, here.power_mode)
        if same not in known:
            namesakes = sum(machine.name == here.cpu for machine in known.values())
            name = f"{here.cpu} ({namesakes + 1})" if namesakes else here.cpu
            known[same] = ReportMachine(id=name, name=here.cpu, environment=here, ceiling=document.ceiling)
        ids.append(known[same].id)
    return list(known.values()), ids


def latency_of(row: str, documents: Iterable[BenchDocument], ids: Iterable[str]) -> tuple[MachineLatency, ...]:
    """Every latency of a row, with its machine, from all documents."""
    return tuple(
        MachineLatency.model_validate({**dict(entry), "machine": machine})
        for document, machine in zip(documents, ids, strict=True)
        for measured_row in document.rows
        if measured_row.row == row
        for entry in measured_row.latency
    )


def drift_row(drift: DriftDocument | None, name: str) -> DriftRow | None:
    """What drift says of a row."""
    return next((row for row in drift.rows if row.row == name), None) if drift else None


def mismatches(artifacts: Sequence[Artifact], documents: Iterable[Measurement[Document]]) -> list[str]:
    """A sentence for each artifact that differs from the one of the same name that was measured or gathered."""
    kept: dict[str, str] = {}
    sentences = []
    for artifact in artifacts:
        name = artifact.path.name
        if kept.setdefault(name, artifact.digest) != artifact.digest:
            sentences.append(
                f"{artifact.path} differs from the first {name} ({artifact.digest[:8]}, not {kept[name][:8]}) and is "
                "left out: its latencies may be of another model."
            )
    for document in documents:
        others = [name for name, digest in document.digests.items() if kept.get(name, digest) != digest]
        if others:
            sentences.append(
                f"{document.folder} measured other files under the same name: {', '.join(others)}. What it says of "
                "them is left out: measure again."
            )
    return list(dict.fromkeys(sentences))


def sensitivity(gathered: Iterable[Artifact]) -> tuple[Sensitivity, ...]:
    """What each quantized checkpoint knows about its modules, worst first."""
    return tuple(
        part_of_facts(Sensitivity, artifact, ("sensitivity", "budget"), name=artifact.path.name)
        for artifact in gathered
        if artifact.manifest.facts.get("sensitivity")
        and (artifact.manifest.stage == "quantize" or artifact.manifest.facts.get("qat", {}).get("accepted"))
    )


def part_of_facts(kind: type[P], source: Artifact, facts: Iterable[str], **values: object) -> P:
    """A part of the report with some of a manifest's facts, and other values."""
    try:
        return kind.model_validate({**{fact: source.manifest.facts.get(fact) for fact in facts}, **values})
    except ValidationError as error:
        said = f"{source.path / MANIFEST}{first_wrong(error, 'facts')}"
        raise CorruptInputError(said, f"run {source.manifest.stage} again") from error


def bisects(gathered: Iterable[Artifact]) -> tuple[NamedBisect, ...]:
    """The documents of `bisect`."""
    return tuple(
        NamedBisect(**dict(bisect.document), name=bisect.name)
        for bisect in measurements(gathered, "bisect", BisectDocument)
    )


def sizings(gathered: Iterable[Artifact]) -> tuple[NamedSizing, ...]:
    """What each student was chosen from."""
    return tuple(
        NamedSizing(**dict(SizingDocument.read(artifact.file(SIZING))), name=artifact.path.name)
        for artifact in gathered
        if artifact.manifest.stage == "size"
    )


def verdicts(gathered: Iterable[Artifact]) -> tuple[NamedVerdict, ...]:
    """What each verdict measured and recommends."""
    return tuple(
        NamedVerdict(**dict(read_document(artifact, "verdict", VerdictDocument)), name=artifact.path.name)
        for artifact in gathered
        if artifact.manifest.stage == "verdict"
    )


def gallery_images(drift: Measurement[DriftDocument]) -> dict[str, bytes]:
    """The pictures of a drift's gallery by file name; those that are not there are left out."""
    named = [(entry.file, entry.teacher.map, entry.answer.map) for entry in drift.document.gallery]
    files = [drift.folder / name for names in named for name in names if name is not None]
    inside = [file for file in files if file.resolve().is_relative_to(drift.folder.resolve()) and file.is_file()]
    return {file.relative_to(drift.folder).as_posix(): file.read_bytes() for file in inside}
