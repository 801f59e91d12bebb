"""The stage that quantizes ONNX graphs of any architecture: for what is no checkpoint of ours.

A ResNet, a MobileCLIP, a hybrid, or a transformer of a family that `model.py` does not know comes as two graphs in
FP32. They are folded, calibrated and judged on ONNX Runtime, with the methods and the budget of `quantize`, and leave
as FP32 and as INT8 of both kinds. Both kinds compute in FP32 around their integers. `graph-ranges.json` and
`integers.safetensors` are those of a quantized checkpoint, with the products of a graph in the place of Linears, and
the ranges of what convolutions give, which `verdict` tries to quantize too. So bench, drift, verdict, report and build
take the artifact as any other.

Products are ranked one by one only where all of them together miss the budget: a graph of two hundred convolutions is
run two hundred times for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice
from typing import Any

from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor

from mmcompress.artifact import Artifact
from mmcompress.budget import Cost
from mmcompress.card import export_card
from mmcompress.compress.int8.fit import JUDGED, KINDS
from mmcompress.compress.int8.graphfit import FittedTower, fit_tower
from mmcompress.compress.int8.graphtower import Feeds, GraphTower
from mmcompress.compress.int8.record import fit_facts
from mmcompress.compress.int8.samples import (
    SHUFFLED,
    fitting_and_judging,
    images_in,
    noting,
    validating,
    warn_of_few,
)
from mmcompress.compress.int8.sensitivity import RANKED, kept_in_float
from mmcompress.compress.int8.simulate import distance
from mmcompress.config import QuantizeGraphsConfig
from mmcompress.data.batches import batches
from mmcompress.data.layout import read_labels
from mmcompress.data.preprocess import normalize
from mmcompress.data.sample import image_of
from mmcompress.errors import UsageError, suggestion
from mmcompress.export.export import Variant, described, save_graph
from mmcompress.export.graph import Numerics
from mmcompress.export.products import left_in_float
from mmcompress.int8 import (
    FLOATS_FACT,
    GRAPH_RANGES,
    INTEGERS,
    IntegerLinear,
    Linears,
    Signedness,
    tensors_from_linears,
)
from mmcompress.manifest import Graph
from mmcompress.progress import track
from mmcompress.runtime.encoder import tower_feeds
from mmcompress.runtime.session import Tower
from mmcompress.runtime.tokenize import load_tokenizer, text_processing, tokenize
from mmcompress.seen import write_seen_images
from mmcompress.stages import Job
from mmcompress.strictjson import write_json
from mmcompress.twins import FLOAT_MODEL, float_model

TOWERS: tuple[Tower, ...] = ("image", "text")
_PASSED_ON = ("params", "macs", "logit_scale", "logit_bias", "opset", "constant")


@dataclass(frozen=True)
class Pairs:
    """One batch of images and texts, or of one of both."""

    feeds: Mapping[Tower, Feeds]
    images: tuple[bytes, ...]
    """What `image_of` tells of each image file."""

    def rows(self, chosen: Sequence[int]) -> Pairs:
        """Some of the pairs."""
        few = {tower: {name: array[chosen] for name, array in fed.items()} for tower, fed in self.feeds.items()}
        return Pairs(few, tuple(self.images[row] for row in chosen))


def quantize_graphs(job: Job[QuantizeGraphsConfig]) -> None:
    """Stage: calibrate two FP32 graphs and fit their integers."""
    config, source, spec = job.config, job.sources["graphs"], job.config.data.train
    if spec is None:
        raise UsageError("quantize needs samples to calibrate on", "set data.train, or give --data")
    towers = {name: GraphTower.of(source.file(fp32_graph(source, name).file), name, job.work) for name in TOWERS}
    check_names(towers, config.keep)
    held = held_pairs(source, spec, config)
    fitting, judging, judged_on = fitting_and_judging(held)
    seen = images_in(held)
    fitted = {
        name: fit_tower(
            tower, one_tower(source, spec, config, name, seen), of(name, fitting), of(name, judging), config
        )
        for name, tower in towers.items()
    }
    deciding = judging
    if (validation := config.data.validation) is not None:
        deciding, judged_on = validating(held_pairs(source, validation, config), seen, validation)
    warn_of_few(config, arrays(of("image", deciding)), arrays(of("text", held)))
    answers = label_batches(source, config) or of("text", held)
    ranking, kept, left = keep_sensitive(towers, fitted, judging, deciding, answers, config)
    linears: dict[Signedness, Linears] = {
        kind: {n: linear for one in fitted.values() for n, linear in one.linears[kind].items() if n not in kept}
        for kind in KINDS
    }
    job.draft.inherit(source, *([source.tokenizer.file] if source.tokenizer else []))
    drift = {
        kind: {name: write_tower(job, towers[name], fitted[name], kind, kept, of(name, judging)) for name in TOWERS}
        for kind in KINDS
    }
    ranges = {name: ends for one in fitted.values() for name, ends in one.ranges.items() if name not in kept}
    write_json(job.draft.path / GRAPH_RANGES, ranges)
    save_file(tensors_from_linears(linears), job.draft.path / INTEGERS)
    write_seen_images(job.draft.path, seen)
    said = source.manifest.facts
    job.draft.facts = {
        **{name: said[name] for name in _PASSED_ON if name in said},
        "ranges_source": {
            "stage": "quantize-graphs",
            **config.model_dump(include={"method", "percentile", "samples", "seed"}),
        },
        "products": len(linears[JUDGED]),
        FLOATS_FACT: [
            name for key, tower in towers.items() for name in left_in_float(tower.model, tower.products, key)
        ],
        FLOAT_MODEL: float_model(source),
        **fit_facts(config, spec, {name: one.choices for name, one in fitted.items()}, ranking, kept, judged_on),
    }
    job.draft.metrics = {"calibration": {"drift": drift, **(asdict(left) if left else {})}}
    sizes = {file.name: file.stat().st_size for file in job.draft.path.iterdir()}
    teacher = source.manifest.config.get("teacher") or {}
    card = export_card(job.draft.graphs, sizes, job.draft.facts, teacher.get("source"), job.name)
    (job.draft.path / "README.md").write_text(card, encoding="utf-8")


def fp32_graph(source: Artifact, tower: Tower) -> Graph:
    """The graph to quantize. Raises UsageError where there is none in FP32."""
    for graph in source.manifest.graphs:
        if graph.tower == tower and graph.precision == "fp32":
            return graph
    held = ", ".join(graph.file for graph in source.manifest.graphs) or "none"
    raise UsageError(f"{source.path} has no {tower} graph in fp32; its graphs: {held}", "export it in fp32 as well")


def check_names(towers: dict[Tower, GraphTower], names: Sequence[str]) -> None:
    known = [product.name for tower in towers.values() for product in tower.products]
    for name in names:
        if name not in known:
            raise UsageError(f"keep: there is no product {name!r} in these graphs", suggestion(name, known))


def of(tower: Tower, pairs: Sequence[Pairs]) -> list[Feeds]:
    """What one tower is fed."""
    return [pair.feeds[tower] for pair in pairs]


def arrays(fed: Sequence[Feeds]) -> Iterator[NDArray[Any]]:
    """The first input of each batch: pixels, or token ids."""
    return (next(iter(one.values())) for one in fed)


def pairs_of(source: Artifact, spec: str, config: QuantizeGraphsConfig, towers: Sequence[Tower]) -> Iterator[Pairs]:
    """`config.samples` plain images, each with one of its captions in turn, shuffled over the shards."""
    stream = batches(
        spec,
        source.image_processing,
        batch=config.batch,
        workers=config.data.workers,
        max_bad_fraction=config.data.max_bad_fraction,
        shuffle_seed=config.seed,
        buffer=SHUFFLED,
    )
    image = fp32_graph(source, "image").inputs
    for batch in islice(stream, -(-config.samples // config.batch)):
        fed: dict[Tower, Feeds] = {}
        if "image" in towers:
            fed["image"] = tower_feeds(source, image, normalize(batch.pixels, source.image_processing))
        if "text" in towers:
            fed["text"] = text_feeds(source, [texts[i % len(texts)] for i, texts in enumerate(batch.captions)])
        yield Pairs(fed, tuple(map(image_of, batch.marks)))


def text_feeds(source: Artifact, texts: Sequence[str]) -> Feeds:
    """Token ids, and the mask where a graph asks for one."""
    text = text_processing(source)
    tokens = tokenize(load_tokenizer(source.file(text.file)), texts, text)
    return tower_feeds(source, fp32_graph(source, "text").inputs, tokens)


def held_pairs(source: Artifact, spec: str, config: QuantizeGraphsConfig) -> list[Pairs]:
    """The first batches, which are held in memory."""
    return list(islice(pairs_of(source, spec, config, TOWERS), -(-min(config.held, config.samples) // config.batch)))


def one_tower(
    source: Artifact, spec: str, config: QuantizeGraphsConfig, tower: Tower, seen: set[bytes]
) -> Iterator[Feeds]:
    """All samples of one tower, once, their images added to `seen`."""
    steps = -(-config.samples // config.batch)
    stream = noting(pairs_of(source, spec, config, (tower,)), seen)
    for pairs in track(stream, f"calibrating the {tower} tower", steps):
        yield pairs.feeds[tower]


def label_batches(source: Artifact, config: QuantizeGraphsConfig) -> list[Feeds]:
    """The labels as texts, where there are any."""
    labels = read_labels(config.data.labels) if config.data.labels is not None else []
    return [text_feeds(source, labels[i : i + config.batch]) for i in range(0, len(labels), config.batch)]


def keep_sensitive(
    towers: dict[Tower, GraphTower],
    fitted: dict[Tower, FittedTower],
    ranked: Sequence[Pairs],
    judged: Sequence[Pairs],
    answers: Sequence[Feeds],
    config: QuantizeGraphsConfig,
) -> tuple[dict[str, float], frozenset[str], Cost | None]:
    """The ranking of the products where one is needed, those that stay in float, and what INT8 costs all the same.

    Images that are `judged` choose between their captions and the answers.
    """
    if not config.sensitivity:
        return {}, frozenset(config.keep), None
    fed = {"image": of("image", judged), "text": [*of("text", judged), *answers]}

    @cache
    def embeddings(name: Tower, kept: frozenset[str]) -> Tensor:
        tower, one = towers[name], fitted[name]
        linears = {n: linear for n, linear in one.linears[JUDGED].items() if n not in kept}
        return tower.embedded(tower.quantized(linears, one.ranges, JUDGED), fed[name])

    ranking: dict[str, float] = {}

    def ranked_now() -> dict[str, float]:
        ranking.update(sensitivities(towers, fitted, ranked))
        return ranking

    products = [name for one in fitted.values() for name in one.linears[JUDGED]]
    kept, left = kept_in_float(embeddings, products, ranked_now, config)
    return ranking, kept, left


def sensitivities(
    towers: dict[Tower, GraphTower], fitted: dict[Tower, FittedTower], ranked: Sequence[Pairs]
) -> dict[str, float]:
    """How far the embeddings move with one product quantized, by product, the worst first."""
    drifts: dict[str, float] = {}
    for name, tower in towers.items():
        linears, ranges = fitted[name].linears[JUDGED], fitted[name].ranges
        few: list[Feeds] = [{key: array[:RANKED] for key, array in ranked[0].feeds[name].items()}]
        reference = tower.embedded(tower.model, few)
        for product, linear in track(linears.items(), f"sensitivity of the {name} tower", len(linears)):
            drifts[product] = distance(
                reference, tower.embedded(tower.quantized({product: linear}, ranges, JUDGED), few)
            )
    return dict(sorted(drifts.items(), key=lambda item: (-item[1], item[0])))


def write_tower(
    job: Job[QuantizeGraphsConfig],
    tower: GraphTower,
    fitted: FittedTower,
    kind: Signedness,
    kept: frozenset[str],
    judging: Sequence[Feeds],
) -> float:
    """Write one INT8 graph, and with the first kind the FP32 one, into the draft; return how far it moves.

    Of a tower that stays in float there is no INT8 graph.
    """
    linears: dict[str, IntegerLinear] = {n: linear for n, linear in fitted.linears[kind].items() if n not in kept}
    quantized = tower.quantized(linears, fitted.ranges, kind)
    written = [(Variant("int8", Numerics(activations=kind)), quantized)] if linears else []
    if kind == KINDS[0]:
        written.insert(0, (Variant("fp32", Numerics()), tower.model))
    for variant, model in written:
        path = job.draft.path / variant.file(tower.name)
        save_graph(model, path)
        job.draft.graphs.append(described(model, path.name, tower.name, variant))
    return distance(tower.embedded(tower.model, judging), tower.embedded(quantized, judging))
