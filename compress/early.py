"""What can be known before the first long step: whether stages that compress can work at all, from their configs.

A misspelt student must not be found out after a night of embedding. So these checks run before the first stage of a
recipe or command, on what is on this machine already, and no weights are loaded. Fetched is only what a student takes
from a hub, since its name may be wrong and a whole embedding would come before it. They run again when a stage's
sources are there, and then say whether these belong together.
"""

from __future__ import annotations

from collections.abc import Mapping

from mmcompress.architecture import DualEncoderConfig
from mmcompress.artifact import Artifact
from mmcompress.checkpoints import config_from_folder
from mmcompress.compress.earlyteacher import (
    brings_no_tokenizer,
    check_is_foreign,
    check_same_teacher,
    check_source,
    check_tokenizer,
    coming_model,
    folder_here,
)
from mmcompress.compress.int8.given import check_keep, check_same_blocks, check_same_weights
from mmcompress.compress.ownteacher import check_has_towers
from mmcompress.compress.prune.hidden import check_channel_multiple, check_hidden_share
from mmcompress.compress.prune.latency_target import check_latency
from mmcompress.compress.prune.prune import check_width, prunable_towers
from mmcompress.compress.prune.sizes import check_mlp_multiple, check_share
from mmcompress.compress.train.computing import check_parts
from mmcompress.compress.train.pair import pair_config, pair_preprocessing
from mmcompress.compress.train.pairs import check_fills_a_batch, check_first_embedded
from mmcompress.compress.train.projection import nothing_to_project
from mmcompress.compress.train.published import read_published
from mmcompress.compress.train.scalars import check_tensorboard
from mmcompress.compress.train.student import (
    check_preset,
    check_reads_teachers_texts,
    inherited_config,
    inherited_share,
    is_convolutional,
)
from mmcompress.config import (
    BaselineConfig,
    ConvertConfig,
    DistillConfig,
    EmbedConfig,
    PruneConfig,
    QuantizeConfig,
    QuantizeGraphsConfig,
    StudentConfig,
    TeacherConfig,
    TraceConfig,
    TrainConfig,
)
from mmcompress.convblocks import AttentionBlock
from mmcompress.convnet import ConvConfig
from mmcompress.data.layout import read_sentences
from mmcompress.data.spec import STDIN, bare, is_photos
from mmcompress.errors import UsageError
from mmcompress.export.pixels import image_processing
from mmcompress.int8 import GRAPH_RANGES
from mmcompress.teachers import own_code, resolve
from mmcompress.weights import check_finite, weight_files

Sources = Mapping[str, Artifact]


def check_teacher(config: EmbedConfig | ConvertConfig | BaselineConfig | TraceConfig, _: Sources) -> None:
    check_source(config.teacher)
    if isinstance(config, EmbedConfig) and config.sentences is not None:
        read_sentences(config.sentences)
    if isinstance(config, BaselineConfig | TraceConfig):
        check_is_foreign(config.teacher)
    if isinstance(config, TraceConfig) and (own := own_code(config.teacher.source)) is not None:
        check_has_towers(*own)


def check_train(config: TrainConfig, _: Sources) -> None:
    check_tensorboard(config.optimizer.tensorboard)
    if config.towers is not None:
        sizes = pair_config(config.towers, config.embed_dim, "embed_dim" in config.model_fields_set)
        pair_preprocessing(config.towers, sizes)
        check_tokenizer(TeacherConfig(source=config.towers.text))
    elif config.student is not None:
        _check_trained(config.student, config.parts)
    check_fills_a_batch(config.data.train, config.optimizer.batch)


def _check_trained(student: StudentConfig, parts: int) -> None:
    if inherited_share(student.source) is not None:
        raise UsageError(
            "train begins with random weights, and inherits from no teacher", "give a preset: vit-s16, say"
        )
    _check_start(student, parts)
    if student.tokenizer is not None:
        check_tokenizer(TeacherConfig(source=student.tokenizer))


def check_distill(config: DistillConfig, sources: Sources) -> None:
    check_tensorboard(config.optimizer.tensorboard)
    if config.student is not None and not brings_no_tokenizer(config.teacher.source):
        check_reads_teachers_texts(config.student, config.teacher.source)
    if config.data.train is not None and is_photos(config.data.train):
        check_asks_no_pairs(config.contrastive, config.interactive, "photos alone have none")
    if "embeddings" in sources:
        if sources["embeddings"].manifest.facts.get("sentences"):
            check_asks_no_pairs(config.contrastive, config.interactive, "sentences of one's own belong to no image")
        check_same_teacher(config.teacher.source, sources["embeddings"])
        if not config.projects:
            check_one_space(sources)
        check_first_embedded(config.data.train, sources)
        return  # nothing long stands before the stage any more, and it sees the rest itself
    check_source(config.teacher)
    if "checkpoint" in sources:
        check_parts(isinstance(sources["checkpoint"].model.image, ConvConfig), config.parts)
        _check_width(sources["checkpoint"], config)
    if config.student is not None:
        _check_student(config, config.student)
    check_fills_a_batch(config.data.train, config.optimizer.batch)


def check_asks_no_pairs(contrastive: float, interactive: float, why: str) -> None:
    """Raise UsageError for a term that needs the images' own captions, which there are none of, as `why` says."""
    if contrastive or interactive:
        raise UsageError(
            f"contrastive and interactive learn which caption belongs to an image, and {why}",
            "leave both out: the other terms place images among sentences, whatever these say of them",
        )


def _check_start(student: StudentConfig, parts: int) -> None:
    """Refuse a preset that there is not, and a published tower that is none, which is fetched for it."""
    check_parts(is_convolutional(student), parts)
    check_preset(student)
    if student.published:
        folder = resolve(TeacherConfig(source=student.source), "student")
        read_published(folder)
        for file in weight_files(folder):
            check_finite(file)


def _check_student(config: DistillConfig, student: StudentConfig) -> None:
    share = inherited_share(student.source)
    if share is None:
        _check_start(student, config.parts)
    named = student.tokenizer if brings_no_tokenizer(config.teacher.source) else None
    place = config.teacher if named is None else config.teacher.model_copy(update={"source": named})
    if brings_no_tokenizer(place.source):
        raise UsageError(
            f"the teacher {place.source!r} has no Hugging Face folder to take a tokenizer from",
            "set student.tokenizer to a folder or hub id with one",
        )
    folder = check_tokenizer(place, fetched=named is not None)
    if folder is None:
        return
    image_processing(folder, config.teacher.trust_remote_code)
    if share is not None:
        inherited_config(config_from_folder(folder), share)
        if student.fit and config.data.train is not None and bare(config.data.train) == STDIN:
            raise UsageError(
                "a student that inherits is fitted on samples before it is trained, and '-' can be read once only",
                "give a file or pipe:COMMAND, or leave the fit out: --student-fit 0",
            )
    elif config.text == "keep":
        config_from_folder(folder)


def check_prune(config: PruneConfig, sources: Sources) -> None:
    check_one_space(sources)
    check_fills_a_batch(config.data.train, config.batch)
    if "embeddings" in sources:
        check_first_embedded(config.data.train, sources)


def fits_prune(config: PruneConfig, model: DualEncoderConfig, _: Sources) -> None:
    towers = prunable_towers(model, config)
    check_width(model, config)
    if "image" in towers and isinstance(model.image, ConvConfig):
        _check_bottlenecks(config, model, model.image)
    elif "channel_multiple" in config.model_fields_set:
        raise UsageError(
            "channel_multiple is of convolutional image towers, and none is pruned here",
            "leave it out: of transformers it is mlp_multiple",
        )
    for tower in towers:
        if tower == "image" and isinstance(model.image, ConvConfig):
            continue
        if "mlp_multiple" in config.model_fields_set:
            check_mlp_multiple(tower, getattr(model, tower), config.mlp_multiple)
        if config.target is not None and config.target[0] != "latency":
            check_share(model, tower, *config.target, config.mlp_multiple)
    if config.target_latency is not None:
        check_latency(model, config)


def _check_bottlenecks(config: PruneConfig, model: DualEncoderConfig, tower: ConvConfig) -> None:
    """What pruning cannot do to a convolutional image tower, and how small it can become."""
    alone = 'prune the text tower alone, --set towers=["text"]'
    if config.width < 1 and any(isinstance(block, AttentionBlock) for block in tower.blocks):
        raise UsageError("width: channels that mobile attention reads are not pruned", f"leave it out, or {alone}")
    if config.sparsity is not None:
        raise UsageError("sparsity: 2:4 is of Linears, and this image tower has convolutions", alone)
    if tuple(config.towers) == ("image",) and (unused := {"heads", "mlp_multiple"} & config.model_fields_set):
        raise UsageError(
            f"{min(unused)} is of transformer blocks, and this image tower is convolutional",
            "say mlp, the share of the hidden channels, and channel_multiple",
        )
    if "channel_multiple" in config.model_fields_set:
        check_channel_multiple(tower, config.channel_multiple)
    if config.target is not None and config.target[0] != "latency":
        check_hidden_share(model, tower, *config.target, config.channel_multiple)


def fits_quantize(config: QuantizeConfig, model: DualEncoderConfig, sources: Sources) -> None:
    check_keep(model, config.keep)
    if "ranges" in sources:
        check_same_blocks(sources["ranges"], model)
    if {"ranges", "checkpoint"} <= sources.keys():
        check_same_weights(sources["ranges"], sources["checkpoint"].path)


def check_quantize_graphs(config: QuantizeGraphsConfig, _: Sources) -> None:
    """What is kept has a name of a graph, which is known when there is one; what no graph has is known before."""
    for name in config.keep:
        if name.partition(".")[0] not in ("image", "text"):
            raise UsageError(
                f"keep: no graph has a product {name!r}: a name begins with its tower, image. or text.",
                f"the names are the keys of {GRAPH_RANGES}, which quantizing without keep writes",
            )


def check_coming_weights(ranges: Artifact, teacher: TeacherConfig) -> None:
    """As `fits_quantize`, before a teacher is a checkpoint, of one whose weights are here in one file."""
    if (folder := folder_here(teacher)) is not None:
        check_same_weights(ranges, folder)


def _check_width(checkpoint: Artifact, config: DistillConfig) -> None:
    """As `check_one_space`, before there are embeddings, of a teacher that says how wide it is without being loaded."""
    theirs, ours = coming_model(config.teacher), checkpoint.model.embed_dim
    if theirs is not None and config.project and ours == theirs.embed_dim:
        raise nothing_to_project(ours)
    if theirs is not None and not config.projects and ours != theirs.embed_dim:
        raise _other_space(checkpoint, config.teacher.source, theirs.embed_dim)


def check_one_space(sources: Sources) -> None:
    """Raise UsageError where a checkpoint does not embed into the space of the embeddings that it is to learn from."""
    if not {"checkpoint", "embeddings"} <= sources.keys():
        return
    checkpoint, embeddings = sources["checkpoint"], sources["embeddings"]
    if checkpoint.model.embed_dim != (theirs := embeddings.manifest.facts["dim"]):
        raise _other_space(checkpoint, f"of {embeddings.path}", theirs)


def _other_space(checkpoint: Artifact, teacher: str, theirs: int) -> UsageError:
    ours = checkpoint.model.embed_dim
    return UsageError(
        f"{checkpoint.path} embeds into {ours} dimensions, and the teacher {teacher} into {theirs}",
        "give the teacher that the checkpoint was distilled from, or embeddings of it; or, to distill from another one "
        "through a projection, --project",
    )
