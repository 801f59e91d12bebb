"""What pruning, quantization and training of integers can be told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    model_validator,
)
from typing_extensions import Self

from mmcompress.config.keys import refuse_unused
from mmcompress.config.tables import Augmentation, BudgetConfig, DataConfig, Device, OptimizerConfig, StageConfig


def _without_times_sign(value: object) -> object:
    return value.removesuffix("x") if isinstance(value, str) else value


Share = Annotated[float, BeforeValidator(_without_times_sign), Field(gt=0, le=1)]
"""A part of what there is now: 0.5, or as text `0.5x`."""
Count = Annotated[int, Field(ge=1)]


class PruneConfig(StageConfig):
    """Remove whole heads, MLP units, hidden channels and blocks, and fit what is left by least squares.

    By the same shares in every block (`heads`, `mlp`), or to one target, where the harm to the embeddings decides.
    """

    data: DataConfig
    heads: float = Field(default=0.75, gt=0, le=1)
    """Share of the heads kept in each block."""
    mlp: float = Field(default=0.5, gt=0, le=1)
    """Share of the MLP units kept in each block, and of the hidden channels of each bottleneck."""
    width: float = Field(default=1.0, gt=0, le=1)
    """Share of the channels of each tower's residual stream that is kept, or between the blocks of a convolutional one,
    of which a target takes what it needs by itself; heads, MLP units and hidden channels go after them."""
    width_multiple: int | None = Field(default=None, ge=1)
    """Channels are kept in multiples of this; of one head's if not given, which heads of the same share fill, or of 8
    between the blocks of a convolutional tower."""
    target_macs: Share | None = None
    """Share of each tower's multiply-accumulates to keep, `0.5` or `0.5x`; blocks get what they need most."""
    target_params: Share | None = None
    """Share of each tower's parameters to keep, `0.5` or `0.5x`."""
    target_latency: Share | None = None
    """Share of the image tower's latency at batch 1 to keep, `0.5` or `0.5x`, measured on `backend`; the text tower
    stays."""
    backend: Literal["openvino", "onnxruntime"] = "openvino"
    """The runtime of `target_latency`; TensorRT would need an engine built for every size that is timed."""
    precision: Literal["fp32", "int8"] = "int8"
    """Of the graphs that `target_latency` times: `fp32` where the pruned model is delivered without INT8."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of that runtime; all cores if not given."""
    mlp_multiple: int = Field(default=32, ge=1)
    """MLP units are kept in multiples of this, which backends like."""
    channel_multiple: int = Field(default=16, ge=1)
    """Hidden channels of bottlenecks are kept in multiples of this, which backends like."""
    towers: tuple[Literal["image", "text"], ...] = ("image", "text")
    """The towers that are pruned."""
    importance: Literal["activation", "taylor", "magnitude"] = "activation"
    """What goes first: what the next Linear misses least, what the loss misses least, or the smallest weights."""
    refit: bool = True
    """Fit what reads the kept units again, to give what the dense model gives."""
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
            refuse_unused(self, ("backend", "precision", "threads"), "is of target_latency, which is not given")
        if self.width == 1:
            refuse_unused(self, ("width_multiple",), "is of width, which is not given")
        if self.importance != "taylor":
            refuse_unused(self, ("anchors",), "is of the importance taylor")
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
            refuse_unused(self, ("percentile",), f"is of the method percentile, not of {self.method}")
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
