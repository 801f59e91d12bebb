"""The tables that stages share, and what every stage of a kind has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    model_validator,
)
from typing_extensions import Self

from mmcompress.config.keys import HOW, NAMED, refuse_unused
from mmcompress.datakeys import FIELDS, with_keys_in
from mmcompress.frozen import Config

Precision = Literal["fp32", "fp16", "fp8", "int8"]
EIGHT_BITS: tuple[Precision, ...] = ("int8", "fp8")
"""The precisions that are quantized, and held against their own FP32."""
Backend = Literal["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]
Augmentation = Literal["none", "photo", "drawing"]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$"), HOW]


class DataConfig(Config):
    """Image-text pairs: WebDataset shards (brace ranges, folders of shards, CLIP_benchmark's folders), a folder with a
    `captions.tsv`, or a folder of images by class."""

    train: Annotated[str | None, NAMED] = None
    """Pairs to learn from and to calibrate on: shards (`d/{00..09}.tar`), a folder, a stream, or `demo:train`."""
    validation: Annotated[str | None, NAMED] = None
    """Pairs that choices are made on; `demo:val`, say."""
    test: Annotated[str | None, NAMED] = None
    """Pairs that nothing was trained or chosen on: shards, a folder (also by class), a stream, or `demo:test`."""
    original: Annotated[str | None, NAMED] = None
    """Classes or pairs that a model is to answer as before when it was fine-tuned on others."""
    labels: Annotated[str | None, NAMED] = None
    """Text file with one candidate text a line; without it the candidates are the classes that the test set has by
    itself, else the captions of the evaluated pairs."""
    templates: Annotated[str | None, NAMED] = None
    """Text file with one prompt a line around a class, `a photo of a {c}.`; the test set's own if not given."""
    image_keys: Annotated[tuple[str, ...], NAMED] = ()
    """What holds the image, where it is not `jpg`, `jpeg`, `png` or `webp`: kinds of files in a shard, or columns of a
    table; the first that is there. `*.jpg` takes names up to their last dot."""
    text_keys: Annotated[tuple[str, ...], NAMED] = ()
    """What holds captions, in place of `txt`, and `captions` or `caption` in `json`: kinds of files in a shard, names
    in its `json`, or columns of a table."""
    max_bad_fraction: float = Field(default=0.05, ge=0, le=1)
    """Share of unreadable samples above which a stage stops."""
    workers: Annotated[int, HOW] = Field(default=4, ge=1)
    """Threads that decode images."""

    @model_validator(mode="before")
    @classmethod
    def _read_by_keys(cls, values: Any) -> Any:
        """Keys become a part of each specification, so that whoever reads it needs nothing else (`datakeys.py`)."""
        read = with_keys_in(values) if isinstance(values, Mapping) else None
        return values if read is None else {name: value for name, value in read.items() if name not in FIELDS}


class TeacherConfig(Config):
    source: Annotated[str, NAMED]
    """Alias (`vit-l14`), hub id, local Hugging Face folder, checkpoint of your own, `open_clip:NAME/TAG`, or
    `file.py:function`."""
    trust_remote_code: bool = False
    """Let a hub repository run its own Python code. Off unless you trust its author."""


class StudentConfig(Config):
    source: str
    """A preset (`vit-s16`, `mnv4-m`), a published MobileNetV4 (a hub id such as
    `timm/mobilenetv4_conv_medium.e500_r224_in1k`, or its folder), or `inherit:F`: heads, MLP units and blocks of the
    teacher, at F of its image MACs."""
    image_size: int | None = None
    """Input side of a preset or of a published tower, in pixels; its own if not given."""
    width: float = Field(default=1.0, gt=0, le=2)
    """Channels of a preset's image tower, as a share of its own."""
    depth: float = Field(default=1.0, gt=0, le=2)
    """Blocks of a preset's image tower, as a share of its own; of a convolutional one those that keep the size."""
    tokenizer: Annotated[str | None, NAMED] = None
    """Folder or hub id to take the tokenizer from, where the teacher brings none."""
    fit: int = Field(default=1024, ge=0)
    """Samples on which what `inherit:F` keeps is fitted by least squares; 0 takes the weights over as they are."""

    @property
    def published(self) -> bool:
        """Whether the source is a hub id or a folder: no other name has a slash, or begins with a dot."""
        return "/" in self.source or self.source.startswith((".", "~"))

    @property
    def transformers(self) -> bool:
        """Whether both towers are transformers with random weights."""
        return self.source.startswith("vit-")

    @model_validator(mode="after")
    def _inherited_whole(self) -> Self:
        if self.source.startswith("inherit:"):
            for name in ("image_size", "width", "depth", "tokenizer"):
                if name in self.model_fields_set and getattr(self, name) is not None:
                    raise ValueError(f"{name} is of presets: inherit takes the teacher's own")
        elif "fit" in self.model_fields_set:
            raise ValueError("fit is of inherit:F: a preset begins with random weights")
        if self.published and (self.width, self.depth) != (1, 1):
            raise ValueError("width and depth are of presets: a published tower has its own")
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
    max_skipped: Annotated[int, HOW] = Field(default=10, ge=1)
    """Steps in a row with a loss or gradient that is not finite, each of them skipped, at which training gives up."""
    save_minutes: Annotated[float, HOW] = Field(default=1.0, gt=0)
    """How often the state to resume from is written."""
    tensorboard: Annotated[str | None, HOW] = None
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
            refuse_unused(self, ("samples", "keep_best", "patience"), "is of measurements, and steps are not given")
        return self


class TowersConfig(StageConfig):
    """Of stages that train a model of both towers."""

    data: DataConfig
    parts: Annotated[int, HOW] = Field(default=1, ge=1)
    """Parts of a batch that are computed one after another, twice each: memory holds the activations of one, and the
    loss is still that of the whole batch."""
    recompute: Annotated[bool, HOW] = False
    """Keep what is between the blocks only, and compute the blocks again for the gradient: less memory, more time."""
    compile: Annotated[bool, HOW] = False
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
