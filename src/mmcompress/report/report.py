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
from mmcompress.errors import UsageError
from mmcompress.gates import Gates
from mmcompress.manifest import Kind, environment
from mmcompress.report import measured
from mmcompress.report.judging import Verdict, judged, unjudged
from mmcompress.report.measured import Document
from mmcompress.report.rows import engine_of, other_test, relative, row_of, step_of, test_of
from mmcompress.report.sentences import collapse_warnings, headlines, highlights, machine_warnings, not_measured
from mmcompress.stages import Job
from mmcompress.strictjson import text_from_json

__all__ = ["joined", "report"]


def report(job: Job[ReportConfig]) -> None:
    """Stage: write report.json, report.html, report.md and README.md, the model card of the last row.

    The recipe's gates are judged and recorded; it is `mmcompress check` that fails.
    """
    from mmcompress.report.card import report_card
    from mmcompress.report.pages import html_page, markdown_page

    config = job.config
    document = joined(config.title, job.gathered, job.draft.path)
    document["gates"] = _recorded(document, config.gates)
    drifts = measured.measurements(job.gathered, "drift")
    images = measured.gallery_images(drifts[0]) if drifts else {}
    files = {
        "report.json": text_from_json(document, indent=1) + "\n",
        "report.html": html_page(document, images),
        "report.md": markdown_page(document),
        "README.md": report_card(document, job.gathered, config.card),
    }
    for name, text in files.items():
        if text:
            (job.draft.path / name).write_text(text, encoding="utf-8")


def _recorded(document: Document, gates: Gates) -> list[Verdict]:
    """The verdicts; a row that is not there fails, since hours of work must not end without a report for it."""
    try:
        return judged(document, gates)
    except UsageError as error:
        return [unjudged(gates, f"{error.what}; {error.hint}")]


def joined(title: str, gathered: Sequence[Artifact], folder: Path) -> Document:
    """One document of all rows in the order of `gathered`; artifacts are named relative to `folder`."""
    benches, drifts = measured.benches(gathered), measured.measurements(gathered, "drift")
    machines, ids = measured.machines(benches)
    main = drifts[0] if drifts else None
    first = {(a.manifest.kind, a.path.name): a for a in reversed(gathered)}
    kept = [a for a in gathered if first[a.manifest.kind, a.path.name] is a]
    seen = {digest for found in (*benches, *drifts) for digest in found["digests"].values()}
    # a verdict is a row where it stands for an export in bench and drift, else a section of its own
    delivered = [a for a in kept if a.manifest.stage != "verdict" or a.digest in seen]
    rows = [row_of(a, main, benches, ids, folder) for a in delivered if a.manifest.kind is Kind.ONNX]
    document: Document = {
        "schema": 1,
        "title": title,
        "test": test_of(main),
        "accuracy_from": relative(main["folder"], folder) if main else None,
        "rows": rows,
        "steps": [step_of(before, after) for before, after in itertools.pairwise(rows)],
        "ratios": [
            {"significant": None, **ratio, "machine": machine}
            for bench, machine in zip(benches, ids, strict=True)
            for ratio in bench.get("ratios") or []
        ],
        "other_tests": [other_test(drift) for drift in drifts[1:] if drift.get("test") != drifts[0].get("test")],
        "engines": [engine_of(artifact, folder) for artifact in kept if artifact.manifest.kind is Kind.ENGINE],
        "sensitivity": measured.sensitivity(kept),
        "bisect": measured.bisects(kept),
        "verdicts": measured.verdicts(kept),
        "gallery": list((main or {}).get("gallery") or []),
        "machines": machines,
        "gates": [],
        "environment": {**environment(), **(machines[0]["environment"] if machines else {})},
    }
    graphs = [artifact for artifact in gathered if artifact.manifest.kind is Kind.ONNX]
    warnings = [
        *measured.mismatches(graphs, [*benches, *drifts]),
        *collapse_warnings(rows),
        *machine_warnings(document),
    ]
    said = {"headlines": headlines(document), "highlights": highlights(document)}
    return {**document, **said, "warnings": warnings, "not_measured": not_measured(document)}
