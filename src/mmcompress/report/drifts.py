"""Drift as charts: cosines to the reference, changes of R@10 with their intervals, and the classes that lost most."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from mmcompress.formats import MINUS, cosine, percent, points
from mmcompress.measure.drift.document import CosineHistogram
from mmcompress.report.axes import CHARACTER, WIDTH, grid_x, linear_ticks, outline, svg, x_title
from mmcompress.report.row import Row

PANEL = (250.0, 120.0)


def cosine_panels(rows: Sequence[Row]) -> list[str]:
    """A histogram for each row of the cosines between its image embeddings and the reference's, on one scale."""
    counted = [(row, row.cosine_histogram) for row in rows if row.cosine_histogram and sum(row.cosine_histogram.counts)]
    low = min((_first_edge(histogram) for _, histogram in counted), default=0.0)
    return [_cosine_panel(row, histogram, min(low, 0.99)) for row, histogram in counted]


def _first_edge(histogram: CosineHistogram) -> float:
    """Where the counts start."""
    return next(edge for edge, n in zip(histogram.edges, histogram.counts, strict=False) if n)


def _cosine_panel(row: Row, histogram: CosineHistogram, low: float) -> str:
    left, right, top, bottom = 10.0, PANEL[0] - 10, 34.0, PANEL[1] - 22

    def x(value: float) -> float:
        return left + (right - left) * (min(max(value, low), 1.0) - low) / (1.0 - low)

    heights = [(bottom - top) * n / max(histogram.counts) for n in histogram.counts]
    mean = row.metrics.cosine_mean
    told = f"mean {cosine(mean)}, 1st percentile {cosine(row.metrics.cosine_p01)}"
    ticks = [(x(tick), f"{tick:g}") for tick in linear_ticks(low, 1.0, 4) if low <= tick <= 1.0]
    parts = [
        f'<text class="name" x="{left}" y="13">{escape(row.row)}</text>',
        f'<text class="muted" x="{left}" y="27">{told}</text>',
        grid_x(ticks, top, bottom),
        f'<path class="area s0" d="{outline([x(edge) for edge in histogram.edges], heights, bottom)}"/>',
        f'<path class="axis" d="M{left} {bottom:.1f}H{right}"/>',
    ]
    if mean is not None:
        parts.append(f'<path class="quantile" d="M{x(mean):.1f} {top}V{bottom:.1f}"><title>mean</title></path>')
    title = f"Cosine of {row.row}'s image embeddings to {row.against or 'the reference'}'s"
    return svg("".join(parts), PANEL, title, told, "chart panel")


def changes(rows: Sequence[Row]) -> str:
    """R@10 of each row minus the reference's, with paired 95% intervals."""
    changed = [
        (row.row, row.r10_change, row.r10_change.ci95)
        for row in rows
        if row.row != row.against and row.r10_change and row.r10_change.ci95
    ]
    if not changed:
        return ""
    left, right, top, step = CHARACTER * max(len(name) for name, *_ in changed) + 24, WIDTH - 150, 10.0, 26.0
    limits = [100 * v for _, change, ci95 in changed for v in (*ci95, change.i2t, 0.0)]
    ticks = linear_ticks(min(limits), max(limits), 6)
    bottom = top + step * len(changed)

    def x(value: float) -> float:
        return left + (right - left) * (value - ticks[0]) / max(ticks[-1] - ticks[0], 1e-9)

    parts = [grid_x([(x(t), _signed(t)) for t in ticks], top, bottom)]
    parts.append(f'<path class="zero" d="M{x(0):.1f} {top}V{bottom:.1f}"/>')
    told = []
    for index, (name, change, ci95) in enumerate(changed):
        y, (low, high) = top + step * (index + 0.5), (100 * v for v in ci95)
        shown = f"{points(change.i2t)} ({points(ci95[0])} to {points(ci95[1])})"
        text = shown if change.significant else f"{shown}, not significant"
        told.append(f"{name} {text}")
        open_mark = "" if change.significant else " open"
        parts.append(
            f'<text class="name" x="0" y="{y + 4:.1f}">{escape(name)}</text>'
            f'<g class="estimate s0{open_mark}"><title>{escape(text)}</title>'
            f'<path d="M{x(low):.1f} {y:.1f}H{x(high):.1f}"/>'
            f'<circle cx="{x(100 * change.i2t):.1f}" cy="{y:.1f}" r="5"/></g>'
            f'<text class="muted" x="{WIDTH:.0f}" y="{y + 4:.1f}" text-anchor="end">{shown}</text>'
        )
    parts.append(x_title("change of R@10 against the reference, percentage points", (left + right) / 2, bottom + 38))
    title = "Change of R@10 of each row against the reference, with 95% intervals"
    return svg("".join(parts), (WIDTH, bottom + 46), title, "; ".join(told))


def _signed(value: float) -> str:
    return "0" if not value else f"{MINUS if value < 0 else '+'}{abs(value):g}"


def classes(row: Row, limit: int = 20) -> str:
    """The classes that lost most: a line from the reference's share of right answers to the row's."""
    worst = row.per_class[:limit]
    if not worst:
        return ""
    names = [_short(f"{change.label} ({change.images})") for change in worst]
    left, right, top, step = CHARACTER * max(map(len, names)) + 16, WIDTH - 110, 10.0, 20.0
    bottom = top + step * len(worst)

    def x(share: float) -> float:
        return left + (right - left) * share

    parts = [grid_x([(x(t / 4), f"{25 * t}%") for t in range(5)], top, bottom)]
    told = []
    for index, (name, change) in enumerate(zip(names, worst, strict=True)):
        y, text = top + step * (index + 0.5), f"{percent(change.before, 0)} to {percent(change.after, 0)}"
        told.append(f"{change.label} {text}")
        parts.append(
            f'<text x="{left - 12:.1f}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>'
            f'<g class="dumbbell"><title>{escape(told[-1])}</title>'
            f'<path d="M{x(change.before):.1f} {y:.1f}H{x(change.after):.1f}"/>'
            f'<circle class="before" cx="{x(change.before):.1f}" cy="{y:.1f}" r="4.5"/>'
            f'<circle class="after" cx="{x(change.after):.1f}" cy="{y:.1f}" r="4.5"/></g>'
            f'<text class="muted" x="{WIDTH:.0f}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        )
    title = f"Right first answers by class, {row.against or 'reference'} to {row.row}: the classes that lost most"
    return svg("".join(parts), (WIDTH, bottom + 30), title, "; ".join(told))


def _short(text: str, limit: int = 34) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
