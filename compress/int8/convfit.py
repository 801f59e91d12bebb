"""The convolutional image tower of a checkpoint as integers: fitted, judged and ranked as a graph.

The graph is that of `export`, in FP32 with every BatchNorm folded, whose convolutions have the names of the modules;
the methods are those of `graphfit.py`. So what judges is the very graph that is delivered. The projection stays in
float, as in other towers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmcompress.architecture import WEIGHTS
from mmcompress.artifact import Artifact
from mmcompress.compress.int8.fit import JUDGED, KINDS
from mmcompress.compress.int8.graphfit import FittedTower, fit_tower
from mmcompress.compress.int8.graphtower import Feeds, GraphTower
from mmcompress.compress.int8.simulate import Batches, distance
from mmcompress.config import ExportConfig, FitConfig
from mmcompress.export.export import read_tensors
from mmcompress.export.graph import Numerics
from mmcompress.export.integers import OUTPUT
from mmcompress.export.sums import ends_of, sums_of
from mmcompress.export.towers import convolutions_of, image_graph
from mmcompress.int8 import Linears, Range, Signedness
from mmcompress.progress import track


@dataclass(frozen=True)
class FittedConvolutions:
    """The graph of an image tower, and the integers of its convolutions."""

    tower: GraphTower
    fitted: FittedTower

    def embedded(self, batches: Batches, kept: frozenset[str], kind: Signedness = JUDGED) -> Tensor:
        """Pixels (B, 3, S, S) -> (N, D) of unit norm, with the convolutions that are `kept` in float."""
        linears = {name: linear for name, linear in self.fitted.linears[kind].items() if name not in kept}
        return self.tower.embedded(self.tower.quantized(linears, self.fitted.ranges, kind), _feeds(batches))

    def drifts(self, batches: Batches, kept: frozenset[str]) -> dict[Signedness, float]:
        """How far each kind of graph moves the embeddings."""
        reference = self.tower.embedded(self.tower.model, _feeds(batches))
        return {kind: distance(reference, self.embedded(batches, kept, kind)) for kind in KINDS}

    def sensitivities(self, batches: Batches) -> dict[str, float]:
        """How far the embeddings move with one convolution quantized, by module."""
        reference = self.tower.embedded(self.tower.model, _feeds(batches))
        names = frozenset(self.fitted.linears[JUDGED])
        every = track(sorted(names), "sensitivity of the image tower", len(names))
        return {name: distance(reference, self.embedded(batches, names - {name})) for name in every}


def graph_tower(source: Artifact, work: Path) -> GraphTower:
    """The image tower of a checkpoint in float, as `export` writes it."""
    work.mkdir(parents=True, exist_ok=True)
    opset = int(ExportConfig.model_fields["opset"].default)
    model = image_graph(source.model, read_tensors(source.file(WEIGHTS)), Numerics(), opset)
    return GraphTower("image", model, tuple(convolutions_of(source.model, model)), work, sums=True)


def as_fitted(
    tower: GraphTower, ranges: Mapping[str, Range], linears: Mapping[Signedness, Linears]
) -> FittedConvolutions:
    """A tower with what is known of it of the ranges and integers of a whole checkpoint."""
    own = {product.name for product in tower.products}
    named = {kind: {name: one for name, one in every.items() if name in own} for kind, every in linears.items()}
    return FittedConvolutions(tower, FittedTower(ranges, named, {}))


def fit_convolutions(
    source: Artifact,
    work: Path,
    samples: Iterable[Tensor],
    fitting: Batches,
    judging: Batches,
    config: FitConfig,
    given: Mapping[str, Range] | None = None,
) -> FittedConvolutions:
    """Calibrate and round the convolutions of a checkpoint's image tower; with `given` ranges only round them."""
    tower = graph_tower(source, work)
    fed = ({"pixels": pixels.numpy()} for pixels in samples)
    found = fit_tower(tower, fed, _feeds(fitting), _feeds(judging), config, given)
    given_on = [
        *(one.branch for one in sums_of(tower.model, tower.products)),
        *(one.name for one in ends_of(tower.model, tower.products)),
    ]
    added = [f"{name}.{OUTPUT}" for name in given_on]
    ranges = {name: found.ranges[name] for name in (*(product.name for product in tower.products), *added)}
    return FittedConvolutions(tower, FittedTower(ranges, found.linears, found.choices))


def _feeds(batches: Sequence[Tensor]) -> list[Feeds]:
    return [{"pixels": torch.as_tensor(batch).cpu().numpy()} for batch in batches]
