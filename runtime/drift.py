"""What a step cost: accuracy on the test set, and distance from the teacher, on the files that are delivered.

Every row is measured against the first one, the teacher, and against the row before it, so that one sees what a step
cost and what all of them did. INT8 is also held against the FP32 row that it was quantized from. A product already has
an index that was built with the teacher; `old_index` says how well the new model's queries do on it.

The figures are pure functions: retrieval.py finds, agreement.py compares, significance.py says what is chance. Here
they are joined. One row's embeddings are in memory beside the teacher's, the previous row's and the last FP32 row's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmcompress.artifact import Artifact, Kind
from mmcompress.config import DriftConfig
from mmcompress.errors import UsageError
from mmcompress.progress import track
from mmcompress.runtime.agreement import class_changes, cosines, histogram
from mmcompress.runtime.figures import Document, Measured, distance, measured, metrics, same_space
from mmcompress.runtime.gallery import gallery, write_thumbnails
from mmcompress.runtime.retrieval import Ints, retrieval
from mmcompress.runtime.session import default_backend
from mmcompress.runtime.testset import Pairs, Row, embed_row

if TYPE_CHECKING:
    from mmcompress.stages import Job

__all__ = ["drift", "drift_report", "retrieval"]

CLASS_IMAGES = 5
"""Of a class with fewer images one flip is all there is to see."""


def drift(job: Job[DriftConfig]) -> None:
    """Stage: write drift.json over every gathered ONNX artifact, and the gallery; the first is the teacher."""
    report = drift_report(job.gathered, job.config, job.draft.path)
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    (job.draft.path / "drift.json").write_text(text, encoding="utf-8")


def drift_report(artifacts: Sequence[Artifact], config: DriftConfig, folder: Path | None = None) -> Document:
    """Embed the test set with every artifact, and compare. With a folder, the gallery's images are written there."""
    data = config.data
    if not artifacts or data.test is None:
        raise UsageError(
            "there is no artifact to measure" if not artifacts else "there is no test set: data.test is not set",
            "put `baseline` or `export` before `drift`" if not artifacts else "set [data] test, or give --data",
        )
    onnx = any(artifact.manifest.kind is Kind.ONNX for artifact in artifacts)
    backend = config.backend or (default_backend() if onnx else None)
    pairs: Pairs | None = None
    embedded: Row | None = None
    rows: list[Document] = []
    first: MeasuredRow | None = None
    before: MeasuredRow | None = None
    fp32: MeasuredRow | None = None
    for artifact in track(artifacts, "drift", total=len(artifacts)):
        own = backend if artifact.manifest.kind is Kind.ONNX else None
        pairs, embedded = embed_row(artifact, data, own, config.batch, pairs, embedded)
        row = measured_row(pairs, embedded, config.seed)
        first = first or row
        rows.append(_table_row(pairs, row, first, before, fp32 if embedded.precision == "int8" else None))
        before, fp32 = row, row if embedded.precision == "fp32" else fp32
    assert pairs is not None and first is not None and before is not None
    answers = (first.main.answers, before.main.answers)
    shown = gallery(pairs, first.chosen, answers, before.name, config.gallery)
    preprocessing = artifacts[0].manifest.preprocessing
    if folder is not None and preprocessing is not None:
        write_thumbnails(shown, data, preprocessing, folder)
    return {"backend": backend, "test": data.test, "rows": rows, "gallery": shown}


@dataclass(frozen=True)
class MeasuredRow:
    """A row's figures over the images of classes that were trained on, and over the others."""

    name: str
    precision: str
    chosen: Ints
    """The images that `main` is about."""
    main: Measured
    unseen: Measured | None


def measured_row(pairs: Pairs, row: Row, seed: int) -> MeasuredRow:
    """Classes that were kept out of training are apart, unless there is nothing else."""
    main, unseen = np.flatnonzero(pairs.seen), np.flatnonzero(~pairs.seen)
    if not len(main):
        main, unseen = unseen, main
    answerable = np.isin(pairs.image_group[unseen], pairs.text_group).any()
    apart = measured(pairs, row, unseen, seed) if answerable else None
    return MeasuredRow(row.name, row.precision, main, measured(pairs, row, main, seed), apart)


def _table_row(
    pairs: Pairs, row: MeasuredRow, first: MeasuredRow, before: MeasuredRow | None, fp32: MeasuredRow | None
) -> Document:
    comparable = row is not first and same_space(row.main, first.main)
    return {
        "row": row.name,
        "precision": row.precision,
        "images": len(row.main.images),
        "candidates": len(pairs.texts),
        "metrics": metrics(row.main, first.main),
        "against": first.name,
        "previous": {"row": before.name, **distance(row.main, before.main)[0]} if before else None,
        "unseen_images": len(pairs.keys) - len(row.main.images),
        "unseen": metrics(row.unseen, first.unseen) if row.unseen and first.unseen else None,
        "int8_against_fp32": _int8_against_fp32(row.main, fp32) if fp32 else None,
        "cosine_histogram": histogram(cosines(first.main.images, row.main.images)) if comparable else None,
        "per_class": _per_class(pairs, row.main, first.main) if pairs.classes else [],
    }


def _int8_against_fp32(row: Measured, fp32: MeasuredRow) -> Document:
    found = distance(row, fp32.main)[0]
    return {
        "row": fp32.name,
        "cosine_mean": found["cosine_mean"],
        "cosine_p01": found["cosine_p01"],
        "text_cosine_mean": float(cosines(fp32.main.texts, row.texts).mean()) if same_space(row, fp32.main) else None,
        "flip_rate": found["flip_rate"],
        "r10_drop": -found["r10_change"]["i2t"],
    }


def _per_class(pairs: Pairs, row: Measured, first: Measured) -> list[Document]:
    answered = row.i2t.answerable
    right = first.right[answered], row.right[answered]
    return class_changes(row.group[answered], pairs.texts, *right, fewest=CLASS_IMAGES)
