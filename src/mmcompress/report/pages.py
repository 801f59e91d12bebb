"""The report's document as a page and as Markdown: templates, the filters that they use, and the charts.

The page is one file. It forbids itself every request by a content security policy, which also names the hash of its
own style and of its one script (the theme switch): a label or a caption that holds markup is escaped, and would not run
if it were not.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from mmcompress.report import axes, drifts, latencies, modules, pareto
from mmcompress.report.measured import Document
from mmcompress.templates import template_environment

IMAGE_TYPES = {".webp": "image/webp", ".png": "image/png", ".jpg": "image/jpeg"}
Section = tuple[str, str, Callable[[Document], object]]
SECTIONS: tuple[Section, ...] = (
    ("ledger", "The ledger", lambda d: d["rows"]),
    ("pareto", "Accuracy against latency", lambda d: any(d["charts"]["pareto"].values())),
    ("steps", "What each step cost and bought", lambda d: d["steps"]),
    ("gates", "Gates", lambda d: d["gates"]),
    ("verdict", "The verdict on INT8", lambda d: d["verdicts"]),
    ("machines", "Machines", lambda d: len(d["machines"]) > 1),
    ("latency", "Latency", lambda d: any(row["latency"] for row in d["rows"])),
    ("retrieval", "Accuracy", lambda d: d["test"]["images"] is not None),
    ("drift", "Drift", lambda d: any(row["metrics"]["cosine_mean"] is not None for row in d["rows"][1:])),
    ("gallery", "Where the answers differ", lambda d: d["gallery"]),
    ("modules", "Sensitivity by module", lambda d: d["sensitivity"] or d["bisect"]),
    ("engines", "Engines and their precision", lambda d: d["engines"]),
    ("missing", "What was not measured", lambda _: True),
    ("environment", "Environment", lambda _: True),
)
"""Name of the template `part-NAME.html.j2` and of the anchor, heading, and whether there is anything to show."""


def html_page(document: Document, images: Mapping[str, bytes] | None = None) -> str:
    """One self-contained file: style, script, charts and the gallery's images inline, nothing fetched."""
    shown = {**document, "charts": charts(document), "gallery": gallery(document, images or {})}
    templates = _templates(autoescape=True)
    style = templates.get_template("style.css.j2").render()
    script = templates.get_template("theme.js.j2").render()
    return templates.get_template("report.html.j2").render(
        **shown,
        sections=[(name, title) for name, title, wanted in SECTIONS if wanted(shown)],
        style=Markup(style),
        script=Markup(script),
        hashes={"style": _csp_hash(style), "script": _csp_hash(script)},
    )


def markdown_page(document: Document) -> str:
    """For a merge request: headlines, the ledger, the gates, the costs, what is missing."""
    return _templates(autoescape=False).get_template("report.md.j2").render(**document)


@functools.cache
def _templates(autoescape: bool) -> Environment:
    """Everything that goes into the page is escaped but the charts."""
    templates = template_environment([Path(__file__).parent], autoescape)
    templates.filters["meter"] = lambda part, whole: Markup(axes.meter(part, whole))
    return templates


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def charts(document: Document) -> Document:
    """Every picture of the page, as markup; an empty text where there is nothing to draw."""
    rows, ids = document["rows"], [machine["id"] for machine in document["machines"]]
    batches = sorted({entry["batch"] for row in rows for entry in row["latency"]})
    return {
        "legend": [(name, Markup(mark)) for name, mark in axes.legend(rows)],
        "pareto": {machine: Markup(pareto.pareto(rows, machine)) for machine in ids},
        "bars": [Markup(latencies.latency_bars(rows, batch, machine)) for machine in ids for batch in batches],
        "distributions": [Markup(panel) for panel in latencies.distributions(rows)],
        "cosines": [Markup(panel) for panel in drifts.cosine_panels(rows)],
        "changes": Markup(drifts.changes(rows)),
        "classes": Markup(drifts.classes(rows[-1])) if rows else "",
        "sensitivity": [Markup(modules.sensitivity_bars(found["sensitivity"])) for found in document["sensitivity"]],
        "noise": [Markup(modules.noise_bars(found)) for found in document["bisect"]],
        "carried": [Markup(modules.carried_noise(found.get("blocks") or [])) for found in document["bisect"]],
    }


def gallery(document: Document, images: Mapping[str, bytes]) -> list[tuple[str, list[Document]]]:
    """(what happened, entries) with each image as a data URI; entries whose image is not there are left out."""
    groups: dict[str, list[Document]] = {"The reference was right": [], "The row is right": [], "Neither is right": []}
    for entry in document["gallery"]:
        if (content := images.get(entry["file"])) is None:
            continue
        right = [entry[side]["text"] in entry["truth"] for side in ("teacher", "answer")]
        title = list(groups)[0 if right[0] else 1 if right[1] else 2]
        kind = IMAGE_TYPES.get(Path(entry["file"]).suffix.lower(), "image/webp")
        image = f"data:{kind};base64,{base64.b64encode(content).decode()}"
        groups[title].append({**entry, "image": image, "right": right})
    return [(title, entries) for title, entries in groups.items() if entries]
