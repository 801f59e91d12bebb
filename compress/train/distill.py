"""Distillation: fit the student's embeddings to the cached ones of the teacher.

The objective is a sum of terms with a weight each (`objective.py`). By default two: the cosine distance of each tower
to the teacher's embedding of the same view, and the relations in both directions, images among the teacher's texts and
texts among its images. Recovery after pruning is this stage again, from the pruned checkpoint. A student of another
width than its teacher's learns through a projection (`projection.py`) where that is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from mmcompress.architecture import NEVER_COMPRESSED
from mmcompress.artifact import Artifact, Draft
from mmcompress.compress.prune.semistructured import SPARSE, keep_zeros
from mmcompress.compress.train.computing import in_parts, set_up
from mmcompress.compress.train.deepening import deepen, share_within
from mmcompress.compress.train.embeddings import Embeddings, load_embeddings
from mmcompress.compress.train.growing import grown
from mmcompress.compress.train.inherit import inherited, samples_to_fit
from mmcompress.compress.train.objective import batch_terms, distillation_terms
from mmcompress.compress.train.optimize import optimize, total_steps
from mmcompress.compress.train.pairs import TrainingBatch, training_pairs, warn_of_enlarged
from mmcompress.compress.train.projection import nearest_axes, nothing_to_project, principal_axes, projected
from mmcompress.compress.train.published import published
from mmcompress.compress.train.statistics import settling, synchronize
from mmcompress.compress.train.student import inherited_share, student_from_preset, student_from_published
from mmcompress.compress.train.vocabulary import vocabulary_size
from mmcompress.compress.train.watching import watch_of
from mmcompress.config import DistillConfig
from mmcompress.distributed import gathered, gathered_ids, of_first_rank, world
from mmcompress.errors import UsageError
from mmcompress.export.texts import save_text_processing
from mmcompress.huggingface import (
    FOLDER_FILES,
    dual_encoder_from_checkpoint,
    dual_encoder_from_folder,
    save_checkpoint,
    with_tokenizer,
)
from mmcompress.model import MAX_LOGIT_SCALE, DualEncoder
from mmcompress.processing import save_student_preprocessing
from mmcompress.progress import say
from mmcompress.runtime.tokenize import load_tokenizer
from mmcompress.stages import Job
from mmcompress.teachers import resolve

_TO_PROJECT = 1024
"""Samples by which a space is laid into another one."""


def distill(job: Job[DistillConfig]) -> None:
    """Stage: train a student, or recover a pruned one, against cached teacher embeddings."""
    draft = job.draft
    embeddings = load_embeddings(job.sources["embeddings"])
    config, teacher_scale = _with_scale(job, job.sources["embeddings"])
    sparse: list[str] = []
    with world(config.device) as here:
        share: float | None = None
        if "checkpoint" in job.sources:
            source = job.sources["checkpoint"]
            draft.inherit(source, *FOLDER_FILES)
            model = dual_encoder_from_checkpoint(source.path, source.model)
            sparse = source.manifest.facts.get(SPARSE, [])
        else:
            model = _new_student(config, job.sources["embeddings"], draft)
            share = inherited_share(config.student.source) if config.student else None
        draft.model = model.config
        text = _text_mode(config, model)
        _check_space(model, text, embeddings, config)
        model = model.to(here.device)
        if share is not None and config.student is not None:
            number, batch = config.student.fit, config.optimizer.batch
            samples = samples_to_fit(draft, config.data, config.seed, number, embeddings, here, batch)
            model = inherited(model, share, ("image",) if text == "keep" else model.config.compressed, samples)
            draft.model = model.config
        model.logit_scale.requires_grad_(bool(config.contrastive or config.interactive))
        if model.logit_bias is not None:
            model.logit_bias.requires_grad_(False)
        model.train()
        anchors = embeddings.anchors(config.anchors, here.device)
        axes: Tensor | None = None
        if (width := model.config.embed_dim) != embeddings.dim:
            if share is None and "checkpoint" not in job.sources:
                axes = principal_axes(anchors, width)
            else:
                batch = config.optimizer.batch
                samples = samples_to_fit(draft, config.data, config.seed, _TO_PROJECT, embeddings, here, batch)
                axes = nearest_axes(model, samples)
            of_first_rank([axes], here)
        keep_zeros(model, sparse)
        set_up(model, config.recompute, config.compile, config.parts)
        synchronize(model, here)
        if text == "keep":  # and costs nothing: the teacher's own texts stand in
            model.text.requires_grad_(False)
        pairs = training_pairs(
            draft,
            config.data,
            batch=config.optimizer.batch,
            seed=config.seed,
            here=here,
            embeddings=embeddings,
            sentences=True,
        )
        settle = settling(model, pairs.stream, config.optimizer.batch, here)
        deepening = share_within(config.deepens, total_steps(config.optimizer, pairs.count)[0])
        grown_after = max(deepening, config.grows)

        def loss_of(batch: TrainingBatch, done: float) -> Mapping[str, Tensor]:
            assert batch.teacher is not None
            deepen(model, done, deepening)
            texts = batch.teacher[1] if text == "keep" else in_parts(model.encode_text, batch.tokens, config.parts)
            pixels = grown(batch.pixels, model.config.image, done, config.grows)
            student = in_parts(model.encode_image, pixels, config.parts), texts
            seen = student if axes is None else projected(student, axes)
            terms = distillation_terms(
                seen, batch.teacher, anchors, config.cosine, config.relational, config.temperature
            )
            if config.compares_batch:
                groups = gathered_ids(batch.groups, here)
                together = gathered(student, here)
                terms |= batch_terms(
                    together,
                    gathered(batch.teacher, here),
                    groups[:, None] == groups[None, :],
                    model.logit_scale.clamp(max=MAX_LOGIT_SCALE),
                    teacher_scale,
                    config.contrastive,
                    config.affinity,
                    config.interactive,
                    together if axes is None else projected(together, axes),
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
            what=f"distilling {job.name}",
        )
        settle()
    if not here.leads:
        return  # the artifact is written by rank 0
    save_checkpoint(model.cpu(), draft.path)
    draft.metrics = {"training": metrics}
    draft.facts = {"params": model.config.params, "macs": model.config.macs, **({SPARSE: sparse} if sparse else {})}


def _with_scale(job: Job[DistillConfig], embeddings: Artifact) -> tuple[DistillConfig, float]:
    """The config, and the teacher's own factor on similarities. A teacher that says none has no logits to compare, so
    affinity is left out, or refused where it was asked for.
    """
    config, scale = job.config, embeddings.manifest.facts.get("logit_scale")
    if scale is not None or not config.affinity:
        return config, scale or 1.0
    if "affinity" in config.model_fields_set:
        raise UsageError(
            f"affinity compares logits, and the teacher of {embeddings.path} says no scale of its own",
            "leave affinity out, or let the teacher's function return a logit_scale",
        )
    say("", job.name, "without affinity, which compares logits: the teacher says no scale of its own")
    return config.model_copy(update={"affinity": 0.0}), 1.0


def _text_mode(config: DistillConfig, model: DualEncoder) -> Literal["distill", "keep"]:
    """What becomes of the text tower: one that is never compressed has nothing to recover, so it is kept."""
    if "text" in model.config.compressed or config.text == "keep":
        return config.text
    say("", "text", NEVER_COMPRESSED)
    return "keep"


def _check_space(
    model: DualEncoder, text: Literal["distill", "keep"], embeddings: Embeddings, config: DistillConfig
) -> None:
    """Raise UsageError for a student that embeds into another space than what it learns from, unless it is projected
    into it."""
    own = model.config.embed_dim
    if own != embeddings.dim and not config.projects:
        raise UsageError(
            f"the student embeds into {own} dimensions, and what it learns from has {embeddings.dim}",
            "give a preset, vit-s16 say, which is made as wide; or combine the teachers by average; or learn through a "
            "projection, --project",
        )
    if own == embeddings.dim and config.project:
        raise nothing_to_project(own)
    if own > embeddings.dim and config.embed_dim is not None:
        raise UsageError(
            f"embed_dim is {own}, and what the student learns from has {embeddings.dim} dimensions",
            "give fewer of them",
        )
    if own != embeddings.dim and not (config.affinity or config.contrastive):
        raise UsageError(
            "what is projected is held in its own space by affinity or contrastive, and both are 0",
            "leave project out",
        )
    if own != embeddings.dim and text == "keep":
        raise UsageError(
            f"the text tower that is kept is of {embeddings.dim} dimensions, and the student of {own}",
            "leave text = keep out, or project and embed_dim",
        )
    if text == "keep" and len(embeddings.stores) > 1:
        raise UsageError(
            f"the text tower is kept, and it is not that of {len(embeddings.stores)} teachers together",
            "leave text = keep out, or learn from one teacher",
        )


def _new_student(config: DistillConfig, embeddings: Artifact, draft: Draft) -> DualEncoder:
    """Build the student that the config names, with the teacher's pixels, texts and logits; of one that inherits the
    teacher, whole as yet."""
    if config.student is None:
        raise UsageError("distill needs a student to start from", "set student.source, or give --student")
    teacher, facts = embeddings.manifest.preprocessing, embeddings.manifest.facts
    if teacher is None:
        raise UsageError(f"{embeddings.path} does not say how the teacher's images were prepared", "embed them again")
    folder = _teacher_folder(config)
    draft.tokenizer = save_text_processing(folder, draft.path, config.teacher.trust_remote_code)
    colours = None
    if inherited_share(config.student.source) is not None:
        model = with_tokenizer(dual_encoder_from_folder(folder), draft.tokenizer)
    else:
        vocab = vocabulary_size(load_tokenizer(draft.path / draft.tokenizer.file))
        sizes = (config.embed_dim or facts["dim"], draft.tokenizer, vocab, config.seed)
        if config.student.published:
            found = published(config.student)
            colours = {"mean": found.mean, "std": found.std}
            model = student_from_published(config.student, found, *sizes)
        else:
            model = student_from_preset(config.student, *sizes)
        if config.text == "keep":
            model = _with_text_tower(model, with_tokenizer(dual_encoder_from_folder(folder), draft.tokenizer))
    if (scale := facts.get("logit_scale")) is not None:
        model.logit_scale.data.fill_(math.log(scale))
    side = model.config.image.image_size
    draft.preprocessing = save_student_preprocessing(teacher, draft.path, side, colours)
    if inherited_share(config.student.source) is None:
        warn_of_enlarged(config.data.train, side)
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
