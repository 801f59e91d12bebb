"""What `report` and `check` print: the ledger of a report, and its gates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

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


def report_summary(artifact: Artifact) -> tuple[dict[str, Any], RenderableType]:
    """The report's document, and its ledger with the place of the page."""
    document = read_json(artifact.file("report.json"), AGAIN)
    return document, Group(report_view(document), Text(f"report: {artifact.file('report.html')}"))


def report_view(report: Mapping[str, Any]) -> RenderableType:
    """The ledger and the headline of a report."""
    table = empty_table("row", ">parameters", ">MACs", ">size", ">R@10", "95%", ">top-1", ">cosine", ">batch 1", "on")
    for row in report["rows"]:
        metrics, best = row["metrics"], row["fastest"]
        table.add_row(
            row["stage"],
            count(row["params"]),
            millions(row["macs"]),
            megabytes(row["bytes"]),
            percent(metrics["i2t_r10"]),
            percent_interval(metrics["ci95"].get("i2t_r10")),
            percent(metrics["top1"]),
            cosine(metrics["cosine_mean"]),
            milliseconds(best["p50_ms"] if best else None),
            f"{best['backend']} {best['precision']}" if best else "not measured",
        )
    verdicts = [f"{found['name']}: {found['recommendation']['sentence']}" for found in report["verdicts"]]
    return Group(table, *(Text(line) for line in [*report["headlines"], *verdicts]))


def verdicts_summary(verdicts: Sequence[Mapping[str, Any]]) -> Summary:
    """Each gate with what was measured; failed ones first."""
    table = empty_table("", "gate", "row", ">measured", ">limit", ">95% interval", "note")
    for verdict in sorted(verdicts, key=lambda one: bool(one["passed"])):
        interval = verdict["interval"]
        table.add_row(
            "ok" if verdict["passed"] else "FAIL",
            verdict["gate"],
            verdict["row"],
            compact(verdict["value"]),
            compact(verdict["limit"]),
            "" if interval is None else f"{compact(interval[0])} to {compact(interval[1])}",
            verdict["note"],
        )
    return {"passed": all(one["passed"] for one in verdicts), "gates": list(verdicts)}, table
