"""What the report's charts share: an SVG frame, axes with round ticks, and the look of each backend.

No plotting library: a device has none, and a page that opens offline and follows the reader's light or dark theme needs
shapes with classes, not pixels. Backends differ by colour (Okabe & Ito's colour-blind safe set, in the page's style
sheet) and by marker shape. Every chart is an image with a name and a description for screen readers; the page has its
figures as a table too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from mmcompress.formats import BACKENDS, significant
from mmcompress.report.row import Row

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
    ticks: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), tuple(1 + i / 5 for i in range(45))):
        ticks = [round(s * 10.0**d, 10) for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(ticks) >= 4:
            break
    return ticks


def legend(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(name, small SVG) of each backend that occurs."""
    used = {entry.backend for row in rows for entry in row.latency}
    return [
        (
            BACKENDS[series],
            f'<svg viewBox="-8 -8 16 16" width="14" height="14" aria-hidden="true">{marker(series, 0, 0)}</svg>',
        )
        for series in SERIES
        if series in used
    ]


def significant_tick(value: float) -> str:
    """2.0 -> `2`, 1.5 -> `1.5`"""
    return f"{value:,.10g}" if value < 1000 else significant(value)


def series_class(backend: str) -> str:
    return f"s{SERIES.index(backend)}" if backend in SERIES else "s0"


def marker(backend: str, x: float, y: float, told: str = "") -> str:
    title = f"<title>{escape(told)}</title>" if told else ""
    shape = MARKERS.get(backend, MARKERS["openvino"])
    return f'<g class="mark {series_class(backend)}" transform="translate({x:.1f} {y:.1f})">{title}{shape}</g>'


def meter(part: float | None, whole: float | None) -> str:
    """A thin bar of a table's cell: the part as a share of the whole, at most all of it. Decoration, read by nobody."""
    if part is None or not whole:
        return ""
    share = f'<rect width="{100 * min(part / whole, 1):.1f}" height="4"/>'
    return f'<svg class="meter" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">{share}</svg>'


def grid_y(ticks: Sequence[tuple[float, str]], left: float, right: float) -> str:
    return "".join(
        f'<path class="grid" d="M{left:.1f} {y:.1f}H{right:.1f}"/>'
        f'<text class="tick" x="{left - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        for y, text in ticks
    )


def grid_x(ticks: Sequence[tuple[float, str]], top: float, bottom: float) -> str:
    return "".join(
        f'<path class="grid" d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>'
        f'<text class="tick" x="{x:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{text}</text>'
        for x, text in ticks
    )


def x_title(title: str, x: float, y: float) -> str:
    return f'<text class="title" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(title)}</text>'


def y_title(title: str, y: float) -> str:
    place = f"translate(14 {y:.1f}) rotate(-90)"
    return f'<text class="title" transform="{place}" text-anchor="middle">{escape(title)}</text>'


def svg(content: str, size: tuple[float, float], title: str, description: str, kind: str = "chart") -> str:
    """An image of its own for screen readers; hovering a mark shows the mark's title."""
    return (
        f'<svg class="{kind}" viewBox="0 0 {size[0]:.0f} {size[1]:.0f}" role="img" aria-label="{escape(title)}">'
        f"<desc>{escape(description)}</desc>{content}</svg>"
    )


def outline(edges: Sequence[float], heights: Sequence[float], bottom: float) -> str:
    """The path of a histogram: n + 1 edges and n heights, in pixels."""
    steps = "".join(f"V{bottom - height:.1f}H{right:.1f}" for height, right in zip(heights, edges[1:], strict=True))
    return f"M{edges[0]:.1f} {bottom:.1f}{steps}V{bottom:.1f}Z"
