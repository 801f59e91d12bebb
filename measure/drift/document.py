"""drift.json: what each step cost in accuracy, and how far it moved from the teacher and from the step before it."""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator
from typing_extensions import Self

from mmcompress.config import Backend, Precision
from mmcompress.document import Change, Cosine, Count, Document, Interval, Part, Share, check_bins, each_once


class Recalls(Part):
    """Share of the queries with a match among the best k, 0 to 1."""

    i2t_r1: Share
    """Image to text, k = 1."""
    i2t_r5: Share
    """Image to text, k = 5."""
    i2t_r10: Share
    """Image to text, k = 10."""
    t2i_r1: Share
    """Text to image, k = 1; of classes, the classes are the queries."""
    t2i_r5: Share
    """Text to image, k = 5; of classes, the classes are the queries."""
    t2i_r10: Share
    """Text to image, k = 10; of classes, the classes are the queries."""


class RecallChange(Part):
    """Recall at 10 of a row minus that of another one, over the same images."""

    i2t: Change
    """Image to text, -1 to 1."""
    ci95: Interval | None
    """Paired 95% interval; null where there was nothing to resample."""
    significant: bool
    """Whether the interval leaves out 0."""


class Distance(Part):
    """How far a row is from another one, over the images of the test set."""

    cosine_mean: Cosine | None
    """Mean cosine of an image's two embeddings, -1 to 1; null where the two have different dimensions."""
    cosine_p01: Cosine | None
    """First percentile of these cosines; null where the two have different dimensions."""
    cosine_worst: Cosine | None
    """Smallest of these cosines; null where the two have different dimensions."""
    flip_rate: Share
    """Share of the images with another best text, 0 to 1."""
    flips_gained: Share
    """Share of the images whose best text became right, 0 to 1."""
    flips_lost: Share
    """Share of the images whose best text became wrong, 0 to 1."""
    mcnemar_p: Share
    """Of McNemar's exact test that as many answers were gained as lost, 0 to 1."""
    rank_correlation: Cosine
    """Mean over images of Spearman's correlation of their texts' order, -1 to 1 but for rounding."""
    r10_change: RecallChange | None
    """Change of the recall at 10; null of a row from itself."""


class _OfRow(Part):
    row: str
    """Name of the artifact that is compared with."""


class PreviousDistance(Distance, _OfRow):
    """How far a row is from the one before it."""


class Metrics(Part):
    """Every figure of a row, alone and against the first row."""

    top1: Share | None
    """Share of the images whose best text is their class, 0 to 1; null where the texts are captions."""
    top5: Share | None
    """The same among the best five; null where the texts are captions or fewer than five classes."""
    i2t_r1: Share
    """Share of the images with a match among the best 1, 0 to 1."""
    i2t_r5: Share
    """Share of the images with a match among the best 5, 0 to 1."""
    i2t_r10: Share
    """Share of the images with a match among the best 10, 0 to 1."""
    margin_mean: float
    """Mean over images of the best text's cosine minus the second best's, 0 to 2."""
    t2i_r1: Share
    """Share of the texts with a match among the best 1, 0 to 1; of classes, the classes are the queries."""
    t2i_r5: Share
    """Share of the texts with a match among the best 5, 0 to 1; of classes, the classes are the queries."""
    t2i_r10: Share
    """Share of the texts with a match among the best 10, 0 to 1; of classes, the classes are the queries."""
    mean_per_class_recall: Share | None
    """Mean over classes of their share of right first answers, 0 to 1; null where the texts are captions."""
    ece: Share | None
    """Expected calibration error, 0 to 1; null where the texts are captions or the logit scale is unknown."""
    text_cosine_mean: Cosine | None
    """Mean cosine of a text's embeddings here and in the first row; null where their dimensions differ."""
    text_cosine_p01: Cosine | None
    """First percentile of these cosines; null where the dimensions differ."""
    cosine_mean: Cosine | None
    """Mean cosine of an image's embeddings here and in the first row; null where their dimensions differ."""
    cosine_p01: Cosine | None
    """First percentile of these cosines; null where the dimensions differ."""
    cosine_worst: Cosine | None
    """Smallest of these cosines; null where the dimensions differ."""
    flip_rate: Share
    """Share of the images with another best text than in the first row, 0 to 1."""
    flips_gained: Share
    """Share of the images whose best text became right, 0 to 1."""
    flips_lost: Share
    """Share of the images whose best text became wrong, 0 to 1."""
    mcnemar_p: Share
    """Of McNemar's exact test that as many answers were gained as lost, 0 to 1."""
    rank_correlation: Cosine
    """Mean over images of Spearman's correlation of their texts' order with the first row's, -1 to 1."""
    r10_change: RecallChange | None
    """Against the first row; null of the first row itself."""
    old_index: Recalls | None
    """Of this row's queries among the first row's embeddings; null of the first row itself, and where the dimensions
    differ."""
    ci95: dict[str, Interval]
    """95% interval of each figure that has one, by its name; those of the old index begin with `old_index_`."""


class Int8Distance(Part):
    """How far INT8, or FP8, is from the FP32 row that it was quantized from."""

    row: str
    """Name of that row."""
    cosine_mean: Cosine | None
    """Mean cosine of an image's two embeddings, -1 to 1; null where the dimensions differ."""
    cosine_p01: Cosine | None
    """First percentile of these cosines; null where the dimensions differ."""
    text_cosine_mean: Cosine | None
    """Mean cosine of a text's two embeddings; null where the dimensions differ."""
    flip_rate: Share
    """Share of the images with another best text, 0 to 1."""
    r10_drop: Change
    """Recall at 10, image to text, of FP32 minus that of the 8 bits, -1 to 1."""


class CosineHistogram(Part):
    """Images by the cosine of their two embeddings."""

    edges: tuple[float, ...]
    """Edges of equal bins, up to 1; one more than counts."""
    counts: tuple[Count, ...]
    """Images of each bin."""

    @model_validator(mode="after")
    def _bins(self) -> Self:
        check_bins(self.edges, self.counts)
        return self


class ClassChange(Part):
    """A class that lost right answers against the first row."""

    label: str
    """Its name."""
    images: Count
    """Images of it; classes with few are left out."""
    before: Share
    """Share of right first answers in the first row, 0 to 1."""
    after: Share
    """Share of right first answers in this row, 0 to 1."""


class ClassFigures(Part):
    """How a class is answered, as the field counts it."""

    label: str
    """Its name."""
    support: Count
    """Images of it."""
    answered: Count
    """Images whose best text it is."""
    precision: Share | None
    """Share of those that are of it, 0 to 1; null where it is never answered."""
    recall: Share | None
    """Share of its images that are answered so, 0 to 1; null where it has none."""
    f1: Share
    """Harmonic mean of both, 2 TP / (support + answered), 0 to 1."""


class Confusion(Part):
    """Images of one class that are taken for another one."""

    label: str
    """The class that they are of."""
    answer: str
    """The class that they are taken for."""
    images: Count
    """How many."""
    share: Share
    """Of the images of their class, 0 to 1."""


class Classification(Part):
    """First answers by class, over the same images as `metrics`."""

    precision: Share
    """Mean over `classes`, in which one that is never answered counts as 0 (scikit-learn's macro average)."""
    recall: Share
    """Mean over `classes`, in which one without images counts as 0 (scikit-learn's macro average)."""
    f1: Share
    """Mean over `classes` (scikit-learn's macro average)."""
    classes: tuple[ClassFigures, ...]
    """Every class that has images or is answered, the lowest F1 first."""
    confusions: tuple[Confusion, ...]
    """The pairs of classes with most images, up to twenty."""


class DriftRow(Part):
    """An artifact."""

    row: str
    """Its name."""
    precision: Precision
    """Of its image graph."""
    images: Count
    """Images that `metrics` is about: those of classes that were trained on, where there are any."""
    candidates: Count
    """Texts that every image chooses from."""
    metrics: Metrics
    """Its figures."""
    collapsed: str | None = None
    """Why its figures say nothing, in words; null where nothing is wrong, and in files of older versions."""
    calibrated_images: Count | None = None
    """Images of the test set that calibrated it, or are copies of such; null where it does not say what calibrated."""
    against: str
    """Name of the first row, which it is compared with."""
    previous: PreviousDistance | None
    """From the row before it; null of the first row."""
    unseen_images: Count
    """The other images: those of classes that were kept out of training."""
    unseen: Metrics | None
    """The same figures of these; null where there are none."""
    int8_against_fp32: Int8Distance | None
    """From its own FP32; null where this row is not in 8 bits, and where no row before it is its model."""
    cosine_histogram: CosineHistogram | None
    """Against the first row; null of the first row itself, and where the dimensions differ."""
    per_class: tuple[ClassChange, ...]
    """Classes that lost most, the worst first; empty where the texts are captions."""
    classification: Classification | None = None
    """First answers by class; null where the texts are captions, and in files of older versions."""


class Choice(Part):
    """What a row answers for an image."""

    text: str
    """The best text."""
    score: Cosine
    """Its cosine, -1 to 1."""
    map: str | None = None
    """A picture, relative to the document: what the row looks at for it. Null where none was made."""


class GalleryEntry(Part):
    """An image that the last row answers otherwise than the first."""

    file: str
    """Its thumbnail, relative to the document."""
    key: str
    """Of the sample in the test set."""
    truth: tuple[str, ...]
    """The texts that belong to it."""
    row: str
    """Name of the last row."""
    teacher: Choice
    """What the first row answers."""
    answer: Choice
    """What the last row answers."""


class DriftDocument(Document):
    """Accuracy and drift of every gathered artifact on one test set."""

    backend: Backend | None
    """The runtime of the ONNX artifacts; null where there are engines only."""
    test: str
    """The test set."""
    own_answers: bool = False
    """Whether right is what the first row answers, of photos that nobody captioned."""
    rows: Annotated[tuple[DriftRow, ...], each_once("row")]
    """In the order of the recipe; the first is the teacher."""
    gallery: Annotated[tuple[GalleryEntry, ...], each_once("file")]
    """Some of the images that the last row answers otherwise, spread over the first row's margin."""
