"""Accuracy against latency: the plot that the page opens with. Labels are placed greedily at the first free spot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mmcompress.formats import BACKENDS, milliseconds, percent
from mmcompress.report.axes import (
    CHARACTER,
    WIDTH,
    grid_x,
    grid_y,
    linear_ticks,
    log_ticks,
    marker,
    series_class,
    significant_tick,
    svg,
    x_title,
    y_title,
)
from mmcompress.report.row import Row
from mmcompress.report.rows import plain

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


def points_of(rows: Sequence[Row], machine: str) -> list[Point]:
    """Every row on every backend of a machine at batch 1, in the precision that its accuracy was measured in."""
    points: dict[tuple[str, str], Point] = {}
    for row in rows:
        accuracy, interval = row.metrics.i2t_r10, row.metrics.ci95.get("i2t_r10")
        fitting = [e for e in row.latency if e.machine == machine and e.precision == row.precision and plain(e, 1)]
        for entry in sorted(fitting, key=lambda e: e.p50_ms):
            if accuracy is not None:
                point = Point(row.row, entry.backend, entry.p50_ms, accuracy, interval)
                points.setdefault((row.row, entry.backend), point)
    return list(points.values())


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in both latency and accuracy, fastest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.latency_ms, -p.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def pareto(rows: Sequence[Row], machine: str) -> str:
    """Accuracy against latency at batch 1; empty where nothing has both."""
    points = points_of(rows, machine)
    if not points:
        return ""
    height, left, right, top, bottom = 430.0, 70.0, WIDTH - 24, 16.0, 380.0
    spread = [limit for p in points for limit in (p.interval or (p.accuracy,))]
    y_ticks = linear_ticks(max(0.0, min(spread) - 0.005), min(1.0, max(spread) + 0.005), 5)
    low_ms = min(p.latency_ms for p in points) / 1.25
    high_ms = max(p.latency_ms for p in points) * 1.35

    def x(latency_ms: float) -> float:
        return left + (right - left) * math.log(latency_ms / low_ms) / math.log(high_ms / low_ms)

    def y(accuracy: float) -> float:
        return bottom - (bottom - top) * (accuracy - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    whole = all(round(100 * t, 6).is_integer() for t in y_ticks)
    parts = [grid_y([(y(t), percent(t, 0 if whole else 1)) for t in y_ticks], left, right)]
    parts.append(grid_x([(x(t), significant_tick(t)) for t in log_ticks(low_ms, high_ms)], top, bottom))
    parts.append(y_title("R@10, image to text", bottom / 2))
    parts.append(x_title("median latency at batch 1, ms (logarithmic)", (left + right) / 2, bottom + 40))
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
                f'<path class="whisker {series_class(p.series)}" d="M{x(p.latency_ms):.1f} {upper:.1f}V{lower:.1f}"/>'
            )
    spots = [(x(p.latency_ms), y(p.accuracy)) for p in points]
    line = [(x(p.latency_ms), y(p.accuracy)) for p in front]
    runs = [(a, b - 2, c, b + 2) for (a, b), (c, _) in zip(line, [*line[1:], (right, 0.0)], strict=True)]
    places = place_labels(spots, [p.label for p in points], (left, top, right, bottom), runs)
    for p, spot, box in zip(points, spots, places, strict=True):
        parts.append(_label(p.label, spot, box))
    told = [
        f"{p.label} on {BACKENDS.get(p.series, p.series)}: {percent(p.accuracy)}, {milliseconds(p.latency_ms)}"
        for p in points
    ]
    parts += [marker(p.series, px, py, text) for p, (px, py), text in zip(points, spots, told, strict=True)]
    title = f"R@10 against latency at batch 1 on {machine}, one point for each row and backend"
    return svg("".join(parts), (WIDTH, height), title, "; ".join(told))


def place_labels(
    spots: Sequence[tuple[float, float]], labels: Sequence[str], frame: Box, obstacles: Sequence[Box] = ()
) -> list[Box]:
    """A box for each label: the first place around its point that is free of points, obstacles and earlier labels."""
    taken: list[Box] = [*((x - 7, y - 7, x + 7, y + 7) for x, y in spots), *obstacles]
    placed: list[Box] = []
    for (x, y), text in zip(spots, labels, strict=True):
        width, half = CHARACTER * len(text) + 4, 8.0
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
