"""Pruned to half of the image tower's MACs and not trained: how much of R@10 is left, against Torch-Pruning.

    python benchmarks/prune_untrained.py [--split val|test] [--share 0.5] [--samples 512]

One model (the teacher that ships), one set of training samples for every method, one table. Torch-Pruning (Fang et al.
2023, "DepGraph") prunes heads and MLP units of the same weights in transformers' CLIP by its GroupTaylorImportance, on
the gradients of the symmetric InfoNCE over the same samples; so does our Taylor. It needs the package
`torch-pruning`; without it, its row says so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import mmcompress.demo
from mmcompress.architecture import DualEncoderConfig
from mmcompress.compress.prune.harm import measured_errors
from mmcompress.compress.prune.importance import magnitudes, reader_inputs, summed_by_unit
from mmcompress.compress.prune.prune import uniform_sizes
from mmcompress.compress.prune.shrink import shrunk
from mmcompress.compress.prune.sizes import block_choices, sizes_within, static_cost
from mmcompress.compress.prune.width import narrowed
from mmcompress.compress.train.augment import normalized
from mmcompress.compress.train.losses import info_nce
from mmcompress.data.batches import Batch, batches
from mmcompress.data.layout import read_labels
from mmcompress.export.pixels import image_processing
from mmcompress.export.texts import save_text_processing
from mmcompress.huggingface import dual_encoder_from_hugging_face
from mmcompress.manifest import Preprocessing
from mmcompress.measure.retrieval import Matches, hits, recalls
from mmcompress.model import DualEncoder
from mmcompress.processing import save_student_preprocessing
from mmcompress.runtime.tokenize import load_tokenizer, tokenize

TEACHER = Path(mmcompress.demo.__file__).parent / "teacher"
BATCH, MLP_MULTIPLE = 64, 32


class World:
    """The teacher's samples: pixels, texts and labels to calibrate on, images and candidates to score on."""

    def __init__(self, split: str, samples: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.preprocessing: Preprocessing = save_student_preprocessing(image_processing(TEACHER), Path(folder), 64)
            self.text = save_text_processing(TEACHER, Path(folder))
            self.tokenizer = load_tokenizer(Path(folder) / self.text.file)
        self.model = dual_encoder_from_hugging_face(TEACHER)
        drawn = list(islice(batches("demo:train", self.preprocessing, batch=BATCH, shuffle_seed=0), samples // BATCH))
        self.pixels = [self._pixels(batch) for batch in drawn]
        self.same = [torch.tensor([[a == b for b in batch.labels] for a in batch.labels]) for batch in drawn]
        self.texts = [self._embedded([captions[0] for captions in batch.captions]) for batch in drawn]
        names = read_labels("demo:names")
        place = {name: index for index, name in enumerate(names)}
        scored = list(batches(f"demo:{split}", self.preprocessing, batch=BATCH))
        self.images = [self._pixels(batch) for batch in scored]
        self.groups = np.array([place.get(label or "", -1) for batch in scored for label in batch.labels])
        self.candidates = self._embedded(names).numpy()

    def _pixels(self, batch: Batch) -> Tensor:
        return normalized(torch.from_numpy(batch.pixels).permute(0, 3, 1, 2).float() / 255, self.preprocessing)

    @torch.no_grad()
    def _embedded(self, texts: list[str]) -> Tensor:
        tokens = torch.from_numpy(tokenize(self.tokenizer, texts, self.text))
        return torch.cat([self.model.encode_text(part) for part in tokens.split(256)])

    def losses(self, encode: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """The InfoNCE of each batch, whose gradients are the Taylor methods' importance."""
        scale = self.model.logit_scale.detach()
        for pixels, texts, same in zip(self.pixels, self.texts, self.same, strict=True):
            yield info_nce(F.normalize(encode(pixels), dim=-1), texts, scale, same)

    @torch.no_grad()
    def r10(self, encode: Callable[[Tensor], Tensor]) -> float:
        """Share of the images whose name is among the ten best of all names."""
        images = torch.cat([F.normalize(encode(part), dim=-1) for part in self.images]).numpy()
        matches = Matches.of(self.groups, np.arange(len(self.candidates)))
        return recalls("i2t", hits(images, self.candidates, matches)[matches.answerable])["i2t_r10"]


def contrastive_taylor(world: World) -> dict[str, Tensor]:
    """First-order importance on the InfoNCE: a teacher against its own embeddings has no gradient."""
    totals: dict[str, Tensor] = {}
    losses = world.losses(world.model.image)
    for _ in world.pixels:
        with reader_inputs(world.model) as inputs:
            next(losses).backward()
            for name, found in summed_by_unit(world.model, inputs).items():
                totals[name] = totals.get(name, torch.zeros(())) + found
        world.model.zero_grad(set_to_none=True)
    return totals


def torch_pruning(world: World, share: float) -> tuple[Callable[[Tensor], Tensor], float]:
    """Torch-Pruning's own walk over transformers' CLIP; returns the encoder and its share of MACs."""
    import torch_pruning as tp
    from transformers import CLIPVisionModelWithProjection
    from transformers.models.clip import modeling_clip

    modeling_clip.CLIPAttention.forward = _attention
    vision = CLIPVisionModelWithProjection.from_pretrained(TEACHER, dtype=torch.float32).eval()

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision = vision

        def forward(self, pixels: Tensor) -> Tensor:
            embeds: Tensor = self.vision(pixel_values=pixels).image_embeds
            return embeds

    encoder, heads, ignored = Encoder(), {}, [vision.visual_projection]
    for layer in vision.vision_model.encoder.layers:
        attention = layer.self_attn
        heads |= dict.fromkeys((attention.q_proj, attention.k_proj, attention.v_proj), attention.num_heads)
        ignored += [attention.out_proj, layer.mlp.fc2]
    ignored.append(vision.vision_model.embeddings.patch_embedding)
    example = world.pixels[0][:1]
    before, _ = tp.utils.count_ops_and_params(encoder, example)
    pruner = tp.pruner.BasePruner(
        encoder,
        example,
        importance=tp.importance.GroupTaylorImportance(),
        pruning_ratio=1 - share,
        head_pruning_ratio=1 - share,
        ignored_layers=ignored,
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
    )
    encoder.zero_grad()
    for loss in world.losses(encoder):
        loss.backward()
    for group in pruner.step(interactive=True):
        group.prune()
    after, _ = tp.utils.count_ops_and_params(encoder, example)
    return encoder, after / before


def _attention(self: Any, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    """CLIPAttention for any number of heads: transformers' own reshapes to the unpruned width."""
    rows = hidden_states.shape[:2]
    projections = (self.q_proj, self.k_proj, self.v_proj)
    q, k, v = (p(hidden_states).view(*rows, -1, self.head_dim).transpose(1, 2) for p in projections)
    weights = torch.softmax(q @ k.transpose(-1, -2) * self.scale, dim=-1)
    return self.out_proj((weights @ v).transpose(1, 2).reshape(*rows, -1)), None


def ours(world: World, share: float) -> Iterator[tuple[str, DualEncoder]]:
    """Our methods: the same share in each block, and the best blocks for the same MACs."""
    model, inputs = world.model, world.pixels
    uniform = uniform_sizes(model.config.image, share, share, MLP_MULTIPLE)
    target = shrunk(model, "image", uniform, inputs, magnitudes(model), False)
    yield "magnitude", target
    scores = contrastive_taylor(world)
    yield "Taylor", shrunk(model, "image", uniform, inputs, scores, False)
    yield "Taylor, refitted", shrunk(model, "image", uniform, inputs, scores, True)
    yield "activation, refitted", shrunk(model, "image", uniform, inputs, {}, True)
    cost, base, full = static_cost(model.config, "image", "macs")
    blocks = block_choices(
        model.config.image, measured_errors(model, "image", inputs, {}, MLP_MULTIPLE, True), MLP_MULTIPLE, cost
    )
    within = sizes_within(blocks, target.config.macs / full, base, full, "it")
    yield "activation, refitted, by block", shrunk(model, "image", within, inputs, {}, True)
    yield "width", narrowed(model, "image", width_at(model.config, share), inputs, False)
    yield "width, refitted", narrowed(model, "image", width_at(model.config, share), inputs, True)


def width_at(config: DualEncoderConfig, share: float) -> int:
    """The multiple of 8 channels that comes nearest to this share of the image tower's MACs."""
    tower, step = config.image, 8
    macs = {
        width: tower.model_copy(update={"width": width}).macs(config.embed_dim)
        for width in range(step, tower.width, step)
    }
    return min(macs, key=lambda width: abs(macs[width] - share * config.macs))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--samples", type=int, default=512)
    asked = parser.parse_args()
    torch.manual_seed(0)
    world = World(asked.split, asked.samples)
    dense = world.r10(world.model.image)
    print(f"{len(world.groups)} images of demo:{asked.split}, {len(world.candidates)} names, {asked.samples} samples")
    print(f"{'':34} {'MACs':>6} {'R@10':>6} {'lost':>6}")
    print(f"{'dense':34} {1:6.3f} {dense:6.3f} {0:6.3f}", flush=True)

    def row(name: str, macs_share: float, r10: float) -> None:
        print(f"{name:34} {macs_share:6.3f} {r10:6.3f} {dense - r10:6.3f}", flush=True)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs, share = torch_pruning(world, asked.share)
        row("Torch-Pruning, Taylor", share, world.r10(theirs))
    except ImportError:
        print("Torch-Pruning, Taylor: not measured, pip install torch-pruning")
    for name, model in ours(world, asked.share):
        row(name, model.config.macs / world.model.config.macs, world.r10(model.image))
    return 0


if __name__ == "__main__":
    sys.exit(main())
