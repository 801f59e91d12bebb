"""Check the demo's report against what the project promises: `python tests/check_demo_report.py runs/demo/report`.

Only what is the same on every machine is held against a limit. Latency is printed, and has to be there, since a shared
machine cannot promise it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROWS = ["teacher", "distilled", "pruned", "recovered", "int8"]
Check = tuple[str, float | None, str, float]
"""what, its value, `>=` or `<=`, the limit"""


def checks(report: dict[str, Any]) -> Iterator[Check]:
    """Every bar with the figure that it is held against."""
    rows = {row["row"]: row for row in report["rows"]}
    r10 = {name: row["metrics"]["i2t_r10"] for name, row in rows.items()}
    macs = {name: row["macs"] for name, row in rows.items()}
    int8 = rows["int8"]["int8_against_fp32"] or {}
    yield "teacher: R@10", r10["teacher"], ">=", 0.40
    yield "distilled: share of the teacher's R@10", ratio(r10["distilled"], r10["teacher"]), ">=", 0.90
    yield "distilled: share of the teacher's image MACs", ratio(macs["distilled"], macs["teacher"]), "<=", 0.25
    yield "recovered: share of the student's R@10", ratio(r10["recovered"], r10["distilled"]), ">=", 0.95
    yield "recovered: share of the student's image MACs", ratio(macs["recovered"], macs["distilled"]), "<=", 0.60
    yield "int8: R@10 lost to its own FP32", int8.get("r10_drop"), "<=", 0.01
    yield "int8: mean cosine to its own FP32", int8.get("cosine_mean"), ">=", 0.999
    yield "int8: top-1 answers that flip", int8.get("flip_rate"), "<=", 0.05
    yield "candidates", report["test"]["candidates"], ">=", 1852
    for name in ROWS:
        yield f"{name}: bytes", rows[name]["bytes"], ">=", 1
        yield f"{name}: latencies", len(rows[name]["latency"]), ">=", 1


def ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def failures(report: dict[str, Any]) -> list[str]:
    """What does not hold; every check is printed."""
    found = [row["row"] for row in report["rows"]]
    if found != ROWS:
        return [f"rows are {found}, expected {ROWS}"]
    failed = []
    for what, value, sign, limit in checks(report):
        holds = value is not None and (value >= limit if sign == ">=" else value <= limit)
        line = f"{what}: {'not measured' if value is None else f'{value:,.4g}'} (bar: {sign} {limit:,})"
        print(f"{'ok  ' if holds else 'FAIL'} {line}")
        failed += [] if holds else [line]
    return failed


def main() -> None:
    folder = Path(sys.argv[1])
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    failed = failures(report)
    print("\n".join(report["headlines"]))
    for name in ("report.html", "report.md"):
        if not (folder / name).read_text(encoding="utf-8").strip():
            failed.append(f"{name} is empty")
    sys.exit("\n".join(["the demo misses:", *failed]) if failed else 0)


if __name__ == "__main__":
    main()
