"""The report's document as a page and as Markdown: templates, the filters that they use, and the charts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mmcompress import __version__
from mmcompress.report import formats, pictures

FILTERS = ("percent", "percent_interval", "points", "count", "millions", "megabytes", "milliseconds", "times", "cosine")


def html_page(document: dict[str, Any]) -> str:
    """One self-contained file: style and charts inline, no script, nothing fetched."""
    rows = document["rows"]
    batches = sorted({entry["batch"] for row in rows for entry in row["latency"]})
    bars = [(batch, Markup(pictures.latency_bars(rows, batch))) for batch in batches]
    return _render(
        "report.html.j2",
        document,
        pareto=Markup(pictures.pareto(rows)),
        bars=bars,
        legend=[(name, Markup(mark)) for name, mark in pictures.legend(rows)],
    )


def markdown_page(document: dict[str, Any]) -> str:
    """For a merge request: headlines, the ledger, the costs, what is missing."""
    return _render("report.md.j2", document)


def _render(template: str, document: dict[str, Any], **pictures: object) -> str:
    # Markdown is no HTML, and everything that goes into the page is escaped but the charts.
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {name: getattr(formats, name) for name in FILTERS}
    values = {"version": __version__, "backends": formats.BACKENDS, "absent": formats.ABSENT}
    return templates.get_template(template).render(**values, **document, **pictures)
