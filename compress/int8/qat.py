"""The qat stage: train the integers of a quantized checkpoint, for when fitting them alone loses too much.

The model teaches itself: the float weights of the checkpoint, which are those that quantization started from, say where
augmented images and captions belong, and the integers learn to put them there. Trained is what a graph stores of its
Linears and convolutions and nothing else: weights, biases, activation ranges. So the float weights stay the file that
they were, the FP32 export is still the reference that drift is against, and what stays in float is not touched.
LayerNorms could be trained too, but then every INT8 graph would have an FP32 twin of its own.

Both kinds of graph learn in one run: their integers are apart, and each takes one half of every batch. Every tower of
either kind is taken over only where it came closer to FP32 on samples that judge; else the fit's own integers stay.
A convolutional tower is judged as the graph that is delivered, and trained with its BatchNorms folded, as it has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from mmcompress.artifact import Artifact
from mmcompress.budget import Budget
from mmcompress.compress.int8.acceptance import ENDS, Fit, Parts, closer, fit_cost, gained, needed
from mmcompress.compress.int8.convfit import as_fitted, graph_tower
from mmcompress.compress.int8.fakequant import TrainedLinears
from mmcompress.compress.int8.fit import JUDGED, KINDS
from mmcompress.compress.int8.foldedtower import with_folded_tower
from mmcompress.compress.int8.graphtower import GraphTower
from mmcompress.compress.int8.samples import SHUFFLED, feeds, plain_pairs, validating
from mmcompress.compress.int8.sensitivity import sensitivities
from mmcompress.compress.int8.simulate import TOWERS, Feeds
from mmcompress.compress.prune.semistructured import SPARSE
from mmcompress.compress.train.losses import cosine_distance
from mmcompress.compress.train.optimize import optimize
from mmcompress.compress.train.pairs import TrainingBatch, TrainingPairs, check_fills_a_batch, training_pairs
from mmcompress.compress.train.scalars import check_tensorboard
from mmcompress.config import QatConfig
from mmcompress.convnet import ConvConfig
from mmcompress.data.batches import count_up_to, images_of
from mmcompress.data.spec import is_stream
from mmcompress.distributed import World, world
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.export.integers import OUTPUT
from mmcompress.export.sums import ends_of, sums_of
from mmcompress.huggingface import dual_encoder_from_checkpoint
from mmcompress.int8 import (
    INTEGERS,
    RANGES,
    TABLE,
    Linears,
    Signedness,
    check_tensors,
    is_attention_operand,
    linears_from_tensors,
    read_ranges,
    tensors_from_linears,
)
from mmcompress.model import DualEncoder
from mmcompress.progress import say
from mmcompress.seen import SEEN, Seen, seen_images, write_seen_images
from mmcompress.stages import Job
from mmcompress.strictjson import write_json

_VIEWS = 1_000_000
"""Augmented views of an image: never the same twice."""


def check_trainable(source: Artifact) -> None:
    """Raise UsageError for a checkpoint that was never quantized, and for one whose zeros would be filled."""
    for name in (RANGES, INTEGERS):
        if name not in source.manifest.files:
            raise UsageError(
                f"{source.path} has no {name}, so it is no quantized checkpoint, and qat trains the integers of one",
                "quantize it first: mmcompress quantize CHECKPOINT --data SHARDS --out DIR",
            )
    if SPARSE in source.manifest.facts:
        raise UsageError(f"{source.path} is 2:4 sparse, and qat would fill its zeros", "leave qat out, or sparsity")


def check_qat(config: QatConfig, sources: Mapping[str, Artifact]) -> None:
    """Refuse at once what training would refuse; less than a batch only where integers are trained in any case."""
    if (source := sources.get("checkpoint")) is not None:
        check_trainable(source)
    check_tensorboard(config.optimizer.tensorboard)
    if config.max_drop is None and config.max_flips is None:
        check_fills_a_batch(config.data.train, config.optimizer.batch)


def qat(job: Job[QatConfig]) -> None:
    """Stage: train the integers of a quantized checkpoint towards its own float weights."""
    config, source, draft = job.config, job.sources["checkpoint"], job.draft
    given = read_fit(source)
    spec = config.data.validation or config.data.train
    if spec is None or config.data.train is None:
        raise UsageError("qat needs pairs to train on", "set data.train, or give --data")
    with world(config.device) as here:
        model = dual_encoder_from_checkpoint(source.path, source.model).requires_grad_(False).to(here.device)
        graph = graph_tower(source, job.work) if isinstance(source.model.image, ConvConfig) else None
        if not here.leads:  # what is judged and decided is rank 0's
            if (drift := here.shared(None)) is not None:
                train(model, given, drift, _pairs(source, config, here), config, here, job, graph)
            return
        _warn_of_few(config.data.train, config.optimizer.batch)
        seen = frozenset(images_of(config.data.train)) | (seen_images(source) or frozenset())
        given_pairs = list(plain_pairs(source, spec, config))
        judging = feeds(given_pairs if spec == config.data.train else validating(given_pairs, seen, spec)[0])
        budget = Budget.of(config, sum(map(len, judging.image)))
        before = fit_cost(model, given, judging, graph)
        after, chosen, parts = None, given, Parts()
        drift = here.shared(before.drift if needed(before, budget) else None)
        if drift is None:
            say("", job.name, f"not trained: INT8 {budget.told(before.cost)}")
        else:
            trained, draft.metrics["training"] = train(
                model, given, drift, _pairs(source, config, here), config, here, job, graph
            )
            after = fit_cost(model, trained, judging, graph)
            chosen, parts = closer(given, trained, before.drift, after.drift)
        result = before if after is None else fit_cost(model, chosen, judging, graph)
        accepted = gained(parts, before, result, budget)
        result = result if accepted else before
        known = source.manifest.facts.get("sensitivity", [])
        ranking = ranked(model, chosen, judging, known, graph) if accepted else known
    draft.inherit(source, *source.manifest.files)
    if accepted:
        write_json(draft.path / RANGES, chosen.ranges)
        save_file(tensors_from_linears(chosen.linears), draft.path / INTEGERS)
        write_seen_images(draft.path, seen)
    elif after is not None:
        say("", job.name, "training brought INT8 no closer to FP32, or lost more R@10 hits: passed through as it was")
    draft.facts = {
        **source.manifest.facts,
        "sensitivity": ranking,
        "budget": config.max_drop,
        **({SEEN: Seen(pairs=None, seed=config.seed, buffer=SHUFFLED).model_dump()} if accepted else {}),
        "qat": {
            "trained": after is not None,
            "accepted": accepted,
            "parts": parts,
            "drift_before": _rounded(before.drift),
            "drift_after": None if after is None else _rounded(after.drift),
            "r10_lost_before": before.cost.r10_lost,
            "r10_lost_after": result.cost.r10_lost,
            "judged_on": {"spec": spec, "pairs": sum(map(len, judging.image))},
            "reference": reference_of(source),
        },
    }
    draft.metrics["calibration"] = {"drift": result.drift, **asdict(result.cost)}


def read_fit(source: Artifact) -> Fit:
    """The ranges and integers of a quantized checkpoint."""
    check_trainable(source)
    try:
        tensors = load_file(source.file(INTEGERS))
        ranges = read_ranges(source)
    except (SafetensorError, ValueError) as error:
        raise CorruptInputError(f"{source.path}: its integers cannot be read: {error}", "quantize it again") from error
    check_tensors(source.file(INTEGERS), tensors)
    linears = {kind: linears_from_tensors(tensors, kind) for kind in KINDS}
    for kind, named in linears.items():
        ranged = {name for name in ranges if not (is_attention_operand(name) or name.endswith(f".{OUTPUT}"))}
        if differing := sorted(set(named) ^ ranged):
            raise CorruptInputError(
                f"{source.path}: {differing[0]} is not in both {RANGES} and the {kind} {INTEGERS}", "quantize it again"
            )
    return Fit(ranges, linears)


def train(
    model: DualEncoder,
    given: Fit,
    drift: Mapping[str, Mapping[str, float]],
    pairs: TrainingPairs,
    config: QatConfig,
    here: World,
    job: Job[QatConfig],
    graph: GraphTower | None = None,
) -> tuple[Fit, dict[str, float | None]]:
    """The trained fit, and what training took. `drift` is what the loss is in units of, so that it starts at 1."""
    convolutions = [] if graph is None else [one for one in graph.products if one.name in given.linears[JUDGED]]
    sums = [] if graph is None else sums_of(graph.model, convolutions)
    ends = [] if graph is None else [one.name for one in ends_of(graph.model, convolutions)]
    learners = nn.ModuleDict(
        {kind: TrainedLinears(given.linears[kind], given.ranges, kind, convolutions, sums, ends) for kind in KINDS}
    ).to(here.device)
    model = with_folded_tower(model)

    def loss_of(batch: TrainingBatch, _: float) -> Tensor:
        with torch.no_grad():
            reference: tuple[Tensor, Tensor] = model(batch.pixels, batch.tokens)
        losses = []
        kind_of = (here.rank + here.size * torch.arange(len(batch.pixels))) % len(KINDS)
        for at, kind in enumerate(KINDS):  # each kind has every second pair of the whole batch
            own = kind_of == at
            if not own.any():
                continue
            weight = here.size * int(own.sum()) / len(range(at, config.optimizer.batch, len(KINDS)))
            learner = learners[kind]
            assert isinstance(learner, TrainedLinears)
            own = own.to(here.device)
            embeddings = learner.embed(model, batch.pixels[own], batch.tokens[own])
            for tower, ours, exact in zip(TOWERS, embeddings, reference, strict=True):
                if drift[kind][tower]:
                    losses.append(weight * cosine_distance(ours, exact[own]) / drift[kind][tower])
        terms = sum(distance > 0 for towers in drift.values() for distance in towers.values())
        return torch.stack(losses).sum() / terms if losses else torch.zeros((), requires_grad=True)

    training = optimize(
        learners,
        loss_of,
        pairs.stream,
        config=config.optimizer,
        pairs=pairs.count,
        world=here,
        work=job.work,
        what=f"training {job.name}",
    )
    return rounded(learners, given), training


def rounded(learners: nn.ModuleDict, given: Fit) -> Fit:
    """What the learners have become, at the nearest steps."""
    ranges = {name: dict(ends) for name, ends in given.ranges.items()}
    linears: dict[Signedness, Linears] = {}
    for kind in KINDS:
        learner = learners[kind]
        assert isinstance(learner, TrainedLinears)
        stored = learner.stored()
        linears[kind] = {name: linear for name, (linear, _) in stored.items()}
        trained = {name: ends for name, (_, ends) in stored.items()} | learner.stored_outputs()
        for name, ends in trained.items():
            ranges[name] |= {end: ends[end] for end in ENDS[kind]}
    return Fit(ranges, linears)


def ranked(
    model: DualEncoder,
    chosen: Fit,
    judging: Feeds,
    known: Sequence[Mapping[str, Any]],
    graph: GraphTower | None,
) -> list[dict[str, Any]]:
    """The ranking of the Linears and convolutions, measured again; of what stays in float, and of the table, what was
    known of them."""
    half = Feeds(judging.image[::2], judging.text[::2])
    convolved = {} if graph is None else as_fitted(graph, chosen.ranges, chosen.linears).sensitivities(half.image)
    others = {name: linear for name, linear in chosen.linears[JUDGED].items() if name not in convolved}
    drifts = convolved | sensitivities(model, half, others, chosen.ranges, JUDGED)
    rows = [{"module": name, "drift": float(f"{drift:.4g}"), "kept": False} for name, drift in drifts.items()]
    rows += [dict(row) for row in known if row["kept"] or row["module"] == TABLE]
    return sorted(rows, key=lambda row: (-row["drift"], row["module"]))


def reference_of(source: Artifact) -> str:
    """Digest of the checkpoint in float that all drift is from."""
    earlier = source.manifest.facts.get("qat")
    return str(earlier["reference"] if earlier else source.manifest.parents.get("checkpoint", source.digest))


def _warn_of_few(spec: str, batch: int) -> None:
    """Say, before INT8 is judged by a budget, that what passes it could not be trained on these pairs."""
    if not is_stream(spec) and (there := count_up_to(batch, spec)) < batch:
        few = f"warning: {there} pairs are less than a batch of {batch}: INT8 beyond its budget cannot be trained"
        say("", "data", f"{few}; give more, or a smaller --optimizer-batch")


def _pairs(source: Artifact, config: QatConfig, here: World) -> TrainingPairs:
    return training_pairs(
        source,
        config.data,
        batch=config.optimizer.batch,
        seed=config.seed,
        here=here,
        embeddings=None,
        views=_VIEWS,
        augment=config.augment,
    )


def _rounded(drift: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {
        kind: {tower: float(f"{distance:.4g}") for tower, distance in towers.items()} for kind, towers in drift.items()
    }
