"""Names of a convolutional tower's tensors at rest: those that timm gives MobileNetV4, stage by stage.

So a published file is read by name without timm, and what is saved here opens there once `vision_model.` is taken off.
timm's counter of batches is neither read nor written: nothing here averages over batches.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmcompress.convblocks import AttentionBlock, Bottlenecks, FusedBlock, PlainBlock, outputs_of
from mmcompress.convnet import ConvConfig
from mmcompress.tensorentry import Entry, same
from mmcompress.towerparts import Product

COUNTER = "num_batches_tracked"
"""The end of the name of a tensor of timm's that no tower here has."""
VARIANCE = "running_var"
"""The end of the name of what a BatchNorm divides by, squared."""
_BATCH_NORM = {"weight": "weight", "bias": "bias", "mean": "running_mean", "variance": VARIANCE}
_FUSED = {"expand": ("conv_exp", "bn1"), "project": ("conv_pwl", "bn2")}
_UNIVERSAL = {"start": "dw_start", "expand": "pw_exp", "middle": "dw_mid", "project": "pw_proj"}


def conv_entries(tower: ConvConfig, ours: str = "", theirs: str = "") -> Iterator[Entry]:
    """The table of everything but the projection; names begin with `ours` and `theirs`."""
    products = {product.name: product for product in tower.products()}
    yield from _convolution(products["stem"], ours, f"{theirs}conv_stem", f"{theirs}bn1")
    places = [(stage, index) for stage, blocks in enumerate(tower.stages) for index, _ in enumerate(blocks)]
    for (stage, index), (name, block, inputs, side) in zip(places, tower.placed(), strict=True):
        place = f"{theirs}blocks.{stage}.{index}"
        found = {product.name.rpartition(".")[2]: product for product in block.products(name, inputs, side)}
        if isinstance(block, AttentionBlock):
            yield from _attention(found, inputs, ours, name, place)
        else:
            for part, product in found.items():
                yield from _convolution(product, ours, *_bottleneck(block, part, place))
        if tower.scales(block):
            yield same(f"{ours}{name}.scale", f"{place}.layer_scale.gamma", outputs_of(block, inputs))
    yield from _convolution(products["head"], ours, f"{theirs}conv_head", f"{theirs}norm_head")


def _bottleneck(block: Bottlenecks, part: str, place: str) -> tuple[str, str]:
    """timm's names of a convolution and of its BatchNorm."""
    if isinstance(block, PlainBlock):
        return f"{place}.conv", f"{place}.bn1"
    if isinstance(block, FusedBlock):
        return f"{place}.{_FUSED[part][0]}", f"{place}.{_FUSED[part][1]}"
    return f"{place}.{_UNIVERSAL[part]}.conv", f"{place}.{_UNIVERSAL[part]}.bn"


def _attention(products: dict[str, Product], channels: int, ours: str, name: str, place: str) -> Iterator[Entry]:
    yield from _batch_norm(f"{ours}{name}.norm", f"{place}.norm", channels)
    yield from _convolution(products["query"], ours, f"{place}.attn.query.proj")
    for part in ("key", "value"):
        if (down := products.get(f"{part}_down")) is not None:
            yield from _convolution(down, ours, f"{place}.attn.{part}.down_conv", f"{place}.attn.{part}.norm")
        yield from _convolution(products[part], ours, f"{place}.attn.{part}.proj")
    yield from _convolution(products["out"], ours, f"{place}.attn.output.proj")


def _convolution(product: Product, ours: str, theirs: str, norm: str | None = None) -> Iterator[Entry]:
    name = f"{ours}{product.name}"
    shape = (product.outputs, product.inputs // product.groups, product.kernel, product.kernel)
    yield same(f"{name}.weight", f"{theirs}.weight", *shape)
    if norm is not None:
        yield from _batch_norm(f"{name}.norm", norm, product.outputs)


def _batch_norm(ours: str, theirs: str, channels: int) -> Iterator[Entry]:
    for leaf, their_leaf in _BATCH_NORM.items():
        yield same(f"{ours}.{leaf}", f"{theirs}.{their_leaf}", channels)
