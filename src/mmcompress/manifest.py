"""What an artifact says of itself: the manifest, its models, and the hashes that it is made of.

The digest covers what an artifact is, the seal everything that its manifest says. The models here are the documents
that every room reads; `artifact.py` writes and verifies folders of them.
"""

from __future__ import annotations

import hashlib
import platform
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from mmcompress import __version__
from mmcompress.architecture import DualEncoderConfig
from mmcompress.document import Count, Part, Ratio
from mmcompress.frozen import Config
from mmcompress.strictjson import text_from_json
from mmcompress.towerparts import Side

VOCABULARY = "vocabulary"
"""The fact of an export whose tokens were trimmed: how many are left, and what is lost."""


class Kind(str, Enum):
    CHECKPOINT = "checkpoint"
    EMBEDDINGS = "embeddings"
    ONNX = "onnx"
    ENGINE = "engine"
    BUNDLE = "bundle"
    REPORT = "report"
    INDEX = "index"
    SHARDS = "shards"


class FileEntry(Config):
    sha256: str
    bytes: int


class _Later(Config):
    """A model with fields that came later. Where one says nothing it is left out, so that earlier artifacts keep their
    digests, and earlier versions read what they understand and refuse the rest."""

    later: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_what_says_nothing(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        body: dict[str, Any] = handler(self)
        unsaid = [name for name in self.later if getattr(self, name) == type(self).model_fields[name].default]
        return {name: value for name, value in body.items() if name not in unsaid}


class TensorSpec(Config):
    """Name, shape (None for a dynamic axis) and numpy dtype of a graph's input or output."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


class Graph(_Later):
    """One delivered graph: the tower it computes, its precision and its interface."""

    later = ("prepares",)

    file: str
    tower: Literal["image", "text"]
    precision: Literal["fp32", "fp16", "fp8", "int8"]
    activations: Literal["float", "signed", "unsigned"] = "float"
    """Type of the quantized activations: TensorRT takes signed ones only, x86 CPUs are faster with unsigned ones."""
    target: str | None = None
    """What an engine was built for, `sm86` say; None for a portable graph."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    prepares: bool = False
    """It takes upright RGB images as they were decoded, uint8 (N, H, W, 3), and applies the preprocessing itself."""


class PromptBank(Config):
    """Labels whose embeddings are in the image graphs, which answer with `logits` (N, L) beside the embedding: logit
    scale times cosine, plus the logit bias of a sigmoid model."""

    labels: tuple[str, ...]
    """In the order of the logits."""
    templates: tuple[str, ...] = ()
    """Prompts around a label, whose embeddings were averaged; none are the labels themselves."""


def _not_zero(value: float) -> float:
    if not value:
        raise ValueError("nothing can be divided by 0")
    return value


Divisor = Annotated[float, AfterValidator(_not_zero)]


class Preprocessing(Config):
    """Image to tensor: resize, crop the centre, scale to [0, 1], normalize."""

    size: Side
    """Side of the square crop, in pixels. A crop that is larger than the resized image is filled with black."""
    resize: Side
    """Shorter side after resizing, in pixels; both sides where images are squashed."""
    squash: bool = False
    """Resize to a square without regard to the aspect ratio, as SigLIP does."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] = "bicubic"
    """The filter, by Pillow's name."""
    centre: Literal["floor", "even"] = "floor"
    """Where half a pixel of the margin goes: transformers cuts it off, torchvision rounds it to the even one."""
    mean: tuple[float, float, float]
    """Of values in [0, 1], for red, green and blue."""
    std: tuple[Divisor, Divisor, Divisor]
    """What the difference from `mean` is divided by."""


class TextProcessing(Config):
    """Text to token ids, by a `tokenizer.json` and what that cannot say."""

    file: str = "tokenizer.json"
    context: int
    """Tokens of every text, filled up or cut off."""
    pad_token_id: int
    """What fills a text up, on its right."""
    eos_token_id: int
    lowercase: bool = False
    """Lower every character before special tokens are looked for."""
    prefix: str = ""
    """Set before every text; the same characters inside a text become spaces."""
    mask: bool = True
    """Whether what fills a text up is masked, in graphs that ask for a mask."""


class Manifest(_Later):
    later = ("bank",)

    schema_version: Literal[1] = Field(default=1, alias="schema")
    kind: Kind
    stage: str
    """The function that made it."""
    name: str
    """Its row or step in the recipe."""
    key: str
    """Hash of (stage, config, parents' digests, version): the same key means the same content."""
    config: dict[str, Any]
    parents: dict[str, str]
    """Digest of each source artifact, by the role it had."""
    files: dict[str, FileEntry]
    model: DualEncoderConfig | None = None
    graphs: tuple[Graph, ...] = ()
    preprocessing: Preprocessing | None = None
    tokenizer: TextProcessing | None = None
    bank: PromptBank | None = None
    facts: dict[str, Any] = Field(default_factory=dict)
    """What the stage found out and a rerun would find again: params, macs, ranges, audits."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    """What was measured; differs from run to run, so the digest leaves it out."""
    environment: dict[str, str] = Field(default_factory=dict)
    digest: str = ""

    def compute_digest(self) -> str:
        body = self.model_dump(mode="json", by_alias=True, exclude={"metrics", "environment", "digest"})
        return hash_json(body)

    def compute_seal(self) -> str:
        """Guards the whole manifest, measurements included, against a flipped byte."""
        return hash_json(self.model_dump(mode="json", by_alias=True))


class Figures(Part):
    """The facts that are calculated with and printed; others are not looked at."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    params: Count | None = None
    macs: Count | None = None
    dim: Count | None = None
    views: Count | None = None
    seed: Count | None = None
    logit_scale: Ratio | None = None
    logit_bias: float | None = None


def hash_json(value: object) -> str:
    """SHA-256 of the canonical JSON text of a value."""
    return hashlib.sha256(text_from_json(value, canonical=True).encode()).hexdigest()


def hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def environment() -> dict[str, str]:
    """Versions and platform that an artifact was made with."""
    versions = {"python": platform.python_version(), "platform": platform.platform(), "mmcompress": __version__}
    for package in (
        "torch",
        "transformers",
        "onnx",
        "onnxruntime",
        "openvino",
        "tensorrt",
        "tensorrt-rtx-cu12",
        "numpy",
    ):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
