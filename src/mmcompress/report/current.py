"""Figures belong to files, not to names: they follow a folder that was renamed, and those of other files are left out.

A measurement says by the digests of its parents which artifacts it is of. A folder may hold other graphs by now.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel

from mmcompress.artifact import Artifact
from mmcompress.document import Document
from mmcompress.measure.bench.document import BenchDocument
from mmcompress.measure.drift.document import DriftDocument, DriftRow
from mmcompress.report.measured import Measurement

D = TypeVar("D", bound=Document)
_NAMES_OF_ROWS = ("row", "against")
"""Fields of documents that are the name of a row."""


def renamed(measurement: Measurement[D], rows: Collection[Artifact]) -> Measurement[D]:
    """With the names that its files have now, where a row is those very files and no row of its old name is."""
    digests = {row.path.name: row.digest for row in rows}
    names = {row.digest: row.path.name for row in reversed([*rows])}
    moved = {
        name: names[digest]
        for name, digest in measurement.digests.items()
        if digests.get(name) != digest and digest in names and names[digest] not in measurement.digests
    }
    if not moved:
        return measurement
    digests = {moved.get(name, name): digest for name, digest in measurement.digests.items()}
    return replace(measurement, digests=digests, document=_with_names(measurement.document, moved))


def _with_names(part: Any, names: Mapping[str, str]) -> Any:
    """A document, or a part of one, with other names of rows."""
    if isinstance(part, tuple):
        return tuple(_with_names(one, names) for one in part)
    if not isinstance(part, BaseModel):
        return part
    fields = {
        key: names.get(value, value) if key in _NAMES_OF_ROWS else _with_names(value, names) for key, value in part
    }
    return part.model_copy(update=fields)


def other_files(measurement: Measurement[D], rows: Iterable[Artifact]) -> set[str]:
    """Names of rows that are other files now than those that were measured."""
    digests = {row.path.name: row.digest for row in rows}
    return {name for name, digest in measurement.digests.items() if digests.get(name, digest) != digest}


def current_bench(bench: Measurement[BenchDocument], rows: Collection[Artifact]) -> Measurement[BenchDocument]:
    """Without latencies of other files, and without ratios to or from them."""
    if not (others := other_files(bench, rows)):
        return bench
    kept = {
        "rows": tuple(row for row in bench.document.rows if row.row not in others),
        "ratios": tuple(
            ratio for ratio in bench.document.ratios if others.isdisjoint({ratio.numerator.row, ratio.denominator.row})
        ),
    }
    return replace(bench, document=bench.document.model_copy(update=kept))


def current_drift(drift: Measurement[DriftDocument], rows: Collection[Artifact]) -> Measurement[DriftDocument] | None:
    """Without figures of other files, and of those against them; None where the first row is another file, against
    which every row was measured."""
    if not (others := other_files(drift, rows)):
        return drift
    document = drift.document
    if not document.rows or document.rows[0].row in others:
        return None
    kept = {
        "rows": tuple(_apart_from(others, row) for row in document.rows if row.row not in others),
        "gallery": tuple(entry for entry in document.gallery if entry.row not in others),
    }
    return replace(drift, document=document.model_copy(update=kept))


def _apart_from(others: Collection[str], row: DriftRow) -> DriftRow:
    """The row without what was measured against other files."""
    update: Mapping[str, None] = {
        name: None
        for name, of in (("previous", row.previous), ("int8_against_fp32", row.int8_against_fp32))
        if of is not None and of.row in others
    }
    return row.model_copy(update=update)
