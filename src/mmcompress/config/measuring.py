"""What measurements, reports and pages can be told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    model_validator,
)
from typing_extensions import Self

from mmcompress.config.compressing import Count
from mmcompress.config.keys import HOW, refuse_unused
from mmcompress.config.tables import Backend, BudgetConfig, DataConfig, Precision, StageConfig
from mmcompress.document import each_once
from mmcompress.frozen import Config
from mmcompress.gates import Gates


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
    strict: Annotated[bool, HOW] = False
    """Exit with 1 where INT8 is not clearly better; a run stops there too, when the artifact is written."""

    @model_validator(mode="after")
    def _threads_of_cpus(self) -> Self:
        if self.backend in ("tensorrt", "tensorrt-rtx"):
            refuse_unused(self, ("threads",), f"is of CPU runtimes, not of {self.backend}")
        return self


class BenchConfig(StageConfig):
    """Latency of every row, interleaved in one run."""

    backends: Annotated[tuple[Backend, ...], each_once()] = Field(default=("onnxruntime", "openvino"), min_length=1)
    """The runtimes that are measured."""
    batches: Annotated[tuple[Count, ...], each_once()] = Field(default=(1, 8), min_length=1)
    """Images a call, and texts a call."""
    threads: Annotated[tuple[Count, ...], each_once()] | None = Field(default=None, min_length=1)
    """Thread counts of the CPU runtimes; all cores if not given. Ratios are at the last one."""
    streams: Annotated[tuple[Count, ...], each_once()] = ()
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
            refuse_unused(self, ("threads",), f"is of CPU runtimes, not of {' or '.join(self.backends)}")
        if 1 in self.streams:
            raise ValueError(f"streams = {[*self.streams]}: one request at a time is measured in any case")
        return self


class BlockCostsConfig(StageConfig):
    """What parts of image towers cost on this machine, for students that are sized by a latency."""

    backend: Literal["openvino", "onnxruntime"] = "openvino"
    """The runtime that is timed."""
    precision: Literal["fp32", "int8"] = "int8"
    """Of the graphs that are timed."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of that runtime; all cores if not given."""
    image_size: int = Field(default=224, ge=16, le=1024)
    """Side of the largest images, in pixels; towers of up to 96 are other ones."""


class SizeConfig(BlockCostsConfig):
    """The student with the most capacity that a latency has room for."""

    target_ms: float = Field(gt=0)
    """The longest time of one image, in milliseconds."""
    image_sizes: Annotated[tuple[Count, ...], each_once()] = ()
    """Sides that the student may have; some up to image_size if not given."""

    @model_validator(mode="after")
    def _sides_are_within(self) -> Self:
        if max(self.image_sizes, default=0) > self.image_size:
            raise ValueError(f"image_sizes = {[*self.image_sizes]} are larger than image_size = {self.image_size}")
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
