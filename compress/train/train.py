"""Contrastive training of a dual encoder from image-text pairs (Radford et al. 2021).

Symmetric InfoNCE with a learned temperature; pairs with equal labels count as matches. Where an embeddings artifact
stands before this stage, its teacher is a guide: any network, of any architecture, whose embeddings the new model is
also drawn to. That is how a small data set can borrow what a pretrained network has seen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmcompress.artifact import Draft
from mmcompress.compress.train.computing import in_parts, set_up
from mmcompress.compress.train.deepening import deepen, share_within
from mmcompress.compress.train.embeddings import Embeddings, load_embeddings
from mmcompress.compress.train.growing import grown
from mmcompress.compress.train.layerwise import layer_scales
from mmcompress.compress.train.losses import info_nce
from mmcompress.compress.train.objective import distillation_terms
from mmcompress.compress.train.optimize import optimize, total_steps
from mmcompress.compress.train.pair import folders_of, model_from_pair, pair_config, pair_preprocessing
from mmcompress.compress.train.pairs import TrainingBatch, training_pairs, warn_of_enlarged
from mmcompress.compress.train.published import published
from mmcompress.compress.train.statistics import settling, synchronize
from mmcompress.compress.train.student import student_from_preset, student_from_published
from mmcompress.compress.train.vocabulary import save_tokenizer, tokenizer_from_captions, vocabulary_size
from mmcompress.compress.train.watching import watch_of
from mmcompress.config import PairConfig, TeacherConfig, TrainConfig
from mmcompress.data.batches import listing
from mmcompress.distributed import gathered, gathered_ids, world
from mmcompress.errors import UsageError
from mmcompress.export.texts import save_text_processing
from mmcompress.huggingface import save_checkpoint, with_tokenizer
from mmcompress.manifest import Preprocessing
from mmcompress.model import MAX_LOGIT_SCALE, DualEncoder
from mmcompress.processing import save_preprocessing
from mmcompress.runtime.tokenize import load_tokenizer
from mmcompress.stages import Job
from mmcompress.teachers import resolve

_HALF = (0.5, 0.5, 0.5)


def train(job: Job[TrainConfig]) -> None:
    """Stage: train a dual encoder from scratch."""
    config, draft = job.config, job.draft
    guide = load_embeddings(job.sources["embeddings"]) if "embeddings" in job.sources else None
    with world(config.device) as here:
        model = _new_model(config, guide, draft).to(here.device).train()
        set_up(model, config.recompute, config.compile, config.parts)
        synchronize(model, here)
        pairs = training_pairs(
            draft,
            config.data,
            batch=config.optimizer.batch,
            seed=config.seed,
            here=here,
            embeddings=guide,
            views=config.views,
            augment=config.augment,
        )
        settle = settling(model, pairs.stream, config.optimizer.batch, here)
        deepening = share_within(config.deepens, total_steps(config.optimizer, pairs.count)[0])
        grown_after = max(deepening, config.grows)
        anchors = guide.anchors(config.anchors, here.device) if guide is not None else None
        decay = 1.0 if config.towers is None else config.towers.layer_decay
        scales = layer_scales([name for name, _ in model.named_parameters()], model.config, decay)

        def loss_of(batch: TrainingBatch, done: float) -> dict[str, Tensor]:
            deepen(model, done, deepening)
            student = (
                in_parts(model.encode_image, grown(batch.pixels, model.config.image, done, config.grows), config.parts),
                in_parts(model.encode_text, batch.tokens, config.parts),
            )
            images, texts = gathered(student, here)
            groups = gathered_ids(batch.groups, here)
            scale = model.logit_scale.clamp(max=MAX_LOGIT_SCALE)
            same = groups[:, None] == groups[None, :]
            terms = {"contrastive": config.contrastive * info_nce(images, texts, scale, same, config.smoothing)}
            if batch.teacher is not None and anchors is not None:
                terms |= distillation_terms(
                    student, batch.teacher, anchors, config.cosine, config.relational, config.temperature
                )
            return terms

        metrics = optimize(
            model,
            loss_of,
            pairs.stream,
            config=config.optimizer,
            pairs=pairs.count,
            world=here,
            work=job.work,
            watch=watch_of(model, draft, config.data, config.watch, config.optimizer.batch, here, settle, grown_after),
            what=f"training {job.name}",
            scales=scales,
        )
        settle()
    if not here.leads:
        return  # the artifact is written by rank 0
    save_checkpoint(model.cpu(), draft.path, getattr(torch, config.save_dtype))
    draft.metrics = {"training": metrics}
    draft.facts = {"params": model.config.params, "macs": model.config.macs}


def _new_model(config: TrainConfig, guide: Embeddings | None, draft: Draft) -> DualEncoder:
    """A preset with random weights or a published tower, with a tokenizer that is taken over or trained."""
    if config.data.train is None:
        raise UsageError("train needs image-text pairs", "set data.train, or give --data")
    if config.towers is not None:
        return _joined(config, config.towers, guide, draft)
    assert config.student is not None
    if config.student.tokenizer is not None:
        folder = resolve(TeacherConfig(source=config.student.tokenizer))
        draft.tokenizer = save_text_processing(folder, draft.path)
    else:
        captions = (c for sample in listing(config.data.train) for c in sample.captions)
        draft.tokenizer = save_tokenizer(tokenizer_from_captions(captions, config.vocab), draft.path, config.context)
    vocab = vocabulary_size(load_tokenizer(draft.path / draft.tokenizer.file))
    embed_dim = guide.dim if guide is not None else config.embed_dim
    sizes, mean, std = (embed_dim, draft.tokenizer, vocab, config.seed), _HALF, _HALF
    if config.student.published:
        found = published(config.student)
        mean, std = found.mean, found.std
        model = student_from_published(config.student, found, *sizes)
    else:
        model = student_from_preset(config.student, *sizes)
    draft.model, size = model.config, model.config.image.image_size
    draft.preprocessing = Preprocessing(size=size, resize=size, mean=mean, std=std)
    save_preprocessing(draft.preprocessing, draft.path)
    warn_of_enlarged(config.data.train, size)
    return model


def _joined(config: TrainConfig, pair: PairConfig, guide: Embeddings | None, draft: Draft) -> DualEncoder:
    """Two pretrained towers with new projections, and with their own pixels and texts."""
    stated = guide is not None or "embed_dim" in config.model_fields_set
    sizes = pair_config(pair, guide.dim if guide is not None else config.embed_dim, stated)
    draft.preprocessing = pair_preprocessing(pair, sizes)
    save_preprocessing(draft.preprocessing, draft.path)
    draft.tokenizer = save_text_processing(folders_of(pair)[1], draft.path)
    model = with_tokenizer(model_from_pair(pair, sizes, config.seed), draft.tokenizer)
    draft.model = model.config
    return model
