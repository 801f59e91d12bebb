"""report.json: what each step cost in accuracy and bought in speed, joined from what the other stages measured.

Schema 2 calls a row `row`, as bench.json and drift.json do, and an engine or a machine by one name; what machines say
of themselves is there once. A file of schema 1 is read as if it were written in this one.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from mmcompress.config import Backend
from mmcompress.document import Change, Count, Document, Interval, Part, Ratio, Share, each_once
from mmcompress.measure.bench.document import RunRatio
from mmcompress.measure.drift.document import GalleryEntry
from mmcompress.report.parts import Engine, NamedBisect, NamedSizing, NamedVerdict, ReportMachine, Sensitivity
from mmcompress.report.row import Row, RowMetrics
from mmcompress.report.schema1 import schema_2_from_1


class TestedOn(Part):
    """What accuracy was measured on; null where there is no drift measurement."""

    name: str | None
    """Name of the drift artifact."""
    data: str | None
    """The test set."""
    backend: Backend | None
    """The runtime of the ONNX artifacts; null where only checkpoints were measured too."""
    images: Count | None
    """Images that the main figures are over."""
    candidates: Count | None
    """Texts that every image chooses from."""
    unseen_images: Count | None
    """Images of classes that were kept out of training."""
    own_answers: bool = False
    """Whether right is what the first row answers, of photos that nobody captioned."""


class OtherRow(Part):
    """A row's retrieval on another test set."""

    row: str
    """Name of the artifact."""
    metrics: RowMetrics
    """Over the images of classes that were trained on."""
    unseen: RowMetrics | None
    """Over the other images; null where there are none."""


class OtherTest(TestedOn):
    """A second test set."""

    rows: Annotated[tuple[OtherRow, ...], each_once("row")]
    """In the order of the measurement."""


class Step(Part):
    """From one row to the next; ratios are before over after, so above 1 is a gain, and null where one is unknown."""

    from_row: Annotated[str, Field(alias="from")]
    """Name of the row before."""
    to_row: Annotated[str, Field(alias="to")]
    """Name of the row after."""
    r10_change: Change | None
    """Recall at 10, image to text, after minus before, -1 to 1; null where one was not measured."""
    r10_ci95: Interval | None
    """Its paired 95% interval; null where drift has none."""
    r10_significant: bool | None
    """Whether the interval leaves out 0; null where there is none."""
    flip_rate: Share | None
    """Share of the images with another best text, 0 to 1; null where drift does not compare the two."""
    params_ratio: Ratio | None
    """Of parameters."""
    macs_ratio: Ratio | None
    """Of multiply-accumulates of an image."""
    bytes_ratio: Ratio | None
    """Of the delivered files."""
    latency_ratio: Ratio | None
    """Of the medians of the fastest backend of each at batch 1 on the first machine."""
    backends: tuple[Backend | None, Backend | None]
    """These backends; null where there is no latency."""


class MachineRatio(RunRatio):
    """A ratio of bench.json, and where it was taken."""

    machine: str
    """`id` of the machine."""


class GateVerdict(Part):
    """A limit that the report was held against."""

    gate: str
    """Its kind and its metric, `max-drop i2t_r10` say."""
    row: str
    """Name of the row."""
    value: float | None
    """What was measured, in the metric's unit; null where it was not, which fails."""
    limit: float | None
    """What it is held against; null where the gate could not be judged."""
    passed: bool
    """Whether it holds."""
    significant: bool | None
    """Whether the interval of a change leaves out no change; null where there is none."""
    interval: Interval | None
    """95% interval of a change; null where none is known, and of a plain figure."""
    note: str
    """Where it was measured, or why not."""


class Highlight(Part):
    """A figure at the top of the page."""

    name: str
    """What it is."""
    value: float
    """A ratio, or a share from 0."""
    kind: Literal["times", "percent"]
    """How it is written."""
    note: str
    """What it compares."""
    ci95: Interval | None
    """Its 95% interval; null where there is none."""


class ReportDocument(Document):
    """All rows in the order of the recipe; the page, the Markdown, the card and the console are views of this."""

    schema_version: Annotated[Literal[2], Field(alias="schema")]  # type: ignore[assignment]
    """Of the file's fields and what they mean."""
    title: str
    """Of the page."""
    test: TestedOn
    """What accuracy was measured on."""
    accuracy_from: str | None
    """The drift artifact, relative to the report; null where there is none."""
    rows: Annotated[tuple[Row, ...], each_once("row")]
    """The first is the teacher."""
    steps: tuple[Step, ...]
    """One between each two rows."""
    ratios: tuple[MachineRatio, ...]
    """Speed-ups from interleaved rounds, of every machine."""
    other_tests: tuple[OtherTest, ...]
    """Further test sets."""
    engines: Annotated[tuple[Engine, ...], each_once("name")]
    """Engine artifacts."""
    sensitivity: tuple[Sensitivity, ...]
    """Of each quantized checkpoint."""
    bisect: tuple[NamedBisect, ...]
    """Every bisect."""
    sizing: tuple[NamedSizing, ...] = ()
    """What each student that was sized by a latency was chosen from."""
    verdicts: tuple[NamedVerdict, ...]
    """Every verdict on INT8."""
    gallery: Annotated[tuple[GalleryEntry, ...], each_once("file")]
    """Images that the last row answers otherwise than the first; their files are in the drift artifact."""
    machines: Annotated[tuple[ReportMachine, ...], each_once("id")]
    """That measured latency; the rows' `fastest` is of the first."""
    gates: tuple[GateVerdict, ...]
    """Limits of the recipe, judged."""
    environment: dict[str, str]
    """What the report was made with: platform and versions by package."""
    headlines: tuple[str, ...]
    """What a reader takes away, one sentence each."""
    highlights: tuple[Highlight, ...]
    """The same as figures."""
    warnings: tuple[str, ...]
    """What to know before believing the figures, one sentence each."""
    not_measured: tuple[str, ...]
    """What a reader might look for in vain, and why."""

    def row(self, name: str) -> Row | None:
        """The row of a name."""
        return next((row for row in self.rows if row.row == name), None)

    def says_nothing(self, metric: str) -> str | None:
        """Why a recall is 100% of any model on this test set; None where it is not, and of other metrics."""
        named = re.fullmatch(r"(unseen\.|old_index\.)?(i2t|t2i)_r(\d+)", metric)
        if named is None:
            return None
        images = self.test.unseen_images if named[1] == "unseen." else self.test.images
        choices, what = (self.test.candidates, "texts") if named[2] == "i2t" else (images, "images")
        if not choices or choices > int(named[3]):
            return None
        return f"R@{named[3]} is 100% of any model that chooses among {choices} {what}"

    @classmethod
    def current(cls, text: bytes) -> bytes:
        return schema_2_from_1(text)
