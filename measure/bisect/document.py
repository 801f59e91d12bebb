"""bisect.json: module by module, where a quantized or half-precision model leaves its FP32 reference."""

from __future__ import annotations

from typing import Annotated

from mmcompress.config import Backend, Precision
from mmcompress.document import Cosine, Count, Document, Part, Share, each_once
from mmcompress.runtime.session import Tower


class BisectSide(Part):
    """One of the two artifacts."""

    row: str
    """Its name."""
    precision: Precision
    """Of the graphs that were compared."""


class BisectModule(Part):
    """One module of one tower."""

    module: str
    """Its name, `image.blocks.5.qkv` say."""
    tower: Tower
    """Its tower."""
    local_sqnr_db: float
    """Signal to noise of its output where it is fed what FP32 feeds it, in dB, -200 to 200: 200 is no noise."""
    local_cosine_mean: Cosine
    """Mean cosine of its output and FP32's, a token each, -1 to 1."""
    excess_db: float
    """Its noise over the noise that 8 bits have to make there, in dB; 0 is as good as its numbers allow."""
    carried_sqnr_db: float
    """Signal to noise of its output in the whole candidate, in dB, -200 to 200."""
    share: Share
    """Of the local noise of all modules of its tower, 0 to 1."""


class BisectBlock(Part):
    """What has accumulated at the end of a transformer block."""

    block: str
    """Its name, `image.blocks.5` say."""
    tower: Tower
    """Its tower."""
    carried_cosine_mean: Cosine
    """Mean cosine of the candidate's output and FP32's, a token each, -1 to 1."""
    carried_sqnr_db: float
    """Signal to noise in the whole candidate, in dB, -200 to 200."""


class BisectDocument(Document):
    """The modules of both towers, the worst first."""

    reference: BisectSide
    """In FP32."""
    candidate: BisectSide
    """What is compared with it."""
    backend: Backend
    """The runtime."""
    samples: Count
    """Pairs that went through both."""
    modules: Annotated[tuple[BisectModule, ...], each_once("module", "tower")]
    """By their excess, the worst first; those that half precision would not do better come last."""
    blocks: Annotated[tuple[BisectBlock, ...], each_once("block", "tower")]
    """In order of execution."""
    keep: tuple[str, ...]
    """Modules to keep in higher precision, the worst first."""
