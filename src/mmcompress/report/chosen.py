"""Which of several measurements of the same files a report shows, and why, in sentences.

A folder of runs may hold two drifts of one test set, or two benches of one machine: a second look after the first was
noisy, say. Nothing is averaged, since they are of other moments, and nothing is dropped without a word.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmcompress.formats import BACKENDS
from mmcompress.measure.bench.document import BenchDocument
from mmcompress.measure.drift.document import DriftDocument
from mmcompress.report.measured import Measurement


def chosen_drift(drifts: Sequence[Measurement[DriftDocument]]) -> list[str]:
    """A sentence where further drifts measured the rows of the first on the same test set."""
    if not drifts:
        return []
    first, rows = drifts[0], {row.row for row in drifts[0].document.rows}
    alike = [
        str(other.folder)
        for other in drifts[1:]
        if other.document.test == first.document.test and not rows.isdisjoint(row.row for row in other.document.rows)
    ]
    if not alike:
        return []
    return [
        f"Accuracy is from {first.folder}, the first of {1 + len(alike)} drifts of the same files on the same test "
        f"set; {', '.join(alike)} {'is' if len(alike) == 1 else 'are'} not shown. To show another, name it first: "
        f"mmcompress report {alike[0]} …"
    ]


def chosen_bench(benches: Sequence[Measurement[BenchDocument]], ids: Sequence[str]) -> list[str]:
    """A sentence a machine on which several benches made the same runs of the same rows."""
    runs: dict[str, dict[tuple[object, ...], list[str]]] = {}
    for bench, machine in zip(benches, ids, strict=True):
        for row in bench.document.rows:
            for one in row.latency:
                run = (row.row, one.backend, one.precision, one.batch, one.streams, one.threads)
                names = runs.setdefault(machine, {}).setdefault(run, [])
                if str(bench.folder) not in names:
                    names.append(str(bench.folder))
    sentences = []
    for machine, measured in runs.items():
        repeated = {run: names for run, names in measured.items() if len(names) > 1}
        if repeated:
            names = list(dict.fromkeys(name for found in repeated.values() for name in found))
            backends = sorted({BACKENDS.get(str(run[1]), str(run[1])) for run in repeated})
            sentences.append(
                f"{', '.join(names)} measured the same files on {machine} with {' and '.join(backends)}: all their "
                "latencies are listed, and of each row the run with the lowest median counts, as noise only slows "
                "down. To count one alone, give the report that one."
            )
    return sentences
