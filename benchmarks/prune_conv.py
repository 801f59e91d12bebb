"""A convolutional student pruned to a share of its MACs or latency: R@10 untrained and recovered, and Torch-Pruning's.

    python benchmarks/prune_conv.py CHECKPOINT --embeddings E [--split val|test] [--share 0.5] [--of macs|latency]
                                    [--samples 512] [--steps 200] [--seeds 0 1] [--rate 5e-4] [--methods NAME ...]

CHECKPOINT is a student with a convolutional image tower, distilled on the demo's drawings, E the embeddings of that.
Every method prunes the same weights on the same training samples. Torch-Pruning (Fang et al. 2023, "DepGraph") prunes
all channels but the embedding's, those between blocks too, by its GroupTaylorImportance on the gradients of the same
distillation loss, or by its GroupMagnitudeImportance, to the share of MACs that it counts itself, or to a share of the
latency of the INT8 graph on OpenVINO, measured as `prune --target-latency` measures it. Recovery is the
same for all: AdamW over all weights at one rate for `--steps` batches of 64, cosine to the teacher's embeddings, and
statistics of BatchNorms of 1,024 images. It needs the package `torch-pruning`; without it, its rows say so.
"""

from __future__ import annotations

import argparse
import copy
import sys
import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmcompress.artifact import Artifact
from mmcompress.compress.prune.bottlenecks import hidden_errors, shrunk_bottlenecks
from mmcompress.compress.prune.hidden import hidden_choices, hidden_cost, hidden_within, uniform_hidden
from mmcompress.compress.prune.importance import magnitudes, taylor
from mmcompress.compress.prune.latency_target import Timing, measured_speedup
from mmcompress.compress.prune.narrowing import pruned_to_target
from mmcompress.compress.train.augment import normalized, pixels_of_views
from mmcompress.compress.train.embeddings import load_embeddings
from mmcompress.compress.train.pairs import TrainingBatch, training_pairs
from mmcompress.config import DataConfig, PruneConfig
from mmcompress.convblocks import PlainBlock as PlainConfig
from mmcompress.convnet import ConvConfig
from mmcompress.convtower import Bottleneck, Convolution, ConvTower
from mmcompress.data.batches import batches
from mmcompress.data.layout import read_labels
from mmcompress.distributed import World
from mmcompress.huggingface import dual_encoder_from_checkpoint
from mmcompress.measure.retrieval import Matches, hits, recalls
from mmcompress.runtime.machine import usable_cores
from mmcompress.runtime.tokenize import load_tokenizer, tokenize

BATCH, MULTIPLE, RATE, VIEWS = 64, 8, 5e-4, 8
HERE = World(0, 1, torch.device("cpu"))


class Plain(nn.Module):
    """A tower of torch's own layers alone, BatchNorms beside convolutions, which any tool reads and trains."""

    def __init__(self, tower: ConvTower) -> None:
        super().__init__()
        self.stem = plain(tower.stem)
        self.blocks = nn.ModuleList(PlainBlock(block) for block in tower.blocks)
        self.head, self.projection = plain(tower.head), copy.deepcopy(tower.projection)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.stem(pixels)
        for block in self.blocks:
            x = block(x)
        x = self.projection(self.head(x.mean((2, 3), keepdim=True)).flatten(1))
        return x

    def sizes(self, tower: ConvConfig) -> ConvConfig:
        """The config of the tower that it was, with the channels that it has now."""
        parts = [block.parts for block in self.blocks]
        found = iter([(part[-1][0].out_channels, part[-1][0].in_channels) for part in parts])
        stages = []
        for stage in tower.stages:
            blocks = []
            for block in stage:
                channels, hidden = next(found)
                inner = {} if isinstance(block, PlainConfig) else {"hidden": hidden}
                blocks.append(block.model_copy(update={"channels": channels, **inner}))
            stages.append(tuple(blocks))
        head, stem = self.head[0].out_channels, self.stem[0].out_channels
        return tower.model_copy(update={"stem": stem, "stages": tuple(stages), "head": head})


class PlainBlock(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        assert isinstance(block, Bottleneck) and block.scale is None
        self.residual = block.residual
        self.parts = nn.Sequential(*(plain(getattr(block, part)) for part in block.ORDER if part in block._modules))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.parts(x)
        return x + y if self.residual else y


def plain(own: Convolution) -> nn.Sequential:
    sizes = (own.in_channels, own.out_channels, own.kernel_size[0], own.stride[0], own.padding[0])
    conv = nn.Conv2d(*sizes, groups=own.groups, bias=False)
    conv.weight.data.copy_(own.weight)
    assert own.norm is not None
    norm = nn.BatchNorm2d(own.out_channels, own.norm.eps)
    norm.weight.data.copy_(own.norm.weight)
    norm.bias.data.copy_(own.norm.bias)
    norm.running_mean = own.norm.mean.detach().clone()
    norm.running_var = own.norm.variance.detach().clone()
    return nn.Sequential(conv, norm, *([nn.ReLU()] if own.relu else []))


class Setting:
    """The student, its training batches with the teacher's embeddings, and images to score on."""

    def __init__(self, checkpoint: Path, embeddings: Path, split: str, samples: int) -> None:
        self.artifact = Artifact.open(checkpoint)
        self.model = dual_encoder_from_checkpoint(checkpoint, self.artifact.model)
        self.embeddings = load_embeddings(Artifact.open(embeddings))
        self.samples = list(islice(self.pairs(0), samples // BATCH))
        self.anchors = self.embeddings.anchors(4096, HERE.device)
        preprocessing, text = self.artifact.preprocessing, self.artifact.tokenizer
        assert preprocessing is not None and text is not None
        names = read_labels("demo:names")
        place = {name: index for index, name in enumerate(names)}
        scored = list(batches(f"demo:{split}", preprocessing, batch=BATCH))
        self.images = [
            normalized(torch.from_numpy(one.pixels).permute(0, 3, 1, 2).float() / 255, preprocessing) for one in scored
        ]
        self.groups = np.array([place.get(label or "", -1) for one in scored for label in one.labels])
        views = [
            (one, pixels_of_views(one, np.full(len(one.keys), view), 999, "drawing", HERE.device))
            for one in scored
            for view in range(1, 1 + VIEWS)
        ]
        self.drawn = [normalized(pixels, preprocessing) for _, pixels in views]
        self.drawn_groups = np.array([place.get(label or "", -1) for one, _ in views for label in one.labels])
        tokens = torch.from_numpy(tokenize(load_tokenizer(checkpoint / text.file), names, text))
        with torch.no_grad():
            self.candidates = torch.cat([self.model.encode_text(part) for part in tokens.split(256)]).numpy()

    def pairs(self, seed: int) -> Any:
        data = DataConfig(train="demo:train")
        one = training_pairs(self.artifact, data, batch=BATCH, seed=seed, here=HERE, embeddings=self.embeddings)
        return (batch for epoch in range(99) for batch in one.stream(epoch, 0))

    @torch.no_grad()
    def r10(self, tower: nn.Module) -> str:
        """Of the drawings as they are, and of views of them, which is less noisy."""
        tower.eval()
        found = []
        for pixels, groups in ((self.images, self.groups), (self.drawn, self.drawn_groups)):
            images = torch.cat([F.normalize(tower(part), dim=-1) for part in pixels]).numpy()
            matches = Matches.of(groups, np.arange(len(self.candidates)))
            found.append(recalls("i2t", hits(images, self.candidates, matches)[matches.answerable])["i2t_r10"])
        return " / ".join(f"{100 * one:.1f}" for one in found)

    def recovered(self, tower: nn.Module, steps: int, seed: int, rate: float) -> str:
        tower = copy.deepcopy(tower).train()
        optimizer = torch.optim.AdamW(tower.parameters(), lr=rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
        for batch in islice(self.pairs(1 + seed), steps):
            optimizer.zero_grad(set_to_none=True)
            cosine_loss(tower, batch).backward()
            optimizer.step()
            schedule.step()
        for norm in tower.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.reset_running_stats()
                norm.momentum = None
        with torch.no_grad():
            for batch in islice(self.pairs(0), 1024 // BATCH):
                tower(batch.pixels)
        return self.r10(tower)


def cosine_loss(tower: nn.Module, batch: TrainingBatch) -> Tensor:
    assert batch.teacher is not None
    return (1 - F.cosine_similarity(tower(batch.pixels), batch.teacher[0])).mean()


def latency_of(setting: Setting, network: Plain) -> float:
    """The share of the dense tower's latency that it has."""
    tower = setting.model.config.image
    assert isinstance(tower, ConvConfig)
    timing = Timing("openvino", "int8", usable_cores())
    return 1 / measured_speedup(setting.model.config, network.sizes(tower), timing).speedup


def torch_pruning(setting: Setting, share: float, kind: str, of: str) -> tuple[Plain, float]:
    """Torch-Pruning's own walk; the network, and its share of MACs by its own count."""
    import torch_pruning as tp

    tower = setting.model.image
    assert isinstance(tower, ConvTower)
    whole, example = Plain(tower).eval(), setting.samples[0].pixels[:1]
    before, _ = tp.utils.count_ops_and_params(whole, example)
    low, high, best, nearest = 0.0, 0.9, (whole, 1.0), 1.0
    for _ in range(6):  # the share of channels that leaves this share
        ratio, network = (low + high) / 2, copy.deepcopy(whole)
        pruner = tp.pruner.BasePruner(
            network,
            example,
            importance=getattr(tp.importance, f"Group{kind.capitalize()}Importance")(),
            pruning_ratio=ratio,
            global_pruning=False,
            round_to=MULTIPLE,
            ignored_layers=[network.projection],
        )
        for batch in setting.samples:
            cosine_loss(network, batch).backward()
        pruner.step()
        network.zero_grad(set_to_none=True)
        macs = tp.utils.count_ops_and_params(network, example)[0] / before
        left = macs if of == "macs" else latency_of(setting, network)
        if abs(left - share) < abs(nearest - share):
            best, nearest = (network, macs), left
        low, high = (ratio, high) if left > share else (low, ratio)
    return best


def ours(setting: Setting, share: float, of: str) -> dict[str, Callable[[], tuple[Plain, float]]]:
    """Our methods: one share in every bottleneck, the best bottlenecks for the same MACs, and both: channels between
    blocks beside the best bottlenecks, which is what `prune --target-macs` and `--target-latency` do. Of a latency
    there are only the last ones."""
    model, inputs = setting.model, [batch.pixels for batch in setting.samples]
    tower = model.config.image
    assert isinstance(tower, ConvConfig)
    cost, base, full = hidden_cost(model.config, tower, "macs")

    def by_block(scores: dict[str, Tensor], refitted: bool) -> tuple[Plain, float]:
        errors = hidden_errors(model, inputs, scores, MULTIPLE, refitted)
        choices = hidden_choices(tower, errors, MULTIPLE, cost)
        sizes = hidden_within(choices, share, base, full, "it")
        pruned = shrunk_bottlenecks(model, sizes, inputs, scores, refitted)
        return Plain(pruned.image), pruned.config.macs / model.config.macs

    def both(scores: dict[str, Tensor]) -> tuple[Plain, float]:
        target = {f"target_{of}": share, "backend": "openvino", "precision": "int8"}
        asked = PruneConfig.model_validate({"data": {}, "channel_multiple": MULTIPLE, **target})
        pruned, _ = pruned_to_target(model, inputs, scores, asked)
        return Plain(pruned.image), pruned.config.macs / model.config.macs

    def uniform(scores: dict[str, Tensor], refitted: bool) -> tuple[Plain, float]:
        found = model
        for percent in range(95, 4, -5):
            sizes = uniform_hidden(tower, percent / 100, MULTIPLE)
            if base + sum(cost(index, size) for index, size in sizes.items()) <= share * full:
                found = shrunk_bottlenecks(model, sizes, inputs, scores, refitted)
                break
        return Plain(found.image), found.config.macs / model.config.macs

    narrowed = {
        "activation, refitted, both": lambda: both({}),
        "Taylor, refitted, both": lambda: both(taylor(model, setting.samples, setting.anchors)),
    }
    if of == "latency":
        return narrowed
    return narrowed | {
        "magnitude": lambda: uniform(magnitudes(model), False),
        "Taylor": lambda: uniform(taylor(model, setting.samples, setting.anchors), False),
        "Taylor, refitted": lambda: uniform(taylor(model, setting.samples, setting.anchors), True),
        "activation, refitted": lambda: uniform({}, True),
        "activation, refitted, by block": lambda: by_block({}, True),
        "activation, by block": lambda: by_block({}, False),
        "Taylor, refitted, by block": lambda: by_block(taylor(model, setting.samples, setting.anchors), True),
        "Taylor, by block": lambda: by_block(taylor(model, setting.samples, setting.anchors), False),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--embeddings", type=Path, required=True)
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--of", choices=("macs", "latency"), default="macs")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--methods", nargs="+", help="of the table's, all if not given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    asked = parser.parse_args()
    torch.manual_seed(0)
    setting = Setting(asked.checkpoint, asked.embeddings, asked.split, asked.samples)
    methods: dict[str, Callable[[], tuple[Plain, float]]] = {}
    for kind in ("Taylor", "magnitude"):
        methods[f"Torch-Pruning, {kind}"] = lambda kind=kind: torch_pruning(setting, asked.share, kind, asked.of)
    methods |= ours(setting, asked.share, asked.of)
    print(f"{len(setting.groups)} images of demo:{asked.split}, {len(setting.candidates)} names")
    print(f"{asked.samples} samples, recovery of {asked.steps} steps; dense {setting.r10(setting.model.image)}\n")
    print("| method | MACs | latency | R@10 / of views | recovered, each seed |\n|---|--:|--:|--:|---|")
    for name, method in methods.items():
        if asked.methods and name not in asked.methods:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tower, left = method()
        except ImportError:
            print(f"| {name} | | | not measured, pip install torch-pruning | |")
            continue
        after = [setting.recovered(tower, asked.steps, seed, asked.rate) for seed in asked.seeds] if asked.steps else []
        took = f"{latency_of(setting, tower):.3f}" if asked.of == "latency" else ""
        print(f"| {name} | {left:.3f} | {took} | {setting.r10(tower)} | {', '.join(after)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
