"""What the measuring commands print: a table of the document that the stage wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from rich.console import Group, RenderableType
from rich.text import Text

from mmcompress.artifact import Artifact
from mmcompress.cli.console import Summary, artifact_summary, empty_table
from mmcompress.formats import (
    ABSENT,
    BACKENDS,
    cosine,
    count,
    megabytes,
    milliseconds,
    percent,
    percent_interval,
    times,
)


def bench_summary(artifact: Artifact) -> Summary:
    """Latencies of a bench, with what the machine did to them."""
    document, view = artifact_summary(artifact)
    found = read_json(artifact.file("bench.json"), AGAIN)
    table = empty_table(
        "row", "on", ">batch", ">threads", ">streams", ">p50", ">p95", ">p99", ">cv", ">images/s", ">ceiling", ""
    )
    for row in found["rows"]:
        for entry in row["latency"]:
            table.add_row(
                row["row"],
                f"{entry['backend']} {entry['precision']}",
                *("" if entry[key] is None else str(entry[key]) for key in ("batch", "threads", "streams")),
                *(milliseconds(entry[key]) for key in ("p50_ms", "p95_ms", "p99_ms")),
                percent(entry["cv"]),
                f"{entry['throughput_ips']:,.0f}",
                percent(entry["ceiling_share"]),
                " ".join(word for word in ("noisy", "throttled") if entry[word]),
            )
    warnings = [Text(f"note: {text}") for text in found["environment"]["warnings"]]
    return document, Group(table, *warnings, view)


def drift_summary(artifact: Artifact) -> Summary:
    """What drift measured, a line for each row."""
    document = read_json(artifact.file("drift.json"), AGAIN)
    table = empty_table(
        "row", ">top-1", ">R@10", "95%", ">change", ">cosine", ">worst", ">flips", ">lost", ">old index"
    )
    for row in document["rows"]:
        metrics, old = row["metrics"], row["metrics"]["old_index"]
        change = metrics["r10_change"]
        table.add_row(
            row["row"],
            percent(metrics["top1"]),
            percent(metrics["i2t_r10"]),
            percent_interval(metrics["ci95"].get("i2t_r10")),
            f"{100 * change['i2t']:+.1f}{'' if change['significant'] else ' n.s.'}" if change else "",
            cosine(metrics["cosine_mean"]),
            cosine(metrics["cosine_worst"]),
            percent(metrics["flip_rate"]),
            percent(metrics["flips_lost"]),
            percent(old["i2t_r10"] if old else None),
        )
    notes = [
        f"{r['row']}: {r['collapsed']}, so its figures say nothing" for r in document["rows"] if r.get("collapsed")
    ]
    about = f"{artifact.path}  against {document['rows'][0]['row']}, {count(document['rows'][0]['images'])} images"
    made, _ = artifact_summary(artifact)
    return {**cast(dict[str, Any], made), "drift": document}, Group(table, *map(Text, notes), Text(about))


def bisect_summary(artifact: Artifact, most: int = 12) -> Summary:
    """The worst modules, and which to keep."""
    document = read_json(artifact.file("bisect.json"), AGAIN)
    table = empty_table("module", ">excess, dB", ">local SQNR, dB", ">carried, dB", ">share of noise")
    for found in document["modules"][:most]:
        figures = [f"{found[key]:.1f}" for key in ("excess_db", "local_sqnr_db", "carried_sqnr_db")]
        table.add_row(found["module"], *figures, percent(found["share"]))
    names = ", ".join(document["keep"]) or "none: no module is noisier than its precision makes it"
    made, _ = artifact_summary(artifact)
    return {**cast(dict[str, Any], made), "bisect": document}, Group(
        table, Text(f"keep in higher precision: {names}"), Text(str(artifact.path))
    )


def verdict_summary(artifact: Artifact) -> Summary:
    """FP32, FP16 and INT8 side by side, and which to ship."""
    document = read_json(artifact.file("verdict.json"), AGAIN)
    table = empty_table(
        "precision", "on", ">size", ">image, p50", ">speed-up", "95%", ">text, p50", ">speed-up", ">R@10 lost", ">flips"
    )
    for row in document["rows"]:
        ratios = [row[tower]["against_fastest_float"] for tower in ("image", "text")]
        moved = row["drift"] or {}
        table.add_row(
            row["precision"].upper(),
            BACKENDS[row["backend"]],
            megabytes(row["bytes"]),
            milliseconds(row["image"]["p50_ms"]),
            times(ratios[0] and ratios[0]["speedup"]),
            "–".join(f"{end:.2f}" for end in ratios[0]["ci95"]) if ratios[0] else "",
            milliseconds(row["text"]["p50_ms"]),
            times(ratios[1] and ratios[1]["speedup"]),
            percent(moved.get("r10_lost")),
            percent(moved.get("flip_rate")),
        )
    notes = [f"not measured: {what}: {reason}" for what, reason in document["missing"].items()]
    notes += [f"note: {text}" for text in document["environment"]["warnings"]]
    made, about = artifact_summary(artifact)
    said = document["recommendation"]["sentence"]
    return {**cast(dict[str, Any], made), "verdict": document}, Group(table, Text(said), *map(Text, notes), about)


def comparison_summary(found: Mapping[str, Any]) -> Summary:
    """What `compare` found: one line a pair of measurements, and what to know about it; or one a range."""
    if "ranges" in found:
        return dict(found), _calibrations_view(found)
    table = empty_table("row", "on", ">batch", ">A", ">B", ">B is faster by", "95%", "", ">ceiling, A", ">B")
    for pair in found["comparisons"]:
        a, b = pair["a"], pair["b"]
        names = dict.fromkeys(f"{side['row']} {side['precision']}" for side in (a, b))
        table.add_row(
            " / ".join(names),
            " / ".join(dict.fromkeys((a["backend"], b["backend"]))),
            str(pair["batch"]),
            milliseconds(a["p50_ms"]),
            milliseconds(b["p50_ms"]),
            f"{pair['speedup']:.3f} times",
            f"{pair['ci95'][0]:.3f}–{pair['ci95'][1]:.3f}",
            "significant" if pair["significant"] else "not significant",
            percent(a.get("ceiling_share")),
            percent(b.get("ceiling_share")),
        )
    peaks = [
        f"ceiling: {c['backend']} {c['precision']}, {c['threads']} threads: {c['gmacs_per_s']:.0f} GMAC/s"
        for c in found["ceiling"]
    ]
    return dict(found), Group(table, *map(Text, peaks), *(Text(f"note: {note}") for note in found["notes"]))


def _calibrations_view(found: Mapping[str, Any]) -> RenderableType:
    """The ranges of two calibrations, those that differ most first."""
    table = empty_table("activation", ">A from", ">to", "by", ">B from", ">to", "by", ">B's step is")
    for row in found["ranges"]:
        cells = []
        for side, method in zip((row["a"], row["b"]), row["methods"], strict=True):
            cells += [f"{side['low']:.3g}", f"{side['high']:.3g}"] if side else [ABSENT, ABSENT]
            cells.append(method or "")
        table.add_row(row["module"], *cells, ABSENT if row["ratio"] is None else f"{row['ratio']:.3f} times")
    drifts = [
        f"drift of {letter}: "
        + ", ".join(f"{kind} {tower} {value:.3g}" for kind, towers in drift.items() for tower, value in towers.items())
        for letter, drift in zip("AB", found["drift"], strict=True)
        if drift
    ]
    return Group(table, *map(Text, drifts))
