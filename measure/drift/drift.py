"""What a step cost: accuracy on the test set, and distance from the teacher, on the files that are delivered.

Every row is measured against the first one, the teacher, and against the row before it, so that one sees what a step
cost and what all of them did. INT8 and FP8 are also held against their own FP32, where that is a row before them.
A product already has an index that was built with the teacher; `old_index` says how well the new model's queries do.

The figures are pure functions: retrieval.py finds, agreement.py compares, significance.py says what is chance. Here
they are joined. One row's embeddings are in memory beside the teacher's, the previous row's and the FP32 of INT8 rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmcompress.artifact import Artifact
from mmcompress.config import EIGHT_BITS, DriftConfig, Precision
from mmcompress.data.spec import is_photos
from mmcompress.errors import UsageError
from mmcompress.manifest import Kind
from mmcompress.measure.agreement import class_changes, cosines, histogram
from mmcompress.measure.drift.classes import classification
from mmcompress.measure.drift.document import (
    ClassChange,
    Classification,
    DriftDocument,
    DriftRow,
    Int8Distance,
    PreviousDistance,
)
from mmcompress.measure.drift.figures import (
    RowAnswers,
    answers_of,
    distance,
    flips_between,
    metrics,
    r10_change,
    same_space,
)
from mmcompress.measure.drift.gallery import gallery, mapped, write_pictures
from mmcompress.measure.drift.testset import EvaluationSet, Row, embed_row
from mmcompress.measure.retrieval import Ints, retrieval
from mmcompress.measure.sanity import collapsed, of_few
from mmcompress.progress import say, track
from mmcompress.runtime.backends import default_backend, graph_for, own_backend
from mmcompress.seen import seen_images
from mmcompress.twins import float_model

if TYPE_CHECKING:
    from mmcompress.stages import Job

__all__ = ["drift", "drift_document", "retrieval"]

NO_FP32 = "the FP32 that it was quantized from is no row before it"
CLASS_IMAGES = 5
"""Of a class with fewer images one flip is all there is to see."""


def drift(job: Job[DriftConfig]) -> None:
    """Stage: write drift.json over every gathered artifact, and the gallery; the first is the teacher."""
    drift_document(job.gathered, job.config, job.draft.path).write(job.draft.path / "drift.json")


def drift_document(artifacts: Sequence[Artifact], config: DriftConfig, folder: Path | None = None) -> DriftDocument:
    """Embed the test set with every artifact, and compare. With a folder, the gallery's images are written there."""
    data = config.data
    if not artifacts or data.test is None:
        raise UsageError(
            "there is no artifact to measure" if not artifacts else "there is no test set: data.test is not set",
            "put `baseline` or `export` before `drift`" if not artifacts else "set [data] test, or give --data",
        )
    onnx = any(artifact.manifest.kind is Kind.ONNX for artifact in artifacts)
    backend = config.backend or (default_backend() if onnx else None)
    for engine in (artifact for artifact in artifacts if artifact.manifest.kind is Kind.ENGINE):
        graph_for(engine, "image", own_backend(engine))  # no GPU, or another one: before graphs take minutes
    pairs: EvaluationSet | None = None
    embedded: Row | None = None
    rows: list[DriftRow] = []
    first: SplitRow | None = None
    before: SplitRow | None = None
    quantized = {float_model(a) for a in artifacts if any(graph.precision in EIGHT_BITS for graph in a.manifest.graphs)}
    fp32: dict[str | None, SplitRow] = {}
    for artifact in track(artifacts, "drift", total=len(artifacts)):
        own = backend if artifact.manifest.kind is Kind.ONNX else None
        pairs, embedded = embed_row(artifact, data, own, config.batch, pairs, embedded)
        row = split_row(pairs, embedded, config.seed)
        first = first or row
        model = float_model(artifact)
        own_fp32 = fp32.get(model) if embedded.precision in EIGHT_BITS else None
        rows.append(_table_row(pairs, row, first, before, own_fp32, artifact))
        if embedded.precision in EIGHT_BITS and own_fp32 is None:
            alone = f"what {embedded.precision.upper()} alone costs is not measured"
            say("drift", row.name, f"warning: {NO_FP32}: {alone}")
        if calibrated := rows[-1].calibrated_images:
            what = f"{calibrated} of {len(pairs.keys)} test images calibrated it, or are copies of such"
            say("drift", row.name, f"warning: {what}, so its figures may flatter it")
        if rows[-1].collapsed:
            say("drift", row.name, f"warning: {rows[-1].collapsed}, so its figures say nothing")
        if embedded.precision == "fp32" and model is not None and model in quantized:
            fp32[model] = row
        before = row
    assert pairs is not None and first is not None and before is not None
    for warning in of_few(len(first.main.images), len(pairs.texts)):
        say("drift", "drift", f"warning: {warning}")
    answers = (first.main.answers, before.main.answers)
    shown = gallery(pairs, first.chosen, flips_between(first.main, before.main), answers, before.name, config.gallery)
    if folder is not None and shown:
        shown = mapped(shown, len(pairs.keys))
        models = (artifacts[0], artifacts[-1])
        write_pictures(shown, models, backend, data, pairs.templates, folder)
    answered = is_photos(data.test)
    return DriftDocument(backend=backend, test=data.test, own_answers=answered, rows=tuple(rows), gallery=tuple(shown))


@dataclass(frozen=True)
class SplitRow:
    """A row's figures over the images of classes that were trained on, and over the others."""

    name: str
    precision: Precision
    chosen: Ints
    """The images that `main` is about."""
    main: RowAnswers
    unseen: RowAnswers | None


def split_row(pairs: EvaluationSet, row: Row, seed: int) -> SplitRow:
    """Classes that were kept out of training are apart, unless there is nothing else."""
    main, unseen = np.flatnonzero(pairs.seen), np.flatnonzero(~pairs.seen)
    if not len(main):
        main, unseen = unseen, main
    answerable = np.isin(pairs.image_group[unseen], pairs.text_group).any()
    apart = answers_of(pairs, row, unseen, seed) if answerable else None
    return SplitRow(row.name, row.precision, main, answers_of(pairs, row, main, seed), apart)


def _table_row(
    pairs: EvaluationSet,
    row: SplitRow,
    first: SplitRow,
    before: SplitRow | None,
    fp32: SplitRow | None,
    artifact: Artifact,
) -> DriftRow:
    calibrated = seen_images(artifact)
    comparable = row is not first and same_space(row.main, first.main)
    return DriftRow(
        row=row.name,
        precision=row.precision,
        images=len(row.main.images),
        candidates=len(pairs.texts),
        metrics=metrics(row.main, first.main),
        collapsed=_collapsed(row.main),
        calibrated_images=None if calibrated is None else sum(image in calibrated for image in pairs.image_files),
        against=first.name,
        previous=_previous(row.main, before) if before else None,
        unseen_images=len(pairs.keys) - len(row.main.images),
        unseen=metrics(row.unseen, first.unseen) if row.unseen and first.unseen else None,
        int8_against_fp32=_int8_against_fp32(row.main, fp32) if fp32 else None,
        cosine_histogram=histogram(cosines(first.main.images, row.main.images)) if comparable else None,
        per_class=tuple(_per_class(pairs, row.main, first.main)) if pairs.classes else (),
        classification=_classification(pairs, row.main) if pairs.classes else None,
    )


def _previous(row: RowAnswers, before: SplitRow) -> PreviousDistance:
    return PreviousDistance(row=before.name, **dict(distance(row, before.main)[0]))


def _collapsed(row: RowAnswers) -> str | None:
    return collapsed(row.images, row.texts, row.group, row.i2t, row.answers.hits)


def _int8_against_fp32(row: RowAnswers, fp32: SplitRow) -> Int8Distance:
    apart, change = distance(row, fp32.main)[0], r10_change(row, fp32.main)
    return Int8Distance(
        row=fp32.name,
        cosine_mean=apart.cosine_mean,
        cosine_p01=apart.cosine_p01,
        text_cosine_mean=float(cosines(fp32.main.texts, row.texts).mean()) if same_space(row, fp32.main) else None,
        flip_rate=apart.flip_rate,
        r10_drop=-change.i2t,
    )


def _classification(pairs: EvaluationSet, row: RowAnswers) -> Classification | None:
    answered = row.i2t.answerable
    return classification(row.group[answered], row.answers.best[answered], pairs.texts)


def _per_class(pairs: EvaluationSet, row: RowAnswers, first: RowAnswers) -> list[ClassChange]:
    answered = row.i2t.answerable
    right = first.right[answered], row.right[answered]
    return class_changes(row.group[answered], pairs.texts, *right, fewest=CLASS_IMAGES)
