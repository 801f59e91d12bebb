"""Distillation: fit the student's embeddings to the cached ones of the teacher.

Two terms: the cosine distance of each tower to the teacher's embedding of the same view (feature distillation, which
CLIP-KD, Yang et al. 2024, finds the strongest single loss), and the relations in both directions: images among the
teacher's texts, texts among its images (TinyCLIP, Wu et al. 2023). Both are means over the batch, so several processes
need no more than averaged gradients. Recovery after pruning is this stage again, from the pruned checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mmcompress.architecture import NEVER_COMPRESSED
from mmcompress.artifact import Artifact, Draft
from mmcompress.compress.prune.semistructured import SPARSE, keep_zeros
from mmcompress.compress.train.embeddings import Embeddings, load_embeddings
from mmcompress.compress.train.losses import cosine_distance, relational
from mmcompress.compress.train.optimize import optimize
from mmcompress.compress.train.pairs import TrainingBatch, training_pairs
from mmcompress.compress.train.student import inherited_share, student_from_preset, student_from_teacher
from mmcompress.compress.train.vocabulary import vocabulary_size
from mmcompress.compress.train.watching import watch_of
from mmcompress.config import DistillConfig
from mmcompress.distributed import world
from mmcompress.errors import UsageError
from mmcompress.export.texts import save_text_processing
from mmcompress.huggingface import (
    FOLDER_FILES,
    dual_encoder_from_checkpoint,
    dual_encoder_from_hugging_face,
    save_checkpoint,
    with_tokenizer,
)
from mmcompress.model import DualEncoder
from mmcompress.processing import save_student_preprocessing
from mmcompress.progress import say
from mmcompress.runtime.tokenize import load_tokenizer
from mmcompress.stages import Job
from mmcompress.teachers import resolve


def distill(job: Job[DistillConfig]) -> None:
    """Stage: train a student, or recover a pruned one, against cached teacher embeddings."""
    config, draft = job.config, job.draft
    embeddings = load_embeddings(job.sources["embeddings"])
    sparse: list[str] = []
    with world(config.device) as here:
        if "checkpoint" in job.sources:
            source = job.sources["checkpoint"]
            draft.inherit(source, *FOLDER_FILES)
            model = dual_encoder_from_checkpoint(source.path, source.model)
            sparse = source.manifest.facts.get(SPARSE, [])
        else:
            model = _new_student(config, job.sources["embeddings"], draft)
        draft.model = model.config
        text = _text_mode(config, model)
        _check_space(model, text, embeddings)
        for scalar in (model.logit_scale, model.logit_bias):
            if scalar is not None:
                scalar.requires_grad_(False)
        model = model.to(here.device).train()
        keep_zeros(model, sparse)
        if text == "keep":
            model.text.requires_grad_(False)
        pairs = training_pairs(
            draft,
            config.data,
            batch=config.optimizer.batch,
            seed=config.seed,
            here=here,
            embeddings=embeddings,
        )
        anchors = embeddings.anchors(config.anchors, here.device)

        def loss_of(batch: TrainingBatch, _: int) -> Mapping[str, Tensor]:
            assert batch.teacher is not None
            return distillation_terms(
                _embeddings(model, batch, text),
                batch.teacher,
                anchors,
                config.cosine,
                config.relational,
                config.temperature,
            )

        metrics = optimize(
            model,
            loss_of,
            pairs.stream,
            config=config.optimizer,
            pairs=pairs.count,
            world=here,
            work=job.work,
            watch=watch_of(model, draft, config.data, config.watch, config.optimizer.batch, here),
            what=f"distilling {job.name}",
        )
    if not here.leads:
        return  # the artifact is written by rank 0
    save_checkpoint(model.cpu(), draft.path)
    draft.metrics = {"training": metrics}
    draft.facts = {"params": model.config.params, "macs": model.config.macs, **({SPARSE: sparse} if sparse else {})}


def _embeddings(model: DualEncoder, batch: TrainingBatch, text: Literal["distill", "keep"]) -> tuple[Tensor, Tensor]:
    """The student's images and texts. A text tower that stays as it is costs nothing: the teacher's texts stand in."""
    assert batch.teacher is not None
    if text == "keep":
        return model.encode_image(batch.pixels), batch.teacher[1]
    embedded: tuple[Tensor, Tensor] = model(batch.pixels, batch.tokens)
    return embedded


def distillation_terms(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    anchors: tuple[Tensor, Tensor],
    cosine: float = 1.0,
    relation: float = 1.0,
    temperature: float = 0.05,
) -> dict[str, Tensor]:
    """The weighted terms by name, without those of weight 0.

    Each side is (images (B, D), texts (B, D)), the anchors (images (K, D), texts (K, D)).
    """
    terms: dict[str, Tensor] = {}
    for ours, theirs, others in zip(student, teacher, reversed(anchors), strict=True):
        if cosine:
            terms["cosine"] = terms.get("cosine", 0) + cosine * cosine_distance(ours, theirs)
        if relation:
            terms["relational"] = terms.get("relational", 0) + relation * relational(ours, theirs, others, temperature)
    return terms


def distillation_loss(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], anchors: tuple[Tensor, Tensor]
) -> Tensor:
    """The sum of the terms, each of weight 1."""
    return torch.stack([*distillation_terms(student, teacher, anchors).values()]).sum()


def _text_mode(config: DistillConfig, model: DualEncoder) -> Literal["distill", "keep"]:
    """What becomes of the text tower: one that is never compressed has nothing to recover, so it is kept."""
    if "text" in model.config.compressed or config.text == "keep":
        return config.text
    say("", "text", NEVER_COMPRESSED)
    return "keep"


def _check_space(model: DualEncoder, text: Literal["distill", "keep"], embeddings: Embeddings) -> None:
    """Raise UsageError for a student that embeds into another space than what it learns from."""
    if (own := model.config.embed_dim) != embeddings.dim:
        raise UsageError(
            f"the student embeds into {own} dimensions, and what it learns from has {embeddings.dim}",
            "give a preset, vit-s16 say, which is made as wide; or combine the teachers by average",
        )
    if text == "keep" and len(embeddings.stores) > 1:
        raise UsageError(
            f"the text tower is kept, and it is not that of {len(embeddings.stores)} teachers together",
            "leave text = keep out, or learn from one teacher",
        )


def _new_student(config: DistillConfig, embeddings: Artifact, draft: Draft) -> DualEncoder:
    """Build the student that the config names, with the teacher's pixels, texts and logits."""
    if config.student is None:
        raise UsageError("distill needs a student to start from", "set student.source, or give --student")
    teacher, facts = embeddings.manifest.preprocessing, embeddings.manifest.facts
    if teacher is None:
        raise UsageError(f"{embeddings.path} does not say how the teacher's images were prepared", "embed them again")
    folder = _teacher_folder(config)
    draft.tokenizer = save_text_processing(folder, draft.path, config.teacher.trust_remote_code)
    share = inherited_share(config.student.source)
    if share is not None:
        model = with_tokenizer(student_from_teacher(folder, share), draft.tokenizer)
    else:
        vocab = vocabulary_size(load_tokenizer(draft.path / draft.tokenizer.file))
        model = student_from_preset(config.student, facts["dim"], draft.tokenizer, vocab, config.seed)
    if config.text == "keep":
        model = _with_text_tower(model, with_tokenizer(dual_encoder_from_hugging_face(folder), draft.tokenizer))
    if (scale := facts.get("logit_scale")) is not None:
        model.logit_scale.data.fill_(math.log(scale))
    draft.preprocessing = save_student_preprocessing(teacher, draft.path, model.config.image.image_size)
    return model


def _with_text_tower(model: DualEncoder, teacher: DualEncoder) -> DualEncoder:
    """The student's image tower beside the teacher's own text tower."""
    theirs = {"text": teacher.config.text, "sigmoid": teacher.config.sigmoid}
    joined = DualEncoder(model.config.model_copy(update=theirs))
    joined.image, joined.text = model.image, teacher.text
    joined.logit_scale, joined.logit_bias = teacher.logit_scale, teacher.logit_bias
    return joined


def _teacher_folder(config: DistillConfig) -> Path:
    """The folder that a tokenizer, and perhaps weights, are taken from."""
    source = config.teacher.source
    if source.startswith("open_clip:") or ".py:" in source:
        if config.student is not None and config.student.tokenizer:
            return resolve(config.teacher.model_copy(update={"source": config.student.tokenizer}))
        raise UsageError(
            f"the teacher {source!r} has no Hugging Face folder to take a tokenizer from",
            "set student.tokenizer to a folder or hub id with one",
        )
    return resolve(config.teacher)
