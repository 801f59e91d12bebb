"""Latency as charts: bars with their tails, and how the calls of each row are spread around their median."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from html import escape

from mmcompress.formats import BACKENDS, milliseconds, percent
from mmcompress.report.axes import (
    CHARACTER,
    WIDTH,
    grid_x,
    linear_ticks,
    outline,
    series_class,
    significant_tick,
    svg,
    x_title,
)
from mmcompress.report.row import MachineLatency, Row
from mmcompress.report.rows import plain

PANEL = (250.0, 128.0)
SPAN = (0.6, 1.7)
"""The part of the distributions that is drawn, as multiples of the median."""


def latency_bars(rows: Sequence[Row], batch: int, machine: str) -> str:
    """One bar a row, precision and backend: up to the median, then a line to p99 with a tick at p90."""
    entries = [
        (row.row, entry) for row in rows for entry in row.latency if plain(entry, batch) and entry.machine == machine
    ]
    if not entries:
        return ""
    several = len({entry.threads for _, entry in entries}) > 1
    names = [(row, run_name(entry, several)) for row, entry in entries]
    row_width = CHARACTER * 1.1 * max(len(row) for row, _ in names) + 14
    left = row_width + CHARACTER * max(len(run) for _, run in names) + 14
    right, top, step = WIDTH - 76, 12.0, 22.0
    slowest = max(entry.p50_ms for _, entry in entries)
    # One stalled run must not squeeze every bar: lines are cut at twice the slowest median.
    limit = min(max(entry.p99_ms for _, entry in entries), 2 * slowest)
    ticks = linear_ticks(0.0, limit, 6)
    bottom = top + step * len(entries) + 10 * (len(rows) - 1)

    def x(latency_ms: float) -> float:
        return left + (right - left) * min(latency_ms, ticks[-1]) / ticks[-1]

    parts = [grid_x([(x(t), significant_tick(t)) for t in ticks], top - 4, bottom)]
    y, previous = top + step / 2, ""
    for (row, run), (_, entry) in zip(names, entries, strict=True):
        y += 10 if previous and row != previous else 0
        if row != previous:
            parts.append(f'<text class="name" x="0" y="{y + 4:.1f}">{escape(row)}</text>')
        parts.append(f'<text class="muted" x="{row_width:.1f}" y="{y + 4:.1f}">{escape(run)}</text>')
        parts.append(_bar(entry, x, y, left))
        previous, y = row, y + step
    parts.append(x_title(f"latency at batch {batch}, ms", (left + right) / 2, bottom + 38))
    title = f"Latency at batch {batch} on {machine}: median, p90 and p99 of each row"
    told = "; ".join(f"{row}, {run}: {_told(entry)}" for (row, run), (_, entry) in zip(names, entries, strict=True))
    return svg("".join(parts), (WIDTH, bottom + 48), title, told)


def run_name(entry: MachineLatency, threads: bool = False) -> str:
    """`int8, OpenVINO`, with the threads where they differ."""
    backend = BACKENDS.get(entry.backend, entry.backend)
    return f"{entry.precision}, {backend}" + (f", {entry.threads} thr." if threads else "")


def _told(entry: MachineLatency) -> str:
    return f"p50 {milliseconds(entry.p50_ms)}, p90 {milliseconds(entry.p90_ms)}, p99 {milliseconds(entry.p99_ms)}"


def _bar(entry: MachineLatency, x: Callable[[float], float], y: float, left: float) -> str:
    p50, p90, p99 = x(entry.p50_ms), x(entry.p90_ms), x(entry.p99_ms)
    cut = x(float("inf")) <= p99
    end = f'<path d="M{p99 - 5:.1f} {y - 4:.1f}l5 4-5 4"/>' if cut else f'<path d="M{p99:.1f} {y - 3:.1f}v6"/>'
    return (
        f'<g class="bar {series_class(entry.backend)}"><title>{_told(entry)}</title>'
        f'<rect x="{left:.1f}" y="{y - 6:.1f}" width="{max(p50 - left, 1):.1f}" height="12"/>'
        f'<g class="tail"><path d="M{p50:.1f} {y:.1f}H{p99:.1f}M{p90:.1f} {y - 4:.1f}v8"/>{end}</g>'
        f'<text x="{WIDTH:.0f}" y="{y + 4:.1f}" text-anchor="end">{milliseconds(entry.p50_ms)}</text></g>'
    )


def distributions(rows: Sequence[Row]) -> list[str]:
    """A panel for each row's fastest latency: single calls around their median, all on one relative scale."""
    return [_distribution(row.row, row.fastest) for row in rows if row.fastest and sum(row.fastest.histogram.counts)]


def _distribution(row: str, entry: MachineLatency) -> str:
    left, right, top, bottom = 8.0, PANEL[0] - 8, 36.0, PANEL[1] - 22
    median, counts = entry.p50_ms, entry.histogram.counts

    def x(share: float) -> float:
        return left + (right - left) * (min(max(share, SPAN[0]), SPAN[1]) - SPAN[0]) / (SPAN[1] - SPAN[0])

    ticks = [(x(share), f"{share:g}×") for share in (0.75, 1.0, 1.25, 1.5)]
    edges = [x(edge / median) for edge in entry.histogram.edges_ms]
    # Bins that lie beyond the drawn span have no width and no height.
    widths = [max(after - before, 0.0) for before, after in itertools.pairwise(edges)]
    shown = [n if w > 0.05 else 0 for n, w in zip(counts, widths, strict=True)]
    heights = [(bottom - top) * n / max(*shown, 1) for n in shown]
    told = f"{_told(entry)}, coefficient of variation {percent(entry.cv)}"
    parts = [
        f'<text class="name" x="{left}" y="13">{escape(row)}</text>',
        f'<text class="muted" x="{right}" y="13" text-anchor="end">{milliseconds(median)}</text>',
        f'<text class="muted" x="{left}" y="27">{escape(run_name(entry))}</text>',
        f'<text class="muted" x="{right}" y="27" text-anchor="end">CV {percent(entry.cv)}</text>',
        grid_x(ticks, top, bottom),
        f'<path class="area {series_class(entry.backend)}" d="{outline(edges, heights, bottom)}">'
        f"<title>{told}</title></path>",
        f'<path class="axis" d="M{left} {bottom:.1f}H{right}"/>',
    ]
    parts += [
        f'<path class="quantile" d="M{x(tail_ms / median):.1f} {top + 4:.1f}V{bottom:.1f}"/>'
        for tail_ms in (entry.p95_ms, entry.p99_ms)
        if tail_ms / median < SPAN[1]
    ]
    return svg("".join(parts), PANEL, f"Spread of single calls: {row}, {run_name(entry)}", told, "chart panel")
