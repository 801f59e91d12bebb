"""The student that a latency had room for, beside its runners-up: composed and measured times, and capacity."""

from __future__ import annotations

from html import escape

from mmcompress.compress.sizing.document import SizingDocument
from mmcompress.formats import millions, milliseconds
from mmcompress.report.axes import CHARACTER, WIDTH, grid_x, linear_ticks, significant_tick, svg, x_title

STEP = 24.0


def sized_bars(sizing: SizingDocument) -> str:
    """A bar to the measured time of each student, a mark at the composed one, and a line at what was asked for."""
    rows = sizing.rows
    left, right, top = CHARACTER * max(len(row.student) for row in rows) + 14, WIDTH - 110, 8.0
    bottom = top + STEP * len(rows)
    times = [sizing.asked_ms, *(row.predicted_ms for row in rows), *(row.measured_ms or 0.0 for row in rows)]
    ticks = linear_ticks(0.0, max(times), 6)

    def x(time_ms: float) -> float:
        return left + (right - left) * time_ms / ticks[-1]

    parts = [grid_x([(x(tick), significant_tick(tick)) for tick in ticks], top, bottom)]
    told = []
    for index, row in enumerate(rows):
        y = top + STEP * (index + 0.5)
        measured = "" if row.measured_ms is None else f"{milliseconds(row.measured_ms)} measured, "
        told.append(f"{row.student}: {measured}{milliseconds(row.predicted_ms)} composed")
        bar = "" if row.measured_ms is None else _bar(left, y, x(row.measured_ms) - left)
        parts.append(
            f'<text x="{left - 10:.1f}" y="{y + 4:.1f}" text-anchor="end">{escape(row.student)}</text>'
            f'<g class="module {"s0" if index == 0 else "kept s1"}"><title>{escape(told[-1])}</title>{bar}</g>'
            f'<path class="whisker" stroke="currentColor" d="M{x(row.predicted_ms):.1f} {y - 9:.1f}V{y + 9:.1f}"/>'
            f'<text class="muted" x="{WIDTH:.0f}" y="{y + 4:.1f}" text-anchor="end">{millions(row.capacity)}</text>'
        )
    parts.append(f'<path class="front" d="M{x(sizing.asked_ms):.1f} {top:.1f}V{bottom:.1f}"/>')
    parts.append(x_title("time of one image, ms; on the right the capacity", (left + right) / 2, bottom + 38))
    title = f"Students within {sizing.asked_ms:g} ms: bars measured, marks composed, dashed what was asked for"
    return svg("".join(parts), (WIDTH, bottom + 48), title, "; ".join(told))


def _bar(left: float, y: float, width: float) -> str:
    return f'<rect x="{left:.1f}" y="{y - 6:.1f}" width="{max(width, 1):.1f}" height="12"/>'
