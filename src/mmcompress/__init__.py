"""The core, which all rooms share; mmcompress takes a large CLIP teacher to a small INT8 engine."""

__version__ = "0.1.0"
