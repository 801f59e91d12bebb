"""What every tower is made of, whatever its kind: products with weights, and groups of units that can be taken out.

`ImageSizes` is the one interface that an image tower's config has for stages, manifests and reports. In torch a tower
is a module from pixels to embedding (`model.py`), and in ONNX a graph (`export/towers.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from pydantic import Field

LARGEST_SIDE = 4096
"""Pixels of a side that images are resized to. No model has a quarter of it, and a photo resized to ten times as many
takes all memory."""
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]


@dataclass(frozen=True)
class Product:
    """A Linear or a convolution that INT8 may take."""

    name: str
    """Of its module below the tower, `blocks.3.expand`."""
    inputs: int
    """Input channels, of all groups."""
    outputs: int
    """Output channels."""
    places: int
    """Tokens or pixels that it gives for one input."""
    kernel: int = 1
    """Side of the kernel."""
    groups: int = 1
    """Groups of channels; as many as channels are a depthwise convolution."""

    @property
    def weights(self) -> int:
        return self.outputs * (self.inputs // self.groups) * self.kernel**2

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one input."""
        return self.weights * self.places


@dataclass(frozen=True)
class Group:
    """Units inside a block that may be taken out, which leaves a smaller config: heads, or hidden channels."""

    kind: str
    """`heads`, `mlp` or `hidden`."""
    block: int
    """Index of the block."""
    units: int
    """How many there are."""
    writers: tuple[str, ...]
    """Products whose outputs are these units', by the names of `Product`."""
    reader: str
    """The product that reads them, which a refit fits again."""


class ImageSizes(Protocol):
    """What an image tower's config says of itself; `embed_dim` is the width of the shared space."""

    @property
    def image_size(self) -> int:
        """Side of the square input, in pixels."""

    @property
    def depth(self) -> int:
        """Blocks."""

    @property
    def output_stride(self) -> int:
        """Pixels between two neighbouring patches, or places of the last map."""

    def params(self, embed_dim: int) -> int:
        """Parameters, the projection's included."""

    def macs(self, embed_dim: int) -> int:
        """Multiply-accumulates for one image."""

    def pooled_macs(self, embed_dim: int) -> int:
        """The same in the exported graph."""

    def products(self) -> Sequence[Product]:
        """The Linears and convolutions that INT8 may take, in the order of execution."""

    def groups(self) -> Sequence[Group]:
        """What pruning may make smaller, block by block."""
