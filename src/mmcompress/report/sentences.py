"""What the report says in words: headlines, warnings, and what was not measured. Each from figures of the document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmcompress.formats import BACKENDS, megabytes, percent, significant
from mmcompress.report.measured import Document
from mmcompress.report.rows import ACCURACY, ratio

GPU_BACKENDS = ("tensorrt", "tensorrt-rtx")


def headlines(document: Document) -> list[str]:
    """The sentences that a reader takes away."""
    rows = document["rows"]
    if len(rows) < 2:
        return []
    first, last = rows[0], rows[-1]
    lines = [_ratio_sentence(found) for found in headline_ratios(document)]
    a, b = first["metrics"][ACCURACY], last["metrics"][ACCURACY]
    if meaningless := collapse_warnings([first, last]):
        lines += meaningless
    elif a and b is not None:
        shares = ((last["macs"], first["macs"], "image MACs"), (last["bytes"], first["bytes"], "bytes"))
        bought = [f"{100 * share:.0f}% of its {what}" for x, y, what in shares if (share := ratio(x, y)) is not None]
        kept = f"{_run_start(last['stage'])} keeps {100 * b / a:.1f}% of {first['stage']}'s R@10"
        lines.append(f"{kept}{', at ' + ' and '.join(bought) if bought else ''}.")
    return lines


def collapse_warnings(rows: Sequence[Document]) -> list[str]:
    """What says that a row's accuracy means nothing, as drift noted it."""
    return [f"{row['stage']}: {row['collapsed']}, so its accuracy says nothing." for row in rows if row["collapsed"]]


def highlights(document: Document) -> list[Document]:
    """The few figures at the top of the page: a name, a value with its kind, an interval, and what it compares."""
    rows = document["rows"]
    if len(rows) < 2:
        return []
    first, last = rows[0], rows[-1]
    found: list[Document] = []
    for best in headline_ratios(document)[:1]:
        note = f"{_run_name(best['numerator'])} against {_run_name(best['denominator'])}"
        found.append(_highlight("faster at batch 1", best["speedup"], "times", note, best["ci95"]))
    a, b = first["metrics"][ACCURACY], last["metrics"][ACCURACY]
    if a and b is not None and not collapse_warnings([first, last]):
        found.append(_highlight("of R@10 kept", b / a, "percent", f"{percent(b)} after {percent(a)}"))
    if (smaller := ratio(first["bytes"], last["bytes"])) is not None:
        note = f"{megabytes(last['bytes'])} after {megabytes(first['bytes'])}"
        found.append(_highlight("smaller", smaller, "times", note))
    if (quantized := last["int8_against_fp32"]) and quantized.get("flip_rate") is not None:
        note = f"best answers that INT8 changes, against {quantized['row']}"
        found.append(_highlight("flips by INT8", quantized["flip_rate"], "percent", note))
    elif last["metrics"]["flip_rate"] is not None:
        note = f"best answers that differ from {first['stage']}'s"
        found.append(_highlight("flips", last["metrics"]["flip_rate"], "percent", note))
    return found


def _highlight(name: str, value: float, kind: str, note: str, ci95: object = None) -> Document:
    return {"name": name, "value": value, "kind": kind, "note": note, "ci95": ci95}


def headline_ratios(document: Document) -> list[Document]:
    """The last row on each backend against the first row, at batch 1, from one interleaved run; fastest first.

    Of several machines the first one's.
    """
    ends = (document["rows"][-1]["stage"], document["rows"][0]["stage"])
    main = document["machines"][0]["id"] if document["machines"] else None
    found = [r for r in document["ratios"] if (r["numerator"]["row"], r["denominator"]["row"]) == ends]
    plain = [r for r in found if r["batch"] == 1 and r["machine"] == main]
    return sorted(plain, key=lambda one: -float(one["speedup"]))


def _ratio_sentence(found: Mapping[str, Any]) -> str:
    low, high = found["ci95"]
    speed = f"{_run_name(found['numerator'])} is {significant(found['speedup'])} times as fast as"
    interval = f"(batch {found['batch']}, 95% interval {significant(low)} to {significant(high)})"
    return f"{speed} {_run_name(found['denominator'])} {interval}."


def _run_name(run: Mapping[str, Any]) -> str:
    """`INT8 on OpenVINO`, or `the teacher in FP32 on ONNX Runtime` where the row is more than its precision."""
    article = "the " if run["row"] == "teacher" else ""
    model = "" if run["row"] == run["precision"] else f"{article}{run['row']} in "
    return f"{model}{run['precision'].upper()} on {BACKENDS.get(run['backend'], run['backend'])}"


def _run_start(row: str) -> str:
    return row.upper() if row in ("int8", "fp16", "fp32") else row


def machine_warnings(document: Document) -> list[str]:
    """What disturbed the latencies, machine by machine, as bench noted it."""
    found = []
    for machine in document["machines"]:
        where = f"{machine['id']}: " if len(document["machines"]) > 1 else ""
        environment = machine["environment"]
        noted, noise = environment.get("warnings") or [], environment.get("noise") or {}
        if noise.get("noisy") and not noted:
            reason = noise.get("reason") or "its timings vary more than they should"
            found.append(f"{where}The machine was noisy while latency was measured: {reason}.")
        found += [f"{where}{warning}" for warning in noted]
        entries = [e for row in document["rows"] for e in row["latency"] if e["machine"] == machine["id"]]
        if throttled := sum(bool(entry["throttled"]) for entry in entries):
            found.append(f"{where}The clock fell for heat during {throttled} of {len(entries)} latencies (throttled).")
    return list(dict.fromkeys(found))


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
    if entries and all(entry["ceiling_share"] is None for entry in entries):
        found.append("The share of the machine's peak arithmetic that is reached.")
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
    return found
