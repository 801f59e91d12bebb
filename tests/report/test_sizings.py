"""The student's size on the page: what was chosen from what, by which times."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from mmcompress.artifact import Artifact
from mmcompress.cli.show_report import report_view
from mmcompress.compress.sizing.document import SIZING, SizedRow, SizingDocument
from mmcompress.manifest import Kind
from mmcompress.report.measured import sizings
from mmcompress.report.pages import html_page, markdown_page
from mmcompress.report.report import joined
from mmcompress.report.sizings import sized_bars
from mmcompress.runtime.machine import machine


def row(student: str, measured: float | None, fits: bool) -> SizedRow:
    sizes = {"macs": 4_000_000, "params": 1_000_000, "capacity": 2e7}
    return SizedRow(student=student, family="convolutional", predicted_ms=0.8, measured_ms=measured, fits=fits, **sizes)


SIZED = SizingDocument(
    asked_ms=1.0,
    backend="openvino",
    precision="int8",
    threads=2,
    environment=machine(),
    why="mnv4-s at 224 px has the most capacity within 1 ms, of 432 students",
    rows=(row("mnv4-s at 224 px", 0.9, True), row("<vit>", 1.25, False), row("vit-t16 at 128 px", None, True)),
)


def test_every_student_has_its_times_and_names_are_escaped() -> None:
    drawn = sized_bars(SIZED)
    assert "mnv4-s at 224 px: 0.90 ms measured, 0.80 ms composed" in drawn
    assert "vit-t16 at 128 px: 0.80 ms composed" in drawn
    assert "&lt;vit&gt;" in drawn and "<vit>" not in drawn
    assert drawn.count("<rect") == 2


def test_the_page_says_what_was_chosen_and_why(tmp_path: Path) -> None:
    with Artifact.create(tmp_path / "s", kind=Kind.REPORT, stage="size", key="k") as draft:
        SIZED.write(draft.path / SIZING)
    found = sizings([Artifact.open(tmp_path / "s")])
    assert found[0].name == "s" and found[0].rows == SIZED.rows
    document = joined("Sizes", [Artifact.open(tmp_path / "s")], tmp_path)
    page = html_page(document)
    assert 'id="sizing"' in page and SIZED.why in page and "too slow" in page
    assert "the dashed line is what was asked for" in page and "The choice, and its runners-up by falling" in page
    assert "1.00 ms on OpenVINO in INT8" in page and "Bars are measured on whole graphs" in page
    merge_request = markdown_page(document)
    assert f"s: {SIZED.why}." in merge_request and ", too slow |" in merge_request
    assert "| student for 1.00 ms on OpenVINO in INT8 |" in merge_request


def test_the_page_shows_no_bars_where_nothing_was_timed(tmp_path: Path) -> None:
    rows = tuple(row.model_copy(update={"measured_ms": None}) for row in SIZED.rows)
    with Artifact.create(tmp_path / "s", kind=Kind.REPORT, stage="size", key="k") as draft:
        SIZED.model_copy(update={"rows": rows}).write(draft.path / SIZING)
    page = html_page(joined("Sizes", [Artifact.open(tmp_path / "s")], tmp_path))
    assert "Bars are measured" not in page and "Marks are times, none measured: composed of what work costs on" in page


def test_a_report_of_sizings_alone_has_no_empty_table(tmp_path: Path) -> None:
    with Artifact.create(tmp_path / "s", kind=Kind.REPORT, stage="size", key="k") as draft:
        SIZED.write(draft.path / SIZING)
    document = joined("Sizes", [Artifact.open(tmp_path / "s")], tmp_path)
    merge_request, page = markdown_page(document), html_page(document)
    assert "| row |" not in merge_request and merge_request.startswith(f"## Sizes\n\n\ns: {SIZED.why}.")
    assert "No exported model is part of it." in page and "0 models" not in page and "from ." not in page
    assert 'id="ledger"' not in page and 'id="missing"' not in page and not document.not_measured
    console = Console(file=io.StringIO(), width=200)
    console.print(report_view(document))
    assert console.file.getvalue() == f"s: {SIZED.why}.\n"
