"""Figures as people read them, the same on the console, in Markdown and in HTML. What was not measured is a dash."""

from __future__ import annotations

from collections.abc import Sequence

BACKENDS = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
}
"""Backends by the names that their makers write."""
ABSENT = "–"
MINUS = "−"


_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def printable(text: str) -> str:
    """The text with control characters as Python writes them: an escape of a terminal can clear it, or type into it."""
    return text.translate(_CONTROL)


def percent(fraction: float | None, digits: int = 1) -> str:
    """0.4234 -> `42.3%`"""
    return ABSENT if fraction is None else f"{100 * fraction:.{digits}f}%"


def percent_interval(interval: Sequence[float] | None, digits: int = 1) -> str:
    """(0.41, 0.44) -> `41.0–44.0`, in percent"""
    return "" if interval is None else f"{100 * interval[0]:.{digits}f}–{100 * interval[1]:.{digits}f}"


def points(difference: float | None, digits: int = 1) -> str:
    """A difference of two fractions, in percentage points: -0.012 -> `−1.2`"""
    if difference is None:
        return ABSENT
    text = f"{100 * abs(difference):.{digits}f}"
    if not float(text):
        return text
    return f"{MINUS if difference < 0 else '+'}{text}"


def count(number: float | None) -> str:
    """6612481 -> `6,612,481`"""
    return ABSENT if number is None else f"{number:,.0f}"


def millions(number: float | None) -> str:
    """123456789 -> `123.5 M`; small numbers keep a significant digit"""
    if number is None:
        return ABSENT
    value = number / 1e6
    return f"{value:,.0f} M" if value >= 1000 else f"{value:.1f} M" if value >= 1 else f"{value:.3f} M"


def megabytes(size: float | None) -> str:
    """Decimal megabytes: 25312000 -> `25.3 MB`"""
    if size is None:
        return ABSENT
    value = size / 1e6
    return f"{value:,.1f} MB" if value >= 0.1 else f"{size / 1e3:,.1f} kB"


def milliseconds(latency_ms: float | None) -> str:
    """Three significant digits: 17.3 -> `17.3 ms`"""
    return ABSENT if latency_ms is None else f"{significant(latency_ms)} ms"


def times(ratio: float | None) -> str:
    """2.713 -> `2.71×`; what did not change at all is `same`"""
    return ABSENT if ratio is None else "same" if ratio == 1 else f"{significant(ratio)}×"


def compact(value: float | None, digits: int = 4) -> str:
    """Significant digits, whatever the unit: 0.01 -> `0.01`, 9640449 -> `9,640,449`"""
    if value is None:
        return ABSENT
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}".replace("-", MINUS)


def millijoules(energy_mj: float | None) -> str:
    return ABSENT if energy_mj is None else f"{significant(energy_mj)} mJ"


def decibels(ratio_db: float | None) -> str:
    return ABSENT if ratio_db is None else f"{ratio_db:.1f} dB".replace("-", MINUS)


def p_value(probability: float | None) -> str:
    """0.0312 -> `0.031`; what is smaller than can be told apart is `< 0.001`"""
    return ABSENT if probability is None else "< 0.001" if probability < 0.001 else f"{probability:.3f}"


def decimal(value: float | None, digits: int = 3) -> str:
    """A score or a correlation: 0.3124 -> `0.312`"""
    return ABSENT if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def cosine(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4f}"


def fact(value: object) -> str:
    """A fact about a machine: numbers as people write them, lists with commas."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(fact, value))
    return f"{value:,}" if isinstance(value, int) else compact(value) if isinstance(value, float) else str(value)


def cell(text: str) -> str:
    """A name as the cell of a Markdown table, without effect on it: `a|b` -> `a\\|b`, `<b>` -> `&lt;b>`"""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def significant(value: float) -> str:
    """Three significant digits without an exponent."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
