"""Names of the figures that are measured, once: gates are written in them, documents have them as fields.

The core cannot import the documents, which their rooms define; tests/test_documents.py holds that the fields have these
names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

RECALLS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10")
"""Image to text and text to image, among the best 1, 5 and 10."""
ACCURACIES = ("top1", "top5", "mean_per_class_recall")
COSINES = ("cosine_mean", "cosine_p01", "cosine_worst")
TEXT_COSINES = ("text_cosine_mean", "text_cosine_p01")
FLIPS = ("flip_rate", "flips_gained", "flips_lost", "mcnemar_p")
METRICS = (
    *RECALLS,
    *ACCURACIES,
    *COSINES,
    *TEXT_COSINES,
    "rank_correlation",
    "margin_mean",
    *FLIPS,
    "ece",
)
"""Of a row of drift.json, in the order of a report."""
LOWER_IS_BETTER = (*FLIPS, "ece")
INT8_METRICS = ("cosine_mean", "cosine_p01", "text_cosine_mean", "flip_rate", "r10_drop")
"""Of INT8 or FP8 against the FP32 row that it was made of."""
SIZES = ("params", "macs", "bytes")
ENGINES = ("engine_bytes", "kernels", "fallbacks")
"""Of each engine file: its bytes, its compiled layers, and Linears that are not in the 8 bits of their graph."""
LATENCY = (
    *("p50_ms", "p90_ms", "p95_ms", "p99_ms", "mean_ms", "cv", "load_ms", "first_ms", "throughput_ips"),
    *("peak_bytes", "device_peak_bytes", "energy_mj", "ceiling_share"),
)
"""Figures of an entry of bench.json."""
SPEEDS = ("throughput_ips", "ceiling_share")
"""Of these, what is better when higher."""

Figure = Literal["r10", "top1"]
FIGURES: Mapping[Figure, str] = {"r10": "R@10", "top1": "top-1"}
"""What is measured of a model that is trained, and how it is written; R@10 is the mean of both ways."""
