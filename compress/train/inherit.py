"""Where an inherited student starts: its teacher, pruned by what harms least and fitted again, before the first step.

`inherit:F` takes what weight inheritance is for (Wu et al. 2023, TinyCLIP, section 3.2) from the room of `prune`: each
tower gets F of its multiply-accumulates, blocks share them by the measured error of the embeddings, and what is left is
fitted to the dense stream. Width, patches, tokenizer, projection or attention pooling stay the teacher's; a text tower
that is kept, or has LayerNorms behind its blocks, is taken over whole.

Blocks of fewer than `smallest_units` go whole. The LayerNorms, sums and copies around a block cost the same however few
units it has, so many thin blocks run slower than few thick ones of the same MACs; but fewer blocks learn less in the
same time (benchmarks/results/inherit.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from mmcompress.architecture import DualEncoderConfig, TowerConfig
from mmcompress.artifact import Artifact
from mmcompress.compress.prune.prune import pruned_model
from mmcompress.compress.prune.shrink import TowerName
from mmcompress.compress.prune.sizes import check_share
from mmcompress.compress.train.embeddings import Embeddings
from mmcompress.compress.train.pairs import TrainingBatch, training_pairs
from mmcompress.config import DistillConfig, PruneConfig
from mmcompress.distributed import World
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.huggingface import dual_encoder_from_checkpoint, save_checkpoint
from mmcompress.manifest import Kind, hash_json
from mmcompress.model import DualEncoder
from mmcompress.progress import say, track
from mmcompress.stages import Job

SAMPLES = 256
"""Pairs that a start is fitted on: those of the first batches."""
BATCH = 64
"""Of these, computed at once, at most."""
UNITS = 128
"""MLP units of a block that stays, at least."""
MULTIPLE = 32
"""MLP units are kept in multiples of this."""


def inherited(
    job: Job[DistillConfig],
    teacher: DualEncoder,
    share: float,
    towers: Sequence[TowerName],
    embeddings: Embeddings,
    here: World,
) -> DualEncoder:
    """The teacher with these towers at a share of their multiply-accumulates; `job.draft` says how it reads its inputs.

    Rank 0 prunes, on what one process would see, and keeps the outcome for a resume. The others get the sizes here, and
    the weights where training begins. Raises UsageError where there are too few pairs, or no block fits the share.
    """
    if share == 1:
        return teacher
    if not here.leads:
        return DualEncoder(DualEncoderConfig.model_validate(here.shared(None)))
    check_inherits(teacher.config, share, towers)
    model = _kept(job)
    if model is None:
        model = pruned_start(teacher.to(here.device), _samples(job, embeddings, here), share, towers).cpu()
        _keep(job, model)
    here.shared(model.config.model_dump(mode="json"))
    for name in towers:
        tower: TowerConfig = getattr(model.config, name)
        sizes = " ".join(f"{heads}:{units}" for heads, units in zip(tower.heads, tower.mlp, strict=True))
        say("", job.name, f"starts from the teacher, heads and MLP units of the {name} blocks {sizes}")
    return model


def pruned_start(
    teacher: DualEncoder, samples: list[TrainingBatch], share: float, towers: Sequence[TowerName]
) -> DualEncoder:
    """What `prune --target-macs` makes of a teacher, without blocks under the smallest."""
    smallest = {"smallest_mlp": smallest_units(teacher.config, towers), "mlp_multiple": MULTIPLE}
    config = PruneConfig.model_validate({"data": {}, "target_macs": share, "towers": towers, **smallest})
    return pruned_model(teacher, samples, None, config)[0]


def smallest_units(model: DualEncoderConfig, towers: Sequence[TowerName]) -> int:
    """MLP units of the smallest block: UNITS, or a quarter of a small tower's."""
    asked: list[TowerConfig] = [getattr(model, name) for name in towers]
    return min(UNITS, max(1, min(max(tower.mlp) for tower in asked) // 4))


def check_inherits(model: DualEncoderConfig, share: float, towers: Sequence[TowerName]) -> None:
    """Raise UsageError, with the floor, where not even one smallest block fits the share of a tower."""
    for name in towers:
        check_share(model, name, "macs", share, MULTIPLE, (1, smallest_units(model, towers)))


def inherited_towers(model: DualEncoderConfig, text: str) -> tuple[TowerName, ...]:
    """The towers of which a share is taken; `text` is what a config says of the text tower."""
    return tuple(name for name in model.compressed if name == "image" or text == "distill")


def _samples(job: Job[DistillConfig], embeddings: Embeddings, here: World) -> list[TrainingBatch]:
    """The first training pairs as one process sees them."""
    config, alone = job.config, World(0, 1, here.device)
    batch = min(BATCH, config.optimizer.batch)
    pairs = training_pairs(job.draft, config.data, batch=batch, seed=config.seed, here=alone, embeddings=embeddings)
    steps = min(SAMPLES, pairs.count) // batch
    samples = list(track(islice(pairs.stream(0, 0), steps), "samples", steps))
    if not samples:
        raise UsageError(
            f"an inherited student starts with {batch} pairs or more, and there are {pairs.count}",
            "give more data, or a smaller batch",
        )
    if len(samples) * batch < SAMPLES:
        say("", job.name, f"warning: its start is fitted on {len(samples) * batch} pairs, and not on {SAMPLES}")
    return samples


def _kept(job: Job[DistillConfig]) -> DualEncoder | None:
    """The start of a run that was killed, or told to stop; None where there is none, or it is damaged."""
    place = job.work / "start"
    if not place.is_dir():
        return None
    try:
        artifact = Artifact.open(place, Kind.CHECKPOINT)
    except (CorruptInputError, UsageError) as error:
        say("", place.name, f"the start is made again: {error.what}")
        return None
    return dual_encoder_from_checkpoint(place, artifact.model)


def _keep(job: Job[DistillConfig], model: DualEncoder) -> None:
    key = hash_json(model.config.model_dump(mode="json"))
    with Artifact.create(job.work / "start", kind=Kind.CHECKPOINT, stage="inherit", key=key) as draft:
        draft.model = model.config
        save_checkpoint(model, draft.path)
