"""Fine-tuning: a checkpoint that is good already is trained further on data of one's own, and then partly taken back.

By captions the loss is symmetric InfoNCE, as in pretraining (Goyal et al. 2023, "Finetune like you pretrain"). By
labels it is cross entropy over the classes, whose weights are the text tower's embeddings of their prompts, computed
once. The learning rate falls from block to block (`layerwise.py`), the best weights on validation samples are kept
(`watching.py`), and the result lies between them and the start (`interpolation.py`).

The factor on similarities and the bias stay those of the start in any case, so that probabilities stay comparable.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from mmcompress.architecture import DualEncoderConfig
from mmcompress.artifact import Artifact, Draft
from mmcompress.compress.early import Sources
from mmcompress.compress.prune.semistructured import SPARSE, keep_zeros
from mmcompress.compress.train.computing import check_parts, in_parts, set_up
from mmcompress.compress.train.interpolation import Point, chosen, interpolate, line
from mmcompress.compress.train.judging import Classes, Judge, check_told_apart, class_embeddings, classes_of, judge_of
from mmcompress.compress.train.layerwise import layer_scales
from mmcompress.compress.train.losses import info_nce
from mmcompress.compress.train.optimize import optimize
from mmcompress.compress.train.pairs import TrainingBatch, TrainingPairs, check_fills_a_batch, group_of, training_pairs
from mmcompress.compress.train.scalars import check_tensorboard
from mmcompress.compress.train.statistics import settling, synchronize
from mmcompress.compress.train.watching import Watch, warn_of_trained
from mmcompress.config import FinetuneConfig
from mmcompress.convnet import ConvConfig
from mmcompress.data.batches import listing
from mmcompress.data.spec import is_stream
from mmcompress.distributed import World, gathered, gathered_ids, world
from mmcompress.errors import UsageError
from mmcompress.formats import percent
from mmcompress.huggingface import FOLDER_FILES, dual_encoder_from_checkpoint, save_checkpoint
from mmcompress.metrics import FIGURES
from mmcompress.model import DualEncoder
from mmcompress.progress import say
from mmcompress.stages import Job


def check_finetune(config: FinetuneConfig, _: Mapping[str, Artifact]) -> None:
    """Raise UsageError for data or keys that cannot work together."""
    if config.data.train is None or config.data.validation is None:
        missing = "train" if config.data.train is None else "validation"
        raise UsageError(
            f"finetune needs samples to {'learn from' if missing == 'train' else 'choose by'}: data.{missing}",
            f"give --{'data' if missing == 'train' else missing}",
        )
    check_tensorboard(config.optimizer.tensorboard)
    check_fills_a_batch(config.data.train, config.optimizer.batch)
    classes_learned(config)
    if config.data.original is not None:
        classes_of(config.data.original)


def fits_finetune(config: FinetuneConfig, model: DualEncoderConfig, _: Sources) -> None:
    """BatchNorm sees whole batches."""
    check_parts(isinstance(model.image, ConvConfig), config.parts)


def classes_learned(config: FinetuneConfig) -> Classes | None:
    """The classes that are learned; None by captions. Raises UsageError where the data does not have what is asked."""
    data = config.data
    assert data.train is not None
    if config.by == "captions":
        return None
    classes = classes_of(data.train, data.labels, data.templates)
    if classes is None:
        if config.by == "labels" or data.templates is not None:
            asked = "by = labels" if config.by == "labels" else f"data.templates is {data.templates}"
            raise UsageError(
                f"{asked}, and {data.train} has captions, not classes",
                "give folders of classes, or --labels with the names of the classes that its samples have",
            )
        return None
    if config.text == "train":
        raise UsageError(
            f"{data.train} has classes, whose prompts are the classifier, so the text tower is kept; text is train",
            "leave it out, or train by captions: --by captions",
        )
    if len(classes.names) < 2:
        raise UsageError(
            f"{data.train} has one class, {classes.names[0]!r}, which every image gets", "give two or more"
        )
    _check_labelled(data.train, classes)
    return classes


def _check_labelled(spec: str, classes: Classes) -> None:
    if is_stream(spec):
        raise UsageError(f"{spec} is read once, and its labels are looked at beforehand", "give shards, or folders")
    known = {*classes.names}
    others = [sample for sample in listing(spec) if sample.label not in known]
    if others:
        raise UsageError(
            f"{len(others)} samples of {spec} are of none of the {len(known)} classes: {others[0].key} is of "
            f"{others[0].label!r}",
            "name all classes in the file of --labels, or take these samples out",
        )


def finetune(job: Job[FinetuneConfig]) -> None:
    """Stage: train a checkpoint further, and interpolate with where it started."""
    config, draft, source = job.config, job.draft, job.sources["checkpoint"]
    data, samples, batch = config.data, config.watch.samples, config.optimizer.batch
    assert data.validation is not None
    classes = classes_learned(config)
    draft.inherit(source, *FOLDER_FILES)
    if classes is not None:
        check_told_apart(draft, classes)
    model = dual_encoder_from_checkpoint(source.path, source.model)
    sparse = source.manifest.facts.get(SPARSE, [])
    model.logit_scale.requires_grad_(False)
    if model.logit_bias is not None:
        model.logit_bias.requires_grad_(False)
    with world(config.device) as here:
        model = model.to(here.device).train()
        synchronize(model, here)
        keep_zeros(model, sparse)
        text_kept = classes is not None or config.text == "keep"
        model.text.requires_grad_(not text_kept)
        set_up(model, config.recompute, config.compile)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        start = {name: p.detach().clone() for name, p in trained.items()}
        measured = _statistics(model)
        pairs = _pairs(draft, config, here)
        prompts, known = None, None
        if classes is not None:
            prompts = class_embeddings(model, draft, classes, batch, here.device)
            known = torch.tensor([group_of(name) for name in classes.names], device=here.device)

        def loss_of(shown: TrainingBatch, _: float) -> Mapping[str, Tensor]:
            images = in_parts(model.encode_image, shown.pixels, config.parts)
            scale = model.logit_scale.exp()
            if prompts is not None and known is not None:
                target = (shown.groups[:, None] == known).int().argmax(dim=1)
                logits = scale * images @ prompts.T
                return {"labels": F.cross_entropy(logits, target, label_smoothing=config.smoothing)}
            texts = in_parts(model.encode_text, shown.tokens, config.parts)
            images, texts = gathered((images, texts), here)
            groups = gathered_ids(shown.groups, here)
            same = groups[:, None] == groups[None, :]
            return {"contrastive": info_nce(images, texts, model.logit_scale, same, config.smoothing)}

        judge = judge_of(model, draft, data, data.validation, classes, samples, batch, here.device, text_kept)
        if here.leads:
            warn_of_trained(data.train, data.validation, samples)
        every = config.watch.steps or max(1, pairs.count // batch)
        metrics = optimize(
            model,
            loss_of,
            pairs.stream,
            config=config.optimizer,
            pairs=pairs.count,
            world=here,
            work=job.work,
            watch=Watch(
                judge.measure,
                every,
                True,
                config.watch.patience,
                judge.figure,
                settle=settling(model, pairs.stream, batch, here),
            ),
            what=f"fine-tuning {job.name}",
            scales=layer_scales(trained, model.config, config.layer_decay),
        )
    if not here.leads:
        return  # the artifact is written by rank 0
    tuned = {name: p.detach().clone() for name, p in trained.items()}
    before = None
    if data.original is not None:
        own = classes_of(data.original)
        before = judge_of(model, draft, data, data.original, own, samples, batch, here.device, text_kept)
    alone = World(0, 1, next(iter(trained.values())).device)
    synchronize(model, alone)
    settle = settling(model, _pairs(draft, config, alone).stream, batch, alone) if measured else None

    def put(alpha: float) -> None:
        """Weights on the line, and the statistics of their own BatchNorms; at the start those that it came with."""
        interpolate(trained, start, tuned, alpha)
        if alpha == 0 and measured:
            model.load_state_dict(measured, strict=False)
        elif settle is not None:
            settle()

    points = line(
        put,
        judge.measure,
        before.measure if before is not None else None,
        config.alpha,
    )
    fixed = next((point for point in points if point.alpha == config.alpha), None)
    taken = fixed or chosen(points, config.max_drop)
    put(taken.alpha)
    _tell(job.name, judge, before, points[0], taken)
    save_checkpoint(model.cpu(), draft.path)
    draft.metrics = {
        "training": metrics,
        "interpolation": {
            "alpha": taken.alpha,
            "figures": {"validation": judge.figure, "original": None if before is None else before.figure},
            "points": [point.model_dump() for point in points],
        },
    }
    draft.facts = {"params": model.config.params, "macs": model.config.macs, **({SPARSE: sparse} if sparse else {})}


def _statistics(model: DualEncoder) -> dict[str, Tensor]:
    """Copies of what its BatchNorms have measured, by name."""
    return {
        name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith(("norm.mean", "norm.variance"))
    }


def _pairs(student: Draft, config: FinetuneConfig, here: World) -> TrainingPairs:
    return training_pairs(
        student,
        config.data,
        batch=config.optimizer.batch,
        seed=config.seed,
        here=here,
        embeddings=None,
        views=config.views,
        augment=config.augment,
    )


def _tell(name: str, judge: Judge, before: Judge | None, start: Point, taken: Point) -> None:
    for judged, where in ((judge, "validation"), (before, "original")):
        for few in judged.doubts if judged is not None else ():
            say("", name, f"warning: {where} data: {few}")
    if taken.alpha == 0:
        say("", name, "warning: the result is the start itself: on the samples of the choice no mix is better")
    if before is not None and start.original is not None and taken.original is not None:
        figures = f"{percent(start.original)} to {percent(taken.original)}"
        say("", name, f"alpha {taken.alpha:g}: {FIGURES[before.figure]} on original data from {figures}")
    if before is None:
        say("", name, "what it costs elsewhere is not measured: no original data is given")
    say("", name, f"alpha {taken.alpha:g}: {FIGURES[judge.figure]} {percent(taken.validation)} on validation data")
