"""What `report` and `check` print: the ledger of a report, and its gates."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from mmcompress.artifact import Artifact
from mmcompress.cli.console import Summary, empty_table
from mmcompress.formats import (
    compact,
    cosine,
    count,
    megabytes,
    millions,
    milliseconds,
    percent,
    percent_interval,
)
from mmcompress.report.document import GateVerdict, ReportDocument


def report_summary(artifact: Artifact) -> Summary:
    """The report's document, and its ledger with the place of the page."""
    report = ReportDocument.read(artifact.file("report.json"))
    view = Group(report_view(report), Text(f"report: {artifact.file('report.html')}"))
    return report.model_dump(mode="json", by_alias=True), view


def report_view(report: ReportDocument) -> RenderableType:
    """The ledger of a report if it has rows, its headlines, and what verdicts and sizings chose."""
    table = empty_table("row", ">parameters", ">MACs", ">size", ">R@10", "95%", ">top-1", ">cosine", ">batch 1", "on")
    for row in report.rows:
        best = row.fastest
        table.add_row(
            row.row,
            count(row.params),
            millions(row.macs),
            megabytes(row.bytes),
            percent(row.metrics.i2t_r10),
            percent_interval(row.metrics.ci95.get("i2t_r10")),
            percent(row.metrics.top1),
            cosine(row.metrics.cosine_mean),
            milliseconds(best.p50_ms if best else None),
            f"{best.backend} {best.precision}" if best else "not measured",
        )
    verdicts = [f"{verdict.name}: {verdict.recommendation.sentence}" for verdict in report.verdicts]
    sizings = [f"{sizing.name}: {sizing.why}." for sizing in report.sizing]
    return Group(*[table] * bool(report.rows), *map(Text, [*report.headlines, *verdicts, *sizings]))


def gates_summary(verdicts: Sequence[GateVerdict]) -> Summary:
    """Each gate with what was measured; failed ones first."""
    table = empty_table("", "gate", "row", ">measured", ">limit", ">95% interval", "note", keys=3)
    for verdict in sorted(verdicts, key=lambda gate: gate.passed):
        interval = verdict.interval
        table.add_row(
            "ok" if verdict.passed else "FAIL",
            verdict.gate,
            verdict.row,
            compact(verdict.value),
            compact(verdict.limit),
            "" if interval is None else f"{compact(interval[0])} to {compact(interval[1])}",
            verdict.note,
        )
    passed = all(verdict.passed for verdict in verdicts)
    return {"passed": passed, "gates": [verdict.model_dump(mode="json") for verdict in verdicts]}, table
