"""What the report says in words: headlines, warnings, and what was not measured. Each from figures of the document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mmcompress.artifact import Artifact
from mmcompress.config import EIGHT_BITS
from mmcompress.data.sentences import SENTENCES
from mmcompress.document import Interval
from mmcompress.formats import BACKENDS, megabytes, percent, significant
from mmcompress.measure.bench.document import Run
from mmcompress.measure.drift.document import DriftDocument
from mmcompress.measure.sanity import of_few
from mmcompress.report.document import Highlight, MachineRatio, ReportDocument
from mmcompress.report.row import Row
from mmcompress.report.rows import ratio

GPU_BACKENDS = ("tensorrt", "tensorrt-rtx")


def headlines(document: ReportDocument) -> list[str]:
    """The sentences that a reader takes away."""
    if len(document.rows) < 2:
        return []
    first, last = document.rows[0], document.rows[-1]
    lines = [_ratio_sentence(ratio) for ratio in headline_ratios(document)]
    recall, a, b = _telling_recall(document)
    if meaningless := collapse_warnings([first, last]):
        lines += meaningless
    elif a and b is not None:
        shares = ((last.macs, first.macs, "image MACs"), (last.bytes, first.bytes, "bytes"))
        bought = [f"{100 * share:.0f}% of its {what}" for x, y, what in shares if (share := ratio(x, y)) is not None]
        kept = f"{_run_start(last.row)} keeps {100 * b / a:.1f}% of {first.row}'s {recall}"
        if document.test.own_answers and last.metrics.flip_rate is not None:
            same = 1 - last.metrics.flip_rate
            kept = f"{_run_start(last.row)} answers {100 * same:.1f}% of the photos as {first.row} does"
        lines.append(f"{kept}{', at ' + ' and '.join(bought) if bought else ''}.")
    return lines


def _telling_recall(document: ReportDocument) -> tuple[str, float | None, float | None]:
    """Of the recalls of images that say something on this test set the widest, and what first and last row have."""
    first, last = document.rows[0].metrics, document.rows[-1].metrics
    for k in (10, 5, 1):
        if document.says_nothing(name := f"i2t_r{k}") is None:
            return f"R@{k}", getattr(first, name), getattr(last, name)
    return "R@1", None, None


def few_warnings(document: ReportDocument) -> list[str]:
    """What recalls cannot say on a test set of few images or texts, as drift said it."""
    test = document.test
    return [f"{said}." for said in of_few(test.images, test.candidates)] if test.images and test.candidates else []


def collapse_warnings(rows: Sequence[Row]) -> list[str]:
    """What says that a row's accuracy means nothing, as drift noted it."""
    return [f"{row.row}: {row.collapsed}, so its accuracy says nothing." for row in rows if row.collapsed]


def highlights(document: ReportDocument) -> list[Highlight]:
    """The few figures at the top of the page: a name, a value with its kind, an interval, and what it compares."""
    if len(document.rows) < 2:
        return []
    first, last = document.rows[0], document.rows[-1]
    figures: list[Highlight] = []
    for best in headline_ratios(document)[:1]:
        note = f"{_run_name(best.numerator)} against {_run_name(best.denominator)}"
        figures.append(_highlight("faster at batch 1", best.speedup, "times", note, best.ci95))
    recall, a, b = _telling_recall(document)
    if document.test.own_answers and last.metrics.flip_rate is not None:
        note = f"best of {document.test.candidates} texts, against {first.row}"
        figures.append(_highlight("of answers kept", 1 - last.metrics.flip_rate, "percent", note))
    elif a and b is not None and not collapse_warnings([first, last]):
        figures.append(_highlight(f"of {recall} kept", b / a, "percent", f"{percent(b)} after {percent(a)}"))
    if (smaller := ratio(first.bytes, last.bytes)) is not None:
        note = f"{megabytes(last.bytes)} after {megabytes(first.bytes)}"
        figures.append(_highlight("smaller", smaller, "times", note))
    if quantized := last.int8_against_fp32:
        bits = (last.precision or "int8").upper()
        note = f"best answers that {bits} changes, against {quantized.row}"
        figures.append(_highlight(f"flips by {bits}", quantized.flip_rate, "percent", note))
    elif last.metrics.flip_rate is not None:
        note = f"best answers that differ from {first.row}'s"
        figures.append(_highlight("flips", last.metrics.flip_rate, "percent", note))
    return figures


def _highlight(
    name: str, value: float, kind: Literal["times", "percent"], note: str, ci95: Interval | None = None
) -> Highlight:
    return Highlight(name=name, value=value, kind=kind, note=note, ci95=ci95)


def headline_ratios(document: ReportDocument) -> list[MachineRatio]:
    """The last row on each backend against the first row, at batch 1, from one interleaved run; fastest first.

    Of several machines the first one's, and of several precisions that of the row: a verdict holds FP32 beside INT8.
    """
    ends = (document.rows[-1].row, document.rows[0].row)
    main = document.machines[0].id if document.machines else None
    ratios = [r for r in document.ratios if (r.numerator.row, r.denominator.row) == ends]
    ratios = [r for r in ratios if document.rows[-1].precision in (None, r.numerator.precision)]
    return sorted((r for r in ratios if r.batch == 1 and r.machine == main), key=lambda r: -r.speedup)


def _ratio_sentence(ratio: MachineRatio) -> str:
    low, high = ratio.ci95
    speed = f"{_run_name(ratio.numerator)} is {significant(ratio.speedup)} times as fast as"
    interval = f"(batch {ratio.batch}, 95% interval {significant(low)} to {significant(high)})"
    return f"{speed} {_run_name(ratio.denominator)} {interval}."


def _run_name(run: Run) -> str:
    """`INT8 on OpenVINO`, or `the teacher in FP32 on ONNX Runtime` where the row is more than its precision."""
    article = "the " if run.row == "teacher" else ""
    model = "" if run.row == run.precision else f"{article}{run.row} in "
    return f"{model}{run.precision.upper()} on {BACKENDS[run.backend]}"


def _run_start(row: str) -> str:
    return row.upper() if row in ("int8", "fp8", "fp16", "fp32") else row


def truth_warnings(document: ReportDocument) -> list[str]:
    """What the accuracies of photos without captions mean."""
    test = document.test
    if not test.own_answers or not document.rows:
        return []
    return [
        f"The test images have no captions: right is what {document.rows[0].row} answers, of {test.candidates} texts. "
        "So recall and flips say how often a row agrees with it, not whether it is right."
    ]


def calibration_warnings(gathered: Sequence[Artifact]) -> list[str]:
    """On what a text tower was calibrated, where it was on nothing of the user's."""
    return [
        f"{artifact.path.name}: photos without captions calibrated the image tower, {SENTENCES} the text tower."
        for artifact in gathered
        if artifact.manifest.facts.get("texts") == SENTENCES
    ]


def seen_warnings(drift: DriftDocument | None) -> list[str]:
    """Which rows were calibrated on images that test them."""
    return [
        f"{row.row}: {row.calibrated_images} test images calibrated it, or copies of them did, which flatters it."
        for row in (drift.rows if drift else ())
        if row.calibrated_images
    ]


def machine_warnings(document: ReportDocument) -> list[str]:
    """What disturbed the latencies, machine by machine, as bench noted it."""
    sentences = []
    for machine in document.machines:
        where = f"{machine.id}: " if len(document.machines) > 1 else ""
        noted, noise = machine.environment.warnings, machine.environment.noise
        if noise.noisy and not noted:
            reason = noise.reason or "its timings vary more than they should"
            sentences.append(f"{where}The machine was noisy while latency was measured: {reason}.")
        sentences += [f"{where}{warning}" for warning in noted]
        entries = [entry for row in document.rows for entry in row.latency if entry.machine == machine.id]
        if hot := sum(bool(entry.throttled) for entry in entries):
            sentences.append(f"{where}The clock fell for heat during {hot} of {len(entries)} latencies (throttled).")
    return list(dict.fromkeys(sentences))


def not_measured(document: ReportDocument) -> list[str]:
    """What a reader might look for and will not find, with the reason as far as it is known."""
    sentences = []
    entries = [entry for row in document.rows for entry in row.latency]
    without = [row.row for row in document.rows if row.metrics.i2t_r10 is None]
    if without:
        sentences.append(f"Accuracy of {', '.join(without)}: no drift measurement has these rows.")
    without = [
        row.row for row in document.rows if row.against and row.precision in EIGHT_BITS and not row.int8_against_fp32
    ]
    if without:
        sentences.append(
            f"What 8 bits alone cost, of {', '.join(without)}: the FP32 that it is from is no row before it."
        )
    without = [row.row for row in document.rows if not row.latency]
    if without:
        sentences.append(f"Latency of {', '.join(without)}: no bench measurement has these rows.")
    if entries and all(entry.energy_mj is None for entry in entries):
        sentences.append("Energy: no power sensor was read.")
    if entries and all(entry.peak_bytes is None for entry in entries):
        sentences.append("Peak memory.")
    if entries and all(entry.ceiling_share is None for entry in entries):
        sentences.append("The share of the machine's peak arithmetic that is reached.")
    ran = any(entry.backend in GPU_BACKENDS for entry in entries)
    if document.engines and not ran:
        targets = sorted({file.target or "this GPU" for engine in document.engines for file in engine.files})
        sentences.append(
            f"Latency and accuracy of the TensorRT engines ({', '.join(targets)}): they were built and their layers "
            "audited, but no NVIDIA GPU ran them."
        )
    elif document.rows and not ran:
        sentences.append("NVIDIA GPUs: no TensorRT engine is part of this run.")
    if entries and all(entry.throttled is None for entry in entries):
        sentences.append("Throttling: this system does not count it.")
    return sentences
