"""The report: what each step cost in accuracy and bought in speed, joined from what the other stages measured.

`joined` is a pure function from artifacts and the documents of bench and drift to one JSON document; the page, the
Markdown, the model card and the console are views of that document and compute nothing. A figure that nobody measured
is None here and a dash there, and the report says why. Latencies of different backends or machines are never mixed in
one ratio without naming both.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from mmcompress.artifact import Artifact
from mmcompress.config import ReportConfig
from mmcompress.document import Document
from mmcompress.errors import UsageError
from mmcompress.gates import Gates
from mmcompress.manifest import Kind, environment
from mmcompress.report import measured
from mmcompress.report.chosen import chosen_bench, chosen_drift
from mmcompress.report.current import current_bench, current_drift, renamed
from mmcompress.report.document import GateVerdict, MachineRatio, ReportDocument
from mmcompress.report.judging import judged, unjudged
from mmcompress.report.measured import Measurement
from mmcompress.report.rows import engine_of, other_test, relative, row_of, step_of, test_of
from mmcompress.report.sentences import (
    calibration_warnings,
    collapse_warnings,
    few_warnings,
    headlines,
    highlights,
    machine_warnings,
    not_measured,
    seen_warnings,
    truth_warnings,
)
from mmcompress.stages import Job

__all__ = ["joined", "report"]


def report(job: Job[ReportConfig]) -> None:
    """Stage: write report.json, report.html, report.md and README.md, the model card of the last row.

    The recipe's gates are judged and recorded; it is `mmcompress check` that fails.
    """
    from mmcompress.report.card import report_card
    from mmcompress.report.pages import html_page, markdown_page

    config = job.config
    document = joined(config.title, job.gathered, job.draft.place or job.draft.path)
    document = document.model_copy(update={"gates": _recorded(document, config.gates)})
    drifts = measured.drifts(job.gathered)
    images = measured.gallery_images(drifts[0]) if drifts else {}
    files = {
        "report.json": document.to_json() + "\n",
        "report.html": html_page(document, images),
        "report.md": markdown_page(document),
        "README.md": report_card(document, job.gathered, config.card),
    }
    for name, text in files.items():
        if text:
            (job.draft.path / name).write_text(text, encoding="utf-8")


def _recorded(document: ReportDocument, gates: Gates) -> tuple[GateVerdict, ...]:
    """The verdicts; a row that is not there fails, since hours of work must not end without a report for it."""
    try:
        return tuple(judged(document, gates))
    except UsageError as error:
        return (unjudged(gates, f"{error.what}; {error.hint}"),)


def joined(title: str, gathered: Sequence[Artifact], folder: Path) -> ReportDocument:
    """One document of all rows in the order of `gathered`; artifacts are named relative to `folder`."""
    graphs = [artifact for artifact in gathered if artifact.manifest.kind is Kind.ONNX]
    first = {(a.manifest.kind, a.path.name): a for a in reversed(gathered)}
    kept = [a for a in gathered if first[a.manifest.kind, a.path.name] is a]
    standing = [artifact for artifact in kept if artifact.manifest.kind is Kind.ONNX]
    benches = [renamed(bench, standing) for bench in measured.benches(gathered)]
    drifts = [renamed(drift, standing) for drift in measured.drifts(gathered)]
    measurements: list[Measurement[Document]] = [*benches, *drifts]
    benches = [current_bench(bench, standing) for bench in benches]
    drifts = [drift for one in drifts if (drift := current_drift(one, standing)) is not None]
    latencies = [bench.document for bench in benches]
    machines, ids = measured.machines(latencies)
    main = drifts[0] if drifts else None
    seen = {digest for measurement in measurements for digest in measurement.digests.values()}
    # a verdict is a row where it stands for an export in bench and drift, else a section of its own
    delivered = [a for a in kept if a.manifest.stage != "verdict" or a.digest in seen]
    accuracy = main.document if main else None
    rows = [row_of(a, accuracy, latencies, ids, folder) for a in delivered if a.manifest.kind is Kind.ONNX]
    document = ReportDocument(
        schema_version=2,
        title=title,
        test=test_of(main),
        accuracy_from=relative(main.folder, folder) if main else None,
        rows=tuple(rows),
        steps=tuple(step_of(before, after) for before, after in itertools.pairwise(rows)),
        ratios=tuple(
            MachineRatio.model_validate({**dict(ratio), "machine": machine})
            for bench, machine in zip(latencies, ids, strict=True)
            for ratio in bench.ratios
        ),
        other_tests=tuple(other_test(d) for d in drifts[1:] if d.document.test != drifts[0].document.test),
        engines=tuple(engine_of(artifact, folder) for artifact in kept if artifact.manifest.kind is Kind.ENGINE),
        sensitivity=measured.sensitivity(kept),
        bisect=measured.bisects(kept),
        sizing=measured.sizings(kept),
        verdicts=measured.verdicts(kept),
        gallery=main.document.gallery if main else (),
        machines=tuple(machines),
        gates=(),
        environment=environment(),
        headlines=(),
        highlights=(),
        warnings=(),
        not_measured=(),
    )
    warnings = [
        *measured.mismatches(graphs, measurements),
        *chosen_drift(drifts),
        *chosen_bench(benches, ids),
        *truth_warnings(document),
        *few_warnings(document),
        *calibration_warnings(gathered),
        *seen_warnings(accuracy),
        *collapse_warnings(rows),
        *machine_warnings(document),
    ]
    said = {
        "headlines": tuple(headlines(document)),
        "highlights": tuple(highlights(document)),
        "warnings": tuple(warnings),
        "not_measured": tuple(not_measured(document)),
    }
    return document.model_copy(update=said)
