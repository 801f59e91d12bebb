"""Structured pruning: whole heads, MLP units, channels and blocks, so that what is left is a smaller config, no mask.

Three questions, a file each. Which units go: `importance.py`, or by what the next Linear would miss (`reconstruct.py`).
What the rest must weigh then: a least-squares refit from the first block to the last (`shrink.py`), so that the model
is good before any training. How much of each block goes: the same share everywhere, or under a limit of MACs,
parameters or measured latency what harms least (`harm.py`, `sizes.py`, `allocation.py`, `latency_target.py`).
Convolutional towers have their own answers to the second and third (`bottlenecks.py`, `hidden.py`, `streams.py`), and
under a limit channels between their blocks are weighed against hidden ones (`narrowing.py`).
The width of the residual stream goes first where it is asked for (`width.py`), by the same share in the whole tower;
2:4 sparsity of what is left comes last (`semistructured.py`).

Left out: a limit that weighs a transformer's width against heads and MLP units; prune twice for that.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from torch import Tensor

from mmcompress.architecture import NEVER_COMPRESSED, AnyImageConfig, DualEncoderConfig, TextConfig, TowerConfig
from mmcompress.compress.prune.bottlenecks import shrunk_bottlenecks
from mmcompress.compress.prune.harm import measured_errors
from mmcompress.compress.prune.hidden import STREAM_MULTIPLE, stream_channels, stream_widths, uniform_hidden
from mmcompress.compress.prune.importance import magnitudes, taylor
from mmcompress.compress.prune.latency_target import sizes_at_latency
from mmcompress.compress.prune.narrowing import pruned_to_target
from mmcompress.compress.prune.semistructured import SPARSE, is_two_four, sparsified
from mmcompress.compress.prune.shrink import Scores, Size, TowerName, shrunk, sizes_of
from mmcompress.compress.prune.sizes import block_choices, sizes_within, static_cost
from mmcompress.compress.prune.streams import narrowed_streams
from mmcompress.compress.prune.width import narrowed, rounded_width
from mmcompress.compress.train.embeddings import load_embeddings
from mmcompress.compress.train.pairs import TrainingBatch, training_pairs
from mmcompress.config import PruneConfig
from mmcompress.convnet import ConvConfig
from mmcompress.distributed import world
from mmcompress.errors import UsageError, finite
from mmcompress.huggingface import FOLDER_FILES, dual_encoder_from_checkpoint, save_checkpoint
from mmcompress.model import DualEncoder
from mmcompress.progress import say, track
from mmcompress.stages import Job

FEWEST = 64
"""Pairs that importance and fit can be told from."""


def prune(job: Job[PruneConfig]) -> None:
    """Stage: remove what a checkpoint needs least, and fit what is left."""
    config, source = job.config, job.sources["checkpoint"]
    embeddings = load_embeddings(job.sources["embeddings"])
    with world(config.device) as here:
        model = dual_encoder_from_checkpoint(source.path, source.model).to(here.device)
        pairs = training_pairs(
            source, config.data, batch=config.batch, seed=config.seed, here=here, embeddings=embeddings, sentences=True
        )
        steps = max(1, min(config.samples, pairs.count) // config.batch)
        samples = list(track(islice(pairs.stream(0, 0), steps), "samples", steps))
        if (there := sum(len(batch.keys) for batch in samples)) < FEWEST:
            few = f"warning: what goes and what is fitted is told from {there} pairs; {FEWEST} are needed"
            say("", "data", few)
        pruned, measured = pruned_model(model, samples, embeddings.anchors(config.anchors, here.device), config)
    sparse, dense = two_four_modules(pruned) if config.sparsity else ([], [])
    save_checkpoint(pruned.cpu(), job.draft.path)
    job.draft.inherit(source, *FOLDER_FILES)
    job.draft.model = pruned.config
    before, after = model.config, pruned.config
    job.draft.facts = {
        "params": after.params,
        "macs": after.macs,
        "macs_share": after.macs / before.macs,
        "params_share": after.params / before.params,
        **({SPARSE: sparse, "not_two_four": dense} if config.sparsity else {}),
    }
    job.draft.metrics = {"towers": {tower: facts for tower, facts in measured.items() if facts}}


def pruned_model(
    model: DualEncoder, samples: list[TrainingBatch], anchors: tuple[Tensor, Tensor], config: PruneConfig
) -> tuple[DualEncoder, dict[TowerName, dict[str, Any]]]:
    """What is left of a model, and what was measured of each tower to find it; `anchors` as for the loss."""
    scores = unit_scores(model, samples, anchors, config)
    pruned = model
    measured: dict[TowerName, dict[str, Any]] = {}
    for tower in towers_of(model.config, config):
        inputs = [pair.pixels if tower == "image" else pair.tokens for pair in samples]
        if tower == "image" and isinstance(model.config.image, ConvConfig):
            pruned, measured[tower] = pruned_convolutions(pruned, model.config.image, inputs, scores, config)
            continue
        width = rounded_width(getattr(model.config, tower), config.width, config.width_multiple)
        _say_whole(tower, config, width == getattr(model.config, tower).width)
        pruned = narrowed(pruned, tower, width, inputs, config.refit)
        sizes, measured[tower] = block_sizes(model, tower, inputs, scores, config)
        pruned = shrunk(pruned, tower, sizes, inputs, scores, config.refit)
        pruned = sparsified(pruned, tower, inputs) if config.sparsity else pruned
    return pruned, measured


def towers_of(model: DualEncoderConfig, config: PruneConfig) -> list[TowerName]:
    """`prunable_towers`, and a word on the console where one of those that were asked for is none."""
    towers = prunable_towers(model, config)
    if len(towers) < len(config.towers):
        say("", "text", NEVER_COMPRESSED)
    return towers


def prunable_towers(model: DualEncoderConfig, config: PruneConfig) -> list[TowerName]:
    """The towers to prune. Raises UsageError if none of those that were asked for can be."""
    towers = [tower for tower in config.towers if tower in model.compressed]
    if not towers:
        raise UsageError(
            "a text tower with LayerNorms behind its blocks, as Chinese-CLIP's and AltCLIP's, is not pruned",
            'prune the image tower: --set towers=["image"]',
        )
    return towers


def check_width(model: DualEncoderConfig, config: PruneConfig) -> None:
    """Raise UsageError where a share of the width rounds to no multiple even where a tower is widest."""
    if config.width == 1:
        return
    for name in prunable_towers(model, config):
        tower: AnyImageConfig | TextConfig = getattr(model, name)
        if isinstance(tower, ConvConfig):
            full, multiple = max(stream_channels(tower)), config.width_multiple or STREAM_MULTIPLE
        else:
            full, multiple = tower.width, config.width_multiple or tower.head_dim
        if 2 * full * config.width < multiple:
            raise UsageError(
                f"width: {config.width:g} of the {full} channels of the {name} tower is nearer to none than to"
                f" {multiple}, and they are kept in multiples of {multiple}",
                f"ask for {multiple / full:.2g} or more" if multiple < full else "ask for a smaller width_multiple",
            )


def two_four_modules(model: DualEncoder) -> tuple[list[str], list[str]]:
    """The Linears that are 2:4 sparse, and the others: of a tower left out, or whose inputs are no multiple of four."""
    checks = {name: is_two_four(linear.weight) for name, linear in model.linears()}
    return [name for name, sparse in checks.items() if sparse], [name for name, sparse in checks.items() if not sparse]


def unit_scores(
    model: DualEncoder, samples: list[TrainingBatch], anchors: tuple[Tensor, Tensor], config: PruneConfig
) -> Scores:
    """The importance of every unit; nothing where activations decide."""
    if config.importance == "activation":
        return {}
    scores = magnitudes(model) if config.importance == "magnitude" else taylor(model, samples, anchors)
    for name, importances in scores.items():
        finite(float(importances.sum()), f"the importance of a unit of {name}")
    return scores


def block_sizes(
    model: DualEncoder, name: TowerName, inputs: list[Tensor], scores: Scores, config: PruneConfig
) -> tuple[list[Size], dict[str, Any]]:
    """What each block of a tower keeps, and what was measured to find it out."""
    tower: TowerConfig = getattr(model.config, name)
    if config.target is None:
        return uniform_sizes(tower, config.heads, config.mlp, config.mlp_multiple), {}
    kind, share = config.target
    if kind == "latency" and name == "text":
        return sizes_of(tower), {}
    errors = measured_errors(model, name, inputs, scores, config.mlp_multiple, config.refit)
    if kind == "latency":
        return sizes_at_latency(model.config, errors, share, config)
    cost, base, full = static_cost(model.config, name, kind)
    blocks = block_choices(tower, errors, config.mlp_multiple, cost)
    return sizes_within(blocks, share, base, full, f"the {kind} of the {name} tower"), {}


def pruned_convolutions(
    model: DualEncoder, tower: ConvConfig, inputs: list[Tensor], scores: Scores, config: PruneConfig
) -> tuple[DualEncoder, dict[str, Any]]:
    """What is left of a model with a convolutional image tower, and what was measured to find it out."""
    if config.target is not None:
        return pruned_to_target(model, inputs, scores, config)
    widths = stream_widths(tower, config.width, config.width_multiple or STREAM_MULTIPLE)
    _say_whole("image", config, widths == stream_channels(tower))
    pruned = narrowed_streams(model, widths, inputs, config.refit)
    hidden = uniform_hidden(tower, config.mlp, config.channel_multiple)
    return shrunk_bottlenecks(pruned, hidden, inputs, scores, config.refit), {}


def _say_whole(name: TowerName, config: PruneConfig, whole: bool) -> None:
    """Say where a share of the width was asked for and rounds to all of a tower's channels."""
    if whole and config.width < 1:
        rounded = f"width {config.width:g} rounds to all channels: none goes"
        say("prune", name, f"{rounded}; ask for less, or for a smaller width_multiple")


def uniform_sizes(tower: TowerConfig, heads: float, mlp: float, mlp_multiple: int) -> list[Size]:
    """The same shares of heads and MLP units in every block, one head and one multiple at least."""

    def kept_units(units: int) -> int:
        rounded = round(units * mlp / mlp_multiple) * mlp_multiple
        return min(units, max(rounded, min(mlp_multiple, units))) if mlp < 1 else units

    return [(max(1, round(h * heads)), kept_units(m)) for h, m in zip(tower.heads, tower.mlp, strict=True)]
