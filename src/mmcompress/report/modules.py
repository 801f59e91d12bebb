"""Where quantization hurts: modules by their sensitivity or local noise, and what has accumulated block by block."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from mmcompress.formats import compact
from mmcompress.measure.bisect.document import BisectBlock, BisectDocument
from mmcompress.report.axes import (
    CHARACTER,
    WIDTH,
    grid_x,
    grid_y,
    linear_ticks,
    significant_tick,
    svg,
    x_title,
    y_title,
)
from mmcompress.report.parts import ModuleDrift

SHOWN = 16
"""Modules that a chart shows; the table has them all."""


def module_bars(entries: Sequence[tuple[str, float, bool]], measure: str) -> str:
    """(module, value, kept in higher precision), worst first."""
    shown = entries[:SHOWN]
    if not shown:
        return ""
    left, right, top, step = CHARACTER * max(len(name) for name, *_ in shown) + 14, WIDTH - 76, 8.0, 20.0
    ticks = linear_ticks(min(0.0, *(value for _, value, _ in shown)), max(1e-9, *(value for _, value, _ in shown)), 5)
    bottom = top + step * len(shown)

    def x(value: float) -> float:
        return left + (right - left) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    parts = [grid_x([(x(tick), significant_tick(tick)) for tick in ticks], top, bottom)]
    for index, (name, value, kept) in enumerate(shown):
        y = top + step * (index + 0.5)
        start, end = sorted((x(0.0), x(value)))
        told = f"{name}: {compact(value)}{', kept in higher precision' if kept else ''}"
        parts.append(
            f'<text x="{left - 10:.1f}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>'
            f'<g class="module {"kept s1" if kept else "s0"}"><title>{escape(told)}</title>'
            f'<rect x="{start:.1f}" y="{y - 6:.1f}" width="{max(end - start, 1):.1f}" height="12"/></g>'
            f'<text class="muted" x="{WIDTH:.0f}" y="{y + 4:.1f}" text-anchor="end">{compact(value, 3)}</text>'
        )
    parts.append(x_title(measure, (left + right) / 2, bottom + 38))
    told = "; ".join(f"{name} {compact(value)}" for name, value, _ in shown)
    return svg("".join(parts), (WIDTH, bottom + 48), f"Modules by {measure}, worst first", told)


def sensitivity_bars(modules: Sequence[ModuleDrift]) -> str:
    """What quantizing each module alone moves."""
    return module_bars([(m.module, m.drift, m.kept) for m in modules], "drift by this module alone")


def noise_bars(bisect: BisectDocument) -> str:
    """What bisect orders modules by: noise beyond what 8 bits must make."""
    modules = [(m.module, m.excess_db, m.module in bisect.keep) for m in bisect.modules]
    return module_bars(modules, "noise beyond need, dB")


def carried_noise(blocks: Sequence[BisectBlock]) -> str:
    """Signal to noise that arrives at the end of each block, a line for each tower; lower is worse."""
    if not blocks:
        return ""
    left, right, top, bottom = 62.0, WIDTH - 70, 14.0, 190.0
    towers = list(dict.fromkeys(block.tower for block in blocks))
    lines = {tower: [b.carried_sqnr_db for b in blocks if b.tower == tower] for tower in towers}
    values = [value for line in lines.values() for value in line]
    ticks, longest = linear_ticks(min(values), max(values), 5), max(2, *(len(line) for line in lines.values()), 2)

    def spot(index: int, value: float) -> tuple[float, float]:
        share = (value - ticks[0]) / max(ticks[-1] - ticks[0], 1e-9)
        return left + (right - left) * index / (longest - 1), bottom - (bottom - top) * share

    parts = [grid_y([(spot(0, tick)[1], significant_tick(tick)) for tick in ticks], left, right)]
    parts.append(grid_x([(spot(i, ticks[0])[0], str(i)) for i in range(longest)], bottom, bottom))
    for number, (tower, line) in enumerate(lines.items()):
        spots = [spot(index, value) for index, value in enumerate(line)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in spots)
        parts.append(f'<g class="line s{number % 4}"><path d="M{path}"/>{dots}</g>')
        parts.append(
            f'<text class="name" x="{spots[-1][0] + 10:.1f}" y="{spots[-1][1] + 4:.1f}">{escape(tower)}</text>'
        )
    parts.append(y_title("carried SQNR, dB", (top + bottom) / 2))
    parts.append(x_title("block", (left + right) / 2, bottom + 36))
    told = "; ".join(f"{b.block} {compact(b.carried_sqnr_db)} dB" for b in blocks)
    return svg("".join(parts), (WIDTH, bottom + 44), "Signal to noise after each block, dB: higher is better", told)
