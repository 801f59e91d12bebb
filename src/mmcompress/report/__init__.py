"""The report: what each step cost in accuracy and bought in speed, joined from what the other stages measured.

`joined` is a pure function from artifacts and the documents of bench and drift to one JSON document; the page, the
Markdown and the console are views of that document and compute nothing. A figure that nobody measured is None here and
a dash there, and the report says why. Latencies of different backends are never mixed in one ratio without naming both.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcompress.artifact import Artifact, Graph, Kind, environment
from mmcompress.config import ReportConfig
from mmcompress.errors import CorruptInputError
from mmcompress.pipeline import Job
from mmcompress.report.formats import BACKENDS, significant

METRICS = (
    *("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10"),
    *("top1", "cosine_mean", "cosine_p01", "text_cosine_mean", "flip_rate"),
)
LATENCY = (
    *("backend", "device", "precision", "activations", "batch", "threads", "p50_ms", "p90_ms", "p99_ms", "mean_ms"),
    *("samples", "throughput_ips", "peak_bytes", "energy_mj", "throttled"),
)
ACCURACY = "i2t_r10"
"""The figure that the ledger, the costs and the plot go by."""
GPU_BACKENDS = ("tensorrt", "tensorrt-rtx")
Document = dict[str, Any]


def report(job: Job[ReportConfig]) -> None:
    """Stage: write report.json, report.html and report.md."""
    from mmcompress.report.pages import html_page, markdown_page

    document = joined(job.config.title, job.gathered, job.draft.path)
    files = {
        "report.json": json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "report.html": html_page(document),
        "report.md": markdown_page(document),
    }
    for name, text in files.items():
        (job.draft.path / name).write_text(text, encoding="utf-8")


def joined(title: str, gathered: Sequence[Artifact], folder: Path) -> Document:
    """One document of all rows in the order of `gathered`; artifacts are named relative to `folder`."""
    benches = _measurements(gathered, "bench")
    drifts = _measurements(gathered, "drift")
    main = drifts[0] if drifts else None
    rows = [_row(artifact, main, benches, folder) for artifact in gathered if artifact.manifest.kind is Kind.ONNX]
    engines = [_engine(artifact, folder) for artifact in gathered if artifact.manifest.kind is Kind.ENGINE]
    ratios = [ratio for bench in benches for ratio in bench.get("ratios", [])]
    document: Document = {
        "schema": 1,
        "title": title,
        "test": _test(main),
        "rows": rows,
        "steps": [_step(before, after) for before, after in itertools.pairwise(rows)],
        "ratios": ratios,
        "other_tests": [{**_test(drift), "rows": _other_rows(drift)} for drift in drifts[1:]],
        "engines": engines,
        "gates": [],
        "environment": {**environment(), **(benches[0].get("environment", {}) if benches else {})},
    }
    return {**document, "headlines": headlines(document), "not_measured": not_measured(document)}


def _measurements(gathered: Iterable[Artifact], stage: str) -> list[Document]:
    """The documents that a measuring stage wrote, in order."""
    found: list[Document] = []
    for artifact in gathered:
        if artifact.manifest.kind is Kind.REPORT and artifact.manifest.stage == stage:
            path = artifact.file(f"{stage}.json")
            document = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(document, dict) or not isinstance(document.get("rows"), list):
                raise CorruptInputError(f"{path} has no list of rows", f"run {stage} again")
            found.append({"name": artifact.path.name, **document})
    return found


def _test(drift: Document | None) -> Document:
    first = drift["rows"][0] if drift and drift["rows"] else {}
    return {
        "name": drift["name"] if drift else None,
        "data": drift["test"] if drift else None,
        "backend": drift["backend"] if drift else None,
        "images": first.get("images"),
        "candidates": first.get("candidates"),
        "unseen_images": first.get("unseen_images"),
    }


def _row(artifact: Artifact, drift: Document | None, benches: Sequence[Document], folder: Path) -> Document:
    name, facts = artifact.path.name, artifact.manifest.facts
    measured = _named(drift, name)
    graphs = artifact.manifest.graphs
    precision = measured.get("precision") or _smallest_precision(graphs)
    latency = [_latency(entry) for bench in benches for entry in _named(bench, name).get("latency", [])]
    fastest = _fastest(latency, precision)
    return {
        "stage": name,
        "artifact": Path(os.path.relpath(artifact.path, folder)).as_posix(),
        "digest": artifact.digest,
        "precision": precision,
        "params": facts.get("params"),
        "macs": facts.get("macs"),
        "bytes": delivered_bytes(artifact, precision, fastest["activations"] if fastest else None),
        "against": measured.get("against"),
        "metrics": _metrics(measured.get("metrics")),
        "unseen": _metrics(measured["unseen"]) if measured.get("unseen") else None,
        "unseen_images": measured.get("unseen_images"),
        "int8_against_fp32": measured.get("int8_against_fp32"),
        "latency": latency,
        "fastest": fastest,
    }


def _named(document: Document | None, row: str) -> Document:
    rows = document["rows"] if document else []
    return next((dict(entry) for entry in rows if entry.get("row") == row), {})


def _metrics(measured: Mapping[str, Any] | None) -> Document:
    found = measured or {}
    return {**{key: found.get(key) for key in METRICS}, "ci95": dict(found.get("ci95") or {})}


def _latency(entry: Mapping[str, Any]) -> Document:
    return {key: entry.get(key) for key in LATENCY}


def _smallest_precision(graphs: Sequence[Graph]) -> str | None:
    held = {graph.precision for graph in graphs}
    return next((precision for precision in ("int8", "fp32", "fp16") if precision in held), None)


def _fastest(latency: Sequence[Document], precision: str | None) -> Document | None:
    """The backend with the lowest median at batch 1, in the row's own precision."""
    fitting = [e for e in latency if e["batch"] == 1 and e["precision"] == precision and e["p50_ms"] is not None]
    return min(fitting, key=lambda entry: entry["p50_ms"], default=None)


def delivered_bytes(artifact: Artifact, precision: str | None, activations: str | None) -> int | None:
    """Both towers' files in one precision, external weights included; of two INT8 files the one that was run."""
    graphs = [graph for graph in artifact.manifest.graphs if graph.precision == precision]
    kinds = {graph.activations for graph in graphs}
    wanted = next((kind for kind in (activations, "unsigned", "signed", "float") if kind in kinds), None)
    names = {graph.file for graph in graphs if graph.activations == wanted}
    files = artifact.manifest.files
    sizes = [entry.bytes for file, entry in files.items() if any(file.startswith(name) for name in names)]
    return sum(sizes) if sizes else None


def _step(before: Document, after: Document) -> Document:
    """What one step cost in accuracy and bought in size and speed; ratios are before over after."""
    a, b = before["metrics"][ACCURACY], after["metrics"][ACCURACY]
    kept = [before["fastest"], after["fastest"]]
    medians = [None if entry is None else entry["p50_ms"] for entry in kept]
    return {
        "from": before["stage"],
        "to": after["stage"],
        "r10_change": None if a is None or b is None else b - a,
        "params_ratio": _ratio(before["params"], after["params"]),
        "macs_ratio": _ratio(before["macs"], after["macs"]),
        "bytes_ratio": _ratio(before["bytes"], after["bytes"]),
        "latency_ratio": _ratio(*medians),
        "backends": [None if entry is None else entry["backend"] for entry in kept],
    }


def _ratio(before: float | None, after: float | None) -> float | None:
    return before / after if before is not None and after else None


def _other_rows(drift: Document) -> list[Document]:
    return [
        {
            "stage": entry["row"],
            "metrics": _metrics(entry.get("metrics")),
            "unseen": _metrics(entry["unseen"]) if entry.get("unseen") else None,
        }
        for entry in drift["rows"]
    ]


def _engine(artifact: Artifact, folder: Path) -> Document:
    """An engine artifact with the audit of each of its files."""
    facts, files = artifact.manifest.facts, artifact.manifest.files
    audits = facts.get("audit") or {}
    return {
        "stage": artifact.path.name,
        "artifact": Path(os.path.relpath(artifact.path, folder)).as_posix(),
        "backend": facts.get("backend"),
        "version": facts.get("tensorrt_version"),
        "batches": facts.get("batches"),
        "files": [
            {
                "file": graph.file,
                "tower": graph.tower,
                "precision": graph.precision,
                "target": graph.target,
                "bytes": files[graph.file].bytes,
                "audit": audits.get(graph.file),
            }
            for graph in artifact.manifest.graphs
        ],
    }


def headlines(document: Document) -> list[str]:
    """The sentences that a reader takes away, each from figures of the document."""
    rows = document["rows"]
    if len(rows) < 2:
        return []
    first, last = rows[0], rows[-1]
    lines = [_ratio_sentence(ratio) for ratio in headline_ratios(document)]
    a, b = first["metrics"][ACCURACY], last["metrics"][ACCURACY]
    if a and b is not None:
        shares = ((last["macs"], first["macs"], "image MACs"), (last["bytes"], first["bytes"], "bytes"))
        bought = [f"{100 * share:.0f}% of its {what}" for x, y, what in shares if (share := _ratio(x, y)) is not None]
        kept = f"{_run_start(last['stage'])} keeps {100 * b / a:.1f}% of {first['stage']}'s R@10"
        lines.append(f"{kept}{', at ' + ' and '.join(bought) if bought else ''}.")
    return lines


def headline_ratios(document: Document) -> list[Document]:
    """The last row on each backend against the first row, at batch 1, from one interleaved run; fastest first."""
    ends = (document["rows"][-1]["stage"], document["rows"][0]["stage"])
    found = [r for r in document["ratios"] if (r["numerator"]["row"], r["denominator"]["row"]) == ends]
    return sorted((r for r in found if r["batch"] == 1), key=lambda ratio: -float(ratio["speedup"]))


def _ratio_sentence(ratio: Mapping[str, Any]) -> str:
    low, high = ratio["ci95"]
    speed = f"{_run_name(ratio['numerator'])} is {significant(ratio['speedup'])} times as fast as"
    interval = f"(batch {ratio['batch']}, 95% interval {significant(low)} to {significant(high)})"
    return f"{speed} {_run_name(ratio['denominator'])} {interval}."


def _run_name(run: Mapping[str, Any]) -> str:
    """`INT8 on OpenVINO`, or `the teacher in FP32 on ONNX Runtime` where the row is more than its precision."""
    article = "the " if run["row"] == "teacher" else ""
    model = "" if run["row"] == run["precision"] else f"{article}{run['row']} in "
    return f"{model}{run['precision'].upper()} on {BACKENDS.get(run['backend'], run['backend'])}"


def _run_start(row: str) -> str:
    return row.upper() if row in ("int8", "fp16", "fp32") else row


def not_measured(document: Document) -> list[str]:
    """What a reader might look for and will not find, with the reason as far as it is known."""
    rows, found = document["rows"], []
    entries = [entry for row in rows for entry in row["latency"]]
    without = [row["stage"] for row in rows if row["metrics"][ACCURACY] is None]
    if without:
        found.append(f"Accuracy of {', '.join(without)}: no drift measurement has these rows.")
    without = [row["stage"] for row in rows if not row["latency"]]
    if without:
        found.append(f"Latency of {', '.join(without)}: no bench measurement has these rows.")
    if entries and all(entry["energy_mj"] is None for entry in entries):
        found.append("Energy: no power sensor was read.")
    if entries and all(entry["peak_bytes"] is None for entry in entries):
        found.append("Peak memory.")
    ran = any(entry["backend"] in GPU_BACKENDS for entry in entries)
    if document["engines"] and not ran:
        targets = sorted({file["target"] or "this GPU" for engine in document["engines"] for file in engine["files"]})
        found.append(
            f"Latency and accuracy of the TensorRT engines ({', '.join(targets)}): they were built and their layers "
            "audited, but no NVIDIA GPU ran them."
        )
    elif not ran:
        found.append("NVIDIA GPUs: no TensorRT engine is part of this run.")
    if entries and all(entry["throttled"] is None for entry in entries):
        found.append("Throttling: this system does not count it.")
    if any(entry["throttled"] for entry in entries):
        found.append(
            "Undisturbed latency of the entries marked as throttled: the processor's clock fell while they ran."
        )
    return found
