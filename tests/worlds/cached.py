"""All that an embeddings artifact holds, at once."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcompress.artifact import Artifact
from mmcompress.compress.train.chunks import contents_of, read_chunk


def cached(artifact: Artifact) -> tuple[Tensor, Tensor]:
    """Images (N, V, D) and texts (M, D) in FP32, in the order of the data."""
    files = [name for shard in contents_of(artifact.path).shards for name in shard.files]
    chunks = [read_chunk(artifact.file(name)) for name in files]
    return tuple(
        torch.cat([torch.from_numpy(getattr(c, side)).float() for c in chunks]) for side in ("images", "texts")
    )
