"""Everything a recipe can say: one frozen model a table, one docstring a key.

A recipe is TOML with `[data]`, `[teacher]`, `[student]` and ordered `[[stage]]` tables. The three shared tables are the
defaults of the stages that have a field of that name, so a stage's config holds all that its result depends on; what it
holds beside that is marked, and the hash of the rest serves as the cache key. Nothing here imports torch.

A key is spelled here and nowhere else: the commands make their options of these classes, with a key's name, docstring
and default (`cli/options.py`), so every key has a docstring. The file is long because it is a table.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    PositiveFloat,
    ValidationError,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from mmcompress.errors import MisspeltError, UsageError, suggestion
from mmcompress.frozen import Config
from mmcompress.gates import Gates

Precision = Literal["fp32", "fp16", "fp8", "int8"]
EIGHT_BITS: tuple[Precision, ...] = ("int8", "fp8")
"""The precisions that are quantized, and held against their own FP32."""
Backend = Literal["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]
Augmentation = Literal["none", "photo", "drawing"]


class _Aside:
    """Marks a key that is no part of an artifact's own key: see `what_counts`."""


_HOW = _Aside()
"""Says how something is computed, or what follows from it, and not what comes out."""
_NAMED = _Aside()
"""Names what has a fingerprint, which is part of the artifact's key in its place."""
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$"), _HOW]
C = TypeVar("C", bound=Config)
LARGEST_IMAGE = 64 << 20
"""Pixels; what has more is not decoded (`data/imagefile.py`)."""


def _without_times_sign(value: object) -> object:
    return value.removesuffix("x") if isinstance(value, str) else value


Share = Annotated[float, BeforeValidator(_without_times_sign), Field(gt=0, le=1)]
"""A part of what there is now: 0.5, or as text `0.5x`."""
Count = Annotated[int, Field(ge=1)]


class _UnusedError(ValueError):
    """Of a key that says nothing beside the others."""


def _image_input(value: str) -> str:
    """`480x640` -> itself; ValueError for a size that no image here has, and for other words."""
    if value in ("prepared", "any"):
        return value
    height, _, width = value.partition("x")
    if not all(re.fullmatch(r"[1-9]\d{0,8}", side) for side in (height, width)):
        raise ValueError("it is not `prepared`, `any`, or a height and a width such as 480x640")
    if int(height) * int(width) > LARGEST_IMAGE:
        raise ValueError(f"images of more than {LARGEST_IMAGE >> 20} MiPixel are not decoded")
    return value


def _refuse_unused(config: BaseModel, names: Sequence[str], why: str) -> None:
    """ValueError for a key that was said and says nothing here: what is ignored is not what was asked for."""
    for name in names:
        if name in config.model_fields_set and getattr(config, name) is not None:
            raise _UnusedError(f"{name} {why}")


class DataConfig(Config):
    """Image-text pairs: WebDataset shards (brace ranges, folders of shards, CLIP_benchmark's folders), a folder with a
    `captions.tsv`, or a folder of images by class."""

    train: Annotated[str | None, _NAMED] = None
    """Pairs to learn from and to calibrate on: shards (`d/{00..09}.tar`), a folder, a stream, or `demo:train`."""
    validation: Annotated[str | None, _NAMED] = None
    """Pairs that choices are made on; `demo:val`, say."""
    test: Annotated[str | None, _NAMED] = None
    """Pairs that nothing was trained or chosen on: shards, a folder (also by class), a stream, or `demo:test`."""
    original: Annotated[str | None, _NAMED] = None
    """Classes or pairs that a model is to answer as before when it was fine-tuned on others."""
    labels: Annotated[str | None, _NAMED] = None
    """Text file with one candidate text a line; without it the candidates are the classes that the test set has by
    itself, else the captions of the evaluated pairs."""
    templates: Annotated[str | None, _NAMED] = None
    """Text file with one prompt a line around a class, `a photo of a {c}.`; the test set's own if not given."""
    max_bad_fraction: float = Field(default=0.05, ge=0, le=1)
    """Share of unreadable samples above which a stage stops."""
    workers: Annotated[int, _HOW] = Field(default=4, ge=1)
    """Threads that decode images."""


class TeacherConfig(Config):
    source: Annotated[str, _NAMED]
    """Alias (`vit-l14`), hub id, local Hugging Face folder, `open_clip:NAME/TAG`, or `file.py:function`."""
    trust_remote_code: bool = False
    """Let a hub repository run its own Python code. Off unless you trust its author."""


class StudentConfig(Config):
    source: str
    """A preset (`vit-s16`, `mnv4-m`), a published MobileNetV4 (a hub id such as
    `timm/mobilenetv4_conv_medium.e500_r224_in1k`, or its folder), or `inherit:F`: heads, MLP units and blocks of the
    teacher, at F of its image MACs."""
    image_size: int | None = None
    """Input side of a preset or of a published tower, in pixels; its own if not given."""
    tokenizer: Annotated[str | None, _NAMED] = None
    """Folder or hub id to take the tokenizer from, where the teacher brings none."""
    fit: int = Field(default=1024, ge=0)
    """Samples on which what `inherit:F` keeps is fitted by least squares; 0 takes the weights over as they are."""

    @property
    def published(self) -> bool:
        """Whether the source is a hub id or a folder: no other name has a slash, or begins with a dot."""
        return "/" in self.source or self.source.startswith((".", "~"))

    @model_validator(mode="after")
    def _inherited_whole(self) -> Self:
        if self.source.startswith("inherit:"):
            for name in ("image_size", "tokenizer"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is of presets: inherit takes the teacher's own")
        elif "fit" in self.model_fields_set:
            raise ValueError("fit is of inherit:F: a preset begins with random weights")
        return self


class OptimizerConfig(Config):
    """AdamW (Loshchilov & Hutter 2019) with linear warm-up and cosine decay to zero."""

    epochs: float = Field(default=10.0, gt=0)
    """Passes over the training pairs."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; instead of `epochs` where given."""
    batch: int = Field(default=128, ge=2)
    """Pairs a step, over all processes."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.05, ge=0)
    """On matrices only: biases, gains and embeddings are not decayed."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the averaged weights that are saved; 0 saves the last ones."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the arithmetic; weights stay in float32. `auto` is bfloat16 on GPUs from Ampere on and on CPUs with AMX."""
    max_skipped: Annotated[int, _HOW] = Field(default=10, ge=1)
    """Steps in a row with a loss or gradient that is not finite, each of them skipped, at which training gives up."""
    save_minutes: Annotated[float, _HOW] = Field(default=1.0, gt=0)
    """How often the state to resume from is written."""
    tensorboard: Annotated[str | None, _HOW] = None
    """Folder that loss, learning rate and speed of every step are written to for TensorBoard, of this run alone."""


class StageConfig(Config):
    """What every stage has."""

    seed: int = 0
    """Of every random choice."""

    def check_sources(self, roles: Collection[str]) -> None:
        """Raise ValueError for a key that was said and says nothing with, or without, these sources."""


class WatchConfig(Config):
    """R@10 on validation pairs while training runs."""

    steps: int | None = Field(default=None, ge=1)
    """Steps between two measurements on data.validation; null for none."""
    samples: int = Field(default=1000, ge=2)
    """Pairs that are measured: the first ones of data.validation."""
    keep_best: bool = False
    """End with the weights that had the highest R@10, and not with the last ones."""
    patience: int | None = Field(default=None, ge=1)
    """Measurements in a row without a higher R@10 at which training ends; null for never."""

    @model_validator(mode="after")
    def _watched(self) -> Self:
        if self.steps is None:
            _refuse_unused(self, ("samples", "keep_best", "patience"), "is of measurements, and steps are not given")
        return self


class TowersConfig(StageConfig):
    """Of stages that train a model of both towers."""

    data: DataConfig
    parts: Annotated[int, _HOW] = Field(default=1, ge=1)
    """Parts of a batch that are computed one after another, twice each: memory holds the activations of one, and the
    loss is still that of the whole batch."""
    recompute: Annotated[bool, _HOW] = False
    """Keep what is between the blocks only, and compute the blocks again for the gradient: less memory, more time."""
    compile: Annotated[bool, _HOW] = False
    """Run the towers as code of torch.compile: a slow start, then faster steps, on GPUs above all."""


class WatchedConfig(TowersConfig):
    """Of those that may be watched while they train."""

    watch: WatchConfig = WatchConfig()
    """What is measured while it trains."""

    @model_validator(mode="before")
    @classmethod
    def _idle_validation_left_out(cls, values: Any) -> Any:
        """Pairs that nothing is measured on are no part of a result, so to change them makes nothing again."""
        if not isinstance(values, dict) or "data" not in values or dict(values.get("watch", {})).get("steps"):
            return values
        data = values["data"]
        given = data if isinstance(data, Mapping) else data.model_dump(exclude_unset=True)
        return values | {"data": {name: value for name, value in given.items() if name != "validation"}}

    @model_validator(mode="after")
    def _watched_on_something(self) -> Self:
        if self.watch.steps is not None and self.data.validation is None:
            raise ValueError("watch.steps needs pairs to measure on: data.validation")
        return self


class BudgetConfig(StageConfig):
    """The accuracy that INT8 may cost against its own FP32. A graph is held to both; null is no limit, any cost."""

    max_drop: float | None = Field(default=0.005, ge=0, le=1)
    """Largest loss that is accepted, as a share of the R@10 hits of FP32; null for any."""
    max_flips: float | None = Field(default=0.02, ge=0, le=1)
    """Largest share of images that may get another label, or without labels caption, than FP32 gives; null for any."""


class EmbedConfig(StageConfig):
    """Embed the training pairs with the teacher, once."""

    teacher: TeacherConfig
    data: DataConfig
    views: int = Field(default=1, ge=1)
    """Views of each image; the first is the plain image, the others are augmented."""
    augment: Augmentation = "photo"
    """How: `photo` crops, mirrors and jitters; `drawing` moves, warps and recolours what stands on a plain ground."""
    batch: int = Field(default=64, ge=1)
    """Pairs that are computed at once."""
    device: Device = "auto"
    """Of torch: `cpu`, `cuda`; `auto` is a GPU where there is one."""

    @model_validator(mode="after")
    def _views_to_augment(self) -> Self:
        if self.augment != "none" and "augment" in self.model_fields_set and "views" not in self.model_fields_set:
            raise ValueError("augment makes the views behind the first one, and there is one: say how many views")
        return self


class ImportEmbeddingsConfig(StageConfig):
    """Embeddings, views and captions that lie beside published images (DataCompDR), in place of a teacher's."""

    data: DataConfig
    size: int = Field(default=224, ge=1)
    """Side of the views that were embedded, in pixels."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """How their crops were resized."""
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Of their values in [0, 1], for red, green and blue."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.26862954, 0.26130258, 0.27577711)
    """Of their values in [0, 1], for red, green and blue."""
    temperature: float = Field(default=0.01, gt=0)
    """Of the teachers' softmax over cosines, which the student begins with."""


class EnsembleConfig(StageConfig):
    """Cached embeddings of several teachers, to be learned from as those of one."""

    combine: Literal["concatenate", "average"] = "concatenate"
    """`concatenate` takes any teachers, and the student is as wide as all; `average` those that share a space."""
    weights: tuple[PositiveFloat, ...] | None = None
    """How much each teacher counts, in their order; all the same if not given."""
    temperatures: tuple[PositiveFloat, ...] | None = None
    """Of each teacher's softmax over cosines, in their order; its own, 1 / logit_scale, if not given."""


class ConvertConfig(StageConfig):
    """A teacher's own weights as a checkpoint, exactly equal to it, so that what takes a checkpoint takes a teacher."""

    teacher: TeacherConfig


class PairConfig(Config):
    """Two pretrained towers that are to share a space."""

    image: Annotated[str, _NAMED]
    """Hub id or folder of a CLIP or SigLIP model, or of its vision model alone."""
    text: Annotated[str, _NAMED]
    """Hub id or folder of a CLIP or SigLIP model, of its text model alone, or of a BERT; its tokenizer is taken too."""
    layer_decay: float = Field(default=0.75, gt=0, le=1)
    """Factor on the learning rate from each block to the one before it, so that new projections learn fastest."""


class TrainConfig(WatchedConfig):
    """Contrastive training of a dual encoder from image-text pairs, with a guide's help where there is one."""

    student: StudentConfig | None = None
    """A preset; `student.tokenizer` names an existing tokenizer, else one is trained on the captions."""
    towers: PairConfig | None = None
    """Two pretrained towers in place of a preset's random weights."""
    optimizer: OptimizerConfig = OptimizerConfig()
    growing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps, the first ones, whose images grow from half of their side to the whole."""
    embed_dim: int = Field(default=256, ge=8)
    """Width of the shared space; a guide's own where there is one."""
    vocab: int = Field(default=8192, ge=300)
    """Largest vocabulary of a tokenizer that is trained."""
    context: int = Field(default=32, ge=4)
    """Longest text of a tokenizer that is trained, in tokens."""
    augment: Augmentation = "photo"
    """How the images are varied in training."""
    views: int = Field(default=1_000_000, ge=1)
    """Augmented views an image is shown in, without a guide; with one, its cached views are shown."""
    contrastive: float = Field(default=1.0, ge=0)
    """Weight of the symmetric InfoNCE."""
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Label smoothing of its targets."""
    cosine: float = Field(default=1.0, ge=0)
    """Weight of the distance to the guide's embeddings."""
    relational: float = Field(default=1.0, ge=0)
    """Weight of the guide's relations."""
    temperature: float = Field(default=0.05, gt=0)
    """Of the guide's relations."""
    anchors: int = Field(default=4096, ge=2)
    """Cached guide embeddings of each modality that the other is compared with."""
    save_dtype: Literal["float32", "float16"] = "float32"
    """Type of the saved weights."""
    device: Device = "auto"
    """Of torch: `cpu`, `cuda`; `auto` is a GPU where there is one."""

    def check_sources(self, roles: Collection[str]) -> None:
        if "embeddings" in roles:
            _refuse_unused(self, ("views", "augment", "embed_dim"), "is the guide's own")
        else:
            _refuse_unused(self, ("cosine", "relational", "temperature", "anchors"), "is of a guide, and there is none")

    @model_validator(mode="after")
    def _only_what_counts(self) -> Self:
        if self.student is None and self.towers is None:
            raise ValueError("there is nothing to train: student names a preset, towers two pretrained folders")
        if self.student is not None and self.towers is not None:
            raise ValueError("student and towers both say what is trained")
        if self.towers is not None:
            _refuse_unused(self, ("vocab", "context"), "is of a trained tokenizer, and the text tower has its own")
        elif self.student is not None and self.student.tokenizer is not None:
            _refuse_unused(self, ("vocab", "context"), "is of a trained tokenizer, and student.tokenizer is given")
        if not self.contrastive:
            _refuse_unused(self, ("smoothing",), "is of the contrastive loss, whose weight is 0")
        return self


class FinetuneOptimizerConfig(OptimizerConfig):
    """As `OptimizerConfig`, with small steps from weights that are good already."""

    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate, of what is nearest to the output."""


class FinetuneWatchConfig(Config):
    """What is measured on validation samples while fine-tuning runs; the best weights are what is interpolated."""

    steps: int | None = Field(default=None, ge=1)
    """Steps between two measurements on data.validation; an epoch if not given."""
    samples: int = Field(default=1000, ge=2)
    """Samples that are measured: the first ones of data.validation, and of data.original."""
    patience: int | None = Field(default=3, ge=1)
    """Measurements in a row without a higher figure at which training ends; null for never."""


class FinetuneConfig(TowersConfig):
    """Train a checkpoint further on data of one's own, and go back towards the start as far as validation says."""

    by: Literal["captions", "labels"] | None = None
    """`captions` is contrastive, by symmetric InfoNCE; `labels` is cross entropy over the prompts of the classes. Where
    the data has classes, labels if not given."""
    text: Literal["train", "keep"] | None = None
    """Whether the text tower is trained too. By labels it is kept, as its prompts are the classifier; by captions it is
    trained, if not given."""
    optimizer: FinetuneOptimizerConfig = FinetuneOptimizerConfig()
    watch: FinetuneWatchConfig = FinetuneWatchConfig()
    layer_decay: float = Field(default=0.75, gt=0, le=1)
    """Factor on the learning rate from each block to the one before it; 1 trains all alike."""
    alpha: float | None = Field(default=None, ge=0, le=1)
    """How much of the fine-tuned weights there is in the result, the rest is the start; chosen on validation samples if
    not given."""
    augment: Augmentation = "photo"
    """How the images are varied in training."""
    views: int = Field(default=1_000_000, ge=1)
    """Augmented views an image is shown in."""
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Label smoothing of the targets."""
    device: Device = "auto"
    """Of torch: `cpu`, `cuda`; `auto` is a GPU where there is one."""

    @model_validator(mode="after")
    def _prompts_stay(self) -> Self:
        if self.by == "captions":
            _refuse_unused(self.data, ("labels", "templates"), "is of classes, and by is captions")
        if self.by == "labels" and self.text == "train":
            raise ValueError("by = labels keeps the text tower, whose prompts are the classifier, and text is train")
        return self


class DistillConfig(WatchedConfig):
    """Fit a student's embeddings to the cached ones of the teacher."""

    teacher: TeacherConfig
    student: StudentConfig | None = None
    """Where the student starts from; a recovery starts from the checkpoint it is given."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How it is trained."""
    growing: float = Field(default=0.67, ge=0, lt=1)
    """Share of the steps, the first ones, whose images grow from half of their side to the whole."""
    cosine: float = Field(default=16.0, ge=0)
    """Weight of 1 - cosine between the student's and the teacher's embeddings, both towers."""
    relational: float = Field(default=1.0, ge=0)
    """Weight of the KL divergence between the similarities to the anchors, both towers."""
    temperature: float = Field(default=0.05, gt=0)
    """Of those similarities."""
    anchors: int = Field(default=4096, ge=2)
    """Cached teacher embeddings of each modality that the other is compared with."""
    contrastive: float = Field(default=0.0, ge=0)
    """Weight of the symmetric InfoNCE among the student's own embeddings of a batch, with hard labels."""
    affinity: float = Field(default=1.0, ge=0)
    """Weight of the KL divergence between the batch's logits, the teacher's at its own scale, both ways."""
    interactive: float = Field(default=0.0, ge=0)
    """Weight of the InfoNCE between the student's images and the teacher's texts, and the other way round."""
    text: Literal["distill", "keep"] = "distill"
    """`keep` takes the text tower over from the teacher, a folder of a known family, and leaves it as it is."""
    device: Device = "auto"
    """Of torch: `cpu`, `cuda`; `auto` is a GPU where there is one."""

    @property
    def compares_batch(self) -> bool:
        """Whether a term compares each image with each text of a batch."""
        return bool(self.contrastive or self.affinity or self.interactive)

    @model_validator(mode="after")
    def _relations_weigh(self) -> Self:
        if not self.relational:
            _refuse_unused(self, ("temperature", "anchors"), "is of the relations, whose weight is 0")
        if not (self.cosine or self.relational or self.compares_batch):
            raise ValueError("the weights of all terms are 0, so there is nothing to learn")
        return self


class PruneConfig(StageConfig):
    """Remove whole attention heads, MLP units and blocks, and fit what is left by least squares.

    By the same shares in every block (`heads`, `mlp`), or to one target, where the harm to the embeddings decides.
    """

    data: DataConfig
    heads: float = Field(default=0.75, gt=0, le=1)
    """Share of the heads kept in each block."""
    mlp: float = Field(default=0.5, gt=0, le=1)
    """Share of the MLP units kept in each block."""
    width: float = Field(default=1.0, gt=0, le=1)
    """Share of the channels of each tower's residual stream that is kept; heads and MLP units go after them."""
    width_multiple: int | None = Field(default=None, ge=1)
    """Channels are kept in multiples of this; of one head's if not given, which heads of the same share fill."""
    target_macs: Share | None = None
    """Share of each tower's multiply-accumulates to keep, `0.5` or `0.5x`; blocks get what they need most."""
    target_params: Share | None = None
    """Share of each tower's parameters to keep, `0.5` or `0.5x`."""
    target_latency: Share | None = None
    """Share of the image tower's latency at batch 1 to keep, `0.5` or `0.5x`, measured on `backend`; the text tower
    stays."""
    backend: Literal["openvino", "onnxruntime"] = "openvino"
    """The runtime of `target_latency`; TensorRT would need an engine built for every size that is timed."""
    precision: Literal["fp32", "int8"] = "fp32"
    """Of the graphs that `target_latency` times: `int8` where INT8 is what will be delivered."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of that runtime; all cores if not given."""
    mlp_multiple: int = Field(default=32, ge=1)
    """MLP units are kept in multiples of this, which backends like."""
    towers: tuple[Literal["image", "text"], ...] = ("image", "text")
    """The towers that are pruned."""
    importance: Literal["activation", "taylor", "magnitude"] = "activation"
    """What goes first: what the next Linear misses least, what the loss misses least, or the smallest weights."""
    refit: bool = True
    """Fit out-projection and FC2 again, to give what the dense model gives."""
    sparsity: Literal["2:4"] | None = None
    """`2:4` zeroes two of every four inputs of each Linear, for TensorRT's sparse kernels: see `build.sparse`."""
    samples: int = Field(default=512, ge=1)
    """Pairs that importance, fit and errors are computed on."""
    anchors: int = Field(default=4096, ge=2)
    """Cached teacher embeddings of each modality that the loss compares with."""
    batch: int = Field(default=64, ge=1)
    """Pairs that are computed at once."""
    device: Device = "auto"
    """Of torch: `cpu`, `cuda`; `auto` is a GPU where there is one."""

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        targets = [
            name for name in ("target_macs", "target_params", "target_latency") if getattr(self, name) is not None
        ]
        if len(targets) > 1:
            raise ValueError(f"{' and '.join(targets)} exclude each other: give one")
        if self.target_latency is not None and "image" not in self.towers:
            raise ValueError("target_latency is of the image tower, which is not among the towers")
        if self.target_latency is None:
            _refuse_unused(self, ("backend", "precision", "threads"), "is of target_latency, which is not given")
        if self.width == 1:
            _refuse_unused(self, ("width_multiple",), "is of width, which is not given")
        if self.importance != "taylor":
            _refuse_unused(self, ("anchors",), "is of the importance taylor")
        if targets and (shares := sorted({"heads", "mlp"} & self.model_fields_set)):
            raise ValueError(f"{shares[0]} and {targets[0]} exclude each other: a target says what blocks keep")
        if targets and self.width < 1:
            raise ValueError(f"width and {targets[0]} exclude each other: prune twice, the width first")
        return self

    @property
    def target(self) -> tuple[Literal["macs", "params", "latency"], float] | None:
        """What was asked for, if anything."""
        kinds: tuple[Literal["macs", "params", "latency"], ...] = ("macs", "params", "latency")
        return next(((kind, share) for kind in kinds if (share := getattr(self, f"target_{kind}")) is not None), None)


class FitConfig(BudgetConfig):
    """How integers are fitted to float weights, whatever they are weights of."""

    data: DataConfig
    method: Literal["auto", "minmax", "percentile", "entropy", "mse"] = "auto"
    """How ranges are read from the histograms; `auto` takes for each Linear the one with the smallest output error."""
    percentile: float = Field(default=99.99, gt=50, le=100)
    """Share of the absolute activations that the range of `percentile` covers, in percent."""
    samples: int = Field(default=512, ge=1)
    """Pairs that the ranges come from."""
    held: int = Field(default=256, ge=1)
    """Of those, the ones that are held in memory: one half fits weights and biases, the other judges what is chosen."""
    rounding: Literal["auto", "nearest", "clipped", "gptq", "refitted"] = "auto"
    """How weights become integers, `refitted` by GPTQ after a refit to noisy inputs; `auto` takes that or `nearest`."""
    bias_correction: bool = True
    """Try to take the mean error of every output into its bias."""
    sensitivity: bool = True
    """Measure the drift of each Linear by itself, which a budget needs: without it there is no budget."""
    keep: tuple[str, ...] = ()
    """Linears that stay in float in any case: `image.blocks.0.fc2`; or the table of tokens, `text.token_embed`."""
    batch: int = Field(default=32, ge=1)
    """Pairs that are computed at once."""

    @model_validator(mode="after")
    def _budget_needs_a_ranking(self) -> Self:
        if self.method not in ("auto", "percentile"):
            _refuse_unused(self, ("percentile",), f"is of the method percentile, not of {self.method}")
        for name in ("max_drop", "max_flips"):
            limit = getattr(self, name)
            if not self.sensitivity and name in self.model_fields_set and limit is not None and limit < 1:
                raise ValueError(f"{name} needs the ranking that sensitivity = false leaves out: leave one of them out")
        return self


class QuantizeConfig(FitConfig):
    """Fit INT8 to a checkpoint, from real samples: activation ranges, integer weights, what stays in float.

    Where all of it in INT8 would cost more than the budget, as few Linears as possible stay in float.
    """

    smooth: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.25, 0.5, 0.75)
    """Strengths of SmoothQuant to try beside none."""
    device: Device = "auto"
    """Of torch: `cpu`, `cuda`; `auto` is a GPU where there is one."""


class QuantizeGraphsConfig(FitConfig):
    """Fit INT8 to ONNX graphs of any architecture: convolutions and Linears, on ONNX Runtime.

    Where all of it in INT8 would cost more than the budget, as few of them as possible stay in float.
    """


class QatOptimizerConfig(OptimizerConfig):
    """As `OptimizerConfig`, for integers: weights move in units of their step."""

    steps: int | None = Field(default=300, ge=1)
    """Optimizer steps; null for `epochs`."""
    batch: int = Field(default=64, ge=2)
    """Pairs a step, one half for each kind of graph."""
    lr: float = Field(default=0.03, gt=0)
    """Peak learning rate, in steps of the integers."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Nothing is decayed, as a small integer is no better than a large one."""
    ema: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the averaged weights that are rounded; 0 rounds the last ones."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Of the arithmetic; bfloat16 has no more digits than INT8 has levels."""


class QatConfig(BudgetConfig):
    """Train the integers of a quantized checkpoint towards its own float weights, where INT8 misses its budget.

    Within the budget nothing is trained; without one, integers are trained in any case.
    """

    data: DataConfig
    """Pairs to train on; those to judge on are `validation`, or without one the training pairs, not augmented."""
    optimizer: QatOptimizerConfig = QatOptimizerConfig()
    augment: Augmentation = "photo"
    """How the images are varied in training."""
    samples: int = Field(default=384, ge=1)
    """Pairs that judge, in whole batches."""
    batch: int = Field(default=32, ge=1)
    """Pairs that are computed at once."""
    device: Device = "auto"
    """Of torch: `cpu`, `cuda`; `auto` is a GPU where there is one."""


class BaselineConfig(StageConfig):
    """The unmodified teacher as ONNX, through optimum: the report's baseline."""

    teacher: TeacherConfig


class TraceConfig(StageConfig):
    """Any teacher's towers as ONNX in FP32, traced by torch: for those that no exporter knows."""

    teacher: TeacherConfig


class BankConfig(Config):
    """Labels whose embeddings are compiled into the image graphs, which then answer with their logits as well."""

    labels: Annotated[str | None, _NAMED] = None
    """Text file with one label a line: the image graphs then answer with a logit for each beside the embedding."""
    templates: Annotated[str | None, _NAMED] = None
    """Text file with one prompt a line around a label, `a photo of a {c}.`; the label alone if not given."""

    @model_validator(mode="after")
    def _around_labels(self) -> Self:
        if self.labels is None:
            _refuse_unused(self, ("templates",), "stand around labels, and none are given")
        return self


class ExportConfig(StageConfig):
    """Write a checkpoint as two ONNX graphs, one a tower, checked against torch."""

    precisions: tuple[Precision, ...] = ("fp32",)
    """Of the graphs. The command writes int8 of a quantized checkpoint, where none is given."""
    opset: int = Field(default=18, ge=17)
    """Version of ONNX's operators; INT8 for GPUs takes 19 at least."""
    image_input: Annotated[str, AfterValidator(_image_input)] = "prepared"
    """What image graphs take: `prepared` pixels, or images as they were decoded, uint8 (N, H, W, 3), which they resize,
    crop and normalize themselves: of `any` size on CPU runtimes, or of one height and width, `480x640`."""
    bank: BankConfig = BankConfig()
    trim_vocab: Annotated[str | None, _NAMED] = None
    """Keep the tokens that some texts need (a text file with one a line, or image-text pairs), or languages (`en,zh`),
    and what any text is spelled with; all tokens if not given."""


class StaticConfig(StageConfig):
    """FP32 graphs of static shape with samples and what they become: what compilers of other vendors take."""

    data: DataConfig
    """Pairs to take samples from; those that the checkpoint was calibrated on if not given."""
    samples: int = Field(default=128, ge=1)
    """Images, and texts, in the bundle."""


class VerdictConfig(BudgetConfig):
    """Float and INT8 graphs of a quantized checkpoint, side by side on one backend: which to ship."""

    data: DataConfig
    """Choices are made on the validation pairs; without any, on training pairs that calibration has not seen."""
    backend: Backend | None = None
    """The runtime that is judged; the first CPU runtime that works here if not given."""
    batch: int = Field(default=1, ge=1)
    """Images a call, and texts a call."""
    threads: int | None = Field(default=None, ge=1)
    """Of a CPU runtime; all cores if not given."""
    samples: int = Field(default=512, ge=20)
    """Pairs that the drift is measured on."""
    seconds: float = Field(default=4.0, gt=0)
    """Longest measured time of each graph in the final race."""
    strict: Annotated[bool, _HOW] = False
    """Exit with 1 where INT8 is not clearly better; a run stops there too, when the artifact is written."""

    @model_validator(mode="after")
    def _threads_of_cpus(self) -> Self:
        if self.backend in ("tensorrt", "tensorrt-rtx"):
            _refuse_unused(self, ("threads",), f"is of CPU runtimes, not of {self.backend}")
        return self


class BuildConfig(StageConfig):
    """Build TensorRT engines from the exported graphs, with an audit of layers and precisions."""

    backend: Literal["tensorrt", "tensorrt-rtx"] = "tensorrt-rtx"
    """The runtime that the engines run on; `tensorrt-rtx` needs no GPU to build."""
    targets: tuple[str, ...] = ("sm86", "sm89", "sm120")
    """Compute capabilities, `sm89`; `native` is the GPU of this machine."""
    batches: tuple[int, int, int] = (1, 8, 32)
    """Smallest, usual and largest batch of the optimization profile."""
    sparse: bool = False
    """Let the builder take sparse kernels for weights that are 2:4; the audit lists them."""
    allow_fallback: bool = False
    """Take an engine in which a Linear is not in the 8 bits that its graph asks for, or of which there is no audit."""
    workspace_mb: int | None = Field(default=None, ge=1)
    """Most memory that one of TensorRT's kernels may use beside its tensors, in MiB; all of the GPU's if not given."""
    optimization_level: int | None = Field(default=None, ge=0, le=5)
    """How long TensorRT searches for kernels; its own default if not given."""
    reach: Literal["this GPU", "same compute capability", "Ampere and later"] | None = None
    """Where TensorRT's engines may run; elsewhere than on this GPU they are slower."""
    timing_cache: bool | None = None
    """Keep what TensorRT timed for the next build, in the user's cache; done if not given."""

    @field_validator("batches")
    @classmethod
    def _rising(cls, batches: tuple[int, int, int]) -> tuple[int, int, int]:
        if not 1 <= batches[0] <= batches[1] <= batches[2]:
            raise ValueError("batches rise from 1 or more: 1,8,32")
        return batches

    @model_validator(mode="after")
    def _of_tensorrt(self) -> Self:
        if self.backend == "tensorrt-rtx":
            names = ("workspace_mb", "optimization_level", "reach", "timing_cache")
            _refuse_unused(self, names, "is of TensorRT, and TensorRT-RTX times no kernels")
        return self


class BenchConfig(StageConfig):
    """Latency of every row, interleaved in one run."""

    backends: tuple[Backend, ...] = Field(default=("onnxruntime", "openvino"), min_length=1)
    """The runtimes that are measured."""
    batches: tuple[Count, ...] = Field(default=(1, 8), min_length=1)
    """Images a call, and texts a call."""
    threads: tuple[Count, ...] | None = Field(default=None, min_length=1)
    """Thread counts of the CPU runtimes; all cores if not given. Ratios are at the last one."""
    streams: tuple[Count, ...] = ()
    """Numbers of concurrent requests to measure beside single ones, such as [2, 4]; they share the threads."""
    seconds: float = Field(default=2.0, gt=0)
    """Measured time of each combination."""
    rounds: int = Field(default=20, ge=4)
    """In how many rounds: in each, every session is opened anew. Intervals are over rounds."""
    priority: bool = True
    """Run in the real-time class while measuring, where the system permits it, so that other programs do not count."""
    pin: tuple[int, ...] | None = Field(default=None, min_length=1)
    """Cores that the measurement is kept on, such as [0, 1]."""
    photo: tuple[Count, Count] | None = (640, 480)
    """Width and height of the image files that the input pipeline is measured on; null leaves it out."""
    ceiling: bool = True
    """Measure what one large matrix product reaches on each backend."""

    @model_validator(mode="after")
    def _threads_of_cpus(self) -> Self:
        if not {"onnxruntime", "openvino"}.intersection(self.backends):
            _refuse_unused(self, ("threads",), f"is of CPU runtimes, not of {' or '.join(self.backends)}")
        return self


class DriftConfig(StageConfig):
    """Accuracy of every row on the test pairs, and its distance from the teacher and from the row before."""

    data: DataConfig
    backend: Backend | None = None
    """The runtime that the figures are taken on; the first that is installed if not given."""
    batch: int = Field(default=32, ge=1)
    """Images a call, and texts a call."""
    gallery: int = Field(default=24, ge=0)
    """Images kept on which the last row answers differently from the first."""


class BisectConfig(StageConfig):
    """Where a candidate leaves its FP32 reference, module by module."""

    data: DataConfig
    backend: Backend | None = None
    """The CPU runtime that computes both; the first that is installed if not given."""
    batch: int = Field(default=8, ge=1)
    """Images a call, and texts a call."""
    samples: int = Field(default=256, ge=2)
    """Pairs that the error is measured on."""
    precision: Precision | None = None
    """Of the candidate's graphs; the smallest that it holds if not given."""


class CardConfig(Config):
    """What a model card says and nobody can measure."""

    name: str | None = None
    """Of the model; the report's title if not given."""
    license: str = "unknown"
    """An identifier of the Hugging Face hub: `apache-2.0`, `mit`, `other`. A student is bound by its teacher's too."""
    base_model: str | None = None
    """Hub id of the teacher; taken from the recipe where that names one."""
    language: tuple[str, ...] = ()
    """ISO codes of the languages that the text tower knows: `["en", "zh"]`."""


class ReportConfig(StageConfig):
    """Join the measurements into report.json, report.html, report.md and a model card."""

    title: str = "mmcompress"
    """Of the page."""
    gates: Gates = Gates()
    """Limits that are judged and recorded; `mmcompress check REPORT` fails where one was missed."""
    card: CardConfig = CardConfig()


class PageConfig(StageConfig):
    """A static site in which a model runs in the reader's own browser."""

    data: DataConfig = DataConfig()
    """The test pairs give pictures to search in, their captions searches to try."""
    title: str = "A small model that sees"
    """Of the page."""
    pictures: int = Field(default=12, ge=0)
    """Pictures of the test pairs that the page brings along."""
    precision: Precision | None = None
    """Of the graphs; the smallest that an artifact holds if not given."""


def what_counts(config: Config) -> dict[str, Any]:
    """The keys and values that a result depends on, beside what has a fingerprint: an artifact's key is made of them.

    Left out is what is marked: the same data elsewhere, more workers or another device give the same artifact.
    """
    counted = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        if any(isinstance(mark, _Aside) for mark in field.metadata):
            del counted[name]
        elif isinstance(value := getattr(config, name), Config):
            counted[name] = what_counts(value)
    return counted


def validated(model: type[C], values: Mapping[str, Any], where: str) -> C:
    """Build a config, or say which key of `where` is wrong, what was expected, and what is close to it."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        key = ".".join(path)
        if first["type"] == "extra_forbidden":
            known = _fields_at(model, path[:-1])
            raise UsageError(f"{where}: unknown key {key!r}", suggestion(path[-1], known)) from error
        said = first["msg"].removeprefix("Value error, ")
        if isinstance(misspelt := first.get("ctx", {}).get("error"), MisspeltError):
            raise UsageError(f"{where}: {key}: {said}", misspelt.hint) from error
        if first["type"] == "value_error" and _fields_at(model, path):  # of several keys, which it names
            unused = isinstance(first["ctx"]["error"], _UnusedError)
            raise UsageError(f"{where}: {said}", "leave it out" if unused else "leave one of them out") from error
        got = "" if first["type"] == "missing" else f" (got {first['input']!r})"
        raise UsageError(f"{where}: {key}: {said}{got}", _docstring(model, path)) from error


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        if part not in model.model_fields:
            return []
        annotation = model.model_fields[part].annotation
        nested = [t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return list(model.model_fields)


def _docstring(model: type[BaseModel], path: Sequence[str]) -> str:
    field = model.model_fields.get(path[0]) if path else None
    return f"{path[0]}: {field.description}" if field is not None and field.description else ""
