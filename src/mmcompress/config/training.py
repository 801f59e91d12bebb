"""What stages that embed and train can be told."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import (
    Field,
    PositiveFloat,
    model_validator,
)
from typing_extensions import Self

from mmcompress.config.keys import NAMED, refuse_unused
from mmcompress.config.tables import (
    Augmentation,
    DataConfig,
    Device,
    OptimizerConfig,
    StageConfig,
    StudentConfig,
    TeacherConfig,
    TowersConfig,
    WatchedConfig,
)
from mmcompress.frozen import Config

GROWING, DEEPENING = 0.67, 0.5
"""Shares of the steps, by measurement (benchmarks/results/growing.md)."""


class EmbedConfig(StageConfig):
    """Embed the training pairs with the teacher, once."""

    teacher: TeacherConfig
    data: DataConfig
    views: int = Field(default=1, ge=1, le=10_000)
    """Views of each image; the first is the plain image, the others are augmented."""
    augment: Augmentation = "photo"
    """How: `photo` crops, mirrors and jitters; `drawing` moves, warps and recolours what stands on a plain ground."""
    sentences: Annotated[str | None, NAMED] = None
    """Text file with one sentence a line: distillation then places images among these, whatever captions they have."""
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

    image: Annotated[str, NAMED]
    """Hub id or folder of a CLIP or SigLIP model, or of its vision model alone."""
    text: Annotated[str, NAMED]
    """Hub id or folder of a CLIP or SigLIP model, of its text model alone, or of a BERT; its tokenizer is taken too."""
    layer_decay: float = Field(default=0.75, gt=0, le=1)
    """Factor on the learning rate from each block to the one before it, so that new projections learn fastest."""


class StartingConfig(WatchedConfig):
    """Of those that make a student, whose first steps may be cheaper: smaller images, and fewer blocks."""

    student: StudentConfig | None = None
    """Where the student starts from; a recovery starts from the checkpoint it is given."""
    growing: float | None = Field(default=None, ge=0, lt=1)
    """Share of the steps, the first ones, whose images grow from half of their side to the whole; if not given, 0.67,
    and 0 for two pretrained towers."""
    deepening: float | None = Field(default=None, ge=0, lt=1)
    """Share of the steps, the first ones, that pass every second block of a ViT preset; the others begin as copies.
    Half if not given, and 0 for what is no ViT preset."""

    @property
    def grows(self) -> float:
        """Share of the steps whose images are smaller."""
        return GROWING if self.growing is None else self.growing

    @property
    def deepens(self) -> float:
        """Share of the steps that pass every second block."""
        default = DEEPENING if self._preset_of_vits else 0.0
        return default if self.deepening is None else self.deepening

    @property
    def _preset_of_vits(self) -> bool:
        return self.student is not None and self.student.transformers

    @model_validator(mode="after")
    def _only_vits_deepen(self) -> Self:
        """Blocks of others are not alike, or hold more than random weights."""
        if self.deepening and not self._preset_of_vits:
            given = "nothing" if self.student is None else repr(self.student.source)
            raise ValueError(
                f"deepening is of ViT presets, vit-s16 say, that begin with random weights; student is {given}"
            )
        return self


class TrainConfig(StartingConfig):
    """Contrastive training of a dual encoder from image-text pairs, with a guide's help where there is one."""

    student: StudentConfig | None = None
    """A preset; `student.tokenizer` names an existing tokenizer, else one is trained on the captions."""
    towers: PairConfig | None = None
    """Two pretrained towers in place of a preset's random weights."""
    optimizer: OptimizerConfig = OptimizerConfig()
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

    @property
    def grows(self) -> float:
        """As for others, and none at all for two pretrained towers that nothing is said of."""
        return 0.0 if self.towers is not None and self.growing is None else super().grows

    def check_sources(self, roles: Collection[str]) -> None:
        if "embeddings" in roles:
            refuse_unused(self, ("views", "augment", "embed_dim"), "is the guide's own")
        else:
            refuse_unused(self, ("cosine", "relational", "temperature", "anchors"), "is of a guide, and there is none")

    @model_validator(mode="after")
    def _only_what_counts(self) -> Self:
        if self.student is None and self.towers is None:
            raise ValueError("there is nothing to train: student names a preset, towers two pretrained folders")
        if self.student is not None and self.towers is not None:
            raise ValueError("student and towers both say what is trained")
        if self.towers is not None:
            refuse_unused(self, ("vocab", "context"), "is of a trained tokenizer, and the text tower has its own")
        elif self.student is not None and self.student.tokenizer is not None:
            refuse_unused(self, ("vocab", "context"), "is of a trained tokenizer, and student.tokenizer is given")
        if not self.contrastive:
            refuse_unused(self, ("smoothing",), "is of the contrastive loss, whose weight is 0")
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
    max_drop: float | None = Field(default=None, ge=0, le=1)
    """What the original data's figure may lose, 0.01 a point of a hundred: of the mixes that lose no more the best on
    validation samples is taken. If not given, the one with the largest sum of both figures."""
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
            refuse_unused(self.data, ("labels", "templates"), "is of classes, and by is captions")
        if self.by == "labels" and self.text == "train":
            raise ValueError("by = labels keeps the text tower, whose prompts are the classifier, and text is train")
        if self.max_drop is not None and self.data.original is None:
            raise ValueError("max_drop is of what the original data's figure loses, and data.original is not given")
        if self.max_drop is not None and self.alpha is not None:
            raise ValueError("alpha and max_drop exclude each other: either is how much is taken of what was learned")
        return self


class DistillConfig(StartingConfig):
    """Fit a student's embeddings to the cached ones of the teacher."""

    teacher: TeacherConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    """How it is trained."""
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
    embed_dim: int | None = Field(default=None, ge=8)
    """Width of a new student's embeddings, narrower than the teacher's; the teacher's own if not given."""
    project: bool = False
    """Learn from a teacher of another width than a checkpoint's: the narrower space is laid into the wider one."""
    text: Literal["distill", "keep"] = "distill"
    """`keep` takes the text tower over from the teacher, a folder of a known family, and leaves it as it is."""
    device: Device = "auto"
    """Of torch: `cpu`, `cuda`; `auto` is a GPU where there is one."""

    def check_sources(self, roles: Collection[str]) -> None:
        if "checkpoint" in roles:
            refuse_unused(self, ("embed_dim",), "is of a new student, and a checkpoint has its own")

    @property
    def projects(self) -> bool:
        """Whether the student may be of another width than its teacher."""
        return self.project or self.embed_dim is not None

    @property
    def compares_batch(self) -> bool:
        """Whether a term compares each image with each text of a batch."""
        return bool(self.contrastive or self.affinity or self.interactive)

    @model_validator(mode="after")
    def _relations_weigh(self) -> Self:
        if not self.relational:
            refuse_unused(self, ("temperature", "anchors"), "is of the relations, whose weight is 0")
        if not (self.cosine or self.relational or self.compares_batch):
            raise ValueError("the weights of all terms are 0, so there is nothing to learn")
        if self.embed_dim is not None and self.student is not None and self.student.source.startswith("inherit:"):
            raise ValueError("embed_dim is of presets: inherit takes the teacher's own")
        if self.embed_dim is not None and self.text == "keep":
            raise ValueError("text = keep takes the teacher's text tower over, and embed_dim says another width")
        if self.projects and not (self.affinity or self.contrastive):
            raise ValueError("what is projected is held in its own space by affinity or contrastive, and both are 0")
        return self
