"""A row of report.json: one delivered artifact with its sizes, accuracy, drift and latencies.

Every figure is null where nobody measured it, so a row of an artifact alone has the same keys as one with everything.
"""

from __future__ import annotations

import math

from mmcompress.config import Backend, Precision
from mmcompress.document import CallMilliseconds, Cosine, Count, Interval, Part, Share
from mmcompress.measure.document import Latency
from mmcompress.measure.drift.document import (
    ClassChange,
    Classification,
    CosineHistogram,
    Int8Distance,
    Metrics,
    PreviousDistance,
    RecallChange,
    Recalls,
)


class RowMetrics(Part):
    """Figures of a row on the test set, as drift.json has them; null where no drift measurement has the row."""

    i2t_r1: Share | None
    """Share of the images with a match among the best 1, 0 to 1."""
    i2t_r5: Share | None
    """Share of the images with a match among the best 5, 0 to 1."""
    i2t_r10: Share | None
    """Share of the images with a match among the best 10, 0 to 1."""
    t2i_r1: Share | None
    """Share of the texts with a match among the best 1, 0 to 1."""
    t2i_r5: Share | None
    """Share of the texts with a match among the best 5, 0 to 1."""
    t2i_r10: Share | None
    """Share of the texts with a match among the best 10, 0 to 1."""
    top1: Share | None
    """Share of the images whose best text is their class, 0 to 1; null of captions too."""
    top5: Share | None
    """The same among the best five; null of captions and of fewer than five classes too."""
    mean_per_class_recall: Share | None
    """Mean over classes of their share of right first answers, 0 to 1; null of captions too."""
    cosine_mean: Cosine | None
    """Mean cosine of an image's embeddings here and in the first row, -1 to 1; null where dimensions differ too."""
    cosine_p01: Cosine | None
    """First percentile of these cosines."""
    cosine_worst: Cosine | None
    """Smallest of these cosines."""
    text_cosine_mean: Cosine | None
    """Mean cosine of a text's embeddings here and in the first row, -1 to 1; null where dimensions differ too."""
    text_cosine_p01: Cosine | None
    """First percentile of these cosines."""
    rank_correlation: Cosine | None
    """Mean over images of Spearman's correlation of their texts' order with the first row's, -1 to 1."""
    margin_mean: float | None
    """Mean over images of the best text's cosine minus the second best's, 0 to 2."""
    flip_rate: Share | None
    """Share of the images with another best text than in the first row, 0 to 1."""
    flips_gained: Share | None
    """Share of the images whose best text became right, 0 to 1."""
    flips_lost: Share | None
    """Share of the images whose best text became wrong, 0 to 1."""
    mcnemar_p: Share | None
    """Of McNemar's exact test that as many answers were gained as lost, 0 to 1."""
    ece: Share | None
    """Expected calibration error, 0 to 1; null of captions and where the logit scale is unknown too."""
    old_index: Recalls | None
    """Of the row's queries among the first row's embeddings; null of the first row and where dimensions differ too."""
    ci95: dict[str, Interval]
    """95% interval of each figure that has one, by its name; those of the old index begin with `old_index_`."""

    @classmethod
    def of(cls, measured: Metrics | None) -> RowMetrics:
        """Of what drift measured, or of nothing."""
        figures = {name: getattr(measured, name, None) for name in cls.model_fields}
        return cls.model_validate({**figures, "ci95": measured.ci95 if measured else {}})


class MachineLatency(Latency):
    """A latency of bench.json, and where it was taken."""

    machine: str
    """`id` of the machine."""


class Row(Part):
    """One delivered artifact."""

    row: str
    """Its name."""
    artifact: str
    """Its folder, relative to the report."""
    digest: str
    """Of the artifact, SHA-256 in hexadecimal."""
    precision: Precision | None
    """That its accuracy was measured in, else the smallest it holds; null where it holds no graph."""
    params: Count | None
    """Parameters of both towers; null where the artifact does not say."""
    macs: Count | None
    """Multiply-accumulates of one image; null where the artifact does not say."""
    bytes: Count | None
    """Of both towers' files in that precision, weights beside them included; null where it holds no graph."""
    against: str | None
    """Name of the row that its drift is from; null where there is no drift measurement."""
    metrics: RowMetrics
    """Over the images of classes that were trained on."""
    collapsed: str | None
    """Which tower gives the same answer to everything, in words; null where none does."""
    r10_change: RecallChange | None
    """Against the first row; null of the first row, and where there is no drift measurement."""
    previous: PreviousDistance | None
    """How far it is from the row before it; null of the first row, and where there is no drift measurement."""
    unseen: RowMetrics | None
    """Over the images of classes that were kept out of training; null where there are none."""
    unseen_images: Count | None
    """How many these are; null where there is no drift measurement."""
    int8_against_fp32: Int8Distance | None
    """From the FP32 row that it was quantized from; null where it is not in 8 bits, and where there is no such row."""
    cosine_histogram: CosineHistogram | None
    """Against the first row; null of the first row, where the dimensions differ, and where there is no drift."""
    per_class: tuple[ClassChange, ...]
    """Classes that lost most, the worst first; empty where the texts are captions."""
    classification: Classification | None = None
    """First answers by class, of `classes` the twenty of lowest F1; null where the texts are captions, where there is
    no drift, and in files of older versions."""
    latency: tuple[MachineLatency, ...]
    """Every latency on every machine; empty where no bench measurement has the row."""
    fastest: MachineLatency | None
    """The lowest median of the first machine at batch 1 in the row's precision; null where there is none."""
    by_backend: dict[Backend, CallMilliseconds]
    """Lowest median of the first machine at batch 1, in ms, by backend."""
    fastest_elsewhere: tuple[MachineLatency, ...]
    """As `fastest`, of each other machine that measured the row."""

    def part(self, name: str) -> Part | None:
        """What the gate `NAME.metric` is about; `` is the main metrics."""
        parts = {
            "": self.metrics,
            "unseen": self.unseen,
            "old_index": self.metrics.old_index,
            "int8_against_fp32": self.int8_against_fp32,
        }
        return parts[name]


def figure(part: Part | None, name: str) -> float | None:
    """A figure whose name is data, a gate's say; None where it was not measured, and where it is no number."""
    value = None if part is None else getattr(part, name)
    return None if value is None or not math.isfinite(value) else float(value)
