"""Charts of the report as inline SVG, drawn from its document.

No plotting library: a device has none, and a page that opens offline and follows the reader's light or dark theme needs
shapes with classes, not pixels. Backends differ by colour (Okabe & Ito's colour-blind safe set, in the page's style
sheet) and by marker shape. Labels are placed greedily at the first free spot around their point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from mmcompress.report.formats import BACKENDS, milliseconds, percent, significant

WIDTH = 760.0
CHARACTER = 6.7
"""Mean advance of the page's 12-pixel type, in pixels; generous, so that labels keep clear of each other."""
SERIES = ("openvino", "onnxruntime", "tensorrt", "tensorrt-rtx")
MARKERS = {
    "openvino": '<circle r="5"/>',
    "onnxruntime": '<rect x="-4.5" y="-4.5" width="9" height="9"/>',
    "tensorrt": '<path d="M0-6 5.5 4.5H-5.5Z"/>',
    "tensorrt-rtx": '<path d="M0-6 6 0 0 6-6 0Z"/>',
}
Box = tuple[float, float, float, float]
"""left, top, right, bottom in pixels"""


@dataclass(frozen=True)
class Point:
    """One row on one backend."""

    label: str
    series: str
    latency_ms: float
    accuracy: float
    interval: tuple[float, float] | None


def linear_ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) that cover [low, high]."""
    raw = max(high - low, 1e-12) / wanted
    power = 10 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers within [low, high] for a logarithmic axis: the sparsest set that has four of them."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), tuple(1 + i / 5 for i in range(45))):
        found = [round(s * 10.0**d, 10) for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(found) >= 4:
            break
    return found


def points_of(rows: Sequence[Mapping[str, Any]], metric: str = "i2t_r10") -> list[Point]:
    """Every row on every backend at batch 1, in the precision that its accuracy was measured in."""
    found = []
    for row in rows:
        accuracy, interval = row["metrics"][metric], row["metrics"]["ci95"].get(metric)
        for entry in row["latency"]:
            if accuracy is not None and entry["batch"] == 1 and entry["precision"] == row["precision"]:
                limits = None if interval is None else (float(interval[0]), float(interval[1]))
                found.append(Point(row["stage"], entry["backend"], entry["p50_ms"], accuracy, limits))
    return found


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in both latency and accuracy, fastest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.latency_ms, -p.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def pareto(rows: Sequence[Mapping[str, Any]], metric: str = "i2t_r10", name: str = "R@10") -> str:
    """Accuracy against latency at batch 1; empty where nothing has both."""
    points = points_of(rows, metric)
    if not points:
        return ""
    height, left, right, top, bottom = 430.0, 62.0, WIDTH - 24, 16.0, 380.0
    spread = [limit for p in points for limit in (p.interval or (p.accuracy,))]
    y_ticks = linear_ticks(max(0.0, min(spread) - 0.005), min(1.0, max(spread) + 0.005), 5)
    low_ms = min(p.latency_ms for p in points) / 1.25
    high_ms = max(p.latency_ms for p in points) * 1.35

    def x(latency_ms: float) -> float:
        return left + (right - left) * math.log(latency_ms / low_ms) / math.log(high_ms / low_ms)

    def y(accuracy: float) -> float:
        return bottom - (bottom - top) * (accuracy - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    parts = [_grid_y([(y(t), percent(t, 0 if (y_ticks[1] - y_ticks[0]) >= 0.01 else 1)) for t in y_ticks], left, right)]
    parts.append(_grid_x([(x(t), significant_tick(t)) for t in log_ticks(low_ms, high_ms)], top, bottom))
    parts.append(_y_title(f"{name}, image to text", bottom / 2))
    parts.append(_x_title("median latency at batch 1, ms (logarithmic)", (left + right) / 2, bottom + 40))
    front = pareto_front(points)
    steps = f"M{x(front[0].latency_ms):.1f} {bottom:.1f}" + "".join(
        f"V{y(p.accuracy):.1f}H{x(after.latency_ms) if after else right:.1f}"
        for p, after in zip(front, [*front[1:], None], strict=True)
    )
    parts.append(f'<path class="front" d="{steps}"/>')
    for p in points:
        if p.interval is not None:
            upper, lower = y(p.interval[1]), y(p.interval[0])
            parts.append(
                f'<path class="whisker {_series(p.series)}" d="M{x(p.latency_ms):.1f} {upper:.1f}V{lower:.1f}"/>'
            )
    spots = [(x(p.latency_ms), y(p.accuracy)) for p in points]
    line = [(x(p.latency_ms), y(p.accuracy)) for p in front]
    runs = [(a, b - 2, c, b + 2) for (a, b), (c, _) in zip(line, [*line[1:], (right, 0.0)], strict=True)]
    places = place_labels(spots, [p.label for p in points], (left, top, right, bottom), runs)
    for p, spot, box in zip(points, spots, places, strict=True):
        parts.append(_label(p.label, spot, box))
    for p, (px, py) in zip(points, spots, strict=True):
        told = f"{p.label} on {BACKENDS.get(p.series, p.series)}: {percent(p.accuracy)}, {milliseconds(p.latency_ms)}"
        parts.append(_marker(p.series, px, py, told))
    title = f"{name} against latency at batch 1, one point for each row and backend"
    return _svg("".join(parts), height, title)


def place_labels(
    spots: Sequence[tuple[float, float]], labels: Sequence[str], frame: Box, obstacles: Sequence[Box] = ()
) -> list[Box]:
    """A box for each label: the first place around its point that is free of points, obstacles and earlier labels."""
    taken: list[Box] = [*((x - 7, y - 7, x + 7, y + 7) for x, y in spots), *obstacles]
    placed: list[Box] = []
    for (x, y), text in zip(spots, labels, strict=True):
        width, half = CHARACTER * len(text), 8.0
        candidates: list[Box] = []
        for reach in (10.0, 20.0, 32.0, 46.0, 62.0):
            for dx, dy in ((1, 0), (-1, 0), (0.7, -0.8), (-0.7, -0.8), (0.7, 0.8), (-0.7, 0.8), (0, -1), (0, 1)):
                middle = y + dy * (reach + 4)
                start = x + dx * reach if dx > 0 else x + dx * reach - width if dx < 0 else x - width / 2
                candidates.append((start, middle - half, start + width, middle + half))
        costs = [_cost(box, taken + placed, frame) for box in candidates]
        placed.append(candidates[costs.index(min(costs))])
    return placed


def _cost(box: Box, taken: Sequence[Box], frame: Box) -> float:
    """Area that the box shares with others, and what sticks out of the frame."""
    overlap = sum(
        max(0.0, min(box[2], b[2]) - max(box[0], b[0])) * max(0.0, min(box[3], b[3]) - max(box[1], b[1])) for b in taken
    )
    outside = max(0.0, frame[0] - box[0]) + max(0.0, box[2] - frame[2]) + max(0.0, frame[1] - box[1])
    return round(overlap + 100 * (outside + max(0.0, box[3] - frame[3])), 3)


def latency_bars(rows: Sequence[Mapping[str, Any]], batch: int) -> str:
    """One bar a row, precision and backend: up to the median, then a line to p99 with a tick at p90."""
    entries = [(row["stage"], entry) for row in rows for entry in row["latency"] if entry["batch"] == batch]
    if not entries:
        return ""
    names = [
        (stage, f"{entry['precision']}, {BACKENDS.get(entry['backend'], entry['backend'])}") for stage, entry in entries
    ]
    stage_width = CHARACTER * 1.1 * max(len(stage) for stage, _ in names) + 14
    left = stage_width + CHARACTER * max(len(run) for _, run in names) + 14
    right, top, step = WIDTH - 76, 12.0, 22.0
    slowest = max(entry["p50_ms"] for _, entry in entries)
    # One stalled run must not squeeze every bar: lines are cut at twice the slowest median.
    limit = min(max(entry["p99_ms"] for _, entry in entries), 2 * slowest)
    ticks = linear_ticks(0.0, limit, 6)
    bottom = top + step * len(entries) + 10 * (len(rows) - 1)

    def x(latency_ms: float) -> float:
        return left + (right - left) * min(latency_ms, ticks[-1]) / ticks[-1]

    parts = [_grid_x([(x(t), significant_tick(t)) for t in ticks], top - 4, bottom)]
    y, previous = top + step / 2, ""
    for (stage, run), (_, entry) in zip(names, entries, strict=True):
        y += 10 if previous and stage != previous else 0
        if stage != previous:
            parts.append(f'<text class="name" x="0" y="{y + 4:.1f}">{escape(stage)}</text>')
        parts.append(f'<text class="muted" x="{stage_width:.1f}" y="{y + 4:.1f}">{escape(run)}</text>')
        parts.append(_bar(entry, x, y, left))
        previous, y = stage, y + step
    parts.append(_x_title(f"latency at batch {batch}, ms", (left + right) / 2, bottom + 38))
    return _svg("".join(parts), bottom + 48, f"Latency at batch {batch}: median, p90 and p99 of each row")


def _bar(entry: Mapping[str, Any], x: Any, y: float, left: float) -> str:
    p50, p90, p99 = (x(entry[key]) for key in ("p50_ms", "p90_ms", "p99_ms"))
    cut = x(float("inf")) <= p99
    end = f'<path d="M{p99 - 5:.1f} {y - 4:.1f}l5 4-5 4"/>' if cut else f'<path d="M{p99:.1f} {y - 3:.1f}v6"/>'
    told = (
        f"p50 {milliseconds(entry['p50_ms'])}, p90 {milliseconds(entry['p90_ms'])}, p99 {milliseconds(entry['p99_ms'])}"
    )
    return (
        f'<g class="bar {_series(entry["backend"])}"><title>{told}</title>'
        f'<rect x="{left:.1f}" y="{y - 6:.1f}" width="{max(p50 - left, 1):.1f}" height="12"/>'
        f'<g class="tail"><path d="M{p50:.1f} {y:.1f}H{p99:.1f}M{p90:.1f} {y - 4:.1f}v8"/>{end}</g>'
        f'<text x="{WIDTH:.0f}" y="{y + 4:.1f}" text-anchor="end">{milliseconds(entry["p50_ms"])}</text></g>'
    )


def legend(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(name, small SVG) of each backend that occurs."""
    used = {entry["backend"] for row in rows for entry in row["latency"]}
    return [
        (
            BACKENDS[series],
            f'<svg viewBox="-8 -8 16 16" width="14" height="14" aria-hidden="true">{_marker(series, 0, 0)}</svg>',
        )
        for series in SERIES
        if series in used
    ]


def significant_tick(value: float) -> str:
    """2.0 -> `2`, 1.5 -> `1.5`"""
    return f"{value:,.10g}" if value < 1000 else significant(value)


def _series(backend: str) -> str:
    return f"s{SERIES.index(backend)}" if backend in SERIES else "s0"


def _marker(backend: str, x: float, y: float, told: str = "") -> str:
    title = f"<title>{escape(told)}</title>" if told else ""
    shape = MARKERS.get(backend, MARKERS["openvino"])
    return f'<g class="mark {_series(backend)}" transform="translate({x:.1f} {y:.1f})">{title}{shape}</g>'


def _label(text: str, spot: tuple[float, float], box: Box) -> str:
    (x, y), middle = spot, (box[1] + box[3]) / 2
    near_x = min(max(x, box[0]), box[2])
    near_y = min(max(y, box[1] + 3), box[3] - 3)
    leader = ""
    if math.hypot(near_x - x, near_y - y) > 16:
        leader = f'<path class="leader" d="M{x:.1f} {y:.1f}L{near_x:.1f} {near_y:.1f}"/>'
    anchor = "start" if box[0] >= x else "end" if box[2] <= x else "middle"
    tx = {"start": box[0], "end": box[2], "middle": (box[0] + box[2]) / 2}[anchor]
    return f'{leader}<text class="name" x="{tx:.1f}" y="{middle + 4:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _grid_y(ticks: Sequence[tuple[float, str]], left: float, right: float) -> str:
    return "".join(
        f'<path class="grid" d="M{left:.1f} {y:.1f}H{right:.1f}"/>'
        f'<text class="tick" x="{left - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        for y, text in ticks
    )


def _grid_x(ticks: Sequence[tuple[float, str]], top: float, bottom: float) -> str:
    return "".join(
        f'<path class="grid" d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>'
        f'<text class="tick" x="{x:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{text}</text>'
        for x, text in ticks
    )


def _x_title(title: str, x: float, y: float) -> str:
    return f'<text class="title" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(title)}</text>'


def _y_title(title: str, y: float) -> str:
    place = f"translate(14 {y:.1f}) rotate(-90)"
    return f'<text class="title" transform="{place}" text-anchor="middle">{escape(title)}</text>'


def _svg(content: str, height: float, title: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{content}</svg>"
    )
