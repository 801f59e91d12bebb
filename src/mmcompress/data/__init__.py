"""Image-text pairs: what a specification names, what a shard holds, and batches of pixels."""

from mmcompress.data.batches import decode

__all__ = ["decode"]
