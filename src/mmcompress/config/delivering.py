"""What exports and builds can be told."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from mmcompress.config.keys import NAMED, refuse_unused
from mmcompress.config.tables import DataConfig, Precision, StageConfig, TeacherConfig
from mmcompress.document import each_once
from mmcompress.frozen import Config

LARGEST_IMAGE = 64 << 20
"""Pixels; what has more is not decoded (`data/imagefile.py`)."""


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


class BaselineConfig(StageConfig):
    """The unmodified teacher as ONNX, through optimum: the report's baseline."""

    teacher: TeacherConfig


class TraceConfig(StageConfig):
    """Any teacher's towers as ONNX in FP32, traced by torch: for those that no exporter knows."""

    teacher: TeacherConfig


class BankConfig(Config):
    """Labels whose embeddings are compiled into the image graphs, which then answer with their logits as well."""

    labels: Annotated[str | None, NAMED] = None
    """Text file with one label a line: the image graphs then answer with a logit for each beside the embedding."""
    templates: Annotated[str | None, NAMED] = None
    """Text file with one prompt a line around a label, `a photo of a {c}.`; the label alone if not given."""

    @model_validator(mode="after")
    def _around_labels(self) -> Self:
        if self.labels is None:
            refuse_unused(self, ("templates",), "stand around labels, and none are given")
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
    trim_vocab: Annotated[str | None, NAMED] = None
    """Keep the tokens that some texts need (a text file with one a line, or image-text pairs), or languages (`en,zh`),
    and what any text is spelled with; all tokens if not given."""


class StaticConfig(StageConfig):
    """FP32 graphs of static shape with samples and what they become: what compilers of other vendors take."""

    data: DataConfig
    """Pairs to take samples from; those that the checkpoint was calibrated on if not given."""
    samples: int = Field(default=128, ge=1)
    """Images, and texts, in the bundle."""


class BuildConfig(StageConfig):
    """Build TensorRT engines from the exported graphs, with an audit of layers and precisions."""

    backend: Literal["tensorrt", "tensorrt-rtx"] = "tensorrt-rtx"
    """The runtime that the engines run on; `tensorrt-rtx` needs no GPU to build."""
    targets: Annotated[tuple[str, ...], each_once()] = ("sm86", "sm89", "sm120")
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
            refuse_unused(self, names, "is of TensorRT, and TensorRT-RTX times no kernels")
        return self
