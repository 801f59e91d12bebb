"""What the measuring commands print: a table of the document that the stage wrote."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from mmcompress.artifact import Artifact
from mmcompress.cli.console import Summary, about, artifact_summary, empty_table
from mmcompress.compress.int8.comparison import CalibrationComparison
from mmcompress.compress.sizing.document import COSTS, CostsDocument
from mmcompress.formats import (
    ABSENT,
    BACKENDS,
    cosine,
    count,
    megabytes,
    milliseconds,
    percent,
    percent_interval,
    times,
)
from mmcompress.measure.bench.document import BenchDocument
from mmcompress.measure.bisect.document import BisectDocument
from mmcompress.measure.comparison import ComparisonDocument
from mmcompress.measure.drift.document import DriftDocument
from mmcompress.measure.verdict.document import VerdictDocument


def bench_summary(artifact: Artifact) -> Summary:
    """Latencies of a bench, with what the machine did to them."""
    printed, place = artifact_summary(artifact)
    bench = BenchDocument.read(artifact.file("bench.json"))
    table = empty_table(
        "row",
        "on",
        ">batch",
        ">threads",
        ">streams",
        ">p50",
        ">p95",
        ">p99",
        ">cv",
        ">images/s",
        ">ceiling",
        "",
        keys=3,
    )
    for row in bench.rows:
        for entry in row.latency:
            table.add_row(
                row.row,
                f"{entry.backend} {entry.precision}",
                *("" if n is None else str(n) for n in (entry.batch, entry.threads, entry.streams)),
                *(milliseconds(time_ms) for time_ms in (entry.p50_ms, entry.p95_ms, entry.p99_ms)),
                percent(entry.cv),
                f"{entry.throughput_ips:,.0f}",
                percent(entry.ceiling_share),
                " ".join(word for word, so in (("noisy", entry.noisy), ("throttled", entry.throttled)) if so),
            )
    warnings = [Text(f"note: {text}") for text in bench.environment.warnings]
    return printed, Group(table, *warnings, place)


def costs_summary(artifact: Artifact) -> Summary:
    """What the work of towers costs, and how well it tells the times of towers that were left out."""
    printed, place = artifact_summary(artifact)
    costs = CostsDocument.read(artifact.file(COSTS))
    table = empty_table("family", "tower", ">measured", ">composed", ">off", keys=2)
    for family, found in costs.families.items():
        for row in found.towers:
            off = row.predicted_ms / row.measured_ms - 1
            times_ms = (milliseconds(row.measured_ms), milliseconds(row.predicted_ms))
            table.add_row(family, row.tower, *times_ms, f"{100 * off:+.0f}%")
    return printed, Group(table, place)


def drift_summary(artifact: Artifact) -> Summary:
    """What drift measured, a line for each row."""
    drift = DriftDocument.read(artifact.file("drift.json"))
    table = empty_table(
        "row", ">top-1", ">R@10", "95%", ">change", ">cosine", ">worst", ">flips", ">lost", ">old index"
    )
    for row in drift.rows:
        metrics, change = row.metrics, row.metrics.r10_change
        table.add_row(
            row.row,
            percent(metrics.top1),
            percent(metrics.i2t_r10),
            percent_interval(metrics.ci95.get("i2t_r10")),
            f"{100 * change.i2t:+.1f}{'' if change.significant else ' n.s.'}" if change else "",
            cosine(metrics.cosine_mean),
            cosine(metrics.cosine_worst),
            percent(metrics.flip_rate),
            percent(metrics.flips_lost),
            percent(metrics.old_index.i2t_r10 if metrics.old_index else None),
        )
    notes = [f"{row.row}: {row.collapsed}, so its figures say nothing" for row in drift.rows if row.collapsed]
    first, last = drift.rows[0], drift.rows[-1].classification
    notes += [
        f"{drift.rows[-1].row}: {pair.images} images of {pair.label} are taken for {pair.answer}"
        for pair in (last.confusions[:3] if last else ())
    ]
    notes.append(f"{artifact.path}  against {first.row}, {count(first.images)} images")
    return about(artifact, drift=drift), Group(table, *map(Text, notes))


def bisect_summary(artifact: Artifact, most: int = 12) -> Summary:
    """The worst modules, and which to keep."""
    bisect = BisectDocument.read(artifact.file("bisect.json"))
    table = empty_table("module", ">excess, dB", ">local SQNR, dB", ">carried, dB", ">share of noise")
    for module in bisect.modules[:most]:
        figures = (module.excess_db, module.local_sqnr_db, module.carried_sqnr_db)
        table.add_row(module.module, *(f"{ratio_db:.1f}" for ratio_db in figures), percent(module.share))
    names = ", ".join(bisect.keep) or "none: no module is noisier than its precision makes it"
    lines = (f"keep in higher precision: {names}", str(artifact.path))
    return about(artifact, bisect=bisect), Group(table, *map(Text, lines))


def verdict_summary(artifact: Artifact) -> Summary:
    """Float graphs and INT8 side by side, and which to ship."""
    verdict = VerdictDocument.read(artifact.file("verdict.json"))
    table = empty_table(
        "precision",
        "on",
        ">size",
        ">image, p50",
        ">speed-up",
        "95%",
        ">text, p50",
        ">speed-up",
        ">R@10 lost",
        ">flips",
        keys=2,
    )
    for row in verdict.rows:
        image, text = row.image.against_fastest_float, row.text.against_fastest_float
        table.add_row(
            row.precision.upper(),
            BACKENDS[row.backend],
            megabytes(row.bytes),
            milliseconds(row.image.p50_ms),
            times(image.speedup if image else None),
            "–".join(f"{end:.2f}" for end in image.ci95) if image else "",
            milliseconds(row.text.p50_ms),
            times(text.speedup if text else None),
            percent(row.drift.r10_lost if row.drift else None),
            percent(row.drift.flip_rate if row.drift else None),
        )
    notes = [verdict.recommendation.sentence]
    notes += [f"not measured: {what}: {reason}" for what, reason in verdict.missing.items()]
    notes += [f"note: {text}" for text in verdict.environment.warnings]
    _, place = artifact_summary(artifact)
    return about(artifact, verdict=verdict), Group(table, *map(Text, notes), place)


def comparison_summary(compared: ComparisonDocument | CalibrationComparison) -> Summary:
    """What `compare` found: one line a pair of measurements, and what to know about it; or one a range."""
    view = _pairs_view(compared) if isinstance(compared, ComparisonDocument) else _calibrations_view(compared)
    return compared.model_dump(mode="json", by_alias=True), view


def _pairs_view(compared: ComparisonDocument) -> RenderableType:
    """One line a pair of measurements, and what to know about it."""
    table = empty_table("row", "on", ">batch", ">A", ">B", ">B is faster by", "95%", "", ">ceiling, A", ">B", keys=3)
    for pair in compared.comparisons:
        a, b = pair.a, pair.b
        names = dict.fromkeys(f"{side.row} {side.precision}" for side in (a, b))
        table.add_row(
            " / ".join(names),
            " / ".join(dict.fromkeys((a.backend, b.backend))),
            str(pair.batch),
            milliseconds(a.p50_ms),
            milliseconds(b.p50_ms),
            f"{pair.speedup:.3f} times",
            f"{pair.ci95[0]:.3f}–{pair.ci95[1]:.3f}",
            "significant" if pair.significant else "not significant",
            percent(a.ceiling_share),
            percent(b.ceiling_share),
        )
    notes = [
        f"ceiling: {peak.backend} {peak.precision}, {peak.threads} threads: {peak.gmacs_per_s:.0f} GMAC/s"
        for peak in compared.ceiling
    ]
    notes += [f"note: {note}" for note in compared.notes]
    return Group(table, *map(Text, notes))


def _calibrations_view(compared: CalibrationComparison) -> RenderableType:
    """The ranges of two calibrations, those that differ most first."""
    table = empty_table("activation", ">A from", ">to", "by", ">B from", ">to", "by", ">B's step is")
    for pair in compared.ranges:
        cells = []
        for side, method in zip((pair.a, pair.b), pair.methods, strict=True):
            cells += [f"{side['low']:.3g}", f"{side['high']:.3g}"] if side else [ABSENT, ABSENT]
            cells.append(method or "")
        table.add_row(pair.module, *cells, ABSENT if pair.ratio is None else f"{pair.ratio:.3f} times")
    drifts = [
        f"drift of {letter}: "
        + ", ".join(f"{kind} {tower} {value:.3g}" for kind, towers in drift.items() for tower, value in towers.items())
        for letter, drift in zip("AB", compared.drift, strict=True)
        if drift
    ]
    return Group(table, *map(Text, drifts))
