"""verdict.json: whether INT8 earns its place on a backend, and the file to ship."""

from __future__ import annotations

from typing import Annotated

from mmcompress.budget import Cost
from mmcompress.config import Backend, Precision
from mmcompress.document import Amount, CallMilliseconds, Cosine, Count, Document, Part, Rate, Share, each_once
from mmcompress.measure.document import Activations, RaceEnvironment, SanityCheck, Speedup


class TowerLatency(Part):
    """Of one tower's graph in the final race, and its ratio to the fastest float graph."""

    samples: Amount
    """Calls that were counted."""
    p50_ms: CallMilliseconds
    """Median time of a call in ms."""
    p90_ms: CallMilliseconds
    """90th percentile of the time of a call in ms."""
    p99_ms: CallMilliseconds
    """99th percentile of the time of a call in ms."""
    throughput_ips: Rate
    """Inputs a second at the mean time."""
    rounds_ms: tuple[CallMilliseconds, ...]
    """Median ms of the calls of each round."""
    against_fastest_float: Speedup | None
    """How many times as fast as the fastest float graph; null of that one itself."""


class HeldOutDrift(Part):
    """How far a graph is from FP32 on the same backend, on the held-out pairs."""

    flip_rate: Share
    """Share of the images with another best text, 0 to 1."""
    text_flip_rate: Share
    """Share of the texts with another best image, 0 to 1."""
    cosine_mean: Cosine
    """Mean cosine of an image's two embeddings, -1 to 1."""
    cosine_p01: Cosine
    """First percentile of these cosines."""
    text_cosine_mean: Cosine
    """Mean cosine of a text's two embeddings, -1 to 1."""
    text_cosine_p01: Cosine
    """First percentile of these cosines."""
    r10_lost: Share
    """Share of the queries, images and texts alike, that lost their hit at 10, 0 to 1."""

    @property
    def cost(self) -> Cost:
        """What a budget is about."""
        return Cost(self.r10_lost, self.flip_rate)


class VerdictRow(Part):
    """Both towers in one precision on one backend, as they ran in the final race."""

    name: str
    """The candidate of INT8 graphs, else the precision."""
    precision: Precision
    """Of the graphs; a tower of which the budget kept every product in float is a float graph all the same."""
    backend: Backend
    """The runtime."""
    recommended: bool
    """Whether this is what to ship."""
    bytes: Count
    """Of both towers' files, weights beside them included."""
    image: TowerLatency
    """The image tower."""
    text: TowerLatency
    """The text tower."""
    drift: HeldOutDrift | None
    """From FP32; null of FP32 itself."""


class VerdictCandidate(Part):
    """One way to write the INT8 graphs, as it was screened."""

    name: str
    """Its short name."""
    says: str
    """Which products are integers."""
    activations: Activations
    """Integers of the quantized activations."""
    kept: tuple[str, ...]
    """Modules that stay in float."""
    image_p50_ms: CallMilliseconds | None
    """Median time of the image tower in ms; null where the backend does not take it."""
    against_fp32: Speedup | None
    """Of the image tower over FP32 on the backend; null where the backend does not take it."""
    drift: HeldOutDrift | None
    """From FP32; null where faster candidates within the budget made it needless."""
    within_budget: bool | None
    """Whether that drift is allowed; null where it is not known."""
    finalist: bool
    """Whether it took part in the final race."""
    failed: str | None
    """Why the backend does not take it; null where it does."""


class Recommendation(Part):
    """What to ship."""

    int8: bool
    """Whether INT8 earns its place."""
    precision: Precision
    """Of what to ship."""
    backend: Backend
    """Where to run it."""
    files: tuple[str, ...]
    """Graphs of the image and the text tower."""
    candidate: str
    """The best of the INT8 candidates, recommended or not."""
    doubts: tuple[str, ...] = ()
    """Limits of the budget that it passes by no more than chance may do; `strict` does not accept them."""
    sentence: str
    """The verdict in plain words."""


class FloatGraph(Part):
    """A float graph on a backend."""

    precision: Precision
    """Of the graph."""
    backend: Backend
    """The runtime."""


class ReasonedRecommendation(Recommendation):
    """What to ship, and why."""

    to_beat: FloatGraph
    """The fastest float graph."""
    obstacles: tuple[str, ...]
    """What speaks against INT8; empty where it is recommended."""


class VerdictDocument(Document):
    """FP32, on GPUs FP16, and INT8 of one checkpoint on one backend, and the recommendation."""

    backend: Backend
    """The runtime that was asked about."""
    batch: Amount
    """Inputs of a call."""
    threads: Amount | None
    """Of the runtime; null on a GPU."""
    data: str
    """Where the held-out pairs come from."""
    pairs: Count
    """Held-out images."""
    texts: Count
    """Different texts that they choose from: their captions, else labels, else sentences that ship."""
    left_out: Count | None = None
    """Images that judge nothing, since they or copies of them calibrated; null where it is not known which did."""
    own_answers: bool = False
    """Whether right is what FP32 answers, of photos that nobody captioned."""
    labels: str | None = None
    """The list of labels that photos choose from; null where none was given."""
    max_drop: Share | None
    """Share of R@10 hits that was allowed to be lost, 0 to 1; null for any."""
    max_flips: Share | None
    """Share of images whose best text was allowed to change, 0 to 1; null for any."""
    sanity: Annotated[tuple[SanityCheck, ...], each_once("check")]
    """Checks of the FP32 baseline, all of them passed."""
    rows: Annotated[tuple[VerdictRow, ...], each_once("name", "precision", "backend")]
    """The float graphs, FP32 on the backend first, and the best INT8 candidate."""
    missing: dict[str, str]
    """Float graphs that do not run here, and why."""
    candidates: Annotated[tuple[VerdictCandidate, ...], each_once("name")]
    """Every INT8 candidate."""
    recommendation: ReasonedRecommendation
    """What to ship, and why."""
    environment: RaceEnvironment
    """What it was measured on, and what the machine did meanwhile."""
