"""Image-text pairs: what a specification names, what a shard holds, and batches of pixels."""

from mmcompress.data.batches import Batch, batches, count, decode, read

__all__ = ["Batch", "batches", "count", "decode", "read"]
