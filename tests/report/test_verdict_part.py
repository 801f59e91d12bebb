"""The verdict in the report: its table and its sentence on the page, in Markdown and on the console."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from report_run import ROWS, bench_document, graph, make_run, measurement, onnx_artifact
from rich.console import Console

from mmcompress.artifact import Artifact
from mmcompress.cli import show_measure, show_report
from mmcompress.errors import CorruptInputError
from mmcompress.manifest import Kind
from mmcompress.pipeline import standalone
from mmcompress.report.report import joined

SAID = "Ship INT8 on ONNX Runtime (all): it is 1.10 times as fast as FP32 <b>here</b>."


def ratio(speedup: float) -> dict[str, Any]:
    return {"speedup": speedup, "ci95": [speedup - 0.02, speedup + 0.02], "significant": True}


def side(p50_ms: float, speedup: float | None) -> dict[str, Any]:
    tail = {"p90_ms": p50_ms * 1.1, "p99_ms": p50_ms * 1.4, "throughput_ips": 1000 / p50_ms, "rounds_ms": [p50_ms] * 8}
    against = None if speedup is None else ratio(speedup)
    return {"samples": 90, "p50_ms": p50_ms, **tail, "against_fastest_float": against}


def row(precision: str, speedup: float | None, drift: dict[str, float] | None) -> dict[str, Any]:
    sides = {"image": side(1.31, speedup), "text": side(2.5, speedup)}
    head = {"name": precision, "precision": precision, "backend": "onnxruntime", "recommended": precision == "int8"}
    return {**head, "bytes": 22_100_000, **sides, "drift": drift}


def environment(warning: str) -> dict[str, Any]:
    recorded = bench_document()["environment"]
    of_bench = ("gpu_power_limit", "seconds")
    return {key: value for key, value in recorded.items() if key not in of_bench} | {"warnings": [warning]}


MOVED = {
    "flip_rate": 0.048,
    "text_flip_rate": 0.031,
    "cosine_mean": 0.9998,
    "cosine_p01": 0.9994,
    "text_cosine_mean": 0.9999,
    "text_cosine_p01": 0.9997,
    "r10_lost": 0.0048,
}
SHIP = {"precision": "int8", "backend": "onnxruntime"}
VERDICT = {
    "schema": 1,
    "backend": "onnxruntime",
    "batch": 1,
    "threads": 2,
    "data": "demo:val",
    "pairs": 512,
    "texts": 498,
    "max_drop": 0.01,
    "max_flips": None,
    "sanity": [{"check": "alike", "passed": True, "value": 1e-6, "limit": 1e-4, "says": "largest difference"}],
    "rows": [row("fp32", None, None), row("fp16", 0.93, MOVED), row("int8", 1.10, MOVED)],
    "missing": {"fp16 on openvino": "no such kernel"},
    "candidates": [
        {
            "name": name,
            "says": says,
            "activations": "unsigned",
            "kept": [],
            "image_p50_ms": ms,
            "against_fp32": ms and ratio(1.1),
            "drift": MOVED if ms else None,
            "within_budget": bool(ms) or None,
            "finalist": bool(ms),
            "failed": None if ms else "not loaded",
        }
        for name, says, ms in (("all", "all Linears", 1.19), ("mlp", "the MLP only", None))
    ],
    "recommendation": {
        "int8": True,
        **SHIP,
        "files": ["image-int8-unsigned.onnx", "text-int8-unsigned.onnx"],
        "candidate": "all",
        "sentence": SAID,
        "to_beat": {"precision": "fp32", "backend": "onnxruntime"},
        "obstacles": [],
    },
    "environment": environment("The machine was noisy."),
}


def verdict_artifact(path: Path, document: dict[str, Any]) -> Artifact:
    plain = onnx_artifact(path, ROWS["int8"], [graph("image", "int8", "unsigned"), graph("text", "int8", "unsigned")])
    files = {name: plain.file(name).read_bytes() for name in plain.manifest.files}
    with Artifact.create(path, kind=Kind.ONNX, stage="verdict", key="v") as draft:
        for name, content in {**files, "verdict.json": json.dumps(document).encode()}.items():
            (draft.path / name).write_bytes(content)
        draft.graphs += plain.manifest.graphs
        draft.facts = plain.manifest.facts
    return Artifact.open(path)


def text_of(view: object) -> str:
    stream = io.StringIO()
    Console(width=200, file=stream).print(view)
    return stream.getvalue()


def test_the_verdict_has_a_section_a_table_and_its_sentence(tmp_path: Path) -> None:
    verdict_artifact(tmp_path / "verdict", VERDICT)
    made = standalone.report([tmp_path])
    page, markdown = (made.file(name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    document, view = show_report.report_summary(made)
    assert [found["name"] for found in document["verdicts"]] == ["verdict"]
    assert '<section id="verdict"' in page and "INT8 is recommended on ONNX Runtime" in page
    assert SAID.replace("<", "&lt;").replace(">", "&gt;") in page and "<b>here</b>" not in page
    for shown in ("1.31 ms", "1.10×", "1.08× – 1.12×", "22.1 MB", "4.8%", "0.9998", "ship this", "no such kernel"):
        assert shown in page, shown
    assert "the MLP only" in page and "not loaded" in page and "The machine was noisy." in page
    assert f"verdict: {SAID}" in markdown and "| INT8 | 22.1 MB | 1.31 ms | 1.10× (1.08× to 1.12×) |" in markdown
    assert f"verdict: {SAID}" in text_of(view)


def test_a_verdict_is_a_row_only_where_it_was_measured(tmp_path: Path) -> None:
    artifacts = make_run(tmp_path)
    made = verdict_artifact(tmp_path / "verdict", VERDICT)
    names = [row.row for row in joined("t", [*artifacts, made], tmp_path).rows]
    assert names == list(ROWS), "the headlines are about the last row, which must not be one without figures"
    bench = measurement(tmp_path / "bench-2", "bench", {**bench_document(), "rows": []}, [made])
    document = joined("t", [*artifacts, made, bench], tmp_path)
    assert [row.row for row in document.rows] == [*ROWS, "verdict"]
    assert [verdict.name for verdict in document.verdicts] == ["verdict"]


def test_without_a_verdict_there_is_no_section(tmp_path: Path) -> None:
    make_run(tmp_path)
    made = standalone.report([tmp_path])
    document = json.loads(made.file("report.json").read_text())
    assert document["verdicts"] == [] and 'id="verdict"' not in made.file("report.html").read_text(encoding="utf-8")


def test_a_damaged_document_is_named(tmp_path: Path) -> None:
    verdict_artifact(tmp_path / "verdict", {"rows": "none"})
    with pytest.raises(CorruptInputError, match=r"verdict\.json has no 'backend'") as caught:
        standalone.report([tmp_path])
    assert caught.value.hint == "run verdict again"


def test_the_console_shows_what_the_document_says(tmp_path: Path) -> None:
    document, view = show_measure.verdict_summary(verdict_artifact(tmp_path / "verdict", VERDICT))
    assert isinstance(document, dict) and document["verdict"]["recommendation"]["sentence"] == SAID
    shown = text_of(view)
    for text in ("INT8", "1.08–1.12", "0.5%", SAID, "not measured: fp16 on openvino: no such kernel", "noisy"):
        assert text in shown, text
