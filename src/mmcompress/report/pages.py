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
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from mmcompress.measure.drift.document import GalleryEntry
from mmcompress.report import axes, drifts, latencies, modules, pareto, sizings
from mmcompress.report.document import ReportDocument
from mmcompress.templates import template_environment

IMAGE_TYPES = {".webp": "image/webp", ".png": "image/png", ".jpg": "image/jpeg"}


@dataclass(frozen=True)
class Charts:
    """Every picture of the page, as markup; an empty text where there is nothing to draw."""

    legend: list[tuple[str, Markup]]
    """Name and marker of each backend."""
    pareto: dict[str, Markup]
    """By machine."""
    bars: list[Markup]
    distributions: list[Markup]
    cosines: list[Markup]
    changes: Markup
    classes: Markup
    sizing: list[Markup]
    sensitivity: list[Markup]
    noise: list[Markup]
    carried: list[Markup]


@dataclass(frozen=True)
class Picture:
    """An image of the gallery."""

    entry: GalleryEntry
    image: str
    """As a data URI."""
    maps: tuple[str | None, str | None]
    """What the first row looks at for its answer, and the last row for its own; as data URIs."""
    right: tuple[bool, bool]
    """Whether the first row's answer is right, and the last row's."""


Gallery = list[tuple[str, list[Picture]]]
"""What happened, and the pictures."""
Section = tuple[str, str, Callable[[ReportDocument, Charts, Gallery], object]]
SECTIONS: tuple[Section, ...] = (
    ("ledger", "The ledger", lambda d, _, __: d.rows),
    ("pareto", "Accuracy against latency", lambda _, charts, __: any(charts.pareto.values())),
    ("steps", "What each step cost and bought", lambda d, _, __: d.steps),
    ("gates", "Gates", lambda d, _, __: d.gates),
    ("verdict", "The verdict on INT8", lambda d, _, __: d.verdicts),
    ("machines", "Machines", lambda d, _, __: len(d.machines) > 1),
    ("latency", "Latency", lambda d, _, __: any(row.latency for row in d.rows)),
    ("retrieval", "Accuracy", lambda d, _, __: d.test.images is not None),
    ("classes", "By class", lambda d, _, __: any(row.classification for row in d.rows)),
    ("drift", "Drift", lambda d, _, __: any(row.metrics.cosine_mean is not None for row in d.rows[1:])),
    ("gallery", "Where the answers differ", lambda _, __, gallery: gallery),
    ("sizing", "The student's size", lambda d, _, __: d.sizing),
    ("modules", "Sensitivity by module", lambda d, _, __: d.sensitivity or d.bisect),
    ("engines", "Engines and their precision", lambda d, _, __: d.engines),
    ("missing", "What was not measured", lambda d, _, __: d.rows or d.not_measured),
    ("environment", "Environment", lambda *_: True),
)
"""Name of the template `part-NAME.html.j2` and of the anchor, heading, and whether there is anything to show."""


def html_page(document: ReportDocument, images: Mapping[str, bytes] | None = None) -> str:
    """One self-contained file: style, script, charts and the gallery's images inline, nothing fetched."""
    drawn, pictures = charts(document), gallery(document, images or {})
    templates = _templates(autoescape=True)
    style = templates.get_template("style.css.j2").render()
    script = templates.get_template("theme.js.j2").render()
    shown = dict(document) | {"charts": drawn, "gallery": pictures, "environments": environments(document)}
    return templates.get_template("report.html.j2").render(
        **shown,
        sections=[(name, title) for name, title, wanted in SECTIONS if wanted(document, drawn, pictures)],
        style=Markup(style),
        script=Markup(script),
        hashes={"style": _csp_hash(style), "script": _csp_hash(script)},
    )


def markdown_page(document: ReportDocument) -> str:
    """For a merge request: headlines, the ledger, the gates, the costs, what is missing."""
    return _templates(autoescape=False).get_template("report.md.j2").render(**dict(document))


def environments(document: ReportDocument) -> dict[str, dict[str, object]]:
    """What each machine says of itself, by its id; of a single one together with what made the report."""
    facts = [machine.environment.model_dump(mode="json", by_alias=True) for machine in document.machines]
    if len(facts) > 1:
        return {machine.id: own for machine, own in zip(document.machines, facts, strict=True)}
    return {"": document.environment | (facts[0] if facts else {})}


@functools.cache
def _templates(autoescape: bool) -> Environment:
    """Everything that goes into the page is escaped but the charts."""
    templates = template_environment([Path(__file__).parent], autoescape)
    templates.filters["meter"] = lambda part, whole: Markup(axes.meter(part, whole))
    return templates


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def charts(document: ReportDocument) -> Charts:
    rows, ids = document.rows, [machine.id for machine in document.machines]
    batches = sorted({entry.batch for row in rows for entry in row.latency})
    return Charts(
        legend=[(name, Markup(mark)) for name, mark in axes.legend(rows)],
        pareto={machine: Markup(pareto.pareto(rows, machine)) for machine in ids},
        bars=[Markup(latencies.latency_bars(rows, batch, machine)) for machine in ids for batch in batches],
        distributions=[Markup(panel) for panel in latencies.distributions(rows)],
        cosines=[Markup(panel) for panel in drifts.cosine_panels(rows)],
        changes=Markup(drifts.changes(rows)),
        classes=Markup(drifts.classes(rows[-1]) if rows else ""),
        sensitivity=[Markup(modules.sensitivity_bars(each.sensitivity)) for each in document.sensitivity],
        noise=[Markup(modules.noise_bars(bisect)) for bisect in document.bisect],
        sizing=[Markup(sizings.sized_bars(sizing)) for sizing in document.sizing],
        carried=[Markup(modules.carried_noise(bisect.blocks)) for bisect in document.bisect],
    )


def gallery(document: ReportDocument, images: Mapping[str, bytes]) -> Gallery:
    """Entries whose image is not there are left out."""
    groups: dict[str, list[Picture]] = {"The reference was right": [], "The row is right": [], "Neither is right": []}
    for entry in document.gallery:
        if (image := _data_uri(entry.file, images)) is None:
            continue
        right = (entry.teacher.text in entry.truth, entry.answer.text in entry.truth)
        title = list(groups)[0 if right[0] else 1 if right[1] else 2]
        maps = (_data_uri(entry.teacher.map, images), _data_uri(entry.answer.map, images))
        groups[title].append(Picture(entry, image, maps, right))
    return [(title, pictures) for title, pictures in groups.items() if pictures]


def _data_uri(file: str | None, images: Mapping[str, bytes]) -> str | None:
    if file is None or (content := images.get(file)) is None:
        return None
    kind = IMAGE_TYPES.get(Path(file).suffix.lower(), "image/webp")
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
